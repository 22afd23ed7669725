"""The only place that pads, masks and truncates: token ids in, rectangular tensors and flat positions out.

A `Batch` holds N completions of P prompts (`prompt_of` says which prompt each completion belongs to, so that an
encoder runs once per prompt). Padding never reaches a result: models are asked for hidden states at completion
positions only, flattened to [M] in row order, and sums over positions go through `sum_rows`.
Nothing is cut here: rows over the limit are dropped and counted when the data are encoded (the step `Data`), and a
sampled response ends at the limit with `ended=False`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Ids = Sequence[int]


def pad(rows: Sequence[Ids], pad_id: int, side: Literal["left", "right"] = "right") -> tuple[Tensor, Tensor]:
    """Token ids [N, T] and mask [N, T] (1 at real tokens) with T the longest row."""
    width = max(1, max(map(len, rows), default=1))
    left = side == "left"
    ids = [[pad_id] * (width - len(r)) + list(r) if left else list(r) + [pad_id] * (width - len(r)) for r in rows]
    mask = [[0] * (width - len(r)) + [1] * len(r) if left else [1] * len(r) + [0] * (width - len(r)) for r in rows]
    return torch.tensor(ids, dtype=torch.long), torch.tensor(mask, dtype=torch.long)


def positions(mask: Tensor) -> Tensor:
    """Positions [N, T] of real tokens, counted from the first one of each row; 0 where padding stands before it."""
    return (mask.cumsum(-1) - 1).clamp_min(0)


@dataclass(frozen=True)
class Batch:
    """Tensors for one forward pass over N completions of P prompts.

    prompts [P] id tuples, completions [N] id tuples, prompt_of [N]; `rows` [M] and `columns` [M] address the real
    completion tokens, `targets` [M] are their ids, `lengths` [N] their counts.
    """

    prompts: tuple[Ids, ...]
    completions: tuple[Ids, ...]
    prompt_of: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor
    lengths: Tensor

    def to(self, device: torch.device) -> Batch:
        moved = [t.to(device) for t in (self.prompt_of, self.rows, self.columns, self.targets, self.lengths)]
        return Batch(self.prompts, self.completions, *moved)

    def sum_rows(self, values: Tensor) -> Tensor:
        """Sum flat values [M, ...] over the positions of each completion: [N, ...]."""
        out = torch.zeros((len(self.completions), *values.shape[1:]), dtype=values.dtype, device=values.device)
        return out.index_add(0, self.rows, values)


def collate(prompts: Sequence[Ids], completions: Sequence[Ids], prompt_of: Sequence[int] | None = None) -> Batch:
    """Batch of completions; without `prompt_of`, completion i belongs to prompt i."""
    owners = list(range(len(prompts))) if prompt_of is None else list(prompt_of)
    if len(owners) != len(completions):
        raise ValueError(f"{len(completions)} completions but {len(owners)} owners")
    lengths = torch.tensor([len(c) for c in completions], dtype=torch.long)
    rows = torch.repeat_interleave(torch.arange(len(completions)), lengths)
    columns = torch.cat([torch.arange(len(c)) for c in completions] or [torch.zeros(0, dtype=torch.long)])
    targets = torch.tensor([t for c in completions for t in c], dtype=torch.long)
    return Batch(
        tuple(prompts), tuple(completions), torch.tensor(owners, dtype=torch.long), rows, columns, targets, lengths
    )
