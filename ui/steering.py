"""`glassbox steer`: what the model writes with features held, beside what it writes alone."""

from __future__ import annotations

from contextlib import closing
from enum import StrEnum
from typing import Annotated, Any

import typer

from ui.arguments import DictArgument, JsonOption, ModelCopyOption


class Mode(StrEnum):
    """The modes of `features.Steering`, at hand without loading it."""

    add = "add"
    clamp = "clamp"
    min_clamp = "min_clamp"
    scale = "scale"
    ablate = "ablate"
    erase = "erase"


class Phase(StrEnum):
    """The phases of `features.Steering`, likewise."""

    all = "all"
    prompt = "prompt"
    generated = "generated"


def steer(
    dictionary: DictArgument,
    prompt: Annotated[str, typer.Option("--prompt", metavar="T", help="Text to continue.")],
    feature: Annotated[
        list[str],
        typer.Option(
            "--feature",
            metavar="ID=STRENGTH",
            help="Strength in units of the feature's maximum (with ablate: 1 removes it); repeatable.",
        ),
    ],
    mode: Annotated[Mode, typer.Option("--mode", help="What to do with the features.")] = Mode.add,
    when: Annotated[
        list[str] | None,
        typer.Option(
            "--when", metavar="ID=SHARE", help="Only at tokens where this feature has that share of its maximum."
        ),
    ] = None,
    phase: Annotated[Phase, typer.Option("--phase", help="Part of the text to change.")] = Phase.all,
    keep_norm: Annotated[bool, typer.Option("--keep-norm", help="Give changed activations their old length.")] = False,
    sweep: Annotated[
        str | None,
        typer.Option("--sweep", metavar="X,Y,…", help="Write at several multiples of the strengths, and score each."),
    ] = None,
    asked: Annotated[
        str | None, typer.Option("--asked", metavar="T", help="With --sweep: beside it, ask for it in these words.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Tokens to write.")] = 60,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 writes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the sampling.")] = 0,
    model: ModelCopyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write with features held up or down, beside the same model left alone.

    Modes: add (strength times maximum), clamp (set to it), min_clamp (raise to it), scale (multiply what is there),
    ablate (1 removes what fires), erase (1 removes the direction).

    [dim]glassbox steer runs/demo/dictionary/matryoshka --prompt "def read(" --feature 123=4[/dim]

    [dim]glassbox steer DICT --prompt "import" --feature 7=1 --mode ablate --temperature 0.8 --seed 1[/dim]

    [dim]glassbox steer DICT --prompt "def read(" --feature 123=1 --sweep 0,1,2,4,8[/dim]
    """
    from features import Dictionary, Steering
    from features.steering_sweep import sweep as sweep_strengths
    from ui.render import tables

    strengths = dict(_feature_strength(text) for text in feature)
    limits: dict[str, Any] = {
        "when": dict(_feature_strength(text, "--when") for text in when or []),
        "phase": phase.value,
        "keeps_norm": keep_norm,
    }
    options: dict[str, Any] = {"do_sample": temperature > 0, "temperature": temperature or 1.0, "seed": seed}
    options["max_new_tokens"] = max_new_tokens
    if asked is not None and sweep is None:
        raise ValueError("--asked stands alone, expected it beside --sweep: add for example --sweep 0,1,2,4")
    with closing(Dictionary.open(dictionary, model=model)) as opened:
        if sweep is not None:
            factors = _factors(sweep)
            result = sweep_strengths(
                opened, strengths, factors, [prompt], mode.value, asked=asked, steering=limits, **options
            )
            table = tables.sweep_table(result)
        else:
            result = Steering(opened, strengths, mode.value, **limits).compare(prompt, **options)
            table = tables.steering_table(prompt, result)
    if as_json:
        typer.echo(result.to_json())
    else:
        tables.show(table)


def _factors(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--sweep got `{text}`, expected numbers with commas: write for example 0,1,2,4") from None


def _feature_strength(text: str, option: str = "--feature") -> tuple[int, float]:
    number, equals, strength = text.partition("=")
    try:
        if not equals:
            raise ValueError
        return int(number), float(strength)
    except ValueError:
        raise ValueError(f"{option} got `{text}`, expected ID=NUMBER: write for example {option} 123=2.5") from None
