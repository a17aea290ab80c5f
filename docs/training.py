"""Fills in the tables of settings of docs/training.md from the config classes: `python docs/training.py`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

from sae.config import _READ_BY, SAEConfig, TrainSection, TrainSettings

PAGE = Path(__file__).with_suffix(".md")
FROM_SITES = ("d_in", "d_out", "n_sites")


def markdown() -> str:
    """Returns the page with its tables as the code has them."""
    page = PAGE.read_text(encoding="utf-8")
    for config in (SAEConfig, TrainSettings, TrainSection):
        marks = re.compile(rf"(<!-- {config.__name__} -->\n).*?(<!-- end -->)", re.DOTALL)
        table = settings_table(config)
        page = marks.sub(lambda found, table=table: found[1] + table + found[2], page)
    return page


def settings_table(config: type[Any]) -> str:
    """Returns a table of a config class's own fields: name, default, meaning."""
    meanings = field_docs(config)
    lines = ["| setting | default | meaning |\n| --- | --- | --- |\n"]
    for field in dataclasses.fields(config):
        if field.name in FROM_SITES or field.name not in meanings:
            continue
        meaning = meanings[field.name]
        if field.name in _READ_BY:
            meaning += f" Read by {', '.join(_READ_BY[field.name])}."
        lines.append(f"| `{field.name}` | {_default(field)} | {meaning} |\n")
    return "".join(lines)


def field_docs(config: type[Any]) -> dict[str, str]:
    """Returns the strings that stand under a class's own fields."""
    (body,) = ast.parse(inspect.getsource(config)).body
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
            value = following.value
            if isinstance(statement.target, ast.Name) and isinstance(value, ast.Constant):
                docs[statement.target.id] = re.sub(r"\s+", " ", str(value.value)).replace("|", "\\|")
    return docs


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()}`"
    if field.default is dataclasses.MISSING:
        return "needed"
    return "" if field.default is None else f"`{field.default}`"


if __name__ == "__main__":
    PAGE.write_text(markdown(), encoding="utf-8")
