"""The first step: load a task, train or load the tokenizer, encode both splits; and how a task section is read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from aligngap.pipeline.base import Step, configuration_of
from aligngap.registry import use_source
from aligngap.seeding import derive
from aligngap.settings import Limits, ModelSpec, TokenizerSpec
from aligngap.study.build import build_task
from aligngap.types import AligngapError, Pair, Prompt, Response

if TYPE_CHECKING:
    from aligngap.pipeline.context import Context, Job


MARKED = "prompts_with_marks_of_a_template_read_as_text"
MERGED = "responses_whose_first_token_would_merge_with_the_prompt"
MOSTLY = 0.9  #: share of such prompts above which a person meant the marks
ENCODING = 2  #: raised when a pretrained tokenizer's ids change for the same text, so that old artifacts are not taken


def encoded_by(path: str | None) -> dict[str, int]:
    """What stands in the key of a step for the way in which a pretrained tokenizer is used; {} for one of our own."""
    return {"encoding": ENCODING} if path is not None else {}


class Data(Step):
    """Load a task, train or load the tokenizer, encode both splits; over-long rows are dropped and counted."""

    kind: Literal["data"] = "data"
    task: dict[str, Any]
    fingerprint: str
    tokenizer: TokenizerSpec
    family: ModelSpec
    limits: Limits
    seed: int
    judge_share: float = 0.0
    template: str = ""  # the hash of the chat template that writes the prompts, if one does
    content: str = ""  # of the files of a pretrained tokenizer and of its model's configuration
    code: str = ""  # of the source of a task that is not aligngap's own

    @property
    def expected(self) -> float:
        """About how many training pairs there will be, as far as the study says; files say it by their limit."""
        return float(self.task.get("train_pairs") or self.task.get("max_rows") or 2.0e4)

    @cached_property
    def configuration(self) -> Any:
        # The content of the data is hashed (`fingerprint`), not where they lie.
        return configuration_of(self) | {"task": self.task.get("name")} | encoded_by(self.tokenizer.path)

    def run(self, ctx: Context, job: Job) -> dict[str, Any]:
        from aligngap.models.chat import TemplateRefused, check_template
        from aligngap.models.encoding import Encoding
        from aligngap.models.loading import is_encoder_decoder
        from aligngap.models.pretrained import check_content
        from aligngap.models.tokenizer import make_tokenizer
        from aligngap.storage.pairs import write_rows

        check_content(self.tokenizer.path, self.content, weights=False)
        use_source(self.code, ("tasks", str(self.task["name"])))
        task = build_task(self.task)
        loaded = task.load(self.seed)
        if task.fingerprint() != self.fingerprint:
            what = "has changed while the command ran; repeat it"
            raise AligngapError(f"task {self.task['name']} ({loaded.source}): {what}")
        tokenizer = make_tokenizer(self.tokenizer, loaded)
        tokenizer.save_pretrained(str(job.work / "tokenizer"))
        if self.family.chat:
            check_template(tokenizer, "policy")
        encoding = Encoding(tokenizer, is_encoder_decoder(self.family), self.family)
        rows, dropped = [], dict(loaded.dropped)
        noted = {MARKED: 0, MERGED: 0}
        for split, comparisons in (("train", loaded.train), ("test", loaded.test)):
            for c in comparisons:
                try:
                    prompt_ids = encoding.prompt(c.prompt)
                except TemplateRefused as refused:
                    reason = f"{split}: {refused}"
                    dropped[reason] = dropped.get(reason, 0) + 1
                    continue
                joined = [encoding.joined(text, self.closed, c.prompt) for text in (c.chosen, c.rejected)]
                sides = [ids for ids, _ in joined]
                if len(prompt_ids) > self.limits.prompt_tokens:
                    reason = f"{split}: prompt over {self.limits.prompt_tokens} tokens"
                elif max(map(len, sides)) > self.limits.response_tokens:
                    reason = f"{split}: a response over {self.limits.response_tokens} tokens"
                else:
                    row = {"split": split, "prompt_id": c.prompt_id, "prompt": c.prompt, "prompt_ids": prompt_ids}
                    row |= {"chosen": c.chosen, "chosen_ids": sides[0]}
                    row |= {"rejected": c.rejected, "rejected_ids": sides[1]}
                    rows.append(row)
                    noted[MARKED] += encoding.holds_marks(c.prompt)
                    noted[MERGED] += sum(merged for _, merged in joined)
                    continue
                dropped[reason] = dropped.get(reason, 0) + 1
        if self.family.path is not None and noted[MARKED] > MOSTLY * len(rows):
            raise AligngapError(
                f"task {self.task['name']} ({loaded.source}): {noted[MARKED]} of {len(rows)} prompts are already "
                "written in a chat template's marks, which would be read as text; give messages or plain prompts, and "
                "set policy.chat to have the template write them"
            )
        if self.judge_share:
            prompts = {r["prompt_id"]: r["prompt"] for r in rows if r["split"] == "train"}
            apart = kept_for_judges(prompts, self.judge_share, self.seed)
            for row in rows:
                row["split"] = "judge" if row["prompt_id"] in apart and row["split"] == "train" else row["split"]
        counts = {split: sum(r["split"] == split for r in rows) for split in self.splits}
        self.check_rows(loaded.source, counts, dropped)
        write_rows(job.work / "data.parquet", rows)
        found = {"source": loaded.source, "rows": counts, "dropped": dropped, "vocabulary": len(tokenizer)}
        if loaded.rows:
            read = {"rows": loaded.rows, "layouts": dict(loaded.layouts), "more": loaded.more}
            found["read"] = read | {"unread": list(loaded.unread)}
        return found | {what: n for what, n in noted.items() if n}

    def check_rows(self, source: str, counts: Mapping[str, int], dropped: Mapping[str, int]) -> None:
        """Refuse a task of which a split has no two rows."""
        for split, count in counts.items():
            if count < 2:
                most = max(dropped, key=lambda reason: dropped[reason], default="")
                remedy = "bring more rows"
                if " tokens" in most:
                    remedy = "raise limits.prompt_tokens or limits.response_tokens, or bring more rows"
                elif "chat template" in most:
                    remedy = "bring prompts that its template takes, or leave policy.chat out"
                raise AligngapError(
                    f"task {self.task['name']} ({source}): {count} usable {split} rows after dropping {dropped}; at "
                    f"least 2 are needed: {remedy}"
                )

    @property
    def splits(self) -> tuple[str, ...]:
        """The parts of the data, no prompt in two of them: "judge" only where the judges have prompts of their own."""
        return ("train", "judge", "test") if self.judge_share else ("train", "test")

    @property
    def judges_learn_from(self) -> Literal["train", "judge"]:
        return "judge" if self.judge_share else "train"

    @property
    def closed(self) -> bool:
        """Whether responses end with EOS: all but those of one token, the tabular world, whose length is no choice."""
        return self.limits.response_tokens > 1

    def pairs(self, ctx: Context, split: str) -> list[Pair]:
        """The split's comparisons as pairs labelled by the task's own rater (hard labels)."""
        from aligngap.types import Pair

        def build() -> list[Pair]:
            from aligngap.storage.pairs import read_rows

            out = []
            for r in read_rows(self.made(ctx, "data.parquet")):
                if r["split"] == split:
                    sides = [Response(tuple(r[f"{s}_ids"]), self.closed, r[s]) for s in ("chosen", "rejected")]
                    prompt = Prompt(r["prompt_id"], r["prompt"], tuple(r["prompt_ids"]))
                    out.append(Pair(prompt, sides[0], sides[1], 1.0, 1.0, 0.0, "data"))
            return out

        found: list[Pair] = ctx.cached((self.name, "pairs", split), build)
        return found

    def prompts(self, ctx: Context, split: str, n: int) -> list[Prompt]:
        """n distinct prompts of the split, chosen by the seed: the same for every arm."""
        import numpy as np

        distinct = list({p.prompt.id: p.prompt for p in self.pairs(ctx, split)}.values())
        order = np.random.default_rng(derive(self.seed, "measured prompts", split)).permutation(len(distinct))
        return [distinct[int(i)] for i in order[:n]]


def kept_for_judges(prompts: Mapping[str, str], share: float, seed: int) -> set[str]:
    """The ids of the prompts (text by id) that only the judges learn from: `share` of the conversations that they are
    cut out of, drawn by the seed, at least one."""
    from aligngap.tasks._dialogue import conversation_keys

    together: dict[str, list[str]] = {}
    for prompt_id, key in zip(prompts, conversation_keys(list(prompts.values())), strict=True):
        together.setdefault(key, []).append(prompt_id)
    first = {min(ids): ids for ids in together.values()}
    drawn = sorted(first, key=lambda i: (derive(seed, "judges' prompts", i), i))[: max(1, round(share * len(first)))]
    return {prompt_id for i in drawn for prompt_id in first[i]}
