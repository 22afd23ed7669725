"""Studies that extend others: sections merge, arms are replaced or taken out, circles and unknown names are told."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from aligngap.pipeline.plan import expand
from aligngap.study import yaml_file
from aligngap.study.load import load
from aligngap.study.variants import grid_of
from aligngap.study.yaml_file import resolve_extends
from aligngap.types import AligngapError

HYPOTHESES = [
    "classification", "coverage", "quality", "which-data", "noncontrastive", "losses", "scaling", "staleness",
    "proxy-dial",
]  # fmt: skip


class Text:
    """A packaged file that is not there."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.raw = raw

    def read_text(self, encoding: str = "utf-8") -> str:
        return yaml.safe_dump(self.raw)


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_a_study_of_ones_own_extends_a_packaged_one(tmp_path: Path) -> None:
    mine = load(
        write(
            tmp_path,
            """
extends: opening
name: mine
question: What if the data were fewer?
task: {train_pairs: 8000}
recipe: {optimization: {steps: 100}}
arms:
  online: {behavior: policy, judge: golden}
  online-golden: null
  offline-proxy: null
sweep: []
""",
        ),
        ["seeds=2"],
    )
    opening = load("opening")
    assert mine.task == {"name": "sandbox", "train_pairs": 8000}
    assert mine.recipe.optimization.steps == 100
    assert mine.recipe.optimization.batch == opening.recipe.optimization.batch
    assert set(mine.arms) == {"online", "offline"}
    assert mine.arms["online"].judge == "golden"
    assert (mine.sft, mine.golden, mine.measurement) == (opening.sft, opening.golden, opening.measurement)
    assert mine.seed_list == [0, 1]


def test_an_arm_of_the_same_name_is_replaced_whole(tmp_path: Path) -> None:
    text = "extends: coverage\nname: mine\nquestion: q\narms: {reversed: {behavior: dataset, judge: proxy}}\n"
    assert load(write(tmp_path, text)).arms["reversed"].of is None


def test_a_hypothesis_on_other_data() -> None:
    """A task of another name comes without the settings of the one it replaces; of the same name it keeps them."""
    raw = {"extends": "coverage", "name": "mine", "question": "q", "task": {"name": "pairs", "path": "mine.jsonl"}}
    found = resolve_extends(raw, "mine.yaml")
    assert found["task"] == {"name": "pairs", "path": "mine.jsonl"}
    assert {"online", "offline", "shuffled", "window-2"} <= set(found["arms"])
    named = resolve_extends(raw | {"task": {"name": "sandbox", "test_pairs": 9}}, "mine.yaml")
    assert named["task"] == {"name": "sandbox", "train_pairs": 32000, "test_pairs": 9}


def test_several_bases_and_chains(tmp_path: Path) -> None:
    text = "extends: [which-data, noncontrastive]\nname: mine\nquestion: q\n"
    mine = load(write(tmp_path, text))
    assert {"online", "sft-vs-mid", "final-vs-final", "shuffled"} <= set(mine.arms)  # quality's through which-data
    assert set(mine.variants) == {"best-of-two"}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("extends: openning\nname: a\nquestion: q\n", ["extends", "openning", "opening"]),
        ("extends: 3\nname: a\nquestion: q\n", ["extends", "list"]),
        ("extends: opening\nquestion: q\n", ["name"]),
        ("extends: opening\nname: a\n", ["question"]),
        ("extends: other.yaml\nname: a\nquestion: q\n", ["extends", "other.yaml"]),
        ("extends: opening\nname: a\nquestion: q\narms: {online: null}\n", ["online"]),
    ],
)
def test_bad_extends(tmp_path: Path, text: str, named: list[str]) -> None:
    with pytest.raises(AligngapError) as error:
        load(write(tmp_path, text))
    assert "\n" not in str(error.value)
    for name in ("mine.yaml", *named):
        assert name in str(error.value)


SWEEP = "sweep: [{axes: {learning_rate: [1.0e-4, 3.0e-4]}, arms: [offline]%s}]\n"


def test_compared_arms_with_different_grids_need_a_reason(tmp_path: Path) -> None:
    start = "extends: opening\nname: a\nquestion: q\n"
    with pytest.raises(AligngapError) as error:
        load(write(tmp_path, start + SWEEP % ""))
    assert "\n" not in str(error.value)
    for named in ("sweep", "`online` runs 1 configuration(s) and `offline` 2", "`why`"):
        assert named in str(error.value)
    assert load(write(tmp_path, start + SWEEP % ", why: the protocol of a paper")).sweep[0].why
    both = "sweep: [{axes: {learning_rate: [1.0e-4, 3.0e-4]}, arms: [online, offline]}]\n"
    assert load(write(tmp_path, start + both)).sweep[0].why == ""
    variant = "variants: {small: {set: {proxy.labels: 40}}}\n"
    turned = "sweep: [{axes: {learning_rate: [1.0e-4, 3.0e-4]}, arms: ['online[small]']}]\n"
    with pytest.raises(AligngapError, match="under variant `small`"):
        load(write(tmp_path, start + variant + turned))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("budgets: [2, 1]\n", "increasing KLs above 0 nats"),
        ("budgets: [0, 1]\n", "increasing KLs above 0 nats"),
        ("spent_seeds: [7]\n", "`spent_seeds` names 7"),
        ("spent_seeds: [0]\n", "none is left to judge"),
        ("decision_kl: 0\n", "decision_kl"),
    ],
)
def test_what_is_declared_of_the_statistics_is_checked(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(AligngapError) as error:
        load(write(tmp_path, "extends: opening\nname: a\nquestion: q\n" + text))
    assert "\n" not in str(error.value)
    assert named in str(error.value)


def test_every_packaged_study_gives_its_arms_one_grid() -> None:
    """Those of `paper/` keep the paper's protocol, and say why."""
    for name in yaml_file.packaged():
        made = load(name)
        ran = [{config for config, _, _ in grid_of(made, arm)} for arm in made.compare]
        assert ran[0] == ran[1] or name.startswith("paper/"), name


def test_a_circle_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"a": Text({"extends": "b", "name": "a"}), "b": Text({"extends": ["a"], "name": "b"})}
    monkeypatch.setattr(yaml_file, "packaged", lambda: files)
    with pytest.raises(AligngapError, match="a circle, a -> b -> a"):
        load("a")


@pytest.mark.parametrize("name", HYPOTHESES)
def test_packaged_studies_share_the_opening_pipeline(name: str) -> None:
    """Data, SFT policy, judges, D_golden, golden policy and the online run are made once for all of them."""
    plan, opening = expand(load(name)), expand(load("opening"))
    recipe = "beta=0.05 learning_rate=0.0001"
    base = next(r for r in plan.runs if (r.arm, r.config) == ("online", recipe))
    theirs = next(r for r in opening.runs if (r.arm, r.config) == ("online", recipe))
    assert base.align.name == theirs.align.name
    assert base.measure.name == theirs.measure.name
    kinds = [s.kind for s in plan.steps() if s.name not in {o.name for o in opening.steps()}]
    assert "data" not in kinds
    assert kinds.count("sft") == {"scaling": 2, "proxy-dial": 2}.get(name, 0)
    assert kinds.count("judge") == {"proxy-dial": 5, "classification": 2}.get(name, 0)


def test_scaling_holds_judges_and_opponent_fixed() -> None:
    plan = expand(load("scaling"))
    at = {v: next(r for r in plan.runs if r.arm == f"online{v}").measure for v in ("", "[small]", "[large]")}
    for measured in at.values():
        assert measured.golden.name == at[""].golden.name
        assert measured.opponents["golden_policy"].name == at[""].opponents["golden_policy"].name
        assert measured.proxy.name == at[""].proxy.name
    assert len({m.sft.name for m in at.values()}) == 3


def test_all_holds_every_study_and_does_nothing_twice() -> None:
    whole = load("all")
    how, measured = whole.recipe.optimization, whole.measurement  # the suite's own, see all.yaml
    own = [f"recipe.optimization.steps={how.steps}", f"recipe.optimization.batch={how.batch}"]
    own += [f"measurement.prompts={measured.prompts}", f"measurement.checkpoints={measured.checkpoints}"]
    plan = expand(whole)
    for name in ("opening", *HYPOTHESES):
        part = expand(load(name, own))
        assert {r.arm for r in part.runs} <= {r.arm for r in plan.runs}, name
        ran = {r.name: r.measure.name for r in plan.runs}
        both = [r for r in part.runs if r.name in ran]  # the suite's grids are smaller
        assert both, name
        assert all(ran[r.name] == r.measure.name for r in both), name
    counts = Counter(s.kind for s in plan.steps())
    assert (counts["data"], counts["sft"]) == (1, 3)  # three sizes: of policies, and of proxies' backbones
    # the golden model, and proxies: as opened, three by labels, two by size, two by kind
    assert counts["judge"] == 1 + 8
    assert counts["align"] == len({r.align.name for r in plan.runs} | {golden_policy(plan)})


def golden_policy(plan: Any) -> str:
    [found] = {m.opponents["golden_policy"].policy.name for m in plan.start.values()}
    return str(found)


def test_a_sweep_may_name_an_arm_under_a_variant(tmp_path: Path) -> None:
    text = """
extends: opening
name: mine
question: q
variants: {dpo: {set: {recipe.loss: {name: dpo, beta: 0.1}}, arms: [online, offline]}}
sweep:
  - {axes: {beta: [0.01, 0.1]}, arms: [offline], why: x}
  - {axes: {learning_rate: [1.0e-4, 2.0e-4, 3.0e-4]}, arms: ["offline[dpo]"], why: y}
"""
    runs = Counter(r.arm for r in expand(load(write(tmp_path, text))).runs)
    assert runs == {
        "online": 1,
        "offline": 2,
        "offline-proxy": 1,
        "online-golden": 1,
        "online[dpo]": 1,
        "offline[dpo]": 3,
    }
    with pytest.raises(AligngapError, match="no such variant"):
        load(write(tmp_path, text.replace("offline[dpo]", "offline[ipo]")))


def test_quick_holds_every_arm_of_all() -> None:
    """Smaller in everything but the question: the same hypotheses can be judged."""
    quick, whole = expand(load("quick")), expand(load("all"))
    assert {r.arm for r in quick.runs} == {r.arm for r in whole.runs}
    assert len(quick.runs) < len(whole.runs)
    assert {s.name for s in quick.steps()}.isdisjoint(s.name for s in whole.steps())
