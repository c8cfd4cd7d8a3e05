"""What a calibration would do: model, samples and budget checked, no weights read."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from iwp_export.bundle.outputs import check_outputs, plain_name
from iwp_export.calibrator.search import Budget, candidate_layers
from iwp_export.device.machine import available_bytes
from iwp_export.errors import DataError, OutputError, SettingsError, os_reason
from iwp_export.exporter.plan import ITEM_BYTES, ExportPlan, plan_export
from iwp_export.exporter.settings_source import PAPER
from iwp_export.pruning.settings import PruningSettings
from iwp_export.questions import SHIPPED, Question, digest_of, read_questions
from iwp_export.settings import CalibrationSettings
from iwp_export.view.draw import check_installed

JOURNAL_SUFFIX = ".progress"
PAGE_SUFFIX = ".html"
"""Of the page beside a recipe."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
GENERIC_PROMPTS = (
    "What is in the picture?",
    "Describe the picture in one sentence.",
    "What is in the middle of the picture?",
    "How many objects are there?",
    "What colours are there?",
    "Where was this picture taken?",
)
GENERIC_WARNING = (
    "no prompts are given, so generic ones are asked; prompts from your task show more of what pruning costs"
)
FEWEST_HELD_OUT = 24
"""Samples of which a share says anything: with fewer beyond the search's none are held out."""


@dataclass(frozen=True)
class Samples:
    """Questions in the order in which a calibration meets them.

    Attributes:
        name: where they are from.
        questions: those of the search, then those that are held out of it.
        searched: how many are the search's.
        digest: of all questions of the data in their order there, see `digest_of`.
        warning: what is doubtful about them; empty if nothing is.
    """

    name: str
    questions: tuple[Question, ...]
    searched: int
    digest: str
    warning: str = ""


@dataclass(frozen=True)
class CalibrationPlan:
    """What a calibration would do, checked; nothing is loaded.

    Attributes:
        export: of the checkpoint.
        samples: in their order.
        budget: what is searched for.
        settings: as they were asked for.
        dtype: element type of weights and activations, by torch's name.
    """

    export: ExportPlan
    samples: Samples
    budget: Budget
    settings: CalibrationSettings
    dtype: str

    def __post_init__(self) -> None:
        legal = self.legal_layers
        if wrong := [layer for layer in self.settings.layers if layer not in legal]:
            raise SettingsError(
                f"{self.export.model.name} cannot be pruned at layer {wrong[0]}; choose from {legal[0]} to {legal[-1]}",
                options=("layers",),
            )
        if self.settings.objective == "accuracy" and not all(each.answers for each in self.samples.questions):
            raise DataError("the objective accuracy needs an `answer` with every sample", options=("objective",))

    @property
    def legal_layers(self) -> range:
        """The layers at which the model may be pruned."""
        return self.export.checkpoint.family.prunable_layers(self.export.checkpoint.config)

    @property
    def candidate_layers(self) -> tuple[int, ...]:
        """The layers that are tried."""
        if self.settings.layers:
            return tuple(sorted(set(self.settings.layers)))
        return candidate_layers(self.legal_layers, self.export.checkpoint.config.text_config.num_hidden_layers)

    @property
    def keeps(self) -> tuple[float, ...]:
        """Keep ratios at which each candidate is measured; empty is its own."""
        return self.budget.values if self.budget.kind == "keep" else ()


def journal_of(output: Path) -> Path:
    """The file that keeps scores for a second start, beside the recipe."""
    return output.with_name(output.name + JOURNAL_SUFFIX)


def plan_calibration(model: str, output: Path, settings: CalibrationSettings, force: bool = False) -> CalibrationPlan:
    """Check what `api.calibrate` is asked for; no weights are read.

    Args:
        model: an alias, a Hub id or a folder.
        output: the recipe's file.
        settings: what to search.
        force: replace a recipe that is there already.

    Raises:
        OutputError: the recipe, its page or its journal cannot or must not be written, see `check_outputs`.
        BackendError: matplotlib, which draws the page, is missing.
        CheckpointError, DataError, SettingsError: see `plan_export`, `read_samples`, `Budget`.
    """
    check_installed()
    page, read = output.with_suffix(PAGE_SUFFIX), [Path(model).expanduser(), settings.data, settings.prompts]
    if settings.data is not None and settings.data.is_dir():  # of what lies beside its images nothing is read
        read[1:2] = _images(settings.data)
    if page == output:
        raise OutputError(f"{output} would be the recipe and its page; name the recipe .json", options=("output",))
    check_outputs([output, page], force, read)
    check_outputs([journal_of(output)], True)  # what is in it decides whether `force` is needed
    budget = _budget(settings)
    export = plan_export(model, recipe=PAPER, pruning={"layer": 0}, revision=settings.revision)
    data = settings.data or SHIPPED.get(export.model.name, {}).get("samples")
    if data is None:
        raise DataError(f"{model} has no samples of its own: give a folder of images or a file", options=("data",))
    for name in (export.model.name, data.name):
        plain_name(Path(name), DataError)  # the recipe holds both
    samples = read_samples(data, settings.prompts, most=settings.samples, seed=settings.seed)
    return CalibrationPlan(export, samples, budget, settings, _dtype(export, settings))


def read_samples(data: Path, prompts: Path | None = None, *, most: int, seed: int = 0) -> Samples:
    """Read samples and draw some of them; of what is left as many again are held out, if those are enough.

    Args:
        data: a file of questions, see `iwp_export.questions`; or a folder, whose images are asked about.
        prompts: for a folder: a file with a prompt a line, of which each image gets one.
        most: samples of the search at most.
        seed: of the draw and of the order.

    Raises:
        DataError: there is nothing there, or it cannot be read; or prompts are given for a file, which has its own.
    """
    if data.is_dir():
        questions, warning = _of_folder(data, prompts)
    elif prompts is not None:
        raise DataError(f"{data} has its own prompts; prompts are for a folder of images", options=("prompts",))
    else:
        questions, warning = list(read_questions(data)), ""
    digest = digest_of(questions)
    random.Random(seed).shuffle(questions)
    searched = min(most, len(questions))
    beyond = min(len(questions) - searched, searched)
    drawn = questions[: searched + (beyond if beyond >= FEWEST_HELD_OUT else 0)]
    return Samples(data.name or str(data), tuple(drawn), searched, digest, warning)


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _of_folder(folder: Path, prompts: Path | None) -> tuple[list[Question], str]:
    images = _images(folder)
    if not images:
        raise DataError(f"{folder} has no images ({', '.join(SUFFIXES)})")
    lines = GENERIC_PROMPTS if prompts is None else _prompts(prompts)
    questions = [Question((image,), lines[number % len(lines)]) for number, image in enumerate(images)]
    return questions, GENERIC_WARNING if prompts is None else ""


def _prompts(path: Path) -> tuple[str, ...]:
    try:
        lines = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        reason = os_reason(error) if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(f"cannot read prompts from {path}: {reason}", options=("prompts",)) from error
    found = tuple(line for line in lines if line)
    if not found:
        raise DataError(f"{path} has no prompts", options=("prompts",))
    return found


def _budget(settings: CalibrationSettings) -> Budget:
    given = {name: getattr(settings, name) for name in ("keep", "speedup", "max_drop")}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        raise SettingsError(f"give one budget, not {' and '.join(given)}", options=tuple(given))
    name, value = next(iter(given.items()), ("keep", (PruningSettings().keep,)))
    return Budget(name, tuple(dict.fromkeys(value)) if name == "keep" else (value,))  # type: ignore[arg-type]


def _dtype(export: ExportPlan, settings: CalibrationSettings) -> str:
    """The element type: on a GPU the checkpoint's own; on a CPU float32 if it leaves half of the memory free."""
    if settings.dtype != "auto":
        return settings.dtype
    if settings.device == "cuda":
        return export.checkpoint.dtype() or "float32"
    free = available_bytes()
    wide = export.weight_bytes * ITEM_BYTES["float32"] / ITEM_BYTES[export.decoder.dtype]
    return "float32" if free is None or wide < free / 2 else "bfloat16"
