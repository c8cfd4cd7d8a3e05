"""Loading NAME.plan: what is wrong is said before TensorRT is asked, with the command that builds it again."""

from __future__ import annotations

import gc
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import iwp_export
from iwp_export.backends.trt import load as trt_load
from iwp_export.backends.trt.runner import deserialize
from iwp_export.bundle.store import Bundle
from iwp_export.device.gpu import Gpu
from iwp_export.engine.files import EnginePaths
from iwp_export.engine.flavour import Flavour
from iwp_export.engine.profiles import DECODE, PREFILL
from iwp_export.errors import BackendError, BundleError
from tests.backends.trt.fake_trt import TRT, FakeDevice, FakeEngine, Log
from tests.runtime.toy import toy_pipeline, write_plan, write_toy_bundle


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine with TensorRT-RTX and a card of SM 89, which never gets as far as an engine."""
    here = SimpleNamespace(gpu=Gpu("RTX 4090", "89", 13), stream=1, version="1.7.1.116")
    monkeypatch.setattr(trt_load, "Device", lambda: here)
    monkeypatch.setattr(trt_load, "load_flavour", lambda name: Flavour(name, here.version, SimpleNamespace()))
    for make in ("make_logger", "make_printing_logger"):
        monkeypatch.setattr(trt_load, make, lambda module: pytest.fail("TensorRT was asked"))
    return here


def rejection(path: Path) -> str:
    with pytest.raises(BackendError) as caught:
        iwp_export.load(str(path))
    return str(caught.value)


def test_another_gpu_is_refused_with_the_command(tmp_path: Path, machine: Any) -> None:
    machine.gpu = Gpu("RTX 5090", "120", 13)
    path = write_plan(tmp_path / "toy.plan")
    assert rejection(path) == (
        f"{path} was built for SM 86, 89, RTX 5090 is SM 120: engines are not portable. Build it again with: "
        f"iwp-export build toy.bundle -o {path} --target rtx --sm 120 --max-context 256 --max-prompt 200 "
        "--max-images 1 --force"
    )


def test_a_jetson_is_told_to_use_its_own_tensorrt(tmp_path: Path, machine: Any) -> None:
    machine.gpu = Gpu("Orin", "87", 13)
    assert "--target tensorrt --max-context 256" in rejection(write_plan(tmp_path / "toy.plan"))


def test_another_version_is_refused(tmp_path: Path, machine: Any) -> None:
    text = rejection(write_plan(tmp_path / "toy.plan", version="1.3.0.35"))
    assert "was built by TensorRT-RTX 1.3.0.35, 1.7.1.116 is installed here" in text


def test_a_matching_engine_goes_on_to_the_kernels(tmp_path: Path, machine: Any, monkeypatch: Any) -> None:
    def no_kernels(gpu: Gpu) -> Any:
        raise BackendError(f"no kernels for {gpu.sm}")

    monkeypatch.setattr(trt_load, "make_printing_logger", lambda module: None)
    monkeypatch.delenv("IWP_TENSORRT_PLUGIN", raising=False)
    monkeypatch.setattr(trt_load, "find_kernels", no_kernels)
    assert rejection(write_plan(tmp_path / "toy.plan")) == "no kernels for 89"


@pytest.mark.parametrize("name", ["toy.json", "toy.vision.plan", "toy.processor/tokenizer.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = write_plan(tmp_path / "toy.plan")
    (tmp_path / name).unlink()
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        iwp_export.load(str(path))


def test_a_changed_file_is_named(tmp_path: Path) -> None:
    path = write_plan(tmp_path / "toy.plan")
    path.write_bytes(b"NOT AN ENGINE")
    with pytest.raises(BundleError, match=r"toy\.plan has 13 bytes, not 19"):
        iwp_export.load(str(path))


def test_a_json_of_something_else_is_refused(tmp_path: Path) -> None:
    path = write_plan(tmp_path / "toy.plan")
    info = EnginePaths.of(path).info
    for text, message in (("{}", "does not describe an engine"), ("{", "is not JSON")):
        info.write_text(text)
        with pytest.raises(BundleError, match=message):
            iwp_export.load(str(path))


def test_a_newer_schema_asks_for_an_upgrade(tmp_path: Path) -> None:
    path = write_plan(tmp_path / "toy.plan")
    info = EnginePaths.of(path).info
    info.write_text(json.dumps({**json.loads(info.read_text()), "schema_version": 99}))
    with pytest.raises(BundleError, match="upgrade iwp-export"):
        iwp_export.load(str(path))


def test_options_of_bundles_are_refused(tmp_path: Path) -> None:
    path = write_plan(tmp_path / "toy.plan")
    with pytest.raises(BackendError, match="an engine runs on the TensorRT that built it"):
        iwp_export.load(str(path), provider="cuda")


def test_an_engine_that_tensorrt_refuses_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.plan"
    path.write_bytes(b"x")
    logger = SimpleNamespace(errors=["Serialization assertion failed"])
    module = SimpleNamespace(
        __name__="tensorrt", Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda content: None)
    )
    with pytest.raises(BackendError, match=r"tensorrt does not load .*x\.plan: Serialization assertion failed"):
        deserialize(module, logger, path)


def test_a_runtime_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    def refuse(logger: object) -> object:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    logger = SimpleNamespace(errors=["CUDA initialization failure with error: 35"])
    with pytest.raises(BackendError, match="tensorrt does not start: CUDA initialization failure"):
        deserialize(SimpleNamespace(__name__="tensorrt", Runtime=refuse), logger, tmp_path / "x.plan")


@pytest.fixture
def fake_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, FakeEngine]:
    """A machine that runs the engines of `toy.bundle`, computed by ONNX Runtime; gives them by role."""
    bundle = Bundle.open(write_toy_bundle(tmp_path / "toy.bundle"))
    device = FakeDevice()
    engines = {role: FakeEngine(device, bundle, role) for role in ("vision", "decoder")}

    def deserialize_fake(module: Any, logger: Any, path: Path) -> tuple[Any, Any]:
        return object(), engines["vision" if ".vision" in path.name else "decoder"]

    monkeypatch.setattr(trt_load, "Device", lambda: device)
    monkeypatch.setattr(trt_load, "load_flavour", lambda name: Flavour(name, "1.7.1.116", TRT))
    for make in ("make_logger", "make_printing_logger"):
        monkeypatch.setattr(trt_load, make, lambda module: Log())
    monkeypatch.setattr(trt_load, "register_plugin", lambda *arguments: None)
    monkeypatch.setattr(trt_load, "find_kernels", lambda gpu: None)
    monkeypatch.setattr(trt_load, "deserialize", deserialize_fake)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return engines


@pytest.mark.parametrize("flavour", ["rtx", "tensorrt"])
@pytest.mark.parametrize("profiles", [1, 2])
def test_a_loaded_engine_answers(tmp_path: Path, fake_card: Any, flavour: Any, profiles: int) -> None:
    path = write_plan(tmp_path / "toy.plan", flavour=flavour, profiles=profiles)
    pipeline, (expected, _) = iwp_export.load(str(path)), toy_pipeline()
    image = np.full((60, 90, 3), 99, np.uint8)
    ours, theirs = (p(image, "what colour ?", max_new_tokens=5) for p in (pipeline, expected))
    assert (ours.token_ids, ours.kept) == (theirs.token_ids, theirs.kept)
    decoder = fake_card["decoder"]
    assert decoder.runs == ({PREFILL: 1, DECODE: 4} if profiles == 2 else {PREFILL: 5})
    strategies = [config.dynamic_shapes_kernel_specialization_strategy for config in decoder.configs]
    assert strategies == ([0, 2] if flavour == "rtx" else [])  # decode steps, the second, have new shapes each time
    assert pipeline.provider.startswith("TensorRT-RTX" if flavour == "rtx" else "TensorRT 1")


def test_too_little_memory_for_a_context_is_said_before_it_is_made(tmp_path: Path, fake_card: Any) -> None:
    fake_card["decoder"].context_bytes = {PREFILL: 1 << 50, DECODE: 0}
    path = write_plan(tmp_path / "toy.plan", profiles=2)
    with pytest.raises(BackendError, match="the fake GPU is full"):
        iwp_export.load(str(path))
    assert fake_card["decoder"].contexts == []


@pytest.mark.parametrize("flavour", ["rtx", "tensorrt"])
@pytest.mark.parametrize("profiles", [1, 2])
def test_all_contexts_have_one_memory_for_activations(
    tmp_path: Path, fake_card: Any, flavour: Any, profiles: int
) -> None:
    fake_card["decoder"].context_bytes = {PREFILL: 5000, DECODE: 7000}
    pipeline = iwp_export.load(str(write_plan(tmp_path / "toy.plan", flavour=flavour, profiles=profiles)))
    contexts = [context for engine in fake_card.values() for context in engine.contexts]
    assert len(contexts) == (2 if (flavour, profiles) == ("tensorrt", 1) else 3)
    ((address, size),) = {context.memory for context in contexts}
    device = fake_card["decoder"].device
    assert device.memory[address].nbytes == size == (7000 if profiles == 2 else 5000)
    del pipeline
    gc.collect()
    assert device.used == 0


def test_two_images_of_an_interrupted_conversation_run_again_in_an_engine_of_one(
    tmp_path: Path, fake_card: Any
) -> None:
    chats = [p.chat(keep=0.25) for p in (iwp_export.load(str(write_plan(tmp_path / "toy.plan"))), toy_pipeline()[0])]
    results = []
    for chat in chats:
        chat.ask("what colour ?", np.full((60, 90, 3), 99, np.uint8), max_new_tokens=3)
        chat.ask("which digit ?", np.full((60, 90, 3), 33, np.uint8), max_new_tokens=3)
        if chat is chats[0]:
            stream = chat.stream("what ?")
            next(stream)
            stream.close()
        results.append(chat.ask("how many ?", max_new_tokens=3))
    assert results[0].note.endswith("turn by turn") and not results[1].note
    assert results[0].token_ids == results[1].token_ids and len(results[0].kept) == 2


def test_engines_without_activations_load(tmp_path: Path, fake_card: Any) -> None:
    for engine in fake_card.values():
        engine.context_bytes = {PREFILL: 0, DECODE: 0}
    pipeline = iwp_export.load(str(write_plan(tmp_path / "toy.plan", profiles=2)))
    assert pipeline(None, "what colour ?", max_new_tokens=2).token_ids


def test_compiled_kernels_are_kept_after_the_first_decode_step_and_at_the_end(tmp_path: Path, fake_card: Any) -> None:
    path = write_plan(tmp_path / "toy.plan")
    pipeline = iwp_export.load(str(path))
    kept = tmp_path / "cache" / "iwp-export" / "rtx"
    pipeline(None, "what colour ?", max_new_tokens=1)
    assert not kept.exists()
    pipeline(None, "what colour ?", max_new_tokens=2)
    files = (EnginePaths.of(path).graph(role) for role in ("vision", "decoder"))
    vision, decoder = (hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in files)
    assert {p.name for p in kept.iterdir()} == {f"{vision}-sm89.cache", f"{decoder}-sm89.cache"}
    fake_card["decoder"].configs[0].cache.content = b"IWP more"
    del pipeline
    gc.collect()
    assert (kept / f"{decoder}-sm89.cache").read_bytes() == b"IWP more"
