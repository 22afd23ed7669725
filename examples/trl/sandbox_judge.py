"""A judge that is a function: `aligngap measure … --judge sandbox_judge:prefer`, in this folder.

It gets prompts and two responses to each as texts, and answers with the probability that the first one is better. This
one is the sandbox's true preference; yours may call a model, count words, or ask anybody.
"""

from __future__ import annotations

from aligngap.tasks.sandbox import Sandbox

world = Sandbox().world(0)


def prefer(prompts: list[str], a: list[str], b: list[str]) -> list[float]:
    """The probability that each response of `a` is better than that of `b`."""
    return [float(p) for p in world.preference(prompts, a, b)]
