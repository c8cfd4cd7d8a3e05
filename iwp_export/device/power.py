"""The meters of this machine: a Jetson's monitors, a GPU's NVML, a processor's RAPL. Energy comes from these alone."""

from __future__ import annotations

from iwp_export.device.board_meters import board_meters, jtop_meters
from iwp_export.device.chip_meters import nvml_meters, rapl_meters, smi_meters
from iwp_export.device.metering import PowerMeter
from iwp_export.device.probe import Probe

SCOPES = ("board", "module", "GPU", "CPU", "part")
"""From the whole to the part."""


def find_meters(probe: Probe | None = None) -> list[PowerMeter]:
    """The meters of this machine, those of the most first; those that cannot be read are last and say why.

    A Jetson's INA3221 and INA238 are read from sysfs, and where that has none, from the service of jetson-stats. A GPU
    card is read through NVML if nvidia-ml-py is installed, which has a counter of energy, else through nvidia-smi.
    """
    probe = probe or Probe()
    meters = board_meters(probe) or jtop_meters(probe)
    if not meters:  # a Jetson's NVML has no power, and a card's board has no INA3221
        meters = nvml_meters(probe) or smi_meters(probe)
    meters += rapl_meters(probe)
    return sorted(meters, key=lambda meter: (bool(meter.problem), SCOPES.index(meter.scope)))
