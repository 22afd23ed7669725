"""The optimiser a recipe names, so that `fit.py` itself needs no transformers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from aligngap.settings import Optimization


def build_optimizer(parameters: Iterable[nn.Parameter], how: Optimization) -> torch.optim.Optimizer:
    """AdamW; or Adafactor at the given learning rate, without its relative step and its scaling by the parameters."""
    if how.optimizer == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(
            parameters, lr=how.learning_rate, scale_parameter=False, relative_step=False, warmup_init=False,
            weight_decay=how.weight_decay,
        )  # fmt: skip
    return torch.optim.AdamW(
        parameters, lr=how.learning_rate, betas=how.betas, eps=how.eps, weight_decay=how.weight_decay
    )
