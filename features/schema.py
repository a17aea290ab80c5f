"""The dictionary's tables: their columns and meanings, and the database that shows them to SQL.

Enters: a folder of immutable Parquet files and the small tables of people's labels. Leaves: `TABLES` (what the
documentation and the writers share) and a database file that holds views of the Parquet files and copies of the label
tables, nothing else.

A person's query runs on that database opened read-only, with file access limited to the build's folder, extensions
off and the configuration locked: nothing can be written, no other file read, no setting changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


@dataclass(frozen=True)
class Column:
    """One column: its name, Arrow type, meaning and unit."""

    name: str
    type: pa.DataType
    meaning: str
    unit: str = ""
    """Empty for names, texts and ids."""

    @property
    def sql_type(self) -> str:
        """The type as SQL names it."""
        return _SQL_TYPES[self.type]


@dataclass(frozen=True)
class Table:
    """One table for SQL: what its rows are, and its columns."""

    name: str
    meaning: str
    columns: tuple[Column, ...]

    def arrow_schema(self) -> pa.Schema:
        """The schema that the files of this table are written with."""
        return pa.schema([(column.name, column.type) for column in self.columns])


def _table(name: str, meaning: str, /, **columns: tuple[pa.DataType, str] | tuple[pa.DataType, str, str]) -> Table:
    return Table(name, meaning, tuple(Column(key, *value) for key, value in columns.items()))


FEATURE = (pa.int32(), "index of the SAE's latent")
DOCUMENT = (pa.int32(), "index of the document")
POSITION = (pa.int32(), "the token's position in its document", "tokens")
TOKEN_ID = (pa.int32(), "id in the model's vocabulary")
ACTIVATION_UNIT = "activation"
ACTIVATION = (
    pa.float32(),
    "the latent's value at the token; negative values occur where the architecture has them",
    ACTIVATION_UNIT,
)

STORED = (
    _table(
        "features",
        "one row per latent, dead ones included",
        feature=FEATURE,
        count=(pa.int64(), "indexed tokens at which the latent is not zero", "tokens"),
        density=(pa.float64(), "count as a share of the indexed tokens", "0 to 1"),
        mean_activation=(pa.float32(), "mean size of the value where it is not zero", ACTIVATION_UNIT),
        std_activation=(pa.float32(), "standard deviation of that size", ACTIVATION_UNIT),
        max_activation=(pa.float32(), "largest size of the value; 0 for a dead latent", ACTIVATION_UNIT),
        documents=(pa.int32(), "documents in which it is ever active", "documents"),
        is_dead=(pa.bool_(), "never active in the indexed text"),
        decoder_norm=(pa.float32(), "length of its row of W_dec", "the site's"),
        first_event=(pa.int64(), "number of its first row in events", "rows"),
    ),
    _table(
        "examples",
        "examples as pointers into the text, at most one per window of a document",
        feature=FEATURE,
        stratum=(pa.int8(), "0: strongest windows; 1, 2, …: equal parts of the others, from strong to weak"),
        rank=(pa.int32(), "order inside the stratum, from strong to weak"),
        document=DOCUMENT,
        position=(pa.int32(), "position of the window's strongest token in its document", "tokens"),
        activation=ACTIVATION,
    ),
    _table(
        "events",
        "every non-zero activation, ordered by feature, document and position; only those around examples where "
        '`dictionary.json` says `"events": "examples"`',
        feature=FEATURE,
        document=DOCUMENT,
        position=POSITION,
        activation=ACTIVATION,
    ),
    _table(
        "documents",
        "the indexed documents",
        document=DOCUMENT,
        name=(pa.string(), "where the text comes from; for files the relative path"),
        n_tokens=(pa.int32(), "tokens of it that are in the table tokens", "tokens"),
        first_token=(pa.int64(), "number of its first row in tokens", "rows"),
    ),
    _table(
        "token_ids",
        "the text, one row per token; the view tokens adds the token's text",
        document=DOCUMENT,
        position=POSITION,
        token_id=TOKEN_ID,
        context_position=(pa.int32(), "position in the row that the model saw", "tokens"),
        is_indexed=(pa.bool_(), "counted in the statistics (false: special token)"),
    ),
    _table(
        "vocabulary",
        "the model's tokens",
        token_id=TOKEN_ID,
        token=(pa.string(), "the token's text as it stands in a document"),
        count=(pa.int64(), "how often it stands in the indexed text", "tokens"),
    ),
    _table(
        "feature_tokens",
        "the tokens that hold most of a feature's activation, ordered by token for search",
        token_id=TOKEN_ID,
        feature=FEATURE,
        count=(pa.int64(), "times the feature is active at this token", "tokens"),
        mass=(pa.float32(), "share of the feature's summed activation that falls on this token", "0 to 1"),
    ),
    _table(
        "logit_ids",
        "the tokens that a feature's decoder direction promotes and suppresses most; the view logits adds their text",
        feature=FEATURE,
        side=(pa.string(), "'top' or 'bottom'"),
        rank=(pa.int32(), "order inside the side, from the strongest"),
        token_id=TOKEN_ID,
        logit=(
            pa.float32(),
            "change of the token's logit per unit of activation, up to the final norm's scale",
            "logits",
        ),
    ),
    _table(
        "normed_logit_ids",
        "the same through the final norm as it acts on the indexed text; the view normed_logits adds the tokens' text",
        feature=FEATURE,
        side=(pa.string(), "'top' or 'bottom'"),
        rank=(pa.int32(), "order inside the side, from the strongest"),
        token_id=TOKEN_ID,
        logit=(
            pa.float32(),
            "change of the token's logit per unit of activation, to first order, as a mean over tokens of the text",
            "logits",
        ),
    ),
    _table(
        "neighbours",
        "the features whose decoder directions are closest",
        feature=FEATURE,
        rank=(pa.int32(), "order from the closest"),
        neighbour=(pa.int32(), "the other feature"),
        cosine=(pa.float32(), "cosine of the two rows of W_dec", "−1 to 1"),
    ),
    _table(
        "encoder_neighbours",
        "the features whose encoder directions are closest",
        feature=FEATURE,
        rank=(pa.int32(), "order from the closest"),
        neighbour=(pa.int32(), "the other feature"),
        cosine=(pa.float32(), "cosine of the two rows of W_enc", "−1 to 1"),
    ),
    _table(
        "coactivations",
        "the features that are active on the same tokens most, counted on all indexed tokens or on a sample of them",
        feature=FEATURE,
        rank=(pa.int32(), "order from the largest Jaccard"),
        neighbour=(pa.int32(), "the other feature"),
        jaccard=(pa.float32(), "tokens on which both are active as a share of those on which either is", "0 to 1"),
        count=(pa.int64(), "tokens on which both are active, among those counted", "tokens"),
        pmi=(pa.float32(), "log₂ of how many times more often both are active than if they were independent", "bits"),
    ),
    _table(
        "position_profiles",
        "where in the model's context live features are active; bins of positions grow by powers of two",
        feature=FEATURE,
        bin=(pa.int32(), "order from the start of the context"),
        low=(pa.int32(), "first position of the bin", "tokens"),
        high=(pa.int32(), "position behind its last", "tokens"),
        tokens=(pa.int64(), "indexed tokens in the bin, the same for all features", "tokens"),
        count=(pa.int64(), "events in the bin", "events"),
        density=(pa.float64(), "count as a share of these tokens", "0 to 1"),
        mean_activation=(pa.float32(), "mean size over these tokens, 0 where the feature is silent", ACTIVATION_UNIT),
    ),
    _table(
        "boundaries",
        "how often live features are active at the ends of documents and of what the model reads at once",
        feature=FEATURE,
        place=(
            pa.string(),
            "'document_first', 'document_last', 'context_first' or 'context_last': the first or last indexed token",
        ),
        count=(pa.int64(), "events there", "events"),
        share=(pa.float64(), "count as a share of the feature's events", "0 to 1"),
        base_share=(pa.float64(), "share of all indexed tokens that stand there", "0 to 1"),
    ),
    _table(
        "histograms",
        "non-empty bins of the sizes of a feature's activations; edges are quarter octaves",
        feature=FEATURE,
        bin=(pa.int32(), "order from small to large"),
        low=(pa.float32(), "lower edge", ACTIVATION_UNIT),
        high=(pa.float32(), "upper edge", ACTIVATION_UNIT),
        count=(pa.int64(), "events in the bin", "events"),
    ),
)

OPTIONAL = frozenset({"normed_logit_ids", "encoder_neighbours", "coactivations", "position_profiles", "boundaries"})
"""Tables that dictionaries built by earlier versions lack; they show them empty."""

TIME = (pa.string(), "when, UTC, ISO 8601")
AUTHOR = (pa.string(), "who wrote it")

PEOPLE = (
    _table(
        "explanations",
        "what features mean, written by a method",
        feature=FEATURE,
        method=(pa.string(), "for instance 'token-statistics'"),
        text=(pa.string(), "the explanation"),
        rule=(pa.string(), "JSON: the rule behind the text, which predicts activation token by token; may be null"),
        score=(pa.float64(), "the method's own score on documents held apart; may be null"),
        author=AUTHOR,
        created=TIME,
    ),
    _table(
        "scores",
        "how well explanations predict activations (docs/explanations.md)",
        feature=FEATURE,
        method=(pa.string(), "method of the explanation, or the baseline"),
        scorer=(pa.string(), "for instance 'detection', 'fuzzing_auc' or 'simulation'"),
        score=(pa.float64(), "the score"),
        created=TIME,
        low=(pa.float64(), "lower end of the 95 % interval, documents resampled; may be null"),
        high=(pa.float64(), "upper end of it"),
        n=(pa.int64(), "windows that were judged"),
        failures=(pa.int64(), "windows without a usable answer, which the score leaves out"),
        seed=(pa.int64(), "seed of the windows drawn"),
        version=(pa.int32(), "version of the scorer's definition"),
        source=(pa.string(), "merged dictionaries: the part on whose text it was measured; null: on all the text here"),
    ),
    _table(
        "labels",
        "names that people gave to features; the newest counts",
        feature=FEATURE,
        text=(pa.string(), "the label"),
        author=AUTHOR,
        created=TIME,
    ),
    _table(
        "lists",
        "features on people's lists; what was taken off is not here",
        list=(pa.string(), "name of the list"),
        feature=FEATURE,
        author=AUTHOR,
        created=TIME,
        note=(pa.string(), "why the feature is on the list; may be null"),
    ),
    _table(
        "list_names",
        "people's lists, empty ones too",
        list=(pa.string(), "name of the list"),
        author=AUTHOR,
        created=TIME,
        note=(pa.string(), "what the list is for; may be null"),
    ),
    _table(
        "feature_map",
        "places of the live features on a plane where similar decoder directions stand close (`glassbox dict map`)",
        feature=FEATURE,
        x=(pa.float32(), "place from left to right", "the map's"),
        y=(pa.float32(), "place from bottom to top", "the map's"),
        cluster=(pa.int32(), "cluster of places, 0 the largest; −1: in none"),
        seed=(pa.int64(), "seed of the map"),
        created=TIME,
    ),
)

TABLES: dict[str, Table] = {table.name: table for table in (*STORED, *PEOPLE)}

VIEWS = {
    "tokens": (
        "select document, position, token_id, token, context_position, is_indexed "
        "from token_ids join vocabulary using (token_id)"
    ),
    "logits": "select feature, side, rank, token_id, token, logit from logit_ids join vocabulary using (token_id)",
    "normed_logits": (
        "select feature, side, rank, token_id, token, logit from normed_logit_ids join vocabulary using (token_id)"
    ),
}


def _view(name: str, meaning: str, ids: str, columns: Sequence[str]) -> Table:
    """A view of the table `ids` with the text of its tokens."""
    known = {column.name: column for column in (*TABLES["vocabulary"].columns, *TABLES[ids].columns)}
    return Table(name, meaning, tuple(known[column] for column in columns))


SHOWN: dict[str, Table] = TABLES | {
    "tokens": _view(
        "tokens",
        "the text, one row per token",
        "token_ids",
        ("document", "position", "token_id", "token", "context_position", "is_indexed"),
    ),
    "logits": _view(
        "logits",
        "the tokens that a feature's decoder direction promotes and suppresses most",
        "logit_ids",
        ("feature", "side", "rank", "token_id", "token", "logit"),
    ),
    "normed_logits": _view(
        "normed_logits",
        "the same through the final norm as it acts on the indexed text",
        "normed_logit_ids",
        ("feature", "side", "rank", "token_id", "token", "logit"),
    ),
}
"""Everything that SQL sees, views included."""

_SQL_TYPES = {
    pa.int8(): "TINYINT",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.bool_(): "BOOLEAN",
    pa.string(): "VARCHAR",
}


def create_people_tables(connection: DuckDBPyConnection) -> None:
    """Creates the label tables, and columns of them, that are missing."""
    for table in PEOPLE:
        columns = ", ".join(f'"{column.name}" {column.sql_type}' for column in table.columns)
        connection.execute(f'create table if not exists "{table.name}" ({columns})')
        # a labels database of an earlier version lacks what came later
        for column in table.columns:
            connection.execute(f'alter table "{table.name}" add column if not exists "{column.name}" {column.sql_type}')


def insert_people(connection: DuckDBPyConnection, table: str, rows: pa.Table) -> None:
    """Adds rows to a label table."""
    connection.register("incoming", rows.cast(TABLES[table].arrow_schema()))
    connection.execute(f'insert into "{table}" by name select * from incoming')
    connection.unregister("incoming")


def select_people(table: Table, present: set[str]) -> str:
    """The query that reads a label table; columns that came after it was made are null."""
    columns = ", ".join(
        f'"{column.name}"' if column.name in present else f'null::{column.sql_type} as "{column.name}"'
        for column in table.columns
    )
    return f'select {columns} from "{table.name}"'


def _no_rows(table: Table) -> str:
    columns = ", ".join(f'null::{column.sql_type} as "{column.name}"' for column in table.columns)
    return f"select {columns} where false"


def write_view_database(path: Path, build: Path, people: Mapping[str, pa.Table]) -> None:
    """Writes the database at `path`: views of the Parquet files in `build`, copies of the label tables."""
    import duckdb

    with duckdb.connect(str(path)) as connection:
        connection.execute("begin")
        create_people_tables(connection)
        for name, table in people.items():
            insert_people(connection, name, table)
        for table in STORED:
            path = build / f"{table.name}.parquet"
            source = str(path).replace("'", "''")
            is_lacking = table.name in OPTIONAL and not path.is_file()
            rows = _no_rows(table) if is_lacking else f"select * from read_parquet('{source}')"
            connection.execute(f'create view "{table.name}" as {rows}')
        for name, query in VIEWS.items():
            connection.execute(f'create view "{name}" as {query}')
        connection.execute("commit")


def open_locked(path: Path, build: Path) -> DuckDBPyConnection:
    """Opens a view database for questions only: read-only, files of `build` alone, no extensions, settings locked."""
    import duckdb

    connection = duckdb.connect(str(path), read_only=True)
    folder = str(build).replace("'", "''")
    for setting in (
        "temp_directory = ''",
        f"allowed_directories = ['{folder}']",
        "autoload_known_extensions = false",
        "autoinstall_known_extensions = false",
        "allow_community_extensions = false",
        "allow_persistent_secrets = false",
        "python_enable_replacements = false",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"set {setting}")
    return connection
