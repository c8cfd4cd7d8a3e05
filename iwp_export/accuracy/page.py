"""Scores as blocks of the report, made from the figures alone."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from iwp_export.accuracy.examples import draw
from iwp_export.accuracy.figures import Accuracy, AtKeep, Example
from iwp_export.accuracy.words import sentences
from iwp_export.view import charts
from iwp_export.view import page as html
from iwp_export.view.axes import Axis
from iwp_export.view.figures import percent, spread
from iwp_export.view.svg import Svg

SHEET = 480
"""Pixels of the longer side of an example's picture."""


def blocks(accuracy: Accuracy) -> list[html.Block]:
    """The verdict, the chart, the tables and the examples.

    Raises:
        BackendError: matplotlib is missing.
    """
    made: list[html.Block] = [html.Verdict(sentences(accuracy)), _by_keep(accuracy)]
    if accuracy.pruned:
        caption = "Bands are 95 % intervals. The point at the right end is keep 1, which prunes nothing."
        made.insert(1, html.Chart(budget_chart(accuracy), caption))
    if len(accuracy.unpruned.kinds) > 1:
        made.append(_by_kind(accuracy))
    if accuracy.examples:
        made.append(_examples(accuracy))
    made.append(_how_to_read(accuracy))
    return made


def budget_chart(accuracy: Accuracy) -> Svg:
    """Score and agreement against the share of visual tokens that stay.

    Raises:
        BackendError: matplotlib is missing.
    """
    found = sorted(accuracy.at, key=lambda each: each.keep)
    places = tuple(_share_kept(accuracy, each) for each in found)
    series = []
    scores = [each.score for each in found if each.score is not None]
    if scores:
        columns = zip(*((each.mean, each.low, each.high) for each in scores), strict=True)
        series.append(charts.Line(accuracy.title, places, *map(tuple, columns)))
    columns = zip(*((each.agreement.mean, each.agreement.low, each.agreement.high) for each in found), strict=True)
    series.append(charts.Line("same answer as unpruned", places, *map(tuple, columns)))
    alt = f"{series[0].name} against the share of visual tokens that stay, at {len(found)} budgets; the table has them"
    return charts.lines("accuracy", alt, series, Axis("visual tokens that stay", "percent"), Axis("share", "percent"))


def _share_kept(accuracy: Accuracy, found: AtKeep) -> float:
    return found.visual_tokens_kept / accuracy.visual_tokens if accuracy.visual_tokens else found.keep


def _by_keep(accuracy: Accuracy) -> html.Table:
    more = list(accuracy.unpruned.more)
    columns = [
        html.Column("Keep", number=True),
        html.Column("Visual tokens", number=True),
        *([html.Column(accuracy.title, number=True), html.Column("Of keep 1", number=True)] if accuracy.rule else []),
        html.Column("Same answer", number=True),
        *(html.Column(name.capitalize(), number=True) for name in more),
    ]
    rows = []
    for found in accuracy.at:
        scores = [found.score and spread(found.score), "-" if found.relative is None else spread(found.relative)]
        rows.append(
            [
                f"{found.keep:g}",
                f"{found.visual_tokens_kept:.0f}",
                *(scores if accuracy.rule else []),
                spread(found.agreement),
                *(percent(found.more[name]) for name in more),
            ]
        )
    strong = frozenset(number for number, found in enumerate(accuracy.at) if found.keep == accuracy.own_keep)
    return html.Table(columns, rows, f"By budget, {accuracy.questions:,} questions, 95 % intervals", strong)


def _by_kind(accuracy: Accuracy) -> html.Table:
    what = accuracy.title if accuracy.rule else "same answer"
    columns = [
        html.Column("Kind of question"),
        html.Column("Questions", number=True),
        *(html.Column(f"Keep {found.keep:g}", number=True) for found in accuracy.at),
    ]
    rows = []
    for place, kind in enumerate(accuracy.unpruned.kinds):
        shown = (found.kinds[place] for found in accuracy.at)
        rows.append(
            [kind.name, f"{kind.questions:,}", *(percent((each.score or each.agreement).mean) for each in shown)]
        )
    caption = f"By kind of question: {what}"
    return html.Table(columns, rows, caption, frozenset([len(rows) - 1]))


def _examples(accuracy: Accuracy) -> html.Section:
    keep = accuracy.examples[0].keep
    intro = f"Questions of which the answer changed at keep {keep:g} come first; dropped tokens are dimmed."
    return html.Section("Examples", [html.Paragraph(intro), *map(_example, accuracy.examples)], level=3)


def _example(example: Example) -> html.Block:
    rows: list[tuple[str, object]] = [("Question", f"{example.prompt} (No. {example.number})")]
    if example.right:
        rows.append(("Right", " / ".join(example.right)))
    rows += [("Keep 1", _said(example.unpruned)), (f"Keep {example.keep:g}", _said(example.pruned))]
    if not example.views:
        return html.Pairs(rows)
    names = ", ".join(example.images)
    picture = html.Picture(_sheet(example), f"{names} with the visual tokens that stayed", names)
    return html.Beside((picture, html.Group([html.Pairs(rows)])))


def _sheet(example: Example) -> bytes:
    """The views beside each other, as a PNG file."""
    drawn = [draw(view, SHEET // len(example.views)) for view in example.views]
    for each in drawn:
        each.thumbnail((SHEET // len(drawn), SHEET), Image.Resampling.LANCZOS)
    sheet = Image.new("RGB", (sum(each.width for each in drawn), max(each.height for each in drawn)))
    left = 0
    for each in drawn:
        sheet.paste(each, (left, 0))
        left += each.width
    buffer = BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _how_to_read(accuracy: Accuracy) -> html.Paragraph:
    if not accuracy.rule:
        return html.Paragraph(
            "The data has no answers: an answer counts as kept if it is the unpruned one.", quiet=True
        )
    text = (
        "Of keep 1: the score divided by the unpruned score on the same questions. Its interval is a bootstrap over "
        "questions, both answers drawn together, and at least as wide as Newcombe's of the shares that lost and gained."
    )
    return html.Paragraph(text, quiet=True)


def _said(answer: str) -> str:
    return answer if answer.strip() else "(nothing)"
