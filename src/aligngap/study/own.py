"""A user's own policy and preference file as an ordinary study: what `aligngap compare` runs.

It fills the packaged study `compare` (or `compare-medium`) with two paths, so that everything is planned, cached and
resumed as in any study. Leaves out: the decision, which the report makes from the records (`hypotheses/decision.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from aligngap.settings import Study
from aligngap.study.build import build_task
from aligngap.study.load import load
from aligngap.types import AligngapError

STUDIES = {"small": "compare", "medium": "compare-medium"}
#: distinct prompts below which nothing could be told: the judges, the arms and the measurement each need a part
LEAST_PROMPTS = 40


def own_study(
    policy: str,
    task: str,
    budget: str = "small",
    seeds: int | None = None,
    sets: Sequence[str] = (),
    kl: float | None = None,
) -> Study:
    """The study of a policy (a folder or a hub name) and a preference file; `sets` are `key=value`, and come last.

    The prompts of a model that has a chat template are written by it, unless `sets` say otherwise.
    `kl` is the KL in nats at which it decides; None leaves it to the best checkpoint of either arm.
    """
    own = [f"policy.path={json.dumps(policy)}", f"task.path={json.dumps(task)}"]
    if has_template(policy):
        own.append("policy.chat=true")
    if seeds is not None:
        own.append(f"seeds={seeds}")
    if kl is not None:
        own.append(f"decision_kl={kl}")
    return load(STUDIES[budget], [*own, *sets])


def has_template(policy: str) -> bool:
    """Whether the model's tokenizer has a chat template; what cannot be loaded has none, and is refused later."""
    from aligngap.models.loading import load_tokenizer

    try:
        return bool(load_tokenizer(policy).chat_template)
    except AligngapError:
        return False


def check_pairs(study: Study) -> int:
    """The number of distinct prompts that the study's task yields; too few are refused before anything is trained."""
    loaded = build_task(study.task).load(study.seed_list[0])
    prompts = len({c.prompt_id for c in (*loaded.train, *loaded.test)})
    if prompts < LEAST_PROMPTS:
        left_out = f" (left out: {', '.join(f'{r} {n}' for r, n in loaded.dropped.items())})" if loaded.dropped else ""
        raise AligngapError(
            f"{loaded.source}: {prompts} usable prompts{left_out}; a comparison needs at least {LEAST_PROMPTS} for the "
            "judges, the arms and the measurement, and hundreds to be decided: bring more rows"
        )
    return prompts
