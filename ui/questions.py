"""`glassbox sql`, `search`, `active`, `by-label` and `find`: questions to a dictionary, answered in tables or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ui.arguments import DictArgument, JsonOption, LimitOption, ModelCopyOption


class Kind(StrEnum):
    """The kinds of `features.search`, at hand without loading it."""

    auto = "auto"
    token = "token"
    text = "text"
    regex = "regex"
    explanation = "explanation"
    semantic = "semantic"


def search(
    dictionary: DictArgument,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="A token, phrase, pattern, or words.")],
    kind: Annotated[Kind, typer.Option("--kind", help="What the query is.")] = Kind.auto,
    limit: LimitOption = 20,
    embed: Annotated[
        str | None,
        typer.Option(
            "--embed", metavar="E", envvar="GLASSBOX_EMBEDDER", help="Embedding model: a folder, hub name or address."
        ),
    ] = None,
    embed_model: Annotated[
        str | None,
        typer.Option("--embed-model", metavar="NAME", envvar="GLASSBOX_EMBEDDER_MODEL", help="Its name at an address."),
    ] = None,
    allow_host: Annotated[
        str | None, typer.Option("--allow-host", metavar="HOST", help="Host other than this machine that may be asked.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find features by token, text, regular expression, the words of their explanations, or by meaning.

    Every row says why it was found. [bold]semantic[/bold] needs an embedding model (--embed).

    [dim]glassbox search DICT "import"[/dim]

    [dim]glassbox search DICT "def \\w+\\(self" --kind regex --limit 5[/dim]
    """
    from features import Dictionary
    from features.embedders import embedder_for

    with closing(Dictionary.open(dictionary)) as opened:
        embedder = None
        if embed and kind is Kind.semantic:
            embedder = embedder_for(embed, embed_model, opened.path / "answers", allow_host)
        hits = opened.search(query, limit=limit, kind=kind.value, embedder=embedder)
    rows = [row for hit in hits for row in hit.rows()]
    _answer(rows, as_json, f"{len(rows)} features for {query}", rows)


class Measure(StrEnum):
    """The measures of `features.active`, at hand without loading it."""

    activation = "activation"
    surprise = "surprise"
    effect = "effect"
    attribution = "attribution"


def active(
    dictionary: DictArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The text to read.")],
    by: Annotated[Measure, typer.Option("--by", help="What features are ranked by.")] = Measure.activation,
    target: Annotated[
        str | None,
        typer.Option(
            "--target", metavar="TOKEN", help="Token whose logit effects are on (default: the model's own next)."
        ),
    ] = None,
    limit: LimitOption = 20,
    model: ModelCopyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rank the features that are active on a text. Loads the model.

    By [bold]activation[/bold], by [bold]surprise[/bold] against their base rate (bits), by direct [bold]effect[/bold]
    on the logit of a token after each token, or by [bold]attribution[/bold], the effect on it at the end of the text.

    [dim]glassbox active DICT "def read(path):" --by surprise[/dim]

    [dim]glassbox active DICT "import os" --by attribution --target "."[/dim]
    """
    from features import Dictionary

    with closing(Dictionary.open(dictionary, model=model)) as opened:
        found = opened.active_on(text, top=limit, by=by.value, target=target)
    unit = {"surprise": "bits"}.get(by.value, by.value)
    rows = [
        {"feature": e.feature, unit: e.total, "activation" if unit != "activation" else "largest": e.max_activation}
        | {"at": found.tokens[e.token], "explanation": e.explanation}
        for e in found.ranked
    ]
    onto = f" on the logit of {found.target!r}" if found.target is not None else ""
    _answer(json.loads(found.to_json()), as_json, f"{len(rows)} features by {by.value}{onto}", rows)


def find(
    dictionary: DictArgument,
    condition: Annotated[
        str, typer.Argument(metavar="CONDITION", help="Features joined by &, with ! and > SHARE; within N tokens.")
    ],
    limit: LimitOption = 10,
    as_json: JsonOption = False,
) -> None:
    """Find documents where some features are active and others are not, or places where they stand close together.

    Tells how many there are, and how many there would be by chance.

    [dim]glassbox find DICT "12 & 40 & !7"[/dim] (documents)

    [dim]glassbox find DICT "12 & 40>0.5 within 5 after"[/dim] (40 above half its maximum, one to five tokens after 12)
    """
    from features import Dictionary
    from ui.render import tables

    with closing(Dictionary.open(dictionary)) as opened:
        found = opened.find(condition, limit)
    if as_json:
        typer.echo(found.to_json())
        return
    lift = "" if found.lift is None else f", lift {found.lift:.3g}"
    told = f"{found.found:,} of {found.of:,} {found.counted}, {found.expected:,.1f} expected by chance{lift}"
    rows = [
        {"document": place.document_name, "at": place.position, "weakest": f"{place.strength:.0%}"}
        | {"before": "".join(place.tokens[: place.center]), "token": place.tokens[place.center]}
        | {"after": "".join(place.tokens[place.center + 1 :])}
        for place in found.places
    ]
    terms = tables.records_table("", [term | {"holds": f"{term['holds']:.2%}"} for term in found.terms])
    tables.show(terms, tables.records_table(told, rows))


class Pooling(StrEnum):
    """What a text holds of a feature."""

    max = "max"
    mean = "mean"


def by_label(
    dictionary: DictArgument,
    labelled: Annotated[
        str,
        typer.Argument(
            metavar="SET",
            help="Labelled texts: a JSONL or CSV file (.gz), or topics, forms, sentiment, subjects. "
            "Labelled tokens: JSONL with spans, CoNLL-U, IOB.",
        ),
    ],
    pooling: Annotated[
        Pooling, typer.Option("--pooling", help="A text's largest activation, or its mean.")
    ] = Pooling.max,
    field: Annotated[
        str | None,
        typer.Option("--field", metavar="F", help="Labels of tokens: name of the field, or number of the column."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the halves.")] = 0,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Features of each label.")] = 5,
    model: ModelCopyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the features that best tell labelled texts, or tokens, apart. Loads the model.

    Features are chosen on one half of the texts; balanced accuracy and AUC, with 95 % intervals, are of the other half.

    [dim]glassbox by-label DICT topics[/dim]

    [dim]glassbox by-label DICT reviews.csv --limit 3[/dim]

    [dim]glassbox by-label DICT names.iob2[/dim] (tokens)
    """
    from features import Dictionary, labelled_tokens
    from sae.labelled_text import labelled_text

    if field is not None or labelled_tokens.is_labelled_tokens(labelled):
        texts = labelled_tokens.labelled_tokens(labelled, field)
    else:
        texts = labelled_text(labelled)
    with closing(Dictionary.open(dictionary, model=model)) as opened:
        found = opened.by_label(texts, limit, pooling.value, seed=seed)
    rows = [
        {"label": e.label, "feature": e.feature, "active": e.direction}
        | {"balanced accuracy": _within(e.balanced_accuracy, e.balanced_accuracy_low, e.balanced_accuracy_high)}
        | {"AUC": _within(e.auc, e.auc_low, e.auc_high), found.unit: e.n_test, "explanation": e.explanation}
        for e in found.features
    ]
    again = f", {found.duplicates} repeated texts left out" if found.duplicates else ""
    again += f", too rare: {', '.join(found.left_out)}" if found.left_out else ""
    _answer(json.loads(found.to_json()), as_json, f"Held-out scores on {found.name}{again}", rows)


def _within(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f} to {high:.3f})"


def sql(
    dictionary: DictArgument,
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


VERBS = {"sql": sql, "search": search, "active": active, "by-label": by_label, "find": find}


def _answer(content: Any, as_json: bool, title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Prints what was found: as JSON, or as a table of `rows`."""
    from ui.render import tables

    if as_json:
        typer.echo(json.dumps(content, ensure_ascii=False))
    else:
        tables.show(tables.records_table(title if rows else "", rows) if rows else tables.text("nothing found", "dim"))
