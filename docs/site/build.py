"""Builds the static site: `make site`, or `python docs/site/build.py [OUT] [--runs DIR …]`.

The documents stay as they are; their copies are put together under `build/site/source` with what they lack there: a
page for each method (a section of `METHODS`, with its example from `docs/site/examples` run and pictured), the
tutorials, the reference from docstrings, and with `--runs` the page of experiments. Sphinx does the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pkgutil
import re
import runpy
import shutil
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
PACKAGES = ("activations", "sae", "features", "configs")
"""Packages that are described; `ui` shows what these compute, and its pages speak for themselves."""
METHODS = ("analyses.md", "circuits.md", "probes.md", "behaviour.md")
"""Documents whose sections are methods, each a page of its own."""
NOT_METHODS = ("All of them",)
CHAPTERS = {
    "Use": (
        "training",
        "evaluation",
        "indexing",
        "explanations",
        "questions",
        "browser",
        "steering",
        "comparison",
        "sharing",
    ),
    "Facts": ("models", "limits", "formats", "tables", "parallel", "performance", "log"),
}


def main() -> None:
    """Builds, and ends with Sphinx's exit code: 1 where it warned of anything."""
    asked = argparse.ArgumentParser(description="Build the static site.")
    asked.add_argument("out", nargs="?", type=Path, default=ROOT / "build" / "site" / "html")
    asked.add_argument("--runs", nargs="*", type=Path, default=[], help="run folders, for the page of experiments")
    given = asked.parse_args()
    source = given.out.parent / "source"
    assemble(source, given.runs)
    from sphinx.cmd.build import main as sphinx

    extra = ["-D", f"html_extra_path={source / 'extra'}"] if given.runs else []
    code = sphinx(["-b", "html", "-c", str(HERE), "-W", "--keep-going", *extra, str(source), str(given.out)])
    if not code:
        sys.stdout.write(f"the site stands at {given.out / 'README.html'}\n")
    sys.exit(code)


def assemble(source: Path, runs: Sequence[Path] = ()) -> None:
    """Puts together the pages that Sphinx reads, in an empty folder `source`."""
    if source.exists():
        shutil.rmtree(source)
    docs = source / "docs"
    shutil.copytree(ROOT / "docs", docs, ignore=shutil.ignore_patterns("site", "*.py", "__pycache__"))
    shutil.copytree(ROOT / "docs" / "tutorials", docs / "tutorials", dirs_exist_ok=True)
    (source / "configs").mkdir()
    shutil.copy(ROOT / "configs" / "demo.yaml", source / "configs")
    for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, source)
    limits = (ROOT / "ui" / "assets" / "about.html").read_text(encoding="utf-8")
    (docs / "limits.md").write_text(f"# Limits and responsible use\n```{{raw}} html\n{limits}\n```\n", encoding="utf-8")
    methods = [page for name in METHODS if (docs / name).exists() for page in divide(docs / name)]
    reference = list(write_reference(docs / "reference"))
    chapters = {
        "Learn": ["docs/learn/index"],
        **{title: [f"docs/{name}" for name in names] for title, names in CHAPTERS.items()},
        "Methods": [f"docs/{Path(name).stem}" for name in METHODS if (docs / name).exists()],
        "Reference": [f"docs/reference/{name}" for name in PACKAGES],
        "Project": ["ARCHITECTURE", "CONTRIBUTING", "CHANGELOG"],
    }
    if runs:
        chapters["Facts"].append(write_experiments(docs, runs))
    with (source / "README.md").open("a", encoding="utf-8") as readme:
        for title, pages in chapters.items():
            readme.write(toctree(pages, title, hidden=True))
    assert methods, "no document of methods has sections"
    assert reference, "no module has a docstring"


def toctree(pages: Sequence[str], caption: str = "", hidden: bool = False) -> str:
    """Returns the list of `pages` (from the root of the source) as navigation."""
    options = [f":caption: {caption}"] if caption else []
    options += [":hidden:"] if hidden else [":maxdepth: 1"]
    return "\n".join(["", "```{toctree}", *options, "", *(f"/{page}" for page in pages), "```", ""])


def divide(document: Path) -> list[str]:
    """Writes a page for each section of `document`, and leaves their list in their place; returns the pages."""
    head, *sections = re.split(r"^## ", document.read_text(encoding="utf-8"), flags=re.MULTILINE)
    pages, kept = [], [head]
    folder = document.with_suffix("")
    folder.mkdir()
    for section in sections:
        title, body = section.split("\n", 1)
        if title in NOT_METHODS:
            kept.append(f"## {section}")
            continue
        name = re.sub(r"\W+", "_", title.lower()).strip("_")
        body = re.sub(r"^###", "##", body, flags=re.MULTILINE)
        body = re.sub(r"\]\((?!https?:|#|\.\./)([^)]+)\)", r"](../\1)", body)
        (folder / f"{name}.md").write_text(f"# {title}\n{body}{example(name, folder)}", encoding="utf-8")
        pages.append(f"docs/{folder.name}/{name}")
    document.write_text("".join([kept[0], toctree(pages), "\n", *kept[1:]]), encoding="utf-8")
    return pages


def example(name: str, folder: Path) -> str:
    """Returns the example of a method as it ran: its code, what it printed, its pictures; nothing where there is none.

    An example writes its pictures (.svg) into the folder that it runs in."""
    script = HERE / "examples" / f"{name}.py"
    if not script.exists():
        return ""
    said, ran = io.StringIO(), folder / name
    ran.mkdir()
    with contextlib.chdir(ran), contextlib.redirect_stdout(said):
        runpy.run_path(str(script), run_name="__main__")
    pictures = "".join(f"\n![{path.stem}]({name}/{path.name})\n" for path in sorted(ran.rglob("*.svg")))
    code = script.read_text(encoding="utf-8").split('"""', 2)[2].strip()
    printed = f"\n```text\n{said.getvalue().rstrip()}\n```\n" if said.getvalue().strip() else ""
    return f"\n## Example\n```python\n{code}\n```\n{printed}{pictures}"


def write_reference(folder: Path) -> Sequence[str]:
    """Writes a page for each package with its modules, and one for each module; returns the modules' names."""
    folder.mkdir()
    written: list[str] = []
    for package in PACKAGES:
        names = [found.name for found in pkgutil.walk_packages([str(ROOT / package)], f"{package}.")]
        about = {
            name: (import_module(name).__doc__ or "").split("\n\n")[0].replace("\n", " ") for name in [package, *names]
        }
        for name in about:
            below = [other for other in names if other.startswith(f"{name}.") and "." not in other[len(name) + 1 :]]
            # modules stand outside of the navigation, which every page repeats
            (folder / f"{name}.md").write_text(
                ("" if name in PACKAGES else "---\norphan: true\n---\n")
                + f"# {name}\n```{{eval-rst}}\n.. automodule:: {name}\n```\n"
                + ("\n## Modules\n" if below else "")
                + "".join(f"* [`{other}`]({other}.md): {about[other]}\n" for other in below),
                encoding="utf-8",
            )
        written += about
    return written


def write_experiments(docs: Path, runs: Sequence[Path]) -> str:
    """Writes the page of experiments, framed by one of the documents; returns the latter."""
    from sae.experiments import read_experiments
    from ui.render.experiments import write_experiments_page

    # a folder that Sphinx copies as it is
    write_experiments_page(read_experiments(runs), docs.parent / "extra" / "docs" / "experiments_page.html")
    frame = '<iframe src="experiments_page.html" title="Experiments" style="width:100%;height:80vh;border:0"></iframe>'
    (docs / "experiments.md").write_text(f"# Experiments\n```{{raw}} html\n{frame}\n```\n", encoding="utf-8")
    return "docs/experiments"


if __name__ == "__main__":
    os.environ.setdefault("TRITON_INTERPRET", "1")
    sys.path.insert(0, str(ROOT))
    main()
