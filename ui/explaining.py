"""`glassbox explain`: explanations of a dictionary's features, and their scores."""

from __future__ import annotations

from typing import Annotated

import typer

from ui.arguments import DictArgument, Overrides


def explain(
    dictionary: DictArgument,
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
    from features import folder_runs, reader_scores, score_run
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
    explained = folder_runs.run_explain(dictionary, [override for override in given if override not in of_scores])
    typer.echo(f"Explained {explained:,} features of {dictionary}")
    if reader is not None:
        result = folder_runs.run_read(
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
        tables.show(tables.scores_table(folder_runs.run_score(dictionary, scorers, of_scores)))
    if embeds and embedder is not None:
        report = folder_runs.run_embedding_scores(
            dictionary,
            embedder,
            of_scores,
            model=embedder_model,
            allow_host=allow_host,
            requests_per_minute=requests_per_minute,
        )
        tables.show(tables.scores_table(report))
