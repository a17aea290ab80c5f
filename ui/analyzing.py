"""`glassbox analyze`: why the model said that, on one text."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ui.arguments import JsonOption

if TYPE_CHECKING:
    from features.records import ActiveFeatures


def analyze(
    model: Annotated[str, typer.Option("--model", metavar="M", help="Local folder or hub name of the model.")],
    text: Annotated[str, typer.Option("--text", metavar="T", help="The text to explain.")],
    methods: Annotated[
        str | None,
        typer.Option("--methods", metavar="A,B,…", help="Methods to run (default: all that apply); see below."),
    ] = None,
    compare: Annotated[
        str | None, typer.Option("--compare", metavar="T2", help="A text of as many tokens to hold it against.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="TOKEN", help="Token to explain (default: the model's own choice)."),
    ] = None,
    contrast: Annotated[
        str | None, typer.Option("--contrast", metavar="TOKEN", help="Token whose logit is subtracted.")
    ] = None,
    position: Annotated[
        int | None, typer.Option("--position", help="Position whose prediction is explained (default: the last).")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="METHOD.NAME=VALUE", help="A method's setting; repeatable."),
    ] = None,
    lens: Annotated[
        Path | None, typer.Option("--lens", metavar="FILE", help="Also read layers through this tuned lens.")
    ] = None,
    dictionary: Annotated[
        Path | None, typer.Option("--dictionary", metavar="D", help="Also the features that are active on the text.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write an HTML report there, and JSON beside it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Explain what a model says on a text: attribution, lens, attention, direct effects, ablation, patching.

    Methods: attributions (gradient_norm, gradient_x_input, integrated_gradients, attn_lrp, cp_lrp, leave_one_out,
    substitution, shapley), agreement, lens, flow, direct, attention, routes, ablation, norms; with --compare also
    patching and compared_attention. Where they are named: roles, neurons, tuned_lens (--lens), ablation_strategies,
    tracing (needs --set tracing.subject="…"), attribution_patching.

    [dim]glassbox analyze --model embedded --text "def read(path):" --out why.html[/dim]

    [dim]glassbox analyze --model embedded --text "def f(x):" --set integrated_gradients.steps=64[/dim]

    [dim]glassbox analyze --model embedded --text "for x in range(" --compare "for x in sorted(" --json[/dim]
    """
    from activations.analyses import running
    from ui.render import analysis, tables

    own = running.parsed_settings(settings or [])
    if lens is not None:
        own.setdefault("tuned_lens", {})["file"] = str(lens)
    named = None if methods is None else [name.strip() for name in methods.split(",") if name.strip()]
    if named is not None and lens is not None:
        named.append("tuned_lens")
    running.chosen_methods(named, compare, own)  # a misspelt name is told before a model is loaded
    result = running.analyze(
        model,
        text,
        named,
        compare=compare,
        target=target,
        contrast=contrast,
        position=position,
        settings=own,
    )
    active = None if dictionary is None else _active(dictionary, model, text, target)
    if as_json:
        features = {} if active is None else {"features": json.loads(active.to_json())}
        typer.echo(json.dumps(json.loads(result.to_json()) | features))
    else:
        tables.show(*analysis.analysis_tables(result))
        if active is not None:
            tables.show(tables.records_table("Features", analysis.feature_rows(active)))
    if out is not None:
        extra = "" if active is None else analysis.features_section(active)
        typer.echo(f"Report: {analysis.write_analysis_report(result, out, extra)}", err=as_json)


def _active(dictionary: Path, model: str, text: str, target: str | None) -> ActiveFeatures:
    from features import Dictionary

    with closing(Dictionary.open(dictionary, model=model)) as opened:
        return opened.active_on(text, by="attribution", target=target)


def tuned_lens(
    model: Annotated[str, typer.Option("--model", metavar="M", help="Local folder or hub name of the model.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Write the lens there (.safetensors).")],
    data: Annotated[
        str, typer.Option("--data", metavar="D", help="Text: local file or folder, hub data set, or 'embedded'.")
    ] = "embedded",
    store: Annotated[
        Path | None, typer.Option("--store", metavar="DIR", help="Train on this activation store in place of text.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Training steps of 512 tokens.")] = 200,
    seed: Annotated[int, typer.Option("--seed", help="Order of the text.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a tuned lens: a translation of every layer into the last one's basis, for `glassbox analyze --lens`.

    [dim]glassbox tuned-lens --model embedded --out lens.safetensors[/dim]
    """
    from activations import LanguageModel
    from activations.analyses.tuned_lens import train_tuned_lens
    from activations.corpus import DataConfig, documents
    from activations.store import ActivationStore
    from ui.render import tables

    read = (document.text for document in documents(DataConfig(source=data)))
    rows = read if store is None else ActivationStore.open(store)
    lens = train_tuned_lens(LanguageModel.load(model), rows, steps=steps, seed=seed)
    path = lens.save(out)
    if as_json:
        typer.echo(json.dumps({"path": str(path)} | lens.training))
        return
    before, after = lens.training["heldout_kl_before"], lens.training["heldout_kl"]
    records = [{"site": site, "logit lens": before[site], "tuned lens": after[site]} for site in lens.sites]
    tables.show(tables.records_table("KL to the model's own prediction on held-out tokens, nats", records))
    typer.echo(f"Lens: {path}")
