"""The command line: parse, call, print.

Exit code 2 for bad input, 1 for a failed run; a traceback only with --debug.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from aligngap import __version__
from aligngap.exact.arguments import add_arguments as add_exact
from aligngap.instrument.arguments import add_measure, add_pick
from aligngap.ratings.arguments import add_arguments as add_ratings
from aligngap.types import AligngapError, Damaged, RunFailed, one_line

if TYPE_CHECKING:
    from aligngap.exchange.hub import Hub
    from aligngap.pipeline.plan import Plan


#: What a command does with its arguments and its own words; the exit code.
Action = Callable[[argparse.Namespace, Sequence[str]], int]


class Parser(argparse.ArgumentParser):
    """A parser that complains as every other bad input does: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise AligngapError(f"{message}; see `{self.prog} --help`")


def positive(text: str) -> int:
    """A whole number from 1 on, as an option's value."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be positive, a whole number from 1 on, not {text!r}")
    return int(text)


def some_seconds(text: str) -> float:
    """A number above 0, as an option's value."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive, not {text!r}")
    return found


def parser() -> argparse.ArgumentParser:
    """The parser of the command line, each command with the function that carries it out."""
    top = Parser(
        prog="aligngap",
        description="At the same KL budget, how much better is it to align a language model online, and why?",
    )
    top.add_argument("--version", action="version", version=f"aligngap {__version__}")
    top.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def command(name: str, act: Action, what: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=what, description=what)
        made.add_argument("--debug", action="store_true", help="show tracebacks")
        made.set_defaults(act=act)
        return made

    def of_study(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("study", help="a packaged study's name (see `aligngap list studies`) or a YAML file")
        of_settings(sub)

    def of_settings(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--set", dest="sets", action="append", default=[], metavar="KEY=VALUE",
            help="override a setting, for instance seeds=3 or task.path=pairs.jsonl; may be repeated",
        )  # fmt: skip
        sub.add_argument("--out", type=Path, help="output folder (default: out/STUDY)")
        sub.add_argument("--store", type=Path, help="folder of shared artifacts (default: store/ beside the outputs)")

    def of_machine(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--workers", type=positive, help="worker processes (default: one per core, one on a GPU)")
        sub.add_argument("--threads", type=positive, default=1, help="threads per worker on a CPU (default: 1)")
        sub.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 … (default: a GPU if there is one)")
        sub.add_argument(
            "--executor", choices=["local", "ray", "slurm"], default="local",
            help="where steps run: processes of this machine, tasks on a running Ray cluster, or Slurm jobs "
            "(default: local)",
        )  # fmt: skip
        sub.add_argument(
            "--slurm", action="append", default=[], metavar="KEY=VALUE",
            help="with --executor slurm, a parameter of each job, for instance partition=gpu; may be repeated",
        )  # fmt: skip
        sub.add_argument(
            "--gpus", type=float, metavar="SHARE",
            help="with --executor ray, a step's share of a GPU, for instance 0.25 (default: 1 if the cluster has any); "
            "with slurm, how many GPUs (default: 0)",
        )  # fmt: skip
        sub.add_argument(
            "--processes", type=int, metavar="N",
            help="train each model on N processes of this machine together, on a GPU each (default: 1)",
        )  # fmt: skip
        sub.add_argument(
            "--parallel", choices=["ddp", "fsdp"],
            help="with --processes, what each holds of a model in training: all of it, or a part (default: ddp)",
        )  # fmt: skip
        sub.add_argument(
            "--save-seconds", type=some_seconds, default=30.0, help="seconds between saved training states"
        )
        sub.add_argument(
            "--track", action="append", default=[], metavar="TRACKER",
            help="tell trackio, tensorboard or wandb the numbers as they come; may be repeated (default: none)",
        )  # fmt: skip

    def of_hub(sub: argparse.ArgumentParser, what: str) -> None:
        sub.add_argument("--push", metavar="OWNER/NAME", help=f"{what}; a new one is private")
        sub.add_argument("--public", action="store_true", help="with --push, for everybody to see if it is new there")

    run_words = command("run", run, "run everything a study needs, then make its report; the same command resumes")
    of_study(run_words)
    of_machine(run_words)
    mine = command(
        "compare", compare, "is offline enough for your policy and your pairs? the decision, with its uncertainty"
    )
    mine.add_argument("--policy", required=True, help="your SFT model: a local folder or a hub name")
    mine.add_argument("--task", required=True, help="your preference file, or a folder with train.* and test.*")
    mine.add_argument(
        "--budget", choices=["small", "medium"], default="small", help="how long, how many (default: small)"
    )
    mine.add_argument("--seeds", type=int, help="how often all is repeated (default: as the budget says)")
    mine.add_argument(
        "--kl", type=float, metavar="NATS", help="KL from your model of the policy you will deploy, at which it is "
        "decided (default: where the best checkpoint of either arm lies)"
    )  # fmt: skip
    mine.add_argument("--plan", action="store_true", help="only say what would run")
    mine.add_argument(
        "--forecast", action="store_true", help="only forecast online's lead, from short offline runs (see `forecast`)"
    )
    of_settings(mine)
    of_machine(mine)
    ahead = command("forecast", forecast, "before any online run: how far ahead will online be, from its offline twin?")
    of_study(ahead)
    ahead.add_argument("--steps", type=positive, help="length of the runs (default: a quarter of the study's)")
    of_machine(ahead)
    gauge = command("measure", measure, "put checkpoints of any trainer on the chart: exact KL, win rates, a report")
    add_measure(gauge)
    best = command("pick", pick, "which checkpoint to deploy at a KL budget, with the doubt")
    add_pick(best)
    plan_words = command("plan", plan, "what would run, what is there already, and how long the rest may take")
    of_study(plan_words)
    plan_words.add_argument(
        "--pilot", type=Path, help="output folder of a finished run: also say what the study would see"
    )
    plan_words.add_argument("--detect", type=float, metavar="D", help="difference in win rate to see (default: 0.05)")
    look = command("inspect", inspect, "how a preference file is read: counts, and three rows as text and as tokens")
    look.add_argument("file", help="a preference file, or a folder with train.* and test.*")
    look.add_argument("--policy", help="also show tokens, as `compare` would give them to this model")
    look.add_argument("--study", help="also show tokens, as this study would make them (its task reads the file)")
    look.add_argument(
        "--set", dest="sets", action="append", default=[], metavar="KEY=VALUE", help="override a setting of the study"
    )
    report_words = command("report", report, "rebuild a report from its records")
    report_words.add_argument("out", type=Path, help="output folder of a run")
    of_hub(report_words, "send the records as a data set and the page as a static Space of that name to the hub")
    show_words = command("show", show, "the numbers of a run, in the terminal")
    show_words.add_argument("out", type=Path, help="output folder of a run")
    show_words.add_argument("--failures", action="store_true", help="only what failed or went wrong, and at which step")
    diff_words = command("diff", diff, "in which settings two arms of a study differ")
    of_study(diff_words)
    diff_words.add_argument("left")
    diff_words.add_argument("right")
    t5x = command("import-t5x", import_t5x, "write a T5X checkpoint of a T5 1.1 model as a Hugging Face folder")
    t5x.add_argument("checkpoint", type=Path, help="the folder checkpoint_STEP of a T5X run")
    t5x.add_argument("--to", type=Path, required=True, help="the folder to write; must not exist or be empty")
    t5x.add_argument("--gin", type=Path, help="gin model configuration, whose sizes are checked against the arrays")
    t5x.add_argument(
        "--tokenizer", help="folder or hub name of the tokenizer to put beside it, e.g. google/t5-v1_1-large"
    )
    leave = command("export", export, "a trained policy as a Hugging Face folder with a model card")
    leave.add_argument("out", type=Path, help="output folder of a run")
    leave.add_argument("run", help="RUN or RUN@STEP: a run's name, or words that only one has, as online")
    leave.add_argument(
        "--to", type=Path, help="the folder to write; must not exist or be empty; needed where --push is not given"
    )
    of_hub(leave, "send the model with its card to the Hugging Face hub")
    leave.add_argument("--store", type=Path, help="folder of shared artifacts (default: store/ beside the outputs)")
    add_ratings(
        command("ratings", ratings, "people in the loop: a blind sheet out, their choices in, the gap corrected")
    )
    hold = command("check", check_store, "hold a store of artifacts against its checksums")
    hold.add_argument("store", type=Path, help="folder of artifacts, store/ beside the outputs by default")
    world = command("exact", exact, "a world where everything is exact: predicted from the theory first, then trained")
    add_exact(world)
    listing = command("list", list_names, "what can be named in a study")
    listing.add_argument(
        "shelf", choices=["losses", "judges", "tasks", "behaviors", "rollouts", "hypotheses", "studies"]
    )
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command; its exit code is 0, 1 for a failed run, 2 for bad input, 130 where it was stopped."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        args = parser().parse_args(words)
        return int(args.act(args, words))
    except AligngapError as error:
        if debug:
            raise
        complain(one_line(error))
        return 2
    except RunFailed as error:
        if debug:
            raise
        complain(one_line(error))
        return 1
    except KeyboardInterrupt:
        complain("stopped; go on with the same command")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if debug:
            raise
        from aligngap.storage.files import disk_line

        complain(one_line(disk_line(error, "writing")))
        return 1


def complain(line: str) -> None:
    """Say a line on stderr; of several processes that know it, the first one says it."""
    from aligngap.execute.together import in_world

    if not in_world() or os.environ["RANK"] == "0":
        print(f"aligngap: {line}", file=sys.stderr)


def prepare(args: argparse.Namespace) -> tuple[Plan, Any, Path]:
    """The plan of a study, the store and the output folder; every check that needs no compute is made here."""
    from aligngap.pipeline.plan import expand
    from aligngap.storage.store import Store
    from aligngap.study.load import load

    study = load(args.study, args.sets)
    out = args.out or Path("out") / study.name
    return expand(study), Store(args.store or out.parent / "store"), out


def run(args: argparse.Namespace, words: Sequence[str]) -> int:
    """`aligngap run`: everything a study needs, then its report."""
    return carry_out(args, words, *prepare(args))


def compare(args: argparse.Namespace, words: Sequence[str]) -> int:
    """`aligngap compare`: the study of a user's own policy and pairs, and its recommendation."""
    from aligngap.execute.checks import check_models
    from aligngap.execute.console import print_data, print_plan
    from aligngap.pipeline.plan import expand
    from aligngap.storage.store import Store
    from aligngap.study.own import check_pairs, own_study, remarks

    study = own_study(args.policy, args.task, args.budget, args.seeds, args.sets, args.kl)
    if args.forecast:
        from aligngap.study.forecast import forecast_study

        study = forecast_study(study)
    out = args.out or Path("out") / study.name
    check_pairs(study)
    made, store = expand(study), Store(args.store or out.parent / "store")
    check_models(study)
    for line in remarks(study, args.budget, args.sets):
        print(f"aligngap: {line}", file=sys.stderr)
    if args.plan:
        from aligngap.execute.checks import check_data

        print_data(check_data(made, store))
        print_plan(made, store, out)
        return 0
    return carry_out(args, words, made, store, out, print_forecast if args.forecast else print_report)


def forecast(args: argparse.Namespace, words: Sequence[str]) -> int:
    """`aligngap forecast`: short offline runs that say how far ahead online will be."""
    from aligngap.pipeline.plan import expand
    from aligngap.storage.store import Store
    from aligngap.study.forecast import forecast_study
    from aligngap.study.load import load

    study = forecast_study(load(args.study, args.sets), args.steps)
    out = args.out or Path("out") / study.name
    return carry_out(args, words, expand(study), Store(args.store or out.parent / "store"), out, print_forecast)


def print_report(out: Path) -> None:
    """Make the report of an output folder's records, and say its numbers."""
    from aligngap.execute.console import stages
    from aligngap.report import build_report, headline

    with stages("report") as progress:
        page = build_report(out, progress=progress)
    print(headline(out))
    print(f"report: {page}")


def print_forecast(out: Path) -> None:
    """Say what the records of a forecast's runs expect of online."""
    from aligngap.report.forecast import write_forecast

    print(write_forecast(out))


def carry_out(
    args: argparse.Namespace,
    words: Sequence[str],
    made: Plan,
    store: Any,
    out: Path,
    tell: Callable[[Path], None] = print_report,
) -> int:
    """Run a plan to its end, collect its records and tell what they say: by default, make their report."""
    from aligngap.execute import checks

    if os.environ.get("RANK", "0") == "0":  # of several processes the first one looks
        checks.check_data(made, store)  # before anything heavy is imported: bad input is refused soon
    from aligngap.execute.collect import collect
    from aligngap.execute.refresh import Refresher
    from aligngap.execute.together import Together, in_world, launch
    from aligngap.execute.watch import follow, watch
    from aligngap.storage.files import check_writable
    from aligngap.storage.records import write_failures

    processes = checks.pick_processes(args, made)
    if processes > 1 and not in_world():
        return launch(words, processes, args.threads)
    executor = checks.pick_executor(args, store, checks.pick_tracking(args, made, out))
    if isinstance(executor, Together) and executor.world.rank > 0:
        follow(executor, made)
        return 0
    checks.check_models(made.study)
    checks.check_judges(made, store)
    store.prepare()
    check_writable(out)
    damaged: set[str] = set()
    while True:
        with Refresher(made, store, out, shlex.join(["aligngap", *words])) as refresher:
            outcome = watch(executor, made, refresher.notice)
        try:
            count = collect(made, store, out, shlex.join(["aligngap", *words]))
            break
        except Damaged as error:
            if not error.name or error.name in damaged:
                raise
            damaged.add(error.name)
            store.set_aside(error.name)
    write_failures(out, {name: one_line(message) for name, message in outcome.failed.items()})
    if count:
        tell(out)
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

    if args.policy is not None and args.study is not None:
        raise AligngapError("--policy and --study both say how text becomes tokens; leave one of them out")
    if args.policy is not None:
        study = own_study(args.policy, args.file, sets=args.sets)
    elif args.study is not None:
        study = load(args.study, [*args.sets, f"task.path={json.dumps(args.file)}"])
    else:
        if args.sets:
            raise AligngapError("--set changes a study; add --study or --policy")
        print_inspection(inspect_texts(build_task({"name": "pairs", "path": args.file}).load(0)))
        return 0
    print_inspection(inspect_tokens(study))
    return 0


def report(args: argparse.Namespace, words: Sequence[str]) -> int:
    """`aligngap report`: the page and the figures of a run, made anew from its records; to the hub if asked."""
    from aligngap.exchange.hub import push_report
    from aligngap.execute.console import stages
    from aligngap.report import build_report

    hub = asked_hub(args)
    with stages("report") as progress:
        page = build_report(args.out, progress=progress)
    print(f"report: {page}")
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


if __name__ == "__main__":
    sys.exit(main())
