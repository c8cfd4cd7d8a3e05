"""A GPU in host memory and TensorRT engines that ONNX Runtime computes: a session's bindings show in its answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime

from iwp_export.backends.trt.device import Device
from iwp_export.backends.trt.runner import Reservation, Runner
from iwp_export.backends.trt.session import TrtSession
from iwp_export.bundle.manifest import Manifest
from iwp_export.bundle.store import Bundle
from iwp_export.device.gpu import Gpu
from iwp_export.engine.profiles import DECODE, PREFILL, EngineLimits, Profile
from iwp_export.errors import BackendError

TRT = SimpleNamespace(
    __name__="fake",
    TensorIOMode=SimpleNamespace(INPUT=0, OUTPUT=1),
    TensorLocation=SimpleNamespace(DEVICE=0, HOST=1),
    ExecutionContextAllocationStrategy=SimpleNamespace(ON_PROFILE_CHANGE=1, USER_MANAGED=2),
    DynamicShapesKernelSpecializationStrategy=SimpleNamespace(LAZY=0, NONE=2),
)
DTYPES = {"bfloat16": ml_dtypes.bfloat16}
POISON = 0xA5
PAGE = 1 << 32


class FakeDevice(Device):
    """Memory that is poisoned when it is new and gone when it is freed."""

    stream = 7
    gpu = Gpu("fake", "89", 13)

    def __init__(self, capacity: int = 1 << 40) -> None:
        self.capacity = capacity
        self.memory: dict[int, np.ndarray[Any, Any]] = {}
        self.allocations = 0

    def activate(self) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def allocate(self, nbytes: int) -> int:
        if self.used + nbytes > self.capacity:
            raise BackendError("the fake GPU is full")
        self.allocations += 1
        address = self.allocations * PAGE
        self.memory[address] = np.full(nbytes, POISON, np.uint8)
        return address

    def free(self, address: int) -> None:
        del self.memory[address]

    def upload(self, address: int, array: np.ndarray[Any, Any]) -> None:
        assert array.flags.c_contiguous
        self.at(address, array.nbytes)[:] = array.reshape(-1).view(np.uint8)

    def download(self, address: int, array: np.ndarray[Any, Any]) -> None:
        array.reshape(-1).view(np.uint8)[:] = self.at(address, array.nbytes)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        self.at(target, nbytes)[:] = self.at(source, nbytes)

    def at(self, address: int, nbytes: int) -> np.ndarray[Any, Any]:
        base, offset = address // PAGE * PAGE, address % PAGE
        block = self.memory[base]
        assert offset + nbytes <= block.nbytes, "beyond the block"
        return block[offset : offset + nbytes]

    @property
    def used(self) -> int:
        return sum(block.nbytes for block in self.memory.values())


@dataclass
class FakeEngine:
    """An engine of one of a bundle's graphs; `profiles` bound its shapes where they are given."""

    device: FakeDevice
    bundle: Bundle
    role: str
    profiles: tuple[Profile, ...] = ()
    num_kept_on_host: bool = True
    runs: Counter[int] = field(default_factory=Counter)
    fail: bool = False
    context_bytes: dict[int, int] = field(default_factory=lambda: {PREFILL: 3000, DECODE: 1000})
    contexts: list[FakeContext] = field(default_factory=list)
    configs: list[FakeConfig] = field(default_factory=list)

    def __post_init__(self) -> None:
        path = self.bundle.path(self.bundle.manifest.graphs[self.role].file)
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        spec = self.bundle.manifest.graphs[self.role]
        self.inputs, self.outputs = list(spec.inputs), list(spec.outputs)
        self.names = [tensor.name for tensor in (*self.inputs, *self.outputs)]
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> int:
        return int(name in {tensor.name for tensor in self.outputs})

    def get_tensor_location(self, name: str) -> int:
        return int(name == "num_kept" and self.num_kept_on_host)

    def create_execution_context(self, how: int | FakeConfig) -> FakeContext:
        if isinstance(how, FakeConfig):
            self.configs.append(how)
            how = how.allocation
        assert how == TRT.ExecutionContextAllocationStrategy.USER_MANAGED
        self.contexts.append(FakeContext(self))
        return self.contexts[-1]

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return self.context_bytes[profile]

    def create_runtime_config(self) -> FakeConfig:
        return FakeConfig()


class FakeJitCache:
    """TensorRT-RTX's runtime cache: it refuses what it did not write."""

    def __init__(self) -> None:
        self.content = b"IWP empty"

    def deserialize(self, content: bytes) -> bool:
        if content.startswith(b"IWP"):
            self.content = content
        return content.startswith(b"IWP")

    def serialize(self) -> bytes:
        return self.content


class FakeConfig:
    """TensorRT-RTX's runtime configuration."""

    allocation = 0
    dynamic_shapes_kernel_specialization_strategy = 0
    cache: FakeJitCache | None = None

    def create_runtime_cache(self) -> FakeJitCache:
        return FakeJitCache()

    def set_runtime_cache(self, cache: FakeJitCache) -> bool:
        self.cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: int) -> None:
        self.allocation = strategy


class FakeContext:
    """Computes when shapes are asked for, since they may follow from values, and writes when it is executed.

    Its activations leave their traces in the memory that it was given.
    """

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.profile = 0
        self.memory = (0, 0)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.results: dict[str, np.ndarray[Any, Any]] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream == self.engine.device.stream
        self.profile = profile
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        self.memory = (memory, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self.engine.profiles and name in self.engine.profiles[self.profile].shapes:
            least, _, greatest = self.engine.profiles[self.profile].shapes[name]
            if not all(a <= n <= b for a, n, b in zip(least, shape, greatest, strict=True)):
                return False
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address != 0

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Runs the graph for the first output that is asked for."""
        if name == self.engine.outputs[0].name:
            self._compute()
        return self.results[name].shape

    def _compute(self) -> None:
        feeds = {tensor.name: self._read(tensor.name, tensor.dtype) for tensor in self.engine.inputs}
        found = self.engine.session.run(None, feeds)
        names = [output.name for output in self.engine.session.get_outputs()]
        self.results = dict(zip(names, found, strict=True))

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == self.engine.device.stream
        if self.engine.fail:
            return False
        read = {self.addresses[t.name] for t in self.engine.inputs if 0 not in self.shapes[t.name]}
        written = [self.addresses[t.name] for t in self.engine.outputs]
        assert read.isdisjoint(written) and len(set(written)) == len(written), "a tensor is written over"
        needed = self.engine.context_bytes[self.profile]
        assert self.memory[1] >= needed
        self.engine.device.at(self.memory[0], needed)[:] = POISON
        for tensor in self.engine.outputs:
            self.engine.device.upload(self.addresses[tensor.name], np.ascontiguousarray(self.results[tensor.name]))
        self.engine.runs[self.profile] += 1
        return True

    def _read(self, name: str, dtype: str) -> np.ndarray[Any, Any]:
        kind, shape = np.dtype(DTYPES.get(dtype, dtype)), self.shapes[name]
        count = int(np.prod(shape))
        if self.engine.get_tensor_location(name):
            import ctypes

            return np.ctypeslib.as_array((ctypes.c_int64 * count).from_address(self.addresses[name])).copy()
        return self.engine.device.at(self.addresses[name], count * kind.itemsize).view(kind).reshape(shape).copy()


class Log:
    """What of a logger error messages use."""

    def __init__(self) -> None:
        self.errors: list[str] = []


def make_session(
    path: Path,
    device: FakeDevice | None = None,
    limits: EngineLimits | None = None,
    profiles: tuple[Profile, ...] = (),
    num_kept_on_host: bool = True,
    roles: tuple[str, ...] = ("vision", "prefill", "decode"),
) -> tuple[TrtSession, FakeEngine, FakeDevice, Manifest]:
    """A session over fake engines of a bundle."""
    bundle, device = Bundle.open(path), device or FakeDevice()
    vision = FakeEngine(device, bundle, "vision")
    decoder = FakeEngine(device, bundle, "decoder", profiles, num_kept_on_host)
    chosen = {"vision": (vision, 0), "prefill": (decoder, PREFILL), "decode": (decoder, DECODE)}
    chosen = {role: chosen[role] for role in roles}
    activations = Reservation(device, max(engine.context_bytes[profile] for engine, profile in chosen.values()))
    runners = {
        role: Runner(TRT, engine, Log(), profile, device.stream, f"{role} engine", activations)
        for role, (engine, profile) in chosen.items()
    }
    limits = limits or EngineLimits(bundle.manifest.decoder.max_positions, bundle.manifest.decoder.max_positions, 4)
    return TrtSession(bundle.manifest, limits, runners, device, "fake"), decoder, device, bundle.manifest
