"""What runs an engine: device memory that goes from use to use, TensorRT-RTX's kernels, and execution contexts."""

from __future__ import annotations

import contextlib
import mmap
import warnings
import weakref
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from iwp_export.backends.trt.device import Device
from iwp_export.engine.log import first_error
from iwp_export.errors import BackendError
from iwp_export.files import whole_file


class JitCache:
    """Kernels that TensorRT-RTX compiled for an engine on this GPU.

    A file from another GPU, driver or version is left alone by TensorRT-RTX, and replaced when the kernels are saved.

    Args:
        trt: the module `tensorrt_rtx`.
        engine: a deserialised engine; the GPU's context must be current.
        path: the file, read if it is there.
    """

    def __init__(self, trt: Any, engine: Any, path: Path) -> None:
        self._trt, self._engine, self._path = trt, engine, path
        self._cache = engine.create_runtime_config().create_runtime_cache()
        self._saved = path.read_bytes() if path.is_file() else b""
        if self._saved:
            self._cache.deserialize(self._saved)

    def config(self, specialize: bool) -> Any:
        """What an execution context is made from.

        Args:
            specialize: compile kernels for the very shapes that come, in the background. Without, one kernel serves all
                shapes: right where each execution brings new ones.
        """
        trt = self._trt
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        config.set_runtime_cache(self._cache)
        strategy = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategy.LAZY if specialize else strategy.NONE
        return config

    def save(self) -> None:
        """Write the file, if there is anything new. A failure is a warning: the next process compiles again."""
        serialized = self._cache.serialize()
        content = b"" if serialized is None else bytes(memoryview(serialized))
        if content in (b"", self._saved):
            return
        try:
            with whole_file(self._path) as file:
                file.write_bytes(content)
            self._saved = content
        except OSError as error:
            warnings.warn(f"TensorRT-RTX's kernels were not kept in {self._path}: {error}", stacklevel=1)


ALIGNMENT = 256
"""Bytes to which TensorRT wants addresses aligned, and the smallest block."""
SIZES_PER_DOUBLING = 4
"""Block sizes are 4, 5, 6 and 7 quarters of a power of two: a block is less than a quarter larger than what it holds,
and a cache that doubles token by token goes through four sizes."""
TOLERATED_EXCESS = 2
"""A free block up to so many times too large is taken rather than a new one made."""


@dataclass(frozen=True)
class Block:
    """Device memory out of a pool."""

    address: int
    nbytes: int


class Pool:
    """Free blocks of a device.

    Args:
        device: where they are.
        spare: how many free blocks are kept.
    """

    def __init__(self, device: Device, spare: int) -> None:
        self._device = device
        self._spare = spare
        self._free: list[Block] = []
        weakref.finalize(self, _free_all, device, self._free)

    def take(self, nbytes: int) -> Block:
        """A block of at least `nbytes`, its content undefined.

        Raises:
            BackendError: the device's memory is full.
        """
        nbytes = block_bytes(nbytes)
        fitting = [block for block in self._free if nbytes <= block.nbytes <= TOLERATED_EXCESS * nbytes]
        if fitting:
            block = min(fitting, key=lambda block: block.nbytes)
            self._free.remove(block)
            return block
        # What grew out of a block will not come back to it: smaller ones go first.
        self._drop([block for block in self._free if block.nbytes < nbytes])
        try:
            return Block(self._device.allocate(nbytes), nbytes)
        except BackendError:
            if not self._free:
                raise
            self._drop(list(self._free))
            return Block(self._device.allocate(nbytes), nbytes)

    def give(self, blocks: list[Block]) -> None:
        """Take blocks back and empty the list; beyond the spare ones the smallest are freed."""
        self._free += blocks
        blocks.clear()
        self._free.sort(key=lambda block: block.nbytes)
        self._drop(self._free[: max(0, len(self._free) - self._spare)])

    def lend(self, owner: object, blocks: list[Block]) -> None:
        """Have the blocks that are in the list when `owner` is gone come back then."""
        weakref.finalize(owner, self.give, blocks)

    def _drop(self, blocks: list[Block]) -> None:
        for block in blocks:
            self._free.remove(block)
        _free_all(self._device, blocks)


class Reservation(Block):
    """Device memory of a fixed size for as long as this object lives.

    Raises:
        BackendError: the device's memory is full.
    """

    def __init__(self, device: Device, nbytes: int) -> None:
        super().__init__(device.allocate(nbytes), nbytes)
        weakref.finalize(self, _free_all, device, [Block(self.address, nbytes)])


def block_bytes(nbytes: int) -> int:
    """The size of the block that holds `nbytes`: up to a quarter more."""
    nbytes = max(nbytes, ALIGNMENT)
    step = (1 << (nbytes.bit_length() - 1)) // SIZES_PER_DOUBLING
    return -(-nbytes // step) * step


def offsets(sizes: Collection[int]) -> tuple[list[int], int]:
    """Where tensors begin that lie aligned in one block, and the block's size."""
    *starts, end = accumulate((-(-nbytes // ALIGNMENT) * ALIGNMENT for nbytes in sizes), initial=0)
    return starts, end


def _free_all(device: Device, blocks: list[Block]) -> None:
    """Free blocks, in whatever thread drops them; one that cannot be freed is lost, and stops nothing."""
    if blocks:
        with contextlib.suppress(BackendError):
            device.activate()
    while blocks:
        with contextlib.suppress(BackendError):
            device.free(blocks.pop().address)


Shape = tuple[int, ...]


@dataclass(frozen=True)
class Placed:
    """A tensor on the device; of an image's features [n, D], also those."""

    address: int
    shape: Shape

    @property
    def count(self) -> int:
        return self.shape[0]


def deserialize(trt: Any, logger: Any, path: Path) -> tuple[Any, Any]:
    """Load an engine. The file is mapped, so that its pages need not all be in memory at once.

    Returns:
        TensorRT's runtime, which must live as long as the engine, and the engine.

    Raises:
        BackendError: TensorRT refuses it.
    """
    try:
        runtime = trt.Runtime(logger)
    except (TypeError, RuntimeError) as error:  # TensorRT raises here instead of returning None
        raise BackendError(f"{trt.__name__} does not start: {first_error(logger)}") from error
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise BackendError(f"{trt.__name__} does not load {path}: {first_error(logger)}")
    return runtime, engine


class Runner:
    """An execution context of an engine on one profile.

    It has no memory of its own for activations. Contexts that never run at the same time share a reservation.

    Args:
        trt, engine, logger: the module, a deserialised engine and its logger.
        profile: index of the optimisation profile.
        stream: the stream that everything runs on.
        title: what to call the engine in errors.
        activations: memory that other contexts may use before and after, but not while this one runs; at least the
            engine's device memory size for the profile.
        report: lines that the plugin said went wrong.
        jit: TensorRT-RTX's compiled kernels.
        specialize: see `JitCache.config`.

    Raises:
        BackendError: TensorRT makes no context, or not for this profile.
    """

    def __init__(
        self,
        trt: Any,
        engine: Any,
        logger: Any,
        profile: int,
        stream: int,
        title: str,
        activations: Reservation,
        report: list[str] | None = None,
        jit: JitCache | None = None,
        specialize: bool = True,
    ) -> None:
        self._engine, self._logger, self._stream, self._title = engine, logger, stream, title
        self._report = [] if report is None else report
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.outputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]
        self.host_inputs = {
            name
            for name in names
            if name not in self.outputs and engine.get_tensor_location(name) == trt.TensorLocation.HOST
        }
        how = trt.ExecutionContextAllocationStrategy.USER_MANAGED if jit is None else jit.config(specialize)
        self._context = engine.create_execution_context(how)
        self._jit, self._activations = jit, activations  # declared after the context: Python frees the context first
        if self._context is None or not self._selects(profile):
            raise self._failed("gives no execution context")
        self._context.set_device_memory(activations.address, activations.nbytes)
        self._held: list[npt.NDArray[Any]] = []

    def run(
        self,
        inputs: Mapping[str, Placed],
        lengths: Mapping[str, npt.NDArray[np.int64]],
        place: Callable[[Mapping[str, Shape]], Mapping[str, int]],
    ) -> dict[str, Shape]:
        """Enqueue one execution.

        Args:
            inputs: the tensors on the device.
            lengths: inputs on the host that decide shapes; kept until the next call.
            place: gives the outputs' addresses, by name, for their shapes.

        Returns:
            The outputs' shapes.

        Raises:
            BackendError: a shape is beyond the profile, or the execution failed.
        """
        context = self._context
        for name, tensor in inputs.items():
            if not context.set_input_shape(name, tensor.shape):
                raise self._failed(f"refuses shape {list(tensor.shape)} of {name}")
            self._address(name, tensor.address)
        self._held = [np.ascontiguousarray(value, np.int64) for value in lengths.values()]
        for name, value in zip(lengths, self._held, strict=True):
            context.set_input_shape(name, value.shape)
            self._address(name, value.ctypes.data)
        shapes = {name: self._shape(name) for name in self.outputs}
        for name, address in place(shapes).items():
            self._address(name, address)
        if not context.execute_async_v3(self._stream):
            raise self._failed("did not run")
        if self._report:
            raise self._failed("ran, but its pruning plugin failed")
        return shapes

    def _selects(self, profile: int) -> bool:
        if profile == 0:  # what a new context has
            return True
        try:
            return bool(self._context.set_optimization_profile_async(profile, self._stream))
        except RuntimeError:  # TensorRT raises here instead of returning False
            return False

    def _shape(self, name: str) -> Shape:
        shape = tuple(self._context.get_tensor_shape(name))
        if min(shape, default=0) < 0:
            raise self._failed(f"does not tell the shape of {name}")
        return shape

    def _address(self, name: str, address: int) -> None:
        if not self._context.set_tensor_address(name, address):
            raise self._failed(f"refuses the address of {name}")

    def _failed(self, what: str) -> BackendError:
        reason = self._report[0] if self._report else first_error(self._logger)
        self._report.clear()
        getattr(self._logger, "errors", []).clear()
        return BackendError(f"the {self._title} {what}: {reason}")
