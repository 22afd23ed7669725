"""What a step is handed: the store, its work folder, the device, progress, and models loaded once per process."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from aligngap.parallel.world import ALONE, World
from aligngap.storage.files import write_text
from aligngap.storage.runlog import RunLog
from aligngap.storage.store import Store
from aligngap.storage.tracking import Track, Tracking
from aligngap.types import Judge, Progress, RunFailed, silent

if TYPE_CHECKING:
    import torch

    from aligngap.models.policy import Policy
    from aligngap.settings import ModelSpec
    from aligngap.steps import Align, Data, FitJudge, OracleJudge, ReadyJudge, Sft, Step

T = TypeVar("T")

CACHED = 12  # models and tables held by one process


class Context:
    """One process's view of a study while it works on one step after another."""

    def __init__(
        self, store: Store, device: str = "cpu", save_seconds: float = 30.0, tracking: Tracking | None = None
    ) -> None:
        self.store, self.device_name, self.save_seconds = store, device, save_seconds
        self.work = Path()
        self.world: World = ALONE  # the processes that make this step together
        self.progress: Progress = silent
        self.log = RunLog()
        self.tracking = tracking or Tracking()
        self.track = Track()  # told every training step and every measurement
        self.stopping: Callable[[], bool] = lambda: False  # asked between training steps
        self._cache: OrderedDict[Hashable, Any] = OrderedDict()
        self._paid: dict[str, Any] = {}  # judges that this step has asked and that are paid for

    @property
    def device(self) -> torch.device:
        import torch

        return torch.device(self.device_name)

    def path(self, step: Step) -> Path:
        return self.store.path(step.name)

    def cached(self, key: Hashable, build: Callable[[], T]) -> T:
        """The value of `build`, kept in memory for the steps that follow."""
        if key not in self._cache:
            self._cache[key] = build()
            while len(self._cache) > CACHED:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        found: T = self._cache[key]
        return found

    def tokenizer(self, data: Data, model: ModelSpec) -> Any:
        """The study's tokenizer, or a pretrained model's own where the model comes with one."""
        from aligngap.models.loading import load_tokenizer

        own = model.path is not None and data.tokenizer.path != model.path and model.path != data.family.path
        return load_tokenizer(str(model.path) if own else self.path(data) / "tokenizer")

    def policy(self, step: Sft | Align, checkpoint: int | None = None) -> Policy:
        """The SFT policy, or a run's checkpoint (its last by default)."""
        from aligngap.models.policy import Policy

        if step.kind == "sft":
            folder, key, spec, adapter = self.path(step) / "policy", step.name, step.model, None
        else:
            at = step.optimization.steps if checkpoint is None else checkpoint
            folder, key, spec = step.checkpoint(self, at), f"{step.name}@step{at}", step.sft.model
            adapter = step.optimization.lora
            if not folder.exists() and self.store.has(step.name):
                outcome = self.store.manifest(step.name)["result"]["outcome"]
                raise RunFailed(f"needs step {at} of {step.name}, which it never reached: {outcome}")

        def build() -> Policy:
            if adapter is not None and step.kind == "align":  # on the weights it started from, which are in memory
                return self.start(step).adapted(adapter, key, 0, folder)
            policy = Policy.load(folder, response_tokens=step.limits.response_tokens, key=key, spec=spec)
            policy.to(self.device)
            return policy

        return self.cached(key, build) if step.kind == "sft" else build()

    def start(self, step: Align) -> Policy:
        """The policy that a run starts from and is held against: the SFT policy, or another run's checkpoint."""
        other, at = step.start, step.start_at
        if other is None:
            return self.policy(step.sft)

        def build() -> Policy:
            policy = self.policy(other, at)
            return policy if policy.adapter is None else policy.copy(policy.key).merge()

        return self.cached(("start", other.name, at), build)

    def judge(self, step: FitJudge | ReadyJudge | OracleJudge) -> Judge:
        if step.kind == "oracle":
            from aligngap.judges.oracle import SandboxOracle
            from aligngap.steps import build_task

            key = ("oracle", step.model_dump_json())
            return self.cached(key, lambda: SandboxOracle(build_task(step.task), step.seed))
        from aligngap.steps import build_judge

        def build() -> Judge:
            kind = build_judge(step.spec)
            if step.kind == "ready-judge":
                ready: Judge = kind.open(self.store.root, self.device) if hasattr(kind, "open") else kind
                return ready
            folder, backbone = self.path(step) / "model", self.path(step.backbone) / "policy"
            learner = kind.load(folder, backbone, step.backbone.model)
            learner.to(self.device)
            judge: Judge = learner
            return judge

        found: Any = self.cached(step.name, build)
        if hasattr(found, "for_step"):
            found.for_step(self.work.name)
            self._paid[found.key] = found
        return self.world.judge(cast("Judge", found))

    def spent(self) -> dict[str, Any]:
        """What judges that are paid for were asked by the step in `work`, and cost."""
        told = {key: judge.spent(self.work.name) for key, judge in self._paid.items()}
        self._paid = {}
        return {key: about for key, about in told.items() if about}

    def write_json(self, path: Path, value: Any) -> None:
        write_text(path, json.dumps(value))
