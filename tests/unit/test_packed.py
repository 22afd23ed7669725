"""A T5 on real tokens only: the library's own numbers and gradients, and no padding among what is multiplied."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_policy

from aligngap.models.backbone import Backbone
from aligngap.models.batch import Ids, collate
from aligngap.models.packed import Gather, Places, Spread
from aligngap.models.policy import Policy

PROMPTS: list[Ids] = [(4, 5, 6, 7, 1), (8, 1), (9, 10, 1)]
#: completions with the prompts that they belong to
CASES: dict[str, tuple[list[Ids], list[int]]] = {
    "pairs": ([(4, 1), (5, 6, 7, 8, 1), (9,), (7, 7, 1), (4, 5, 6), (1,)], [0, 1, 2, 0, 1, 2]),
    "mostly one prompt's": ([(4, 1), (5, 6, 1), (9, 9, 9, 9), (7, 1)], [0, 0, 0, 0]),
    "one each": ([(4, 1), (5, 6, 7, 1), (9,)], [0, 1, 2]),
    "of one length": ([(4, 5), (6, 1), (7, 8)], [0, 1, 2]),
    "one of them empty": ([(4, 1), (), (5, 6, 1)], [0, 1, 2]),
}


def logps_and_gradients(policy: Policy, completions: list[Ids], owners: list[int]) -> list[torch.Tensor]:
    policy.model.zero_grad()
    logps = policy.logps(collate(PROMPTS, completions, owners))
    (logps * torch.arange(1.0, len(logps) + 1)).sum().backward()
    found = [p.grad for p in policy.model.parameters() if p.grad is not None]
    return [logps.detach(), *(g.clone() for g in found)]


@pytest.mark.parametrize("family", ["t5", "t5-v1.1"])
@pytest.mark.parametrize("case", CASES)
def test_numbers_and_gradients_are_the_librarys(family: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy(family)
    ours = logps_and_gradients(policy, *CASES[case])
    monkeypatch.setattr(Backbone, "_packs", lambda self: False)
    theirs = logps_and_gradients(policy, *CASES[case])
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * (1 + float(b.abs().max())))


def test_padding_is_not_multiplied() -> None:
    """Each stack sees as many rows as there are tokens, in a loss and where prompts are read to be sampled."""
    policy, rows = tiny_policy("t5"), list[int]()
    for stack in (policy.model.get_encoder(), policy.model.get_decoder()):
        stack.block[-1].layer[-1].DenseReluDense.register_forward_pre_hook(
            lambda module, args: rows.append(args[0].numel() // args[0].shape[-1])
        )
    completions, owners = CASES["pairs"]
    policy.logps(collate(PROMPTS, completions, owners))
    policy.encode(PROMPTS)
    read = sum(map(len, PROMPTS))
    assert rows == [read, sum(map(len, completions)), read]


def test_it_is_left_to_the_library_where_it_does_not_hold() -> None:
    policy = tiny_policy("t5")
    assert policy._packs()
    for change in ({"dtype": "bfloat16"}, {"dropout": 0.1}, {"gradient_checkpointing": True}):
        other = Policy(policy.model, policy.tokenizer, response_tokens=4, spec=policy.spec.model_copy(update=change))
        assert not other._packs()
    assert not tiny_policy("llama")._packs()


def test_places_go_there_and_back_with_their_gradients() -> None:
    places = Places.of([(1, 2), (), (3, 4, 5)])
    assert places.flat is not None
    values = torch.arange(10.0, dtype=torch.float64).view(5, 2).requires_grad_()
    spread = places.spread(values)
    assert spread[:, :, 0].tolist() == [[0, 2, 0], [0, 0, 0], [4, 6, 8]]
    assert torch.equal(places.gather(spread), values)
    assert places.mask().tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 1]]
    flat = places.flat
    assert torch.autograd.gradcheck(lambda x: Spread.apply(x, flat, 9), (values,))
    assert torch.autograd.gradcheck(lambda x: Gather.apply(x, flat), (spread.detach().flatten(0, 1).requires_grad_(),))
    whole = Places.of([(1, 2), (3, 4)])
    assert whole.flat is None
    assert whole.mask().tolist() == [[1, 1], [1, 1]]
