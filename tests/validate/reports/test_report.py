"""Reports: what is written is read, what is no report is one line, and the page and the summary say what they hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from iwp_export.errors import OutputError, ReportError
from iwp_export.validate.reports.files import check_outputs, write_outputs
from iwp_export.validate.reports.page import make_page
from iwp_export.validate.reports.report import Report, headline, read_report, write_report
from iwp_export.validate.reports.summary import describe
from tests.report.browser import needs_chromium, open_page
from tests.report.markup import check
from tests.validate.accuracy.made_up import measured
from tests.validate.latency.made import latency
from tests.validate.monitors.made_up import monitors
from tests.validate.reports.made_up import BAD, GOOD, parity, report


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
        "import sys, iwp_export.validate.validation, iwp_export.validate.benchmark; "
        "import iwp_export.validate.reports.page, iwp_export.validate.reports.comparison; "
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_chromium
@pytest.mark.parametrize("width", [360, 1200])
def test_a_browser_shows_it(whole: Report, tmp_path: Path, width: int) -> None:
    found, console = open_page(make_page(whole).html(), tmp_path, width)
    assert console == []
    assert found["scroll"] == width and found["wide"] == []
