"""The documentation as a site: `make docs-site` builds it with Sphinx, and a link that leads nowhere is an error.

Its pages are the Markdown files of this repository as they stand, read from the repository's root, so that their links
to one another are those that a forge follows; the reference is made from the docstrings, into out/.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from sphinx.application import Sphinx

from aligngap import __version__

ROOT = Path(__file__).resolve().parents[1]

project, author, release = "aligngap", "the aligngap authors", __version__
project_copyright = author
root_doc = "README"
#: modules of the reference: what people call who work from Python or add a part of their own
MODULES = [
    "instrument", "types", "losses", "corrections", "streams", "fit", "measurement", "registry", "settings",
    "study.load", "study.build", "tasks.pairs", "tasks.sandbox",
    "judges.function", "judges.preference_model", "judges.reward_model", "models.policy",
    "models.loading", "models.rollout", "pipeline.plan", "execute.collect", "storage.store", "storage.records",
    "stats.compare", "stats.frontier", "stats.power", "hypotheses.base", "report", "exchange.export", "exchange.hub",
    "integrations.trl",
]  # fmt: skip
#: what stands in the side bar, under its headings; other pages of docs/ stand under "More"
PARTS = {
    "Use": [
        "docs/install", "docs/measure", "docs/compare", "docs/trl", "docs/ratings", "docs/data",
        "docs/studies", "docs/models", "docs/judges", "docs/records", "examples/decision",
    ],
    "Understand": [
        "Words <docs/index>", "docs/hypotheses", "docs/theory", "docs/paper", "results/README", "benchmarks/README",
    ],
    "Rely on": ["docs/reliability", "docs/cluster", "docs/scale"],
    "Extend": ["docs/adding", "docs/reading", "out/api/index", "CHANGELOG", "dev/LOG"],
}  # fmt: skip

extensions = ["myst_nb", "sphinx.ext.autodoc"]
include_patterns = [
    "README.md", "CHANGELOG.md", "docs/*.md", "benchmarks/README.md", "results/README.md", "results/*/summary.md",
    "examples/*.ipynb", "dev/LOG.md",
    "out/api/*.rst",
]  # fmt: skip
exclude_patterns = [".*", "src", "tests", "build", "**/.*"]

highlight_language = "text"
myst_heading_anchors = 4
nb_execution_mode = "off"  # a notebook shows what it gave when it was run: `make notebook` runs it

autodoc_mock_imports = ["vllm"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
default_role = "code"

html_theme = "furo"
html_title = "aligngap"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}


def write_reference(app: Sphinx) -> None:
    """A page for each module of the reference, of nothing but the name: autodoc fills it from the docstrings."""
    folder = ROOT / "out" / "api"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names = [f"aligngap.{module}" for module in MODULES]
    for name in names:
        text = f"{name}\n{'=' * len(name)}\n\n.. automodule:: {name}\n   :members:\n"
        (folder / f"{name}.rst").write_text(text, encoding="utf-8")
    tree = "".join(f"   {name}\n" for name in names)
    (folder / "index.rst").write_text(f"Reference\n=========\n\n.. toctree::\n\n{tree}", encoding="utf-8")


def add_parts(app: Sphinx, name: str, source: list[str]) -> None:
    """The side bar's tree, which a forge's reader has no use for, is added to the front page as it is read."""
    if name.startswith("results/") and name.endswith("/summary"):
        source[0] = "---\norphan: true\n---\n\n" + source[0]  # reached by links, not from the side bar
    if name == root_doc:
        known = {page for pages in PARTS.values() for page in pages} | {"docs/index"}
        others = sorted({f"docs/{page.stem}" for page in (ROOT / "docs").glob("*.md")} - known)
        trees = [
            f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n" + "\n".join(pages) + "\n```"
            for title, pages in {**PARTS, "More": others}.items()
            if pages
        ]
        source[0] += "\n\n" + "\n\n".join(trees) + "\n"


def keep_bars(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Bars in a docstring are absolute values, not reStructuredText's substitutions."""
    for i, line in enumerate(lines):
        said = line.split("`")
        said[::2] = [part.replace("|", "\\|") for part in said[::2]]  # what stands in back-ticks stays as it is
        lines[i] = "`".join(said)


def begin_at_the_front_page(app: Sphinx, error: Exception | None) -> None:
    if error is None:
        shutil.copy(Path(app.outdir) / "README.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", write_reference)
    app.connect("source-read", add_parts)
    app.connect("autodoc-process-docstring", keep_bars)
    app.connect("build-finished", begin_at_the_front_page)
