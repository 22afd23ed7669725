"""`aligngap measure`: checkpoints of any trainer on the chart, from its options to the report."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from aligngap.types import AligngapError, RunFailed, one_line

if TYPE_CHECKING:
    from aligngap.instrument.survey import Setting, Survey
    from aligngap.pipeline.context import Context
    from aligngap.pipeline.plan import Plan
    from aligngap.storage.store import Store

#: column of the records -> what it is called in the printed table, and its digits; shown where anything was measured
SHOWN = {
    "kl_nats": ("KL, nats", 2), "forward_kl_nats": ("forward KL", 2), "win_rate": ("wins", 3),
    "proxy_win_rate": ("wins (2nd)", 3), "rho": ("rho", 2), "efficiency": ("efficiency", 2),
}  # fmt: skip
#: column of the records -> what its numbers are, said under the table where it is shown
LEGEND = {
    "kl_nats": "±: the standard error, over seeds where there are several, else over prompts",
    "win_rate": "wins: the share of prompts on which the judge prefers the policy's response to the reference's",
    "rho": "rho: correlation, over the reference's own samples, of how the policy moved with what the judge prefers",
    "efficiency": "efficiency: the gain over one half as a share of the most that any policy could gain at that KL",
}
CUT = 0.1  #: share of responses cut at the limit above which a line says so


def setting_of(args: argparse.Namespace) -> Setting:
    """What the options say of a measurement; a wrong number or judge is refused in one line."""
    from aligngap.instrument.judging import parse_judge
    from aligngap.instrument.survey import Setting
    from aligngap.pipeline.drawn import check_size

    for name, least in (("count", 2), ("prompt_tokens", 1), ("response_tokens", 1), ("batch", 1), ("samples", 0)):
        if getattr(args, name) is not None and getattr(args, name) < least:
            raise AligngapError(f"--{name.replace('_', '-')}: must be {least} or more, not {getattr(args, name)}")
    for name in ("workers", "threads"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise AligngapError(f"--{name}: must be positive, not {getattr(args, name)}")
    if args.forward is not None and args.forward < 0:
        raise AligngapError(f"--forward: must be 0 or more, not {args.forward}")
    check_size(args.reference_samples)
    if args.kl is not None and (not all(0 < k < float("inf") for k in args.kl) or sorted(set(args.kl)) != args.kl):
        raise AligngapError(f"--kl: must be increasing KLs above 0 nats, not {' '.join(map(str, args.kl))}")
    if len(args.judge) > 2:
        what = "the records hold two, the second as a check on the first"
        raise AligngapError(f"--judge: given {len(args.judge)} times; {what}: repeat the command with another --name")
    return Setting(
        reference=args.reference, prompts=args.prompts, column=args.prompt_column, base=args.base,
        judges=tuple(map(parse_judge, args.judge)), count=args.count, prompt_tokens=args.prompt_tokens,
        response_tokens=args.response_tokens, chat=args.chat, dtype=args.dtype, seed=args.seed, batch=args.batch,
        forward=args.forward, samples=args.samples, reference_samples=args.reference_samples,
    )  # fmt: skip


def run(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Measure what the options name, write its records and its report; the same command resumes."""
    from aligngap.instrument.folders import find_checkpoints
    from aligngap.instrument.survey import plan_survey

    sys.path.append(os.getcwd())  # where a user's own judge lies
    setting = setting_of(args)
    found = find_checkpoints(args.policy, say)
    compared = list(args.compare or list(dict.fromkeys(c.arm for c in found))[:2])
    for name in compared:
        if name not in {c.arm for c in found}:
            raise AligngapError(f"--compare {name}: no such policy; give it with --policy {name}=CHECKPOINTS")
    survey = plan_survey(args.name, setting, found, say)
    if survey.prompts.spec.chat:
        say(f"{args.reference}: its chat template writes the prompts (--plain: they are plain text)")
    out = args.out or Path("out") / args.name
    return carry_out(args, words, survey, out, compared)


def say(line: str) -> None:
    """A line on stderr, marked as the command's own."""
    print(f"aligngap: {one_line(line)}", file=sys.stderr, flush=True)


def carry_out(args: argparse.Namespace, words: Sequence[str], survey: Survey, out: Path, compared: list[str]) -> int:
    """Make a survey's steps, then the verdicts of checkpoints against each other, then tables and report."""
    from aligngap.execute.checks import pick_device, tell_unvouched
    from aligngap.execute.console import stages
    from aligngap.execute.local import Local
    from aligngap.execute.watch import watch
    from aligngap.instrument.ceilings import write_ceilings
    from aligngap.instrument.survey import check_judges
    from aligngap.instrument.tables import collect, matches, write_matches
    from aligngap.pipeline.context import Context
    from aligngap.report import answer, build_report
    from aligngap.storage.files import check_writable
    from aligngap.storage.records import write_failures
    from aligngap.storage.store import Store

    store = Store(args.store or out.parent / "store")
    if args.plan:
        return show_plan(survey, store)
    tell_unvouched(survey.steps(), store)
    check_judges(survey, store)
    store.prepare()
    check_writable(out)
    device = pick_device(args.device)
    workers, threads = share_out(args, survey, device)
    executor = Local(store, workers=workers, threads=threads, device=device)
    from aligngap.stats.budgets import BUDGETS

    budgets = tuple(args.kl or BUDGETS)
    outcome = watch(executor, cast("Plan", survey))
    failed, bad = dict(outcome.failed), outcome.bad_input
    ctx = Context(store, "cpu")
    pairs = matches(survey, ctx, budgets)
    more = [m.step for m in pairs if not store.has(m.step.name)]
    if more and not failed:
        outcome = watch(executor, cast("Plan", replace(survey, readings={}, verdicts={}, behind=None, extra=more)))
        failed |= outcome.failed
        bad |= outcome.bad_input
    say_dropped(survey, store)
    count = collect(survey, ctx, out, shlex.join(["aligngap", *words]), compared, budgets)
    write_failures(out, {name: one_line(message) for name, message in failed.items()})
    if count:
        lines = [*write_matches(pairs, ctx, out), *write_ceilings(survey, ctx, out)]
        if survey.setting.judges:
            with stages("report") as progress:
                page = build_report(out, progress=progress)
            print_records(out)
            print(answer(out))
            for line in lines:
                print(line)
            print(f"report: {page}")
        else:
            print_records(out)
            print(f"records: {out / 'records.parquet'}; the same command with --judge adds win rates and a report")
        warn_of_cuts(survey, ctx)
    for name, message in failed.items():
        say(f"{name}: {message}")
    if bad:
        return 2
    if failed:
        raise RunFailed(f"{len(failed)} steps failed; the same command tries them again, and nothing else is lost")
    return 0


def say_dropped(survey: Survey, store: Store) -> None:
    """Say how many rows of the file of prompts were left out, by reason."""
    if not store.has(survey.prompts.name):
        return
    told = store.manifest(survey.prompts.name)["result"]
    if told["dropped"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in told["dropped"].items())
        say(f"{told['source']}: {told['prompts']} prompts of {told['rows']} rows; left out: {reasons}")


def show_plan(survey: Survey, store: Any) -> int:
    """Say which checkpoints would be measured, as which step of which run, and which are measured already."""
    from aligngap.execute.console import print_rows

    rows = [
        (c.arm, c.config or "–", str(c.seed), str(c.step), c.path, "yes" if store.has(s.name) else "no")
        for c, s in survey.readings.items()
    ]
    print_rows(["policy", "configuration", "seed", "step", "checkpoint", "measured"], rows)
    return 0


def share_out(args: argparse.Namespace, survey: Survey, device: str) -> tuple[int, int]:
    """(workers, threads of each): every worker holds the reference and one policy, in float32."""
    cores = os.cpu_count() or 1
    workers = args.workers
    if workers is None and device != "cpu":
        workers = 1
    elif workers is None:
        size = sum(f.stat().st_size for f in Path(survey.prompts.reference.path).glob("*.safetensors"))
        try:
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (ValueError, OSError):
            memory = 4 << 30
        room = int(0.6 * memory // (3 * size + (1 << 30)))  # half-precision weights grow when they are loaded
        workers = max(1, min(cores, room, len(survey.readings)))
    return workers, args.threads or max(1, cores // workers)


def print_records(out: Path) -> None:
    """A line for each policy, configuration and step, averaged over seeds; nothing of what nobody judged."""
    from aligngap.execute.console import print_rows
    from aligngap.instrument.rows import REFERENCE
    from aligngap.storage.records import read_records

    rows = read_records(out)
    rows = rows[(rows["opponent"] == REFERENCE) & (rows["step"] > 0)]
    there = {name: how for name, how in SHOWN.items() if rows[name].notna().any()}
    shown: list[Sequence[str]] = []
    for (arm, config, step), of in rows.groupby(["arm", "config", "step"], sort=False):
        cells = [str(arm), str(config) or "–", str(step), str(len(of))]
        cells += [averaged(of[name], of[f"{name}_se"], digits) for name, (_, digits) in there.items()]
        shown.append((*cells, f"{of['length_tokens'].mean():.1f}", f"{1 - of['unended'].mean():.0%}"))
    heads = (head for head, _ in there.values())
    print_rows(["policy", "configuration", "step", "seeds", *heads, "tokens", "ended"], shown)
    for line in (text for name, text in LEGEND.items() if name in there):
        print(f"  {line}")


def averaged(values: Any, errors: Any, digits: int) -> str:
    """Mean and standard error: over seeds where there are several, else over prompts; a dash for none."""
    known = values.notna()
    values, errors = values[known], errors[known]
    if not len(values):
        return "–"
    se = values.sem() if len(values) > 1 else float(errors.iloc[0])
    return f"{values.mean():.{digits}f} ± {se:.{digits}f}"


def warn_of_cuts(survey: Survey, ctx: Context) -> None:
    """Say so where many responses are cut by the limit, since KL is then of their beginnings."""
    read = [survey.start, *survey.readings.values()]
    shares = [sum(not r.ended for r in s.read(ctx).responses) / len(s.read(ctx).responses) for s in read
              if ctx.store.has(s.name)]  # fmt: skip
    if shares and max(shares) > CUT:
        limit = survey.setting.response_tokens
        say(
            f"up to {max(shares):.0%} of a policy's responses are cut at {limit} tokens, so that KL and wins are of "
            "their beginnings; raise --response-tokens"
        )


def run_pick(args: argparse.Namespace) -> int:
    """Say which checkpoint to deploy and what is in doubt; with --to, write it."""
    from aligngap.instrument.pick import export_pick, pick, say_where, sentences

    if args.kl is not None and not 0 < args.kl < float("inf"):
        raise AligngapError(f"--kl {args.kl}: must be a number of nats above 0")
    found = pick(args.out, None if args.best else args.kl, args.policy)
    for line in [*sentences(found), *say_where(args.out, found)]:
        print(line)
    if args.to is not None:
        print(export_pick(args.out, found, args.to, args.store))
    return 0
