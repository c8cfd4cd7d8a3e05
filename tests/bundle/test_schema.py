"""The reader of JSON by type hints: every wrong value is named with its place, and what is read is what was written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from iwp_export.bundle.schema import (
    Count,
    FileSize,
    Flaw,
    Rule,
    TokenId,
    from_json,
    to_json,
)


class Celsius(float):
    @classmethod
    def from_dict(cls, data: dict[str, float]) -> Celsius:
        if data["kelvin"] < 0:
            raise ValueError("colder than cold")
        return cls(data["kelvin"] - 273)

    def to_dict(self) -> dict[str, float]:
        return {"kelvin": self + 273}


@dataclass(frozen=True)
class Part:
    name: str
    size: Count
    shape: tuple[int | str, ...] = ()


@dataclass(frozen=True)
class Whole:
    parts: Mapping[str, Part]
    pair: tuple[int, float]
    kind: Literal["a", "b", 1]
    token: TokenId | None
    big: FileSize
    flag: bool
    warm: Celsius
    name: Annotated[str, Rule(str.islower, "in small letters")]
    anything: Mapping[str, Any]

    def check(self) -> None:
        if len(self.parts) > 2:
            raise ValueError("too many parts")


WHOLE = Whole(
    {"x": Part("x", 1, (1, "n")), "y-z": Part("y", 2**31 - 1)},
    (-(2**31) + 1, 0.1),
    "b",
    None,
    2**40,
    True,
    Celsius(20.0),
    "low",
    {"list": [1, {"deep": None}], "text": "é", "number": 1.5, "flag": False},
)


def changed(*path: str | int, value: Any) -> dict[str, Any]:
    data = to_json(WHOLE)
    parent = data
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    return json.loads(json.dumps(data))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("parts",), [], r"parts is \[\], must be an object"),
        (("parts", "x"), 3, r"parts\.x is 3, must be an object"),
        (("parts", "x", "size"), 0, r"parts\.x\.size is 0, must be a whole number from 1 to 2,147,483,647"),
        (("parts", "x", "size"), 2**31, r"parts\.x\.size is 2147483648"),
        (("parts", "x", "size"), True, r"parts\.x\.size is True"),
        (("parts", "x", "size"), 1.0, r"parts\.x\.size is 1\.0"),
        (("parts", "x", "size"), "1", r"parts\.x\.size is '1'"),
        (("parts", "x", "size"), None, r"parts\.x\.size is None"),
        (("parts", "y-z", "name"), 1, r"parts\['y-z'\]\.name is 1, must be text"),
        (("parts", "x", "name"), "\x1b[31mred", r"must be text without control characters"),
        (("parts", "x", "name"), "\ud800", r"name is '\\ud800', must be text without control"),
        (("parts", "x", "extra"), 1, r"parts\.x\.extra is unknown"),
        (("parts", "x", "shape"), "n", r"shape is 'n', must be a list"),
        (("parts", "x", "shape"), [1, None], r"shape\[1\] is None, must be a whole number .* or text"),
        (("parts", "x", "shape"), [2**31], r"shape\[0\] is 2147483648"),
        (("parts", "a\nb"), {}, r"a name in parts is 'a\\nb'"),
        (("pair",), [1], r"pair is \[1\], must be a list of 2"),
        (("pair", 0), 1.5, r"pair\[0\] is 1\.5"),
        (("pair", 1), True, r"pair\[1\] is True, must be a finite number"),
        (("pair", 1), float("inf"), r"pair\[1\] is inf"),
        (("pair", 1), float("nan"), r"pair\[1\] is nan"),
        (("pair", 1), 10**400, r"pair\[1\] is 1000.*, must be a finite number"),
        (("kind",), "c", r"kind is 'c', must be one of a, b, 1"),
        (("kind",), True, r"kind is True"),
        (("kind",), [], r"kind is \[\]"),
        (("token",), -1, r"token is -1, must be a whole number from 0"),
        (("token",), "x", r"token is 'x', must be a whole number"),
        (("big",), 2**63, r"big is 9223372036854775808"),
        (("flag",), 1, r"flag is 1, must be true or false"),
        (("warm",), 20, r"warm is 20, must be an object"),
        (("warm",), {"kelvin": -1}, r"warm: colder than cold"),
        (("name",), "UP", r"name is 'UP', must be in small letters"),
        (("anything", "x"), [1, 2**31], r"anything\.x\[1\] is 2147483648"),
        (("anything", "x"), {"y": float("inf")}, r"anything\.x\.y is inf"),
        (("parts", "z"), {"name": "z", "size": 1, "shape": []}, "too many parts"),
        (("other",), 1, r"other is unknown"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(path: Any, value: Any, message: str) -> None:
    with pytest.raises(Flaw, match=message) as caught:
        from_json(Whole, changed(*path, value=value), "")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["parts", "flag", "token"])
def test_a_missing_field_is_named_even_if_it_may_be_null(name: str) -> None:
    data = to_json(WHOLE)
    del data[name]
    with pytest.raises(Flaw, match=f"{name} is missing"):
        from_json(Whole, data, "")


def test_a_field_with_a_default_may_not_be_left_out() -> None:
    with pytest.raises(Flaw, match=r"part\.shape is missing"):
        from_json(Part, {"name": "x", "size": 1}, "part")


def test_a_long_value_is_cut() -> None:
    with pytest.raises(Flaw) as caught:
        from_json(Whole, changed("flag", value="x" * 10**6), "")
    assert len(str(caught.value)) < 200


def test_a_hint_that_no_schema_knows_is_a_bug() -> None:
    with pytest.raises(TypeError, match="a schema cannot hold"):
        from_json(set, [], "x")
