"""What each model of a study reads at once, held against its window, which no training makes longer.

A decoder-only model reads the prompt and what follows it in one; limits are in tokens of the policy's tokenizer. Leaves
out ready judges, which say themselves what they read (`judges/kinds.py`).
"""

from __future__ import annotations

from aligngap.settings import Limits, Study
from aligngap.study.build import build_judge


def too_long(study: Study) -> str:
    """Which model a prompt and response of the study's limits are too long for, one line with the remedy, or ""."""
    from aligngap.judges.kinds import LearningKind, ReadingKind
    from aligngap.models.loading import config_of, window

    prompt, response = study.limits.prompt_tokens, study.limits.response_tokens
    longest = [("policy", study.policy, prompt + response, response)]
    for role, judge in (("golden", study.golden), ("proxy", study.proxy)):
        kind = build_judge(judge, role)
        if isinstance(kind, LearningKind):
            whole = kind.reads(prompt, response) if isinstance(kind, ReadingKind) else prompt + response
            longest.append((f"{role} judge ({judge.kind})", judge.model or study.policy, whole, whole - prompt))
    for who, spec, whole, after in longest:
        config = config_of(spec)
        most, needed = window(config), max(prompt, after) if config.is_encoder_decoder else whole
        if most is not None and needed > most:
            return (
                f"{who}: its model reads at most {most} tokens, and limits.prompt_tokens {prompt} with "
                f"limits.response_tokens {response} make {needed} of them; lower them, or give it another model"
            )
    return ""


def fit_limits(study: Study) -> Study:
    """The study with the longest limits up to its own that fit every window, the prompt's in the same proportion.

    As it is where its own fit, or where no limits would.
    """
    if not too_long(study):
        return study
    most = study.limits
    fits, over = 0, most.response_tokens
    found = study
    while over - fits > 1:
        middle = (fits + over) // 2
        prompt = middle * most.prompt_tokens // most.response_tokens
        shorter = study.model_copy(update={"limits": Limits(prompt_tokens=max(1, prompt), response_tokens=middle)})
        if too_long(shorter):
            over = middle
        else:
            fits, found = middle, shorter
    return found
