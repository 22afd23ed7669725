"""A user's own policy and preference file as an ordinary study: what `aligngap compare` runs.

It fills the packaged study `compare` (or `compare-medium`) with two paths, so that everything is planned, cached and
resumed as in any study. Leaves out: the decision, which the report makes from the records (`hypotheses/decision.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from aligngap.settings import Study
from aligngap.stats.budgets import BUDGETS
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

    The prompts of a model that has a chat template are written by it, and the limits are made to fit the windows of the
    models, unless `sets` say otherwise.
    `kl` is the KL in nats at which it decides, and a budget at which the report compares; None leaves the decision to
    the best checkpoint of either arm.
    """
    own = [f"policy.path={json.dumps(policy)}", f"task.path={json.dumps(task)}"]
    if has_template(policy):
        own.append("policy.chat=true")
    if seeds is not None:
        own.append(f"seeds={seeds}")
    if kl is not None:
        own += [f"decision_kl={kl}", *([f"budgets={sorted({kl, *BUDGETS})}"] if 0 < kl < math.inf else [])]
    study = load(STUDIES[budget], [*own, *sets])
    return study if sets_limits(sets) else fitted(study)


def sets_limits(sets: Sequence[str]) -> bool:
    """Whether some `key=value` sets a limit."""
    return any(key.strip().split(".")[0] == "limits" for key in (s.split("=")[0] for s in sets))


def fitted(study: Study) -> Study:
    """The study with limits that fit its models; as it is where a model cannot be loaded, which is refused later."""
    from aligngap.study.windows import fit_limits

    try:
        return fit_limits(study)
    except AligngapError:
        return study


def remarks(study: Study, budget: str, sets: Sequence[str]) -> list[str]:
    """What a user should know of how the study was filled in, a line each."""
    found = []
    if study.policy.chat:
        found.append("its chat template writes the prompts (--set policy.chat=false: they are plain text)")
    own, usual = study.limits, load(STUDIES[budget], ["policy.path=policy"]).limits
    if own != usual and not sets_limits(sets):
        found.append(
            f"prompts of up to {own.prompt_tokens} and responses of up to {own.response_tokens} tokens "
            f"(usually {usual.prompt_tokens} and {usual.response_tokens}): its judge reads a prompt and two responses "
            "at once"
        )
    return [f"{study.policy.path}: {what}" for what in found]


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
