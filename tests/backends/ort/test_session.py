"""ONNX Runtime behind the session interface, on the toy bundle; its answers are the numpy session's."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import iwp_export
from iwp_export.backends.ort import session as providers
from iwp_export.backends.ort.session import OrtCache, OrtSession
from iwp_export.bundle.store import Bundle
from iwp_export.errors import BackendError
from tests.runtime.toy import build_decode, build_prompt, toy_pipeline, write_toy_bundle

IMAGE, OTHER = np.random.default_rng(3).integers(0, 256, (2, 60, 90, 3), np.uint8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bundle(tmp_path_factory.mktemp("toy") / "toy.bundle")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_answers_equal_the_numpy_session(tmp_path: Path, dtype: str) -> None:
    pipeline = iwp_export.load(str(write_toy_bundle(tmp_path / "x", dtype)), threads=1)
    expected, _ = toy_pipeline()
    for image in (IMAGE, None, [IMAGE, OTHER]):
        ours, theirs = (p(image, "what colour ?", max_new_tokens=8) for p in (pipeline, expected))
        assert (ours.token_ids, ours.kept, ours.text) == (theirs.token_ids, theirs.kept, theirs.text)
        assert ours.cache_bytes * (2 if dtype == "float16" else 1) == theirs.cache_bytes
    chats = [p.chat(keep=0.3) for p in (pipeline, expected)]
    for image in (IMAGE, None, OTHER):
        ours, theirs = (chat.ask("how many ?", image, max_new_tokens=4) for chat in chats)
        assert (ours.token_ids, ours.reused_tokens, ours.note) == (theirs.token_ids, theirs.reused_tokens, "")


def test_outputs_become_inputs_without_a_copy(bundle: Path) -> None:
    session = OrtSession(Bundle.open(bundle), threads=1)
    settings = Bundle.open(bundle).manifest.pruning
    cache = session.new_cache()
    assert isinstance(cache, OrtCache) and cache.lengths == (0, 0) and cache.nbytes == 0
    features = session.encode({"pixel_values": np.zeros((1, 3, 112, 112), np.float32)})
    assert features.count == 64
    session.step(build_prompt([2, *[4] * 64, 9], 4, settings, keep=0.25), [features], cache)
    assert cache.lengths == (66, 18)
    before = [value.data_ptr() for value in cache.values]
    seen: list[int] = []
    make = session._decoder.io_binding

    def watched() -> Any:
        binding = make()
        bind = binding.bind_ortvalue_input

        def watch(name: str, value: Any) -> None:
            seen.append(value.data_ptr())
            bind(name, value)

        binding.bind_ortvalue_input = watch
        return binding

    session._decoder.io_binding = watched
    session.step(build_decode(9, 66), [], cache)
    assert seen[1:] == before and cache.lengths == (67, 19)


def test_two_caches_do_not_disturb_each_other(bundle: Path) -> None:
    session = OrtSession(Bundle.open(bundle), threads=1)
    settings = Bundle.open(bundle).manifest.pruning
    one, other = session.new_cache(), session.new_cache()
    first = session.step(build_prompt([2, 7, 9], 4, settings), [], one).logits
    kept = first.copy()
    session.step(build_prompt([2, 8, 11, 12], 4, settings), [], other)
    np.testing.assert_array_equal(first, kept)
    assert one.lengths == (3, 3) and other.lengths == (4, 4)
    after = session.step(build_decode(9, 3), [], one)
    fresh = session.new_cache()
    expected = session.step(build_prompt([2, 7, 9, 9], 4, settings), [], fresh)
    np.testing.assert_array_equal(after.logits, expected.logits)


def test_an_old_cache_is_freed_at_once(bundle: Path) -> None:
    session = OrtSession(Bundle.open(bundle), threads=1)
    cache = session.new_cache()
    assert isinstance(cache, OrtCache)
    session.step(build_decode(9, 0), [], cache)
    old = [weakref.ref(value) for value in cache.values]
    session.step(build_decode(9, 1), [], cache)
    assert [value() for value in old] == [None] * 4


def test_a_failed_step_leaves_the_cache(bundle: Path) -> None:
    session = OrtSession(Bundle.open(bundle), threads=1)
    cache = session.new_cache()
    broken = build_decode(9, 0)
    with pytest.raises(BackendError, match="ONNX Runtime failed"):
        session.step(
            type(broken)(broken.input_ids, broken.feature_index, broken.query_index, broken.position_ids, 7),
            [],
            cache,
        )
    assert cache.lengths == (0, 0)
    session.step(broken, [], cache)
    assert cache.lengths == (1, 1)


def test_a_provider_that_is_not_there() -> None:
    with pytest.raises(BackendError, match=r"provider tensorrt is not active.*Available are .*cpu.*ort-gpu"):
        providers.create_session(Path("x.onnx"), "tensorrt")
    with pytest.raises(BackendError, match=r"unknown provider 'gpu'; known are cpu, cuda"):
        providers.create_session(Path("x.onnx"), "gpu")


def test_a_provider_that_fell_back_is_an_error(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda self: ["CPUExecutionProvider"])
    real = onnxruntime.InferenceSession

    def on_cpu(path: str, options: Any, providers: list[Any]) -> Any:
        assert providers == [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", on_cpu)
    with pytest.raises(BackendError, match=r"provider cuda is not active.*fell back to the CPU"):
        OrtSession(Bundle.open(bundle), "cuda")


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"nonsense")
    with pytest.raises(BackendError, match=r"cannot load .*x\.onnx"):
        providers.create_session(tmp_path / "x.onnx", "cpu")
    with pytest.raises(BackendError, match="threads must be"):
        providers.create_session(tmp_path / "x.onnx", "cpu", 0)


def test_bfloat16_on_the_cpu_is_refused(tmp_path: Path) -> None:
    path = write_toy_bundle(tmp_path / "x", "bfloat16")
    with pytest.raises(BackendError, match=r"no bfloat16 kernels.*as float32"):
        OrtSession(Bundle.open(path))


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **options: Any) -> Any:
        if name == "onnxruntime":
            raise ImportError("No module named 'onnxruntime'")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(BackendError, match=r"not installed.*iwp-export\[ort\]"):
        providers.create_session(Path("x.onnx"), "cpu")


def test_runs_without_torch_and_onnx(bundle: Path) -> None:
    code = """if True:
        import sys
        for name in ("torch", "torchvision", "onnx", "onnx_ir", "onnxscript", "safetensors"):
            sys.modules[name] = None
        import numpy as np
        import iwp_export
        pipeline = iwp_export.load(sys.argv[1], threads=1)
        image = np.random.default_rng(3).integers(0, 256, (2, 60, 90, 3), np.uint8)[0]
        chat = pipeline.chat()
        result = chat.ask("what colour ?", image, max_new_tokens=4)
        pipeline.draw_kept(result)
        print(result.text)
        print(chat.ask("how many ?", max_new_tokens=4).reused_tokens)
    """
    process = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    expected, _ = toy_pipeline()
    assert process.stdout.splitlines() == [expected(IMAGE, "what colour ?", max_new_tokens=4).text, "73"]
    assert process.stderr == ""


@pytest.mark.parametrize("first", ["iwp_export", pytest.param("onnxruntime", marks=pytest.mark.slow)])
def test_no_telemetry(bundle: Path, tmp_path: Path, first: str) -> None:
    """An answer leaves no device id and no database of events behind, also in the process that `doctor` starts.

    Where ONNX Runtime was imported before, its files are there; then it is told to stop.
    """
    code = f"""
import {first}
import onnxruntime
told = []
onnxruntime.disable_telemetry_events = lambda: told.append(True)
import iwp_export
from iwp_export.device.machine import import_all
iwp_export.load({str(bundle)!r})(None, "what ?", max_new_tokens=1)
assert told
assert import_all({{"onnxruntime": "onnxruntime"}})["onnxruntime"].providers
"""
    kept = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "CI")}
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "LOCALAPPDATA": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**kept, **home})
    assert done.returncode == 0, done.stderr
    if first == "iwp_export":
        assert not [path for path in tmp_path.rglob("*") if "Microsoft" in path.parts or "onnxruntime" in path.name]
