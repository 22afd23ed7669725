"""A Python function as judge: `golden: {kind: function, object: "my_rules:prefer"}`.

The function takes three lists of text, (prompts, a, b), and returns for each the probability that a is better than b.
It is imported by name, and only because the study says so; it runs with the rights of the command.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from aligngap.settings import Settings
from aligngap.source import source_hash
from aligngap.types import AligngapError, Judgement, Prompt, Response


class FunctionJudge(Settings):
    """A Python function of (prompts, a, b), asked in both orders; equal text is a tie."""

    object: str = Field(pattern=r"^[\w.]+:\w+$", description="`module:function`, importable where the study is run")

    @property
    def key(self) -> str:
        return f"function {self.object}"

    def identity(self) -> dict[str, Any]:
        """Its name and a hash of its source, with what that imports from beside it: another one is another judge."""
        module = self.object.partition(":")[0]
        try:
            found = importlib.util.find_spec(module)
        except (ImportError, ValueError) as error:
            raise AligngapError(f"object: module `{module}` cannot be imported ({error})") from error
        if found is None:
            raise AligngapError(f"object: no module `{module}`; put its folder on PYTHONPATH")
        return {"object": self.object, "source": source_hash([module])}

    def check(self, folder: Path) -> None:
        """Import it now."""
        self.function()

    def open(self, folder: Path, device: Any) -> FunctionJudge:
        """The judge itself, its module imported: what a step then asks is what it has held against its key."""
        self.function()
        return self

    def function(self) -> Callable[..., Any]:
        module, _, name = self.object.partition(":")
        try:
            made = getattr(importlib.import_module(module), name)
        except Exception as error:  # whatever a user's module raises on import
            raise AligngapError(f"object: `{self.object}` cannot be imported: {error}") from error
        if not callable(made):
            raise AligngapError(f"object: `{self.object}` is not a function")
        found: Callable[..., Any] = made
        return found

    def judge(self, prompts: Sequence[Prompt], a: Sequence[Response], b: Sequence[Response]) -> Judgement:
        """[B], the function's own answers; what is no probability is one error."""
        ask = [p.text for p in prompts]
        left, right = [y.text for y in a], [y.text for y in b]
        function = self.function()
        forward, backward = (self._checked(function(ask, *sides), len(ask)) for sides in ((left, right), (right, left)))
        same = np.array([x == y for x, y in zip(left, right, strict=True)], dtype=bool)
        return Judgement(forward, np.where(same, forward, backward))

    def _checked(self, answer: Any, n: int) -> NDArray[np.float64]:
        try:
            found = np.asarray(answer, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise AligngapError(f"judge `{self.object}`: returned {type(answer).__name__}, not numbers") from error
        if found.shape != (n,):
            raise AligngapError(f"judge `{self.object}`: returned shape {found.shape} for {n} pairs; return ({n},)")
        wrong = ~((found >= 0) & (found <= 1))  # NaN is in neither
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            raise AligngapError(f"judge `{self.object}`: {found[at]} for pair {at}; return probabilities from 0 to 1")
        return found
