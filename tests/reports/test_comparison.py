"""Reports beside each other: what differs, with intervals, and what makes them hard to compare."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from iwp_export.reports.comparison import TITLE, Named, differences, held, merged, named, views
from iwp_export.reports.report import Report
from iwp_export.view import html, terminal
from tests.accuracy.made_up import measured
from tests.latency.made import latency
from tests.reports.made_up import BAD, GOOD, report
from tests.view.browser import needs_chromium, open_page
from tests.view.markup import check


@pytest.fixture
def two(tmp_path: Path) -> list[Named]:
    before = report(accuracy=measured(tmp_path, 36, 4, 0), latency=latency(prefill=(0.9, 0.6)), gates=(GOOD, BAD))
    after = report(
        digest="cd" * 32,
        accuracy=measured(tmp_path, 40, 0, 0),
        latency=latency(prefill=(0.9, 0.2)),
        gates=(GOOD, replace(BAD, passed=True)),
    )
    return [Named("before", before), Named("after", after)]


def test_differences_in_words(two: list[Named]) -> None:
    gate, whole, score, speed = differences(two)
    # no answer of 40 changed, which does not prove that none ever would
    assert whole == "At keep 1 after scores +0.0 points (-8.8 to +0.0) against before."
    assert gate == "max-drop: FAILED in before, passed in after."
    assert score == "At keep 0.3 after scores +10.0 points (-0.6 to +20.0) against before."
    # 0.26 s beside prefill: 0.86 / 0.46
    assert speed.startswith("after is 1.87 times as fast as before end to end (medians, pruned)")
    assert "pruning makes answers 2.52 times as fast on after, 1.35 times on before" in speed


def test_what_makes_them_hard_to_compare_comes_first(two: list[Named]) -> None:
    other = replace(two[1].report, artefact=replace(two[1].report.artefact, model="another"))
    assert other.latency is not None
    other = replace(other, latency=replace(other.latency, workload=replace(other.latency.workload, new_tokens=9)))
    first = differences([two[0], Named("after", other)])[0]
    assert first == "before and after differ in model, new tokens: compare with care."


def test_scores_of_other_questions_are_not_paired(two: list[Named]) -> None:
    other = two[1].report
    assert other.accuracy is not None
    other = replace(other, accuracy=replace(other.accuracy, digest="ef" * 32))
    assert not [line for line in differences([two[0], Named("after", other)]) if "points" in line]


def test_reports_of_one_artefact_become_one(two: list[Named]) -> None:
    scored, timed = replace(two[0].report, latency=None), replace(two[0].report, accuracy=None, gates=(GOOD,))
    whole = merged([scored, timed])
    assert whole is not None
    assert whole.accuracy == scored.accuracy and whole.latency == timed.latency
    assert len(whole.gates) == 3
    assert whole.verdict == ("FAILED: max-drop (1 of 3 gates).", "All is well.", "All is well.")
    assert merged([scored, scored]) is None, "both measured accuracy"
    assert merged([scored, replace(timed, artefact=two[1].report.artefact)]) is None, "another artefact"


def test_reports_that_share_nothing_say_so_and_no_more() -> None:
    """Both have a gate of the same name that holds, so that `nothing in common` would be wrong."""
    (said,) = differences([Named("a", report()), Named("b", report())])
    assert said == "No gate changed, and neither scores of the same questions nor latencies are in both."


def test_a_device_is_all_that_is_known_of_it(two: list[Named]) -> None:
    """A GPU in the machine is not what a bundle on the CPU ran on."""
    state = replace(two[0].report.state, gpu="Some GPU")
    these = [Named("a", replace(two[0].report, state=state)), two[1]]
    rows = {row[0]: row[1] for row in views(these)[1].tables[0].rows}
    assert rows["device"] == "Some GPU, Some CPU" and rows["runs on"] == "cpu" and rows["result"] == "FAILED"


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/a.json", "b.json"], ["a", "b"]),
        (["x/a.json", "y/a.json"], ["x/a.json", "y/a.json"]),
        (["a.json", "a.bundle/"], ["a", "a.bundle"]),
    ],
)
def test_names_are_those_of_files_and_artefacts(two: list[Named], paths: list[str], names: list[str]) -> None:
    reports: list[Report] = [each.report for each in two]
    assert [each.name for each in named(reports, list(map(Path, paths)))] == names


def test_the_page_and_the_terminal(two: list[Named]) -> None:
    pytest.importorskip("matplotlib", reason="the extra [report] is not installed")
    text, shown = html.render(TITLE, "before · after", views(two)), terminal.render(views(two))
    check(text)
    assert "before · after" in text
    for part in ("What is compared", "Accuracy against budget", "Latency", "max-drop", "before, pruned"):
        assert part in text and part in shown


def test_reports_without_gates_and_latencies_have_no_tables_of_them(two: list[Named]) -> None:
    these = [Named(each.name, replace(each.report, latency=None, gates=())) for each in two]
    assert [view.title for view in views(these)] == [TITLE, "What is compared", "Accuracy against budget"]
    assert "no gate" in terminal.render(views(these))


@needs_chromium
def test_a_browser_shows_it_at_a_phones_width(two: list[Named], tmp_path: Path) -> None:
    found, console = open_page(html.render(TITLE, "before · after", views(two)), tmp_path, 360)
    assert console == []
    assert found["scroll"] == 360 and found["wide"] == []


def test_a_gate_of_several_ratios_holds_only_if_all_do(two: list[Named]) -> None:
    """The failure comes first: by name alone the last one would stand for both."""
    failed = replace(two[0].report, gates=(BAD, replace(BAD, passed=True, where="keep 0.5")))
    assert held(failed) == {"max-drop": False}
    these = [Named("before", failed), Named("after", two[1].report)]
    assert "max-drop: FAILED in before, passed in after." in differences(these)


def test_one_page_of_two_machines_has_the_one_of_the_latencies_and_says_so(two: list[Named]) -> None:
    scored = replace(two[0].report, latency=None)
    board = replace(scored.state, board="Some Jetson", cpu="Another CPU")
    timed = replace(two[0].report, accuracy=None, state=board)
    whole = merged([scored, timed])
    assert whole is not None and whole.state == board
    assert "measured on different machines: accuracy on Some CPU; latency on Some Jetson, Another CPU" in whole.warnings
