"""What a calibration would do: model, samples and budget checked, no weights read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from iwp_export.bundle.document import check_output, plain_name
from iwp_export.bundle.recipe import Objective
from iwp_export.bundle.schema import GREATEST
from iwp_export.calibrator.candidates import Budget, candidate_layers
from iwp_export.calibrator.samples import Samples, read_samples
from iwp_export.device.machine import available_bytes
from iwp_export.errors import DataError, OutputError, SettingsError
from iwp_export.exporter.loading import Device
from iwp_export.exporter.plan import ITEM_BYTES, Dtype, ExportPlan, plan_export
from iwp_export.exporter.settings_source import PAPER
from iwp_export.pruning.settings import PruningSettings
from iwp_export.questions import MAX_NEW_TOKENS, SHIPPED
from iwp_export.view.draw import check_installed

PAGE_SUFFIX = ".html"
"""Of the page beside a recipe."""


@dataclass(frozen=True)
class CalibrationPlan:
    """What a calibration would do, checked; nothing is loaded.

    Attributes:
        export: of the checkpoint.
        samples: in their order.
        budget, objective: what is searched for.
        layers: candidate layers; empty is the default.
        seed: of the samples' draw and order.
        dtype: element type of weights and activations, by torch's name.
        device: where the model runs.
        max_new_tokens: of an answer.
    """

    export: ExportPlan
    samples: Samples
    budget: Budget
    objective: Objective
    layers: tuple[int, ...]
    seed: int
    dtype: str
    device: Device
    max_new_tokens: int = MAX_NEW_TOKENS

    def __post_init__(self) -> None:
        legal = self.legal_layers
        if wrong := [layer for layer in self.layers if layer not in legal]:
            raise SettingsError(
                f"{self.export.model.name} cannot be pruned at layer {wrong[0]}; choose from {legal[0]} to {legal[-1]}",
                options=("layers",),
            )
        if self.objective == "accuracy" and not self.samples.answers:
            raise DataError("the objective accuracy needs an `answer` with every sample", options=("objective",))

    @property
    def legal_layers(self) -> range:
        """The layers at which the model may be pruned."""
        return self.export.checkpoint.family.prunable_layers(self.export.checkpoint.config)

    @property
    def candidate_layers(self) -> tuple[int, ...]:
        """The layers that are tried."""
        if self.layers:
            return tuple(sorted(set(self.layers)))
        return candidate_layers(self.legal_layers, self.export.checkpoint.config.text_config.num_hidden_layers)

    @property
    def keeps(self) -> tuple[float, ...]:
        """Keep ratios at which each candidate is measured; empty is its own."""
        return self.budget.values if self.budget.kind == "keep" else ()


def plan_calibration(
    model: str,
    data: Path | None,
    *,
    prompts: Path | None,
    budgets: Mapping[str, float | Sequence[float] | None],
    objective: Objective,
    layers: tuple[int, ...],
    samples: int,
    seed: int,
    max_new_tokens: int,
    device: Device,
    dtype: Dtype,
    revision: str | None,
    output: Path,
    force: bool,
) -> CalibrationPlan:
    """Check what `api.calibrate` is asked for; no weights are read.

    Raises:
        OutputError: the recipe or its page is there already.
        BackendError: matplotlib, which draws the page, is missing.
        CheckpointError, DataError, SettingsError: see `plan_export`, `read_samples`, `Budget`.
    """
    check_installed()
    _check_files(output, force)
    for name, number, least in (("samples", samples, 1), ("max_new_tokens", max_new_tokens, 1), ("seed", seed, 0)):
        if not least <= number <= GREATEST:
            raise SettingsError(f"{name} must be {least} to {GREATEST}, got {number}", options=(name,))
    for name, word, kind in (("objective", objective, Objective), ("device", device, Device), ("dtype", dtype, Dtype)):
        if word not in get_args(kind):
            raise SettingsError(f"{name} must be one of {', '.join(get_args(kind))}, got {word!r}", options=(name,))
    budget = _budget(budgets)
    export = plan_export(model, recipe=PAPER, pruning={"layer": 0}, revision=revision)
    if data is None:
        data = SHIPPED.get(export.model.name, {}).get("samples")
        if data is None:
            raise DataError(f"{model} has no samples of its own: give a folder of images or a file", options=("data",))
    for name in (export.model.name, data.name):
        plain_name(Path(name), DataError)  # the recipe holds both
    read = read_samples(data, prompts, most=samples, seed=seed)
    chosen = _dtype(export, dtype, device)
    return CalibrationPlan(export, read, budget, objective, layers, seed, chosen, device, max_new_tokens)


def _check_files(output: Path, force: bool) -> None:
    """Refuse a recipe and a page that cannot be written.

    Raises:
        OutputError: one is there already or is a folder, or both would be the same file.
    """
    check_output(output, force)
    page = output.with_suffix(PAGE_SUFFIX)
    if page == output:
        raise OutputError(f"{output} would be the recipe and its page; name the recipe .json", options=("output",))
    check_output(page, force)


def _budget(budgets: Mapping[str, float | Sequence[float] | None]) -> Budget:
    given = {name: value for name, value in budgets.items() if value is not None}
    if len(given) > 1:
        raise SettingsError(f"give one budget, not {' and '.join(given)}", options=tuple(given))
    name, value = next(iter(given.items()), ("keep", (PruningSettings().keep,)))
    values = tuple(dict.fromkeys(value)) if isinstance(value, Sequence) else (value,)
    return Budget(name, values)  # type: ignore[arg-type]


def _dtype(export: ExportPlan, wanted: Dtype, device: Device) -> str:
    """The element type: on a GPU the checkpoint's own; on a CPU float32 if it leaves half of the memory free."""
    if wanted != "auto":
        return wanted
    if device == "cuda":
        return export.checkpoint.dtype() or "float32"
    free = available_bytes()
    wide = export.weight_bytes * ITEM_BYTES["float32"] / ITEM_BYTES[export.decoder.dtype]
    return "float32" if free is None or wide < free / 2 else "bfloat16"
