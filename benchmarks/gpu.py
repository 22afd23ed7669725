"""What one large GPU does with aligngap, in at most nine minutes: `python benchmarks/gpu.py --out DIR`, or `make gpu`.

Each part (`gpu_parts.py`) runs in a process of its own under a time budget; a result is printed as it comes and kept in
DIR at once, so that a part that fails, hangs or runs out of memory costs nothing but itself. Time that a part leaves is
the later ones'. DIR gets `results.jsonl` (one result a line), `README.md` (the same as tables, with the machine), the
log of each part that failed, and the figure and records of the cut study. Nothing is fetched: a package that is not
there is named by its part, which goes on without it.

`--size mini` is the same on tiny models, in a minute or two on a CPU: what a test runs, so that no time on a GPU is
spent on a typo.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: seconds that each part may take at full size; what one leaves, the later ones have
BUDGETS = {
    "card": 25, "smollm": 105, "t5-large": 60, "memory": 55, "sampling": 75, "together": 45, "deviation": 65,
    "opening": 95,
}  # fmt: skip
DEADLINE = 535.0  #: seconds for everything
CLOSING = 3.0  #: seconds kept for writing the folder


@dataclass(frozen=True)
class Ended:
    """How a part ended: its results, its seconds, and what went wrong, if anything."""

    part: str
    results: Sequence[Mapping[str, Any]]
    seconds: float
    trouble: str = ""


def run_part(words: Sequence[str], part: str, limit: float, out: Path) -> Ended:
    """One part in a process group of its own, ended with all that it started when its time is over."""
    begin, late = time.monotonic(), threading.Event()
    log = out / f"{part}.log"
    results, said = [], []  # said: a library's own words among the results
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [*words, "--part", part], stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )

        def stop() -> None:
            late.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(limit, stop)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                try:
                    found = json.loads(line)
                except ValueError:
                    said.append(line)
                    continue
                results.append(found)
                with (out / "results.jsonl").open("a", encoding="utf-8") as kept:
                    kept.write(json.dumps(found) + "\n")
                print(f"  {worded(found)}", flush=True)
            code = process.wait()
        except BaseException:
            stop()
            raise
        finally:
            timer.cancel()
    seconds = time.monotonic() - begin
    told = log.read_text(encoding="utf-8", errors="replace")
    log.write_text("".join(said) + told, encoding="utf-8")
    if late.is_set():
        return Ended(part, results, seconds, f"stopped after its {limit:.0f} seconds; see {log.name}")
    if code:
        last = [line for line in told.splitlines() if line.strip()]
        return Ended(part, results, seconds, f"{last[-1][:300] if last else f'exit code {code}'}; see {log.name}")
    log.unlink()
    return Ended(part, results, seconds)


def worded(result: Mapping[str, Any]) -> str:
    """A result in a line."""
    value = result["value"]
    told = f"{value:,.4g}" if isinstance(value, float) else str(value)
    return " ".join(str(x) for x in (f"{result['what']}:", told, result.get("unit", "")) if x != "")


def run_all(words: Sequence[str], budgets: Mapping[str, float], deadline: float, out: Path) -> list[Ended]:
    """Every part in its turn; one for which no time is left says so."""
    begin, ended = time.monotonic(), []
    names = list(budgets)
    for i, name in enumerate(names):
        left = deadline - CLOSING - (time.monotonic() - begin)
        limit = left - sum(budgets[later] for later in names[i + 1 :])  # its own budget, and what others left of theirs
        limit = min(left, max(limit, budgets[name]))
        print(f"{name} (at most {max(limit, 0):.0f} s)", flush=True)
        if limit < 1.0:
            ended.append(Ended(name, [], 0.0, "no time was left for it"))
        else:
            ended.append(run_part(words, name, limit, out))
        if ended[-1].trouble:
            print(f"  FAILED: {ended[-1].trouble}", flush=True)
    return ended


def page(ended: Sequence[Ended], command: str, seconds: float) -> str:
    """All results as tables."""
    failed = [e.part for e in ended if e.trouble]
    lines = [
        "# One GPU", "", f"`{command}`, {seconds:.0f} seconds. "
        + (f"Parts that failed: {', '.join(failed)}." if failed else "Every part ended well."), "",
    ]  # fmt: skip
    for e in ended:
        lines += [f"## {e.part}", ""]
        if e.results:
            lines += ["| what | value | unit |", "| --- | --- | --- |"]
            for result in e.results:
                value = result["value"]
                told = f"{value:,.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")
                lines.append(f"| {result['what']} | {told} | {result.get('unit', '')} |")
            lines.append("")
        if e.trouble:
            lines += [f"**Failed after {e.seconds:.0f} s:** {e.trouble}", ""]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; exit code 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out") / "gpu", help="the folder to write (default: out/gpu)")
    parser.add_argument("--size", choices=["full", "mini"], default="full", help="mini: tiny models, for a CPU")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu with --size mini (default: cuda)")
    parser.add_argument("--parts", nargs="+", choices=list(BUDGETS), metavar="PART", help="only these of: %(choices)s")
    parser.add_argument("--deadline", type=float, default=DEADLINE, help="seconds for all (default: %(default)g)")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # what a part's own process is told
    args = parser.parse_args(arguments)
    if args.part is not None:
        from gpu_parts import run

        run(args.part, args.size, args.device, args.out)
        return 0
    if args.out.exists() and any(args.out.iterdir()):
        parser.error(f"{args.out} is not empty; name another folder with --out")
    args.out.mkdir(parents=True, exist_ok=True)
    budgets = {name: float(seconds) for name, seconds in BUDGETS.items() if args.parts is None or name in args.parts}
    words = [sys.executable, __file__, "--size", args.size, "--device", args.device, "--out", str(args.out.resolve())]
    begin = time.monotonic()
    ended = run_all(words, budgets, args.deadline, args.out)
    told = " ".join(["python benchmarks/gpu.py", *(sys.argv[1:] if arguments is None else arguments)])
    (args.out / "README.md").write_text(page(ended, told, time.monotonic() - begin), encoding="utf-8")
    print(f"results: {args.out / 'README.md'}")
    return int(any(e.trouble for e in ended))


if __name__ == "__main__":
    sys.exit(main())
