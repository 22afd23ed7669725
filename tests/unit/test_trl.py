"""TRL's trainers measured while they train: rows, trackers, PEFT, several processes; and the training left as it is."""

from __future__ import annotations

import itertools
import os
import runpy
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import WORDS, tiny_policy
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback

from aligngap.instrument import Gauge
from aligngap.instrument.folders import find_checkpoints
from aligngap.integrations.trl import FrontierCallback
from aligngap.report import build_report
from aligngap.storage.records import read_folder
from aligngap.types import AligngapError, Judgement, Prompt, Response, RunFailed

trl = pytest.importorskip("trl", reason="needs trl: pip install aligngap[trl]")
Dataset = pytest.importorskip("datasets").Dataset
online_dpo = pytest.importorskip("trl.experimental.online_dpo")

PROMPTS = [f"{a} {b}" for a, b in itertools.product(WORDS[:8], WORDS[8:12])]
ROWS = [
    {"prompt": p, "chosen": f" {WORDS[i % 4]}", "rejected": " " + " ".join(WORDS[4:8])} for i, p in enumerate(PROMPTS)
]
SMALL: dict[str, Any] = {"response_tokens": 6, "count": 16, "samples": 4}


class Short:
    """The shorter text wins."""

    key = "short"

    def judge(self, prompts: Sequence[Prompt], a: Sequence[Response], b: Sequence[Response]) -> Judgement:
        p = np.array([(np.sign(len(y.text) - len(x.text)) + 1) / 2 for x, y in zip(a, b, strict=True)])
        return Judgement(p, 1 - p)


class Broken(Short):
    """Answers only what it is asked first."""

    def __init__(self) -> None:
        self.asked = 0

    def judge(self, prompts: Sequence[Prompt], a: Sequence[Response], b: Sequence[Response]) -> Judgement:
        self.asked += 1
        if self.asked > 1:
            raise RunFailed("the endpoint does not answer")
        return super().judge(prompts, a, b)


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("sft")
    tiny_policy("llama", seed=0).save(folder)
    return str(folder)


def told(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "trainer"), "per_device_train_batch_size": 8, "max_steps": 4, "learning_rate": 1e-2,
        "bf16": False, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no",
        "logging_steps": 2, "gradient_checkpointing": False, "lr_scheduler_type": "constant", **more,
    }  # fmt: skip


def offline(sft: str, folder: Path, peft: Any = None, **more: Any) -> Any:
    args = trl.DPOConfig(**told(folder, **{"eval_strategy": "steps", "eval_steps": 2} | more))
    data, tokenizer = Dataset.from_list(ROWS), AutoTokenizer.from_pretrained(sft)
    model = AutoModelForCausalLM.from_pretrained(sft)
    return quiet(trl.DPOTrainer(model, args=args, train_dataset=data, eval_dataset=data.select(range(8)),
                            processing_class=tokenizer, peft_config=peft))  # fmt: skip


def online(sft: str, folder: Path, peft: Any = None, **more: Any) -> Any:
    args = online_dpo.OnlineDPOConfig(**told(folder, max_new_tokens=6, **more))
    data = Dataset.from_list([{"prompt": r["prompt"]} for r in ROWS])

    def shorter(completions: list[str], **_: Any) -> list[float]:
        return [-float(len(c)) for c in completions]

    return quiet(online_dpo.OnlineDPOTrainer(AutoModelForCausalLM.from_pretrained(sft), reward_funcs=shorter, args=args,
                                  train_dataset=data, processing_class=AutoTokenizer.from_pretrained(sft),
                                  peft_config=peft))  # fmt: skip


def quiet(trainer: Any) -> Any:
    trainer.remove_callback(PrinterCallback)
    return trainer


def logged(trainer: Any, name: str) -> dict[int, float]:
    return {row["step"]: row[name] for row in trainer.state.log_history if name in row}


def test_both_trainers_are_drawn_on_one_chart(sft: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    seen: list[dict[str, float]] = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            seen.append(dict(logs))

    first = offline(sft, tmp_path)
    first.add_callback(Tracker())
    first.add_callback(FrontierCallback(first, out, PROMPTS, [Short()], arm="offline", **SMALL))
    first.train()
    second = online(sft, tmp_path)
    second.add_callback(FrontierCallback(second, out, PROMPTS, [Short()], arm="online", every=[2], **SMALL))
    second.train()
    tables = read_folder(out)
    rows = tables.records.set_index(["arm", "step"])
    assert list(rows.index) == [(arm, step) for arm in ("offline", "online") for step in (0, 2, 4)]
    assert (rows["kl_nats"].xs(0, level="step") == 0).all()
    assert (rows["win_rate"].xs(0, level="step") == 0.5).all()
    assert (rows["kl_nats"].drop(index=0, level="step") > 0).all()
    assert set(rows["config"]) == {"beta=0.1 learning_rate=0.01"}
    assert rows["pairs_seen"].tolist() == [0, 16, 32] * 2
    assert rows["responses_sampled"].tolist() == [0, 0, 0, 0, 32, 64]
    assert set(rows["loss"]) == {"sigmoid"}
    assert len(tables.per_prompt) == 6 * 16
    for trainer, arm in ((first, "offline"), (second, "online")):
        told_kl = logged(trainer, "kl_nats")
        assert told_kl == {s: pytest.approx(rows["kl_nats"][arm, s]) for s in (0, 2, 4)}
        assert set(logged(trainer, "win_rate")) == {0, 2, 4}
        assert set(logged(trainer, "loss")) == {2, 4}  # what the trainer logs is all there
    assert sum("kl_nats" in row for row in seen) == 3
    again = Gauge(sft, PROMPTS, [Short()], **SMALL).measure(second.model)
    assert again.rows[0]["kl_nats"] == pytest.approx(rows["kl_nats"]["online", 4], abs=1e-9)
    assert again.rows[0]["win_rate"] == rows["win_rate"]["online", 4]
    page = build_report(out)
    assert "offline" in page.read_text(encoding="utf-8")
    assert (out / "figures").is_dir()


@pytest.mark.parametrize("make", [offline, online])
def test_measuring_changes_nothing_of_the_training(make: Any, sft: str, tmp_path: Path) -> None:
    weights = []
    for measured in (False, True):
        trainer = make(sft, tmp_path)
        if measured:
            every = None if make is offline else 1
            callback = FrontierCallback(trainer, tmp_path / "out", PROMPTS, [Short()], arm="x", every=every, **SMALL)
            trainer.add_callback(callback)
        trainer.train()
        weights.append({n: p.detach().clone() for n, p in trainer.model.named_parameters()})
        losses = logged(trainer, "loss")
    assert set(losses) == {2, 4}
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=0, atol=0)


@pytest.mark.parametrize("make", [offline, online])
def test_the_reference_of_an_adapter_is_its_base(make: Any, sft: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj", "up_proj"], lora_alpha=32)
    trainer = make(sft, tmp_path, lora, learning_rate=5e-2)
    trainer.add_callback(FrontierCallback(trainer, tmp_path / "out", PROMPTS, arm="lora", every=2, **SMALL))
    trainer.train()
    rows = read_folder(tmp_path / "out").records.set_index("step")
    assert rows["kl_nats"][0] == 0
    trainer.save_model(str(tmp_path / "adapter"))
    alone = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sft), tmp_path / "adapter")
    found = Gauge(sft, PROMPTS, **SMALL).kl(alone.merge_and_unload())
    assert rows["kl_nats"][4] == pytest.approx(found.reverse.value, abs=1e-5)
    assert rows["kl_nats"][4] > 0.01
    assert rows["win_rate"].isna().all()  # nobody was asked


def test_an_adapter_that_goes_on_training_has_its_start_as_reference(sft: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(sft), lora)
    args = trl.DPOConfig(**told(tmp_path, max_steps=2))
    trainer = quiet(trl.DPOTrainer(model, args=args, train_dataset=Dataset.from_list(ROWS),
                               processing_class=AutoTokenizer.from_pretrained(sft)))  # fmt: skip
    trainer.add_callback(FrontierCallback(trainer, tmp_path / "out", PROMPTS, arm="on", every=2, **SMALL))
    trainer.train()
    kl = read_folder(tmp_path / "out").records.set_index("step")["kl_nats"]
    assert kl[0] == pytest.approx(0, abs=1e-9)
    assert kl[2] > 0
    assert Gauge(sft, PROMPTS, **SMALL).kl(trainer.model).reverse.value > 3 * kl[2]  # from the base it is far away


def test_the_best_checkpoint_may_be_picked_by_win_rate(sft: str, tmp_path: Path) -> None:
    trainer = offline(
        sft, tmp_path, metric_for_best_model="win_rate", greater_is_better=True, save_strategy="best", max_steps=2
    )
    trainer.add_callback(FrontierCallback(trainer, tmp_path / "out", PROMPTS, [Short()], arm="x", **SMALL))
    trainer.train()
    rows = read_folder(tmp_path / "out").records.set_index("step")
    assert trainer.state.best_metric == pytest.approx(rows["win_rate"][2])


def test_a_judge_that_fails_costs_the_win_rate_and_nothing_else(
    sft: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = offline(sft, tmp_path)
    trainer.add_callback(FrontierCallback(trainer, tmp_path / "out", PROMPTS, [Broken()], arm="x", **SMALL))
    trainer.train()
    rows = read_folder(tmp_path / "out").records.set_index("step")
    assert rows["win_rate"].isna().tolist() == [False, True, True]
    assert (rows["kl_nats"][2:] > 0).all()
    assert "step 2 is not judged: the endpoint does not answer" in caplog.text
    assert trainer.state.global_step == 4


def test_bad_input_is_refused_before_training(sft: str, tmp_path: Path) -> None:
    with pytest.raises(AligngapError, match="OnlineDPOTrainer ends with an error where it evaluates"):
        FrontierCallback(online(sft, tmp_path), tmp_path / "out", PROMPTS, arm="x")
    never = offline(sft, tmp_path, eval_strategy="no")
    with pytest.raises(AligngapError, match="never evaluates; set eval_strategy"):
        FrontierCallback(never, tmp_path / "out", PROMPTS, arm="x")
    with pytest.raises(AligngapError, match="every=0"):
        FrontierCallback(never, tmp_path / "out", PROMPTS, arm="x", every=0)
    with pytest.raises(AligngapError):
        FrontierCallback(never, tmp_path / "out", [], arm="x", every=1)
    with pytest.raises(AligngapError):
        FrontierCallback(never, tmp_path / "out", PROMPTS, arm="a/b", every=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_of_two_processes_one_measures_and_both_know(sft: str, tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(
        textwrap.dedent(f"""
        import os, socket, sys, traceback
        sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
        from pathlib import Path
        from test_trl import PROMPTS, SMALL, FrontierCallback, Short, logged, offline

        def work(rank, port):
            os.environ |= {{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}}
            os.environ |= {{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}}
            folder = Path({str(tmp_path)!r})
            trainer = offline({sft!r}, folder, per_device_train_batch_size=4)
            callback = FrontierCallback(trainer, folder / "out", PROMPTS, [Short()], arm="two", **SMALL)
            trainer.add_callback(callback)
            trainer.train()
            assert trainer.accelerator.process_index == rank
            assert (callback.gauge is None) == (rank == 1)
            (folder / f"rank-{{rank}}").write_text(repr(logged(trainer, "kl_nats")))
            trainer.accelerator.end_training()  # a process that ends with its group still open may be aborted

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = []
        for rank in (0, 1):  # as a launcher starts them, with what they import imported once
            children.append(os.fork())
            if children[-1] == 0:
                try:
                    work(rank, port)
                    os._exit(0)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
        sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children))
    """)
    )
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    words = [sys.executable, str(script)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = read_folder(tmp_path / "out").records
    assert rows["step"].tolist() == [0, 2, 4]
    assert rows["pairs_seen"].tolist() == [0, 16, 32]
    ranks = [(tmp_path / f"rank-{rank}").read_text() for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    assert repr(float(rows["kl_nats"].iloc[-1])) in ranks[0]


def test_the_example_trains_and_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Path(__file__).parents[2] / "examples" / "trl" / "confounds.py"
    sizes = ["--seeds", "1", "--steps", "8", "--sft-steps", "4", "--prompts", "16"]
    monkeypatch.setattr(
        sys, "argv", [str(script), "--out", str(tmp_path / "out"), *sizes, "--arms", "offline", "online cut"]
    )
    runpy.run_path(str(script), run_name="__main__")
    said = capsys.readouterr().out
    assert "seed 0, offline:" in said
    assert "seed 0, online cut:" in said
    rows = read_folder(tmp_path / "out").records
    assert set(rows["arm"]) == {"offline", "online cut"}
    assert sorted(set(rows["step"])) == [0, 4, 8]
    longest = rows.groupby("arm")["length_tokens"].max()
    assert longest["offline"] <= 16


def test_help_of_the_example_does_not_wait_for_torch() -> None:
    script = Path(__file__).parents[2] / "examples" / "trl" / "checkpoints.py"
    code = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print('torch' in sys.modules))\n"
        f"sys.argv = ['checkpoints.py', '--help']; runpy.run_path({str(script)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "--sft-steps" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


def test_the_example_leaves_checkpoints_that_are_found_by_seed_and_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Path(__file__).parents[2] / "examples" / "trl" / "checkpoints.py"
    monkeypatch.syspath_prepend(str(script.parent))  # as python itself puts a script's folder there
    sizes = ["--seeds", "2", "--steps", "2", "--every", "1", "--sft-steps", "1"]
    monkeypatch.setattr(sys, "argv", [str(script), "--out", str(tmp_path), *sizes])
    runpy.run_path(str(script), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) >= 4
    assert len(set((tmp_path / "prompts.txt").read_text().splitlines())) > 256
    found = find_checkpoints([[f"{arm}={tmp_path}/{arm}-seed*"] for arm in ("online", "offline")])
    assert sorted({(f.arm, f.config, f.seed, f.step) for f in found}) == [
        (arm, "", seed, step) for arm in ("offline", "online") for seed in (0, 1) for step in (1, 2)
    ]
    assert len({(Path(f.path) / "model.safetensors").read_bytes() for f in found}) == len(found)
    assert (tmp_path / "sft" / "model.safetensors").is_file()
