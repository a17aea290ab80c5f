"""The `glassbox` command: every verb is a few lines that call the library.

Heavy libraries are imported by the verb that needs them, so that `glassbox --help` answers at once. Errors that a
person can act on (`ValueError`, `OSError`, `ImportError`) leave as one line on stderr and exit code 1; `-v` shows
where they came from.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ui import comparing, dictionaries, questions, serving
from ui.render import html


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


app = typer.Typer(
    name="glassbox",
    help="Learn the features a language model thinks in, browse them, and steer with them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(dictionaries.app)
app.command()(comparing.compare)

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a packaged one.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Replace values of the config, as in saes.0.k=64.", show_default=False
    ),
]
ModelOption = Annotated[str | None, typer.Option("--model", metavar="M", help="Local folder or hub name of the model.")]
ProcessesOption = Annotated[
    int | None,
    typer.Option("--processes", metavar="N", min=1, help="Work in N processes of this machine (one for each GPU)."),
]
DIVIDED = ("harvest", "train", "index")
"""Verbs that several processes work on together."""
DataOption = Annotated[
    str | None, typer.Option("--data", metavar="D", help="Local file or folder, hub data set, or 'embedded'.")
]


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
    if (world := _world()) > 1 and context.invoked_subcommand not in DIVIDED:
        raise ValueError(
            f"`glassbox {context.invoked_subcommand}` was started in {world} processes, expected one (several work on "
            f"{', '.join(DIVIDED)}): start it without a launcher"
        )


def _world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _divide(context: typer.Context, count: int | None) -> None:
    """Goes on in `count` processes, or joins those that a launcher has started."""
    from activations import processes

    if processes.launch(count, "ui.cli", context.obj):
        raise typer.Exit
    processes.current()


def _say(text: str) -> None:
    """Prints a line, in the first of several processes."""
    if os.environ.get("RANK", "0") == "0" or _world() == 1:
        typer.echo(text)


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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
    from features import run

    if neurons:
        given = [*([source] if source else []), *(overrides or [])]
        if not model or not data or other_model or any("=" not in override for override in given):
            raise ValueError(
                "--neurons was given without --model and --data, or with a config or folder: expected "
                "`glassbox index --neurons mlp_act.2 --model M --data D`"
            )
        built = run.index_neuron_sites(neurons, model, data, out or Path("runs/neurons"), given)
    elif source is None:
        raise ValueError("nothing to index was named, expected a config, an SAE folder or --neurons: give one of these")
    elif Path(source).is_dir():
        built = [
            run.index_sae(
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


@app.command()
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


@app.command()
def explain(
    dictionary: Annotated[Path, typer.Argument(metavar="DICT", help="Folder of a dictionary.")],
    overrides: Overrides = None,
    score: Annotated[
        str | None,
        typer.Option(
            "--score",
            metavar="SCORERS",
            help="Also score: detection,fuzzing,simulation; intruder,surprisal (--reader); embedding (--embed).",
        ),
    ] = None,
    reader: Annotated[
        str | None,
        typer.Option(
            "--reader",
            metavar="M|URL",
            help="Let a language model judge: a local folder or hub name, or an OpenAI-compatible address.",
        ),
    ] = None,
    reader_model: Annotated[
        str | None, typer.Option("--reader-model", metavar="NAME", help="The model's name at that address.")
    ] = None,
    allow_host: Annotated[
        str | None,
        typer.Option("--allow-host", metavar="HOST", help="Let text leave this machine, for that host alone."),
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Let the reader write explanations of its own first.")] = False,
    embedder: Annotated[
        str | None,
        typer.Option(
            "--embed", metavar="E", envvar="GLASSBOX_EMBEDDER", help="Embedding model: a folder, hub name or address."
        ),
    ] = None,
    embedder_model: Annotated[
        str | None,
        typer.Option("--embed-model", metavar="NAME", envvar="GLASSBOX_EMBEDDER_MODEL", help="Its name at an address."),
    ] = None,
    requests_per_minute: Annotated[
        float, typer.Option("--requests-per-minute", metavar="N", min=0.001, help="Most requests to an endpoint.")
    ] = 600.0,
) -> None:
    """Explain every live feature from the statistics of its tokens, and score the explanations.

    With [bold]--score[/bold] the rules behind them answer for windows of documents that they were not fitted on, beside
    two baselines; the figures of every feature go into the table scores. With [bold]--reader[/bold] a language model
    reads the texts instead; the key of an endpoint is taken from GLASSBOX_API_KEY, and no question is asked twice.

    [dim]glassbox explain runs/demo/dictionary/matryoshka[/dim]

    [dim]glassbox explain runs/demo/dictionary/matryoshka --score detection,fuzzing,simulation score.features=500[/dim]

    [dim]glassbox explain DICT --reader http://127.0.0.1:8000/v1 --reader-model qwen --write --score detection[/dim]

    [dim]glassbox explain DICT --score embedding --embed models/bge-small score.features=500[/dim]
    """
    from features import reader_scores, run, score_run
    from ui.render import tables

    given = overrides or []
    of_scores = [override for override in given if override.startswith("score.")]
    scorers = [name.strip() for name in (score or "").split(",") if name.strip()]
    if of_scores and not scorers and not write:
        raise ValueError(f"`{of_scores[0]}` was given without scorers, expected --score: add --score detection")
    if (reader_model or write or (allow_host and not embedder)) and reader is None:
        raise ValueError(
            "--reader-model, --allow-host or --write was given without --reader, expected both: name a reader"
        )
    embeds = "embedding" in scorers
    if embeds and embedder is None:
        raise ValueError("--score embedding was given without --embed, expected both: name an embedding model")
    scorers = [name for name in scorers if name != "embedding"]
    (score_run.check_scorers if reader is None else reader_scores.check_reader_scorers)(scorers)
    explained = run.run_explain(dictionary, [override for override in given if override not in of_scores])
    typer.echo(f"Explained {explained:,} features of {dictionary}")
    if reader is not None:
        result = run.run_read(
            dictionary,
            reader,
            scorers,
            of_scores,
            model=reader_model,
            allow_host=allow_host,
            write=write,
            requests_per_minute=requests_per_minute,
        )
        tables.show(*tables.reader_tables(result))
    elif scorers:
        tables.show(tables.scores_table(run.run_score(dictionary, scorers, of_scores)))
    if embeds and embedder is not None:
        report = run.run_embedding_scores(
            dictionary,
            embedder,
            of_scores,
            model=embedder_model,
            allow_host=allow_host,
            requests_per_minute=requests_per_minute,
        )
        tables.show(tables.scores_table(report))


@app.command()
def browse(
    dictionaries: Annotated[list[Path], typer.Argument(metavar="DICT...", help="Folders of dictionaries.")],
    model: Annotated[str | None, typer.Option("--model", metavar="M", help="Use this copy of the model.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port (default: 7860 or the next free one).")] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = serving.LOOPBACK,
    password: Annotated[
        str | None,
        typer.Option("--password", envvar="GLASSBOX_PASSWORD", help="Needed where --host is not this machine alone."),
    ] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open a page in the web browser.")] = False,
) -> None:
    """Browse features, see what is active on a text, and steer, in the web browser.

    Listens on 127.0.0.1 alone and sends nothing out.

    [dim]glassbox browse runs/demo/dictionary/matryoshka[/dim]
    """
    serving.browse(dictionaries, model=model, host=host, port=port, password=password, open_page=not no_open)


@app.command()
def steer(
    dictionary: Annotated[Path, typer.Argument(metavar="DICT", help="Folder of a dictionary.")],
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
    model: Annotated[str | None, typer.Option("--model", metavar="M", help="Use this copy of the model.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
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


@app.command()
def sql(
    dictionary: Annotated[Path, typer.Argument(metavar="DICT", help="Folder of a dictionary.")],
    query: Annotated[str, typer.Argument(metavar="QUERY", help="One SELECT statement, or DESCRIBE, SUMMARIZE, SHOW.")],
    format: Annotated[str, typer.Option("--format", help="table, csv, json, parquet or arrow.")] = "table",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write there instead of the screen.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", min=0, help="Rows to show (default: 200 on the screen, else all)."),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="S", min=0.001, help="Stop a query that takes longer, in seconds.")
    ] = 60.0,
) -> None:
    """Ask the dictionary in SQL. Read-only: nothing can be changed, and no other file can be read.

    Tables: features, examples, events, documents, tokens, logits, neighbours, histograms, explanations, scores, labels,
    lists; [bold]show tables[/bold] and [bold]describe features[/bold] tell more.

    [dim]glassbox sql DICT "select feature, density from features order by density desc limit 5"[/dim]

    [dim]glassbox sql DICT "select * from examples where feature = 7" --format csv --out examples.csv[/dim]
    """
    from features import Dictionary
    from ui.render import tables

    tables.check_format(format, out)
    with closing(Dictionary.open(dictionary)) as opened:
        tables.write_table(opened.sql(query, timeout_s=timeout), format, out, limit)


for verb, command in questions.VERBS.items():
    app.command(verb)(command)


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
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
    place = f"process {os.environ.get('RANK')} of {_world()}: " if _world() > 1 and code == 1 else ""
    # what was refused may stand in the message, and a terminal obeys controls
    print(f"error: {place}{' '.join(message.split()).translate(html.UNSEEN)}", file=sys.stderr)  # noqa: T201
    return code


if __name__ == "__main__":
    main()
