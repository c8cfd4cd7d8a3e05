"""ONNX Runtime behind the session interface: caches stay on the device and go from one step to the next uncopied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iwp_export.backends.ort.inside import InsideGraph
from iwp_export.backends.ort.providers import create_session, device_of
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

ONNX_FLOAT, ONNX_FLOAT16, ONNX_BFLOAT16 = 1, 10, 16
"""Element types of the ONNX specification (TensorProto.DataType)."""
ELEMENT_TYPES = {"float32": ONNX_FLOAT, "float16": ONNX_FLOAT16, "bfloat16": ONNX_BFLOAT16}


@dataclass(frozen=True)
class OrtFeatures:
    """One image's features as an OrtValue [n, D]."""

    value: Any
    count: int
    nbytes: int
    binding: Any  # holds the value's memory, see OrtCache


class OrtCache:
    """Keys and values as OrtValues: key and value [1, Hkv, P_i, d] of layer 0, 1, ...

    Args:
        values: the tensors.
        binding: what holds their memory. ONNX Runtime before 1.30 frees a binding's outputs with the binding, even
            while they are in use elsewhere.
    """

    def __init__(self, values: list[Any], binding: Any = None) -> None:
        self.replace(values, binding)

    def replace(self, values: list[Any], binding: Any) -> None:
        """Hold other tensors; the old ones' memory is free from here on."""
        self.values, self._binding = values, binding

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
        provider: `cpu`, `cuda`, `tensorrt` or another name that `iwp_export.backends.ort.providers` knows.
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
        self._device = device_of(provider)
        self._decoder = create_session(bundle.path(graphs["decoder"].file), provider, threads)
        self._vision = create_session(bundle.path(graphs["vision"].file), provider, threads)
        for name, session in (("decoder", self._decoder), ("vision", self._vision)):
            _check_names(session, graphs[name], f"{name} graph of {bundle.folder}")
        self._past = [tensor.name for tensor in graphs["decoder"].inputs if tensor.name.startswith("past_key_values.")]
        self._present = [name.replace("past_key_values.", "present.") for name in self._past]
        self._manifest = bundle.manifest
        self._inside = InsideGraph(bundle.path(graphs["decoder"].file), provider, threads)
        self._no_image = _zeros((1, bundle.manifest.vision.feature_size), bundle.manifest.decoder.dtype)

    def encode(self, inputs: Mapping[str, Array]) -> Features:
        """See `Session.encode`."""
        binding = self._vision.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        binding.bind_output("image_features", *self._device)
        _run(self._vision, binding)
        binding.synchronize_outputs()
        value = binding.get_outputs()[0]
        return OrtFeatures(value, value.shape()[0], value.tensor_size_in_bytes(), binding)

    def new_cache(self) -> Cache:
        """See `Session.new_cache`."""
        decoder = self._manifest.decoder
        shape = (1, decoder.kv_heads, 0, decoder.head_dim)
        return OrtCache([_zeros(shape, decoder.dtype) for _ in self._past])

    def step(self, inputs: StepInputs, features: Sequence[Features], cache: Cache) -> StepOutput:
        """See `Session.step`."""
        return self._run_decoder(self._decoder, inputs, features, cache)[0]

    def read_features(self, features: Features) -> Floats:
        """See `Session.read_features`."""
        assert isinstance(features, OrtFeatures)
        return widened(_bits(features.value))

    def read_cache(self, cache: Cache, layer: int) -> tuple[Floats, Floats]:
        """See `Session.read_cache`."""
        assert isinstance(cache, OrtCache)
        key, value = (widened(_bits(held)[0]) for held in cache.values[2 * layer : 2 * layer + 2])
        return key, value

    @property
    def no_look(self) -> str:
        """See `Session.no_look`."""
        return self._inside.refusal

    def look(self, inputs: StepInputs, features: Sequence[Features], cache: Cache) -> tuple[StepOutput, Inside]:
        """See `Session.look`. The first call loads a copy of the decoder whose graph has more outputs."""
        names, decoder = self._inside.names, self._inside.session
        output, extra = self._run_decoder(decoder, inputs, features, cache, [*names.hidden, *names.choice])
        found = [widened(_bits(value)[0]) for value in extra]
        return output, Inside(tuple(found[:-3]), *found[-3:])

    def _run_decoder(
        self,
        decoder: Any,
        inputs: StepInputs,
        features: Sequence[Features],
        cache: Cache,
        extra: Sequence[str] = (),
    ) -> tuple[StepOutput, list[Any]]:
        """One call by a session of the decoder, and what `extra` outputs it has."""
        if not isinstance(cache, OrtCache):
            raise TypeError(f"a cache of {type(cache).__name__} does not belong to ONNX Runtime")
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
        for name in self._present:
            binding.bind_output(name, *self._device)
        for name in extra:
            binding.bind_output(name, *self._device)
        _run(decoder, binding)
        logits, kept, *rest = binding.get_outputs()
        binding.clear_binding_inputs()  # it would hold the old cache
        cache.replace(rest[: len(self._present)], binding)
        output = StepOutput(logits.numpy().reshape(-1), kept.numpy().reshape(-1))
        return output, rest[len(self._present) :]

    def _joined(self, features: Sequence[Features]) -> Any:
        """The call's features as one OrtValue [N, D]; several images are joined on the host."""
        values = [image.value for image in features if isinstance(image, OrtFeatures)]
        if not values:
            return self._no_image
        if len(values) == 1:
            return values[0]
        return _ort_value(np.concatenate([_bits(value) for value in values]), self._manifest.decoder.dtype)


def _run(session: Any, binding: Any) -> None:
    try:
        session.run_with_iobinding(binding)
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise BackendError(f"ONNX Runtime failed: {_first_line(error)}") from error


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
    if value.element_type() != ONNX_BFLOAT16:
        return value.numpy()
    bits = np.empty(value.shape(), np.uint16)
    _ort_value(bits, "bfloat16").update_inplace(value)
    return bits


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
