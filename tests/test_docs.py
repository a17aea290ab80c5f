"""What the documentation says twice is true."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> set[str]:
    from ui.cli import app

    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}  # pyright: ignore
    return verbs | {str(group.typer_instance.info.name) for group in app.registered_groups}  # pyright: ignore


def test_the_readme_lists_every_command_and_no_other() -> None:
    listed = set(re.findall(r"^\| `glassbox ([\w-]+)", README, re.MULTILINE))
    assert listed == commands()


def test_the_readme_names_the_test_command_that_ci_runs() -> None:
    assert "make test" in README
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("make test")


def test_every_link_of_the_documents_leads_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_architecture_stays_short_and_its_modules_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    for name in re.findall(r"`((?:activations|sae|features|ui|configs)\.[a-z_.]+)`", text):
        path = ROOT.joinpath(*name.split("."))
        assert path.with_suffix(".py").exists() or path.is_dir(), f"ARCHITECTURE.md names {name}"


def test_packages_are_listed_one_by_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"])
    tops = ("configs", "activations", "sae", "features", "ui")
    found = {
        ".".join(init.parent.relative_to(ROOT).parts) for top in tops for init in (ROOT / top).rglob("__init__.py")
    }
    assert listed == found


@pytest.mark.parametrize("package", ["sae", "activations"])
def test_importing_a_package_loads_no_heavy_library(package: str) -> None:
    heavy = ("transformers", "datasets", "duckdb", "gradio", "pydantic", "plotly", "matplotlib", "accelerate")
    code = f"import sys, {package}; print(*(name for name in {heavy!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []


def test_the_page_of_tables_is_the_schema() -> None:
    import runpy

    page = runpy.run_path(str(ROOT / "docs" / "tables.py"))["markdown"]()
    assert (ROOT / "docs" / "tables.md").read_text(encoding="utf-8") == page, "run python docs/tables.py"


def test_the_page_of_training_lists_the_settings_and_every_architecture() -> None:
    import runpy

    from sae.config import ARCHITECTURES

    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    filled = runpy.run_path(str(ROOT / "docs" / "training.py"))["markdown"]()
    assert page == filled, "run python docs/training.py"
    assert all(f"| `{name}` |" in page for name in ARCHITECTURES)


def test_the_packaged_configs_are_complete_runs() -> None:
    import configs
    from activations.pretraining import PretrainConfig
    from features.run import RunConfig
    from sae.jobs import expand_saes

    for path in sorted((ROOT / "configs").glob("*.yaml")):
        if path.stem == "embedded_lm":
            assert configs.load(PretrainConfig, path).out
            continue
        run = configs.load(RunConfig, path)
        assert expand_saes(run.saes, run.train, lambda site: 256), path
