"""What rendering a chat template may cost: a meter, and questions to ask before an operation that makes much of little.

The sums are upper bounds. An operation that has none here is not offered to templates, see `template_sandbox`.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from string import Formatter
from typing import Any

from jinja2.exceptions import SecurityError

SECONDS = 2.0
"""Processor time of one rendering. A long conversation takes some milliseconds."""
TOTAL_BYTES = 256 << 20
"""All values that one rendering makes, those that it drops again included."""
VALUE_BYTES = 16 << 20
"""One value with everything in it, parts that occur twice counted twice."""
DEPTH = 50
"""Calls within calls, and lists within lists."""
INTEGER_BITS = 60
"""Larger integers grow without end, and can be chosen to share one place of a dictionary."""
ITEM_BYTES = 64
"""A number, a list's own size, or a character as a text of its own."""
SLOW_STEPS = 1 << 27
"""Comparisons of characters in one call: about 0.1 s."""
FORMAT_CHARACTERS = 10_000
"""Of a text with placeholders."""
SHORT = 16
"""Of what is repeated for each item: an indent, a separator of JSON, the digits of a rounded number."""

LINEAR = frozenset(
    """capitalize casefold count endswith find index isalnum isalpha isascii isdecimal isdigit isidentifier islower
    isnumeric isprintable isspace istitle isupper lower partition removeprefix removesuffix startswith swapcase title
    upper""".split()  # noqa: SIM905
)
"""Methods of texts whose time and result are a small multiple of the text's length."""
SLOW = frozenset(["lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip"])
"""Methods that may compare each character with each of the argument's."""
SPLITTING = frozenset(["rsplit", "split", "splitlines"])


class LimitError(SecurityError):
    """A template asked for more than one rendering may take."""


class Meter:
    """What one rendering has left."""

    def __init__(self) -> None:
        self.depth = 0
        self._bytes = TOTAL_BYTES
        self._start = time.thread_time()
        self._look = time.perf_counter() + SECONDS  # this clock is read in a tenth of the time

    def tick(self) -> bool:
        """Stop if the time is over; true, so that a compiled expression can begin with it."""
        if time.perf_counter() > self._look:
            used = time.thread_time() - self._start
            if used > SECONDS:
                raise LimitError(f"it takes more than {SECONDS:g} s")
            self._look = time.perf_counter() + SECONDS - used
        return True

    def need(self, count: int) -> None:
        """Stop before something that would make this many bytes."""
        self.tick()
        if count > self._bytes:
            raise LimitError(f"it makes more than {TOTAL_BYTES >> 20} MiB of text and lists")

    def charge(self, count: int) -> bool:
        """Count bytes that are made."""
        self.need(count)
        self._bytes -= count
        return True


def weigh(value: Any) -> int:
    """Bytes of a value with everything in it.

    Raises:
        LimitError: it is too large, nested too deep, or holds too large a number.
    """
    total, rest = 0, [iter((value,))]
    while rest:
        for item in rest[-1]:
            total += sys.getsizeof(item) if isinstance(item, str) else ITEM_BYTES
            if total > VALUE_BYTES:
                raise LimitError(f"it makes a value of more than {VALUE_BYTES >> 20} MiB")
            if isinstance(item, int) and item.bit_length() > INTEGER_BITS:
                raise too_large_a_number()
            if isinstance(item, _CONTAINERS):
                if len(rest) > DEPTH:
                    raise LimitError(f"it nests lists more than {DEPTH} deep")
                rest.append(_content(item))
                break
        else:
            rest.pop()
    return total


_CONTAINERS: tuple[type, ...] = (list, tuple, dict, range, type({}.keys()), type({}.values()), type({}.items()))


def _content(value: Any) -> Iterator[Any]:
    return (part for pair in value.items() for part in pair) if isinstance(value, dict) else iter(value)


def too_large_a_number() -> LimitError:
    return LimitError(f"it makes a number beyond 2**{INTEGER_BITS}")


def check_operator(meter: Meter, operator: str, left: Any, right: Any) -> None:
    """Ask before a binary operator."""
    if operator == "*":
        for times, value in ((left, right), (right, left)):
            if isinstance(times, int) and isinstance(value, str | list | tuple):
                meter.need(max(0, times) * weigh(value))
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        if left.bit_length() * max(0, right) > 2 * INTEGER_BITS:
            raise too_large_a_number()
    elif operator == "%" and isinstance(left, str):
        check_percent(meter, left, right)


def check_method(meter: Meter, text: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Ask before a method of a text."""
    if name in SPLITTING:
        meter.need(len(text) * ITEM_BYTES)
    if name in SLOW:
        _check_steps(text, args[0] if args else kwargs.get("sep"))
    elif name == "replace":
        _check_replace(meter, text, *args[:2])
    elif name == "join" and args:
        _check_join(meter, args[0], text)
    elif name == "format":
        specs = [spec or "" for _, _, spec, _ in Formatter().parse(text[:FORMAT_CHARACTERS])]
        wide = any("{" in spec or re.search(r"\d{4}", spec) for spec in specs)
        _check_format(meter, text, (*args, *kwargs.values()), wide)


def check_percent(meter: Meter, text: str, values: Any) -> None:
    """Ask before `text % values`."""
    wide = re.search(r"%(\([^)]*\))?[-#0 +\d.]*(\*|\d{4})", text[:FORMAT_CHARACTERS])
    _check_format(meter, text, values, wide is not None)


def _check_format(meter: Meter, text: str, values: Any, wide: bool) -> None:
    if wide or len(text) > FORMAT_CHARACTERS:
        raise LimitError("it formats values to a width of its own")
    meter.need(len(text) * weigh(values) // 2)  # each value may stand in many places


def _check_steps(text: str, other: Any) -> None:
    if isinstance(other, str) and len(text) * len(other) > SLOW_STEPS:
        raise LimitError("it searches a long text for a long one")


# The checks of filters take a filter's own parameters, under Jinja's names.


def _check_replace(meter: Meter, text: Any, old: Any = "", new: Any = "", *_: Any, **__: Any) -> None:
    found = str(text).count(str(old))
    meter.need(4 * (len(str(text)) + found * len(str(new))))


def _check_join(meter: Meter, items: Any, d: Any = "", *_: Any, **__: Any) -> None:
    count = len(items) if hasattr(items, "__len__") else VALUE_BYTES // ITEM_BYTES  # an iterator's were counted
    meter.need(count * max(ITEM_BYTES, sys.getsizeof(str(d))))


def _check_indent(meter: Meter, text: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    columns = len(width) if isinstance(width, str) else int(width)
    meter.need(4 * (str(text).count("\n") + 1) * columns)


def _check_json(
    meter: Meter, value: Any, ensure_ascii: Any = False, indent: Any = None, separators: Any = None, *_: Any, **__: Any
) -> None:
    for part in (indent, *(separators or ())):
        if (len(part) if isinstance(part, str) else part or 0) > SHORT:
            raise LimitError("it writes JSON with long separators")
    meter.need(weigh(value) * SHORT)


def _check_round(meter: Meter, value: Any, precision: Any = 0, *_: Any, **__: Any) -> None:
    if isinstance(precision, int) and abs(precision) > SHORT:
        raise LimitError(f"it rounds to more than {SHORT} digits")


def _check_sum(meter: Meter, items: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, int | float):
        raise LimitError("it sums up something other than numbers")


FILTERS: Mapping[str, Callable[..., None] | None] = {
    **dict.fromkeys(
        """abs capitalize count d default dictsort e escape first float int items last length list lower map max min
        reject rejectattr reverse safe select selectattr sort string title unique upper""".split()  # noqa: SIM905
    ),
    "format": lambda meter, text, *args, **kwargs: check_percent(meter, str(text), kwargs or args),
    "indent": _check_indent,
    "join": _check_join,
    "replace": _check_replace,
    "round": _check_round,
    "sum": _check_sum,
    "tojson": _check_json,
    "trim": lambda meter, text, chars=None: _check_steps(str(text), chars),
}
"""The filters of a template, with what to ask before each beside the size of its value."""
