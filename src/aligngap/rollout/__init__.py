"""Generation engines behind one role: token ids of n responses per prompt from the policy as it stands."""

from .hf import Share, generate

__all__ = ["Share", "generate"]
