"""What a TensorRT can import: the graph is lowered to fit it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from iwp_export.errors import BackendError

FlavourName = Literal["rtx", "tensorrt"]

FUSED_OPS = frozenset({"Attention", "RotaryEmbedding", "RMSNormalization"})
"""The operators of a bundle's graphs that are newer than opset 20."""


@dataclass(frozen=True)
class Target:
    """A kind of TensorRT and what its ONNX parser takes.

    Attributes:
        name: what messages call it.
        opset: version of the standard operators that the lowered graph uses.
        native: which of `FUSED_OPS` the parser imports; the others become primitive operators.
        native_attention_types: element types for which the imported Attention has a kernel.
        strict: hold every operator and its element types against the oldest parser's table.
    """

    name: str
    opset: int
    native: frozenset[str]
    native_attention_types: frozenset[str] = frozenset({"float16", "bfloat16"})
    strict: bool = False


RTX = Target("TensorRT-RTX", 23, FUSED_OPS)
TENSORRT_10_15 = Target("TensorRT 10.15 and later", 23, FUSED_OPS)
TENSORRT_10_14 = Target("TensorRT 10.14", 23, frozenset({"Attention"}))
TENSORRT_10_3 = Target("TensorRT 10.3 to 10.13", 20, frozenset(), strict=True)
"""JetPack 6 has 10.3 and JetPack 7.0 has 10.13; JetPack 7.2 has 10.16 and needs nothing of this."""

OLDEST_TENSORRT = (10, 1)
"""The first release whose parser takes IPluginV3 with shape inputs."""
OLDEST_RTX = (1, 3)


def target_for(flavour: FlavourName, version: str) -> Target:
    """The target of an installed TensorRT.

    Args:
        flavour: `rtx` or `tensorrt`.
        version: its version, such as `10.3.0.26`.

    Raises:
        BackendError: it is too old for the pruning plugin.
    """
    number = version_number(version)
    oldest = OLDEST_RTX if flavour == "rtx" else OLDEST_TENSORRT
    if number < oldest:
        raise BackendError(
            f"{'TensorRT-RTX' if flavour == 'rtx' else 'TensorRT'} {version} is too old for the pruning plugin; "
            f"install {oldest[0]}.{oldest[1]} or later"
        )
    if flavour == "rtx":
        return RTX
    if number >= (10, 15):
        return TENSORRT_10_15
    return TENSORRT_10_14 if number >= (10, 14) else TENSORRT_10_3


def version_number(version: str) -> tuple[int, int]:
    """Major and minor of a version string."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
