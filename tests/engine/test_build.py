"""Bundles become TensorRT-RTX engines on a CPU, with the pruning step as a plugin; errors come before any work."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest

from iwp_export import api
from iwp_export.backends.trt.runner import deserialize
from iwp_export.bundle.store import Bundle
from iwp_export.device.gpu import Gpu, find_gpu
from iwp_export.engine import build as engine_build
from iwp_export.engine import network
from iwp_export.engine.build import BuildSettings, choose_machine, choose_target
from iwp_export.engine.files import read_engine
from iwp_export.engine.flavour import RTX, TENSORRT_10_3, Flavour, Target
from iwp_export.engine.kernels import NoKernels
from iwp_export.engine.log import make_logger
from iwp_export.engine.lowering.lower import write_lowered
from iwp_export.engine.network import BuildMemoryError, EngineBuilder, check_plugin_layers, register_plugin
from iwp_export.engine.profiles import Profile, choose_limits, decoder_profiles, vision_profile
from iwp_export.errors import BackendError, OutputError, SettingsError
from iwp_export.pruning.onnx_function import VERSION

SMS = ["86", "89", "120"]
ORIN = Gpu("Orin", "87", 12)
SMALL = BuildSettings(target="rtx", sm=SMS, max_context=160, max_prompt=128)


def count_layers(network: Any, kind: Any) -> int:
    return sum(network.get_layer(index).type == kind for index in range(network.num_layers))


def plugin_layers(rtx: Flavour, network: Any) -> int:
    return count_layers(network, rtx.trt.LayerType.PLUGIN_V3)


def build_decoder(rtx: Flavour, folder: Path, bundle_path: Path, target: Target) -> Any:
    bundle = Bundle.open(bundle_path)
    graph, plugins = write_lowered(bundle.path("decoder.onnx"), bundle.path("decoder.weights"), folder, target)
    assert plugins == 1
    manifest = bundle.manifest
    limits = choose_limits(manifest.decoder, manifest.vision, SMALL.max_context, SMALL.max_prompt, SMALL.max_images)
    builder = EngineBuilder(rtx, SMS, NoKernels())
    return builder.build(graph, plugins, decoder_profiles(bundle.manifest, limits), "language model")


def test_a_bundle_becomes_an_engine(rtx: Flavour, half_bundle: Path, tmp_path: Path) -> None:
    assert api.build(half_bundle, tmp_path / "tiny.plan", SMALL) == tmp_path / "tiny.plan"
    paths, info = read_engine(tmp_path / "tiny.plan", "full")
    assert (info.fingerprint.flavour, info.fingerprint.version) == ("rtx", rtx.version)
    assert (info.fingerprint.sms, info.fingerprint.plugin_version) == (tuple(SMS), str(VERSION))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "tiny.json",
        "tiny.plan",
        "tiny.processor",
        "tiny.vision.plan",
    ]
    assert (paths.processor / "tokenizer.json").is_file()
    assert info.manifest.pruning == Bundle.open(half_bundle).manifest.pruning
    assert info.source == f"build {half_bundle}"
    with pytest.raises(OutputError, match=r"exists\. Replace it"):
        api.build(half_bundle, tmp_path / "tiny.plan", SMALL)
    if find_gpu() is None:
        with pytest.raises(BackendError, match=r"tensorrt_rtx does not load .*tiny\.plan: .*CUDA driver version"):
            deserialize(rtx.trt, make_logger(rtx.trt), tmp_path / "tiny.plan")


@pytest.mark.slow
def test_llava_heads_build_with_one_plugin_layer(rtx: Flavour, llava_heads_bundle: Path, tmp_path: Path) -> None:
    assert build_decoder(rtx, tmp_path, llava_heads_bundle, RTX).nbytes > 0


@pytest.mark.slow
def test_float32_builds_with_attention_as_primitives(rtx: Flavour, tiny_bundle: Path, tmp_path: Path) -> None:
    assert build_decoder(rtx, tmp_path, tiny_bundle, RTX).nbytes > 0


@pytest.mark.slow
def test_the_form_for_the_oldest_tensorrt_builds_too(rtx: Flavour, llava_heads_bundle: Path, tmp_path: Path) -> None:
    assert build_decoder(rtx, tmp_path, llava_heads_bundle, TENSORRT_10_3).nbytes > 0


def test_the_function_body_is_not_what_is_built(rtx: Flavour, half_bundle: Path, tmp_path: Path) -> None:
    """Without the plugin's namespace TensorRT builds the function, unsaid; the count of plugin layers shows it."""
    model = ir.load(half_bundle / "decoder.onnx")
    node = next(node for node in model.graph if node.op_type == "SelectTokens")
    del node.attributes["plugin_namespace"]
    (tmp_path / "decoder.weights").hardlink_to(half_bundle / "decoder.weights")
    ir.save(model, tmp_path / "function.onnx")
    logger = make_logger(rtx.trt)
    register_plugin(rtx, NoKernels(), pytest.fail)
    builder = rtx.trt.Builder(logger)
    with_function, with_plugin = builder.create_network(0), builder.create_network(0)
    parser = rtx.trt.OnnxParser(with_function, logger)
    parser.parse_from_file(str(tmp_path / "function.onnx"))
    assert plugin_layers(rtx, with_function) == 0
    with pytest.raises(BackendError, match=r"1 pruning node\(s\), but TensorRT made 0 plugin layer"):
        check_plugin_layers(rtx.trt, with_function, 1, "language model")
    folder = tmp_path / "lowered"
    folder.mkdir()
    graph, plugins = write_lowered(half_bundle / "decoder.onnx", half_bundle / "decoder.weights", folder, RTX)
    other = rtx.trt.OnnxParser(with_plugin, logger)
    assert other.parse_from_file(str(graph))
    assert plugin_layers(rtx, with_plugin) == plugins == 1
    loop = rtx.trt.LayerType.TRIP_LIMIT  # the rounds of the function's body
    assert count_layers(with_function, loop) > 0 == count_layers(with_plugin, loop)


def test_a_wrong_architecture_is_refused_before_any_work(rtx: Flavour, half_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"cannot build for SM 87; it accepts 75, 80, 86, 89, 120, 121"):
        api.build(half_bundle, tmp_path / "x.plan", BuildSettings(target="rtx", sm=["87"]))
    assert not list(tmp_path.iterdir())


def test_a_missing_plugin_is_named(rtx: Flavour, half_bundle: Path, tmp_path: Path) -> None:
    graph, plugins = write_lowered(half_bundle / "decoder.onnx", half_bundle / "decoder.weights", tmp_path, RTX)
    builder = EngineBuilder(rtx, SMS, NoKernels())
    registry = rtx.trt.get_plugin_registry()
    registry.deregister_creator(registry.get_creator("SelectTokens", str(VERSION), "iwp"))
    with pytest.raises(BackendError, match=f"does not find the plugin iwp::SelectTokens version {VERSION}"):
        builder.build(graph, plugins, (), "language model")


def test_a_plugin_library_that_is_none_is_refused(rtx: Flavour, half_bundle: Path, tmp_path: Path) -> None:
    settings = BuildSettings(target="rtx", sm=SMS, plugin=tmp_path / "none.so")
    with pytest.raises(BackendError, match="does not exist"):
        api.build(half_bundle, tmp_path / "x.plan", settings)


def test_too_little_memory_is_refused_with_figures(
    rtx: Flavour, half_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iwp_export.engine.build.available_bytes", lambda: 100 << 20)
    with pytest.raises(BuildMemoryError, match=r"needs about .* GiB of memory, 0\.1 GiB are available"):
        api.build(half_bundle, tmp_path / "x.plan", SMALL)


def test_memory_that_runs_out_during_a_build_is_named(
    rtx: Flavour, half_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    low = threading.Event()
    low.set()
    monkeypatch.setattr("iwp_export.engine.network.low_memory", lambda: nullcontext(low))
    with pytest.raises(BuildMemoryError, match="memory ran out while the vision tower was built"):
        bundle = Bundle.open(half_bundle)
        graph, plugins = write_lowered(bundle.path("vision.onnx"), bundle.path("vision.weights"), tmp_path, RTX)
        builder = EngineBuilder(rtx, SMS, NoKernels())
        builder.build(graph, plugins, (vision_profile(bundle.manifest),), "vision tower")


def test_a_plan_says_what_it_loads_on(rtx: Flavour, half_bundle: Path, tmp_path: Path) -> None:
    plan = api.plan_build(half_bundle, tmp_path / "x.plan", SMALL)[1]
    assert plan.machine.loads_on == f"TensorRT-RTX {rtx.version} and a GPU of SM 86, 89, 120"
    assert plan.to_dict()["max_context"] == 160
    assert plan.memory_bytes > plan.weight_bytes > 0
    assert plan.profiles == 1  # TensorRT-RTX holds the weights once a profile


def test_two_profiles_are_a_choice(rtx: Flavour, half_bundle: Path, tmp_path: Path) -> None:
    assert api.plan_build(half_bundle, tmp_path / "x.plan", replace(SMALL, profiles=2))[1].profiles == 2
    with pytest.raises(SettingsError, match=r"^profiles must be 1 or 2, got 3"):
        api.plan_build(half_bundle, tmp_path / "x.plan", replace(SMALL, profiles=3))


@pytest.mark.parametrize(
    ("installed", "gpu", "chosen"),
    [
        ({"rtx"}, False, "rtx"),
        ({"rtx", "tensorrt"}, False, "rtx"),
        ({"rtx", "tensorrt"}, True, "tensorrt"),
        ({"tensorrt"}, True, "tensorrt"),
    ],
)
def test_target_is_full_tensorrt_with_a_gpu_else_rtx(
    monkeypatch: pytest.MonkeyPatch, installed: set[str], gpu: bool, chosen: str
) -> None:
    monkeypatch.setattr(engine_build, "is_installed", lambda name: name in installed)
    monkeypatch.setattr(engine_build, "find_gpu", lambda: Gpu("card", "89", 13) if gpu else None)
    assert choose_target() == chosen


@pytest.mark.parametrize(("installed", "reason"), [(set(), "no TensorRT"), ({"tensorrt"}, "no GPU")])
def test_without_a_target_both_ways_on_are_named(
    monkeypatch: pytest.MonkeyPatch, installed: set[str], reason: str
) -> None:
    monkeypatch.setattr(engine_build, "is_installed", lambda name: name in installed)
    monkeypatch.setattr(engine_build, "find_gpu", lambda: None)
    with pytest.raises(BackendError, match=rf"{reason}.*iwp-export build NAME\.bundle.*iwp-export\[rtx\]"):
        choose_target()


def test_full_tensorrt_needs_a_gpu_and_no_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match="this one has no NVIDIA GPU"):
        engine_build._architectures("tensorrt", None, None)
    with pytest.raises(BackendError, match="architectures are chosen for target rtx"):
        engine_build._architectures("tensorrt", ["89"], ORIN)
    assert engine_build._architectures("tensorrt", None, ORIN) == ("87",)


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> list[Gpu]:
    """A machine with a GPU and full TensorRT 10.3; gives the GPUs that kernels were looked for."""
    asked: list[Gpu] = []
    monkeypatch.setattr(engine_build, "find_gpu", lambda: ORIN)
    monkeypatch.setattr(engine_build, "load_flavour", lambda name: Flavour(name, "10.3.0.30", None))
    monkeypatch.setattr(engine_build, "check_kernels", asked.append)
    return asked


def test_full_tensorrt_needs_the_kernels_before_any_work(board: list[Gpu]) -> None:
    machine = choose_machine(BuildSettings(target="tensorrt"))
    assert (machine.target, machine.sms, board) == (TENSORRT_10_3, ("87",), [ORIN])


def test_a_plugin_library_brings_its_own_kernels(board: list[Gpu], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = BuildSettings(target="tensorrt", plugin=Path("libiwp_plugin.so"))
    machine = choose_machine(settings)
    assert board == []
    monkeypatch.setattr(engine_build, "find_kernels", lambda sm: pytest.fail("kernels were loaded"))
    assert isinstance(engine_build._kernels(machine, settings), NoKernels)


def test_a_timing_cache_is_refused_where_it_would_do_nothing(rtx: Flavour, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="a timing cache is for target tensorrt"):
        choose_machine(replace(SMALL, timing_cache=tmp_path / "timing.cache"))


def test_a_timing_cache_is_read_and_written(rtx: Flavour, half_bundle: Path, tmp_path: Path) -> None:
    """TensorRT-RTX has an empty one, but takes and gives it as full TensorRT does."""
    bundle = Bundle.open(half_bundle)
    graph, plugins = write_lowered(bundle.path("vision.onnx"), bundle.path("vision.weights"), tmp_path, RTX)
    cache = tmp_path / "timing.cache"

    def build_vision() -> Any:
        builder = EngineBuilder(rtx, SMS, NoKernels(), timing_cache=cache)
        return builder.build(graph, plugins, (vision_profile(bundle.manifest),), "vision tower")

    build_vision()
    content = cache.read_bytes()
    assert content
    build_vision()
    assert cache.read_bytes() == content


@pytest.mark.parametrize("made", [None, object()])
def test_a_timing_cache_of_another_machine_is_named(rtx: Flavour, tmp_path: Path, made: object) -> None:
    given: list[bytes] = []

    def create(content: bytes) -> object:
        given.append(content)
        return made

    config = SimpleNamespace(create_timing_cache=create, set_timing_cache=lambda cache, ignore_mismatch: False)
    (tmp_path / "timing.cache").write_bytes(b"measured elsewhere")
    builder = EngineBuilder(rtx, SMS, NoKernels(), timing_cache=tmp_path / "timing.cache")
    with pytest.raises(BackendError, match=r"timing\.cache is from another TensorRT or GPU: delete it"):
        builder._load_timing_cache(config)
    assert given == [b"measured elsewhere"]


def test_shapes_that_the_bindings_refuse_are_one_line(rtx: Flavour) -> None:
    builder = EngineBuilder(rtx, SMS, NoKernels())
    falling = Profile({"pixel_values": ((2, 3), (1, 3), (2, 3))}, {})
    with pytest.raises(BackendError, match="refuses the shapes of the vision tower"):
        builder._add_profile(builder._config(), falling, "vision tower")


def test_on_a_gpu_the_build_has_the_kernels(board: list[Gpu], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = BuildSettings(target="tensorrt")
    kernels = NoKernels()
    monkeypatch.setattr(engine_build, "find_kernels", {ORIN: kernels}.get)
    assert engine_build._kernels(choose_machine(settings), settings) is kernels


class Registry:
    """TensorRT's plugin registry with one creator, which stays if a library brought it."""

    def __init__(self, creator: object, stays: bool) -> None:
        self.creator: object | None = creator
        self.stays = stays

    def get_creator(self, *name: str) -> object | None:
        return self.creator

    def deregister_creator(self, creator: object) -> bool:
        if not self.stays:
            self.creator = None
        return not self.stays

    def register_creator(self, creator: object, namespace: str) -> bool:
        if self.creator is not None:
            return False
        self.creator = creator
        return True


@pytest.mark.parametrize("stays", [False, True])
def test_the_plugin_of_a_library_stays_and_one_in_python_is_replaced(
    monkeypatch: pytest.MonkeyPatch, stays: bool
) -> None:
    earlier, mine = object(), object()
    registry = Registry(earlier, stays)
    monkeypatch.setattr(network, "make_creator", lambda trt, kernels, report: mine)
    flavour = Flavour("rtx", "1.7", SimpleNamespace(get_plugin_registry=lambda: registry))
    register_plugin(flavour, NoKernels(), pytest.fail)
    assert registry.creator is (earlier if stays else mine)
    kept = (registry, mine) in network._REGISTERED  # for the process: TensorRT 10.3 has only pointers to them
    assert kept != stays
