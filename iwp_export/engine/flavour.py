"""TensorRT's two Python packages, `tensorrt` and `tensorrt_rtx`, loaded by name and ready to import plugins."""

from __future__ import annotations

import atexit
import ctypes
import importlib
import importlib.metadata
import importlib.util
import shutil
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from iwp_export.device.machine import reads_arrays
from iwp_export.errors import BackendError, in_one_line
from iwp_export.settings import FlavourName as FlavourName

MODULES: dict[FlavourName, str] = {"rtx": "tensorrt_rtx", "tensorrt": "tensorrt"}
TITLES: dict[FlavourName, str] = {"rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}
INSTALL: dict[FlavourName, str] = {
    "rtx": "pip install 'iwp-export[rtx]'",
    "tensorrt": (
        "on Jetson it comes with JetPack (make the virtual environment with --system-site-packages); "
        "elsewhere pip install tensorrt"
    ),
}


@dataclass(frozen=True)
class Flavour:
    """An imported TensorRT, with its module."""

    name: FlavourName
    version: str
    trt: Any

    @property
    def title(self) -> str:
        return f"{TITLES[self.name]} {self.version}"


def is_installed(name: FlavourName) -> bool:
    """Whether the package is there, without importing it."""
    return importlib.util.find_spec(MODULES[name]) is not None


@cache
def load_flavour(name: FlavourName) -> Flavour:
    """Import a TensorRT.

    Raises:
        BackendError: it is not installed, its libraries do not load, or its bindings are not for this numpy.
    """
    if name not in MODULES:
        raise BackendError(f"unknown TensorRT {name!r}; known are {', '.join(MODULES)}")
    if not is_installed(name):
        raise BackendError(f"{TITLES[name]} is not installed. To get it: {INSTALL[name]}")
    try:
        if name == "rtx":
            _preload_rtx()
        module: Any = importlib.import_module(MODULES[name])
    except Exception as error:  # the bindings raise whatever a missing library makes them raise
        reason = in_one_line(error)
        raise BackendError(f"{TITLES[name]} does not load ({reason}). To get it: {INSTALL[name]}") from error
    flavour = Flavour(name, str(module.__version__), module)
    if not reads_arrays(module):  # the plugin's fields are arrays: they would be misread in silence
        raise BackendError(
            f"{flavour.title} does not read arrays of numpy {importlib.metadata.version('numpy')}, which the pruning "
            "plugin needs: pip install 'numpy<2'"
        )
    return flavour


def _preload_rtx() -> None:
    """Load TensorRT-RTX's libraries from a folder where they also have their unversioned names.

    Its parser dlopens `libtensorrt_rtx.so` when it meets a plugin, which the wheel lacks, and the process aborts. The
    loader looks for that name in the folder through which the parser itself was loaded ($ORIGIN): a folder of links
    will do, and the import that follows finds the libraries loaded.
    """
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    if sys.platform != "linux" or spec is None or spec.origin is None:
        return
    libraries = Path(spec.origin).parent
    if (libraries / "libtensorrt_rtx.so").exists():
        return
    if MODULES["rtx"] in sys.modules:
        raise BackendError(
            "tensorrt_rtx was imported before iwp_export could prepare it; import iwp_export.engine first"
        )
    links = Path(tempfile.mkdtemp(prefix="iwp-export-rtx-"))
    atexit.register(shutil.rmtree, links, ignore_errors=True)
    for library in libraries.glob("*.so.*"):
        for name in (library.name, library.name.split(".so")[0] + ".so"):
            (links / name).symlink_to(library)
    for stem in ("libtensorrt_rtx", "libtensorrt_onnxparser_rtx"):
        for library in links.glob(f"{stem}.so.*"):
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


FUSED_OPS = frozenset({"Attention", "RotaryEmbedding", "RMSNormalization"})
"""The operators of a bundle's graphs that are newer than opset 20."""


@dataclass(frozen=True)
class Target:
    """A kind of TensorRT and what its ONNX parser takes.

    Attributes:
        opset: version of the standard operators that the lowered graph uses.
        native: which of `FUSED_OPS` the parser imports; the others become primitive operators.
    """

    opset: int
    native: frozenset[str]


RTX = TENSORRT_10_15 = Target(23, FUSED_OPS)
TENSORRT_10_14 = Target(23, frozenset({"Attention"}))
TENSORRT_10_3 = Target(20, frozenset())
"""JetPack 6 has 10.3 and JetPack 7.0 has 10.13; JetPack 7.2 has 10.16 and needs nothing of this."""

OLDEST: dict[FlavourName, tuple[int, int]] = {"rtx": (1, 3), "tensorrt": (10, 1)}
"""The first releases whose parsers take IPluginV3 with shape inputs."""


def target_for(flavour: FlavourName, version: str) -> Target:
    """The target of an installed TensorRT.

    Args:
        flavour: `rtx` or `tensorrt`.
        version: its version, such as `10.3.0.26`.

    Raises:
        BackendError: it is too old for the pruning plugin.
    """
    number = tuple(map(int, version.split(".")[:2]))
    if number < (oldest := OLDEST[flavour]):
        raise BackendError(
            f"{TITLES[flavour]} {version} is too old for the pruning plugin; install {oldest[0]}.{oldest[1]} or later"
        )
    if flavour == "rtx":
        return RTX
    if number >= (10, 15):
        return TENSORRT_10_15
    return TENSORRT_10_14 if number >= (10, 14) else TENSORRT_10_3
