"""`glassbox demo` and its stages (`harvest`, `train`, `index`, …), `pretrain`, `convert`: from text to dictionaries.

Several processes work together on the verbs in `DIVIDED`: `--processes` starts them, or a launcher has.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from ui import serving
from ui.arguments import ConfigArgument, DataOption, ModelOption, Overrides

ProcessesOption = Annotated[
    int | None,
    typer.Option("--processes", metavar="N", min=1, help="Work in N processes of this machine (one for each GPU)."),
]
DIVIDED = ("harvest", "train", "index")
"""Verbs that several processes work on together."""


def world() -> int:
    """How many processes a launcher has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _divide(context: typer.Context, count: int | None) -> None:
    """Goes on in `count` processes, or joins those that a launcher has started."""
    from activations import processes

    if processes.launch(count, "ui.cli", context.obj):
        raise typer.Exit
    processes.current()


def _say(text: str) -> None:
    """Prints a line, in the first of several processes."""
    if os.environ.get("RANK", "0") == "0" or world() == 1:
        typer.echo(text)


def demo(
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write the run to.")] = Path("runs/demo"),
    no_browse: Annotated[bool, typer.Option("--no-browse", help="Stop after the report.")] = False,
    port: Annotated[
        int | None, typer.Option("--port", help="Port of the browser (default: 7860 or next free).")
    ] = None,
) -> None:
    """Run the whole road on the embedded model and text, then browse its features. No network is used.

    Harvests activations, trains a sparse autoencoder, evaluates it on held-out documents, indexes and explains its
    features, and writes [bold]report.html[/bold].

    [dim]glassbox demo --out runs/first[/dim]

    [dim]glassbox demo --no-browse saes.0.k=16[/dim]
    """
    import configs
    from features import run
    from ui.render import report, tables

    if not no_browse:
        serving.claim_port(port)
    config = configs.load(run.RunConfig, "demo", [*(overrides or []), f"out={out}"])
    result = run.run_demo(config)
    page = report.write_demo_report(result, Path(config.out) / "report.html")
    tables.show(tables.metrics_table(result), tables.timings_table(result), tables.drawn_table(result))
    typer.echo(f"Report: {page}")
    if no_browse:
        typer.echo(f"Browse: glassbox browse {result.dictionary}")
        return
    serving.browse([Path(result.dictionary)], port=port, open_page=True)


def pretrain(config: ConfigArgument, overrides: Overrides = None) -> None:
    """Train a small language model from scratch: the recipe of the embedded one.

    [dim]glassbox pretrain embedded_lm out=runs/lm total_tokens=1000000[/dim]
    """
    import configs
    from activations import pretraining
    from ui.render import tables

    result = pretraining.pretrain(configs.load(pretraining.PretrainConfig, config, overrides or []))
    tables.show(tables.records_table("Quality on held-out documents", result.rows()))
    typer.echo(f"Model: {result.path}")


def harvest(
    context: typer.Context, config: ConfigArgument, overrides: Overrides = None, processes: ProcessesOption = None
) -> None:
    """Write the activations that the config's SAEs need into an activation store.

    A killed harvest goes on from its last complete shard when the same command is given again.

    [dim]glassbox harvest demo out=runs/a data.total_tokens=500000[/dim]

    [dim]glassbox harvest demo out=runs/a --processes 2[/dim]
    """
    _divide(context, processes)
    import configs
    from features import run

    store = run.run_harvest(configs.load(run.RunConfig, config, overrides or []))
    _say(f"Store: {store.path} ({store.n_rows:,} rows)")


def train(
    context: typer.Context,
    config: ConfigArgument,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run exactly where it stopped.")] = False,
    init_from: Annotated[
        str | None, typer.Option("--init-from", metavar="SAE_DIR", help="Start from this SAE's weights (any format).")
    ] = None,
    processes: ProcessesOption = None,
) -> None:
    """Train every SAE of the config in as few passes as possible, from the run's store or straight from the model.

    SAEs of any kinds at any sites share one pass; each has its own metrics and resumes exactly. With
    [bold]train.trackers=\\[tensorboard][/bold] metrics go there too.

    [dim]glassbox train demo out=runs/a saes.0.k=64[/dim]

    [dim]glassbox train demo out=runs/a saes.0.k=64 --resume[/dim]

    [dim]glassbox train sweep out=runs/sweep train.epochs=1[/dim]

    [dim]glassbox train demo out=runs/b --init-from runs/a/sae/resid_post.2/matryoshka[/dim]

    [dim]glassbox train demo out=runs/a --processes 2[/dim]
    """
    _divide(context, processes)
    import configs
    from features import run

    given = list(overrides or [])
    if init_from is not None:
        given.append(f"train.init_from={json.dumps(init_from)}")
    for result in run.run_train(configs.load(run.RunConfig, config, given), resume=resume):
        _say(f"SAE: {result.path} (EV {result.metrics.explained_variance:.3f}, L0 {result.metrics.l0:.1f})")


def evaluate(
    sae_dirs: Annotated[list[Path], typer.Argument(metavar="SAE_DIR...", help="Folders of trained SAEs.")],
    model: ModelOption = None,
    data: DataOption = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            "--probe",
            metavar="SET",
            help="Probe on labelled text: topics, forms, sentiment, subjects, or a .jsonl or .csv file; repeatable.",
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Add the meta-SAE, absorption, SCR and TPP: minutes for each SAE.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The HTML page, or a folder for it.")
    ] = None,
) -> None:
    """Measure SAEs on held-out text: reconstruction, sparsity, redundancy, and what the language model loses.

    Several SAEs stand in one table, and those of the same site are compared with each other. Model and data default to
    those recorded in each SAE. Writes [bold]metrics.json[/bold] into each folder, and [bold]evaluation.html[/bold] and
    [bold]evaluation.json[/bold] into the first.

    [dim]glassbox evaluate runs/a/sae/resid_post.2/matryoshka[/dim]

    [dim]glassbox evaluate runs/a/sae/resid_post.2/* --probe topics --out report.html[/dim]
    """
    from features import evaluation_run
    from ui.render import evaluation, tables

    page = out or sae_dirs[0]
    page = page if page.suffix == ".html" else page / "evaluation.html"
    result = evaluation_run.evaluate_folders(sae_dirs, model, data, probe=probe or (), full=full)
    tables.show(tables.evaluation_table(result), *tables.comparison_tables(result))
    typer.echo(f"Page: {evaluation.write_evaluation_report(result, page)}")


def index(
    context: typer.Context,
    source: Annotated[
        str | None,
        typer.Argument(metavar="CONFIG|SAE_DIR", help="A config, or the folder of one SAE.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    model: ModelOption = None,
    data: DataOption = None,
    neurons: Annotated[
        list[str] | None,
        typer.Option("--neurons", metavar="SITE", help="Index the neurons of mlp_act.L instead of an SAE; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the dictionary (SAE_DIR or --neurons).")
    ] = None,
    processes: ProcessesOption = None,
    other_model: Annotated[
        bool, typer.Option("--other-model", help="Let --model be one that the SAE was not trained on, to compare them.")
    ] = False,
) -> None:
    """Build the feature dictionary: where each feature fires, how strongly, and what it promotes.

    All SAEs of a config are indexed in one pass over the text. With [bold]index.events=examples[/bold] only the events
    around examples are kept. With [bold]--neurons[/bold] every neuron of an MLP is a feature.

    [dim]glassbox index demo out=runs/a[/dim]

    [dim]glassbox index runs/a/sae/resid_post.2/matryoshka --model embedded --data embedded[/dim]

    [dim]glassbox index demo out=runs/a --processes 2[/dim]

    [dim]glassbox index --neurons mlp_act.2 --model embedded --data embedded[/dim]
    """
    _divide(context, processes)
    import configs
    from features import folder_runs, run

    if neurons:
        given = [*([source] if source else []), *(overrides or [])]
        if not model or not data or other_model or any("=" not in override for override in given):
            raise ValueError(
                "--neurons was given without --model and --data, or with a config or folder: expected "
                "`glassbox index --neurons mlp_act.2 --model M --data D`"
            )
        built = folder_runs.index_neuron_sites(neurons, model, data, out or Path("runs/neurons"), given)
    elif source is None:
        raise ValueError("nothing to index was named, expected a config, an SAE folder or --neurons: give one of these")
    elif Path(source).is_dir():
        built = [
            folder_runs.index_sae(
                Path(source), model=model, data=data, out=out, overrides=overrides or [], other_model=other_model
            )
        ]
    elif model or data or out or other_model:
        raise ValueError(
            f"`{source}` is a config and --model, --data, --out or --other-model were given, expected them with an SAE "
            "folder only: use overrides such as model.name=… data.source=… out=…"
        )
    else:
        built = run.run_index(configs.load(run.RunConfig, source, overrides or []))
    for dictionary in built:
        _say(f"Dictionary: {dictionary.path} ({dictionary.n_features:,} features)")


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Folder or file of an SAE, or a hub name.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="New folder to write.")],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="saelens, dictionary_learning or sparsify.")],
    subfolder: Annotated[
        str | None, typer.Option("--subfolder", metavar="S", help="Which of several SAEs, as the error lists them.")
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a hub name.")] = None,
    input_scale: Annotated[
        list[float] | None,
        typer.Option("--input-scale", help="Factor by which training multiplied activations; once for each site."),
    ] = None,
) -> None:
    """Convert an SAE between the formats of the field; the format of SRC is recognised from its files.

    Reads SAELens, dictionary_learning, sparsify, Gemma Scope, OpenAI, OpenMOSS and Llama Scope, Goodfire, Qwen Scope,
    circuit-tracer and two kinds of crosscoders.

    [dim]glassbox convert pythia/trainer_3 runs/pythia --to saelens[/dim]

    [dim]glassbox convert google/gemma-scope-2b-pt-res runs/gemma --to saelens \\
    --subfolder layer_12/width_16k/average_l0_82[/dim]
    """
    from sae import formats

    written = formats.convert(
        source, destination, to, subfolder=subfolder, revision=revision, input_scale=input_scale or None
    )
    typer.echo(f"SAE: {written} ({to})")


VERBS = {
    "demo": demo,
    "pretrain": pretrain,
    "harvest": harvest,
    "train": train,
    "evaluate": evaluate,
    "index": index,
    "convert": convert,
}
