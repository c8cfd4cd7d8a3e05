"""The state of machines that are recorded in public; see `recorded`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from iwp_export.bundle.schema import from_json, to_json
from iwp_export.device.gpu import Gpu
from iwp_export.device.meters import find_meters
from iwp_export.device.state import Clock, DeviceState, facts, read_state, warnings
from tests.device.recorded import AGX_ORIN, ORIN_NANO, THOR, Machine, devfreq, nvml

Patch = pytest.MonkeyPatch


def state(machine: Machine, root: Path, patch: Patch) -> DeviceState:
    found = read_state(machine.write(root, patch))
    return replace(found, packages={}, cpu_clock=None)  # this machine's


@pytest.fixture
def card(monkeypatch: Patch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())


def test_orin_with_jetpack_6(tmp_path: Path, monkeypatch: Patch) -> None:
    found = state(ORIN_NANO, tmp_path, monkeypatch)
    assert (found.l4t, found.jetpack, found.power_mode) == ("36.4.7", "6.2.1", "25W")
    assert found.board == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super" and found.is_jetson
    assert found.gpu_clock == Clock(306, 306, 918, False)
    assert found.throttling == ()
    assert found.throttle_counts["instantaneous over-current"] == 37
    (line,) = warnings(replace(found, cpu_clock=Clock(729.6, 729.6, 1344, False)))
    assert line == "clocks are not locked (GPU 306 to 918 MHz; CPU 730 to 1,344 MHz): sudo jetson_clocks"


def test_orin_with_jetpack_7_2(tmp_path: Path, monkeypatch: Patch) -> None:
    found = state(AGX_ORIN, tmp_path, monkeypatch)
    assert (found.l4t, found.jetpack, found.power_mode) == ("39.2.0", None, "MAXN")
    assert found.gpu_clock == Clock(1300.5, 1300.5, 1300.5, True)
    assert found.throttling is None  # no cooling device tells
    assert warnings(found) == []


def test_thor(tmp_path: Path, monkeypatch: Patch) -> None:
    found = state(THOR, tmp_path, monkeypatch)
    assert found.gpu_clock == Clock(1575, 1575, 1575, True)
    assert found.throttling == ("gpu-throttle-alert at step 1", "devfreq-gpu-gpc-0 at step 18")
    (line,) = warnings(found)
    assert line.startswith("throttled now (gpu-throttle-alert at step 1") and "nvpmodel -m" in line
    said = dict(facts(found))
    assert said["GPU clock"] == "1,575 MHz, locked"
    assert (said["L4T"], said["throttling"]) == ("38.2.0", ", ".join(found.throttling))


def test_one_unlocked_device_of_several_is_unlocked(tmp_path: Path, monkeypatch: Patch) -> None:
    machine = replace(THOR, files={**THOR.files, **devfreq("gpu-gpc-1", 500000000, 400000000, 1575000000)})
    assert state(machine, tmp_path, monkeypatch).gpu_clock == Clock(1575, 400, 1575, False)


@pytest.mark.usefixtures("card")
def test_a_desktop_with_a_card(tmp_path: Path, monkeypatch: Patch) -> None:
    folder = "/sys/devices/system/cpu"
    machine = Machine(
        {
            f"{folder}/cpufreq/policy0/scaling_governor": "powersave\n",
            f"{folder}/cpu0/thermal_throttle/core_throttle_count": "4\n",
            f"{folder}/cpu1/thermal_throttle/core_throttle_count": "0\n",
        }
    )
    monkeypatch.setattr("iwp_export.device.state.find_gpu", lambda: Gpu("NVIDIA GeForce RTX 3090", "86", 12, "12.2"))
    found = state(machine, tmp_path, monkeypatch)
    assert (found.gpu, found.driver, found.cuda) == ("NVIDIA GeForce RTX 3090", "535.154.05", "12.2")
    assert found.gpu_clock == Clock(now=1695, greatest=2100)
    assert (found.power_limit, found.throttling, found.throttle_counts) == (350, (), {"CPU heat": 4})
    (line,) = warnings(found)
    assert "governor powersave" in line and "cpupower" in line
    assert dict(facts(found))["GPU clock"] == "1,695 MHz, at most 2,100 MHz, lock unknown"

    after = replace(found, gpu_clock=Clock(now=2100), throttle_counts={"CPU heat": 6}, governor="performance")
    moved, slowed = warnings(after, found)
    assert "from 1,695 to 2,100 MHz" in moved and "nvidia-smi -lgc" in moved
    assert slowed.startswith("slowed down 2 times by CPU heat during the run")
    assert warnings(after) == []


def test_reasons_of_throttling(monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlDeviceGetCurrentClocksThrottleReasons=0x45))
    assert state(Machine({}), tmp_path, monkeypatch).throttling == ("power cap", "heat, by hardware")


def test_the_nvml_of_a_jetson_supports_little(tmp_path: Path, monkeypatch: Patch) -> None:
    names = [
        name for name in vars(nvml()) if name.startswith("nvmlDeviceGet") and not name.endswith(("Count", "ByIndex"))
    ]
    monkeypatch.setitem(sys.modules, "pynvml", nvml(**dict.fromkeys(names)))
    found = state(ORIN_NANO, tmp_path, monkeypatch)
    assert (found.driver, found.gpu, found.power_limit) == ("535.154.05", None, None)
    assert found.gpu_clock == Clock(306, 306, 918, False)


def test_a_card_without_nvml_asks_for_its_package() -> None:
    (line,) = warnings(DeviceState(gpu="NVIDIA H200"))
    assert line.endswith("pip install 'iwp-export[gpu]'")


@pytest.mark.parametrize(
    ("frequencies", "clock"),
    [
        ([(5500, 800, 5800), (4300, 800, 4300)], Clock(5500, 800, 5800, False)),
        ([(2400, 2400, 2400)], Clock(2400, 2400, 2400, True)),
        ([(2596, 0, 0)], Clock(2596)),  # a virtual machine tells no limits
        ([], None),
    ],
)
def test_clocks_of_the_cpus(frequencies: list[tuple[float, ...]], clock: Clock | None, monkeypatch: Patch) -> None:
    found = [SimpleNamespace(current=now, min=least, max=greatest) for now, least, greatest in frequencies]
    monkeypatch.setattr(psutil, "cpu_freq", lambda percpu: found)
    assert read_state().cpu_clock == clock


def test_this_machine() -> None:
    found = read_state()
    assert found.system and found.cpus and "python" in found.packages
    assert warnings(DeviceState()) == [] and facts(DeviceState()) == []


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("content", ["", "\0", "nan", "-1", "9" * 30, "9" * 400, "N/A\n", "a\x1b[2J"])
def test_files_of_nonsense_cost_neither_a_state_nor_its_report(
    content: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    """A driver may answer anything; what it says must fit a report, which is written after minutes of measuring."""
    root = ORIN_NANO.write(tmp_path, monkeypatch)
    changed = [file for pattern in ("*_freq", "*_event_cnt", "curr*_input") for file in root.rglob(pattern)]
    assert changed
    for file in changed:
        file.write_text(content)
    found = read_state(root)
    assert warnings(found, found) is not None and facts(found)
    assert from_json(DeviceState, json.loads(json.dumps(to_json(found))), "") == found
    for meter in find_meters(root):
        with meter.measure() as energy:
            pass
        assert (energy.joules is None) == bool(energy.problem)
