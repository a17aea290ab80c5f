"""`glassbox dict label|list|export|import|merge`: what people say of features, and dictionaries that travel."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from ui.arguments import DictArgument, JsonOption
from ui.exports import FORMATS, write_export

HELP = {"help_option_names": ["-h", "--help"]}
BOOKMARKS = "bookmarks"

Author = Annotated[str | None, typer.Option("--author", metavar="A", help="Who says so (default: you).")]
Features = Annotated[list[int], typer.Argument(metavar="FEATURE...", help="Numbers of features.")]
Name = Annotated[str, typer.Option("--list", metavar="NAME", help="Name of the list.")]

lists = typer.Typer(
    name="list", help="Named lists of features; `add` without a name bookmarks.", no_args_is_help=True,
    rich_markup_mode="rich", context_settings=HELP,
)  # fmt: skip


def label(
    dictionary: DictArgument,
    feature: Annotated[int, typer.Argument(metavar="FEATURE", help="Number of a feature.")],
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="The label; without it all are shown.")] = None,
    author: Author = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the author's labels of the feature.")] = False,
) -> None:
    """Give a feature a label, or show all that it was given. The newest counts, none is ever overwritten.

    [dim]glassbox dict label DICT 7 "opens a docstring"[/dim]

    [dim]glassbox dict label DICT 7[/dim]
    """
    from features import Dictionary, labels

    if remove and text is not None:
        raise ValueError("a text and --remove were both given, expected one of them: leave one out")
    with closing(Dictionary.open(dictionary)) as opened:
        number = opened.check_feature(feature)
        if text is not None:
            opened.add_label(number, text, author)
            found, title = labels.labels_of(opened.store, number), f"Labels of feature {number}, newest first"
        elif remove:
            found, title = opened.remove_labels(number, author), f"Removed from feature {number}"
        else:
            found, title = labels.labels_of(opened.store, number), f"Labels of feature {number}, newest first"
    rows = [{"label": entry.text, "author": entry.author, "time": entry.time} for entry in found]
    _tell(title if rows else f"Feature {number} has no label yet", rows)


@lists.command("show")
def show_lists(
    dictionary: DictArgument,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One list; without it all of them.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show all lists, or what is on one.

    [dim]glassbox dict list show DICT bookmarks[/dim]
    """
    import json

    from features import Dictionary

    with closing(Dictionary.open(dictionary)) as opened:
        if name is None:
            found = opened.lists.all()
            rows = [
                {"list": k.name, "features": len(k.features), "author": k.author, "time": k.time, "note": k.note}
                for k in found
            ]
            title = f"Lists of {opened.name}" if rows else f"{opened.name} has no list yet"
            content = [json.loads(known.to_json()) for known in found]
        else:
            known = opened.lists.get(name)
            says = opened.explanations_of(known.features)
            rows = [
                {"feature": e.feature, "explanation": says.get(e.feature), "note": e.note}
                | {"author": e.author, "time": e.time}
                for e in known.entries
            ]
            title = f"{known.name}: by {known.author}, {known.time}" + (f" ({known.note})" if known.note else "")
            content = json.loads(known.to_json())
    if as_json:
        typer.echo(json.dumps(content, ensure_ascii=False))
    else:
        _tell(title, rows)


@lists.command("create")
def create_list(
    dictionary: DictArgument,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    note: Annotated[str | None, typer.Option("--note", metavar="N", help="What the list is for.")] = None,
    author: Author = None,
) -> None:
    """Make an empty list.

    [dim]glassbox dict list create DICT "to check" --note "before Friday"[/dim]
    """
    from features import Dictionary

    with closing(Dictionary.open(dictionary)) as opened:
        made = opened.lists.create(name, note, author)
    _say(f"Made the list {made.name!r}")


@lists.command("add")
def add_to_list(
    dictionary: DictArgument,
    features: Features,
    name: Name = BOOKMARKS,
    note: Annotated[str | None, typer.Option("--note", metavar="N", help="Why the features are on it.")] = None,
    author: Author = None,
) -> None:
    """Put features on a list, by default the bookmarks; a list that is not there yet is made.

    [dim]glassbox dict list add DICT 7 123[/dim]

    [dim]glassbox dict list add DICT 7 --list imports --note "fires before the name"[/dim]
    """
    from features import Dictionary

    with closing(Dictionary.open(dictionary)) as opened:
        new = opened.add_to_list(name, features, author, note)
        total = len(opened.lists.get(name.strip()).features)
    _say(f"{len(new)} new on the list {name.strip()!r}, which has {total}")


@lists.command("remove")
def remove_from_list(dictionary: DictArgument, features: Features, name: Name = BOOKMARKS) -> None:
    """Take features off a list; what stood there is printed.

    [dim]glassbox dict list remove DICT 7 --list imports[/dim]
    """
    from features import Dictionary

    with closing(Dictionary.open(dictionary)) as opened:
        removed = opened.lists.remove(name, features)
    rows = [{"feature": e.feature, "note": e.note, "author": e.author, "time": e.time} for e in removed]
    _tell(f"Removed from {name}", rows)


@lists.command("rename")
def rename_list(
    dictionary: DictArgument,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    new: Annotated[str, typer.Argument(metavar="NEW")],
) -> None:
    """Give a list another name.

    [dim]glassbox dict list rename DICT imports "import lines"[/dim]
    """
    from features import Dictionary

    with closing(Dictionary.open(dictionary)) as opened:
        opened.lists.rename(name, new)
    _say(f"The list {name!r} is called {new.strip()!r} now")


@lists.command("delete")
def delete_list(dictionary: DictArgument, name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Delete a list; what stood on it is printed.

    [dim]glassbox dict list delete DICT "to check"[/dim]
    """
    from features import Dictionary

    with closing(Dictionary.open(dictionary)) as opened:
        gone = opened.lists.delete(name)
    rows = [{"feature": e.feature, "note": e.note, "author": e.author, "time": e.time} for e in gone.entries]
    _tell(f"Deleted the list {gone.name}" + ("" if rows else ", which was empty"), rows)


def export(
    dictionary: DictArgument,
    out: Annotated[Path, typer.Option("--out", metavar="PATH", help="File or folder to write.")],
    format: Annotated[str, typer.Option("--format", help=", ".join(FORMATS) + ".")] = "html",
    features: Annotated[str | None, typer.Option("--features", metavar="1,2,3", help="These features.")] = None,
    name: Annotated[str | None, typer.Option("--list", metavar="NAME", help="The features on a list.")] = None,
    model: Annotated[str | None, typer.Option("--model-id", help="Neuronpedia, SAEDashboard: id of the model.")] = None,
    source_set: Annotated[str | None, typer.Option("--source-set", help="The same: such as res-mine.")] = None,
    release: Annotated[str | None, typer.Option("--release", help="Neuronpedia: id of the release.")] = None,
    creator: Annotated[str, typer.Option("--creator", help="Neuronpedia: name that is shown.")] = "glassbox",
) -> None:
    """Write one feature, a list, or everything, to share: pages to read, tables to count, documents to import.

    [bold]html[/bold] opens anywhere, offline: one file (PATH.html, up to 100 features) or a folder. [bold]json[/bold]
    is one document, which `glassbox dict import` reads back. [bold]csv[/bold] and [bold]parquet[/bold] are a folder of
    tables, or one row a feature (PATH.csv, PATH.parquet). [bold]neuronpedia[/bold] is its upload layout,
    [bold]saedashboard[/bold] a folder of its batch-N.json.

    [dim]glassbox dict export DICT --features 7,123 --out two.html[/dim]

    [dim]glassbox dict export DICT --list bookmarks --format json --out bookmarks.json[/dim]

    [dim]glassbox dict export DICT --format neuronpedia --source-set res-mine --out upload[/dim]
    """
    from features import Dictionary
    from features.sharing import neuronpedia, reading

    if format not in FORMATS:
        raise ValueError(f"--format {format} is unknown, expected one of {', '.join(FORMATS)}: choose one of these")
    with closing(Dictionary.open(dictionary)) as opened:
        chosen = reading.select_features(opened, None if features is None else _numbers(features), name)
        partial = reading.partial_events(opened.info)
        upload = neuronpedia.Upload(model=model, source_set=source_set, release=release, creator=creator)
        written = write_export(opened, chosen, format, out, name, upload)
    _say(f"{len(chosen):,} features: {written}" + (f"\n{partial}" if partial else ""))


def import_(
    dictionary: DictArgument,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files or folders to read.")],
    new: Annotated[
        bool, typer.Option("--new", help="Make DICT a dictionary of SAEDashboard or Neuronpedia files alone.")
    ] = False,
    author: Author = None,
    any_sae: Annotated[bool, typer.Option("--any-sae", help="Take what was said of another SAE.")] = False,
) -> None:
    """Bring in labels, explanations and lists: our JSON, CSV, Parquet, or files of SAEDashboard and Neuronpedia.

    What is there stays; what comes stands beside it with its author and time. All files are taken, or none.

    [dim]glassbox dict import DICT bookmarks.json[/dim]

    [dim]glassbox dict import DICT explanations/batch-0.jsonl.gz[/dim]

    [dim]glassbox dict import runs/res-jb batch-*.json --new[/dim]
    """
    from features import Dictionary
    from features.sharing import dumps, imports

    if new:
        opened, report = dumps.dictionary_from_dump(files, dictionary)
        with closing(opened):
            _say(f"Dictionary: {opened.path} ({opened.n_features:,} features, {opened.info['n_live']:,} with text)")
    else:
        with closing(Dictionary.open(dictionary)) as opened:
            report = imports.import_files(opened, files, author, any_sae)
    _say(f"Imported from {', '.join(report.sources)}" + (f"; {report.known} rows were there" if report.known else ""))
    _tell("New" if report.rows() else "Nothing new", report.rows())


def merge(
    dictionaries: Annotated[list[Path], typer.Argument(metavar="DICT DICT...", help="Dictionaries of one SAE.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New folder.")],
    model: Annotated[
        str | None, typer.Option("--model", metavar="M", help="Read the text again for effects through the final norm.")
    ] = None,
) -> None:
    """Join dictionaries of one SAE over several texts: what one build over all the text would have made.

    What is not quite that is printed.

    [dim]glassbox dict merge runs/code/dictionary/a runs/prose/dictionary/a --out runs/both[/dim]

    [dim]glassbox dict merge A B --out runs/both --model embedded[/dim]
    """
    from features.sharing import merging

    with closing(merging.merge(dictionaries, out, model)) as merged:
        told = f"{merged.n_features:,} features over {merged.info['n_tokens']:,} tokens"
        _say("\n".join([f"Dictionary: {merged.path} ({told})", *(f"note: {note}" for note in merged.info["notes"])]))


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"--features got `{text}`, expected numbers: write for example --features 7,123") from None


def _tell(title: str, rows: list[dict[str, Any]]) -> None:
    """Prints a table under its title, or the title alone where there is no row."""
    from ui.render import tables

    if rows:
        tables.show(tables.records_table(title, rows))
    else:
        _say(title)


def _say(text: str) -> None:
    from ui.render import tables

    typer.echo(tables.text(text).plain)
