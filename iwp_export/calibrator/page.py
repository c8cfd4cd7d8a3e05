"""A calibration's result as one HTML file: the verdict, what was tried, and what the choice changes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from iwp_export.bundle.recipe import Recipe
from iwp_export.calibrator.figures import Entry, all_settings, cost_chart, differences, entries, paper_settings
from iwp_export.view import page as html

SHOWN_SAMPLES = 3
PICTURE_SIDE = 480
"""Pixels of a picture's longer side: two beside each other have this on a wide screen, and six make a file of 2 MB."""
MARKS = {"chosen": "★", "default": "■", "control": "▲", "candidate": "", "dropped": ""}
"""The chart's markers."""
ACCURACY = "Accuracy, %"
COLUMNS = ("KL ± error", "Agreement, %", ACCURACY, "Speed-up", "Samples")
OBJECTIVES = {
    "kl": "divergence (KL) of the next token from the unpruned model's",
    "agreement": "agreement of answers with the unpruned model's",
    "accuracy": "share of right answers",
}
HOW_TO_READ = (
    "KL says how far the next token strays from the unpruned model's, in nats: 0 is no change, and it needs no right "
    "answers.",
    "Agreement is the share of samples whose answer stays the unpruned model's; settings that do no better than the "
    "controls, such as random, have found nothing.",
    "The speed-up is of the prefill alone and counted in operations, not measured; every figure holds for images and "
    "prompts like those tried here, and others can turn the order around.",
)


@dataclass(frozen=True)
class Example:
    """A sample before (the paper's settings) and after (the chosen ones).

    Attributes:
        prompt: the question.
        unpruned_answer: with every visual token.
        picture_before, picture_after: the image with its kept tokens, as an image or as the bytes of a PNG file.
        answer_before, answer_after: of the pruned model.
        right_answer: where the data have one.
    """

    prompt: str
    unpruned_answer: str
    picture_before: Image.Image | bytes
    picture_after: Image.Image | bytes
    answer_before: str
    answer_after: str
    right_answer: str | None = None


def write_page(path: Path, recipe: Recipe, examples: Sequence[Example]) -> None:
    """Write the page; a file that is there is replaced. The same input gives the same bytes.

    Args:
        path: the file.
        recipe: the calibration's result.
        examples: of which the first three are shown.

    Raises:
        BackendError: matplotlib is missing; `report.svg.check_installed` tells before hours of work.
        OutputError: the file cannot be written.
    """
    make_page(recipe, examples).write(path)


def make_page(recipe: Recipe, examples: Sequence[Example]) -> html.Page:
    """The page.

    Raises:
        BackendError: matplotlib is missing.
    """
    tried = entries(recipe)
    return html.Page(
        f"Calibration of {recipe.model.name}",
        f"{recipe.search.budget} · {recipe.data.samples:,} samples of {recipe.data.name}",
        (
            html.Verdict(recipe.verdict),
            _chosen(recipe),
            _cost(recipe, tried),
            _candidates(recipe, tried),
            *([_samples(recipe, examples)] if examples else []),
            _provenance(recipe),
            html.Section("How to read this page", [html.Paragraph(text) for text in HOW_TO_READ]),
        ),
    )


def _chosen(recipe: Recipe) -> html.Section:
    paper = paper_settings(recipe)
    changes = differences(recipe.settings, paper)
    same = [(row.name, row.value) for row in all_settings(recipe.settings, paper) if row not in changes]
    table = html.Table(
        ("Setting", "Chosen", "The paper's"),
        [(row.name, row.value, row.other) for row in changes],
        "Settings that differ from the paper's",
    )
    command = f"iwp-export {shlex.quote(recipe.model.name)} --recipe RECIPE.json -o OUTPUT.bundle"
    return html.Section(
        "The chosen settings",
        (
            table if changes else html.Paragraph("They are the paper's."),
            html.Fold(f"{len(same)} settings are the paper's", [html.Pairs(same)]),
            html.Paragraph("To export with them:"),
            html.Command(command),
        ),
    )


def _cost(recipe: Recipe, tried: Sequence[Entry]) -> html.Section:
    caption = (
        "Each marker is a candidate: further right is cheaper, further up keeps more answers. "
        "Vertical lines are 95 % intervals of the marked ones; the pale markers met fewer samples."
    )
    drawn = [html.Chart(cost_chart("agreement", tried), caption)]
    if any(entry.figures.accuracy is not None for entry in tried):
        drawn.append(html.Chart(cost_chart("accuracy", tried), "The same against the right answers of the data."))
    return html.Section("What is kept, and what it costs", [html.Beside(drawn) if len(drawn) > 1 else drawn[0]])


def _candidates(recipe: Recipe, tried: Sequence[Entry]) -> html.Section:
    last = [entry for entry in tried if entry.kind != "dropped"]
    dropped = [entry for entry in tried if entry.kind == "dropped"]
    rounds = " → ".join(map(str, recipe.search.rungs))
    met = f"The better part of each round met the next one's samples: {rounds}." if dropped else ""
    blocks: list[html.Block] = [
        html.Paragraph(f"Ranked by {OBJECTIVES[recipe.search.objective]}. {met}".strip()),
        _table(last, "Candidates of the last round and those they are compared with, best first"),
    ]
    if dropped:
        title = f"{len(dropped)} candidates dropped in earlier rounds"
        blocks.append(html.Fold(title, [_table(dropped, "Candidates that met fewer samples, best first")]))
    return html.Section(f"The {len(tried)} candidates", blocks)


def _table(rows: Sequence[Entry], caption: str) -> html.Table:
    accuracy = any(entry.figures.accuracy is not None for entry in rows)
    titles = [title for title in COLUMNS if accuracy or title != ACCURACY]
    columns = [
        html.Column("No.", number=True),
        html.Column("Where it differs from the paper's settings"),
        *(html.Column(title, number=True) for title in titles),
    ]
    strong = frozenset(number for number, entry in enumerate(rows) if entry.figures.chosen)
    return html.Table(columns, [_row(entry, titles) for entry in rows], caption, strong)


def _row(entry: Entry, titles: Sequence[str]) -> tuple[str, ...]:
    figures = entry.figures
    parts = (f"{MARKS[entry.kind]} {entry.says}".strip(), entry.words)
    values = (
        f"{figures.kl:.4f} ± {figures.kl_error:.4f}",
        f"{100 * figures.agreement:.1f}",
        "-" if figures.accuracy is None else f"{100 * figures.accuracy:.1f}",
        f"{figures.prefill_speedup:.2f}x",
        f"{figures.samples:,}",
    )
    shown = [value for title, value in zip(COLUMNS, values, strict=True) if title in titles]
    return (str(entry.number), " · ".join(filter(None, parts)), *shown)


def _samples(recipe: Recipe, examples: Sequence[Example]) -> html.Section:
    shown = examples[:SHOWN_SAMPLES]
    blocks: list[html.Block] = []
    if not differences(recipe.settings, paper_settings(recipe)):
        blocks.append(html.Paragraph("The chosen settings are the paper's, so before and after are the same."))
    for number, example in enumerate(shown, 1):
        rows = [("Question", example.prompt), ("Unpruned answer", _said(example.unpruned_answer))]
        if example.right_answer is not None:
            rows.append(("Right answer", example.right_answer))
        sides = html.Beside(
            (
                _side("Before: the paper's settings", example.picture_before, example.answer_before),
                _side("After: the chosen settings", example.picture_after, example.answer_after),
            )
        )
        blocks.append(html.Section(f"Sample {number}", (html.Pairs(rows), sides), level=3))
    return html.Section("Kept tokens before and after", blocks)


def _side(title: str, picture: Image.Image | bytes, answer: str) -> html.Group:
    png = picture if isinstance(picture, bytes) else _png(picture)
    image = html.Picture(png, f"The image with its kept tokens. {title}", title)
    return html.Group((image, html.Pairs([("Answer", _said(answer))])))


def _said(answer: str) -> str:
    return answer if answer.strip() else "(nothing)"


def _png(picture: Image.Image) -> bytes:
    small = picture.convert("RGB")
    small.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _provenance(recipe: Recipe) -> html.Section:
    model, data, search = recipe.model, recipe.data, recipe.search
    rows: list[tuple[str, object]] = [
        ("Model", f"{model.name} ({model.model_type})"),
        ("Model digest", model.digest),
        ("Data", f"{data.name}, {data.samples:,} samples, {'with' if data.answers else 'without'} right answers"),
        ("Data digest", data.digest),
        ("Budget", search.budget),
        ("Keep", ", ".join(f"{keep:g}" for keep in search.keeps)),
        ("Ranked by", OBJECTIVES[search.objective]),
        ("Runs", f"{search.runs:,}; every candidate on every sample: {search.runs_of_all:,}"),
        ("Seed", search.seed),
        *recipe.tools.items(),
    ]
    return html.Section("Where this comes from", [html.Pairs(rows)])
