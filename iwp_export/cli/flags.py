"""Flags from the fields of a settings dataclass, and the dataclass back from what was given."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import Field, fields
from typing import Any, Literal, TypeVar, get_args, get_origin

from iwp_export.settings import kinds

T = TypeVar("T")


def add(parser: argparse.ArgumentParser, kind: type[Any], skip: Collection[str] = (), title: str = "") -> None:
    """Declare a flag for each field; one that is not given stays None.

    Args:
        parser: takes them, in groups by the fields' `group`.
        kind: the dataclass, see `iwp_export.settings.option`.
        skip: fields without a flag.
        title: one group for all.
    """
    exclusive: dict[str, Any] = {}
    for each in fields(kind):
        if each.name not in skip:
            target = group(parser, title or each.metadata["group"])
            if one_of := each.metadata.get("one_of"):
                target = exclusive.setdefault(one_of, None) or target.add_mutually_exclusive_group()
                exclusive[one_of] = target
            flag = f"--{each.name.replace('_', '-')}"
            target.add_argument(flag, dest=each.name, default=None, **_options(each, kinds(kind)[each.name]))


def group(parser: argparse.ArgumentParser, title: str) -> Any:
    """The group of a title: the one that is there, or a new one."""
    found = [each for each in parser._action_groups if each.title == title]
    return found[0] if found else parser.add_argument_group(title)


def given(args: argparse.Namespace, kind: type[Any]) -> dict[str, Any]:
    """The fields that were given."""
    found = {each.name: getattr(args, each.name, None) for each in fields(kind)}
    return {name: value for name, value in found.items() if value is not None}


def read(args: argparse.Namespace, kind: type[T]) -> T:
    """The dataclass of what was given.

    Raises:
        SettingsError: see the dataclass.
    """
    return kind(**given(args, kind))


def _options(each: Field[Any], kind: Any) -> dict[str, Any]:
    """Arguments of `add_argument`."""
    said, unit = each.metadata, each.metadata["unit"]
    of_recipe = said.get("of_recipe", False)  # a setting that replaces one of a recipe, which may be on
    if kind is bool:
        if not of_recipe:
            return {"action": "store_true", "help": said["text"]}
        text = f"{said['text']} (default: {'on' if each.default else 'off'})"
        return {"action": argparse.BooleanOptionalAction, "help": text}
    shown = said.get("shown") or ("" if each.default in (None, ()) else each.default)
    words = get_args(kind) if get_origin(kind) is Literal else ()
    text = f"{said['text']}: {', '.join(words)}" if words and of_recipe else said["text"]
    text += f" (default: {shown})" if shown != "" else ""
    options: dict[str, Any] = {"help": text.replace("%", "%%"), "metavar": unit or None}
    if words:
        if not of_recipe:  # PruningSettings refuses other words itself, wherever they come from
            options["choices"] = words
    elif said.get("commas"):
        options["type"] = _words
    elif get_origin(kind) is not None:  # a sequence
        options |= {"nargs": "+", "type": get_args(kind)[0]}
    else:
        options["type"] = share if unit == "SHARE" else kind
    return options | ({"nargs": "?", "const": said["const"]} if "const" in said else {})


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def share(text: str) -> float:
    """A share as 1% or 0.01, as argparse takes it."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a share such as 1% or 0.01, got {text!r}") from error
