"""What devices can do at most, from their makers' data sheets: products a second, bytes a second, memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from iwp_export.errors import SettingsError

GB = 10**9
"""Of memory too: what is sold as 8 GB shows less than 8 GiB, since firmware keeps some."""
SHARED_RESERVE, CARD_RESERVE = 2 * GB, 1 * GB
"""Bytes taken as not usable: by system, desktop and CUDA where memory is shared; by CUDA and a screen on a card."""


@dataclass(frozen=True)
class DeviceSpec:
    """One device at its fastest power mode.

    Attributes:
        name: as a user types it; `title`: its maker's name.
        fp16: peak of dense float16 products on the tensor cores with float32 sums, in TFLOP/s.
        int8, fp8: the same with 8-bit operands, in TOP/s and TFLOP/s; None where the device has no such products.
        bandwidth: of the memory, in GB/s (10^9 bytes).
        memory: bytes; `shared` if the CPU and the system live in it too.
        mode: the power mode that the figures are of; `modes`: all of them, slower ones too.
        sources: where each figure is from, and whether a second source was seen to agree.
    """

    name: str
    title: str
    fp16: float
    int8: float | None
    fp8: float | None
    bandwidth: float
    memory: int
    shared: bool
    mode: str
    modes: tuple[str, ...]
    sources: tuple[str, ...]

    @property
    def usable(self) -> int:
        """Bytes of memory that a model may take."""
        return self.memory - (SHARED_RESERVE if self.shared else CARD_RESERVE)


ORIN_TENSOR = (
    "products: NVIDIA Jetson AGX Orin Series Technical Brief v1.2 gives 170 sparse INT8 TOPS for 64 tensor cores at "
    "1.3 GHz; half of it is dense INT8, a quarter dense FP16"
)
"""From which the figures of all Orin modules follow, by their tensor cores and clocks."""

DEVICES: Mapping[str, DeviceSpec] = {
    spec.name: spec
    for spec in (
        DeviceSpec(
            "orin-nano",
            "Jetson Orin Nano 8GB, Super",
            fp16=16.7,
            int8=33.4,
            fp8=None,
            bandwidth=102.4,
            memory=8 * GB,
            shared=True,
            mode="MAXN SUPER",
            modes=("7W", "15W", "25W", "MAXN SUPER"),
            sources=(
                ORIN_TENSOR + "; 32 tensor cores at 1.02 GHz; agrees with the 67 sparse INT8 TOPS of the data sheet of "
                "the Jetson Orin Nano Super Developer Kit (December 2024)",
                "bandwidth: the same data sheet, 102 GB/s (68 before the Super modes of JetPack 6.1); confirmed",
                "memory: Jetson Orin Nano series data sheet, 8 GB of 128-bit LPDDR5; confirmed",
            ),
        ),
        DeviceSpec(
            "orin-nx",
            "Jetson Orin NX 16GB, Super",
            fp16=19.2,
            int8=38.4,
            fp8=None,
            bandwidth=102.4,
            memory=16 * GB,
            shared=True,
            mode="MAXN SUPER",
            modes=("10W", "15W", "25W", "40W", "MAXN SUPER"),
            sources=(
                ORIN_TENSOR + "; 32 tensor cores at 1.173 GHz (JetPack 6.2's Super modes; this clock is not confirmed)",
                "bandwidth: 128-bit LPDDR5 at 6,400 MT/s, Jetson Orin NX Series Modules Data Sheet DS-10712-001; "
                "the figure itself is not confirmed",
                "memory: the same data sheet; power modes: not confirmed",
            ),
        ),
        DeviceSpec(
            "agx-orin",
            "Jetson AGX Orin 64GB",
            fp16=42.5,
            int8=85.0,
            fp8=None,
            bandwidth=204.8,
            memory=64 * GB,
            shared=True,
            mode="MAXN",
            modes=("15W", "30W", "50W", "MAXN"),
            sources=(
                ORIN_TENSOR + "; confirmed",
                "bandwidth: 256-bit LPDDR5 at 6,400 MT/s, Jetson AGX Orin Series data sheet; not confirmed",
                "memory: the same data sheet; power modes: not confirmed",
            ),
        ),
        DeviceSpec(
            "thor",
            "Jetson AGX Thor (T5000)",
            fp16=258.5,
            int8=517.0,
            fp8=517.0,
            bandwidth=273.0,
            memory=128 * GB,
            shared=True,
            mode="MAXN (130 W)",
            modes=("40 W to 130 W",),
            sources=(
                "products: Jetson Thor data sheet (August 2025), 2,070 sparse FP4 TFLOPS: an eighth is dense FP16, "
                "which Hugging Face's page of the Jetson T5000 gives (258.5); INT8 as fast as FP8 is not confirmed",
                "bandwidth: the same data sheet, 273 GB/s; confirmed by a public comparison of devices",
                "memory: 128 GB, confirmed",
            ),
        ),
        DeviceSpec(
            "rtx-4090",
            "GeForce RTX 4090",
            fp16=165.2,
            int8=660.6,
            fp8=330.3,
            bandwidth=1008.0,
            memory=24 * GB,
            shared=False,
            mode="450 W",
            modes=("450 W, power limit adjustable",),
            sources=(
                "products and bandwidth: NVIDIA Ada GPU Architecture, V2.01, appendix (dense, float32 sums); confirmed "
                "in a public table of the card; float16 sums are twice as fast and not what these graphs ask for",
            ),
        ),
        DeviceSpec(
            "rtx-5090",
            "GeForce RTX 5090",
            fp16=209.5,
            int8=838.0,
            fp8=419.0,
            bandwidth=1792.0,
            memory=32 * GB,
            shared=False,
            mode="575 W",
            modes=("575 W, power limit adjustable",),
            sources=(
                "products: NVIDIA RTX Blackwell GPU Architecture, appendix (dense, float32 sums); FP16 agrees with the "
                "card's 3,352 sparse FP4 TFLOPS by 16; INT8 and FP8 are not confirmed",
                "bandwidth and memory: the same paper; confirmed",
            ),
        ),
        DeviceSpec(
            "h200",
            "H200 SXM",
            fp16=989.5,
            int8=1979.0,
            fp8=1979.0,
            bandwidth=4800.0,
            memory=141 * GB,
            shared=False,
            mode="700 W",
            modes=("up to 700 W, configurable",),
            sources=(
                "products: NVIDIA H200 Tensor Core GPU data sheet, half of the figures with sparsity; confirmed",
                "bandwidth and memory: the same data sheet, 4.8 TB/s and 141 GB; confirmed",
            ),
        ),
    )
}
"""By name. "Confirmed" says that a second public page was seen to give the same figure, in November 2026."""


def find_device(name: str) -> DeviceSpec:
    """A device by its name.

    Raises:
        SettingsError: it is not in the table.
    """
    if name not in DEVICES:
        raise SettingsError(f"no device {name!r}; there are: {', '.join(DEVICES)}", options=("device",))
    return DEVICES[name]
