"""Colours and markers of the arms, the same in every figure.

Okabe & Ito's palette (2008, "Color universal design"), told apart by people with the common colour-vision deficiencies;
each arm also has its own marker and line. The two arms of the question have the two farthest colours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Style:
    """The colour, marker and line of a series, on paper and on the page alike."""

    colour: str
    marker: str = "o"  # matplotlib's letters: one of o s ^ D v P X
    dash: tuple[float, ...] = ()  # lengths of stroke and gap in widths of the line; none: a solid line


_STYLES = (
    Style("#0072B2", "o"),
    Style("#D55E00", "s"),
    Style("#009E73", "^", (4, 2)),
    Style("#B07AA1", "D", (5, 1.5, 1, 1.5)),
    Style("#56B4E9", "v", (1, 1.5)),
    Style("#E69F00", "P", (7, 2)),
    Style("#8C8C8C", "X", (7, 1.5, 1, 1.5)),
)
_KNOWN = {"online": 0, "offline": 1, "online-golden": 2, "offline-proxy": 3}
#: of what is no arm: the reference without training
NEUTRAL = Style("#777777", "o", (1, 1.5))


def arm_styles(arms: tuple[str, ...]) -> dict[str, Style]:
    """A style for each arm; known arms always get theirs, so that colours mean the same in every study.

    With more arms than colours a colour comes again, with another marker and line.
    """
    taken = {a: _KNOWN[a] for a in arms if a in _KNOWN}
    free = [i for i in range(len(_STYLES)) if i not in taken.values()]
    styles = {a: _STYLES[i] for a, i in taken.items()}
    for i, arm in enumerate(a for a in arms if a not in taken):
        again, place = divmod(i - len(free), len(_STYLES)) if i >= len(free) else (-1, free[i])
        other = _STYLES[(place + 3 * (again + 1)) % len(_STYLES)]
        styles[arm] = replace(other, colour=_STYLES[place].colour)
    return styles
