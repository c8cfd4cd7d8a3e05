"""TensorRT behind the session interface, over engines computed by ONNX Runtime: shapes, addresses, profiles, memory."""

from __future__ import annotations

import gc
import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iwp_export.backends.ort.session import OrtSession
from iwp_export.backends.trt.runner import Reservation, Runner
from iwp_export.backends.trt.session import TrtCache, TrtSession
from iwp_export.bundle.manifest import GraphSpec, Manifest, TensorSpec
from iwp_export.bundle.store import Bundle
from iwp_export.engine.profiles import DECODE, PREFILL, EngineLimits, choose_limits, decoder_profiles, profiles_for
from iwp_export.errors import BackendError, RequestError
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.runtime.processor import Processor
from tests.backends.trt import fake_trt
from tests.backends.trt.fake_trt import make_session
from tests.runtime.toy import FAMILY, build_decode, build_prompt, toy_manifest, toy_pipeline, write_toy_bundle

IMAGE, OTHER = np.random.default_rng(3).integers(0, 256, (2, 60, 90, 3), np.uint8)
PROMPT = [2, *[4] * 64, 9]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bundle(tmp_path_factory.mktemp("toy") / "toy.bundle")


def pipeline_over(session: TrtSession, path: Path) -> Pipeline:
    manifest = Bundle.open(path).manifest
    return Pipeline(manifest, Processor(path / manifest.processor, manifest.vision, FAMILY), session)


def prompt(session: TrtSession, cache: Any, path: Path) -> Any:
    features = session.encode({"pixel_values": np.zeros((1, 3, 112, 112), np.float32)})
    return session.step(build_prompt(PROMPT, 4, Bundle.open(path).manifest.pruning, keep=0.25), [features], cache)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("num_kept_on_host", [True, False])
def test_answers_equal_the_numpy_session(tmp_path: Path, dtype: str, num_kept_on_host: bool) -> None:
    path = write_toy_bundle(tmp_path / "x", dtype)
    ours_pipeline = pipeline_over(make_session(path, num_kept_on_host=num_kept_on_host)[0], path)
    expected, _ = toy_pipeline()
    for image in (IMAGE, None, [IMAGE, OTHER]):
        ours, theirs = (p(image, "what colour ?", max_new_tokens=8) for p in (ours_pipeline, expected))
        assert (ours.token_ids, ours.kept, ours.text) == (theirs.token_ids, theirs.kept, theirs.text)
        assert ours.cache_bytes * (2 if dtype == "float16" else 1) == theirs.cache_bytes
    chats = [p.chat(keep=0.3) for p in (ours_pipeline, expected)]
    for image in (IMAGE, None, OTHER):
        ours, theirs = (chat.ask("how many ?", image, max_new_tokens=4) for chat in chats)
        assert (ours.token_ids, ours.reused_tokens, ours.note) == (theirs.token_ids, theirs.reused_tokens, "")


def test_a_real_model_within_its_profiles_equals_onnx_runtime(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    limits = choose_limits(manifest.decoder, manifest.vision, max_context=100, max_prompt=90)
    session, engine, _, _ = make_session(tiny_bundle, limits=limits, profiles=decoder_profiles(manifest, limits))
    reference = OrtSession(Bundle.open(tiny_bundle), threads=1)
    pixels = np.random.default_rng(0).standard_normal((1, 3, 112, 112), np.float32)
    image = manifest.vision.image_token_id
    results = []
    for each in (session, reference):
        cache, features = each.new_cache(), [each.encode({"pixel_values": pixels})]
        outputs = [each.step(build_prompt([2, *[image] * 64, 9, 8], image, manifest.pruning, None), features, cache)]
        outputs += [each.step(build_decode(token, 67 + i), (), cache) for i, token in enumerate([5, 7, 9])]
        results.append((outputs, cache.lengths, cache.nbytes))
    (ours, *state), (theirs, *expected) = results
    assert state == expected
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.logits, other.logits, atol=1e-5)
        np.testing.assert_array_equal(mine.kept_index, other.kept_index)
    assert engine.runs == {PREFILL: 1, DECODE: 3}


def test_decode_steps_use_their_profile(bundle: Path) -> None:
    session, engine, _, _ = make_session(bundle)
    cache = session.new_cache()
    session.step(build_prompt([5], 4, Bundle.open(bundle).manifest.pruning, None), (), cache)
    assert engine.runs == {PREFILL: 1}  # one token, but no past
    session.step(build_decode(6, 1), (), cache)
    session.step(build_prompt([5, 6], 4, Bundle.open(bundle).manifest.pruning, None, 2), (), cache)
    assert engine.runs == {PREFILL: 2, DECODE: 1}
    assert cache.lengths == (4, 4)


def test_one_profile_serves_decode_steps_too(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    limits = choose_limits(manifest.decoder, manifest.vision)
    profiles = profiles_for(manifest, "decoder", limits, None, 1)
    roles = ("vision", "prefill")
    session, engine, *_ = make_session(tiny_bundle, limits=limits, profiles=profiles, roles=roles)
    cache = session.new_cache()
    session.step(build_prompt([5, 6], 4, manifest.pruning, None), (), cache)
    session.step(build_decode(7, 2), (), cache)
    assert engine.runs == {PREFILL: 2} and cache.lengths == (3,) * 8


def test_memory_is_reused_from_step_to_step(bundle: Path) -> None:
    session, *_ = make_session(bundle)
    cache = session.new_cache()
    prompt(session, cache, bundle)
    assert isinstance(cache, TrtCache) and cache.lengths == (66, 18)
    addresses = []
    for step in range(40):
        session.step(build_decode(7, 66 + step), (), cache)
        addresses.append([block.address for block in cache.blocks])
    assert all(set(a).isdisjoint(b) for a, b in itertools.pairwise(addresses))
    assert len({address for each in addresses for address in each}) <= 8  # two blocks, grown a few times
    assert cache.lengths == (106, 58)


class GrowingEngine(fake_trt.FakeEngine):
    """A decoder that computes nothing: each layer's keys and values grow by the call's tokens."""

    def __init__(self, device: fake_trt.FakeDevice, manifest: Manifest) -> None:
        graph = manifest.graphs["decoder"]
        self.device, self.num_kept_on_host, self.runs = device, True, Counter()
        self.inputs, self.outputs = list(graph.inputs), list(graph.outputs)
        self.names = [tensor.name for tensor in (*self.inputs, *self.outputs)]
        self.num_io_tensors = len(self.names)
        self.context_bytes = {PREFILL: 0, DECODE: 0}

    def create_execution_context(self, how: Any) -> Any:
        return GrowingContext(self)


class GrowingContext(fake_trt.FakeContext):
    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        tokens = self.shapes["input_ids"][1]
        if not name.startswith("present."):
            return (1, 1, 48) if name == "logits" else (1, tokens)
        batch, heads, past, size = self.shapes[name.replace("present.", "past_key_values.")]
        return batch, heads, past + tokens, size

    def execute_async_v3(self, stream: int) -> bool:
        return True


def test_a_growing_cache_of_many_layers_takes_a_few_allocations() -> None:
    toy = toy_manifest("float16", max_positions=4096)
    decoder = replace(toy.decoder, layers=32, heads=8, kv_heads=8, head_dim=128)
    past = [
        TensorSpec(f"past_key_values.{i}.{kind}", "float16", (1, 8, "past", 128))
        for i in range(32)
        for kind in ("key", "value")
    ]
    present = [TensorSpec(t.name.replace("past_key_values", "present"), "float16", (1, 8, "total", 128)) for t in past]
    graph = toy.graphs["decoder"]
    inputs, outputs = (*graph.inputs[:6], *past), (graph.outputs[0], *present, graph.outputs[-1])
    graphs = {**toy.graphs, "decoder": GraphSpec(graph.file, graph.weights, 20, inputs, outputs)}
    manifest = replace(toy, decoder=decoder, graphs=graphs)

    device = fake_trt.FakeDevice()
    engine = GrowingEngine(device, manifest)
    runner = Runner(fake_trt.TRT, engine, fake_trt.Log(), PREFILL, device.stream, "engine", Reservation(device, 0))
    session = TrtSession(manifest, EngineLimits(4096, 4096, 1), {"prefill": runner}, device, "fake")
    cache = session.new_cache()
    session.step(build_prompt([5] * 608, 4, manifest.pruning), (), cache)
    session.step(build_decode(7, 608), (), cache)
    before = device.allocations
    for step in range(300):
        session.step(build_decode(7, 609 + step), (), cache)
        assert device.used < 2.6 * cache.nbytes  # what is read and what is written, and a quarter of each
    assert cache.lengths == (909,) * 32
    assert device.allocations - before <= 8


def test_everything_is_freed_in_the_end(bundle: Path) -> None:
    session, _, device, _ = make_session(bundle)
    before = device.used
    cache = session.new_cache()
    prompt(session, cache, bundle)
    held = device.used
    del cache
    gc.collect()
    other = session.new_cache()
    prompt(session, other, bundle)
    assert device.used == held > before  # the second conversation got the first one's memory
    del session, other
    gc.collect()
    assert device.used == 0


def test_a_failed_step_leaves_the_cache_as_it_was(bundle: Path) -> None:
    session, engine, *_ = make_session(bundle)
    cache = session.new_cache()
    prompt(session, cache, bundle)
    blocks, lengths = list(cache.blocks), cache.lengths  # type: ignore[attr-defined]
    engine.fail = True
    with pytest.raises(BackendError, match="decode engine did not run"):
        session.step(build_decode(7, 66), (), cache)
    assert (cache.blocks, cache.lengths) == (blocks, lengths)  # type: ignore[attr-defined]
    engine.fail = False
    again = session.step(build_decode(7, 66), (), cache)
    fresh = session.new_cache()
    prompt(session, fresh, bundle)
    np.testing.assert_array_equal(again.logits, session.step(build_decode(7, 66), (), fresh).logits)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (EngineLimits(512, 60, 4), r"has 66 tokens in one call, the engine takes 60.*max_prompt"),
        (EngineLimits(60, 66, 4), r"has 66 tokens in all, the engine takes 60.*max_context"),
        (EngineLimits(512, 512, 0), r"has 64 visual tokens in one call, the engine takes 0.*max_images"),
    ],
)
def test_requests_beyond_the_engine_name_the_option(bundle: Path, limits: EngineLimits, message: str) -> None:
    session, *_ = make_session(bundle, limits=limits)
    with pytest.raises(RequestError, match=message):
        prompt(session, session.new_cache(), bundle)


def test_a_shape_beyond_the_profile_is_named(tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    profiles = decoder_profiles(
        manifest, choose_limits(manifest.decoder, manifest.vision, max_context=80, max_prompt=70)
    )
    session, *_ = make_session(tiny_bundle, profiles=profiles)
    with pytest.raises(BackendError, match=r"prefill engine refuses shape \[1, 75\] of input_ids"):
        session.step(build_prompt([5] * 75, 4, manifest.pruning, None), (), session.new_cache())


def test_a_profile_that_cannot_be_selected_is_one_line(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> bool:
        raise RuntimeError("Error in set optimization profile async.")

    monkeypatch.setattr(fake_trt.FakeContext, "set_optimization_profile_async", refuse)
    with pytest.raises(BackendError, match="the decode engine gives no execution context"):
        make_session(bundle)
