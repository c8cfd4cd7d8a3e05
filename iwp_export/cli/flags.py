"""Flags from the fields of a settings dataclass, and the dataclass back from what was given."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from dataclasses import Field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def add(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, kind: type, skip: Collection[str] = (), title: str = ""
) -> None:
    """Declare a flag for each field; one that is not given stays None.

    Args:
        parser: takes them, in groups by the fields' `group`.
        kind: the dataclass, see `iwp_export.settings.option`.
        skip: fields without a flag.
        title: one group for all.
    """
    hints = get_type_hints(kind)
    groups: dict[str, Any] = {"": parser}
    for each in fields(kind):
        if each.name in skip:
            continue
        name = title or each.metadata.get("group", "")
        if name not in groups:
            groups[name] = group(parser, name)
        target = groups[name]
        if one_of := each.metadata.get("one_of"):
            target = groups.setdefault(f"{name}/{one_of}", None) or groups[name].add_mutually_exclusive_group()
            groups[f"{name}/{one_of}"] = target
        target.add_argument(f"--{each.name.replace('_', '-')}", dest=each.name, default=None, **_options(each, hints))


def group(parser: Any, title: str) -> Any:
    """The group of a title: the one that is there, or a new one."""
    return next((found for found in parser._action_groups if found.title == title), None) or (
        parser.add_argument_group(title)
    )


def read(args: argparse.Namespace, kind: type[T], **more: Any) -> T:
    """The dataclass of what was given.

    Raises:
        SettingsError: see the dataclass.
    """
    return kind(**given(args, kind), **more)


def given(args: argparse.Namespace, kind: type) -> dict[str, Any]:
    """The fields whose flags were given."""
    found = {each.name: getattr(args, each.name, None) for each in fields(kind)}  # type: ignore[arg-type]
    return {name: value for name, value in found.items() if value is not None}


def _options(each: Field[Any], hints: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `add_argument`."""
    said = each.metadata
    default = each.default
    shown = said.get("shown") or ("" if default is None or default == () else str(default))
    text = f"{said['text']}{f' (default: {shown})' if shown else ''}".replace("%", "%%")
    alternatives = [hint for hint in _alternatives(hints[each.name]) if hint is not NoneType]
    hint = alternatives[0]
    if hint is bool:
        return {"action": "store_true", "help": said["text"]}
    options: dict[str, Any] = {"help": text}
    if get_origin(hint) is Literal:
        options["choices"] = get_args(hint)
    else:
        options["metavar"] = said["unit"]
    if "const" in said:
        options |= {"nargs": "?", "const": said["const"], "metavar": said["unit"]}
    if get_origin(hint) is not None and get_origin(hint) is not Literal:  # a sequence
        hint = get_args(hint)[0]
        options |= {} if said.get("commas") else {"nargs": "+"}
    if said.get("commas"):
        options["type"] = _words
    elif said.get("share"):
        options["type"] = share
    elif hint in (int, float, Path):
        options["type"] = hint
    return options


def _alternatives(hint: Any) -> Sequence[Any]:
    """The members of a union; else the hint itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def share(text: str) -> float:
    """A share as 1% or 0.01, as argparse takes it."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a share such as 1% or 0.01, got {text!r}") from error
