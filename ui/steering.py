"""`glassbox steer`: what the model writes with features held, beside what it writes alone."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

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
    context: typer.Context,
    dictionary: DictArgument,
    prompt: Annotated[str | None, typer.Option("--prompt", metavar="T", help="Text to continue.")] = None,
    feature: Annotated[
        list[str] | None,
        typer.Option(
            "--feature",
            metavar="ID=STRENGTH",
            help="Strength in units of the feature's maximum (with ablate: 1 removes it); repeatable.",
        ),
    ] = None,
    spec: Annotated[
        Path | None,
        typer.Option("--spec", metavar="FILE", help="A steering that the browser or `--save-spec` kept."),
    ] = None,
    save_spec: Annotated[
        Path | None, typer.Option("--save-spec", metavar="FILE", help="Keep this steering in a file.")
    ] = None,
    mode: Annotated[Mode, typer.Option("--mode", help="What to do with the features.")] = Mode.add,
    when: Annotated[
        list[str] | None,
        typer.Option(
            "--when", metavar="ID=SHARE", help="Only at tokens where this feature has that share of its maximum."
        ),
    ] = None,
    phase: Annotated[Phase, typer.Option("--phase", help="Part of the text to change.")] = Phase.all,
    positions: Annotated[
        str,
        typer.Option("--positions", metavar="P", help="Only at these places, such as 0,3,-1 or 2:10."),
    ] = "",
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

    [dim]glassbox steer DICT --spec steering.json[/dim]
    """
    from features import Dictionary, Steering, SteeringSpec
    from features.steering_sweep import read_factors
    from features.steering_sweep import sweep as sweep_strengths
    from ui.render import tables

    if spec is not None:
        _check_alone(context)
        chosen = SteeringSpec.from_json(_text_of(spec))
        chosen = chosen if prompt is None else replace(chosen, prompt=prompt)
    else:
        for name, given in (("--prompt", prompt), ("--feature", feature)):
            if not given:
                raise ValueError(f"{name} is missing, expected it or a --spec: give one (see `glassbox steer --help`)")
        chosen = SteeringSpec(
            features=_strengths(feature or [], "--feature"),
            mode=mode.value,
            when=_strengths(when or [], "--when"),
            phase=phase.value,
            positions=positions,
            keeps_norm=keep_norm,
            prompt=prompt or "",
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
        )
    if asked is not None and sweep is None:
        raise ValueError("--asked stands alone, expected it beside --sweep: add for example --sweep 0,1,2,4")
    with closing(Dictionary.open(dictionary, model=model)) as opened:
        steering = Steering.from_spec(opened, chosen)
        if save_spec is not None:
            named = replace(chosen, dictionary=opened.name, fingerprint=str(opened.info["fingerprint"]))
            save_spec.write_text(named.to_json(), encoding="utf-8")
        if sweep is not None:
            result = sweep_strengths(
                opened,
                chosen.features,
                read_factors(sweep),
                [chosen.prompt],
                chosen.mode,
                asked=asked,
                steering=chosen.limits,
                **chosen.decoding(),
            )
            table = tables.sweep_table(result)
        else:
            result = steering.compare(chosen.prompt, **chosen.decoding())
            table = tables.steering_table(chosen.prompt, result)
    if as_json:
        typer.echo(result.to_json())
    else:
        tables.show(table)


def _strengths(parts: list[str], option: str) -> dict[int, float]:
    from features.steering_spec import read_strength

    try:
        return dict(read_strength(part) for part in parts)
    except ValueError as error:
        raise ValueError(f"{option} {error}") from None


def _check_alone(context: typer.Context) -> None:
    """ValueError where options were given that a spec says already."""
    beside = ("dictionary", "prompt", "spec", "save_spec", "sweep", "asked", "model", "as_json")
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in beside and source is not None and source.name == "COMMANDLINE":
            option = "--" + name.replace("_", "-")
            raise ValueError(f"got {option} beside --spec, which says it already, expected one of them: leave one out")


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text, expected a steering spec in JSON: choose another file") from None
