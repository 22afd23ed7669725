"""`torch.compile` where a study asks for it: the norms and feed-forward parts of a model's layers, in gradient steps.

These are what a compiler has to do: operations on every number that follow one another. Matrix products and attention
stay what they are, so that texts of any length need one compilation. Without gradient the plain code computes.

What this module leaves out: where what is compiled is kept (`execute/worker.py`), CUDA graphs, compiled samplers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache
from types import MethodType
from typing import Any

import torch
from torch import nn

from aligngap.types import AligngapError

#: classes of transformers whose forward pass is compiled, by the ends of their names
PARTS = re.compile(r"\w*(RMSNorm|T5LayerNorm|MLP|Dense\w*ActDense)")


def check_compiler() -> None:
    """Refuse to compile where torch finds no C++ compiler: AligngapError, before anything is computed."""
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        named = os.environ.get("CXX", "g++")
        remedy = "install one, name one in CXX, or leave --compile (`compile: true`) out, and the model runs uncompiled"
        raise AligngapError(f"model.compile: torch finds no C++ compiler (`{named}`); {remedy}") from error


def use(model: nn.Module) -> None:
    """Have a model's norms and feed-forward parts compute compiled wherever they compute with gradient."""
    for module in model.modules():
        kind: Any = type(module)
        if PARTS.fullmatch(kind.__name__):
            reads: Any = module
            reads.forward = MethodType(compiled(kind), module)


@cache
def compiled(kind: Any) -> Callable[..., Any]:
    """The forward pass of a class of modules, compiled once for all of them and for inputs of every size."""
    plain = kind.forward
    fast = torch.compile(plain, dynamic=True)

    def forward(self: nn.Module, *given: Any, **more: Any) -> Any:
        return (fast if torch.is_grad_enabled() else plain)(self, *given, **more)

    return forward
