"""Bytes that nobody meant, made from valid files by random edits: data, or one line of error, and nothing else.

ALIGNGAP_FUZZ_EXAMPLES sets how many are tried of each kind (150 without). `fuzz.py` beside this file searches by
coverage instead.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seeds import SEEDS
from targets import TARGETS

EXAMPLES = int(os.environ.get("ALIGNGAP_FUZZ_EXAMPLES", "150"))
WORDS = (
    b"\x00",
    b"\xff",
    b": ",
    b"- ",
    b"&a ",
    b"*a",
    b"!!",
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"\n",
    b"nan",
    b"-1",
    b"1e999",
)
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 40), st.one_of(st.binary(max_size=12), st.sampled_from(WORDS))),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_valid_files_are_read_whatever_is_done_to_them(name: str) -> None:
    seeds = SEEDS[name]()
    for seed in seeds:
        TARGETS[name](seed)

    @settings(max_examples=EXAMPLES)
    @given(st.sampled_from(seeds), EDITS)
    def tried(seed: bytes, edits: list[tuple[float, int, bytes]]) -> None:
        raw = bytearray(seed)
        for place, length, new in edits:
            at = int(place * len(raw))
            raw[at : at + length] = new
        TARGETS[name](bytes(raw))

    tried()


@pytest.mark.parametrize("old", [b"study", b"outcome", b"win_rate"])
def test_a_column_whose_name_is_not_text(old: bytes) -> None:
    """Found by `fuzz.py records`: the name of a column that is not UTF-8."""
    (seed,) = SEEDS["records"]()
    for times in (1, 2, -1):
        TARGETS["records"](seed.replace(old, b"\x8c" + old[1:], times))
