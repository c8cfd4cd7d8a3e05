"""What the values of a config.json must be: one table of rows for the language model, and a family's rows beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from iwp_export.errors import CheckpointError

Bound: TypeAlias = "float | str | Callable[[Any], float]"
"""A number, the name of another value, or a function of the configuration."""

ELEMENT_TYPES = ("float16", "bfloat16", "float32", "float64")
ID_LIMIT = 2**31 - 1
ABSENT = object()
SHOWN = 240
"""How many characters of a wrong value, or of what transformers says of it, are shown."""


class Row(NamedTuple):
    """What one value must be. Rows are checked in order, so a bound may rely on the rows before.

    Attributes:
        kind: a name of `KINDS`.
        least: the least value of whole numbers; what numbers must be above.
        most: the greatest value.
        multiple_of: what the value must be a multiple of.
        optional: null is allowed.
    """

    kind: str
    least: Bound = -math.inf
    most: Bound = math.inf
    multiple_of: Bound = 0
    optional: bool = False


def _is_activation(value: Any) -> bool:
    from transformers.activations import ACT2FN

    return isinstance(value, str) and value in ACT2FN


KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "int": (lambda value: type(value) is int, "a whole number"),
    "ints": (
        lambda value: type(value) is int or _is_list(value, lambda item: type(item) is int),
        "a whole number or a list of some",
    ),
    "names": (lambda value: _is_list(value, lambda item: isinstance(item, str)), "a list of names"),
    "pairs": (
        lambda value: _is_list(value, lambda item: _is_list(item, lambda size: type(size) is int) and len(item) == 2),
        "a list of pairs of whole numbers",
    ),
    "number": (lambda value: type(value) in (int, float) and math.isfinite(value), "a number"),
    "activation": (_is_activation, "an activation that transformers knows"),
    "dtype": (lambda value: str(value).removeprefix("torch.") in ELEMENT_TYPES, f"one of {', '.join(ELEMENT_TYPES)}"),
}
"""Kinds of values: what they are recognised by, and in words."""


def _attention_width(config: Any) -> float:
    """What hidden_size must be a multiple of: the heads, unless head_dim says how wide they are."""
    text = config.text_config
    heads, width = text.num_attention_heads, getattr(text, "head_dim", None)
    return heads if width in (None, text.hidden_size // heads) else 1


DECODER: Mapping[str, Row] = {
    "architectures": Row("names", optional=True),
    "dtype": Row("dtype", optional=True),
    "text_config.num_hidden_layers": Row("int", 1, 1000),
    "text_config.vocab_size": Row("int", 1, ID_LIMIT),
    "text_config.max_position_embeddings": Row("int", 1, ID_LIMIT),
    "text_config.num_key_value_heads": Row("int", 1, 1 << 16),
    "text_config.num_attention_heads": Row("int", 1, 1 << 16, multiple_of="text_config.num_key_value_heads"),
    "text_config.hidden_size": Row("int", 1, 1 << 20, multiple_of=_attention_width),
    "text_config.head_dim": Row("int", 2, 1 << 14, multiple_of=2, optional=True),
    "text_config.intermediate_size": Row("int", 1, 1 << 22),
    "text_config.rms_norm_eps": Row("number", 0, 1),
    "text_config.hidden_act": Row("activation"),
    "text_config.bos_token_id": Row("int", -1, ID_LIMIT, optional=True),
    "text_config.eos_token_id": Row("ints", -1, ID_LIMIT, optional=True),
    "text_config.pad_token_id": Row("int", -1, lambda config: config.text_config.vocab_size - 1, optional=True),
    "text_config.rope_parameters.rope_theta": Row("number", 0, 1e15),
    "text_config.rope_parameters.factor": Row("number", 0, 1e6),
    "text_config.rope_parameters.attention_factor": Row("number", 0, 1e6, optional=True),
    "text_config.rope_parameters.beta_fast": Row("number", 0, 1e6, optional=True),
    "text_config.rope_parameters.beta_slow": Row("number", 0, 1e6, optional=True),
    "text_config.rope_parameters.low_freq_factor": Row("number", 0, 1e6),
    "text_config.rope_parameters.high_freq_factor": Row("number", "text_config.rope_parameters.low_freq_factor", 1e6),
    "text_config.rope_parameters.original_max_position_embeddings": Row("int", 1, ID_LIMIT, optional=True),
}
"""The language model's part."""


BEFORE_READING: Mapping[str, Row] = {
    f"{part}{name}": row
    for part in ("", "text_config.", "vision_config.")
    for name, row in {
        "num_hidden_layers": Row("int", 1, 1000, optional=True),
        "num_attention_heads": Row("int", 1, 1 << 16, optional=True),
        "num_labels": Row("int", 0, 1 << 16, optional=True),
        "dtype": Row("dtype", optional=True),
        "torch_dtype": Row("dtype", optional=True),
    }.items()
}
"""Values that transformers divides by, makes lists of or looks up while it reads a configuration."""


OTHER_NAMES = (
    ("image_token_index", "image_token_id"),
    ("dtype", "torch_dtype"),
    ("rope_parameters", "rope_scaling"),
    ("text_config.rope_parameters.rope_theta", "text_config.rope_theta"),
)
"""Names of one value, of which a config.json may have either."""


def is_written(name: str, written: Any) -> bool:
    """Whether the JSON of a configuration holds a value of this name; else transformers has made it up."""
    names = {name, *(name.replace(*pair) for pair in OTHER_NAMES), *(name.replace(*pair[::-1]) for pair in OTHER_NAMES)}
    return any(_look_up(written, each) is not ABSENT for each in names)


def check_rows(
    config: Any, path: Path, rows: Mapping[str, tuple[Any, ...]], written: Mapping[str, Any] | None = None
) -> None:
    """Check a configuration's values.

    Args:
        config: the transformers configuration, or its JSON.
        path: its file.
        rows: names, with dots, and the fields of a `Row`; names that the configuration lacks are left out.
        written: its JSON, if `config` is not that: a default of transformers is not blamed on the file.

    Raises:
        CheckpointError: the first value that is not what its row says.
    """
    for name, row in ((name, Row(*fields)) for name, fields in rows.items()):
        value = _look_up(config, name)
        if value is ABSENT or (value is None and row.optional):
            continue
        is_kind, words = KINDS[row.kind]
        if right := is_kind(value):
            least, most, step = (_bound(bound, config) for bound in (row.least, row.most, row.multiple_of))
            above = row.kind == "number"  # of other kinds the least value itself is allowed
            right = all(
                (number > least if above else number >= least) and number <= most and (not step or number % step == 0)
                for number in _numbers(value)
            )
            if math.isfinite(most):
                words += f" above {least:g} and at most {most:g}" if above else f" from {least} to {most}"
            if step > 1:
                name_of_step = f" ({row.multiple_of.split('.')[-1]})" if isinstance(row.multiple_of, str) else ""
                words += f" and a multiple of {step}{name_of_step}"
        if not right and written is not None and not is_written(name, written):
            raise CheckpointError(
                f"{path} lacks {name}, and transformers' default, {shortened(repr(value))}, does not fit the rest: "
                f"it must be {words}; write it into the file"
            )
        if not right:
            raise CheckpointError(f"{path}: {name} must be {words}, got {shortened(repr(value))}")


def shortened(text: str, most: int = SHOWN) -> str:
    """A text that is no longer than a line of an error should be."""
    return text if len(text) <= most else f"{text[:most]}..."


def _look_up(config: Any, name: str) -> Any:
    """The value of this name, through configurations and dictionaries; `ABSENT` if there is none."""
    for part in name.split("."):
        config = config.get(part, ABSENT) if isinstance(config, dict) else getattr(config, part, ABSENT)
    return config


def _bound(bound: Bound, config: Any) -> float:
    if isinstance(bound, str):
        found: float = _look_up(config, bound)
        return found
    return bound(config) if callable(bound) else bound


def _is_list(value: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(of(item) for item in value)


def _numbers(value: Any) -> list[float]:
    """The numbers of a value, to be compared with bounds."""
    if isinstance(value, list | tuple):
        return [number for item in value for number in _numbers(item)]
    return [value] if type(value) in (int, float) else []
