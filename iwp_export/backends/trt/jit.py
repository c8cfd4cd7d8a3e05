"""TensorRT-RTX compiles kernels for the GPU while an engine runs; what it compiled is kept from process to process."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from iwp_export.cache import whole_file


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
