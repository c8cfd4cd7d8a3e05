"""A lowered graph through TensorRT's parser and builder, with every step's failure named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iwp_export.device.machine import low_memory
from iwp_export.engine.flavour import Flavour
from iwp_export.engine.kernels import KernelLibrary
from iwp_export.engine.log import first_error, make_logger, make_monitor, ran_out_of_memory
from iwp_export.engine.plugin import make_creator
from iwp_export.engine.profiles import Profile
from iwp_export.errors import BackendError, OutputError, os_reason
from iwp_export.files import whole_file
from iwp_export.progress import progress
from iwp_export.pruning.onnx_function import DOMAIN, OP_TYPE, VERSION


class BuildMemoryError(BackendError):
    """A build needs more memory than the machine has."""


class EngineBuilder:
    """Builds engines with one TensorRT, for one set of architectures.

    Args:
        flavour: the TensorRT.
        sms: architectures, such as `86`, that TensorRT-RTX compiles for ahead of time; () is this machine's GPU.
        kernels: what the plugin asks for sizes; ignored with a plugin library.
        plugin_library: a shared library with the C++ plugin, taken instead of the one in Python.
        timing_cache: file of measured kernels, read if it is there and written after each build.

    Raises:
        BackendError: the plugin cannot be registered.
    """

    def __init__(
        self,
        flavour: Flavour,
        sms: Sequence[str],
        kernels: KernelLibrary,
        plugin_library: Path | None = None,
        timing_cache: Path | None = None,
    ) -> None:
        self._flavour, self._trt, self._title = flavour, flavour.trt, flavour.title
        self._sms = tuple(sms)
        self._timing_cache = timing_cache
        self.logger = make_logger(flavour.trt)
        self._builder = make_builder(flavour, self.logger)
        self._plugin_errors: list[str] = []
        register_plugin(flavour, kernels, self._plugin_errors.append, plugin_library)

    def build(self, graph: Path, plugins: int, profiles: Sequence[Profile], title: str) -> Any:
        """Parse and build one engine.

        Args:
            graph: a lowered ONNX file, its weights beside it.
            plugins: how many plugin layers the network must have.
            profiles: its optimisation profiles.
            title: what to call it in the progress bar and in errors.

        Returns:
            The serialised engine (`IHostMemory`).

        Raises:
            BackendError: a node cannot be imported, the plugin was not used, or the build failed.
            BuildMemoryError: memory ran out.
        """
        self._plugin_errors.clear()
        self.logger.errors.clear()
        self.logger.warnings.clear()
        network, parser = self._parse(graph, title)
        check_plugin_layers(self._trt, network, plugins, title)
        config = self._config()
        for profile in profiles:
            self._add_profile(config, profile, title)
        cache = self._load_timing_cache(config)
        with progress(f"Building the {title}", 1.0) as advance, low_memory() as low:
            monitor = make_monitor(self._trt, advance, low.is_set)
            config.progress_monitor = monitor
            engine = self._builder.build_serialized_network(network, config)
        del parser  # it owns the weights until here
        if monitor.interrupted:
            raise KeyboardInterrupt
        if engine is None or self._plugin_errors:
            raise self._failure(title, engine is None and (low.is_set() or ran_out_of_memory(self.logger)))
        if cache is not None:
            self._save_timing_cache(config)
        return engine

    def _parse(self, graph: Path, title: str) -> tuple[Any, Any]:
        flags = getattr(self._trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = self._builder.create_network(0 if flags is None else 1 << int(flags))
        parser = self._trt.OnnxParser(network, self.logger)
        if not parser.parse_from_file(str(graph)):
            raise self._parse_failure(parser, title)
        return network, parser

    def _parse_failure(self, parser: Any, title: str) -> BackendError:
        if self._plugin_errors:
            return BackendError(f"the plugin refuses the {title}: {self._plugin_errors[0]}")
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        if any(error.node_operator() == OP_TYPE for error in errors if hasattr(error, "node_operator")):
            return BackendError(
                f"{self._title} does not find the plugin {DOMAIN}::{OP_TYPE} version {VERSION} for the {title}: "
                f"{errors[0].desc()}"
            )
        reason = " ".join(errors[0].desc().split()) if errors else first_error(self.logger)
        return BackendError(f"{self._title} cannot import the {title}: {reason}")

    def _config(self) -> Any:
        config = self._builder.create_builder_config()
        config.clear_flag(self._trt.BuilderFlag.TF32)  # float32 in the graph is float32 in the engine
        if self._sms:
            _set_architectures(self._flavour, config, self._sms)
        return config

    def _add_profile(self, config: Any, profile: Profile, title: str) -> None:
        made = self._builder.create_optimization_profile()
        try:
            for name, shapes in profile.shapes.items():
                made.set_shape(name, *shapes)
            for name, values in profile.values.items():
                made.set_shape_input(name, [values.least], [values.typical], [values.greatest])
            accepted = config.add_optimization_profile(made) >= 0
        except RuntimeError:  # TensorRT raises here instead of returning a failure
            accepted = False
        if not accepted:
            raise BackendError(f"{self._title} refuses the shapes of the {title}: {first_error(self.logger)}")

    def _load_timing_cache(self, config: Any) -> Any:
        if self._timing_cache is None:
            return None
        content = self._timing_cache.read_bytes() if self._timing_cache.is_file() else b""
        cache = config.create_timing_cache(content)
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            raise BackendError(
                f"timing cache {self._timing_cache} is from another TensorRT or GPU: delete it or name another file"
            )
        return cache

    def _save_timing_cache(self, config: Any) -> None:
        assert self._timing_cache is not None
        try:
            with whole_file(self._timing_cache) as file:
                file.write_bytes(memoryview(config.get_timing_cache().serialize()))
        except OSError as error:
            raise OutputError(f"Cannot write timing cache {self._timing_cache}: {os_reason(error)}") from error

    def _failure(self, title: str, no_memory: bool) -> BackendError:
        if no_memory:
            return BuildMemoryError(
                f"memory ran out while the {title} was built: close other programs, add swap, lower max_context or "
                "max_prompt, or build on a larger machine",
                options=("max_context", "max_prompt"),
            )
        if self._plugin_errors:
            return BackendError(f"the plugin failed while the {title} was built: {self._plugin_errors[0]}")
        return BackendError(f"{self._title} did not build the {title}: {first_error(self.logger)}")


_REGISTERED: list[Any] = []
"""Creators in Python, and the registry they are in: before TensorRT 10.6 it points to them and does not hold them."""


def make_builder(flavour: Flavour, logger: Any) -> Any:
    """TensorRT's builder.

    Raises:
        BackendError: it cannot be made, on a machine whose driver is missing or too old, for one.
    """
    try:
        return flavour.trt.Builder(logger)
    except (TypeError, RuntimeError) as error:  # TensorRT raises here instead of returning None
        raise BackendError(f"{flavour.title} gives no builder: {first_error(logger)}") from error


def register_plugin(flavour: Flavour, kernels: KernelLibrary, report: Any, library: Path | None = None) -> None:
    """Put the pruning plugin into TensorRT's registry.

    It takes the place of an earlier one in Python. One that a library brought stays for the rest of the process, as
    TensorRT has it, and serves whoever asks next: the two mean the same.

    Raises:
        BackendError: the library or the registry refuses it.
    """
    registry = flavour.trt.get_plugin_registry()
    earlier = registry.get_creator(OP_TYPE, str(VERSION), DOMAIN)
    stays = earlier is not None and not registry.deregister_creator(earlier)
    if library is None:
        if stays:
            return
        creator = make_creator(flavour.trt, kernels, report)
        if not registry.register_creator(creator, DOMAIN):
            raise BackendError(f"{flavour.title} does not register the plugin {DOMAIN}::{OP_TYPE}")
        _REGISTERED.append((registry, creator))
        return
    if not library.is_file():
        raise BackendError(f"plugin library {library} does not exist")
    registry.load_library(str(library.resolve()))
    if registry.get_creator(OP_TYPE, str(VERSION), DOMAIN) is None:
        raise BackendError(
            f"{library} brings no plugin {DOMAIN}::{OP_TYPE} version {VERSION} to {flavour.title}: "
            "build it from plugins/tensorrt with this TensorRT's headers"
        )


def check_plugin_layers(trt: Any, network: Any, expected: int, title: str) -> None:
    """Refuse a network in which the pruning op became something else than a plugin.

    Raises:
        BackendError: the number of plugin layers is not `expected`.
    """
    found = sum(network.get_layer(index).type == trt.LayerType.PLUGIN_V3 for index in range(network.num_layers))
    if found != expected:
        raise BackendError(
            f"the {title} has {expected} pruning node(s), but TensorRT made {found} plugin layer(s) of them"
        )


def check_architectures(flavour: Flavour, sms: Sequence[str]) -> None:
    """Refuse architectures that TensorRT-RTX does not compile for.

    Raises:
        BackendError: one of them is refused; the message lists those that are not.
    """
    builder = make_builder(flavour, make_logger(flavour.trt))
    _set_architectures(flavour, builder.create_builder_config(), sms)


def _set_architectures(flavour: Flavour, config: Any, sms: Sequence[str]) -> None:
    known = flavour.trt.ComputeCapability
    config.num_compute_capabilities = len(sms)
    for index, sm in enumerate(sms):
        capability = getattr(known, f"SM{sm}", None)
        if capability is None or not config.set_compute_capability(capability, index):
            accepted = sorted((name[2:] for name in known.__members__ if name.startswith("SM")), key=int)
            raise BackendError(
                f"{flavour.title} cannot build for SM {sm}; it accepts {', '.join(accepted)}. "
                "For Jetson and data-centre GPUs build with target tensorrt on that machine",
                options=("sm", "target"),
            )
