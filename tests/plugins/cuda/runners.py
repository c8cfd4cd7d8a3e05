"""The two places where the kernels run: the CPU, emulated, and a GPU. Both take a case and return kept_index."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from iwp_export.engine.kernels import ALIGNMENT, INCLUDES, SelectionAddresses, SharedKernels, source_files
from tests.plugins.cuda.cases import Case

EMULATION = Path(__file__).parent / "emulation"
CANARY = 0xA5
CANARY_BYTES = 4096


def build_emulated(output: Path, more_flags: Sequence[str] = (), architecture: int = 900) -> Path:
    """Compile the kernels' sources for the CPU.

    Args:
        more_flags: of the compiler.
        architecture: the GPU they are to be compiled as for; 750 has no tensor cores for bfloat16.
    """
    includes = [f"-I{path}" for path in (EMULATION, *INCLUDES)]
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    defines = ["-DIWP_EMULATION", f"-DIWP_EMULATED_ARCH={architecture}"]
    compiler = os.environ.get("CXX", "g++")
    sources = [word for path in source_files() for word in ("-x", "c++", str(path))]
    command = [compiler, *flags, *more_flags, *defines, *includes, *sources, str(EMULATION / "scheduler.cpp")]
    subprocess.run([*command, "-o", str(output)], check=True)
    return output


def has_emulator() -> bool:
    return shutil.which(os.environ.get("CXX", "g++")) is not None


class EmulatedRunner:
    """Runs a case on the CPU. `seed` draws the order of threads and blocks; an odd one makes asynchronous copies late.

    Args:
        library: what `build_emulated` made.
        settings: kOneBlockTokens, kMatrixTokens: see `src/problem.h`. BLOCK, EXTRA_BITS: see `emulation/rounding.h`.
    """

    def __init__(self, library: Path, **settings: int) -> None:
        self.kernels = SharedKernels(library)
        self.settings = settings

    def __call__(self, case: Case, *, seed: int = 0, multiprocessors: int = 16, offset: int = 0) -> np.ndarray:
        """kept_index [B, num_kept]. With `offset`, inputs lie that many elements off their alignment."""
        shape = case.shape
        inputs = [_shifted(x, offset) for x in case.encoded()]
        is_visual = case.is_visual.astype(np.int32)
        kept = np.full((shape.batch, shape.num_kept), -1, np.int64)
        with _environment(SEED=seed, MULTIPROCESSORS=multiprocessors, **self.settings):
            size = self.kernels.workspace_bytes(shape, case.options)
            buffer = np.full(size + CANARY_BYTES + ALIGNMENT, CANARY, np.uint8)
            start = -buffer.ctypes.data % ALIGNMENT
            arrays = (*inputs, is_visual, kept, buffer[start:])
            addresses = SelectionAddresses(*(x.ctypes.data for x in arrays))
            self.kernels.enqueue(shape, case.options, addresses, size, stream=0)
        outside = np.concatenate([buffer[:start], buffer[start + size :]])
        assert (outside == CANARY).all(), f"{case}: a write outside the workspace of {size} bytes"
        return kept


class CudaRunner:
    """Runs a case on the current GPU; torch serves as allocator and stream."""

    def __init__(self, kernels: SharedKernels) -> None:
        import torch

        self.torch = torch
        self.kernels = kernels

    def upload(self, case: Case) -> dict[str, Any]:
        """Device buffers of a case, the workspace between canaries."""
        torch = self.torch
        names = ("importance", "key", "value")
        buffers = {
            name: torch.from_numpy(x.view(np.uint8)).cuda() for name, x in zip(names, case.encoded(), strict=True)
        }
        buffers["is_visual"] = torch.from_numpy(case.is_visual.astype(np.int32)).cuda()
        buffers["kept"] = torch.full((case.shape.batch, case.shape.num_kept), -1, dtype=torch.int64, device="cuda")
        size = self.kernels.workspace_bytes(case.shape, case.options)
        buffers["workspace"] = torch.full((size + 2 * CANARY_BYTES,), CANARY, dtype=torch.uint8, device="cuda")
        return buffers

    def enqueue(self, case: Case, buffers: dict[str, Any]) -> None:
        """Enqueue on torch's current stream."""
        names = ("importance", "key", "value", "is_visual", "kept")
        workspace = buffers["workspace"][CANARY_BYTES:-CANARY_BYTES]
        addresses = SelectionAddresses(*(x.data_ptr() for x in (*(buffers[name] for name in names), workspace)))
        stream = self.torch.cuda.current_stream().cuda_stream
        self.kernels.enqueue(case.shape, case.options, addresses, workspace.numel(), stream)

    def __call__(self, case: Case) -> np.ndarray:
        buffers = self.upload(case)
        self.enqueue(case, buffers)
        kept = buffers["kept"].cpu().numpy()
        workspace = buffers["workspace"]
        for canary in (workspace[:CANARY_BYTES], workspace[-CANARY_BYTES:]):
            assert bool((canary == CANARY).all()), f"{case}: a write outside the workspace"
        return np.asarray(kept)


def _shifted(x: np.ndarray, offset: int) -> np.ndarray:
    buffer = np.empty(x.size + offset + 16 // x.itemsize, x.dtype)
    start = (-buffer.ctypes.data % 16) // x.itemsize + offset
    view = buffer[start : start + x.size]
    view[:] = x.ravel()
    return view


@contextmanager
def _environment(**values: int) -> Iterator[None]:
    """Settings that the emulator sees for the time of a call; see `emulation/settings.h`."""
    names = {f"IWP_EMULATION_{name}": str(value) for name, value in values.items()}
    os.environ.update(names)
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]
