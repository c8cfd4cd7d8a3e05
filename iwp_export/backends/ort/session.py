"""ONNX Runtime behind the session interface: its providers, a bundle's two graphs, and a look between the layers."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from iwp_export.backends.session import (
    CARRIERS,
    STEP_TENSORS,
    Array,
    Cache,
    Features,
    Floats,
    Inside,
    StepInputs,
    StepOutput,
    widened,
)
from iwp_export.bundle.manifest import GraphSpec
from iwp_export.bundle.store import Bundle
from iwp_export.errors import BackendError

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "rtx": "NvTensorRTRTXExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
CUDA_PROVIDERS = ("cuda", "tensorrt", "rtx")
"""Providers whose outputs stay in CUDA memory between steps; the others hand them over in host memory."""
OPTIONS = {"cuda": {"use_tf32": "0"}}
"""Options of providers. TF32 rounds the factors of float32 products to 10 bits: the scores of tokens need all 23."""
GPU_PACKAGE = "pip uninstall onnxruntime, then pip install 'iwp-export[ort-gpu]'"
NO_GPU_PACKAGE = (
    "PyPI has no onnxruntime-gpu for {machine} and Python {python}; on a Jetson build a TensorRT engine instead"
)
INSTALL = {
    "cpu": "pip install 'iwp-export[ort]'",
    "cuda": f"{GPU_PACKAGE}; it needs an NVIDIA driver, CUDA and cuDNN",
    "tensorrt": f"{GPU_PACKAGE}; it needs TensorRT beside CUDA",
}
"""Commands for where there are packages; see `how_to_install`."""
GPU_PACKAGE_PYTHON = {"x86_64": (3, 10), "amd64": (3, 10), "aarch64": (3, 11)}
"""Processors for which PyPI has onnxruntime-gpu, and from which Python on (looked up in November 2026)."""
EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
"""Where a model that comes as bytes has its external weights (onnxruntime_session_options_config_keys.h)."""
LOG_ERRORS = 3
"""ONNX Runtime's log severity from which lines are printed: a provider that falls back is an error here anyway."""


def how_to_install(provider: str) -> str:
    """The command that brings a provider to this machine, or what to do where no package has it."""
    machine, python = platform.machine(), sys.version_info[:2]
    if provider in ("cuda", "tensorrt") and python < GPU_PACKAGE_PYTHON.get(machine.lower(), (4, 0)):
        return NO_GPU_PACKAGE.format(machine=machine, python=f"{python[0]}.{python[1]}")
    return INSTALL.get(provider, f"install an ONNX Runtime package that has {PROVIDERS[provider]}")


def create_session(model: Path | bytes, provider: str, threads: int | None = None, weights: Path | None = None) -> Any:
    """An `onnxruntime.InferenceSession` in which `provider` is the active one.

    Args:
        model: path of the ONNX file; its external weights are mapped from beside it. Or a file's content.
        provider: a short name of `PROVIDERS`.
        threads: threads of one operator; None is ONNX Runtime's choice.
        weights: for a file's content, the folder of its external weights. They are mapped, and not copied to suit
            the operators either: a model that runs beside another one of the same weights.

    Raises:
        BackendError: the provider is unknown, not in this build of ONNX Runtime, or did not become active, or the
            model cannot be loaded.
    """
    onnxruntime = _onnxruntime()
    cores = os.cpu_count() or 1  # far more threads than cores bring a machine to a stand
    if threads is not None and (type(threads) is not int or not 1 <= threads <= cores):
        raise BackendError(
            f"threads must be a whole number from 1 to this machine's {cores} cores, got {threads!r}",
            options=("threads",),
        )
    if provider not in PROVIDERS:
        raise BackendError(f"unknown provider {provider!r}; known are {', '.join(PROVIDERS)}")
    name = PROVIDERS[provider]
    if name not in onnxruntime.get_available_providers():
        raise BackendError(_missing(provider, "this ONNX Runtime was built without it"))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = LOG_ERRORS
    if threads is not None:
        options.intra_op_num_threads = threads
    if weights is not None:
        options.add_session_config_entry(EXTERNAL_FOLDER, str(weights))
        options.add_session_config_entry("session.disable_prepacking", "1")
    wanted: list[Any] = [(name, OPTIONS[provider]) if provider in OPTIONS else name]
    if provider != "cpu":
        wanted.append(PROVIDERS["cpu"])
    try:
        content = model if isinstance(model, bytes) else str(model)
        session = onnxruntime.InferenceSession(content, options, providers=wanted)
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        reason = str(error).strip().splitlines()[0]
        what = "the graph" if isinstance(model, bytes) else model
        raise BackendError(f"ONNX Runtime {onnxruntime.__version__} cannot load {what}: {reason}") from error
    if session.get_providers()[0] != name:
        raise BackendError(_missing(provider, "it could not be loaded and ONNX Runtime fell back to the CPU"))
    session.disable_fallback()
    return session


def _missing(provider: str, reason: str) -> str:
    short = {name: key for key, name in PROVIDERS.items()}
    available = ", ".join(short.get(name, name) for name in _onnxruntime().get_available_providers())
    remedy = how_to_install(provider)
    return f"provider {provider} is not active: {reason}. Available are {available}. To get it: {remedy}"


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(f"ONNX Runtime is not installed ({error}). To get it: {INSTALL['cpu']}") from error
    # For Windows, and where it was imported before this package, which sets ORT_DISABLE_TELEMETRY.
    onnxruntime.disable_telemetry_events()
    return onnxruntime


ELEMENT_TYPES = {"float32": 1, "float16": 10, "bfloat16": 16}
"""Numbers of element types in the ONNX specification (TensorProto.DataType)."""


@dataclass(frozen=True)
class OrtFeatures:
    """One image's features as an OrtValue [n, D]."""

    value: Any
    count: int
    binding: Any  # holds the value's memory, see OrtCache


@dataclass
class OrtCache:
    """Keys and values as OrtValues: key and value [1, Hkv, P_i, d] of layer 0, 1, ...

    Attributes:
        values: the tensors.
        binding: what holds their memory. ONNX Runtime before 1.30 frees a binding's outputs with the binding, even
            while they are in use elsewhere.
    """

    values: list[Any]
    binding: Any = None

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(key.shape()[2] for key in self.values[::2])

    @property
    def nbytes(self) -> int:
        return sum(value.tensor_size_in_bytes() for value in self.values)


class OrtSession:
    """A bundle's two graphs in ONNX Runtime.

    The weights are read through memory maps of the bundle's files, so the bundle must stay where it is.

    Args:
        bundle: the opened bundle.
        provider: `cpu`, `cuda`, `tensorrt` or another name that `iwp_export.backends.ort.session` knows.
        threads: threads of one operator; None is ONNX Runtime's choice (all physical cores).

    Raises:
        BackendError: ONNX Runtime or the provider is missing, did not become the active one, or cannot run the graphs.
    """

    call_limits = None

    def __init__(self, bundle: Bundle, provider: str = "cpu", threads: int | None = None) -> None:
        graphs = bundle.manifest.graphs
        if provider == "cpu" and bundle.manifest.decoder.dtype == "bfloat16":
            raise BackendError(
                f"ONNX Runtime's CPU provider has no bfloat16 kernels, and {bundle.folder} is bfloat16: "
                "export it as float32 or float16, or choose another provider"
            )
        self.provider = provider
        self._device = ("cuda" if provider in CUDA_PROVIDERS else "cpu", 0)
        self._threads, self._graph = threads, bundle.path(graphs["decoder"].file)
        self._decoder = create_session(self._graph, provider, threads)
        self._vision = create_session(bundle.path(graphs["vision"].file), provider, threads)
        for name, session in (("decoder", self._decoder), ("vision", self._vision)):
            _check_names(session, graphs[name], f"{name} graph of {bundle.folder}")
        self._past = [tensor.name for tensor in graphs["decoder"].inputs if tensor.name.startswith("past_key_values.")]
        self._present = [name.replace("past_key_values.", "present.") for name in self._past]
        self._manifest = bundle.manifest
        self._no_image = _zeros((1, bundle.manifest.vision.feature_size), bundle.manifest.decoder.dtype)

    def encode(self, inputs: Mapping[str, Array]) -> Features:
        binding = self._vision.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        binding.bind_output("image_features", *self._device)
        _run(self._vision, binding)
        binding.synchronize_outputs()
        value = binding.get_outputs()[0]
        return OrtFeatures(value, value.shape()[0], binding)

    def new_cache(self) -> Cache:
        decoder = self._manifest.decoder
        shape = (1, decoder.kv_heads, 0, decoder.head_dim)
        return OrtCache([_zeros(shape, decoder.dtype) for _ in self._past])

    def step(self, inputs: StepInputs, features: Sequence[Features], cache: Cache) -> StepOutput:
        return self._run_decoder(self._decoder, inputs, features, cache)[0]

    def read_features(self, features: Features) -> Floats:
        assert isinstance(features, OrtFeatures)
        return widened(_bits(features.value))

    def read_cache(self, cache: Cache, layer: int) -> tuple[Floats, Floats]:
        assert isinstance(cache, OrtCache)
        key, value = (widened(_bits(held)[0]) for held in cache.values[2 * layer : 2 * layer + 2])
        return key, value

    @cached_property
    def no_look(self) -> str:
        try:
            find_names(_load_graph(self._graph), self._graph.name)
        except BackendError as error:
            return str(error)
        return ""

    def look(self, inputs: StepInputs, features: Sequence[Features], cache: Cache) -> tuple[StepOutput, Inside]:
        names, decoder = self._inside
        output, extra = self._run_decoder(decoder, inputs, features, cache, names)
        found = [widened(_bits(value)[0]) for value in extra]
        return output, Inside(tuple(found[:-3]), *found[-3:])

    @cached_property
    def _inside(self) -> tuple[list[str], Any]:
        """Names of what flows between the layers, and a copy of the decoder that returns it; in memory alone."""
        from onnx import ValueInfoProto

        model = _load_graph(self._graph)
        names = find_names(model, self._graph.name)
        present = {output.name for output in model.graph.output}
        model.graph.output.extend(ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in present)
        session = create_session(model.SerializeToString(), self.provider, self._threads, self._graph.parent)
        return names, session

    def _run_decoder(
        self,
        decoder: Any,
        inputs: StepInputs,
        features: Sequence[Features],
        cache: Cache,
        extra: Sequence[str] = (),
    ) -> tuple[StepOutput, list[Any]]:
        """One call by a session of the decoder, and what `extra` outputs it has."""
        assert isinstance(cache, OrtCache)
        images = self._joined(features)  # held until the run is over: before 1.30 a binding does not keep its inputs
        binding = decoder.io_binding()
        for name in STEP_TENSORS:
            binding.bind_cpu_input(name, np.ascontiguousarray(getattr(inputs, name)))
        binding.bind_cpu_input("num_kept", np.array([inputs.num_kept], np.int64))
        binding.bind_ortvalue_input("image_features", images)
        for name, value in zip(self._past, cache.values, strict=True):
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("logits")
        binding.bind_output("kept_index")
        for name in (*self._present, *extra):
            binding.bind_output(name, *self._device)
        _run(decoder, binding)
        logits, kept, *rest = binding.get_outputs()
        binding.clear_binding_inputs()  # it would hold the old cache
        cache.values, cache.binding = rest[: len(self._present)], binding
        output = StepOutput(logits.numpy().reshape(-1), kept.numpy().reshape(-1))
        return output, rest[len(self._present) :]

    def _joined(self, features: Sequence[Features]) -> Any:
        """The call's features as one OrtValue [N, D]; several images are joined on the host."""
        values = [image.value for image in features if isinstance(image, OrtFeatures)]
        if len(values) < 2:
            return values[0] if values else self._no_image
        return _ort_value(np.concatenate([_bits(value) for value in values]), self._manifest.decoder.dtype)


def _run(session: Any, binding: Any) -> None:
    try:
        session.run_with_iobinding(binding)
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise BackendError(f"ONNX Runtime failed: {lines[0]}") from error


def _check_names(session: Any, spec: GraphSpec, where: str) -> None:
    """Refuse a graph whose inputs or outputs are not those of the manifest."""
    for side, tensors, found in (
        ("inputs", spec.inputs, session.get_inputs()),
        ("outputs", spec.outputs, session.get_outputs()),
    ):
        differing = {tensor.name for tensor in tensors} ^ {tensor.name for tensor in found}
        if differing:
            raise BackendError(f"the {where} does not have the {side} of its manifest: {sorted(differing)} differ")


def _zeros(shape: tuple[int, ...], dtype: str) -> Any:
    return _ort_value(np.zeros(shape, CARRIERS[dtype]), dtype)


def _ort_value(array: np.ndarray[Any, Any], dtype: str) -> Any:
    from onnxruntime import OrtValue

    return OrtValue.ortvalue_from_numpy_with_onnx_type(array, ELEMENT_TYPES[dtype])


def _bits(value: Any) -> np.ndarray[Any, Any]:
    """An OrtValue's content on the host; bfloat16 as uint16."""
    if value.element_type() != ELEMENT_TYPES["bfloat16"]:
        return value.numpy()
    bits = np.empty(value.shape(), np.uint16)
    _ort_value(bits, "bfloat16").update_inplace(value)
    return bits


INPUT_NORM = re.compile(r"(?:^|\.)layers\.(\d+)\.input_layernorm\.weight$")
"""The initializer that scales what enters a layer: what its norm reads is the residual stream."""


def find_names(model: Any, where: str) -> list[str]:
    """What flows between a decoder's layers, as names of values of its graph.

    Args:
        model: an `onnx.ModelProto` of a bundle's decoder.
        where: what to call it in errors.

    Returns:
        The input of each layer; then importance, keys and values as the pruning op gets them.

    Raises:
        BackendError: it has no pruning op, or a layer whose input cannot be told.
    """
    from iwp_export.pruning.onnx_function import DOMAIN, OP_TYPE

    hidden: dict[int, str] = {}
    choice: list[str] = []
    for node in model.graph.node:
        if (node.domain, node.op_type) == (DOMAIN, OP_TYPE):
            choice = list(node.input[:3])
        for name in node.input:
            layer = INPUT_NORM.search(name)
            if layer and node.op_type == "RMSNormalization":
                hidden[int(layer[1])] = node.input[0]
    layers = sum(output.name.endswith(".key") for output in model.graph.output)
    if missing := set(range(layers)) - hidden.keys():
        raise BackendError(f"{where} does not tell the input of layer {min(missing)}: its norm has another name")
    if len(choice) != 3:
        raise BackendError(f"{where} has no pruning op to look at")
    return [*(hidden[layer] for layer in sorted(hidden)), *choice]


def _load_graph(path: Path) -> Any:
    try:
        import onnx
    except ImportError as error:
        raise BackendError(
            "to look inside of a graph needs onnx; install with: pip install 'iwp-export[build]'"
        ) from error
    return onnx.load(str(path), load_external_data=False)
