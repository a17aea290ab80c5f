"""The `glassbox` command: gathers the verbs, which are a few lines each that call the library, and runs them.

Heavy libraries are imported by the verb that needs them, so that `glassbox --help` answers at once. Errors that a
person can act on (`ValueError`, `OSError`, `ImportError`) leave as one line on stderr and exit code 1; `-v` shows
where they came from.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ui import (
    analyzing,
    behaving,
    circuits,
    comparing,
    dictionaries,
    explaining,
    probing,
    questions,
    serving,
    stages,
    steering,
)
from ui.arguments import JsonOption, ModelCopyOption
from ui.render import html

app = typer.Typer(
    name="glassbox",
    help="Learn the features a language model thinks in, browse them, and steer with them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _options(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show tracebacks; works after a verb too.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as version_of

        typer.echo(f"glassbox {version_of('glassbox-sae')}")
        raise typer.Exit
    if (world := stages.world()) > 1 and context.invoked_subcommand not in stages.DIVIDED:
        raise ValueError(
            f"`glassbox {context.invoked_subcommand}` was started in {world} processes, expected one (several work on "
            f"{', '.join(stages.DIVIDED)}): start it without a launcher"
        )


def browse(
    dictionaries: Annotated[list[Path], typer.Argument(metavar="DICT...", help="Folders of dictionaries.")],
    model: ModelCopyOption = None,
    port: Annotated[int | None, typer.Option("--port", help="Port (default: 7860 or the next free one).")] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = serving.LOOPBACK,
    auth: Annotated[
        str | None,
        typer.Option(
            "--auth",
            envvar="GLASSBOX_AUTH",
            metavar="NAME:PASSWORD",
            help="Asked for before anything is shown; needed where --host is not this machine alone.",
        ),
    ] = None,
    refuse: Annotated[
        Path | None,
        typer.Option("--refuse", metavar="FILE", help="Patterns, one a line: prompts that match are not taken."),
    ] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open a page in the web browser.")] = False,
) -> None:
    """Browse features, see what is active on a text, and steer, in the web browser.

    Listens on 127.0.0.1 alone and sends nothing out.

    [dim]glassbox browse runs/demo/dictionary/matryoshka[/dim]
    """
    serving.browse(dictionaries, model=model, host=host, port=port, auth=auth, refuse=refuse, open_page=not no_open)


def doctor(as_json: JsonOption = False) -> None:
    """Tell what this machine has, and what will be fast or impossible on it.

    [dim]glassbox doctor[/dim]
    """
    from ui import diagnosis
    from ui.render import tables

    found = diagnosis.diagnose()
    if as_json:
        typer.echo(found.to_json())
    else:
        tables.show(*tables.diagnosis_tables(found))
    if found.shadowed:
        raise typer.Exit(1)


for verb, command in {
    **stages.VERBS,
    "explain": explaining.explain,
    "browse": browse,
    "steer": steering.steer,
    **questions.VERBS,
    "compare": comparing.compare,
    "runs": comparing.runs,
    "analyze": analyzing.analyze,
    "tuned-lens": analyzing.tuned_lens,
    "circuit": circuits.circuit,
    "doctor": doctor,
}.items():
    app.command(verb)(command)
app.add_typer(dictionaries.app)
app.add_typer(probing.app)
app.add_typer(behaving.app)


def main() -> None:
    """Runs the command line; the entry point of `glassbox`."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command line and returns its exit code."""
    given = list(arguments)
    verbose = any(argument in ("-v", "--verbose") for argument in arguments)
    arguments = [argument for argument in arguments if argument not in ("-v", "--verbose")]
    try:
        if "doctor" not in arguments:  # which tells more about a shadowed package than an error could
            _check_imports()
        code = app(args=arguments, prog_name="glassbox", standalone_mode=False, obj=given)
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return _complain("interrupted", 130)
    except typer.Exit as stop:
        return stop.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except Exception as error:
        if _is_usage(error):
            return 0 if type(error).__name__ == "NoArgsIsHelpError" else _complain(_usage(error), 2)
        if verbose:
            raise
        if isinstance(error, (ValueError, OSError, ImportError)):
            return _complain(_said(error), 1)
        return _complain(f"{type(error).__name__}: {error}: this is a defect of Glassbox, -v shows where", 1)


def _said(error: Exception) -> str:
    """Returns what an error says; the system's own errors get the parts that they leave out."""
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        where = error.filename or "a file"
        advice = "check the path, its permissions and the free space"
        return f"{where}: {error.strerror.lower()}, expected to read or write it: {advice}"
    return str(error) or type(error).__name__


def _is_usage(error: Any) -> bool:
    """Tells a wrong command line; newer typers carry a click of their own, so the class has no one name."""
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def _usage(error: Any) -> str:
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "glassbox"
    return f"{error.format_message().strip().rstrip('.')}: see `{where} --help`"


def _check_imports() -> None:
    import runpy

    runpy.run_path(str(Path(__file__).resolve().parents[1] / "configs" / "import_guard.py"))


def _complain(message: str, code: int) -> int:
    place = f"process {os.environ.get('RANK')} of {stages.world()}: " if stages.world() > 1 and code == 1 else ""
    # what was refused may stand in the message, and a terminal obeys controls
    print(f"error: {place}{' '.join(message.split()).translate(html.UNSEEN)}", file=sys.stderr)  # noqa: T201
    return code


if __name__ == "__main__":
    main()
