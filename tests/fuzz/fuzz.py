"""Coverage-guided fuzzing of what reads files: `python tests/fuzz/fuzz.py study|data|records SECONDS`.

Needs `pip install atheris`. Starts from valid files and reports an input that ends in anything but data or a one-line
error; libFuzzer then writes it to `crash-*`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["aligngap", "yaml", "json", "csv", "gzip"]):
    from seeds import SEEDS
    from targets import TARGETS

if __name__ == "__main__":
    name, seconds = sys.argv[1], sys.argv[2]
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(SEEDS[name]()):
            (Path(corpus) / str(number)).write_bytes(seed)
        words = [sys.argv[0], corpus, f"-max_total_time={seconds}", "-rss_limit_mb=4096", "-timeout=20"]
        atheris.Setup(words, TARGETS[name])
        atheris.Fuzz()
