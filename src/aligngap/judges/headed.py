"""What fitted judges with a head share: a backbone and a head over its states as one module, saved and loaded whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from aligngap.models.backbone import Backbone
from aligngap.models.loading import PLAIN, load_model, load_tokenizer, seeded
from aligngap.settings import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ScoringHead(nn.Module):
    """One number [N] from normalised, pooled states [N, 2d] of a response: what both heads are made of."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        with seeded(seed, torch.device("cpu")):
            self.norm = nn.LayerNorm(2 * width)
            self.hidden = nn.Linear(2 * width, 2 * width)
            self.score = nn.Linear(2 * width, 1)

    def scored(self, normed: Tensor) -> Tensor:
        out: Tensor = self.score(F.gelu(self.hidden(normed))).squeeze(-1)
        return out


class HeadedJudge(Backbone):
    """Backbone and head as one module, saved as a Hugging Face folder plus `head.safetensors`."""

    kind: ClassVar[str]
    new_head: ClassVar[type[nn.Module]]  # makes an untrained head of the states' width and a seed

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        key: str,
        seed: int = 0,
        batch: int = 128,
        spec: ModelSpec = PLAIN,
    ) -> None:
        super().__init__(model, tokenizer, spec)
        self.key, self.batch_size = key, batch
        config = model.config
        self.head = self.new_head(getattr(config, "d_model", None) or config.hidden_size, seed)
        self.module = nn.ModuleDict({"backbone": model, "head": self.head})
        self.check_reading()
        self.separator: int = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else self.eos_id

    def to(self, device: torch.device) -> Self:
        self.module.to(device)
        return self

    def save(self, path: Path) -> None:
        self.model.save_pretrained(str(path))
        self.tokenizer.save_pretrained(str(path))
        save_file(self.head.state_dict(), str(path / "head.safetensors"))
        (path / "judge.json").write_text(json.dumps({"kind": self.kind, "key": self.key}))

    @classmethod
    def load(cls, path: Path, *, batch: int = 128, spec: ModelSpec = PLAIN) -> Self:
        """The judge in a folder, run as `spec` says."""
        key = json.loads((path / "judge.json").read_text())["key"]
        judge = cls(load_model(path, spec), load_tokenizer(path), key=key, batch=batch, spec=spec)
        judge.head.load_state_dict(load_file(str(path / "head.safetensors")))
        return judge
