"""Speed against TRL and a plain loop, as ratios: `python benchmarks/speed.py [CASE ...] [--write]`, or `make bench`.

Every contender of a case runs in a process of its own (`contenders.py`); the driver lets them work in turns, a few
updates each, for some rounds. What is compared is the CPU time of an update (user and system, one thread), which a busy
machine disturbs less than wall time; both are told. A ratio is the median over the rounds of the ratio within a round,
with its smallest and largest value. That the work is equal is checked: the same number of updates, response tokens
within 2 % (5 % where a T5 writes them), and on the same pairs the same losses.

`--write` puts the tables into `benchmarks/README.md`, and with all cases run the ratios into `README.md`, between their
markers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
START, END = "<!-- speed: written by `make bench` -->", "<!-- end -->"


@dataclass(frozen=True)
class Case:
    """A comparison: `ours` against the others, `pairs` trained on an update, `updates` a turn."""

    title: str
    ours: str
    others: Sequence[str]
    pairs: int
    updates: int
    same_losses: bool = False
    tokens_within: float = 0.02


CASES = {
    "offline": Case(
        "Offline IPO step", "offline/aligngap",
        ["offline/TRL", "offline/TRL, no gradient checkpointing",
         "offline/TRL, no gradient checkpointing, reference stored", "offline/aligngap, reference in the step"],
        32, 3, same_losses=True,
    ),
    "online": Case(
        "Online IPO step, a judge that costs nothing", "online/aligngap",
        ["online/TRL", "online/TRL, no gradient checkpointing"], 32, 2,
    ),
    "online-judged": Case(
        "Online IPO step, a pairwise preference model judges both orders", "online-judged/aligngap",
        ["online-judged/TRL, no gradient checkpointing"], 32, 2,
    ),
    "t5": Case(
        "Offline IPO step of a T5, prompts of 512 tokens", "t5/aligngap", ["t5/plain loop"], 8, 2, same_losses=True
    ),
    "t5-online": Case(
        "Online IPO step of a T5, prompts of 512 tokens", "t5-online/aligngap", ["t5-online/plain loop"], 8, 2,
        tokens_within=0.05,
    ),
    "preference-model": Case("Preference model, one step", "preference-model/aligngap", [], 32, 2),
}  # fmt: skip


@dataclass
class Contender:
    """A contender's process, and what its turns measured."""

    name: str
    process: subprocess.Popen[str]
    loaded_mb: float
    parameters: int
    laps: list[dict[str, Any]] = field(default_factory=list)

    def turn(self, updates: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{updates}\n")
        self.process.stdin.flush()
        return self.read()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"contender `{self.name}` ended:\n{self.errors()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def errors(self) -> str:
        log = Path(self.process.args[-1])  # type: ignore[index, arg-type]
        return "\n".join(log.read_text().splitlines()[-15:])

    def seconds(self, clock: str, updates: int) -> float:
        return median(lap[clock] for lap in self.laps) / updates

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=120)


def begin(name: str, threads: int, folder: Path) -> Contender:
    log = folder / f"{name.replace('/', '-')}.log"
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
    }  # fmt: skip
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(HERE / "contenders.py"), name, str(threads), str(log)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment,
        )  # fmt: skip
    contender = Contender(name, process, 0.0, 0)
    ready = contender.read()
    contender.loaded_mb, contender.parameters = ready["loaded_mb"], ready["ready"]["parameters"]
    return contender


def run(case: Case, rounds: int, threads: int, folder: Path) -> list[Contender]:
    """All contenders of a case, in turns; the first turn of each is a warm-up and not counted."""
    contenders = [begin(name, threads, folder) for name in (case.ours, *case.others)]
    warm = [c.turn(2) for c in contenders]
    for number in range(rounds):
        for c in contenders if number % 2 == 0 else contenders[::-1]:
            c.laps.append(c.turn(case.updates))
    for c in contenders:
        c.stop()
    check_equal(case, contenders, warm)
    return contenders


def check_equal(case: Case, contenders: Sequence[Contender], warm: Sequence[dict[str, Any]]) -> None:
    ours = contenders[0]
    for other in contenders[1:]:
        for mine, theirs in zip(ours.laps, other.laps, strict=True):
            if len(mine["losses"]) != len(theirs["losses"]):
                raise SystemExit(f"{other.name}: not the same number of updates")
        tokens, others = (sum(lap["tokens"] for lap in c.laps) for c in (ours, other))
        if abs(tokens - others) > case.tokens_within * tokens:
            raise SystemExit(f"{other.name}: {others} response tokens against {tokens}")
    if not case.same_losses:
        return
    for i, other in enumerate(contenders[1:], 1):
        mine = [x for lap in (warm[0], *ours.laps) for x in lap["losses"]]
        theirs = [x for lap in (warm[i], *other.laps) for x in lap["losses"]]
        if max(abs(a - b) for a, b in zip(mine, theirs, strict=True)) > 1e-3 * max(mine):
            raise SystemExit(f"{other.name}: its losses differ from ours: {theirs[:4]} against {mine[:4]}")


def ratio(ours: Contender, other: Contender) -> str:
    """How many times the CPU time of ours the other takes for the same work: median and range over the rounds."""
    found = [b["cpu"] / a["cpu"] for a, b in zip(ours.laps, other.laps, strict=True)]
    return f"{median(found):.2f}× ({min(found):.2f}–{max(found):.2f})"


def headline(case: Case, contenders: Sequence[Contender]) -> list[str]:
    """Lines of the front page's table: every contender that is not ours."""
    return [
        f"| {case.title} | {c.name.partition('/')[2]} | {ratio(contenders[0], c)} |"
        for c in contenders[1:]
        if "aligngap" not in c.name
    ]


def rows(case: Case, contenders: Sequence[Contender]) -> list[str]:
    """A line of the table for each contender."""
    ours, out = contenders[0], []
    for c in contenders:
        cpu, wall = c.seconds("cpu", case.updates), c.seconds("wall", case.updates)
        walls = median(b["wall"] / a["wall"] for a, b in zip(ours.laps, c.laps, strict=True))
        against = ratio(ours, c) if c is not ours else "1"
        in_wall = f"{walls:.2f}×" if c is not ours else "1"
        peak = max(lap["peak_mb"] for lap in c.laps)
        name = c.name.partition("/")[2]
        out.append(
            f"| {name} | {case.pairs / cpu:.1f} | {case.pairs / wall:.1f} | {against} | {in_wall} | "
            f"{peak:.0f} ({peak - c.loaded_mb:+.0f}) |"
        )
    return out


def shares(case: Case, contender: Contender) -> list[str]:
    """Where our time goes, as shares of CPU time; nothing where it was not told apart."""
    whole = sum(lap["cpu"] for lap in contender.laps)
    parts: dict[str, float] = {}
    for lap in contender.laps:
        for name, seconds in lap["parts"].items():
            parts[name] = parts.get(name, 0.0) + seconds
    if not parts:
        return []
    parts["backward and optimiser"] = whole - sum(parts.values())
    told = ", ".join(f"{name} {seconds / whole:.0%}" for name, seconds in parts.items() if seconds > 0.005 * whole)
    return [f"aligngap's time: {told}.", ""]


def table(names: Sequence[str], rounds: int, threads: int, folder: Path) -> tuple[list[str], list[str]]:
    """The tables of the cases, and the lines for the front page."""
    out: list[str] = []
    front: list[str] = []
    for name in names:
        case = CASES[name]
        print(f"{case.title} …", file=sys.stderr, flush=True)
        contenders = run(case, rounds, threads, folder)
        size = contenders[0].parameters / 1e6
        lines = [
            f"**{case.title}** ({size:.2f} M parameters, {case.pairs} pairs an update)", "",
            "| contender | pairs/s (CPU) | pairs/s (wall) | aligngap faster by (CPU) | wall | peak MB (over loaded) |",
            "| --- | --- | --- | --- | --- | --- |", *rows(case, contenders), "",
            *shares(case, contenders[0]),
        ]  # fmt: skip
        print("\n".join(lines), flush=True)
        out += lines
        front += headline(case, contenders)
    return out, front


def limits(threads: int) -> list[str]:
    """The machine's peaks, and what fraction of the matrix peak our offline step reaches."""
    import torch
    from machine import copy_bytes, cpu_seconds, matmul_flops
    from torch.utils.flop_counter import FlopCounterMode

    sys.path.insert(0, str(HERE))
    import contenders as c

    torch.set_num_threads(threads)
    peak, bandwidth = matmul_flops(), copy_bytes()
    lines = [
        f"Machine peaks in this run: {peak / 1e9:.0f} GFLOP/s in a float32 product of 1,024² matrices, "
        f"{bandwidth / 1e9:.1f} GB/s in a copy (read and written).", "",
        "| our step | GFLOP a pair | GFLOP/s | of the matrix peak |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    for title, spec, sizes in (
        ("offline, decoder-only", c.LLAMA, (c.BATCH, c.PROMPT, c.RESPONSE)),
        ("offline, T5", c.T5, (c.T5_BATCH, c.T5_PROMPT, c.T5_RESPONSE)),
    ):
        batch, prompt, response = sizes
        policy = c.make_policy(spec, response)
        pairs = c.stored(policy, c.make_pairs(batch, prompt, response), batch)
        trainer = c.Trainer(policy.model, c.recipe(batch), 0)
        objective = c.pair_objective(policy, c.IPO(beta=c.BETA))
        with FlopCounterMode(display=False) as counter:
            trainer.advance(pairs, objective)
        flops = counter.get_total_flops()
        rate = flops / cpu_seconds(lambda t=trainer, p=pairs, o=objective: t.advance(p, o), 3)
        lines.append(f"| {title} | {flops / batch / 1e9:.3f} | {rate / 1e9:.1f} | {rate / peak:.0%} |")
    return [*lines, ""]


def evaluation(folder: Path) -> list[str]:
    """The share of a finished study's worker time that went into measurement, from its artifacts' own seconds."""
    kinds: dict[str, float] = {}
    for name, about in json.loads((folder / "provenance.json").read_text())["artifacts"].items():
        kind = name.rpartition("-")[0]
        kinds[kind] = kinds.get(kind, 0.0) + float(about["seconds"])
    whole = sum(kinds.values())
    told = ", ".join(f"{k} {v / whole:.0%}" for k, v in sorted(kinds.items(), key=lambda item: -item[1]))
    judged = sum(kinds.get(k, 0.0) for k in ("measure", "responses", "best-of-n", "probe"))
    return [
        f"A whole study (`{folder.name}`, {whole:.0f} seconds of worker time): evaluation {judged / whole:.0%}. "
        f"By step: {told}.", "",
    ]  # fmt: skip


def write(page: Path, lines: Sequence[str]) -> None:
    """Put the lines between a page's markers."""
    before, _, rest = page.read_text().partition(START)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{START}\n" + "\n".join(lines) + f"\n{END}{after}")


def main() -> None:
    import tempfile

    from machine import versions, words

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every contender (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads of every contender (default: 1)")
    parser.add_argument("--study", type=Path, default=HERE.parent / "results" / "opening-sandbox")
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/README.md")
    args = parser.parse_args()
    unknown = [c for c in args.cases if c not in CASES]
    if unknown:
        parser.error(f"no case `{unknown[0]}`: name some of {', '.join(CASES)}")
    told = " ".join(word for word in sys.argv[1:] if word != "--write")
    command = f"python benchmarks/speed.py {told}" if args.cases else "make bench" + f" ARGS='{told}'" * bool(told)
    about = [
        f"`{command}` on {words(args.threads)}; {versions('torch', 'transformers', 'trl')}; median of {args.rounds} "
        f"alternating rounds, the range in brackets.", "",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        lines, front = table(args.cases or list(CASES), args.rounds, args.threads, Path(folder))
    rest = limits(args.threads) + evaluation(args.study)
    print("\n".join(rest))
    if args.write:
        write(HERE / "README.md", about + lines + rest)
    if args.write and not args.cases:
        write(HERE.parent / "README.md", ["| work | against | aligngap faster by |", "| --- | --- | --- |", *front])


if __name__ == "__main__":
    main()
