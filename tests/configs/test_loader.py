"""The loader is strict: what it does not know, it names."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import configs
from activations.pretraining import PretrainConfig


@dataclass(frozen=True, kw_only=True)
class Inner:
    __pydantic_config__ = {"extra": "forbid"}

    learning_rate: float = 1.0
    steps: int = 5


@dataclass(frozen=True, kw_only=True)
class Outer:
    __pydantic_config__ = {"extra": "forbid"}

    name: str
    train: Inner = field(default_factory=Inner)
    saes: list[dict[str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise ValueError("name is bad, expected a good one: rename it")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("name: a\ntrain:\n  learning_rate: 3e-4\nsaes:\n  - {k: 8}\n  - {k: 16}\n")
    return path


def test_a_file_becomes_a_dataclass_and_3e_4_a_number(file: Path) -> None:
    run = configs.load(Outer, file)
    assert run == Outer(name="a", train=Inner(learning_rate=3e-4), saes=[{"k": 8}, {"k": 16}])


def test_overrides_reach_into_sections_and_lists(file: Path) -> None:
    run = configs.load(Outer, file, ["train.steps=7", "saes.1.k=64", "name=b", "train.learning_rate=2e-3"])
    assert run.train == Inner(learning_rate=2e-3, steps=7)
    assert run.saes == [{"k": 8}, {"k": 64}]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lerning_rate=1", r"unknown key `train\.lerning_rate`: did you mean `learning_rate`\?"),
        ("zzz=1", r"unknown key `zzz`: expected one of name, saes, train"),
        ("train.steps=many", r"`train\.steps` is 'many'"),
        ("saes.2.k=1", "`2` is no index into the 2 entries of `saes`: use 0 to 1"),
        ("train", "no `key=value` form"),
        ("name.x=1", "`name` is a plain value, expected a section"),
        ("name=bad", "name is bad, expected a good one"),
        ("name=[", "value that is no YAML"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(file: Path, override: str, message: str) -> None:
    with pytest.raises(configs.ConfigError, match=message) as error:
        configs.load(Outer, file, [override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "is no YAML"),
        ("", "holds nothing, expected a mapping"),
        ("- 1", "holds list, expected a mapping"),
        ("train: {steps: 1}", "key `name` is missing"),
        ("name: a\nname: b", "line 2 gives `name` a second time"),
    ],
)
def test_files_that_are_no_config_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(configs.ConfigError, match=message):
        configs.load(Outer, path)


def test_packaged_files_are_found_by_bare_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert configs.load(PretrainConfig, "embedded_lm").layers > 0
    assert configs.find("configs/embedded_lm.yaml").name == "embedded_lm.yaml"
    with pytest.raises(FileNotFoundError, match="no config file at nothing_here"):
        configs.find("nothing_here")


def test_a_dumped_config_loads_as_the_same(file: Path, tmp_path: Path) -> None:
    run = configs.load(Outer, file)
    (tmp_path / "again.yaml").write_text(configs.dump(run))
    assert configs.load(Outer, tmp_path / "again.yaml") == run


@pytest.mark.parametrize("shadow", ["configs", "sae", "features"])
def test_a_shadowing_package_is_named(tmp_path: Path, shadow: str) -> None:
    (tmp_path / shadow).mkdir()
    (tmp_path / shadow / "__init__.py").write_text("")
    importing = "activations" if shadow != "activations" else "sae"
    code = f"import sys; sys.path.append({str(Path(configs.__file__).parents[1])!r}); import {importing}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"`import {shadow}` finds {tmp_path / shadow}" in done.stderr
