"""The wheel as a stranger installs it: `python tests/wheel.py`, or `make wheel-test`. Needs uv and a package index.

The wheel is built, held against the sources, installed with the pinned versions into an environment of nothing else,
and used outside the repository. uv resolves every extra. `--all` also goes through pipx, through the script with inline
metadata and, command by command, through the Dockerfile.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
UV = str(BIN / "uv")
LIMITS = ROOT / "constraints.txt"
TINY = """
name: tiny
question: Does an installed aligngap run?
task: {name: sandbox, train_pairs: 160, test_pairs: 40}
tokenizer: {kind: word, vocabulary: 300}
limits: {prompt_tokens: 16, response_tokens: 12}
policy:
  model_type: t5
  config: {d_model: 16, d_kv: 8, d_ff: 32, num_layers: 1, num_decoder_layers: 1, num_heads: 2}
sft: {steps: 4, batch: 16, learning_rate: 1.0e-2}
golden: {optimization: {steps: 2, batch: 16, learning_rate: 1.0e-3}}
proxy: {optimization: {steps: 2, batch: 16, learning_rate: 1.0e-3}}
recipe: {loss: {name: ipo, beta: 0.1}, optimization: {steps: 4, batch: 8, learning_rate: 3.0e-3}}
measurement: {checkpoints: [2], prompts: 16, kl_prompts: 8, pairs: 16, samples: 2, opponents: [sft], best_of_n: 0}
arms:
  online: {behavior: policy, judge: proxy}
  offline: {behavior: dataset, judge: golden}
"""


def environment(**more: str) -> dict[str, str]:
    """Nothing of this checkout's own; what pip is told of local wheels, uv is told too."""
    own = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "UV_CONSTRAINT")}
    own |= {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "120", "UV_CONSTRAINT": str(LIMITS)}
    if links := os.environ.get("PIP_FIND_LINKS"):
        own["UV_FIND_LINKS"] = links
    return own | more


def beside(wheel: Path, **more: str) -> dict[str, str]:
    """The environment in which uv finds the wheel by its name; `--find-links` would take the place of other folders."""
    own = environment(**more)
    return own | {"UV_FIND_LINKS": ",".join(filter(None, (own.get("UV_FIND_LINKS"), str(wheel.parent))))}


def call(*words: str | Path, cwd: Path, env: dict[str, str] | None = None, says: str = "") -> str:
    """What a command prints; it must end well, without a traceback, and say what it should."""
    done = subprocess.run(
        [str(w) for w in words], cwd=cwd, env=env or environment(), capture_output=True, text=True, timeout=1500
    )
    told = done.stdout + done.stderr
    if done.returncode or "Traceback" in told or says not in told:
        raise AssertionError(f"{' '.join(map(str, words))}: exit code {done.returncode}\n{told[-3000:]}")
    return done.stdout


def build(folder: Path) -> Path:
    """The wheel of the sources as they stand, built in a copy so that nothing is left behind here."""
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    call(UV, "build", "--wheel", "--out-dir", folder / "dist", cwd=source, env=environment(UV_CONSTRAINT=""))
    [wheel] = (folder / "dist").glob("*.whl")
    return wheel


def complete(wheel: Path) -> None:
    """Every file of the package is in the wheel, and nothing else but its metadata and licence."""
    package = ROOT / "src" / "aligngap"
    ours = {f"aligngap/{p.relative_to(package)}" for p in package.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    with zipfile.ZipFile(wheel) as packed:
        inside = {name for name in packed.namelist() if ".dist-info/" not in name}
        licence = [name for name in packed.namelist() if name.endswith("LICENSE")]
    assert inside == ours, f"not in the wheel: {sorted(ours - inside)}; only there: {sorted(inside - ours)}"
    assert licence


def resolvable(folder: Path, wheel: Path) -> None:
    """Each extra can be installed with the pinned versions; vLLM's, which pins its own, without them."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in extras:
        asked = folder / f"{extra}.in"
        asked.write_text(f"aligngap[{extra}] @ {wheel.as_uri()}\n")
        free = environment(UV_CONSTRAINT="") if extra == "vllm" else environment()
        call(UV, "pip", "compile", "-q", asked, "-o", folder / f"{extra}.txt", cwd=folder, env=free)


def use(command: list[str | Path], folder: Path) -> None:
    """The commands of a first hour, outside the repository."""
    folder.mkdir()
    (folder / "tiny.yaml").write_text(TINY)
    call(*command, "--help", cwd=folder, says="usage: aligngap")
    call(*command, "list", "studies", cwd=folder, says="paper/tldr")
    call(*command, "plan", "opening", cwd=folder, says="online")
    call(
        *command,
        "run",
        "tiny.yaml",
        "--device",
        "cpu",
        "--workers",
        "2",
        cwd=folder,
        says="report: out/tiny/report.html",
    )
    call(*command, "report", "out/tiny", cwd=folder, says="report: out/tiny/report.html")
    call(*command, "export", "out/tiny", "online", "--to", "policy", cwd=folder, says="policy")


def installed(folder: Path, wheel: Path) -> None:
    """A fresh environment has the command and nothing of development's, and the package brings its types."""
    call(UV, "venv", "-q", "--python", sys.executable, folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    call(UV, "pip", "install", "-q", "--python", python, wheel, cwd=folder)
    for absent in ("pytest", "mypy", "accelerate"):
        asked = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{absent}') is not None)"
        call(python, "-c", asked, cwd=folder)
    use([folder / "venv" / "bin" / "aligngap"], folder / "used")
    call(python, "-m", "aligngap", "--version", cwd=folder, says="aligngap ")


def by_uvx(folder: Path, wheel: Path) -> None:
    """`uvx aligngap`, where the wheel is to be found."""
    words = ("tool", "run", "--python", sys.executable, "aligngap", "list", "losses")
    call(UV, *words, cwd=folder, env=beside(wheel), says="ipo")


def by_pipx(folder: Path, wheel: Path) -> None:
    """`pipx install`: the command on the path."""
    own = environment(PIPX_HOME=str(folder / "pipx"), PIPX_BIN_DIR=str(folder / "bin"), PIP_CONSTRAINT=str(LIMITS))
    call(UV, "tool", "run", "pipx", "install", "--python", sys.executable, wheel, cwd=folder, env=own)
    call(folder / "bin" / "aligngap", "list", "losses", cwd=folder, env=own, says="ipo")


def by_script(folder: Path, wheel: Path) -> None:
    """`uv run examples/job.py`: its own lines say what it needs."""
    place = folder / "job"
    place.mkdir()
    (place / "tiny.yaml").write_text(TINY)
    pinned = [line for line in LIMITS.read_text().splitlines() if line and not line.startswith("#")]
    text = (ROOT / "examples" / "job.py").read_text()
    head, mark, rest = text.partition("\n# ///\n")  # uv takes a script's constraints from its own lines alone
    limits = f"\n# [tool.uv]\n# constraint-dependencies = {json.dumps(pinned)}"
    (place / "job.py").write_text(head + limits + mark + rest)
    run = (UV, "run", "--python", sys.executable, "job.py", "tiny.yaml")
    call(*run, "--", "--device", "cpu", cwd=place, env=beside(wheel), says="report: out/tiny/report.html")
    offline = beside(wheel, HF_HUB_OFFLINE="1", HF_TOKEN="hf_of_a_test")
    done = subprocess.run(
        [str(w) for w in (*run, "--push", "me/x")], cwd=place, env=offline, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 2, done.stderr
    assert "HF_HUB_OFFLINE is set" in done.stderr


def by_dockerfile(folder: Path, wheel: Path) -> None:
    """Built where a Docker engine answers; else the Dockerfile's commands, one by one, in a folder for its root."""
    if shutil.which("docker") and not subprocess.run(["docker", "info"], capture_output=True).returncode:
        call("docker", "build", "-t", "aligngap-wheel-test", ROOT, cwd=folder)
        call("docker", "run", "--rm", "aligngap-wheel-test", "list", "losses", cwd=folder, says="ipo")
        return
    stages: dict[str, Path] = {}
    entry: list[str] = []
    root, work, own = folder, Path("/"), environment()
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    for line in (text for text in lines if text and not text.startswith("#")):
        word, _, rest = line.partition(" ")
        words = rest.split()
        if word == "FROM":
            name = words[2] if words[1:2] == ["AS"] else f"stage-{len(stages)}"
            root = stages[name] = folder / "docker" / name
            call(UV, "venv", "-q", "--seed", "--python", sys.executable, root / "python", cwd=folder)
            own = environment(PATH=f"{root / 'python' / 'bin'}:{os.environ['PATH']}")
        elif word == "WORKDIR":
            work = Path(rest)
            (root / rest.strip("/")).mkdir(parents=True, exist_ok=True)
        elif word == "COPY":
            start = ROOT
            if words[0].startswith("--from="):
                start = stages[words.pop(0).removeprefix("--from=")]
            *sources, to = words
            for source in sources:
                copy(start / source.strip("/"), root / str(work).strip("/") / to)
        elif word == "RUN":
            call("sh", "-c", rest, cwd=root / str(work).strip("/"), env=own)
        elif word == "ENTRYPOINT":
            entry = [str(root / "python" / "bin" / w.strip('[]" ')) for w in rest.split(",")]
        else:
            assert word in ("ENV", "USER", "CMD"), f"Dockerfile: {word} is not known to this test"
    call(*entry, "list", "losses", cwd=root / "study", says="ipo")


def copy(source: Path, to: Path) -> None:
    """As Dockerfile's COPY: a folder's content, or a file into a folder."""
    if source.is_dir():
        shutil.copytree(source, to, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    else:
        shutil.copy(source, to)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="also pipx, the script with inline metadata, the Dockerfile")
    args = parser.parse_args()
    ways: list[Callable[[Path, Path], None]] = [resolvable, installed, by_uvx]
    if args.all:
        ways += [by_pipx, by_script, by_dockerfile]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        wheel = build(folder)
        complete(wheel)
        for way in ways:
            way(folder, wheel)
            print(f"{way.__name__}: ok", flush=True)
    print(f"{len(ways) + 1} passed, 0 failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
