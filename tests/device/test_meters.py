"""Meters of machines that are recorded in public, and what they make of readings that are given."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from iwp_export.device.meters import PowerMeter, find_meters, mean_power
from tests.device.recorded import AGX_ORIN, ORIN_NANO, THOR, Machine, nvml

Patch = pytest.MonkeyPatch


@pytest.mark.parametrize(
    ("machine", "name", "watts"),
    [
        (ORIN_NANO, "VDD_IN", 30.096),  # a rail for the whole module
        (AGX_ORIN, "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0", 5.139 + 3.268 + 5.5),  # not the rail that the last feeds
        (THOR, "VDD_GPU + VDD_CPU_SOC_MSS + VIN_SYS_5V0", -0.392 + 6.51 + 6.52),
    ],
)
def test_the_module_of_a_jetson(machine: Machine, name: str, watts: float, tmp_path: Path, monkeypatch: Patch) -> None:
    (meter,) = find_meters(machine.write(tmp_path, monkeypatch))
    assert (meter.name, meter.scope) == (name, "module")
    assert meter.read() == pytest.approx(watts, abs=0.01)
    assert "in1_input" in meter.source


def test_rails_that_are_not_the_whole_are_no_meter(tmp_path: Path, monkeypatch: Patch) -> None:
    files = {name: text for name, text in ORIN_NANO.files.items() if "in1_" not in name}
    assert find_meters(Machine(files).write(tmp_path, monkeypatch)) == []


def test_a_card_counts_energy(tmp_path: Path, monkeypatch: Patch) -> None:
    counter = iter([5000, 5000, 9500])
    fake = nvml(nvmlDeviceGetTotalEnergyConsumption=lambda card: next(counter))
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    (meter,) = find_meters(tmp_path)
    with meter.measure() as energy:
        pass
    assert (meter.name, meter.scope, energy.joules, energy.problem) == ("GPU 0", "GPU", 4.5, "")


def test_a_card_without_a_counter_is_no_meter(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlDeviceGetTotalEnergyConsumption=None))
    assert find_meters(tmp_path) == []


def test_sampled_power_is_summed_up(tmp_path: Path, monkeypatch: Patch) -> None:
    (meter,) = find_meters(ORIN_NANO.write(tmp_path, monkeypatch))
    start = time.perf_counter()
    with meter.measure() as energy:
        time.sleep(0.1)
    assert energy.joules is not None
    assert 30.096 * 0.1 <= energy.joules <= 30.096 * (time.perf_counter() - start)
    with pytest.raises(KeyError), meter.measure() as energy:
        raise KeyError  # joules are there when the block fails
    assert energy.joules is not None


def test_a_slow_sensor_adds_no_energy() -> None:
    """Readings of 0.1 s each, one before the block and one after it, as long as the block itself."""

    def read() -> float:
        time.sleep(0.1)
        return 10.0

    with PowerMeter("rail", "test", "module", read).measure() as energy:
        time.sleep(0.05)
    assert energy.joules is not None and 0.5 <= energy.joules < 1.2


def test_mean_power_of_a_ramp() -> None:
    assert mean_power([(0.0, 10.0), (1.0, 20.0), (3.0, 20.0)]) == pytest.approx(55 / 3)
    assert mean_power([(0.0, 10.0)]) == 10


@pytest.mark.parametrize("counts", [False, True])
def test_a_reading_that_fails_leaves_no_joules(counts: bool) -> None:
    values = iter([1.0])

    def read() -> float:
        try:
            return next(values)
        except StopIteration:
            raise OSError("the sensor is gone") from None

    with PowerMeter("rail", "test", "module", read, counts=counts).measure() as energy:
        time.sleep(0.03)
    assert energy.joules is None and energy.problem == "the sensor is gone"
