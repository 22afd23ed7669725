"""What a run computes, in floating-point operations, counted where it happens: tokens that enter a stack of a model.

A forward pass takes 2 operations per weight and token, a backward pass 2 more for what flows through the weight and 2
for its own gradient where it is trained: 6 for a model that trains, the 6ND of Kaplan et al. (2020, arXiv 2001.08361,
section 2.1), and 4 for one of which only an adapter does. Hooks count every token that a model is given, padding and
those of a cached generation included, so no arm needs a formula of its own. Left out: attention's products of
activations (small where a text is shorter than a model is wide), activations computed a second time, the experts of a
mixture that a token skips, and whatever is computed elsewhere, by another engine or a judge behind an endpoint.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Self

import torch
from torch import nn

from aligngap.models.backbone import Backbone


class Flops:
    """A counter on models; a context, at whose end they are as before."""

    def __init__(self) -> None:
        self.total = 0.0
        self._watched: set[int] = set()
        self._handles: list[Any] = []

    def watch(self, holder: Any) -> None:
        """Count what the models of a policy or a judge compute from now on, each once."""
        for model in models_of(holder):
            for stack in stacks(model):
                if id(stack) not in self._watched:
                    self._watched.add(id(stack))
                    per_token = partial(self._count, *weights(stack))
                    self._handles.append(stack.register_forward_pre_hook(per_token, with_kwargs=True))

    def taken(self) -> float:
        """Operations since the last time."""
        taken, self.total = self.total, 0.0
        return taken

    def _count(self, held: int, trained: int, stack: nn.Module, args: Any, given: dict[str, Any]) -> None:
        texts = (given.get("input_ids"), given.get("inputs_embeds"), *args)
        read = next((x for x in texts if x is not None), None)
        again = torch._C._current_graph_task_id() != -1  # inside a backward pass, which computes it a second time
        if read is not None and not again:
            tokens = read.numel() // (read.shape[-1] if read.is_floating_point() else 1)
            backward = 2 * (held + trained) if stack.training and torch.is_grad_enabled() else 0
            self.total += tokens * (2 * held + backward)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()


def models_of(holder: Any) -> list[Any]:
    """The transformers models that a policy or a judge holds, itself or as the policies it is made of."""
    holder = getattr(holder, "asked", holder)  # a judge whose questions processes share
    parts = [holder, *(part for part in getattr(holder, "__dict__", {}).values() if isinstance(part, Backbone))]
    models = [getattr(part, "model", None) for part in parts]
    return [model for model in models if hasattr(model, "get_output_embeddings")]


def stacks(model: Any) -> list[nn.Module]:
    """The modules that together read every token once: encoder and decoder, or the decoder, and the output layer."""
    head = model.get_output_embeddings()
    body = [model.get_encoder(), model.get_decoder()] if model.config.is_encoder_decoder else [model.base_model]
    return body if head is None else [*body, head]


def weights(stack: nn.Module) -> tuple[int, int]:
    """Numbers in the matrices that a stack multiplies by, and of these, in those that are trained."""
    found = {
        id(p): p
        for module in stack.modules()
        if not isinstance(module, nn.Embedding)
        for p in module.parameters(recurse=False)
        if p.ndim > 1
    }
    return sum(p.numel() for p in found.values()), sum(p.numel() for p in found.values() if p.requires_grad)
