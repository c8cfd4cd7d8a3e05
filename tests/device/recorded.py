"""Machines as trees of files and outputs of programs. None of them is a machine of ours, and nothing here ran on one.

The values are from public recordings and documentation, as each machine says; how they are laid out in files is from
the kernel's documentation (hwmon ina3221, devfreq) and NVIDIA's Jetson Linux Developer Guide, "Platform Power and
Performance" (R36 and R38).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from iwp_export.device import state


@dataclass(frozen=True)
class Machine:
    """Files by name, None for one that is there and cannot be read; outputs by command."""

    files: Mapping[str, str | None]
    outputs: Mapping[str, str] = field(default_factory=dict)

    def write(self, root: Path, patch: pytest.MonkeyPatch) -> Path:
        for name, text in self.files.items():
            path = root / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            if text is None:
                path.mkdir()  # reading it is an OSError for root too
            else:
                path.write_text(text)
        patch.setattr(state, "run_tool", lambda *command: self.outputs.get(" ".join(command)))
        return root


def devfreq(name: str, now: int, least: int, greatest: int) -> dict[str, str]:
    values = {"cur_freq": now, "min_freq": least, "max_freq": greatest}
    return {f"/sys/class/devfreq/{name}/{file}": f"{value}\n" for file, value in values.items()}


def ina3221(folder: str, rails: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """Rails with their millivolts and milliamperes, and the sum of shunt voltages, which is no rail."""
    files = {f"{folder}/name": "ina3221\n", f"{folder}/in7_label": "sum of shunt voltages\n"}
    for channel, (label, (volts, amperes)) in enumerate(rails.items(), 1):
        values = {"in{}_label": label, "in{}_input": volts, "curr{}_input": amperes}
        files |= {f"{folder}/{name.format(channel)}": f"{value}\n" for name, value in values.items()}
    return files


def cooling(found: Mapping[str, int]) -> dict[str, str]:
    """Cooling devices with their states."""
    files: dict[str, str] = {}
    for number, (kind, step) in enumerate(found.items()):
        folder = f"/sys/class/thermal/cooling_device{number}"
        files |= {f"{folder}/type": f"{kind}\n", f"{folder}/cur_state": f"{step}\n"}
    return files


ORIN_NANO = Machine(
    {
        # A public issue's recording of /etc/nv_tegra_release, Orin Nano Super, JetPack 6.2.1.
        "/etc/nv_tegra_release": "# R36 (release), REVISION: 4.7, GCID: 42132812, BOARD: generic, EABI: aarch64, "
        "DATE: Thu Sep 18 22:54:44 UTC 2025\n# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n",
        "/proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
        # Limits of the 25 W mode as a public script checks them.
        **devfreq("17000000.gpu", 306000000, 306000000, 918000000),
        # VDD_IN of 5,016 mV and 6,000 mA: a public measurement of an Orin NX in MAXN_SUPER; rails of the guide.
        **ina3221(
            "/sys/class/hwmon/hwmon1",
            {"VDD_IN": (5016, 6000), "VDD_CPU_GPU_CV": (5016, 3000), "VDD_SOC": (5016, 1000)},
        ),
        "/sys/class/hwmon/hwmon3/name": "soctherm_oc\n",
        "/sys/class/hwmon/hwmon3/oc1_event_cnt": "0\n",
        "/sys/class/hwmon/hwmon3/oc2_event_cnt": "15\n",
        "/sys/class/hwmon/hwmon3/oc3_event_cnt": "37\n",
        **cooling({"pwm-fan": 3, "cpu-throttle-alert": 0, "hot-surface-alert": 0}),
    },
    {
        "nvpmodel -q": "NV Power Mode: 25W\n1\n",
        "dpkg-query --showformat=${Version} --show nvidia-jetpack": "6.2.1+b38",
    },
)
"""Orin Nano with JetPack 6, clocks not locked."""

AGX_ORIN = Machine(
    {
        # The form of the line in Jetson Linux R39, which is JetPack 7.2.
        "/etc/nv_tegra_release": "# R39 (release), REVISION: 2.0, BOARD: generic, EABI: aarch64\n",
        "/proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
        # A tegrastats line of a kit with JetPack 7.2 that jetson-stats 7.2.2 has in its tests: GPU at [1300,1300],
        # CPUs at 2201, VDD_GPU_SOC 5139mW, VDD_CPU_CV 3268mW, VIN_SYS_5V0 5500mW; and the rail that feeds on the last.
        **devfreq("17000000.gpu", 1300500000, 1300500000, 1300500000),
        **ina3221(
            "/sys/class/hwmon/hwmon3",
            {"VDD_GPU_SOC": (5139, 1000), "VDD_CPU_CV": (3268, 1000), "VIN_SYS_5V0": (5000, 1100)},
        ),
        **ina3221("/sys/class/hwmon/hwmon4", {"NC": (0, 0), "VDDQ_VDD2_1V8AO": (1800, 341)}),
    },
    {"nvpmodel -q": "NV Power Mode: MAXN\n0\n"},
)
"""AGX Orin with JetPack 7.2, clocks locked."""

THOR = Machine(
    {
        # A public issue's recording, jetson_stats 711.
        "/etc/nv_tegra_release": "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64, "
        "DATE: Fri Aug 22 00:55:42 UTC 2025\n",
        "/proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
        # Clocks that a public benchmark checks after jetson_clocks.
        **devfreq("gpu-gpc-0", 1575000000, 1575000000, 1575000000),
        **devfreq("gpu-nvd-0", 1692000000, 1692000000, 1692000000),
        # Public recordings: an idle VDD_GPU at -392 mW, the others at 6.51 and 6.52 W.
        **ina3221(
            "/sys/class/hwmon/hwmon1",
            {"VDD_GPU": (19600, -20), "VDD_CPU_SOC_MSS": (6510, 1000), "VIN_SYS_5V0": (5000, 1304)},
        ),
        "/sys/class/hwmon/hwmon5/name": "soctherm_oc\n",
        "/sys/class/hwmon/hwmon5/oc3_event_cnt": "179\n",
        # Cooling devices of a public test tree, at which the GPU is slowed down.
        **cooling(
            {"cpufreq-cpu0": 0, "pwm-fan": 0, "gpu-throttle-alert": 1, "devfreq-gpu-gpc-0": 18},
        ),
    },
    {"nvpmodel -q": "NV Power Mode: MAXN\n0\n"},
)
"""Thor's developer kit with JetPack 7.0, clocks locked, throttled."""


class NVMLError(Exception):
    """As in pynvml."""


def nvml(**different: Any) -> SimpleNamespace:
    """pynvml on a desktop with an RTX 3090, from a recording of nvidia-smi in a public repository's tests.

    `different` are other answers by the calls' names; None is one that the card does not support.
    """

    def refuse(*arguments: Any) -> None:
        raise NVMLError("Not Supported")

    answers = {
        "nvmlInit": None,
        "nvmlDeviceGetCount": 1,
        "nvmlDeviceGetHandleByIndex": "the card",
        "nvmlSystemGetDriverVersion": "535.154.05",
        "nvmlDeviceGetCurrentClocksThrottleReasons": 1,  # idle is no throttling
        "nvmlDeviceGetEnforcedPowerLimit": 350_000,
        "nvmlDeviceGetClockInfo": 1695,
        "nvmlDeviceGetMaxClockInfo": 2100,
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=5 << 30),
        "nvmlDeviceGetTotalEnergyConsumption": 5000,
    }
    calls: dict[str, Any] = {name: lambda *_, value=value: value for name, value in answers.items()}
    for name, value in different.items():
        calls[name] = refuse if value is None else value if callable(value) else lambda *_, value=value: value
    return SimpleNamespace(NVMLError=NVMLError, **calls)
