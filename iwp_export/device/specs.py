"""What devices have, from their makers' data sheets: memory, and bytes that it moves a second."""

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
        title: its maker's name.
        memory: bytes. `bandwidth`: of the memory, in GB/s (10^9 bytes).
        shared: whether the CPU and the system live in the memory too.
        mode: the power mode that the bandwidth is of.
        source: where the figures are from, and whether a second source was seen to agree.
    """

    title: str
    memory: int
    bandwidth: float
    shared: bool
    mode: str
    source: str

    @property
    def usable(self) -> int:
        """Bytes of memory that a model may take."""
        return self.memory - (SHARED_RESERVE if self.shared else CARD_RESERVE)


NANO = "data sheet of the Jetson Orin Nano Super Developer Kit (December 2024), 68 GB/s before JetPack 6.1; confirmed"
NX = "Jetson Orin NX Series Modules Data Sheet DS-10712-001, 128-bit LPDDR5 at 6,400 MT/s; bandwidth not confirmed"
AGX = "Jetson AGX Orin Series data sheet, 256-bit LPDDR5 at 6,400 MT/s; bandwidth not confirmed"
THOR = "Jetson Thor data sheet (August 2025); confirmed by a public comparison of devices"
ADA = "NVIDIA Ada GPU Architecture, V2.01, appendix; confirmed"
BLACKWELL = "NVIDIA RTX Blackwell GPU Architecture, appendix; confirmed"
HOPPER = "NVIDIA H200 Tensor Core GPU data sheet; confirmed"
"""Sources. "Confirmed" says that a second public page was seen to give the same figure, in November 2026."""

DEVICES: Mapping[str, DeviceSpec] = {
    "orin-nano": DeviceSpec("Jetson Orin Nano 8GB, Super", 8 * GB, 102.4, True, "MAXN SUPER", NANO),
    "orin-nx": DeviceSpec("Jetson Orin NX 16GB, Super", 16 * GB, 102.4, True, "MAXN SUPER", NX),
    "agx-orin": DeviceSpec("Jetson AGX Orin 64GB", 64 * GB, 204.8, True, "MAXN", AGX),
    "thor": DeviceSpec("Jetson AGX Thor (T5000)", 128 * GB, 273.0, True, "MAXN (130 W)", THOR),
    "rtx-4090": DeviceSpec("GeForce RTX 4090", 24 * GB, 1008.0, False, "450 W", ADA),
    "rtx-5090": DeviceSpec("GeForce RTX 5090", 32 * GB, 1792.0, False, "575 W", BLACKWELL),
    "h200": DeviceSpec("H200 SXM", 141 * GB, 4800.0, False, "700 W", HOPPER),
}
"""By the name that a user types."""


def find_device(name: str) -> DeviceSpec:
    """A device by its name.

    Raises:
        SettingsError: it is not in the table.
    """
    if name not in DEVICES:
        raise SettingsError(f"no device {name!r}; there are: {', '.join(DEVICES)}", options=("device",))
    return DEVICES[name]
