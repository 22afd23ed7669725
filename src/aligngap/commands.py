"""What each command of the command line does: a study or a folder in, lines and a page out."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligngap import __version__
from aligngap.types import AligngapError, Damaged, RunFailed, one_line

if TYPE_CHECKING:
    from aligngap.exchange.hub import Hub
    from aligngap.pipeline.plan import Plan
    from aligngap.settings import Study


def prepare(args: argparse.Namespace) -> tuple[Plan, Any, Path]:
    """The plan of the study that is named, the store and the output folder."""
    from aligngap.study.load import load

    return lay_out(args, load(args.study, args.sets))


def lay_out(args: argparse.Namespace, study: Study) -> tuple[Plan, Any, Path]:
    """The plan of a study, the store and the output folder; every check that needs no compute is made here."""
    from aligngap.pipeline.plan import expand
    from aligngap.storage.store import Store

    out = args.out or Path("out") / study.name
    return expand(study), Store(args.store or out.parent / "store"), out


def run(args: argparse.Namespace, words: Sequence[str]) -> int:
    """`aligngap run`: everything a study needs, then its report."""
    return carry_out(args, words, *prepare(args))


def compare(args: argparse.Namespace, words: Sequence[str]) -> int:
    """`aligngap compare`: the study of a user's own policy and pairs, and its recommendation."""
    from aligngap.execute.console import print_data, print_plan
    from aligngap.study.own import check_pairs, own_study, remarks

    study = own_study(args.policy, args.task, args.budget, args.seeds, args.sets, args.kl)
    if args.forecast:
        from aligngap.study.forecast import forecast_study

        study = forecast_study(study)
    check_pairs(study)
    made, store, out = lay_out(args, study)
    known = remarks(study, args.budget, args.sets)
    if args.plan:
        from aligngap.execute.checks import check_data, check_models

        check_models(study)
        print_remarks(known)
        print_data(check_data(made, store))
        print_plan(made, store, out)
        return 0
    tell = tell_forecast if args.forecast else partial(tell_decision, words=words)
    return carry_out(args, words, made, store, out, tell, known)


def forecast(args: argparse.Namespace, words: Sequence[str]) -> int:
    """`aligngap forecast`: short offline runs that say how far ahead online will be."""
    from aligngap.study.forecast import forecast_study
    from aligngap.study.load import load

    study = forecast_study(load(args.study, args.sets), args.steps)
    return carry_out(args, words, *lay_out(args, study), tell_forecast)


def make_page(out: Path) -> Path:
    """Make the page and the figures of an output folder's records, and show how far that is."""
    from aligngap.execute.console import stages
    from aligngap.report import build_report

    with stages("report") as progress:
        return build_report(out, progress=progress)


def tell_report(out: Path) -> str:
    """Make the report of an output folder's records; returns its numbers."""
    from aligngap.report import headline

    page = make_page(out)
    return f"{headline(out)}\nreport: {page}"


def tell_decision(out: Path, words: Sequence[str]) -> str:
    """Make the report of `compare`; returns its numbers, and last the command to run next."""
    from aligngap.report import next_command

    return f"{tell_report(out)}\n{next_command(out, ['aligngap', *words])}"


def print_remarks(known: Sequence[str]) -> None:
    """Say on stderr what is known of a study's models, a line each."""
    for line in known:
        print(f"aligngap: {line}", file=sys.stderr)


def tell_forecast(out: Path) -> str:
    """What the records of a forecast's runs expect of online."""
    from aligngap.report.forecast import write_forecast

    return write_forecast(out)


def carry_out(
    args: argparse.Namespace,
    words: Sequence[str],
    made: Plan,
    store: Any,
    out: Path,
    tell: Callable[[Path], str] = tell_report,
    known: Sequence[str] = (),
) -> int:
    """Run a plan to its end, collect its records and tell what they say: by default, make their report.

    `known` are lines to say of its models, once they have been found usable.
    """
    from aligngap.execute import checks, repeat

    command = shlex.join(["aligngap", *words])
    if "RANK" not in os.environ and (text := repeat.said(made, store, out, command)) is not None:
        print_remarks(known)
        checks.tell_unvouched(made.steps(), store)
        print(text)
        print(f"aligngap: all is as it was; `aligngap report {out}` makes the page anew", file=sys.stderr)
        return 0
    if os.environ.get("RANK", "0") == "0":  # of several processes the first one looks
        checks.check_data(made, store)  # before anything heavy is imported: bad input is refused soon
    from aligngap.execute.collect import collect
    from aligngap.execute.expected import write_expected
    from aligngap.execute.refresh import Refresher
    from aligngap.execute.together import Together, launch
    from aligngap.execute.watch import follow, watch
    from aligngap.execute.worker import keep_compiled
    from aligngap.parallel.world import in_world
    from aligngap.storage.files import check_writable
    from aligngap.storage.records import write_failures

    keep_compiled(store)
    processes = checks.pick_processes(args, made)
    if processes > 1 and not in_world():
        return launch(words, processes, args.threads)
    executor = checks.pick_executor(args, store, checks.pick_tracking(args, made, out))
    if isinstance(executor, Together) and executor.world.rank > 0:
        follow(executor, made)
        return 0
    checks.check_models(made.study)
    print_remarks(known)
    checks.tell_unvouched(made.steps(), store)
    checks.check_judges(made, store)
    store.prepare()
    check_writable(out)
    if said := write_expected(made.study.name, out):
        print(f"aligngap: what is expected stands in {said}", file=sys.stderr)
    damaged: set[str] = set()
    while True:
        with Refresher(made, store, out, command) as refresher:
            outcome = watch(executor, made, refresher.notice)
        try:
            count = collect(made, store, out, command)
            break
        except Damaged as error:
            if not error.name or error.name in damaged:
                raise
            damaged.add(error.name)
            store.set_aside(error.name)
    write_failures(out, {name: one_line(message) for name, message in outcome.failed.items()})
    if count:
        checks.tell_fewer_prompts(made.study, out)
        text = tell(out)
        print(text)
        if not outcome.failed:
            repeat.keep(made, store, out, command, text)
    if outcome.failed:
        for name, message in outcome.failed.items():
            print(f"aligngap: {name}: {one_line(message)}", file=sys.stderr)
        if outcome.bad_input:
            return 2
        lost = f" and {outcome.lost} that need them" if outcome.lost else ""
        raise RunFailed(f"{len(outcome.failed)} steps failed{lost}; the same command tries them again")
    return 0


def plan(args: argparse.Namespace, words: Sequence[str]) -> int:
    """`aligngap plan`: what a study would make and about how long it takes; nothing is computed."""
    from aligngap.execute.checks import check_data, check_planned
    from aligngap.execute.console import print_data, print_plan

    made, store, out = prepare(args)
    if args.detect is not None and (args.pilot is None or not 0 < args.detect < 1):
        raise AligngapError("--detect needs --pilot DIR, and a difference in win rate between 0 and 1")
    read = check_data(made, store)
    check_planned(made.study)
    print_plan(made, store, out)
    print_data(read)
    if args.pilot is not None:
        from aligngap.report import planned_power

        first, second = made.study.compare
        seeds, prompts = len(made.study.seed_list), made.study.measurement.prompts
        print(planned_power(args.pilot, (first, second), seeds, prompts, args.detect))
    return 0


def measure(args: argparse.Namespace, words: Sequence[str]) -> int:
    """`aligngap measure`: checkpoints that somebody else has trained, measured as a study's own."""
    from aligngap.instrument.command import run as run_measure

    return run_measure(args, words)


def pick(args: argparse.Namespace, words: Sequence[str]) -> int:
    """`aligngap pick`: the checkpoint to deploy."""
    from aligngap.instrument.command import run_pick

    return run_pick(args)


def inspect(args: argparse.Namespace, words: Sequence[str]) -> int:
    """`aligngap inspect`: how the rows of a preference file are read."""
    from aligngap.execute.inspect import inspect_texts, inspect_tokens, print_inspection
    from aligngap.study.build import build_task
    from aligngap.study.load import load
    from aligngap.study.own import own_study
    from aligngap.study.yaml_file import apply_override

    if args.policy is not None and args.study is not None:
        raise AligngapError("--policy and --study both say how text becomes tokens; leave one of them out")
    if args.policy is not None:
        study = own_study(args.policy, args.file, sets=args.sets)
    elif args.study is not None:
        study = load(args.study, [*args.sets, f"task.path={json.dumps(args.file)}"])
    else:
        raw: dict[str, Any] = {"task": {"name": "pairs", "path": args.file}}
        for override in args.sets:
            apply_override(raw, override)
        if others := set(raw) - {"task"}:
            what = "says nothing of how a file is read; set `task.KEY`, or add --study or --policy"
            raise AligngapError(f"--set {min(others)}: {what}")
        print_inspection(inspect_texts(build_task(raw["task"]).load(0)))
        return 0
    print_inspection(inspect_tokens(study))
    return 0


def report(args: argparse.Namespace, words: Sequence[str]) -> int:
    """`aligngap report`: the page and the figures of a run, made anew from its records; to the hub if asked."""
    from aligngap.exchange.hub import push_report

    hub = asked_hub(args)
    print(f"report: {make_page(args.out)}")
    if hub is not None:
        print("\n".join(push_report(hub, args.out)))
    return 0


def asked_hub(args: argparse.Namespace) -> Hub | None:
    """The hub that `--push` names, reached before anything is made; None without it."""
    from aligngap.exchange.hub import find_hub

    if args.push is None:
        if args.public:
            raise AligngapError("--public says how something is sent; add --push OWNER/NAME")
        return None
    return find_hub(args.push, args.public)


def show(args: argparse.Namespace, words: Sequence[str]) -> int:
    """`aligngap show`: the numbers of a run in the terminal."""
    from aligngap.execute.console import print_failures, print_records
    from aligngap.report import headline
    from aligngap.storage.records import read_failures, read_folder

    if args.failures:
        failed = read_failures(args.out)
        print_failures(
            failed, None if failed and not (args.out / "records.parquet").exists() else read_folder(args.out)
        )
        return 0
    print_records(read_folder(args.out).records)
    print(headline(args.out))
    return 0


def check_store(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Hold every artifact of a store against its checksums; exit code 1 if one is damaged."""
    from collections import Counter

    from aligngap.storage.audit import State, audit
    from aligngap.storage.store import Store

    counts: Counter[State] = Counter()
    for found in audit(Store(args.store)):
        counts[found.state] += 1
        if found.state is not State.SOUND:
            print(f"{found.name}: {found.state}: {found.remedy}")
    told = ", ".join(f"{counts[state]} {state}" for state in State if counts[state]) or "none"
    print(f"artifacts of {args.store}: {told}")
    return int(bool(counts[State.DAMAGED]))


def export(args: argparse.Namespace, words: Sequence[str]) -> int:
    """`aligngap export`: a trained policy as a Hugging Face folder, and to the hub if asked."""
    from tempfile import TemporaryDirectory

    from aligngap.exchange.export import export as write
    from aligngap.storage.store import Store

    if args.to is None and args.push is None:
        raise AligngapError("export: where to? Name a folder with --to, or a model on the hub with --push OWNER/NAME")
    hub = asked_hub(args)
    with TemporaryDirectory() as folder:
        to = write(
            args.out, args.run, args.to or Path(folder) / "policy",
            Store(args.store or args.out.resolve().parent / "store"),
        )  # fmt: skip
        if args.to is not None:
            print(to)
        if hub is not None:
            print(hub.push("model", to, f"aligngap {__version__}: {args.run} of {args.out.resolve().name}"))
    return 0


def ratings(args: argparse.Namespace, words: Sequence[str]) -> int:
    """`aligngap ratings`: a blind sheet of pairs at equal KL, and people's choices back."""
    from aligngap.ratings.command import export as write
    from aligngap.ratings.command import take_in
    from aligngap.report import people_say
    from aligngap.report.folder import read_compared

    if args.verb == "export":
        first, second = args.arms or read_compared(args.out)
        print("\n".join(write(args.out, (first, second), args.kl, args.pairs, args.to, args.seed)))
        return 0
    print("\n".join([*take_in(args.out, args.sheets), *people_say(args.out)]))
    return 0


def exact(args: argparse.Namespace, words: Sequence[str]) -> int:
    """`aligngap exact`: a world in which everything is computed exactly."""
    from aligngap.exact.command import run as run_exact

    return run_exact(args)


def diff(args: argparse.Namespace, words: Sequence[str]) -> int:
    """`aligngap diff`: in which settings two arms differ."""
    from aligngap.execute.console import print_rows
    from aligngap.study.load import load
    from aligngap.study.variants import diff_arms

    rows = diff_arms(load(args.study, args.sets), args.left, args.right)
    if not rows:
        print(f"{args.left} and {args.right} are the same stream")
        return 0
    print_rows(["setting", args.left, args.right], rows)
    if "[" in args.left + args.right:
        print("everything else is shared by construction")
    else:
        print("everything else is one recipe and one measurement, shared by construction")
    return 0


def import_t5x(args: argparse.Namespace, words: Sequence[str]) -> int:
    """`aligngap import-t5x`: a T5X checkpoint as a Hugging Face folder."""
    from aligngap.exchange.t5x import import_checkpoint

    config = import_checkpoint(args.checkpoint, args.to, args.gin, args.tokenizer)
    depth = f"{config.num_layers}+{config.num_decoder_layers} layers"
    print(f"{args.to}: T5 1.1, d_model {config.d_model}, {depth}, vocabulary {config.vocab_size}")
    if args.tokenizer is None:
        print("no tokenizer beside it yet: a study's policy needs one, see --tokenizer")
    return 0


def list_names(args: argparse.Namespace, words: Sequence[str]) -> int:
    """`aligngap list`: what a study can name."""
    from aligngap.execute.console import print_rows
    from aligngap.registry import names
    from aligngap.study.yaml_file import packaged, parse_yaml

    if args.shelf == "studies":
        questions = {n: str(parse_yaml(f.read_text(), n).get("question", "")) for n, f in packaged().items()}
        rows = [(n, " ".join(question.split())) for n, question in questions.items()]
        print_rows(["study", "question"], rows)
    else:
        print_rows([args.shelf, "object"], list(names(args.shelf).items()))
    return 0
