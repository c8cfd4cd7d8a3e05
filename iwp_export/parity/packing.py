"""An observation as named arrays of a recording, and back.

What does not depend on the keep ratio (prompt, pixels, features, what tokens are chosen from) is there once for a
sample, under its number; the rest is under the numbers of the sample and of the ratio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from iwp_export.backends.session import Array, Ints
from iwp_export.errors import RecordingError
from iwp_export.parity.observation import Choice, Observation
from iwp_export.parity.sketch import PROJECTIONS, Rows


def pack(found: Observation, sample: int, ratio: int) -> dict[str, Array]:
    """Arrays by name."""
    once, here = f"{sample}", f"{sample}.{ratio}"
    arrays: dict[str, Array] = {f"{once}.token_ids": found.token_ids, f"{once}.visual": found.visual}
    arrays[f"{once}.images"] = np.array(len(found.inputs), np.int64)
    for number, inputs in enumerate(found.inputs):
        for name, value in inputs.items():
            where = f"{once}.input.{number}.{name}"
            arrays.update(_rows(where, [value]) if isinstance(value, Rows) else {where: value})
    arrays.update(_rows(f"{once}.features", found.features))
    if found.choice is not None:
        alike = found.choice.alike  # symmetric: half of it will do
        arrays[f"{once}.importance"] = found.choice.importance
        arrays[f"{once}.alike"] = alike[np.triu_indices(len(alike))]
    for name in ("kept", "tokens", "forced", "logits"):
        arrays[f"{here}.{name}"] = getattr(found, name)
    arrays.update(_rows(f"{here}.cache", [rows for layer in found.cache for rows in layer]))
    arrays.update(_rows(f"{here}.hidden", found.hidden))
    return arrays


def unpack(arrays: Mapping[str, Array], sample: int, ratio: int, new_tokens: int) -> Observation:
    """The observation, cut to `new_tokens` tokens of the answer.

    Raises:
        RecordingError: an array is missing, or does not fit the others.
    """
    once, here = f"{sample}", f"{sample}.{ratio}"
    try:
        total = _fitting(arrays, once, here)
        drop = total - min(new_tokens, total)
        cache = [_shorter(rows, drop) for rows in _split(arrays, f"{here}.cache")]
        choice = None
        if f"{once}.importance" in arrays:
            importance = arrays[f"{once}.importance"]
            choice = Choice(importance, _symmetric(arrays[f"{once}.alike"], len(importance)))
        return Observation(
            token_ids=arrays[f"{once}.token_ids"],
            visual=arrays[f"{once}.visual"],
            inputs=tuple(_inputs(arrays, f"{once}.input.{i}.") for i in range(int(arrays[f"{once}.images"]))),
            features=tuple(_split(arrays, f"{once}.features")),
            kept=arrays[f"{here}.kept"],
            tokens=arrays[f"{here}.tokens"][: total - drop],
            forced=arrays[f"{here}.forced"][: total - drop],
            logits=arrays[f"{here}.logits"][: total - drop],
            cache=tuple(zip(cache[::2], cache[1::2], strict=True)),
            hidden=tuple(_shorter(rows, drop) for rows in _split(arrays, f"{here}.hidden")),
            choice=choice,
        )
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise RecordingError(f"the recording is damaged: sample {sample}, {error}: record again") from error


def _fitting(arrays: Mapping[str, Array], once: str, here: str) -> int:
    """The length of the answer, once arrays have the types and lengths that comparisons take for granted.

    Raises:
        ValueError: one has not.
    """
    kinds = {f"{once}.token_ids": "i", f"{once}.visual": "b"}
    kinds |= {f"{here}.kept": "i", f"{here}.tokens": "i", f"{here}.forced": "i", f"{here}.logits": "f"}
    for name, kind in kinds.items():
        array = arrays[name]
        if array.dtype.kind != kind or array.ndim != (2 if kind == "f" else 1) or 0 in array.shape:
            raise ValueError(f"{name} is {array.dtype} {list(array.shape)}")
    prompt, answer = (
        {len(arrays[f"{at}.{name}"]) for name in names}
        for at, names in ((once, ("token_ids", "visual")), (here, ("tokens", "forced", "logits")))
    )
    if len(prompt) > 1 or len(answer) > 1:
        raise ValueError("arrays of tokens differ in length")
    kept = arrays[f"{here}.kept"]
    if np.any(np.diff(kept) <= 0) or kept[0] < 0 or kept[-1] >= prompt.pop():
        raise ValueError(f"{here}.kept does not rise within the prompt")
    if int(arrays[f"{once}.images"]) != len(arrays[f"{once}.features.lengths"]):
        raise ValueError("it has not the features of each image")
    return answer.pop()


def _rows(prefix: str, parts: Sequence[Rows]) -> dict[str, Array]:
    empty = np.zeros((0, 0), np.float32)
    return {
        f"{prefix}.sketch": np.concatenate([part.sketch for part in parts]) if parts else empty,
        f"{prefix}.norm": np.concatenate([part.norm for part in parts]) if parts else empty[0:0, 0:0].reshape(0),
        f"{prefix}.lengths": np.array([len(part) for part in parts], np.int64),
    }


def _split(arrays: Mapping[str, Array], prefix: str) -> list[Rows]:
    sketch, norm, lengths = (arrays[f"{prefix}.{name}"] for name in ("sketch", "norm", "lengths"))
    if sketch.dtype.kind + norm.dtype.kind != "ff" or (len(sketch) and sketch.shape[1:] != (PROJECTIONS,)):
        raise ValueError(f"{prefix} is no sketch")
    ends = np.cumsum(lengths)
    if (len(sketch), len(norm)) != (int(ends[-1]) if len(ends) else 0,) * 2:
        raise ValueError(f"{prefix} has other rows than it says")
    return [Rows(sketch[end - n : end], norm[end - n : end]) for n, end in zip(lengths, ends, strict=True)]


def _symmetric(half: Array, size: int) -> Array:
    """A symmetric matrix from its upper triangle."""
    rows, columns = np.triu_indices(size)
    whole = np.zeros((size, size), np.float32)
    whole[rows, columns] = half
    whole[columns, rows] = half
    return whole


def _inputs(arrays: Mapping[str, Array], prefix: str) -> dict[str, Rows | Ints]:
    found: dict[str, Rows | Ints] = {}
    for name in arrays:
        if name.startswith(prefix):
            key = name.removeprefix(prefix).split(".")[0]
            found[key] = _split(arrays, prefix + key)[0] if f"{prefix}{key}.sketch" in arrays else arrays[name]
    return found


def _shorter(rows: Rows, drop: int) -> Rows:
    """Without the answer's last tokens."""
    return rows if not drop else Rows(rows.sketch[:-drop], rows.norm[:-drop])
