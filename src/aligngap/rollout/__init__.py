"""Generation engines behind one role: token ids of n responses per prompt from the policy as it stands."""

from aligngap.rollout.engine import opened, rollout_of
from aligngap.rollout.hf import Share, generate

__all__ = ["Share", "generate", "opened", "rollout_of"]
