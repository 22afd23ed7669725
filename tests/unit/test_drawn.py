"""rho, ceiling and efficiency of a given checkpoint: against a world in which every response is written down."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import BREAKS_AT_THE_THIRD_CALL, WORDS, every_response, tiny_policy

from aligngap.execute.worker import make
from aligngap.instrument.ceilings import CEILINGS, write_ceilings
from aligngap.instrument.folders import find_checkpoints
from aligngap.instrument.gauge import Gauge
from aligngap.instrument.judging import parse_judge
from aligngap.instrument.survey import Setting, Survey, plan_survey
from aligngap.instrument.tables import collect
from aligngap.models.batch import collate
from aligngap.models.policy import Policy
from aligngap.pipeline.context import Context
from aligngap.pipeline.drawn import DrawReference, JudgeReference, ReadRatios
from aligngap.stats.ceiling import ceiling
from aligngap.stats.first_order import first_order
from aligngap.storage.records import read_folder
from aligngap.storage.store import Store
from aligngap.types import AligngapError, Prompt, RunFailed

FEW = WORDS[:2]  # a vocabulary of six tokens, so that every response can be written down
TOKENS = 3
JUDGE = """
import zlib
def worth(text):
    return zlib.crc32(text.encode()) % 997
def prefer(prompts, a, b):
    return [0.5 if x == y else float(worth(x) > worth(y)) for x, y in zip(a, b)]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference, one checkpoint a little beside it, prompts, and a judge that ranks texts."""
    place = tmp_path_factory.mktemp("drawn")
    reference = tiny_policy("llama", words=FEW, response_tokens=TOKENS, spread=3.0)
    reference.save(place / "sft")
    moved = reference.copy("moved")
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in moved.model.parameters():
            weight.add_(0.12 * torch.randn(weight.shape, generator=generator))
    moved.save(place / "dpo" / "checkpoint-10")
    (place / "p.txt").write_text("\n".join(" ".join(x) for x in itertools.product(FEW, repeat=3)))
    (place / "ranks_texts.py").write_text(JUDGE)
    return place


@pytest.fixture
def plan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Survey]:
    """Plans a measurement of the checkpoint."""
    monkeypatch.setenv("ALIGNGAP_CACHE", str(folder / "cache"))
    monkeypatch.setattr("aligngap.instrument.survey.SETTLED_SECONDS", 0.0)
    monkeypatch.syspath_prepend(folder)

    def write(**given: Any) -> Survey:
        own = {"reference": str(folder / "sft"), "prompts": str(folder / "p.txt"), "response_tokens": TOKENS}
        setting = Setting(**{**own, "judges": (parse_judge("ranks_texts:prefer"),), **given})
        return plan_survey("mine", setting, find_checkpoints([[f"dpo={folder}/dpo"]]))

    return write


class Enumerated(NamedTuple):
    """The exact numbers of a policy against its reference, over all responses."""

    kl: float
    rho: float
    slope: float
    ceiling: float
    efficiency: float
    log_ratios: list[Mapping[tuple[int, ...], float]]  # of each prompt, by response


def enumerate_all(policy: Policy, reference: Policy, prompts: list[Prompt]) -> Enumerated:
    """KL, the first-order law, the ceiling at that KL and the efficiency, with the judge's own ranks."""
    import ranks_texts  # type: ignore[import-not-found]

    rows = every_response(policy.end_ids, policy.model.config.vocab_size, TOKENS)
    logs, wins = [], []
    for prompt in prompts:
        batch = collate([prompt.ids], rows, [0] * len(rows))
        with torch.no_grad():
            p, r = (m.logps(batch).double().numpy() for m in (policy, reference))
        logs.append((p, r))
        texts = [reference.response(row, prompt.text).text for row in rows]
        table = np.array([ranks_texts.prefer(texts, [x] * len(texts), texts) for x in texts])
        wins.append(table @ np.exp(r))  # q: against the reference's own responses
    log_p, log_r = (np.stack(side) for side in zip(*logs, strict=True))
    q = np.stack(wins)
    kl = float((np.exp(log_p) * (log_p - log_r)).sum(-1).mean())
    law = first_order(log_p - log_r, q, np.exp(log_r))
    best = ceiling(q, q, kl, log_r, floor=0.0)
    assert best is not None
    gain = float((np.exp(log_p) * q).sum(-1).mean()) - 0.5
    ratios = [dict(zip(rows, row, strict=True)) for row in log_p - log_r]
    efficiency = gain / best.gain.value
    return Enumerated(kl, law.rho.value, law.slope.value, best.gain.value, efficiency, ratios)


def test_rho_ceiling_and_efficiency_are_those_of_the_enumerated_world(
    folder: Path, plan: Callable[..., Survey]
) -> None:
    from aligngap.models.checkpoint import open_policy

    survey = plan(reference_samples=400, reference_prompts=8, reference_opponents=32)
    ctx = Context(Store(folder / "store"))
    for step in survey.steps():
        make(step, ctx)
    prompts, reference = survey.prompts.prompts(ctx), survey.prompts.policy(ctx)
    exact = enumerate_all(open_policy(str(folder / "dpo/checkpoint-10"), reference), reference, prompts)
    assert 0.1 < exact.kl < 1.5
    assert survey.behind is not None
    (ratios,) = survey.behind.ratios.values()
    drawn = survey.behind.wins.drawn.read(ctx)
    known = [[exact.log_ratios[k][r.ids] for r in row[:16]] for k, row in enumerate(drawn.answers)]
    np.testing.assert_allclose(ratios.read(ctx), known, atol=1e-4)
    out = folder / "out"
    assert collect(survey, ctx, out, "aligngap measure", ["dpo"], [1.0]) == 1
    row = read_folder(out).records.query("step == 10").iloc[0]
    assert abs(row["kl_nats"] - exact.kl) < 4 * row["kl_nats_se"]
    for name in ("slope", "ceiling", "efficiency"):
        assert abs(row[name] - getattr(exact, name)) < 4 * row[f"{name}_se"], name
    assert row["slope_se"] < 0.1
    assert row["ceiling_se"] < 0.1
    assert row["rho"] * exact.rho > 0
    assert abs(row["rho"]) <= abs(exact.rho) + 4 * row["rho_se"]  # noise in q takes from it
    assert row["efficiency"] == pytest.approx((row["win_rate"] - 0.5) / row["ceiling"])
    (said,) = write_ceilings(survey, ctx, out)
    assert said == "efficiency: 400 samples of the reference a prompt carry every ceiling"
    (line,) = pd.read_csv(out / CEILINGS).to_dict("records")
    assert line["ceiling"] == pytest.approx(row["ceiling"])
    assert 50 < line["effective_samples"] < 400


def test_few_samples_give_rho_alone_and_the_line_says_what_a_ceiling_takes(
    folder: Path, plan: Callable[..., Survey]
) -> None:
    survey, ctx = plan(), Context(Store(folder / "few"))
    steps = survey.steps()
    kinds = [s.kind for s in steps]
    assert kinds.count("reference-draw") == kinds.count("reference-verdict") == kinds.count("ratios") == 1
    for step in steps:
        make(step, ctx)
    assert survey.behind is not None
    assert len(survey.behind.wins.drawn.read(ctx).answers) == 2  # a quarter of eight prompts
    out = folder / "few-out"
    collect(survey, ctx, out, "", ["dpo"], [1.0])
    row = read_folder(out).records.query("step == 10").iloc[0]
    assert np.isfinite(row["rho"])
    assert np.isnan(row["ceiling"])
    assert np.isnan(row["efficiency"])
    (said,) = write_ceilings(survey, ctx, out)
    assert "4 samples of the reference a prompt" in said
    assert "a ceiling takes 50: about --reference-samples " in said
    again = plan(reference_samples=6)  # more samples read no checkpoint's own responses again
    new = [s for s in again.steps() if not ctx.store.has(s.name)]
    assert [type(s) for s in new] == [DrawReference, JudgeReference, ReadRatios]
    gauge = Gauge(folder / "sft", folder / "p.txt", ["ranks_texts:prefer"], response_tokens=TOKENS, reference_samples=4)
    measured = gauge.measure(folder / "dpo/checkpoint-10").rows[0]
    for name in ("rho", "slope", "rho_se"):
        assert measured[name] == pytest.approx(row[name], abs=1e-6), name


def test_it_is_left_out_where_nobody_judges_or_each_answer_is_paid_for(plan: Callable[..., Survey]) -> None:
    assert plan(judges=()).behind is None
    assert plan(reference_samples=0).behind is None
    paid = parse_judge("endpoint: {base_url: 'http://localhost:1', served_model: m}")
    assert plan(judges=(paid,)).behind is None
    assert plan(judges=(paid,), reference_samples=4).behind is not None
    with pytest.raises(AligngapError, match="--reference-samples 1: 0 leaves rho and efficiency out"):
        plan(reference_samples=1)
    with pytest.raises(AligngapError, match="reference_opponents: must be an even number"):
        plan(reference_opponents=3)


def test_a_judge_that_fails_at_the_samples_keeps_what_it_has_said(
    folder: Path, plan: Callable[..., Survey], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "breaks_later.py").write_text(BREAKS_AT_THE_THIRD_CALL)
    monkeypatch.setattr("aligngap.pipeline.drawn.SAVED", 64)  # two prompts of four samples and eight opponents
    survey = plan(judges=(parse_judge("breaks_later:prefer"),), reference_prompts=4)
    import breaks_later  # type: ignore[import-not-found]

    ctx = Context(Store(folder / "breaks"))
    assert survey.behind is not None
    *before, verdict = survey.behind.wins.walk()
    for step in before:
        make(step, ctx)
    with pytest.raises(RunFailed, match="the line is dead; its earlier answers are kept"):
        make(verdict, ctx)
    assert breaks_later.calls == [64, 64]  # two prompts, in both orders
    breaks_later.most[0] = 100
    make(verdict, ctx)
    assert breaks_later.calls == [64, 64, 64, 64]
