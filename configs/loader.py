"""Reads YAML into validated dataclasses.

Enters: a dataclass, a YAML file (a path, or the bare name of a packaged one) and `key=value` overrides. Leaves: an
instance of the class. Unknown keys, wrong types and failed cross-field checks raise `ConfigError` with one line that
names the key and, for an unknown one, its nearest relative.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is one line: got, expected, what to do."""


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice (plain YAML keeps the last silently) and reads `3e-4` as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"line {line} gives `{key}` a second time, expected each key once: delete one")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def find(path: str | Path) -> Path:
    """Returns the file `path`, or the packaged YAML file of that bare name (`demo`, `demo.yaml`)."""
    given = Path(path)
    if given.is_file():
        return given
    packaged = Path(str(resources.files("configs")))
    if given.name == str(path) or given.parent.name == "configs":
        candidate = packaged / f"{given.name.removesuffix('.yaml')}.yaml"
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(file.stem for file in packaged.glob("*.yaml")))
    raise FileNotFoundError(f"no config file at {path}: expected a YAML file or one of the packaged names {known}")


def load(config_class: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Reads the YAML file `path`, applies `key.sub.0.key=value` overrides and validates it into `config_class`."""
    file = find(path)
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        got = "nothing" if content is None else type(content).__name__
        raise ConfigError(f"{file} holds {got}, expected a mapping of sections: see configs/demo.yaml for an example")
    for override in overrides:
        _apply(content, override)
    return validate(config_class, content, where=str(file))


def _apply(content: dict[str, Any], override: str) -> None:
    path, equals, raw = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"override `{override}` has no `key=value` form: write for example train.lr=1e-3")
    try:
        value = yaml.load(raw, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"override `{override}` has a value that is no YAML: quote it") from error
    place: Any = content
    for depth, name in enumerate(keys):
        key: Any = name
        last = depth == len(keys) - 1
        if isinstance(place, list):
            if not name.isdigit() or int(name) >= len(place):
                raise ConfigError(
                    f"override `{override}`: `{key}` is no index into the {len(place)} entries of "
                    f"`{'.'.join(keys[:depth])}`: use 0 to {len(place) - 1}"
                )
            key = int(name)
        elif not isinstance(place, dict):
            raise ConfigError(f"override `{override}`: `{'.'.join(keys[:depth])}` is a plain value, expected a section")
        if last:
            place[key] = value
        else:
            if isinstance(place, dict) and place.get(key) is None:
                place[key] = {}
            place = place[key]


def validate(config_class: type[T], content: Mapping[str, Any], where: str = "") -> T:
    """Validates a mapping into `config_class`; `where` names its source in error messages."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(config_class).validate_python(dict(content))
    except ValidationError as error:
        raise ConfigError(_explain(config_class, error.errors()[0], where)) from None


def _explain(config_class: type, problem: Any, where: str) -> str:
    location = [part for part in problem["loc"] if not str(part).startswith(("function-", "list[", "dict["))]
    path = ".".join(str(part) for part in location)
    prefix = f"{where}: " if where else ""
    kind = problem["type"]
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _keys_at(config_class, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"expected one of {', '.join(sorted(known))}"
        return f"{prefix}unknown key `{path}`: {hint}"
    if kind in ("missing", "missing_argument"):
        return f"{prefix}key `{path}` is missing: add it, or override it with {path}=…"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if kind == "value_error":
        return f"{prefix}{path + ': ' if path else ''}{message}"
    return f"{prefix}`{path}` is {problem['input']!r}: {message[0].lower()}{message[1:]}"


def _keys_at(config_class: type, location: Sequence[Any]) -> list[str]:
    """Returns the field names of the dataclass that stands at `location` inside `config_class`."""
    current: Any = config_class
    for part in location:
        if dataclasses.is_dataclass(current) and isinstance(part, str):
            current = typing.get_type_hints(current).get(part)
        for option in typing.get_args(current):
            if dataclasses.is_dataclass(option):
                current = option
    if isinstance(current, types.UnionType) or not dataclasses.is_dataclass(current):
        return []
    return [field.name for field in dataclasses.fields(current)]


def dump(config: Any) -> str:
    """Writes a config dataclass as YAML, every default resolved."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)
