"""An observation survives a recording; what differs of two is placed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from iwp_export.errors import RecordingError
from iwp_export.parity.compare import Comparison
from iwp_export.parity.observation import Choice, Observation
from iwp_export.parity.packing import pack, unpack
from iwp_export.parity.sketch import Rows, sketched
from iwp_export.pruning.settings import PruningSettings

RNG = np.random.default_rng(0)
SETTINGS = PruningSettings(layer=1)
S, N, K, T = 9, 5, 6, 4


def rows(count: int) -> Rows:
    return sketched(RNG.standard_normal((count, 16)))


def observation(hidden: bool = True) -> Observation:
    """Of a model with two layers; the second holds the tokens that are left."""
    alike = RNG.random((N, N)).astype(np.float32)
    lengths = (S + T - 1, K + T - 1)
    return Observation(
        token_ids=np.arange(S),
        visual=np.isin(np.arange(S), range(2, 2 + N)),
        inputs=({"pixel_values": rows(12), "pack_index": np.arange(N)}, {"pixel_values": rows(3)}),
        features=(rows(3), rows(2)),
        kept=np.array([0, 1, 3, 5, 7, 8]),
        tokens=np.array([4, 4, 3, 2]),
        forced=np.array([4, 4, 3, 2]),
        logits=RNG.standard_normal((T, 20)).astype(np.float32),
        cache=tuple((rows(length), rows(length)) for length in lengths),
        hidden=tuple(rows(S + T - 1) for _ in lengths) if hidden else (),
        choice=Choice(RNG.random(N).astype(np.float32), alike + alike.T),
    )


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Observation | Rows | Choice):
        return type(a) is type(b) and all(same(value, vars(b)[name]) for name, value in vars(a).items())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a is b is None or np.array_equal(a, b)


@pytest.mark.parametrize("hidden", [True, False])
def test_observations_come_back(hidden: bool) -> None:
    first, second = observation(hidden), observation(hidden)
    unpruned = replace(first, kept=np.arange(S), choice=None)
    arrays = {**pack(unpruned, 0, 0), **pack(first, 0, 1), **pack(second, 11, 0)}
    assert same(unpack(arrays, 0, 1, T), first)
    assert same(unpack(arrays, 11, 0, T), second)
    assert not same(unpack(arrays, 11, 0, T), first)


def test_an_answer_is_cut() -> None:
    whole = observation()
    cut = unpack(pack(whole, 0, 0), 0, 0, 2)
    assert (len(cut.tokens), len(cut.logits)) == (2, 2)
    assert [len(key) for key, _ in cut.cache] == [S + 1, K + 1] and len(cut.hidden[0]) == S + 1
    np.testing.assert_array_equal(cut.cache[1][0].norm, whole.cache[1][0].norm[:-2])


@pytest.mark.parametrize("name", ["0.token_ids", "0.0.cache.lengths", "0.features.norm", "0.alike"])
def test_what_does_not_fit_is_damage(name: str) -> None:
    arrays = pack(observation(), 0, 0)
    with pytest.raises(RecordingError, match="the recording is damaged: sample 0"):
        unpack({each: array for each, array in arrays.items() if each != name}, 0, 0, T)
    if name != "0.token_ids":
        with pytest.raises(RecordingError, match="the recording is damaged: sample 0"):
            unpack({**arrays, name: arrays[name][:-1]}, 0, 0, T)


def flaws(ours: Observation, theirs: Observation) -> dict[str, str]:
    comparison = Comparison(0.5, SETTINGS)
    comparison.add_inputs("one", ours, theirs)
    comparison.add_rest("one", ours, theirs)
    return {name: tally.flaw for name, tally in comparison.tallies.items() if tally.flaw}


def test_what_cannot_be_compared_is_placed() -> None:
    right = observation()
    assert flaws(right, right) == {}
    (key, value), last = right.cache
    first, second = right.inputs
    shorter, moved = Rows(value.sketch[1:], value.norm[1:]), np.array([0, 1, 2, 4, 3])
    for changes, stage, says in (
        ({"cache": ((key, shorter), last)}, "caches", "layer 0, value, token 0: 11 rows, the reference has 12"),
        ({"cache": ((key, value),)}, "caches", "one, keep 0.5: 1 layers, the reference has 2"),
        ({"features": right.features[:1]}, "features", "one: 1 images, not 2"),
        ({"inputs": (second, second)}, "pixels", "one, image 1, pixel_values, row 0: 3 rows, the reference has 12"),
        ({"inputs": ({**first, "pack_index": moved}, second)}, "pixels", "pack_index: 4 at 3, the reference has 3"),
        ({"inputs": (dict(list(first.items())[:1]), second)}, "pixels", "one, image 1, pack_index: not there"),
        ({"logits": right.logits[:, :19]}, "logits", "generated token 0: [4, 19] logits, the reference has [4, 20]"),
    ):
        found = flaws(replace(right, **changes), right)
        assert list(found) == [stage] and says in found[stage]


def test_the_worst_row_is_named_by_its_token_in_the_unpruned_prompt() -> None:
    right = observation()
    far = right.cache[1][0].sketch.copy()
    for row, name in ((3, "token 5"), (K + 1, "generated token 1")):
        changed = far.copy()
        changed[row] += 9
        cache = (right.cache[0], (Rows(changed, right.cache[1][0].norm), right.cache[1][1]))
        comparison = Comparison(0.5, SETTINGS)
        comparison.add_rest("one", replace(right, cache=cache), right)
        assert comparison.tally("caches").where == f"one, keep 0.5, layer 1, key, {name}"
        assert comparison.tally("caches").cosine_where == "one, keep 0.5, layer 1, key"


def test_tokens_of_the_text_must_stay() -> None:
    right = observation()
    for kept, says in (
        ([0, 2, 3, 5, 7, 8], "tokens of the text were dropped"),
        ([0, 1, 3, 5, 7], "5 tokens went on, not 6"),
        ([0, 1, 5, 3, 7, 8], "kept_index does not rise"),
        ([0, 1, 3, 5, 7, 9], "kept_index does not rise within the prompt"),
    ):
        comparison = Comparison(0.5, SETTINGS)
        assert not comparison.add_choice("one", replace(right, kept=np.array(kept)), right)
        assert says in comparison.kept_flaw


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("0.0.logits", lambda array: array[0]),
        ("0.0.logits", lambda array: array[:2]),
        ("0.0.forced", lambda array: array.astype(float)),
        ("0.0.tokens", lambda array: array[:0]),
        ("0.0.kept", lambda array: array[::-1]),
        ("0.0.kept", lambda array: array + S),
        ("0.visual", lambda array: array[:-1]),
        ("0.token_ids", lambda array: array[None]),
        ("0.images", lambda array: array + 1),
        ("0.0.cache.sketch", lambda array: array[:, :3]),
        ("0.features.sketch", lambda array: array.astype("U8")),
    ],
)
def test_arrays_that_do_not_fit_are_damage(name: str, change: Any) -> None:
    """Whoever writes a file can seal it: comparisons must not meet shapes that they do not expect."""
    arrays = pack(observation(), 0, 0)
    arrays[name] = change(arrays[name])
    with pytest.raises(RecordingError, match="damaged"):
        unpack(arrays, 0, 0, T)
