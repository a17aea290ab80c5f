"""The command line: every verb explains itself, and bad input leaves as one line with a code."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ui import cli, serving

VERBS = ["demo", "pretrain", "harvest", "train", "evaluate", "index", "convert", "explain", "browse", "steer", "sql",
         "search", "active", "by-label", "find", "compare", "dict", "doctor"]  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]


def glassbox(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    command = [sys.executable, "-m", "ui.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs a line that must fail, and returns the one line it leaves."""
    code = cli.run(list(arguments))
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert code != 0
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in captured.err
    return lines[0]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([verb, "--help"]) == 0
    assert f"glassbox {verb}" in capsys.readouterr().out.replace("Usage: glassbox " + verb, "")


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from ui import cli; cli.run(['--help']);"
        "heavy = {'torch', 'transformers', 'gradio', 'duckdb', 'plotly', 'matplotlib', 'pydantic'} & set(sys.modules);"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert all(verb in done.stdout for verb in VERBS)
    assert time.perf_counter() - start < 5  # 0.3 s on an idle machine


def test_ui_never_imports_torch_or_duckdb() -> None:
    for file in (ROOT / "ui").rglob("*.py"):
        words = [line.split()[1].split(".")[0] for line in file.read_text().splitlines() if is_import(line)]
        assert not {"torch", "duckdb", "transformers", "datasets", "pydantic"} & set(words), file


def is_import(line: str) -> bool:
    return line.lstrip().startswith(("import ", "from "))


def test_a_missing_dictionary_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "no dictionary" in fails(capsys, "sql", str(tmp_path), "select 1")
    assert "no dictionary" in fails(capsys, "browse", str(tmp_path / "nowhere"))
    assert "no dictionary" in fails(capsys, "steer", str(tmp_path), "--prompt", "a", "--feature", "1=2")


def test_a_missing_config_names_the_packaged_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert "demo" in fails(capsys, "train", "nowhere.yaml")


def test_an_unknown_key_names_its_nearest_relative(capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, "train", "demo", "train.batch_row=3")
    assert "batch_rows" in line


def test_an_override_without_a_value_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "key=value" in fails(capsys, "harvest", "demo", "nonsense")


def test_a_wrong_command_line_points_to_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert "glassbox --help" in fails(capsys, "dance")
    assert "glassbox steer --help" in fails(capsys, "steer", "x")
    assert "--nope" in fails(capsys, "train", "demo", "--nope")


@pytest.mark.parametrize("text", ["7", "x=1", "7=much"])
def test_a_feature_without_a_strength_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, "steer", "x", "--prompt", "a", "--feature", text)
    assert "expected ID=NUMBER" in line


def test_an_sae_is_converted_to_a_new_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from foreign import CASES

    made = CASES["dl_topk"](tmp_path / "theirs")
    assert cli.run(["convert", str(made.path), str(tmp_path / "ours"), "--to", "saelens"]) == 0
    assert f"SAE: {tmp_path / 'ours'} (saelens)" in capsys.readouterr().out.replace("\n", "")
    assert (tmp_path / "ours" / "cfg.json").is_file()
    assert "exists, expected a new folder" in fails(
        capsys, "convert", str(made.path), str(tmp_path / "ours"), "--to", "saelens"
    )
    assert "format `onnx` cannot be written" in fails(
        capsys, "convert", str(made.path), str(tmp_path / "new"), "--to", "onnx"
    )


def test_one_of_several_saes_is_converted_with_a_scale(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from foreign import CASES

    several = CASES["sparsify_root"](tmp_path / "several")
    line = fails(capsys, "convert", str(several.path), str(tmp_path / "a"), "--to", "saelens")
    assert "choose by subfolder=layers.3, layers.4" in line
    arguments = ["convert", str(several.path), str(tmp_path / "a"), "--to", "saelens", "--subfolder", "layers.4"]
    assert cli.run(arguments) == 0
    crosscoder = CASES["crosscoder_stacked"](tmp_path / "crosscoder")
    arguments = ["convert", str(crosscoder.path), str(tmp_path / "b"), "--to", "saelens"]
    assert cli.run([*arguments, "--input-scale", "0.3", "--input-scale", "0.2"]) == 0


def test_the_modes_are_those_of_the_library() -> None:
    from typing import get_args

    from features import steering as library
    from ui import steering

    assert [mode.value for mode in steering.Mode] == list(get_args(library.Mode))


def test_an_unknown_format_is_refused_before_anything_is_opened(capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected one of table, csv, json, parquet, arrow" in fails(
        capsys, "sql", "x", "select 1", "--format", "xls"
    )


def test_model_and_data_belong_to_an_sae_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected them with an SAE folder only" in fails(capsys, "index", "demo", "--model", "gpt2")
    assert "nothing to index was named" in fails(capsys, "index")
    neurons = "--neurons was given without --model and --data, or with a config or folder"
    assert neurons in fails(capsys, "index", "--neurons", "mlp_act.2")
    assert neurons in fails(capsys, "index", "demo", "--neurons", "mlp_act.2", "--model", "m", "--data", "d")


def test_an_occupied_port_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} on 127.0.0.1 is occupied" in fails(capsys, "browse", str(tmp_path), "--port", str(port))


def test_the_default_port_gives_way_to_the_next_free_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(serving, "DEFAULT_PORT", taken.getsockname()[1])
        assert serving.claim_port(None) > taken.getsockname()[1]


@pytest.mark.parametrize("port", ["0", "70000"])
def test_a_port_that_cannot_be_is_refused(port: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "expected 1 to 65535" in fails(capsys, "browse", str(tmp_path), "--port", port)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_a_wider_host_demands_a_password(host: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "give --auth" in fails(capsys, "browse", str(tmp_path), "--host", host)
    with pytest.raises(ValueError, match="5 characters, expected at least 10"):
        serving.check_host(host, ("me", "short"))
    serving.check_host(host, ("me", "long enough"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_password(host: str) -> None:
    serving.check_host(host, None)


def test_verbose_shows_the_traceback() -> None:
    done = glassbox("sql", "nowhere", "select 1", "-v")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_an_error_of_the_system_names_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device", "runs/a/config.yaml")

    monkeypatch.setattr(serving, "claim_port", full)
    line = fails(capsys, "browse", "x")
    assert line.startswith("error: runs/a/config.yaml: no space left on device, expected to read or write it: check")


def test_a_defect_is_one_line_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(serving, "claim_port", lambda *_: 1 / 0)
    assert "ZeroDivisionError" in fails(capsys, "browse", "x")


def test_an_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(serving, "claim_port", interrupt)
    assert cli.run(["browse", "x"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_shadowed_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "__init__.py").write_text("")
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; from ui import cli; "
        "sys.exit(cli.run(['sql', 'x', 'y']))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False, timeout=60
    )
    assert done.returncode == 1
    assert str(tmp_path / "features") in done.stderr
    assert "Traceback" not in done.stderr


def test_the_doctor_reports_every_topic_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    import json

    assert cli.run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"Imports", "Packages", "Machine", "Material"} == {fact["topic"] for fact in found["facts"]}
    names = {fact["name"]: fact for fact in found["facts"]}
    assert names["sae"]["value"].endswith("sae/__init__.py")
    assert all(fact["ok"] or fact["advice"] for fact in found["facts"])


def test_the_doctor_prints_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor"]) == 0
    assert "matrix products" in capsys.readouterr().out


def test_a_closed_pipe_is_no_defect() -> None:
    command = f"{sys.executable} -m ui.cli doctor --json | head -c 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=ROOT, check=False, timeout=120)
    assert "Traceback" not in done.stderr
    assert "error" not in done.stderr


@pytest.mark.slow
def test_a_real_interrupt_leaves_no_traceback(tmp_path: Path) -> None:
    code = (
        # a shell starts background jobs with interrupts ignored, and children inherit that
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "import time; from ui import cli, serving; serving.claim_port = lambda *_: time.sleep(60); "
        "cli.sys.argv = ['glassbox', 'browse', 'x']; print('on', flush=True); cli.main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as running:
        assert running.stdout is not None
        running.stdout.readline()
        time.sleep(1)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "Traceback" not in errors
