"""What the words of `aligngap measure` name: checkpoints with runs, seeds and steps, prompts, judges, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aligngap.instrument.folders import find_checkpoints
from aligngap.instrument.judging import parse_judge
from aligngap.models.checkpoint import Unfinished, base_path, fetched, identity_of, weights_of
from aligngap.tasks.prompts import given_prompts, read_prompts
from aligngap.types import AligngapError


def model_at(folder: Path, weights: bytes = b"") -> Path:
    """A folder that looks like a model's: a configuration and a safetensors file of no tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "U8", "shape": [len(weights)], "data_offsets": [0, len(weights)]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + weights)
    return folder


def names_of(words: list[list[str]], tell: list[str] | None = None) -> list[str]:
    told = tell if tell is not None else []
    return [found.name for found in find_checkpoints(words, told.append)]


def test_runs_seeds_and_steps_are_read_from_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1, 10):
        for step in (90, 100, 1000):
            model_at(Path(f"runs/online-seed{seed}/checkpoint-{step}"))
    found = names_of([["online=runs/online-seed*/checkpoint-*"]])
    assert found == [f"online seed={s}@{t}" for s in (0, 1, 10) for t in (90, 100, 1000)]
    assert names_of([["online=runs/online-seed1"]]) == [f"online seed=1@{t}" for t in (90, 100, 1000)]
    assert names_of([["online=runs/online-seed10/", "runs/online-seed0"]])[:3] == found[:3]


def test_runs_without_the_word_seed_are_numbered_and_other_words_are_their_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        model_at(Path(f"{name}/checkpoint-5"))
    assert names_of([["dpo=a", "b"]]) == ["dpo seed=0@5", "dpo seed=1@5"]
    for beta in ("0.1", "1.0"):
        for seed in (0, 1):
            model_at(Path(f"sweep/dpo-beta{beta}-seed{seed}/step-000020"))
    found = names_of([["dpo=sweep/*"]])
    assert found == [f"dpo beta{b} seed={s}@20" for b in ("0.1", "1.0") for s in (0, 1)]


def test_a_single_folder_takes_its_step_from_the_trainers_state(tmp_path: Path) -> None:
    folder = model_at(tmp_path / "final")
    assert names_of([[f"dpo={folder}"]]) == ["dpo seed=0@1"]
    (folder / "trainer_state.json").write_text('{"global_step": 1234}')
    assert names_of([[f"dpo={folder}"]]) == ["dpo seed=0@1234"]
    model_at(tmp_path / "final" / "checkpoint-10")
    assert names_of([[f"dpo={folder}"]]) == ["dpo seed=0@10"]
    (tmp_path / "deep").mkdir()
    model_at(tmp_path / "deep" / "checkpoint-7")
    (tmp_path / "deep" / "checkpoint-7" / "global_step7").mkdir()  # DeepSpeed's part of it
    assert names_of([[f"dpo={tmp_path / 'deep' / 'checkpoint-7'}"]]) == ["dpo seed=0@7"]


def test_what_names_no_checkpoint_is_told(tmp_path: Path) -> None:
    (tmp_path / "run" / "tmp-checkpoint-5").mkdir(parents=True)
    told: list[str] = []
    with pytest.raises(AligngapError, match="hold no checkpoint yet"):
        names_of([[f"dpo={tmp_path}/run/*"]], told)
    assert "is being written; passed over" in told[0]
    with pytest.raises(AligngapError, match="names no folder"):
        names_of([[f"dpo={tmp_path}/nothing-*"]])
    with pytest.raises(AligngapError, match="write NAME=CHECKPOINTS"):
        names_of([["runs/dpo"]])
    with pytest.raises(AligngapError, match="a policy's name is a letter or digit"):
        names_of([["d[po]=runs"]])
    for name in ("a-seed0", "b-seed0"):
        model_at(tmp_path / name / "checkpoint-5")
    model_at(tmp_path / "twice" / "x-seed0" / "checkpoint-5")
    model_at(tmp_path / "again" / "x-seed0" / "checkpoint-5")
    with pytest.raises(AligngapError, match="are both step 5 of seed 0"):
        names_of([[f"dpo={tmp_path}/twice/x-seed0", f"{tmp_path}/again/x-seed0"]])
    assert names_of([["dpo=owner/name@v1"]]) == ["dpo seed=0@1"]


def test_a_checkpoint_that_is_being_written_is_not_whole(tmp_path: Path) -> None:
    folder = model_at(tmp_path / "model", b"12345678")
    assert [f.name for f in weights_of(folder)] == ["model.safetensors"]
    whole = (folder / "model.safetensors").read_bytes()
    for cut in (0, 5, 12, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:cut])
        with pytest.raises(Unfinished, match="is shorter than it says"):
            weights_of(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(Unfinished, match="holds no weights"):
        weights_of(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "model-00001-of-00002.safetensors"}}')
    with pytest.raises(Unfinished, match=r"model-00001-of-00002\.safetensors is missing"):
        weights_of(folder)
    for text in ('{"weight_', "[1]", '{"weight_map": [1]}', '{"weight_map": {"w": 1}}', "[" * 100_000):
        (folder / "model.safetensors.index.json").write_text(text)
        with pytest.raises(Unfinished, match="is not whole"):
            weights_of(folder)


@pytest.mark.parametrize(
    "header",
    [
        "[1]",
        "3",
        '{"w": 1}',
        '{"w": {}}',
        '{"w": {"data_offsets": [0]}}',
        "[" * 100_000,
        '{"w": {"data_offsets": [0, "x"]}}',
    ],
)
def test_weights_with_a_header_that_is_none_are_not_whole(tmp_path: Path, header: str) -> None:
    folder = model_at(tmp_path / "model", b"12345678")
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"12345678")
    with pytest.raises(Unfinished, match="is shorter than it says"):
        weights_of(folder)


def test_an_adapter_whose_configuration_is_no_such_is_not_whole(tmp_path: Path) -> None:
    for text in ("[1]", "{", "3"):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(Unfinished, match="is not whole"):
            base_path(tmp_path)


FORMS = {
    "pytorch_model.bin": (r"weights as pickles", r"AutoModelForCausalLM.from_pretrained\('FOLDER'\)"),
    "zero_to_fp32.py": ("DeepSpeed's shards", "python FOLDER/zero_to_fp32.py FOLDER OUT --safe_serialization"),
    "pytorch_model_fsdp_0/__0_0.distcp": ("shards of FSDP", "accelerate merge-weights FOLDER/pytorch_model_fsdp_0 OUT"),
    "actor/model_world_size_8_rank_0.pt": ("verl's shards", "--local_dir FOLDER/actor --target_dir OUT"),
    "iter_0000010/mp_rank_00/x.pt": ("Megatron's shards", "the converter"),
    "checkpoint": ("T5X or Flax", "aligngap import-t5x FOLDER --to OUT"),
}


@pytest.mark.parametrize("file", FORMS)
def test_weights_of_another_form_are_refused_with_the_command_that_converts_them(file: str, tmp_path: Path) -> None:
    folder = tmp_path / "their"
    (folder / file).parent.mkdir(parents=True)
    (folder / file).write_text("")
    (folder / "config.json").write_text("{}")
    form, command = FORMS[file]
    with pytest.raises(
        AligngapError, match=f"{form}.*; convert it: .*{command.replace('FOLDER', str(folder))}"
    ) as told:
        weights_of(folder)
    assert not isinstance(told.value, Unfinished)
    assert "then give OUT" in str(told.value)


def test_a_checkpoint_is_known_by_its_weights_and_not_by_its_place(tmp_path: Path) -> None:
    one = model_at(tmp_path / "one", b"1234")
    other = model_at(tmp_path / "two" / "three", b"1234")
    (other / "trainer_state.json").write_text("{}")
    assert identity_of(str(one)) == identity_of(str(other))
    assert identity_of(str(one)) != identity_of(str(model_at(tmp_path / "four", b"1235")))


def test_the_base_of_an_adapter_is_looked_for_where_it_says(tmp_path: Path) -> None:
    about = tmp_path / "adapter_config.json"
    about.write_text(json.dumps({"base_model_name_or_path": "owner/name"}))
    assert base_path(tmp_path) == "owner/name"
    assert base_path(tmp_path, "elsewhere") == "elsewhere"
    about.write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(AligngapError, match="is not here; say where it lies with --base"):
        base_path(tmp_path)
    about.write_text("{}")
    with pytest.raises(AligngapError, match="names no base model; give it with --base"):
        base_path(tmp_path)


def test_a_hub_name_is_fetched_with_its_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def snapshot_download(name: str, revision: str | None = None, allow_patterns: object = None) -> str:
        asked.append((name, revision))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert fetched("owner/name@v1.0") == str(tmp_path)
    assert fetched("owner/name") == str(tmp_path)
    assert asked == [("owner/name", "v1.0"), ("owner/name", None)]
    assert fetched("./owner/name") == "./owner/name"
    assert fetched("gone.gguf") == "gone.gguf"
    assert len(asked) == 2


def test_prompts_are_read_from_what_people_have(tmp_path: Path) -> None:
    texts = ["Why is the sky blue?", "Name a river."]
    (tmp_path / "p.txt").write_text("\n".join([*texts, "", texts[0]]) + "\n")
    found = read_prompts(tmp_path / "p.txt")
    assert list(found.texts.values()) == texts
    assert found.dropped == {"duplicate of an earlier prompt": 1}
    (tmp_path / "p.csv").write_text("id,prompt\n" + "".join(f'{i},"{t}"\n' for i, t in enumerate(texts)))
    (tmp_path / "q.csv").write_text("id,ask\n" + "".join(f'{i},"{t}"\n' for i, t in enumerate(texts)))
    assert list(read_prompts(tmp_path / "p.csv").texts.values()) == texts
    assert list(read_prompts(tmp_path / "q.csv", "ask").texts.values()) == texts
    with pytest.raises(AligngapError, match=r"no column of prompts \(it has: id, ask\).*--prompt-column"):
        read_prompts(tmp_path / "q.csv")
    with pytest.raises(AligngapError, match=r"no field 'question'.*--prompt-column"):
        read_prompts(tmp_path / "q.csv", "question")
    pairs = [{"prompt": t, "chosen": "yes", "rejected": "no"} for t in texts]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    assert list(read_prompts(tmp_path / "pairs.jsonl").texts.values()) == texts
    dialogue = "\n\nHuman: Hello\n\nAssistant: "
    (tmp_path / "hh.jsonl").write_text(json.dumps({"chosen": dialogue + "Hi.", "rejected": dialogue + "Go."}) + "\n")
    assert [t.rstrip() for t in read_prompts(tmp_path / "hh.jsonl").texts.values()] == [
        "\n\nHuman: Hello\n\nAssistant:".lstrip()
    ]
    talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    assert next(iter(read_prompts(tmp_path / "chat.jsonl").texts.values())) == "Human: Hello\n\nAssistant:"
    assert list(given_prompts([talk[:1], "Plain"]).texts.values()) == ["Human: Hello\n\nAssistant:", "Plain"]


def test_files_without_prompts_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(AligngapError, match="no such file of prompts"):
        read_prompts(tmp_path / "gone.jsonl")
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(AligngapError, match="holds no prompts in its 0 rows"):
        read_prompts(tmp_path / "empty.txt")
    (tmp_path / "blank.jsonl").write_text('{"prompt": " "}\n{"prompt": null}\n')
    with pytest.raises(AligngapError, match=r"holds no prompts in its 2 rows \(empty prompt or response 2\)"):
        read_prompts(tmp_path / "blank.jsonl")
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(AligngapError, match="not UTF-8"):
        read_prompts(tmp_path / "bad.txt")


def test_judges_are_named_in_several_ways(tmp_path: Path) -> None:
    assert parse_judge("rules:prefer").options == {"object": "rules:prefer"}
    assert parse_judge("function: rules:prefer").options == {"object": "rules:prefer"}
    assert parse_judge(f"reward-model: {{path: {tmp_path}, batch: 4}}").options == {"path": str(tmp_path), "batch": 4}
    assert parse_judge(str(tmp_path)).kind == "reward-model"
    with pytest.raises(AligngapError, match=r"`pairwise` has to be trained on labels first; ready kinds: .*endpoint"):
        parse_judge("pairwise")
    with pytest.raises(AligngapError, match="did you mean `reward-model`"):
        parse_judge("reward_model: {path: x}")
    with pytest.raises(AligngapError, match=r"--judge runs/rewards: no such folder; give the folder of a reward model"):
        parse_judge("runs/rewards")
    with pytest.raises(
        AligngapError, match=r"no such folder, nor a kind of judge of that name; did you mean `reward-m"
    ):
        parse_judge("reward_model")
    with pytest.raises(AligngapError, match="unknown key"):
        parse_judge("reward-model: {path: x, size: 3}")
    with pytest.raises(AligngapError, match="not YAML"):
        parse_judge("reward-model: {path: x")
