"""How a judge is taught: few labels that judges and policies share, when it stops, what sibling worlds have taught."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY_STUDY

from aligngap.execute.worker import make
from aligngap.pipeline.align import Align
from aligngap.pipeline.context import Context, Job
from aligngap.pipeline.data import Data
from aligngap.pipeline.judges import FitJudge, Relabel
from aligngap.pipeline.kinds import step_from_json
from aligngap.pipeline.plan import Plan, expand
from aligngap.pipeline.sft import Sft
from aligngap.pipeline.teaching import HELD_OUT, HeadStart
from aligngap.storage.store import Store
from aligngap.study.load import validate
from aligngap.types import AligngapError, RunFailed, Stopped

HEAD_START = {"worlds": 3, "pairs": 20}


def planned(proxy: dict[str, Any] | None = None, **more: Any) -> Plan:
    raw = yaml.safe_load(TINY_STUDY) | more
    raw["measurement"] = {"opponents": ["sft"], **more.get("measurement", {"prompts": 16, "kl_prompts": 8})}
    raw["proxy"] |= proxy or {}
    return expand(validate(raw, "tiny"))


def of_kind(plan: Plan, kind: type) -> list[Any]:
    return [s for s in plan.steps() if isinstance(s, kind)]


def proxy_of(plan: Plan) -> FitJudge:
    proxy = plan.runs[0].measure.proxy
    assert isinstance(proxy, FitJudge)
    return proxy


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Context:
    store = Store(tmp_path_factory.mktemp("store"))
    store.prepare()
    return Context(store)


def made(ctx: Context, *wanted: Any) -> None:
    for step in wanted:
        for need in step.walk():
            make(need, ctx)


def test_without_them_every_key_is_what_it_was() -> None:
    plan = planned()
    for step in plan.steps():
        assert not {"keep", "taught"} & set(step.configuration)
        assert "stop_every" not in str(step.configuration)
    assert not of_kind(plan, HeadStart)


def test_proxy_and_offline_arm_learn_from_the_same_few_labels(ctx: Context) -> None:
    more = {"arms": yaml.safe_load(TINY_STUDY)["arms"] | {"offline-proxy": {"behavior": "dataset", "judge": "proxy"}}}
    more["variants"] = {"more": {"set": {"golden_labels": 60}}}
    plan = planned(golden_labels=20, **more)
    sets: dict[str, Relabel] = {}
    for run in plan.runs:
        if run.align.source.dataset is not None:
            assert isinstance(run.align.source.dataset, Relabel)
            sets[run.arm] = run.align.source.dataset
    few, many = sets["offline"], sets["offline[more]"]
    assert (few.keep, many.keep, sets["offline-proxy"].keep) == (20, 60, None)  # what a proxy says costs nothing
    proxies = {r.arm: r.measure.proxy for r in plan.runs if r.arm.startswith("online")}
    assert isinstance(proxies["online"], FitJudge)
    assert isinstance(proxies["online[more]"], FitJudge)
    assert proxies["online"].labels == few
    assert proxies["online[more]"].labels == many
    made(ctx, few, many)
    texts = [{(p.prompt.id, p.chosen.text, p.rejected.text) for p in s.pairs(ctx, "train")} for s in (few, many)]
    assert [len(t) for t in texts] == [20, 60]
    prompts = [{t[0] for t in side} for side in texts]
    assert prompts[0] <= prompts[1]  # a study with more labels has all those of one with fewer
    data = of_kind(plan, Data)[0]
    assert len(few.pairs(ctx, "test")) == len(data.pairs(ctx, "test"))
    made(ctx, proxies["online"])
    assert ctx.store.manifest(proxies["online"].name)["result"]["training_pairs"] == 20


def test_more_labels_than_pairs_fail_in_a_line(ctx: Context) -> None:
    label = next(s for s in of_kind(planned(golden_labels=100_000), Relabel) if s.keep)
    for need in list(label.walk())[:-1]:
        make(need, ctx)
    with pytest.raises(RunFailed, match="golden_labels: 100000 are more than"):
        make(label, ctx)


def test_a_judge_stays_where_the_labels_kept_apart_liked_it_best(ctx: Context) -> None:
    how = {"optimization": {"steps": 40, "batch": 16, "learning_rate": 3.0e-2}}
    last, best = (proxy_of(planned(how | extra, golden_labels=40)) for extra in ({}, {"stop_every": 5}))
    assert last.name != best.name
    made(ctx, last, best)
    found = ctx.store.manifest(best.name)["result"]
    assert "stopped_at" not in ctx.store.manifest(last.name)["result"]
    assert found["stopped_at"] % 5 == 0
    assert found["stopped_at"] < 40  # 32 labels in 20 epochs at this rate are learned by heart
    judge: Any = best.open(ctx, Job())
    assert best.labels is not None
    apart = best.labels.pairs(ctx, "train")[::HELD_OUT]
    with torch.no_grad():
        losses = judge.objective(judge.items(apart, np.random.default_rng(0)))[0]
    assert float(losses.mean()) == pytest.approx(found["loss_kept_apart"], rel=1e-4)


def reaches(steps: Iterator[int], at: int) -> bool:
    """Whether this is the call number `at` or a later one."""
    return next(steps) >= at


def test_a_killed_judge_stops_where_it_would_have(ctx: Context, tmp_path: Path) -> None:
    """Stopped after a third of its steps and gone on with: the same stop, the same weights."""
    how = {"optimization": {"steps": 30, "batch": 16, "learning_rate": 3.0e-2}, "stop_every": 4}
    judge = proxy_of(planned(how, golden_labels=40))
    for need in list(judge.walk())[:-1]:
        make(need, ctx)
    results = []
    for name, kill_at in (("whole", 0), ("killed", 10)):
        work = tmp_path / name
        work.mkdir()
        steps = count(1)
        job = Job(work=work, save_seconds=0.0)
        if kill_at:
            with pytest.raises(Stopped):
                judge.run(ctx, replace(job, stopping=partial(reaches, steps, kill_at)))
        results.append(judge.run(ctx, job))
    assert results[0] == results[1]
    weights = [(tmp_path / n / "model" / "head.safetensors").read_bytes() for n in ("whole", "killed")]
    assert weights[0] == weights[1]


def test_a_head_start_is_of_other_worlds_and_shared_by_judges_of_more_labels(ctx: Context) -> None:
    plan = planned({"head_start": HEAD_START}, golden_labels=20, variants={"more": {"set": {"golden_labels": 60}}})
    (start,) = of_kind(plan, HeadStart)
    assert step_from_json(start.model_dump_json()) == start
    judges = [j for j in of_kind(plan, FitJudge) if j.taught is not None]
    assert len(judges) == 2
    assert {j.taught.name for j in judges} == {start.name}
    assert {a.sft.name for a in of_kind(plan, Align)} == {s.name for s in of_kind(plan, Sft)}
    siblings = start.siblings()
    assert len(siblings) == 60
    made(ctx, *judges)
    assert ctx.store.manifest(start.name)["result"] == {"comparisons": 60, "worlds": 3}
    own = {(p.prompt.id, p.chosen.text, p.rejected.text) for p in judges[0].data.pairs(ctx, "train")}
    assert not own & {(p.prompt.id, p.chosen.text, p.rejected.text) for p in siblings}
    pairs = judges[0].data.pairs(ctx, "test")[:6]
    asked = [[p.prompt for p in pairs], [p.chosen for p in pairs], [p.rejected for p in pairs]]
    ignorant = proxy_of(planned(golden_labels=20))
    made(ctx, ignorant)
    answers = [j.open(ctx, Job()).judge(*asked).forward for j in (*judges, ignorant)]
    assert (answers[0] != answers[1]).any()
    assert (answers[0] != answers[2]).any()


def test_it_starts_where_the_head_start_ended(ctx: Context) -> None:
    """A judge that is stopped before its first step is the head start itself."""
    how = {"optimization": {"steps": 2, "batch": 16, "learning_rate": 10.0}, "stop_every": 2}
    judge = proxy_of(planned(how | {"head_start": HEAD_START | {"optimization": {"steps": 3, "batch": 16}}}))
    made(ctx, judge)
    assert judge.taught is not None
    found = ctx.store.manifest(judge.name)["result"]
    assert found["stopped_at"] == 0
    heads = [step.made(ctx, "model") / "head.safetensors" for step in (judge, judge.taught)]
    assert heads[0].read_bytes() == heads[1].read_bytes()
    opened: Any = judge.open(ctx, Job())
    assert opened.key == judge.name  # answers are kept by the judge's own name


@pytest.mark.parametrize(
    ("proxy", "more", "said"),
    [
        ({}, {"golden_labels": 20, "judge_share": 0.5}, "give one"),
        ({}, {"golden_labels": 1}, "golden_labels"),
        ({"head_start": {"worlds": 0, "pairs": 5}}, {}, "head_start.worlds"),
        ({"head_start": HEAD_START | {"optimization": {"steps": 0}}}, {}, "at least 1"),
        ({}, {"golden_labels": 20, "measurement": {"opponents": ["sft", "chosen"]}}, "without a `chosen` response"),
        ({"stop_every": 0}, {}, "stop_every"),
        ({}, {"golden": {"optimization": {"steps": 6}, "head_start": HEAD_START}}, "belongs to the proxy"),
        ({"kind": "function", "object": "builtins:len", "optimization": None, "stop_every": 5}, {}, "does not learn"),
    ],
)
def test_what_cannot_be_is_refused(proxy: dict[str, Any], more: dict[str, Any], said: str) -> None:
    with pytest.raises(AligngapError, match=said):
        planned(proxy, **more)


def test_a_task_without_worlds_gives_no_head_start(tmp_path: Path) -> None:
    rows = "".join(f'{{"prompt": "p{i}", "chosen": "a{i}", "rejected": "b{i}"}}\n' for i in range(40))
    (tmp_path / "pairs.jsonl").write_text(rows)
    task = {"name": "pairs", "path": str(tmp_path / "pairs.jsonl")}
    with pytest.raises(AligngapError, match=r"proxy.head_start: the task `pairs` has no sibling worlds"):
        planned({"head_start": HEAD_START}, task=task)
