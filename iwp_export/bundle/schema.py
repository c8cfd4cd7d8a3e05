"""JSON values made into frozen dataclasses by their type hints.

A field's type hint is its schema: nested dataclasses, `tuple[X, ...]`, `tuple[X, Y]`, `Mapping[str, X]`, `Literal`,
unions, `str`, `int`, `float`, `bool`, `None` and `Any` (plain JSON). Every field must be there but those that came
`LATER`, and no other. A whole number is at most 2^31 - 1. `Annotated[X, Rule(...)]` narrows a type; a dataclass may
have a method `check` that raises ValueError where its fields contradict each other. A class with `from_dict` and
`to_dict` has JSON of its own.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

GREATEST = 2**31 - 1
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Characters that would write to a terminal what is not there, and halves of characters, which cannot be printed."""

LATER = "later"
"""Metadata of a dataclass field that came after its file's version: None where a file lacks it."""


class Flaw(Exception):  # noqa: N818 (a finding, which readers and writers turn into errors of theirs)
    """What is wrong with a file or a folder; the caller says whose it is and what to do."""


class Mismatch(Flaw):
    """A value that does not fit its type hint."""

    def __init__(self, path: str, value: Any, says: str) -> None:
        super().__init__(f"{path or 'its content'} is {shown(value)}, must be {says}")
        self.says = says


@dataclass(frozen=True)
class Rule:
    """Narrows a type in `Annotated`: what must hold, and in words what a value must be."""

    holds: Callable[[Any], bool]
    says: str


def between(least: int, greatest: int) -> Rule:
    """A whole number in a range."""
    return Rule(lambda value: least <= value <= greatest, f"a whole number from {least:,} to {greatest:,}")


def one_of(*choices: str) -> Rule:
    """One of a few words."""
    return Rule(lambda value: value in choices, f"one of {', '.join(choices)}")


def above_zero(greatest: float) -> Rule:
    """A number above 0."""
    upper = "" if greatest == math.inf else f" and at most {greatest}"
    return Rule(lambda value: 0 < value <= greatest, f"a number above 0{upper}")


Count = Annotated[int, between(1, GREATEST)]
Number = Annotated[int, between(0, GREATEST)]
TokenId = Number
FileSize = Annotated[int, between(0, 2**63 - 1)]


def to_json(value: Any) -> Any:
    """JSON values of a dataclass or of what its fields may hold."""
    if hasattr(type(value), "from_dict"):
        return value.to_dict()
    if is_dataclass(value):
        said = [each.name for each in fields(value) if not _left_out(each, value)]
        return {name: to_json(getattr(value, name)) for name in said}
    if isinstance(value, Mapping):
        return {key: to_json(inner) for key, inner in value.items()}
    return [to_json(inner) for inner in value] if isinstance(value, tuple | list) else value


def _left_out(each: Field[Any], value: Any) -> bool:
    """Whether a field came later and says nothing: without it, older versions read the file too."""
    return bool(each.metadata.get(LATER)) and getattr(value, each.name) is None


def from_json(hint: Any, data: Any, path: str) -> Any:
    """What a type hint makes of JSON values.

    Args:
        hint: the type.
        data: the JSON values.
        path: where they stand, for an error.

    Raises:
        Flaw: they do not fit; the message has the place and the value.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _annotated(arguments[0], arguments[1:], data, path)
    if origin is Literal:
        fits = any(type(data) is type(choice) and data == choice for choice in arguments)
        return _checked(data, path, fits, f"one of {', '.join(map(str, arguments))}")
    if origin in (Union, UnionType):
        return _union(arguments, data, path)
    if origin is tuple:
        return _tuple(arguments, data, path)
    if origin is not None and issubclass(origin, Mapping):
        _checked(data, path, isinstance(data, dict), "an object")
        keys = {key: from_json(arguments[0], key, f"a name in {path}") for key in data}
        return {keys[key]: from_json(arguments[1], value, _inside(path, key)) for key, value in data.items()}
    if is_dataclass(hint) or hasattr(hint, "from_dict"):
        return _object(hint, data, path)
    return _plain(hint, data, path)


def _plain(hint: Any, data: Any, path: str) -> Any:
    if hint is int:
        in_range = _is_number(data, int) and abs(data) <= GREATEST
        return _checked(data, path, in_range, f"a whole number of at most {GREATEST:,}")
    if hint is float:
        return float(_checked(data, path, _is_number(data, int | float), "a finite number"))
    if hint is str:
        _checked(data, path, isinstance(data, str), "text")
        return _checked(data, path, not CONTROL.search(data), "text without control characters")
    if hint in (bool, None, NoneType):
        fits = data is None if hint is not bool else isinstance(data, bool)
        return _checked(data, path, fits, "true or false" if hint is bool else "null")
    if hint is not Any:
        raise TypeError(f"{path}: a schema cannot hold {hint!r}")
    if isinstance(data, dict):
        return {from_json(str, key, path): from_json(Any, value, _inside(path, key)) for key, value in data.items()}
    if isinstance(data, list):
        return [from_json(Any, value, f"{path}[{index}]") for index, value in enumerate(data)]
    return data if data is None else from_json(type(data), data, path)


def _annotated(hint: Any, marks: tuple[Any, ...], data: Any, path: str) -> Any:
    rules = [mark for mark in marks if isinstance(mark, Rule)]
    if hint is int and rules:  # a rule says its own range
        value = _checked(data, path, _is_number(data, int), rules[0].says)
    else:
        value = from_json(hint, data, path)
    for rule in rules:
        _checked(value, path, rule.holds(value), rule.says)
    return value


def _union(options: tuple[Any, ...], data: Any, path: str) -> Any:
    others = [option for option in options if option is not NoneType]
    if data is None and len(others) < len(options):
        return None
    if len(others) == 1:
        return from_json(others[0], data, path)
    says = []
    for option in others:
        try:
            return from_json(option, data, path)
        except Mismatch as mismatch:
            says.append(mismatch.says)
    raise Mismatch(path, data, " or ".join(says))


def _tuple(arguments: tuple[Any, ...], data: Any, path: str) -> tuple[Any, ...]:
    _checked(data, path, isinstance(data, list), "a list")
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(data)
    _checked(data, path, len(data) == len(arguments), f"a list of {len(arguments)}")
    return tuple(
        from_json(hint, value, f"{path}[{index}]")
        for index, (hint, value) in enumerate(zip(arguments, data, strict=True))
    )


def _object(kind: Any, data: Any, path: str) -> Any:
    """A dataclass of its fields' hints, or a class of its own making from plain JSON."""
    _checked(data, path, isinstance(data, dict), "an object")
    read = getattr(kind, "from_dict", None)
    values = from_json(Any, data, path) if read else _fields(kind, data, path)
    try:
        value = read(values) if read else kind(**values)
        if hasattr(value, "check"):
            value.check()
    except ValueError as error:
        raise Flaw(f"{path}: {error}" if path else str(error)) from error
    return value


def _fields(kind: Any, data: dict[str, Any], path: str) -> dict[str, Any]:
    hints = _hints(kind)
    names = {each.name: each.metadata.get(LATER, False) for each in fields(kind)}
    for name, later in names.items():
        if name not in data and not later:
            raise Flaw(f"{_inside(path, name)} is missing")
    for name in data:
        if name not in names:
            raise Flaw(f"{_inside(path, name)} is unknown")
    return {name: from_json(hints[name], data[name], _inside(path, name)) for name in names if name in data}


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _checked(data: Any, path: str, fits: bool, says: str) -> Any:
    if not fits:
        raise Mismatch(path, data, says)
    return data


def _is_number(data: Any, kind: Any) -> bool:
    in_range = abs(data) < 2**63 if isinstance(data, int) else isinstance(data, float) and math.isfinite(data)
    return isinstance(data, kind) and not isinstance(data, bool) and in_range


def _inside(path: str, name: str) -> str:
    if not name.isidentifier():
        return f"{path}[{shown(name)}]"
    return f"{path}.{name}" if path else name


def shown(value: Any) -> str:
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
