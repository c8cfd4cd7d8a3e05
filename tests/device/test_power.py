"""Meters of machines that are recorded in public, and what they make of readings that are given."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from iwp_export.device import board_meters, chip_meters
from iwp_export.device.metering import PowerMeter, counted, integrated
from iwp_export.device.power import find_meters
from tests.device.recorded import AGX_ORIN, DESKTOP, ORIN_NANO, THOR, Machine


def meters(machine: Machine, root: Path) -> dict[str, PowerMeter]:
    return {meter.name: meter for meter in find_meters(machine.probe(root))}


def test_a_module_with_a_rail_for_the_whole(tmp_path: Path) -> None:
    found = meters(ORIN_NANO, tmp_path)
    assert list(found) == ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"]
    assert [meter.scope for meter in found.values()] == ["module", "part", "part"]
    assert found["VDD_IN"].read() == pytest.approx(30.096)
    assert "hwmon1/in1_input" in found["VDD_IN"].source


def test_a_module_without_one_is_the_sum_of_its_rails(tmp_path: Path) -> None:
    found = meters(AGX_ORIN, tmp_path)
    whole = next(iter(found.values()))
    assert (whole.name, whole.scope) == ("VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0", "module")
    assert whole.read() == pytest.approx(5.139 + 3.268 + 5.5)  # and not the rail that one of them feeds
    assert "NC" not in found and "VDDQ_VDD2_1V8AO" in found and "sum of shunt voltages" not in found


def test_thor_measures_its_board_too(tmp_path: Path) -> None:
    found = meters(THOR, tmp_path)
    assert [meter.scope for meter in found.values()][:3] == ["board", "module", "part"]
    assert found["VIN"].read() == 23
    assert found["VDD_GPU"].read() == pytest.approx(-0.392)  # an idle rail's offset, as it was recorded


def test_rails_of_jetpack_4(tmp_path: Path) -> None:
    folder = "/sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    machine = Machine({f"{folder}/rail_name_0": "POM_5V_IN\n", f"{folder}/in_power0_input": "2370\n"})
    (meter,) = meters(machine, tmp_path).values()
    assert (meter.name, meter.scope, meter.read()) == ("POM_5V_IN", "module", 2.37)


def test_a_desktop(tmp_path: Path) -> None:
    found = meters(DESKTOP, tmp_path)
    assert [(name, meter.scope) for name, meter in found.items()] == [
        ("GPU 0", "GPU"),
        ("package-0", "CPU"),
        ("package-0 core", "part"),
    ]
    assert found["GPU 0"].read() == 99.31 and found["GPU 0"].interval == 0.5
    assert found["package-0"].counts and found["package-0"].wraps_at == pytest.approx(262143.32885)


def test_a_counter_that_starts_again(tmp_path: Path) -> None:
    counter = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    meter = meters(DESKTOP, tmp_path)["package-0"]
    counter.write_text("262143000000\n")
    with meter.measure() as energy:
        counter.write_text("1671150\n")
    assert energy.joules == pytest.approx(2.0)
    assert energy.interval is None and energy.samples == 2


def test_a_counter_for_root_alone_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> float:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(chip_meters, "_joules", refuse)
    found = meters(DESKTOP, tmp_path)
    assert list(found) == ["GPU 0", "package-0", "package-0 core"]
    with found["package-0"].measure() as energy:
        pass
    assert energy.joules is None and energy.watts is None
    assert "to root alone: sudo chmod a+r" in energy.problem


def test_sampled_power_is_summed_up(tmp_path: Path) -> None:
    meter = meters(ORIN_NANO, tmp_path)["VDD_IN"]
    with meter.measure() as energy:
        time.sleep(0.2)
    assert energy.seconds >= 0.2 and energy.samples >= 4 and energy.interval == 0.02
    assert energy.watts == pytest.approx(30.096)


def test_a_slow_sensor_adds_no_energy() -> None:
    """Readings of 0.1 s each, one before the block, one after it, and one that the end waits for."""

    def read() -> float:
        time.sleep(0.1)
        return 10.0

    with PowerMeter("rail", "test", "part", read, 0.01).measure() as energy:
        time.sleep(0.05)
    assert energy.joules == pytest.approx(10 * energy.seconds)


def test_energy_of_a_ramp_and_of_a_counter() -> None:
    assert integrated([(0.0, 10.0), (1.0, 20.0), (3.0, 20.0)]) == 55
    assert integrated([(0.0, 10.0)]) == 0
    assert counted([5, 9, 2, 4], wraps_at=10) == 9
    with pytest.raises(ValueError, match="went back"):
        counted([5, 4], wraps_at=None)


@pytest.mark.parametrize("counts", [False, True])
def test_a_reading_that_fails_leaves_no_joules(counts: bool) -> None:
    values = iter([1.0])

    def read() -> float:
        try:
            return next(values)
        except StopIteration:
            raise OSError("the sensor is gone") from None

    with PowerMeter("rail", "test", "part", read, 0.01, counts=counts).measure() as energy:
        time.sleep(0.03)
    assert energy.joules is None and energy.problem == "rail could not be read throughout: the sensor is gone"


def test_energy_is_there_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError), meters(ORIN_NANO, tmp_path)["VDD_IN"].measure() as energy:
        raise KeyError
    assert energy.joules is not None


class NVMLError(Exception):
    """As in pynvml."""


def nvml(energy: bool) -> SimpleNamespace:
    """The calls of pynvml that are used, for one card."""
    readings = iter([5000, 5000, 9500])

    def total(handle: str) -> int:
        if not energy:
            raise NVMLError("Not Supported")
        return next(readings)

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: f"handle {index}",
        nvmlDeviceGetTotalEnergyConsumption=total,
        nvmlDeviceGetPowerUsage=lambda handle: 125_000,
    )


def test_nvml_counts_energy_where_the_card_does(tmp_path: Path) -> None:
    (meter,) = chip_meters.nvml_meters(Machine({}).probe(tmp_path), nvml(energy=True))
    with meter.measure() as energy:
        pass
    assert (meter.name, energy.joules, energy.interval) == ("GPU 0", 4.5, None)
    (meter,) = chip_meters.nvml_meters(Machine({}).probe(tmp_path), nvml(energy=False))
    assert (meter.read(), meter.counts) == (125, False)


def test_the_service_of_jetson_stats(tmp_path: Path) -> None:
    service = SimpleNamespace(
        start=lambda: None,
        ok=lambda spin: True,
        interval=0.25,
        power={"tot": {"name": "VDD_IN", "power": 4860}, "rail": {}},
    )
    module = SimpleNamespace(jtop=lambda interval: service)
    (meter,) = board_meters.jtop_meters(Machine({}).probe(tmp_path), module)
    assert (meter.name, meter.scope, meter.read(), meter.interval) == ("VDD_IN", "module", 4.86, 0.25)


def test_a_service_that_does_not_run_is_no_meter(tmp_path: Path) -> None:
    def refuse(interval: float) -> None:
        raise RuntimeError("The jtop.service is not active")

    assert board_meters.jtop_meters(Machine({}).probe(tmp_path), SimpleNamespace(jtop=refuse)) == []


def test_no_meters(tmp_path: Path) -> None:
    assert find_meters(Machine({}).probe(tmp_path)) == []


def test_a_service_that_loses_an_entry_ends_a_reading_and_not_the_bench(tmp_path: Path) -> None:
    service = SimpleNamespace(power={"tot": {"name": "VDD_IN"}}, interval=0.5, start=lambda: None, ok=lambda spin: True)
    (meter,) = board_meters.jtop_meters(Machine({}).probe(tmp_path), SimpleNamespace(jtop=lambda interval: service))
    with meter.measure() as energy:
        pass
    assert energy.joules is None and "KeyError" in energy.problem
