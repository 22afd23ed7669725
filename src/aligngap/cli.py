"""The command line: parse, call, print.

Exit code 2 for bad input, 1 for a failed run; a traceback only with --debug.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from aligngap import __version__
from aligngap.commands import (
    check_store,
    compare,
    diff,
    exact,
    export,
    forecast,
    import_t5x,
    inspect,
    list_names,
    measure,
    pick,
    plan,
    ratings,
    report,
    run,
    show,
)
from aligngap.exact.arguments import add_arguments as add_exact
from aligngap.instrument.arguments import add_measure, add_pick
from aligngap.ratings.arguments import add_arguments as add_ratings
from aligngap.types import AligngapError, RunFailed, one_line

#: What a command does with its arguments and its own words; the exit code.
Action = Callable[[argparse.Namespace, Sequence[str]], int]

STUDY, RECORDS = "{study}: reading the study and its data", "{out}: reading its records"
#: What each command says first, with its arguments' values, before anything heavy is imported.
BEGINS = {
    "run": STUDY,
    "compare": "{policy}, {task}: reading the model and the pairs",
    "forecast": STUDY,
    "measure": "{reference}: reading the models and the prompts",
    "pick": RECORDS,
    "plan": STUDY,
    "inspect": "{file}: reading its rows",
    "report": RECORDS,
    "show": RECORDS,
    "diff": STUDY,
    "import-t5x": "{checkpoint}: reading its arrays",
    "export": "{out}: looking for {run}",
    "ratings": RECORDS,
    "check": "{store}: reading every file",
    "exact": "{world}: making the world",
    "list": "{shelf}: looking them up",
}


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
        sub.add_argument(
            "--compile", dest="sets", action="append_const", const="policy.compile=true",
            help="compile parts of the policy for gradient steps; the same as --set policy.compile=true",
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
        say(one_line(BEGINS[args.command].format(**vars(args))) + " …")
        return int(args.act(args, words))
    except AligngapError as error:
        if debug:
            raise
        say(one_line(error))
        return 2
    except RunFailed as error:
        if debug:
            raise
        say(one_line(error))
        return 1
    except KeyboardInterrupt:
        say("stopped; go on with the same command")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if debug:
            raise
        from aligngap.storage.files import disk_line

        say(one_line(disk_line(error, "writing")))
        return 1


def say(line: str) -> None:
    """Say a line on stderr; of several processes that know it, the first one says it."""
    from aligngap.parallel.world import in_world

    if not in_world() or os.environ["RANK"] == "0":
        print(f"aligngap: {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
