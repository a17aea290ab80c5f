"""Writes docs/tables.md from `features.schema`: `python docs/tables.py`."""

from __future__ import annotations

from pathlib import Path

from features.schema import TABLES

HEAD = """# Tables

What `glassbox sql DICT "…"` and `Dictionary.sql` see. One `select` at a time, read-only; no other file can be read
and no setting changed. This page is written by `python docs/tables.py` from `features/schema.py`.

```sql
-- the documents in which a feature is most at home
select d.name, count(*) as events, max(e.activation) as strongest
from events e join documents d using (document)
where e.feature = 7 group by d.name order by events desc limit 10;

-- the tokens that a feature likes
select t.token, count(*) as n, avg(e.activation) as mean
from events e join tokens t using (document, position)
where e.feature = 7 group by t.token order by n desc limit 20;
```
"""


def markdown() -> str:
    """Returns the page."""
    parts = [HEAD]
    tables = TABLES.values() if isinstance(TABLES, dict) else TABLES
    for table in tables:
        parts.append(f"\n## {table.name}\n{table.meaning[0].upper()}{table.meaning[1:]}.\n")
        parts.append("\n| column | type | meaning |\n| --- | --- | --- |\n")
        parts += [f"| `{column.name}` | {column.type} | {column.meaning} |\n" for column in table.columns]
    return "".join(parts)


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(markdown(), encoding="utf-8")
