"""What a session computed comes back to the host: features, caches, and the states between layers; on every backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from iwp_export.backends.ort.session import OrtSession, find_names
from iwp_export.backends.session import widened
from iwp_export.backends.torch.session import TorchSession
from iwp_export.bundle.store import Bundle
from iwp_export.errors import BackendError
from iwp_export.exporter.checkpoint import open_checkpoint
from tests.backends.trt.fake_trt import make_session
from tests.runtime.toy import ToySession, build_decode, build_prompt, write_toy_bundle

PIXELS = np.random.default_rng(0).standard_normal((1, 3, 112, 112), np.float32)
TOKENS, KEPT = 67, 23


@pytest.fixture(scope="module")
def ort(tiny_bundle: Path) -> OrtSession:
    return OrtSession(Bundle.open(tiny_bundle), threads=1)


@pytest.fixture(scope="module")
def checkpoint(tiny_bundle: Path) -> TorchSession:
    opened = open_checkpoint("tiny-llava")
    return TorchSession(opened.load_model(), opened.family, Bundle.open(tiny_bundle).manifest.pruning)


def run(session: Any, path: Path, look: bool = False) -> tuple[Any, ...]:
    """A prompt at keep 0.3 and a token: the outputs, what was seen, the cache and the features."""
    manifest = Bundle.open(path).manifest
    image = manifest.vision.image_token_id
    features, cache = session.encode({"pixel_values": PIXELS}), session.new_cache()
    prompt = build_prompt([2, *[image] * 64, 9, 8], image, manifest.pruning, 0.3)
    step = session.look if look else session.step
    outputs = [step(prompt, [features], cache), step(build_decode(5, TOKENS), [], cache)]
    return outputs, cache, features


def close(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)


def test_backends_read_the_same_features_and_caches(
    ort: OrtSession, checkpoint: TorchSession, tiny_bundle: Path
) -> None:
    engine = make_session(tiny_bundle)[0]
    _, expected_cache, expected_features = run(checkpoint, tiny_bundle)
    for session in (ort, engine):
        _, cache, features = run(session, tiny_bundle)
        read = session.read_features(features)
        assert read.dtype == np.float32
        close(read, checkpoint.read_features(expected_features))
        for layer, length in enumerate(cache.lengths):
            found, expected = session.read_cache(cache, layer), checkpoint.read_cache(expected_cache, layer)
            assert length == (TOKENS + 1 if layer < 4 else KEPT + 1)
            for ours, theirs in zip(found, expected, strict=True):
                assert ours.shape == (2, length, 32) and ours.dtype == np.float32
                close(ours, theirs)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_an_empty_cache_and_a_toy_s(tmp_path: Path, dtype: str) -> None:
    path = write_toy_bundle(tmp_path / "x", dtype)
    for session in (OrtSession(Bundle.open(path), threads=1), make_session(path)[0]):
        cache = session.new_cache()
        assert [part.shape for part in session.read_cache(cache, 1)] == [(1, 0, 3)] * 2
        session.step(build_prompt([7, 9], 4, Bundle.open(path).manifest.pruning), [], cache)
        for part in session.read_cache(cache, 1):
            np.testing.assert_array_equal(part, [[[7, 7, 7], [9, 9, 9]]])


def test_looking_inside_changes_nothing_and_shows_what_torch_has(
    ort: OrtSession, checkpoint: TorchSession, tiny_bundle: Path
) -> None:
    before = sorted(file.name for file in tiny_bundle.iterdir())
    plain, *_ = run(ort, tiny_bundle)
    (ours, theirs) = (run(session, tiny_bundle, look=True)[0] for session in (ort, checkpoint))
    for step, (output, inside) in enumerate(ours):
        np.testing.assert_allclose(output.logits, plain[step].logits, atol=1e-5)
        np.testing.assert_array_equal(output.kept_index, plain[step].kept_index)
        rows = [[TOKENS] * 5 + [KEPT] * 3, [1] * 8][step]
        assert [len(hidden) for hidden in inside.hidden] == rows
        assert (inside.key.shape, inside.value.shape) == ((2, rows[0], 32),) * 2
        expected = theirs[step][1]
        for hidden, other in zip(inside.hidden, expected.hidden, strict=True):
            close(hidden, other)
        for name in ("key", "value", "importance") if step == 0 else ("key", "value"):
            close(getattr(inside, name), getattr(expected, name))
    assert sorted(file.name for file in tiny_bundle.iterdir()) == before


def test_what_cannot_be_looked_at_says_so(tmp_path: Path, tiny_bundle: Path) -> None:
    toy = OrtSession(Bundle.open(write_toy_bundle(tmp_path / "toy")), threads=1)
    assert toy.no_look == "decoder.onnx does not tell the input of layer 0: its norm has another name"
    engine = make_session(tiny_bundle)[0]
    assert "compiled engine" in engine.no_look
    for session in (toy, engine, ToySession()):
        with pytest.raises(BackendError) as refused:
            session.look(build_decode(5, 0), [], session.new_cache())
        assert str(refused.value) == session.no_look


def test_a_graph_without_the_op() -> None:
    import onnx

    with pytest.raises(BackendError, match="x has no pruning op"):
        find_names(onnx.ModelProto(), "x")


def test_bfloat16_bits_are_widened() -> None:
    numbers = np.array([1.5, -3e38, 0, 1e-30], np.float32).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(widened(numbers.view(np.uint16)), numbers.astype(np.float32))
