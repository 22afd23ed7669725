"""What is wrong with a study's settings is said in one line of our own words, with the name that is meant."""

from __future__ import annotations

import pytest

from aligngap.study.load import load
from aligngap.types import AligngapError


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("seeds=three", "seeds: must be a whole number or a list (given: 'three')"),
        ("seeds=[1, two]", "seeds.1: must be a whole number (given: 'two')"),
        ("sedes=3", "sedes: unknown key; did you mean `seeds`? (given: 3)"),
        ("recipe.optimisation.batch=3", "recipe.optimisation: unknown key; did you mean `optimization`?"),
        ("recipe.optimization.learningrate=1", "learningrate: unknown key; did you mean `learning_rate`? (given: 1)"),
        ("arms.online.sync_evry=2", "arms.online.sync_evry: unknown key; did you mean `sync_every`? (given: 2)"),
        ("arms.online.wholly_else=2", "arms.online.wholly_else: unknown key; remove it or correct its name (given: 2)"),
        ("recipe.optimization.batch=many", "recipe.optimization.batch: must be a whole number (given: 'many')"),
        ("recipe.optimization.batch=0", "recipe.optimization.batch: must be greater than or equal to 1 (given: 0)"),
        (
            "sweep=[{axes: {tau: [1.0]}, arms: [online]}]",
            "sweep.0.axes: `tau` is no axis of a sweep, which are beta, learning_rate, steps; give each of its values "
            "a variant: `variants: {NAME: {set: {KEY: VALUE}}}`, where KEY is as in --set",
        ),
        ("measurement=5", "measurement: must be keys with values (given: 5)"),
        ("recipe.optimization.schedule=cosin", "must be 'constant', 'linear' or 'cosine' (given: 'cosin')"),
    ],
)
def test_a_wrong_setting(setting: str, said: str) -> None:
    with pytest.raises(AligngapError) as error:
        load("opening", [setting])
    assert str(error.value).startswith("opening: ")
    assert str(error.value).endswith(said)
    assert "Input should" not in str(error.value)
