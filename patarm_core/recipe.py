"""Recipes: TOML files and `key=value` overrides, read into a tree of frozen dataclasses.

The dataclasses are the schema. A field may be int, float, str, bool, a Literal, a tuple or list of these,
dict[str, str], another dataclass (a table), or any of them `| None`.
"""

import dataclasses
import difflib
import json
import math
import os.path
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeVar, Union

R = TypeVar("R")

_COMMAND_LINE = "command line"
_BASE = "base"


class RecipeError(ValueError):
    """A recipe that cannot be used; the message is one line that says where, which key and what is wrong."""


@dataclasses.dataclass
class _Table:
    """What the files and overrides say about one dataclass."""

    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    tables: dict[str, "_Table"] = dataclasses.field(default_factory=dict)
    sources: list[str] = dataclasses.field(default_factory=list)


def with_bases(file: str, read: Callable[[str], str]) -> list[tuple[str, str]]:
    """(name, TOML) of a recipe file and of those that it builds on, the farthest first, as `read_recipe` takes them.

    A file whose root has `base = "other.toml"`, a path from its own folder, says only what differs from that one.

    Args:
        read: gives a file's text, or raises ValueError.

    Raises:
        RecipeError: a base that cannot be read or is no string, or files that build on one another in a circle.
    """
    texts: list[tuple[str, str]] = []
    while True:
        try:
            text = read(file)
        except ValueError as error:
            raise RecipeError(f"{texts[0][0]}: {_BASE}: {error}" if texts else str(error)) from None
        texts.insert(0, (file, text))
        base = _parse(file, text).get(_BASE)
        if base is None:
            return texts
        base = _base_path(file, base)
        if base in (names := [name for name, _ in reversed(texts)]):
            raise RecipeError(f"{file}: {_BASE}: a circle: {' -> '.join([*names[names.index(base) :], base])}")
        file = base


def read_recipe(cls: type[R], texts: Sequence[tuple[str, str]], overrides: Sequence[str] = ()) -> R:
    """Reads a recipe; what comes later replaces what came before.

    Tables are merged key by key, and so is a dict[str, str] (though it replaces the default as a whole); a list is
    replaced. A field that nothing mentions keeps its default. An int will do for a float; no other type is converted.

    Args:
        cls: the root dataclass.
        texts: (name, TOML) of each recipe file; a file's base comes before it (`with_bases`).
        overrides: such as `rollout.num_rollouts=16`. The value is TOML; failing that, a bare string.

    Raises:
        RecipeError: malformed TOML, an unknown key, a wrong type, a required key that is missing, or a ValueError of a
            dataclass's `__post_init__`.
    """
    root = _Table()
    for i, (name, text) in enumerate(texts):
        data = _parse(name, text)
        base = data.pop(_BASE, None)
        if base is not None and _base_path(name, base) not in [earlier for earlier, _ in texts[:i]]:
            raise RecipeError(f"{name}: {_BASE}: {base} has not been read before it")
        _merge(cls, cls, data, name, "", root)
    for override in overrides:
        _merge_override(cls, override, root)
    names = [*(name for name, _ in texts), *([_COMMAND_LINE] if overrides else [])]
    missing = list(_missing(cls, root, "", None))
    if missing:
        raise RecipeError(f"{_join(names)}: missing {', '.join(missing)}; required, as there is no default")
    return _build(cls, root, "", names, None)


def to_toml(recipe: Any) -> str:
    """The whole recipe as TOML; `read_recipe` gives an equal one back.

    A field that is None is left out. Raises ValueError if that would read back as something else, because the
    default is not None: TOML has no word for None.
    """
    text = "\n".join(_lines(recipe, "")).strip() + "\n"
    if read_recipe(type(recipe), [("to_toml", text)]) != recipe:
        raise ValueError("this recipe has no TOML: a field is None (or nan) where its default is not")
    return text


def _parse(name: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = re.fullmatch(r"(.*) \(at line (\d+), column \d+\)", str(error), re.DOTALL)
        line = place[2] if place else text.count("\n") + 1
        raise RecipeError(f"{name}:{line}: not TOML: {place[1] if place else error}") from None


def _base_path(file: str, base: Any) -> str:
    if not isinstance(base, str):
        raise RecipeError(f"{file}: {_BASE}: expected a string, got {_show(base)}")
    return os.path.normpath(os.path.join(os.path.dirname(file), base))


def _merge_override(cls: type, override: str, root: _Table) -> None:
    key, equals, raw = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"{_COMMAND_LINE}: {override!r} is not of the form key=value")
    path = key.strip().split(".")
    candidates: list[Any] = [raw.strip()]
    try:
        parsed = tomllib.loads(f"value = {raw}")
        if list(parsed) == ["value"]:
            candidates.insert(0, parsed["value"])
    except tomllib.TOMLDecodeError:
        pass  # a bare string
    problem = None
    for value in candidates:
        data = value
        for part in reversed(path):
            data = {part: data}
        try:
            return _merge(cls, cls, data, _COMMAND_LINE, "", root)
        except RecipeError as error:
            problem = problem or error
    raise problem


def _merge(root: type, cls: type, data: dict[str, Any], where: str, prefix: str, table: _Table) -> None:
    if where not in table.sources:
        table.sources.append(where)
    hints = _hints(cls)
    for name, value in data.items():
        key = prefix + name
        if name not in hints:
            known = list(_keys(root, ""))
            # The right name in the wrong table: grpo.lr is grpo.optim.lr, and not grpo.
            of_that_name = [other for other in known if other.rpartition(".")[2] == name]
            nearest = difflib.get_close_matches(key, of_that_name or known, n=1, cutoff=0)
            raise RecipeError(f"{where}: unknown key {key!r}" + (f"; the nearest is {nearest[0]!r}" if nearest else ""))
        inner = _table_type(hints[name])
        if inner is not None:
            if not isinstance(value, dict):
                raise RecipeError(f"{where}: {key}: expected a table, got {_show(value)}")
            _merge(root, inner, value, where, f"{key}.", table.tables.setdefault(name, _Table()))
            continue
        try:
            converted = _convert(value, hints[name])
        except ValueError:
            expected = _describe(hints[name])
            raise RecipeError(f"{where}: {key}: expected {expected}, got {_show(value)}") from None
        if isinstance(converted, dict):
            converted = table.values.get(name, {}) | converted
        table.values[name] = converted


def _build(cls: type, table: _Table, prefix: str, names: Sequence[str], base: Any) -> Any:
    """The dataclass that the table describes; fields that it does not mention are those of `base`, if there is one."""
    values = {}
    for field in _fields(cls):
        key = prefix + field.name
        inner = _table_type(_hints(cls)[field.name])
        default = _default(field) if base is None else getattr(base, field.name)
        if field.name in table.values:
            values[field.name] = table.values[field.name]
        elif field.name in table.tables:
            default = None if default is dataclasses.MISSING else default
            values[field.name] = _build(inner, table.tables[field.name], f"{key}.", names, default)
        elif default is not dataclasses.MISSING:
            values[field.name] = default
        else:  # a required table without required keys
            values[field.name] = _build(inner, _Table(), f"{key}.", names, None)
    try:
        return cls(**values)
    except ValueError as error:
        place = f"[{prefix[:-1]}]: " if prefix else ""
        raise RecipeError(f"{_join(table.sources or names)}: {place}{error}") from error


def _missing(cls: type, table: _Table, prefix: str, base: Any) -> Iterator[str]:
    for field in _fields(cls):
        key = prefix + field.name
        hint = _hints(cls)[field.name]
        inner = _table_type(hint)
        default = _default(field) if base is None else getattr(base, field.name)
        if field.name in table.tables:
            default = None if default is dataclasses.MISSING else default
            yield from _missing(inner, table.tables[field.name], f"{key}.", default)
        elif default is dataclasses.MISSING and field.name not in table.values:
            if inner is None or type(None) in typing.get_args(hint):
                yield key
            else:
                yield from _missing(inner, _Table(), f"{key}.", None)


def _convert(value: Any, hint: Any) -> Any:
    """The value as the type asks for it; ValueError if it is of another type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is float and type(value) in (int, float) and _is_real(value):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    if origin is Literal and any(type(value) is type(arg) and value == arg for arg in args):
        return value
    if origin in (Union, types.UnionType):
        for arm in args:
            try:
                return _convert(value, arm)
            except ValueError:
                continue
    if origin is tuple and isinstance(value, list):
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_convert(item, args[0]) for item in value)
        return tuple(_convert(item, arm) for item, arm in zip(value, args, strict=True))
    if origin is list and isinstance(value, list):
        return [_convert(item, args[0]) for item in value]
    if origin is dict and isinstance(value, dict):
        return {key: _convert(item, args[1]) for key, item in value.items()}
    raise ValueError


def _is_real(value: float) -> bool:
    return not math.isnan(value) and (type(value) is float or abs(value) < 1 << 1023)


def _describe(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(_show, args))}"
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(arm) for arm in args if arm is not type(None))
    if origin is dict:
        return f"a table, each value {_describe(args[1])}"
    if origin is tuple and args[-1] is not Ellipsis:
        return f"a list of {len(args)}: {', '.join(map(_describe, args))}"
    if origin in (tuple, list):
        return f"a list, each item {_describe(args[0])}"
    return {int: "an integer", float: "a number", str: "a string", bool: "true or false"}[hint]


def _lines(recipe: Any, prefix: str) -> Iterator[str]:
    values = {field.name: getattr(recipe, field.name) for field in _fields(type(recipe))}
    for name, value in values.items():
        if value is not None and not dataclasses.is_dataclass(value):
            yield f"{name} = {_show(value)}"
    for name, value in values.items():
        if dataclasses.is_dataclass(value):
            yield f"\n[{prefix}{name}]"
            yield from _lines(value, f"{prefix}{name}.")


def _show(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON escapes all that TOML wants escaped, except DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_show, value))}]"
    if isinstance(value, dict):
        pairs = ", ".join(f"{_show(key)} = {_show(item)}" for key, item in value.items())
        return f"{{{pairs}}}"
    return str(value)


def _keys(cls: type, prefix: str) -> Iterator[str]:
    for name, hint in _hints(cls).items():
        yield prefix + name
        inner = _table_type(hint)
        if inner is not None:
            yield from _keys(inner, f"{prefix}{name}.")


def _hints(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in _fields(cls)}


def _fields(cls: type) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(cls) if field.init]


def _table_type(hint: Any) -> type | None:
    arms = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    return next((arm for arm in arms if dataclasses.is_dataclass(arm)), None)


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _join(names: Sequence[str]) -> str:
    return ", ".join(names) or "the recipe"
