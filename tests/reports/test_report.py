"""Reports: what is written is read, what is no report is one line, and the page and the summary say what they hold."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from iwp_export.bundle.document import _digest_of
from iwp_export.errors import OutputError, ReportError
from iwp_export.reports.files import check_outputs, refuse_repeated, write_outputs
from iwp_export.reports.page import make_page
from iwp_export.reports.report import REPORT_JSON, Report, headline, read_report, write_report
from iwp_export.reports.summary import describe
from tests.accuracy.made_up import measured
from tests.latency.made import latency
from tests.monitors.made_up import monitors
from tests.reports.made_up import BAD, GOOD, parity, report
from tests.view.browser import needs_chromium, open_page
from tests.view.markup import check


@pytest.fixture
def whole(tmp_path: Path) -> Report:
    return report(
        accuracy=measured(tmp_path, 30, 4, 1),
        latency=latency(),
        monitors=monitors(),
        parity=parity(),
        gates=(GOOD, BAD),
        warnings=("clocks are not locked: sudo jetson_clocks",),
    )


def test_what_is_written_is_read(whole: Report, tmp_path: Path) -> None:
    path = write_report(whole, tmp_path / "report.json")
    assert read_report(path) == whole
    assert not read_report(path).passed
    with pytest.raises(OutputError, match="already exists"):
        write_report(whole, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "is not a report"),
        ('{"format": "iwp-recipe", "schema_version": 1}', "is not a report"),
        ('{"format": "iwp-report", "schema_version": 9}', "upgrade iwp-export"),
        ("no", "is not JSON"),
    ],
)
def test_what_is_no_report_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(ReportError, match=message) as caught:
        read_report(path)
    assert "\n" not in str(caught.value)


def test_a_changed_figure_is_refused(whole: Report, tmp_path: Path) -> None:
    path = write_report(whole, tmp_path / "report.json")
    data = json.loads(path.read_text())
    data["gates"][1]["passed"] = True
    path.write_text(json.dumps(data))
    with pytest.raises(ReportError, match="changed by hand"):
        read_report(path)


def test_the_headline_names_what_failed() -> None:
    assert headline([GOOD, BAD]) == "FAILED: max-drop (1 of 2 gates)."
    assert headline([GOOD]) == "Passed: 1 gate."
    assert headline([]) == "Measured; no gate was set."


def test_the_summary_has_every_part(whole: Report) -> None:
    text = describe(whole)
    assert text.startswith("Passed: 1 gates.\nAll is well.\n\nwarning: clocks are not locked")
    assert "time to first token" in text and "same answer" in text and "KL, nats" in text
    gates = [line.split()[:2] for line in text.splitlines() if line.split()[1:2] in (["FAILED"], ["passed"])]
    assert gates == [["max-drop", "FAILED"], ["logits", "passed"]]


def test_the_page_begins_with_the_verdict_and_its_failures(whole: Report) -> None:
    pytest.importorskip("matplotlib", reason="the extra [report] is not installed")
    text = make_page(whole).html()
    check(text)
    titles = ["Warnings", "Gates", "Accuracy against budget", "Latency", "Parity", "Device", "How it was made"]
    places = [text.index(f">{title}</h2>") for title in titles]
    assert places == sorted(places)
    assert "made.bundle: FAILED" in text
    assert text.index("max-drop") < text.index(">logits<")
    assert "max-drop: keep more tokens" in text


def test_outputs_are_checked_before_anything_is_measured(whole: Report, tmp_path: Path) -> None:
    json_file, page = tmp_path / "a.json", tmp_path / "a.html"
    check_outputs([json_file, page])
    write_outputs(whole, [json_file])
    for paths, message in (
        ([tmp_path / "a.txt"], "ends in .json or .html"),
        ([page, page], "given twice"),
        ([json_file], "already exists"),
        ([tmp_path], "ends in"),
    ):
        with pytest.raises(OutputError, match=message):
            check_outputs(paths)


def test_reports_need_no_torch() -> None:
    code = (
        "import sys, iwp_export.reports.validation, iwp_export.reports.benchmark; "
        "import iwp_export.reports.page, iwp_export.reports.comparison; "
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_chromium
@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_shows_it(whole: Report, tmp_path: Path, width: int) -> None:
    found, console = open_page(make_page(whole).html(), tmp_path, width)
    assert console == []
    assert found["scroll"] == width and found["wide"] == []


def test_control_characters_do_not_cost_a_measurement(whole: Report, tmp_path: Path) -> None:
    """A prompt of two lines on the command line, or a board whose name ends in NUL."""
    odd = replace(
        whole,
        command="iwp-export bench --prompt 'a\nb'",
        state=replace(whole.state, board="Some board\x00"),
        gates=(replace(BAD, where="\x1b[2J"),),
    )
    assert odd.printable().command == "iwp-export bench --prompt 'a\\nb'"
    assert "\x1b" not in describe(odd.printable()) and "\\x1b[2J" in describe(odd.printable())
    assert read_report(write_report(odd.printable(), tmp_path / "report.json")) == odd.printable()
    assert whole.printable() == whole


def test_outputs_that_cannot_be_written_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "made.bundle").mkdir()
    loop = tmp_path / "loop.json"
    loop.symlink_to(loop)
    for name in ("file/report.json", "made.bundle/report.json", "file/deep/report.json", "x" * 300 + ".json"):
        with pytest.raises(OutputError):
            check_outputs([tmp_path / name], artefact=tmp_path / "made.bundle")
    check_outputs([tmp_path / "new" / "deep" / "report.json"], artefact=tmp_path / "made.bundle")


def test_outputs_do_not_replace_what_is_read(tmp_path: Path) -> None:
    data, other = tmp_path / "data.json", tmp_path / "sub" / ".." / "data.json"
    data.write_text("questions")
    (tmp_path / "sub").mkdir()
    for path in (data, other):
        with pytest.raises(OutputError, match="is read too"):
            check_outputs([path], force=True, inputs=[None, data])
    with pytest.raises(OutputError, match="given twice"):
        check_outputs([data, other], force=True)
    with pytest.raises(ReportError, match="given twice"):
        refuse_repeated([data, other])


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("accuracy", "at"), [], "keep 1"),
        (("accuracy", "at", 0, "kinds"), [], "kinds"),
        (("accuracy", "at", 1, "same"), [], "35 questions"),
        (("parity", "dtype"), "float8", "float32"),
    ],
)
def test_figures_that_contradict_each_other_are_damage(whole: Report, tmp_path: Path, place, value, message) -> None:
    """Whoever writes a file can seal it: pages must not meet figures that they cannot draw."""
    data = inner = json.loads(json.dumps(REPORT_JSON.to_dict(whole)))
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    data["digest"] = _digest_of(data)
    (tmp_path / "report.json").write_text(json.dumps(data))
    with pytest.raises(ReportError, match=message):
        read_report(tmp_path / "report.json")
