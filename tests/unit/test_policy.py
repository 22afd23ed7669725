"""Log-probabilities, samples and folders of every family, against transformers itself.

The independent forward is the model's own, one unpadded sequence at a time; everything of ours (padding, shared
prompts, chunked logits, prefilled caches) must agree with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BOTH, FAMILIES, SPECS, WORDS, pair, prompt, response, tiny_policy, word_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig

from aligngap.judges.preference_model import PreferenceModel
from aligngap.measurement import score
from aligngap.models import policy as policy_module
from aligngap.models.batch import collate, pad
from aligngap.models.encoding import Encoding
from aligngap.models.loading import build_model, is_encoder_decoder, load_model, load_tokenizer
from aligngap.models.pair_logps import compare_logps, pair_logps, with_reference
from aligngap.models.policy import Policy
from aligngap.settings import ModelSpec
from aligngap.types import AligngapError, Prompt

Policies = Callable[..., Policy]
Ids = tuple[int, ...]
VOCABULARY = 4 + len(WORDS)


def independent(policy: Policy, prompt_ids: Ids, completion: Ids) -> torch.Tensor:
    """log pi of every completion token by the model's own forward on this one sequence, no padding, no sharing."""
    model = policy.model
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            logits = model(input_ids=torch.tensor([prompt_ids]), labels=torch.tensor([completion])).logits[0]
        else:
            whole = torch.tensor([[*prompt_ids, *completion]])
            logits = model(input_ids=whole).logits[0, len(prompt_ids) - 1 : -1]
    return torch.log_softmax(logits.double(), -1)[range(len(completion)), list(completion)]


def untied_t5() -> Policy:
    """T5 v1.1 as it is published: a head of its own, apart from the embeddings, and outputs not scaled."""
    policy = tiny_policy("t5-v1.1")
    head = torch.nn.Linear(16, VOCABULARY, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.randn(VOCABULARY, 16, generator=torch.Generator().manual_seed(9)))
    policy.model.lm_head = head
    return policy


tokens = st.integers(0, VOCABULARY - 1)
prompts = st.lists(tokens, min_size=1, max_size=9).map(tuple)
completions = st.lists(tokens, min_size=1, max_size=7).map(tuple)
batches = st.lists(st.tuples(prompts, completions), min_size=1, max_size=6)


# ---------------------------------------------------------------------------------------------- log-probabilities


@pytest.mark.parametrize("family", FAMILIES)
@given(batch=batches)
@settings(max_examples=40)
def test_logps_equal_an_independent_forward_in_any_batch(
    policies: Policies, family: str, batch: list[tuple[Ids, Ids]]
) -> None:
    policy = policies(family, spread=2.0)
    ours = policy.token_logps(collate([p for p, _ in batch], [c for _, c in batch]))
    theirs = torch.cat([independent(policy, p, c) for p, c in batch])
    torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@given(batch=batches)
@settings(max_examples=20)
def test_h_and_kl_do_not_depend_on_batch_or_padding(
    policies: Policies, family: str, batch: list[tuple[Ids, Ids]]
) -> None:
    """A pair's margin and a response's KL, among other rows and alone."""
    policy, reference = policies(family, spread=0.7), policies(family, spread=0.7, seed=1)
    items = [prompt(p) for p, _ in batch]
    answers = [response(c) for _, c in batch]
    pairs = [pair(p, r.ids, (*r.ids[::-1], 1)) for p, r in zip(items, answers, strict=True)]
    together = compare_logps(policy, with_reference(reference, pairs)).margin()
    alone = torch.cat([compare_logps(policy, with_reference(reference, [p])).margin() for p in pairs])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-5)
    s = score(policy, reference, items, answers)
    for i in range(len(batch)):
        one = score(policy, reference, items[i : i + 1], answers[i : i + 1])
        assert s.kl[i] == pytest.approx(one.kl[0], abs=1e-5, rel=3e-6)  # float32: 1e-5 up to 3 nats
        assert s.logp[i] == pytest.approx(one.logp[0], abs=2e-5)
        assert s.entropy[i] == pytest.approx(one.entropy[0], abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_step_zero_margin_is_exactly_zero(policies: Policies, family: str) -> None:
    """Policy and reference with equal weights: h = 0 exactly. T5's attention has two kernels; both sides use one."""
    reference = policies(family)
    policy = reference.copy("student")
    policy.model.train()
    rng = np.random.default_rng(0)
    draw = lambda n: tuple(int(t) for t in rng.integers(4, VOCABULARY, rng.integers(1, n)))  # noqa: E731
    pairs = [pair(prompt(draw(9)), (*draw(6), 1), draw(6)) for _ in range(24)]
    x = compare_logps(policy, with_reference(reference, pairs))
    assert (x.margin() == 0).all()


def test_untied_head() -> None:
    policy = untied_t5()
    assert policy.model.config.scale_decoder_outputs is False
    torch.testing.assert_close(
        policy.token_logps(collate([(4, 5, 1)], [(6, 7, 1)])).double(),
        independent(policy, (4, 5, 1), (6, 7, 1)),
        atol=1e-5,
        rtol=0,
    )


def test_a_configuration_gives_the_family_it_names() -> None:
    """What a family derives from its settings follows them: gated layers, head size, decoder depth, layer kinds."""
    v11 = tiny_policy("t5-v1.1").model.config
    assert (v11.is_gated_act, v11.dense_act_fn, v11.scale_decoder_outputs) == (True, "gelu_new", False)
    llama = tiny_policy("llama").model
    assert llama.config.head_dim == 8
    assert llama.model.layers[0].self_attn.q_proj.weight.shape == (16, 16)
    assert len(tiny_policy("qwen2").model.config.layer_types) == 2
    symmetric = build_model(
        ModelSpec(model_type="t5", config={"d_model": 16, "num_layers": 2, "num_heads": 2}), word_tokenizer(), 0
    )
    assert len(symmetric.decoder.block) == 2


def test_weights_are_a_function_of_the_seed() -> None:
    state = torch.random.get_rng_state()
    a, b, c = (build_model(SPECS["t5"], word_tokenizer(), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("family", ["t5-v1.1", "gpt2"])
def test_chunked_logits_equal_whole_ones_with_gradients(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    policy = tiny_policy(family, spread=2.0)
    policy.model.double()  # sums in another order differ by rounding alone, and in double precision that is nothing
    batch = collate([(4, 5, 1), (6, 1)], [(7, 8, 9, 1), (10, 1), (11, 12)], [0, 0, 1])

    def once() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        policy.model.zero_grad()
        values = policy.logps(batch)
        (values * torch.tensor([1.0, -2.0, 0.5])).sum().backward()
        return values.detach(), {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}

    whole = once()
    seen: list[int] = []
    original = Policy.logits
    monkeypatch.setattr(Policy, "logits", lambda self, h: seen.append(len(h)) or original(self, h))
    monkeypatch.setattr(policy_module, "LOGITS_BUDGET", 3 * VOCABULARY)
    chunked = once()
    assert max(seen) == 3
    torch.testing.assert_close(chunked[0], whole[0], atol=1e-6, rtol=1e-6)
    assert chunked[1].keys() == whole[1].keys()
    for name, gradient in whole[1].items():
        torch.testing.assert_close(chunked[1][name], gradient, atol=1e-6, rtol=1e-5)
    monkeypatch.setattr("aligngap.measurement.LOGITS_BUDGET", 3 * VOCABULARY)
    reference = tiny_policy(family, seed=1, spread=2.0)
    small = score(policy, reference, [prompt((4, 5, 1))], [response((7, 8, 9, 1))])
    monkeypatch.setattr("aligngap.measurement.LOGITS_BUDGET", 2**24)
    large = score(policy, reference, [prompt((4, 5, 1))], [response((7, 8, 9, 1))])
    np.testing.assert_allclose([small.kl, small.logp], [large.kl, large.logp], atol=1e-6, rtol=1e-6)


def test_an_encoder_runs_once_per_prompt() -> None:
    """In the loss and in sampling alike: the tokens of P prompts for 2 P responses."""
    policy, tokens = tiny_policy("t5"), list[int]()
    policy.model.get_encoder().register_forward_pre_hook(
        lambda module, args, given: tokens.append(given["input_ids"].numel()), with_kwargs=True
    )
    items = [prompt((4, 5, 1)), prompt((6, 1)), prompt((7, 8, 9, 1))]
    pair_logps(policy, [pair(p, (4, 1), (5, 6, 1)) for p in items])
    assert tokens == [9]
    tokens.clear()
    policy.sample(items, 2, seed=0)
    assert tokens == [9]


def test_a_decoder_prefills_a_prompt_once() -> None:
    """P rows read the prompt's tokens, then the rows that are left one token a step."""
    policy = tiny_policy("llama")
    shapes: list[tuple[int, ...]] = []
    policy.model.model.register_forward_pre_hook(
        lambda module, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    policy.sample([prompt((4, 5, 6, 7)), prompt((8, 9, 10, 11))], 2, seed=0)
    assert shapes[:2] == [(2, 4), (4, 1)]
    assert set(shapes[1:]) <= {(rows, 1) for rows in (1, 2, 3, 4)}


def test_a_decoder_reads_the_prompt_of_a_pair_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the loss: P rows of prompts, then 2 P rows that begin with the prompt's last token."""
    policy = tiny_policy("llama")
    shapes: list[tuple[int, ...]] = []
    original = policy.model.model.forward
    monkeypatch.setattr(
        policy.model.model, "forward", lambda **k: shapes.append(tuple(k["input_ids"].shape)) or original(**k)
    )
    pair_logps(policy, [pair(prompt(p), (4, 1), (5, 6, 7, 1)) for p in ((4, 5, 6), (7, 8), (9, 10, 11, 12))])
    assert shapes == [(3, 3), (6, 4)]
    shapes.clear()
    pair_logps(policy, [pair(prompt(p), (4, 1), (5, 6, 7, 1)) for p in ((4, 5, 6), (7,))])  # nothing to share
    assert shapes == [(4, 7)]


shared = st.lists(
    st.tuples(st.lists(tokens, min_size=2, max_size=9).map(tuple), st.lists(completions, min_size=1, max_size=3)),
    min_size=1, max_size=4,
)  # fmt: skip


@pytest.mark.parametrize("family", [f for f in FAMILIES if not f.startswith("t5")])
@given(groups=shared, seed=st.integers(0, 99))
@settings(max_examples=15)
def test_a_shared_prompt_changes_no_log_probability_and_no_gradient(
    policies: Policies, family: str, groups: list[tuple[Ids, list[Ids]]], seed: int
) -> None:
    """Prompts of any lengths with any numbers of completions, against each completion with a prompt of its own."""
    policy = policies(family, spread=2.0)
    owners = [i for i, (_, cs) in enumerate(groups) for _ in cs]
    answers = [c for _, cs in groups for c in cs]
    weights = torch.randn(len(answers), generator=torch.Generator().manual_seed(seed))
    together = collate([p for p, _ in groups], answers, owners)
    apart = collate([groups[i][0] for i in owners], answers)
    found = []
    for batch in (together, apart):
        values = policy.logps(batch)
        named = dict(policy.model.named_parameters())
        gradients = torch.autograd.grad((values * weights).sum(), list(named.values()), allow_unused=True)
        found.append((values.detach(), dict(zip(named, gradients, strict=True))))
    torch.testing.assert_close(found[0][0], found[1][0], atol=2e-5, rtol=1e-5)
    for name, gradient in found[1][1].items():
        torch.testing.assert_close(found[0][1][name], gradient, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_an_empty_prompt_of_a_decoder_is_refused(policies: Policies) -> None:
    with pytest.raises(AligngapError, match="empty prompt"):
        policies("llama").logps(collate([()], [(4, 1)]))


# --------------------------------------------------------------------------------------------------------- sampling

RAGGED = [prompt((4, 5, 6, 1)), prompt((7, 1)), prompt((8, 9, 10, 11, 12, 13, 1))]
EQUAL = [prompt((4, 5, 6)), prompt((7, 8, 9)), prompt((10, 11, 12))]


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_are_a_function_of_weights_prompts_and_seed(policies: Policies, family: str) -> None:
    policy = policies(family)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = policy.sample(RAGGED, 2, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    torch.rand(10)
    assert policy.sample(RAGGED, 2, seed=3) == first
    assert policy.copy("other").sample(RAGGED, 2, seed=3) == first
    assert policy.sample(RAGGED, 2, seed=4) != first
    assert all(len(r) == 2 for r in first)
    assert any(r[0] != r[1] for r in first)


@pytest.mark.parametrize("family", FAMILIES)
def test_responses_end_at_the_first_eos_or_at_the_limit(policies: Policies, family: str) -> None:
    policy = policies(family, spread=1.0)
    drawn = [r for rs in policy.sample(RAGGED * 40, 2, seed=0, temperature=2.0) for r in rs]  # EOS is rare at 1
    for r in drawn:
        assert 1 <= len(r.ids) <= policy.response_tokens
        assert r.ended == (r.ids[-1] == policy.eos_id)
        assert policy.eos_id not in r.ids[:-1]
        assert r.ended or len(r.ids) == policy.response_tokens
        assert r.text == policy.tokenizer.decode(r.ids, skip_special_tokens=True)
    assert {r.ended for r in drawn} == {True, False}


def test_response_cuts_whatever_an_engine_returns(policies: Policies) -> None:
    policy = policies("t5")
    assert policy.response((4, 1, 0, 0)).ids == (4, 1)
    assert policy.response((4, 1, 5, 1)).ids == (4, 1)
    assert policy.response((1,)) == policy.response((1, 0, 0))
    assert not policy.response((4,) * 6).ended
    assert policy.response((4,) * 99).ids == (4,) * 6
    # A seventh token may be EOS: it lies beyond the limit, so the response did not end.
    assert not policy.response((4, 4, 4, 4, 4, 4, 1)).ended


def chi_square_p_value(seen: np.ndarray, expected: np.ndarray) -> float:
    """Cells with fewer than five expected draws are pooled."""
    large = expected >= 5
    seen = np.append(seen[large], seen[~large].sum())
    expected = np.append(expected[large], expected[~large].sum())
    keep = expected > 0
    return float(stats.chisquare(seen[keep], expected[keep] * seen[keep].sum() / expected[keep].sum()).pvalue)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("shape", ["equal", "ragged"])
@pytest.mark.parametrize("family", FAMILIES)
def test_whole_responses_are_distributed_as_their_log_probabilities(
    policies: Policies, family: str, shape: str, n: int
) -> None:
    """Chi-square over all responses of at most two tokens, for prompts of equal and of ragged lengths in one batch."""
    policy = policies(family, words=["a", "b", "c"], response_tokens=2, spread=1.5)
    items = [prompt((4, 5, 6)), prompt((6, 6, 4)), prompt((5, 4, 4))]
    if shape == "ragged":
        items = [prompt((4,)), prompt((6, 6, 4, 5, 6)), prompt((5, 4))]
    cells = [(1,), *itertools.product((0, 2, 3, 4, 5, 6), range(7))]
    times = 3000 // n
    drawn = policy.sample([p for p in items for _ in range(times)], n, seed=8, batch_size=10**6)
    for number, p in enumerate(items):
        logps = policy.logps_of([p.ids] * len(cells), cells)
        expected = 3000 * np.exp(logps.double().numpy())
        assert expected.sum() == pytest.approx(3000, rel=1e-4)
        rows = [r.ids for rs in drawn[number * times : (number + 1) * times] for r in rs]
        seen = np.array([rows.count(c) for c in cells], dtype=float)
        assert seen.sum() == 3000
        assert chi_square_p_value(seen, expected) > 1e-4
    first, second = ([rs[k].ids for rs in drawn[:times]] for k in (0, n - 1))
    if n == 2:  # the two of a prompt are independent draws
        same = np.mean([a == b for a, b in zip(first, second, strict=True)])
        chance = float(np.exp(2 * policy.logps_of([items[0].ids] * len(cells), cells).double().numpy()).sum())
        assert abs(same - chance) < 4 * np.sqrt(chance * (1 - chance) / times)


@pytest.mark.parametrize("family", BOTH)
def test_generation_defaults_of_a_loaded_model_are_ignored(tmp_path: Path, family: str) -> None:
    """A folder that says temperature 0.1 and top-k 1 is sampled at temperature 1, untruncated."""
    policy = tiny_policy(family)
    policy.save(tmp_path)
    greedy = GenerationConfig(
        do_sample=True, temperature=0.1, top_k=1, top_p=0.1, repetition_penalty=5.0, no_repeat_ngram_size=1,
        max_length=3, min_new_tokens=5, suppress_tokens=[4], forced_eos_token_id=1, num_beams=3, eos_token_id=1,
        pad_token_id=0,
    )  # fmt: skip
    greedy.save_pretrained(tmp_path)
    loaded = Policy.load(tmp_path, response_tokens=6)
    assert loaded.sample(RAGGED, 2, seed=0) == policy.sample(RAGGED, 2, seed=0)


# -------------------------------------------------------------------------------------------------- folders and text


@pytest.mark.parametrize("family", [*FAMILIES, "untied"])
def test_saved_and_loaded_is_the_same_policy(tmp_path: Path, family: str) -> None:
    policy = untied_t5() if family == "untied" else tiny_policy(family)
    policy.save(tmp_path)
    loaded = Policy.load(tmp_path, response_tokens=6, key="loaded")
    items, rows = [(4, 5, 1), (6, 1)], [(7, 8, 1), (9, 9, 9)]
    assert torch.equal(loaded.logps_of(items, rows), policy.logps_of(items, rows))
    assert loaded.sample(RAGGED, 2, seed=0) == policy.sample(RAGGED, 2, seed=0)
    maker = AutoModelForSeq2SeqLM if policy.encoder_decoder else AutoModelForCausalLM
    plain = Policy(maker.from_pretrained(tmp_path).eval(), policy.tokenizer, response_tokens=6)  # an ordinary folder
    assert torch.equal(plain.logps_of(items, rows), policy.logps_of(items, rows))
    files = {f.name for f in tmp_path.iterdir()}
    assert "model.safetensors" in files
    assert not any(f.endswith((".bin", ".pt", ".pkl")) for f in files)


def test_a_copy_shares_nothing(policies: Policies) -> None:
    policy = tiny_policy("t5")
    before = policy.logps_of([(4, 1)], [(5, 1)])
    other = policy.copy("other")
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.add_(1.0)
    assert torch.equal(policy.logps_of([(4, 1)], [(5, 1)]), before)


HOSTILE = ["</s>", "<pad>", "a </s> b", "<sep><pad></s>", "river </s>", "<unk>", " </s>"]


@pytest.mark.parametrize("text", HOSTILE)
def test_special_strings_in_data_stay_text(tmp_path: Path, text: str) -> None:
    """Data must not be able to end a response or to pad it, before or after the tokenizer was saved and loaded."""
    tokenizer = word_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    for t in (tokenizer, load_tokenizer(tmp_path)):
        decoder, encoder = (Encoding(t, encoder_decoder, ModelSpec()) for encoder_decoder in (False, True))
        ids = decoder.response(text, ended=False)
        assert not set(ids) & {t.pad_token_id, t.eos_token_id, t.sep_token_id}
        assert decoder.response(text) == encoder.response(text) == (*ids, t.eos_token_id)
        assert encoder.prompt(text) == (*ids, t.eos_token_id)
        assert decoder.prompt(text) == (*ids, t.sep_token_id)


def test_text_of_a_response_is_encoded_as_it_was_written(policies: Policies) -> None:
    policy = policies("t5")
    assert policy.encode_response("river lamp") == (4, 5, 1)
    assert policy.encode_response("river lamp", ended=False) == (4, 5)
    assert policy.encode_prompt("river") == (4, 1)
    assert policies("llama").encode_prompt("river") == (4, 3)


def test_padding_of_rows() -> None:
    ids, mask = pad([(4, 5), (6,), ()], 0, side="left")
    assert ids.tolist() == [[4, 5], [0, 6], [0, 0]]
    assert mask.tolist() == [[1, 1], [0, 1], [0, 0]]
    ids, mask = pad([(4, 5), (0,)], 0)
    assert mask.tolist() == [[1, 1], [1, 0]]  # a real token that happens to be the padding id is not masked
    with pytest.raises(ValueError, match="owners"):
        collate([(4,)], [(5,), (6,)])


def test_logps_of_keeps_the_order_given(policies: Policies) -> None:
    policy = policies("llama")
    rng = np.random.default_rng(0)
    rows: list[tuple[Ids, Ids]] = [
        (
            tuple(map(int, rng.integers(4, 20, rng.integers(1, 9)))),
            tuple(map(int, rng.integers(4, 20, rng.integers(1, 6)))),
        )
        for _ in range(40)
    ]
    for size in (1, 7, 128):
        got = policy.logps_of([p for p, _ in rows], [c for _, c in rows], batch_size=size)
        want = torch.stack([independent(policy, p, c).sum() for p, c in rows])
        torch.testing.assert_close(got.double(), want, atol=3e-5, rtol=1e-6)


# ------------------------------------------------------------------------------------------------------ what is refused


def refused(action: Callable[[], Any], *words: str) -> None:
    with pytest.raises(AligngapError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_what_cannot_be_loaded_is_refused_in_one_line(tmp_path: Path) -> None:
    refused(lambda: load_model(tmp_path / "nothing"), "nothing", "cannot be loaded")
    refused(lambda: load_tokenizer(tmp_path / "nothing"), "nothing", "cannot be loaded")
    bad = ModelSpec(model_type="t5", config={"d_modell": 16})
    refused(lambda: build_model(bad, word_tokenizer(), 0), "d_modell")
    refused(lambda: is_encoder_decoder(ModelSpec(model_type="t55")), "t55")
    odd = ModelSpec(model_type="llama", config={"hidden_size": 15, "num_attention_heads": 4, "num_hidden_layers": 1})
    refused(lambda: build_model(odd, word_tokenizer(), 0), "model.config")
    gpt2 = ModelSpec(model_type="gpt2", config={"n_embd": 15, "n_head": 4, "n_layer": 1})
    refused(lambda: build_model(gpt2, word_tokenizer(), 0), "model.config")
    policy = tiny_policy("t5")
    policy.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    refused(lambda: load_model(tmp_path), "cannot be loaded")


def test_check_head_notices_a_wrong_head(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy("t5")
    policy.check_head()
    original = Policy.logits
    monkeypatch.setattr(Policy, "logits", lambda self, hidden: original(self, hidden) * 1.5)
    refused(policy.check_head, "t5", "differ")


def test_weights_of_a_model_that_was_checked_are_not_checked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was found out of the family goes over, and the weights are the folder's own."""
    start, other = tiny_policy("llama"), tiny_policy("llama", seed=1)
    start.check_head()
    start.shares = start.keeps = False  # as of a family that cannot
    other.save(tmp_path)
    monkeypatch.delattr(Policy, "check_head")
    loaded = Policy.load(tmp_path, response_tokens=4, alike=start)
    assert (loaded.shares, loaded.keeps) == (False, False)
    batch = collate([(4, 5), (6,)], [(7, 1), (8, 9, 1)])
    assert torch.equal(loaded.logps(batch), other.logps(batch))
    assert not torch.equal(loaded.logps(batch), start.logps(batch))
    with pytest.raises(AttributeError):
        Policy.load(tmp_path, response_tokens=4)


def test_judge_and_policy_share_hidden_states(policies: Policies) -> None:
    """The preference model is the same backbone: states at completion positions do not depend on the batch."""
    policy = policies("llama")
    judge = PreferenceModel(policy.model, policy.tokenizer, key="k")
    batch = collate([(4, 5), (6,)], [(7, 1), (8, 9, 1)])
    assert torch.equal(judge.hidden(batch), policy.hidden(batch))


def sampler_view(items: Sequence[Prompt]) -> list[Ids]:
    return [p.ids for p in items]


def test_prompts_in_any_order_are_sampled_alike_in_distribution(policies: Policies) -> None:
    """Rows of one batch do not leak into one another: a prompt's samples next to long ones are as when alone."""
    policy = policies("llama", words=["a", "b", "c"], response_tokens=1, spread=1.5)
    assert sampler_view([prompt((4,))]) == [(4,)]
    drawn = policy.sample([prompt((4,)), prompt((5, 6, 4, 5, 6, 4))] * 1500, 1, seed=1, batch_size=10**6)
    seen = np.bincount([r[0].ids[0] for r in drawn[::2]], minlength=7).astype(float)
    expected = 1500 * np.exp(policy.logps_of([(4,)] * 7, [(t,) for t in range(7)]).double().numpy())
    assert chi_square_p_value(seen, expected) > 1e-4
