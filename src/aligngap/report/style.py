"""Colours and markers of the arms, the same in every figure.

Okabe & Ito's palette (2008, "Color universal design"), told apart by people with the common colour-vision deficiencies;
each arm also has its own marker and line. The two arms of the question have the two farthest colours.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ArmStyle:
    """The colour, marks and lines of an arm, on paper (matplotlib) and on the page (plotly)."""

    colour: str
    marker: str  # matplotlib
    symbol: str  # plotly
    dash: str  # plotly
    line: str  # matplotlib


_STYLES = (
    ArmStyle("#0072B2", "o", "circle", "solid", "-"),
    ArmStyle("#D55E00", "s", "square", "solid", "-"),
    ArmStyle("#009E73", "^", "triangle-up", "dash", "--"),
    ArmStyle("#B07AA1", "D", "diamond", "dashdot", "-."),
    ArmStyle("#56B4E9", "v", "triangle-down", "dot", ":"),
    ArmStyle("#E69F00", "P", "cross", "longdash", "--"),
    ArmStyle("#8C8C8C", "X", "x", "longdashdot", "-."),
)
_KNOWN = {"online": 0, "offline": 1, "online-golden": 2, "offline-proxy": 3}


def arm_styles(arms: tuple[str, ...]) -> dict[str, ArmStyle]:
    """A style for each arm; known arms always get theirs, so that colours mean the same in every study."""
    taken = {a: _KNOWN[a] for a in arms if a in _KNOWN}
    free = [i for i in range(len(_STYLES)) if i not in taken.values()] or [len(_STYLES) - 1]
    others = [a for a in arms if a not in taken]
    return {
        **{a: _STYLES[i] for a, i in taken.items()},
        **{a: _STYLES[free[i % len(free)]] for i, a in enumerate(others)},
    }
