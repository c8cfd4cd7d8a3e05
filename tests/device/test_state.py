"""The state of machines that are recorded in public; see `recorded`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from iwp_export.bundle.schema import from_json, to_json
from iwp_export.device.clock import Clock
from iwp_export.device.nvidia_smi import read_smi
from iwp_export.device.power import find_meters
from iwp_export.device.state import DeviceState, read_state, warnings
from iwp_export.device.words import rows
from tests.device.recorded import AGX_ORIN, DESKTOP, ORIN_NANO, SMI_3090, THOR, Machine, devfreq


def state(machine: Machine, root: Path) -> DeviceState:
    return read_state(machine.probe(root))


def test_orin_with_jetpack_6(tmp_path: Path) -> None:
    found = state(ORIN_NANO, tmp_path)
    assert (found.l4t, found.jetpack, found.cuda, found.driver) == ("36.4.7", "6.2.1", "12.6", "540.4.0")
    assert (found.gpu, found.cpu, found.power_mode) == ("Orin (nvgpu)", "Cortex-A78AE", "25W")
    assert found.system == "Ubuntu 22.04.5 LTS, Linux 5.15.148-tegra"
    assert found.gpu_clock == Clock(306, 306, 918, False)
    assert found.cpu_clock == Clock(729.6, 729.6, 1344, False)
    assert found.memory_clock is None  # of Orin's, only root sees it
    assert found.throttling == ()
    assert found.temperatures == {"cpu": 49.3, "gpu": 49.4, "tj": 49.4}
    assert found.throttle_counts["instantaneous over-current"] == 37
    (line,) = warnings(found)
    assert line == "clocks are not locked (GPU 306 to 918 MHz; CPU 730 to 1,344 MHz): sudo jetson_clocks"


def test_orin_with_jetpack_7_2(tmp_path: Path) -> None:
    found = state(AGX_ORIN, tmp_path)
    assert (found.l4t, found.jetpack, found.power_mode) == ("39.2.0", "7.2", "MAXN")
    assert found.gpu_clock == Clock(1300.5, 1300.5, 1300.5, True)
    assert found.throttling is None  # no cooling device tells
    assert warnings(found) == []


def test_thor(tmp_path: Path) -> None:
    found = state(THOR, tmp_path)
    assert (found.l4t, found.jetpack) == ("38.2.0", "7.0")
    assert found.gpu_clock == Clock(1575, 1575, 1575, True)
    assert found.memory_clock == Clock(4266, 4266, 4266, True)
    assert "gpu" not in found.temperatures  # its sensor is off
    assert found.throttling == ("gpu-throttle-alert at step 1", "devfreq-gpu-gpc-0 at step 18")
    (line,) = warnings(found)
    assert line.startswith("throttled now (gpu-throttle-alert at step 1") and "nvpmodel -m" in line


def test_desktop(tmp_path: Path) -> None:
    found = state(DESKTOP, tmp_path)
    assert (found.gpu, found.gpus, found.driver, found.cuda) == ("NVIDIA GeForce RTX 3090", 1, "535.154.05", "12.2")
    assert found.gpu_clock == Clock(now=1695, greatest=2100)
    assert found.power_limit == 350
    assert found.throttling == ()  # idle is no throttling
    assert found.temperatures == {"x86_pkg_temp": 41, "GPU": 33}
    assert (found.governor, found.cpu_clock) == ("powersave", Clock(5500, 800, 5800, False))
    (line,) = warnings(found)
    assert "governor powersave" in line and "cpupower" in line


@pytest.mark.parametrize("block", ["Clocks Event Reasons", "Clocks Throttle Reasons"])
def test_reasons_of_throttling(block: str, tmp_path: Path) -> None:
    text = SMI_3090.replace("Clocks Event Reasons", block)
    for name in ("SW Power Cap                      :", "HW Thermal Slowdown           :"):
        text = text.replace(f"{name} Not", f"{name}")
    smi = read_smi(Machine({}, {"nvidia-smi -q": text}).probe(tmp_path))
    assert smi is not None and smi.throttling == ("SW Power Cap", "HW Thermal Slowdown")


def test_what_changed_during_a_run(tmp_path: Path) -> None:
    before = state(DESKTOP, tmp_path)
    clock = Clock(now=2100, greatest=2100)
    after = replace(before, gpu_clock=clock, throttle_counts={"CPU heat": 6}, governor="performance")
    moved, slowed = warnings(after, before)
    assert "from 1,695 to 2,100 MHz" in moved and "nvidia-smi -lgc" in moved
    assert slowed.startswith("slowed down 2 times by CPU heat during the run")
    assert warnings(after) == []


def test_one_unlocked_device_of_several_is_unlocked(tmp_path: Path) -> None:
    machine = THOR.but(devfreq("gpu-gpc-1", 500000000, 400000000, 1575000000))
    assert state(machine, tmp_path).gpu_clock == Clock(1575, 400, 1575, False)


def test_the_memory_clock_of_orin_where_root_reads(tmp_path: Path) -> None:
    folder = "/sys/kernel/debug/bpmp/debug/clk/emc"
    files = {"rate": "3199000000", "min_rate": "204000000", "max_rate": "3199000000", "mrq_rate_locked": "1"}
    machine = AGX_ORIN.but({f"{folder}/{name}": text for name, text in files.items()})
    assert state(machine, tmp_path).memory_clock == Clock(3199, 204, 3199, True)


def test_nothing_is_guessed(tmp_path: Path) -> None:
    assert state(Machine({}), tmp_path) == DeviceState()
    broken = {"/etc/nv_tegra_release": "?", "/usr/local/cuda/version.json": "[]", "/proc/cpuinfo": "\xff"}
    assert state(Machine(broken, {"nvidia-smi -q": "Failed to initialize NVML"}), tmp_path) == DeviceState()
    assert warnings(DeviceState()) == []


def test_this_machine() -> None:
    found = read_state()
    assert found.system and found.cpus and "python" in found.packages


@pytest.mark.parametrize("machine", [ORIN_NANO, AGX_ORIN, THOR, DESKTOP, Machine({})])
def test_a_state_is_json_and_has_words(machine: Machine, tmp_path: Path) -> None:
    found = state(machine, tmp_path)
    assert from_json(DeviceState, json.loads(json.dumps(to_json(found))), "") == found
    assert all(isinstance(value, str) and value for _, value in rows(found))


def test_words_of_a_state(tmp_path: Path) -> None:
    said = dict(rows(state(THOR, tmp_path)))
    assert said["GPU clock"] == "1,575 MHz, locked"
    assert said["system"].endswith("JetPack 7.0, L4T 38.2.0")
    counts = {"CPU heat": 0, "average over-current": 1200}
    assert dict(rows(DeviceState(throttle_counts=counts))) == {
        "slowed down since it started": "1,200 times by average over-current"
    }


@pytest.mark.parametrize("machine", [ORIN_NANO, DESKTOP], ids=["orin", "desktop"])
@pytest.mark.parametrize("content", ["", "\0", "nan", "-1", "9" * 30, "9" * 400, "N/A\n", "a\x1b[2J"])
def test_files_of_nonsense_cost_neither_a_state_nor_its_report(machine: Machine, content: str, tmp_path: Path) -> None:
    """A driver may answer anything; what it says must fit a report, which is written after minutes of measuring."""
    probe = machine.probe(tmp_path)
    numbers = (
        "*_freq",
        "*_event_cnt",
        "temp",
        "core_throttle_count",
        "energy_uj",
        "max_energy_range_uj",
        "curr*_input",
    )
    changed = [file for pattern in numbers for file in tmp_path.rglob(pattern) if file.is_file()]
    assert changed
    for file in changed:
        file.write_text(content)
    found = read_state(probe)
    assert warnings(found, found) is not None and rows(found)
    assert from_json(DeviceState, json.loads(json.dumps(to_json(found))), "") == found
    for meter in find_meters(probe):
        with meter.measure() as energy:
            pass
        assert (energy.joules is None) == bool(energy.problem) and energy.joules == energy.joules
