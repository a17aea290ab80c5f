"""Writes docs/tables.md from `features.schema`: `python docs/tables.py`."""

from __future__ import annotations

from pathlib import Path

from features.schema import SHOWN

HEAD = """# Tables

What `glassbox sql DICT "…"` and `Dictionary.sql` see. One question at a time: `select`, `with`, `from`, `values`,
`describe`, `summarize`, `show tables`, or `explain` of one of these. Read-only: nothing is written, no other file can
be read, no setting changed, no extension loaded. A query that takes longer than 60 s is stopped (`--timeout`), and so
is one that answers more than 2 GiB. The unit *activation* is the SAE's own: compare values within a dictionary, as
shares of `features.max_activation`. This page is written by `python docs/tables.py` from `features/schema.py`.

| option | does |
| --- | --- |
| `--format table` | prints 200 rows, or `--limit N`; controls, and signs that turn text around, are shown as codes |
| `--format csv`, `json` | text as it is; JSON has null for numbers that are not finite |
| `--format parquet`, `arrow` | Arrow's types as they are (`arrow`: the IPC stream format) |
| `--out FILE` | the answer goes there, whole or not at all; all rows unless `--limit` is given |

```sql
-- the documents in which a feature is most at home
select d.name, count(*) as events, max(e.activation) as strongest
from events e join documents d using (document)
where e.feature = 7 group by d.name order by events desc limit 10;

-- the tokens that a feature likes
select t.token, count(*) as n, avg(e.activation) as mean
from events e join tokens t using (document, position)
where e.feature = 7 group by t.token order by n desc limit 20;

-- features that nobody has labelled, most frequent first
select feature, density from features where feature not in (select feature from labels) order by density desc limit 20;

-- what is in a table
summarize features;
```
"""


def markdown() -> str:
    """Returns the page."""
    parts = [HEAD]
    for table in SHOWN.values():
        parts.append(f"\n## {table.name}\n{table.meaning[0].upper()}{table.meaning[1:]}.\n")
        parts.append("\n| column | type | unit | meaning |\n| --- | --- | --- | --- |\n")
        parts += [
            f"| `{column.name}` | {column.sql_type} | {column.unit} | {column.meaning} |\n" for column in table.columns
        ]
    return "".join(parts)


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(markdown(), encoding="utf-8")
