"""The built wheel works in an environment of its own, wherever it is started."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHORT_DEMO = [
    "data.total_tokens=60000",
    "data.heldout_tokens=8000",
    "saes.0.d_sae=512",
    "saes.0.k=16",
    "train.epochs=1",
    "train.batch_rows=1024",
    "index.total_tokens=40000",
]


def run(*command: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command[0]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the tracked files, so that nothing of the working tree leaks in."""
    source = tmp_path_factory.mktemp("source")
    listing = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in listing.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    dist = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", dist, source, cwd=source)
    (built,) = dist.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment holding the wheel alone; its dependencies are lent by the one that runs the tests."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


@pytest.mark.slow
def test_the_wheel_holds_the_packages_and_their_data_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"configs", "activations", "sae", "features", "ui"}
    for needed in (
        "configs/demo.yaml",
        "activations/embedded/model.safetensors",
        "activations/embedded/tokenizer.json",
    ):
        assert needed in names


@pytest.mark.slow
@pytest.mark.parametrize("has_own_configs", [False, True])
def test_the_installed_command_runs_the_demo_from_any_folder(
    environment: Path, tmp_path: Path, has_own_configs: bool
) -> None:
    if has_own_configs:
        (tmp_path / "configs").mkdir()
        (tmp_path / "configs" / "__init__.py").write_text("raise RuntimeError('the wrong configs')\n")
    run(environment / "bin" / "glassbox", "demo", "--no-browse", "--out", "runs/demo", *SHORT_DEMO, cwd=tmp_path)
    assert (tmp_path / "runs" / "demo" / "report.html").is_file()
    dictionaries = list((tmp_path / "runs").rglob("dictionary.json"))
    assert len(dictionaries) == 1
    origin = run(environment / "bin" / "python", "-P", "-c", "import sae; print(sae.__file__)", cwd=tmp_path)
    assert origin.startswith(str(environment))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert run(environment / "bin" / "python", "-P", "-c", lines, cwd=tmp_path).strip(), "the README's lines print"
