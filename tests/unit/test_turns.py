"""Turns that end in another token than EOS, templates with arguments and dates, and limits against models' windows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import DECODER, TINY_STUDY
from tokenizer_kinds import TEMPLATES, tokenizer_of
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from aligngap.execute.checks import check_models
from aligngap.models import chat
from aligngap.models.encoding import Encoding
from aligngap.models.loading import load_tokenizer, window
from aligngap.models.policy import Policy
from aligngap.pipeline.data import Data
from aligngap.pipeline.plan import Pipeline, expand
from aligngap.pipeline.sft import Sft
from aligngap.settings import ModelSpec, Study
from aligngap.study.load import validate
from aligngap.study.own import own_study, remarks
from aligngap.study.windows import too_long
from aligngap.types import AligngapError, Pair, Prompt, Response, RunFailed

CHAT = ModelSpec(chat=True)


def instruct(folder: Path, template: str | None = "gemma", ends: bool = True, positions: int = 64) -> Path:
    """A model of Gemma's kind: its tokenizer's EOS is `</s>`, and its turns end in `<end_of_turn>`."""
    tokenizer = tokenizer_of("byte-level", template)
    ids = {"pad_token_id": 3, "eos_token_id": 2, "bos_token_id": 1}
    torch.manual_seed(0)
    sizes = {**DECODER, "max_position_embeddings": positions}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(tokenizer), **ids))
    if ends:
        model.generation_config.eos_token_id = [2, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
        model.generation_config._from_model_config = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def id_of(token: str) -> int:
    return int(tokenizer_of("byte-level").convert_tokens_to_ids(token))


# ---------------------------------------------------------------------------------------------------- ends of answers


@pytest.mark.parametrize("chat_", [True, False])
def test_a_response_ends_at_every_token_of_the_models_own_generation(tmp_path: Path, chat_: bool) -> None:
    policy = Policy.load(instruct(tmp_path), response_tokens=8, spec=ModelSpec(chat=chat_))
    turn = id_of("<end_of_turn>")
    assert set(policy.end_ids) == {2, turn}
    assert policy.encode_response("green tea")[-1] == (turn if chat_ else 2)
    for end in (2, turn):
        found = policy.response([70, 71, end, 72])
        assert (found.ids, found.ended) == ((70, 71, end), True)
        assert "<" not in found.text
    policy.model.lm_head.weight.data[turn] += 1.0
    drawn = [r for rs in policy.sample([Prompt("0", "tea", policy.encode_prompt("tea"))] * 20, 2, 0) for r in rs]
    assert all(r.ended == (r.ids[-1] in (2, turn)) for r in drawn)
    assert not any({2, turn} & set(r.ids[:-1]) for r in drawn)


def test_the_template_says_what_ends_a_turn_where_the_checkpoint_does_not(tmp_path: Path) -> None:
    folder = instruct(tmp_path, ends=False)
    assert set(Policy.load(folder, response_tokens=8, spec=CHAT).end_ids) == {2, id_of("<end_of_turn>")}
    assert Policy.load(folder, response_tokens=8).end_ids == (2,)


def test_a_familys_default_eos_that_is_an_ordinary_token_ends_nothing(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("byte-level")
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**DECODER, vocab_size=len(tokenizer), eos_token_id=80, pad_token_id=3))
    assert Policy(model, tokenizer, response_tokens=8).end_ids == (2,)


def test_a_policy_that_is_saved_keeps_every_end(tmp_path: Path) -> None:
    policy = Policy.load(instruct(tmp_path / "given"), response_tokens=8, spec=CHAT)
    policy.copy("trained").save(tmp_path / "saved")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert set(plain.generation_config.eos_token_id) == {2, id_of("<end_of_turn>")}
    assert Policy.load(tmp_path / "saved", response_tokens=8).end_ids == policy.end_ids


def test_a_judge_is_shown_what_was_written(tmp_path: Path) -> None:
    """Marks of a further turn are text; the token that ended the response, padding and separators are not."""
    policy = Policy.load(instruct(tmp_path), response_tokens=12, spec=CHAT)
    said = policy.encode_response("green tea", ended=False)
    again = (*said, id_of("<start_of_turn>"), *said, id_of("<end_of_turn>"))
    assert policy.response(again).text == "green tea<start_of_turn>green tea"
    assert policy.response((*said, 3, 3)).text == "green tea"
    reread = policy.encode_response("green tea<start_of_turn>green tea")
    assert reread != again  # as text, nobody can write a special token: such a response is counted
    assert id_of("<start_of_turn>") not in reread


# ---------------------------------------------------------------------------------------------------------- templates


def test_a_template_takes_its_arguments() -> None:
    tokenizer = tokenizer_of("byte-level", "thinking")
    plain, quiet = (
        Encoding(tokenizer, False, ModelSpec(chat=True, template=t)) for t in ({}, {"enable_thinking": False})
    )
    asked = tokenizer.decode(quiet.prompt("tea"))
    assert asked == tokenizer.decode(plain.prompt("tea")) + "<think>\n\n</think>\n\n"
    assert tokenizer.decode(plain.response("green")).startswith("<think>\n\n</think>\n\ngreen")
    assert tokenizer.decode(quiet.response("green")) == "green<|im_end|>"


def test_a_template_is_told_one_day() -> None:
    tokenizer = tokenizer_of("byte-level", "llama-3")
    assert "Today Date: 26 Jul 2024" in tokenizer.decode(Encoding(tokenizer, False, CHAT).prompt("tea"))
    other = Encoding(tokenizer, False, ModelSpec(chat=True, date="2025-01-31")).prompt("tea")
    assert "Today Date: 31 Jan 2025" in tokenizer.decode(other)
    assert ModelSpec.model_validate(yaml.safe_load("{chat: true, date: 2025-01-31}")).date == "2025-01-31"
    for wrong in ({"date": "tomorrow"}, {"chat": False, "date": "2025-01-31"}, {"chat": False, "template": {"a": 1}}):
        with pytest.raises(ValueError, match=r"written as 2024-07-26|set `chat: true`"):
            ModelSpec.model_validate({"chat": True, **wrong})


def test_a_template_that_asks_for_the_date_in_another_form_is_refused() -> None:
    given = tokenizer_of.__wrapped__("byte-level")  # one of its own
    given.chat_template = "{% set form = '%d' %}{{ strftime_now(form) }}"
    with pytest.raises(AligngapError, match="asks for today's date"):
        chat.check_template(given, "model x")


def study_of(folder: Path, rows: list[dict[str, str]], **policy: Any) -> Study:
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw = yaml.safe_load(TINY_STUDY) | {
        "task": {"name": "pairs", "path": str(folder / "pairs.jsonl"), "test_share": 0.3},
        "policy": {"path": str(folder / "model"), **policy}, "limits": {"prompt_tokens": 60, "response_tokens": 30},
    }  # fmt: skip
    del raw["tokenizer"]
    return validate(raw, "tiny")


ROWS = [{"prompt": f"which tea {i}", "chosen": f"green {i}", "rejected": f"hot {i}"} for i in range(12)]


def test_what_a_template_says_is_in_the_key(tmp_path: Path) -> None:
    instruct(tmp_path / "model")

    def key(**policy: Any) -> str:
        return Pipeline(study_of(tmp_path, ROWS, **policy), 0).data.name

    before = key(chat=True), key()
    assert len({*before, key(chat=True, template={"a": 1}), key(chat=True, date="2025-01-31")}) == 4
    template = tmp_path / "model" / "chat_template.jinja"
    template.write_text(template.read_text().replace("model", "assistant"))
    expand(study_of(tmp_path, ROWS))  # looks at the files anew
    assert key(chat=True) != before[0]
    assert key() != before[1]  # the tokenizer's files are in the key, whether or not the template writes the prompts


class Work:
    """As much of a job as the data step needs."""

    def __init__(self, folder: Path) -> None:
        self.work = folder
        folder.mkdir(parents=True)


def encoded(folder: Path, rows: list[dict[str, str]], **policy: Any) -> dict[str, Any]:
    return Pipeline(study_of(folder, rows, **policy), 0).data.run(None, Work(folder / "work"))  # type: ignore[arg-type]


def test_prompts_in_a_templates_marks_are_counted_and_refused_where_all_are(tmp_path: Path) -> None:
    instruct(tmp_path / "model")
    marked = [row | {"prompt": f"<start_of_turn>user\n{row['prompt']}<end_of_turn>\n"} for row in ROWS]
    about = encoded(tmp_path, [*ROWS, *marked[:3]])
    assert about["prompts_with_marks_of_a_template_read_as_text"] == 3
    instruct(tmp_path / "all" / "model")
    with pytest.raises(AligngapError, match="12 of 12 prompts are already written in a chat template's marks"):
        encoded(tmp_path / "all", marked)


def test_responses_that_would_merge_with_the_prompt_are_counted(tmp_path: Path) -> None:
    instruct(tmp_path / "model")
    about = encoded(tmp_path, [row | {"prompt": f"tea {i} t", "chosen": "ea"} for i, row in enumerate(ROWS)])
    assert about["responses_whose_first_token_would_merge_with_the_prompt"] == 12


def test_a_template_that_refuses_system_prompts_is_named(tmp_path: Path) -> None:
    folder = instruct(tmp_path / "model")
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(strict + TEMPLATES["gemma"][0])
    rows = [row | {"prompt": f"\n\nSystem: brief\n\nHuman: tea {i}\n\nAssistant:"} for i, row in enumerate(ROWS)]
    with pytest.raises(AligngapError, match=r"no system role.*leave policy\.chat out"):
        encoded(tmp_path, rows, chat=True)


def test_compare_writes_the_prompts_of_a_model_with_a_template_by_it(tmp_path: Path) -> None:
    instruct(tmp_path / "chat")
    instruct(tmp_path / "base", template=None)
    given = {"policy": str(tmp_path / "chat"), "task": "pairs.jsonl"}
    assert own_study(**given).policy.chat
    assert not own_study(**given, sets=["policy.chat=false"]).policy.chat
    assert not own_study(str(tmp_path / "base"), "pairs.jsonl").policy.chat
    assert not load_tokenizer(tmp_path / "base").chat_template


@pytest.mark.parametrize(
    ("kl", "budgets"), [(None, [1, 2, 4, 8]), (0.5, [0.5, 1, 2, 4, 8]), (2.0, [1, 2, 4, 8]), (3.0, [1, 2, 3, 4, 8])]
)
def test_the_kl_at_which_compare_decides_is_a_budget_of_its_report(
    tmp_path: Path, kl: float | None, budgets: list[float]
) -> None:
    """Otherwise a report that decides at .5 nats says that no arm reached 1."""
    given = {"policy": str(instruct(tmp_path, None)), "task": "pairs.jsonl", "kl": kl}
    study = own_study(**given)
    assert (study.decision_kl, study.budgets) == (kl, budgets)
    assert own_study(**given, sets=["budgets=[2.5]"]).budgets == [2.5]


# ------------------------------------------------------------------------------------------------------------ no end


def test_a_policy_whose_answers_do_not_end_stops_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any judge or arm is trained, with the tokens at which it would have ended."""
    folder = instruct(tmp_path / "model")
    policy = Policy.load(folder, response_tokens=6)
    made = Pipeline(study_of(tmp_path, ROWS), 0)
    prompts = [Prompt(str(i), "tea", policy.encode_prompt("tea")) for i in range(20)]
    answer = Response((70, 2), True, "x")
    pairs = [Pair(p, answer, answer, 1.0, 1.0, 0.0, "data") for p in prompts]
    monkeypatch.setattr(Data, "pairs", lambda self, ctx, split: pairs)
    sft = made.sft
    assert isinstance(sft, Sft)

    def written(ended: bool) -> None:
        ids = (70, 2) if ended else (70, 71, 72, 73, 74, 75)
        found = [[replace(answer, ids=ids, ended=ended)] for _ in prompts]
        monkeypatch.setattr(Policy, "sample", lambda self, *given, **more: found)

    written(ended=True)
    assert sft.ended(Work(tmp_path / "a"), policy) == 1.0  # type: ignore[arg-type]
    written(ended=False)
    with pytest.raises(RunFailed, match=r"0% of 20 responses.*it ends at </s>, <end_of_turn>: name the token"):
        sft.ended(Work(tmp_path / "b"), policy)  # type: ignore[arg-type]
    scratch = sft.model_copy(update={"model": ModelSpec(model_type="llama")})
    assert scratch.ended(Work(tmp_path / "c"), policy) is None  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------ windows


def test_limits_are_held_against_the_window_of_every_model(tmp_path: Path) -> None:
    instruct(tmp_path / "model", positions=150)

    def checked(prompt: int, response: int, judge: str = "pairwise") -> None:
        study = study_of(tmp_path, ROWS)
        proxy = study.proxy.model_copy(update={"kind": judge})
        limits = study.limits.model_copy(update={"prompt_tokens": prompt, "response_tokens": response})
        check_models(study.model_copy(update={"limits": limits, "golden": proxy, "proxy": proxy}))

    checked(90, 29)
    with pytest.raises(AligngapError, match=r"golden judge \(pairwise\): its model reads at most 150 .* make 152"):
        checked(90, 30)
    checked(90, 59, "bradley-terry")
    with pytest.raises(AligngapError, match=r"golden judge \(bradley-terry\).* make 151"):
        checked(90, 60, "bradley-terry")
    with pytest.raises(AligngapError, match=r"policy: its model reads at most 150 .* make 151"):
        checked(90, 61, "local")


def test_windows_of_configurations() -> None:
    from transformers import AutoConfig

    def of(family: str, **more: Any) -> int | None:
        return window(AutoConfig.for_model(family, **more))

    assert of("gpt2", n_positions=64) == 64
    assert of("llama", max_position_embeddings=128) == 128
    assert of("roberta", max_position_embeddings=514, pad_token_id=1) == 512
    assert (of("t5"), of("bloom"), of("mamba")) == (None, None, None)


@pytest.mark.parametrize(("positions", "expected"), [(64, (30, 15)), (1024, (510, 255)), (1026, (512, 256))])
def test_the_limits_of_compare_fit_the_window_of_the_model(
    tmp_path: Path, positions: int, expected: tuple[int, int]
) -> None:
    """A pairwise judge on the policy reads the prompt, both responses and two separators: 1,026 of 512 and 256."""
    given = {"policy": str(instruct(tmp_path, None, positions=positions)), "task": "pairs.jsonl"}
    study = own_study(**given)
    assert (study.limits.prompt_tokens, study.limits.response_tokens) == expected
    assert too_long(study) == ""
    said = remarks(study, "small", ())
    assert ["prompts of up to" in line for line in said] == ([] if expected == (512, 256) else [True])
    asked = ["limits={prompt_tokens: 600, response_tokens: 500}"]
    own = own_study(**given, sets=asked)
    assert own.limits.prompt_tokens == 600
    assert "reads at most" in too_long(own)
    assert remarks(own, "small", asked) == []
