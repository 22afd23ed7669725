"""How soon a report's page is drawn: `python benchmarks/page.py OUT/report.html [--shots FOLDER]`.

The page is loaded several times by headless Chromium, which is asked over its debugging port for the seconds of CPU
that the page's own thread has spent until every chart outside folded sections is drawn: reading, scripts, styles and
layout. CPU time is what a busy machine disturbs least; the wall time that the page itself has measured stands beside
it. Needs chromium and websockets. `--shots` keeps pictures of the whole page at three widths.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

WIDTHS = (390, 820, 1440)  #: a telephone, a tablet, a desk
PARTS = ("ScriptDuration", "LayoutDuration", "RecalcStyleDuration", "TaskDuration")
WAIT = 120.0  #: seconds until a page that is not drawn is given up


class Page:
    """A tab of a headless browser, asked over its debugging protocol."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection, self.numbers = connection, itertools.count(1)

    def ask(self, method: str, **given: Any) -> dict[str, Any]:
        """The answer to one command; events that come before it are passed over."""
        number = next(self.numbers)
        self.connection.send(json.dumps({"id": number, "method": method, "params": given}))
        while True:
            found = json.loads(self.connection.recv())
            if found.get("id") == number:
                if "error" in found:
                    raise SystemExit(f"{method}: {found['error']['message']}")
                answer: dict[str, Any] = found["result"]
                return answer

    def spent(self) -> dict[str, float]:
        """Seconds of CPU of the page's thread so far, by part."""
        metrics = {m["name"]: m["value"] for m in self.ask("Performance.getMetrics")["metrics"]}
        return {name: metrics[name] for name in PARTS}

    def load(self, address: str, width: int) -> tuple[dict[str, float], float]:
        """Load a page at a width: seconds of CPU by part until it is drawn, and the milliseconds that it says."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.ask("Page.navigate", url="about:blank")
        self.ask("Performance.disable")
        self.ask("Performance.enable", timeDomain="threadTicks")
        before = self.spent()
        self.ask("Page.navigate", url=address)
        until = time.monotonic() + WAIT
        while time.monotonic() < until:
            drawn = self.ask("Runtime.evaluate", expression="document.body && document.body.dataset.drawnIn")
            if drawn["result"].get("value"):
                after = self.spent()
                return {name: after[name] - before[name] for name in PARTS}, float(drawn["result"]["value"])
            time.sleep(0.05)
        raise SystemExit(f"{address}: not drawn within {WAIT:g} s; is it a report of aligngap?")

    def shoot(self, to: Path) -> None:
        """A picture of the whole page."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 16000), "scale": 1}
        made = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        to.write_bytes(base64.b64decode(made["data"]))


def address_of(profile: Path) -> str:
    """Where a tab of the browser that keeps its files in `profile` listens."""
    until = time.monotonic() + WAIT
    while time.monotonic() < until:
        try:
            port = (profile / "DevToolsActivePort").read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                tabs = json.load(answer)
            return str(next(tab for tab in tabs if tab["type"] == "page")["webSocketDebuggerUrl"])
        except (OSError, IndexError, StopIteration):
            time.sleep(0.1)
    raise SystemExit("the browser does not listen")


def main() -> None:
    """Load the page several times and say what it took."""
    words = argparse.ArgumentParser(description="how soon a report's page is drawn")
    words.add_argument("page", type=Path)
    words.add_argument("--loads", type=int, default=5)
    words.add_argument("--shots", type=Path, help="a folder for pictures of the page at three widths")
    args = words.parse_args()
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("needs chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        profile = Path(place)
        process = subprocess.Popen(
            [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
             f"--user-data-dir={profile}", "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            with connect(address_of(profile), max_size=None) as connection:
                page = Page(connection)
                found = [page.load(args.page.resolve().as_uri(), 1440) for _ in range(args.loads)]
                if args.shots:
                    args.shots.mkdir(parents=True, exist_ok=True)
                    for width in WIDTHS:
                        page.load(args.page.resolve().as_uri(), width)
                        page.shoot(args.shots / f"{width}.png")
        finally:
            process.terminate()
            process.wait()
    whole = sorted(cpu["TaskDuration"] for cpu, _ in found)
    wall = sorted(ms / 1000 for _, ms in found)
    parts = ", ".join(
        f"{name.removesuffix('Duration').lower()} {statistics.median(cpu[name] for cpu, _ in found):.2f}"
        for name in PARTS[:-1]
    )
    print(f"{args.page}: {args.page.stat().st_size / 1e6:.2f} MB, {args.loads} loads")
    print(
        f"  CPU of the page's thread until drawn: {statistics.median(whole):.2f} s ({whole[0]:.2f} to {whole[-1]:.2f})"
    )
    print(f"  of which {parts}")
    print(f"  wall, by the page: {statistics.median(wall):.2f} s ({wall[0]:.2f} to {wall[-1]:.2f})")


if __name__ == "__main__":
    main()
