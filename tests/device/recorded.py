"""Machines as trees of files and outputs of programs. None of them is a machine of ours, and nothing here ran on one.

The values are from public recordings and documentation, as each machine says; how they are laid out in files is from
the kernel's documentation (hwmon ina3221, cpufreq, devfreq, powercap) and NVIDIA's Jetson Linux Developer Guide,
"Platform Power and Performance" (R36 and R38).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from iwp_export.device.probe import Probe


@dataclass(frozen=True)
class Machine:
    """Files by name, None for one that is there and cannot be read; outputs by command."""

    files: Mapping[str, str | None]
    outputs: Mapping[str, str] = field(default_factory=dict)

    def probe(self, root: Path) -> Probe:
        for name, text in self.files.items():
            path = root / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            if text is None:
                path.mkdir()  # reading it is an OSError for root too
            else:
                path.write_text(text)

        def run(command: Sequence[str]) -> tuple[str, str]:
            line = " ".join(command)
            return (self.outputs[line], "") if line in self.outputs else ("", "not found")

        return Probe(root, run)

    def but(self, files: Mapping[str, str | None]) -> Machine:
        return Machine({**self.files, **files}, self.outputs)


def clock(folder: str, names: str, now: int, least: int, greatest: int) -> dict[str, str]:
    values = dict(zip(names.split(), (now, least, greatest), strict=True))
    return {f"{folder}/{name}": f"{value}\n" for name, value in values.items()}


def devfreq(name: str, now: int, least: int, greatest: int) -> dict[str, str]:
    return clock(f"/sys/class/devfreq/{name}", "cur_freq min_freq max_freq", now, least, greatest)


def cpufreq(policy: int, governor: str, now: int, least: int, greatest: int) -> dict[str, str]:
    folder = f"/sys/devices/system/cpu/cpufreq/policy{policy}"
    names = "scaling_cur_freq scaling_min_freq scaling_max_freq"
    return {**clock(folder, names, now, least, greatest), f"{folder}/scaling_governor": governor + "\n"}


def ina3221(folder: str, rails: Mapping[str, tuple[int, int]]) -> dict[str, str]:
    """Rails with their millivolts and milliamperes, and the sum of shunt voltages, which is no rail."""
    files = {f"{folder}/name": "ina3221\n", f"{folder}/in7_label": "sum of shunt voltages\n"}
    for channel, (label, (volts, amperes)) in enumerate(rails.items(), 1):
        values = {"in{}_label": label, "in{}_input": volts, "curr{}_input": amperes}
        files |= {f"{folder}/{name.format(channel)}": f"{value}\n" for name, value in values.items()}
    return files


def listed(folder: str, values: str, found: Mapping[str, object]) -> dict[str, str | None]:
    """Thermal zones or cooling devices: numbered folders with a type and a value."""
    files: dict[str, str | None] = {}
    for number, (kind, value) in enumerate(found.items()):
        files[f"/sys/class/thermal/{folder}{number}/type"] = f"{kind}\n"
        files[f"/sys/class/thermal/{folder}{number}/{values}"] = None if value is None else f"{value}\n"
    return files


ORIN_NANO = Machine(
    {
        # A public issue's recording of /etc/nv_tegra_release, Orin Nano Super, JetPack 6.2.1.
        "/etc/nv_tegra_release": "# R36 (release), REVISION: 4.7, GCID: 42132812, BOARD: generic, EABI: aarch64, "
        "DATE: Thu Sep 18 22:54:44 UTC 2025\n# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n",
        "/proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
        "/etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
        "/proc/sys/kernel/osrelease": "5.15.148-tegra\n",
        "/proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 62.50\n",
        "/usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.11"}}',
        # Limits of the 25 W mode as a public script checks them.
        **devfreq("17000000.gpu", 306000000, 306000000, 918000000),
        **cpufreq(0, "schedutil", 729600, 729600, 1344000),
        # VDD_IN of 5,016 mV and 6,000 mA: a public measurement of an Orin NX in MAXN_SUPER; rails of the guide.
        **ina3221(
            "/sys/class/hwmon/hwmon1",
            {"VDD_IN": (5016, 6000), "VDD_CPU_GPU_CV": (5016, 3000), "VDD_SOC": (5016, 1000)},
        ),
        "/sys/class/hwmon/hwmon3/name": "soctherm_oc\n",
        "/sys/class/hwmon/hwmon3/oc1_event_cnt": "0\n",
        "/sys/class/hwmon/hwmon3/oc2_event_cnt": "15\n",
        "/sys/class/hwmon/hwmon3/oc3_event_cnt": "37\n",
        **listed("thermal_zone", "temp", {"cpu-thermal": 49300, "gpu-thermal": 49400, "tj-thermal": 49400}),
        **listed("cooling_device", "cur_state", {"pwm-fan": 3, "cpu-throttle-alert": 0, "hot-surface-alert": 0}),
    },
    {
        "nvpmodel -q": "NV Power Mode: 25W\n1\n",
        "dpkg-query --showformat=${Version} --show nvidia-jetpack": "6.2.1+b38",
        "lscpu": "Architecture:          aarch64\nVendor ID:   ARM\nModel name:              Cortex-A78AE\n",
        # A public log of JetPack 6: nvidia-smi knows the name and prints N/A elsewhere.
        "nvidia-smi -q": "\n==============NVSMI LOG==============\n\nDriver Version      : 540.4.0\n"
        "CUDA Version        : 12.6\n\nAttached GPUs       : 1\nGPU 00000000:00:00.0\n"
        "    Product Name    : Orin (nvgpu)\n    Clocks\n        SM          : N/A\n        Memory      : N/A\n"
        "    Temperature\n        GPU Current Temp : N/A\n",
        "nvidia-smi --query-gpu=power.draw --format=csv,noheader,nounits -i 0": "[N/A]",
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
        **cpufreq(0, "schedutil", 2201600, 2201600, 2201600),
        **cpufreq(4, "schedutil", 2201600, 2201600, 2201600),
        **ina3221(
            "/sys/class/hwmon/hwmon3",
            {"VDD_GPU_SOC": (5139, 1000), "VDD_CPU_CV": (3268, 1000), "VIN_SYS_5V0": (5000, 1100)},
        ),
        **ina3221("/sys/class/hwmon/hwmon4", {"NC": (0, 0), "VDDQ_VDD2_1V8AO": (1800, 341)}),
        **listed("thermal_zone", "temp", {"cpu-thermal": 52968, "gpu-thermal": 47625}),
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
        "/proc/sys/kernel/osrelease": "6.8.12-tegra\n",
        # Clocks that a public benchmark checks after jetson_clocks.
        **devfreq("gpu-gpc-0", 1575000000, 1575000000, 1575000000),
        **devfreq("gpu-nvd-0", 1692000000, 1692000000, 1692000000),
        **devfreq("bwmgr", 4266000000, 4266000000, 4266000000),
        # Public recordings: an idle VDD_GPU at -392 mW, the others at 6.51 and 6.52 W, VIN at 23 W.
        **ina3221(
            "/sys/class/hwmon/hwmon1",
            {"VDD_GPU": (19600, -20), "VDD_CPU_SOC_MSS": (6510, 1000), "VIN_SYS_5V0": (5000, 1304)},
        ),
        "/sys/class/hwmon/hwmon2/name": "ina238\n",
        "/sys/class/hwmon/hwmon2/power1_input": "23000000\n",
        "/sys/class/hwmon/hwmon5/name": "soctherm_oc\n",
        "/sys/class/hwmon/hwmon5/oc3_event_cnt": "179\n",
        **listed("thermal_zone", "temp", {"tj-thermal": 55100, "cpu-thermal": 53700, "gpu-thermal": None}),
        # Cooling devices of a public test tree, at which the GPU is slowed down.
        **listed(
            "cooling_device",
            "cur_state",
            {"cpufreq-cpu0": 0, "pwm-fan": 0, "gpu-throttle-alert": 1, "devfreq-gpu-gpc-0": 18},
        ),
    },
    {"nvpmodel -q": "NV Power Mode: MAXN\n0\n"},
)
"""Thor's developer kit with JetPack 7.0, clocks locked, throttled."""

SMI_3090 = """
==============NVSMI LOG==============

Timestamp                                 : Mon Mar 31 10:11:18 2025
Driver Version                            : 535.154.05
CUDA Version                              : 12.2

Attached GPUs                             : 1
GPU 00000000:04:00.0
    Product Name                          : NVIDIA GeForce RTX 3090
    Performance State                     : P0
    Clocks Event Reasons
        Idle                              : Active
        Applications Clocks Setting       : Not Active
        SW Power Cap                      : Not Active
        HW Slowdown                       : Not Active
            HW Thermal Slowdown           : Not Active
            HW Power Brake Slowdown       : Not Active
        Sync Boost                        : Not Active
        SW Thermal Slowdown               : Not Active
        Display Clock Setting             : Not Active
    Temperature
        GPU Current Temp                  : 33 C
        GPU T.Limit Temp                  : N/A
    GPU Power Readings
        Power Draw                        : 99.31 W
        Current Power Limit               : 350.00 W
    Module Power Readings
        Current Power Limit               : N/A
    Clocks
        Graphics                          : 1695 MHz
        SM                                : 1695 MHz
        Memory                            : 9751 MHz
    Max Clocks
        Graphics                          : 2100 MHz
        SM                                : 2100 MHz
        Memory                            : 9751 MHz
    Processes                             : None
"""

DESKTOP = Machine(
    {
        "/etc/os-release": 'PRETTY_NAME="Ubuntu 24.04.3 LTS"\n',
        "/proc/sys/kernel/osrelease": "6.8.0-45-generic\n",
        "/proc/cpuinfo": "processor\t: 0\nmodel name\t: Intel(R) Core(TM) i9-13900K\n",
        **cpufreq(0, "powersave", 5500000, 800000, 5800000),
        **cpufreq(10, "powersave", 4300000, 800000, 4300000),
        # The zones of the kernel's documentation of powercap.
        "/sys/class/powercap/intel-rapl:0/name": "package-0\n",
        "/sys/class/powercap/intel-rapl:0/energy_uj": "1000000\n",
        "/sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850\n",
        "/sys/class/powercap/intel-rapl:0:0/name": "core\n",
        "/sys/class/powercap/intel-rapl:0:0/energy_uj": "500000\n",
        "/sys/class/powercap/intel-rapl:0:0/max_energy_range_uj": "262143328850\n",
        "/sys/class/powercap/intel-rapl/enabled": "1\n",
        "/sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "4\n",
        "/sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "0\n",
        **listed("thermal_zone", "temp", {"x86_pkg_temp": 41000}),
    },
    {
        # A recording in a public repository's tests, shortened.
        "nvidia-smi -q": SMI_3090,
        "nvidia-smi --query-gpu=power.draw --format=csv,noheader,nounits -i 0": "99.31",
    },
)
"""A desktop with an RTX 3090."""
