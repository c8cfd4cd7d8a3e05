"""Reports: what is written is read, what is no report is one line, and the views say what they hold."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from iwp_export.errors import OutputError, ReportError
from iwp_export.reports.report import Report, headline, make_report, read_report, write_report
from iwp_export.view import html, terminal
from tests.accuracy.made_up import measured
from tests.latency.made import latency
from tests.monitors.made_up import monitors
from tests.reports.made_up import BAD, GOOD, parity, report
from tests.runtime.toy import toy_pipeline
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


def page_of(made: Report) -> str:
    pytest.importorskip("matplotlib", reason="the extra [report] is not installed")
    return html.render(made.title, made.subtitle, made.views())


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
        ('{"format": "iwp-report", "schema_version": 9}', "upgrade iwp-export"),
        ('{"format": "iwp-report", "schema_version": 2}', "schema version 2, this version reads 3: measure again"),
        ("no", "is not JSON"),
    ],
)
def test_what_is_no_report_of_this_version_is_one_line(tmp_path: Path, content: str, message: str) -> None:
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


def test_a_report_is_its_gates_its_proofs_sentences_and_the_machine() -> None:
    pipeline, _ = toy_pipeline(keep=0.25)
    found = latency()
    made = make_report(
        "a command", Path("x.bundle"), pipeline, report().state, [BAD], ["doubtful"], True, latency=found
    )
    assert made.verdict[0] == "FAILED: max-drop, no warnings (2 of 2 gates)."
    assert made.verdict[1].startswith("prefill 1.80")
    assert made.warnings[0] == "doubtful" and made.artefact.name == "x.bundle" and made.state.cpus
    assert made.latency == found and made.measured == ["latency"]


def test_a_terminal_shows_the_verdict_first_and_no_sentence_twice(whole: Report) -> None:
    text = terminal.render(whole.findings())
    assert text.startswith("Passed: 1 gates.\nAll is well.\n\nWarnings\n--------\nclocks are not locked")
    assert "time to first token" in text and "same answer" in text and "KL, nats" in text
    gates = [line.split()[:2] for line in text.splitlines() if line.split()[1:2] in (["FAILED"], ["passed"])]
    assert gates == [["max-drop", "FAILED"], ["logits", "passed"]]
    assert "the artefact matches its reference" not in text and "Some CPU" not in text


def test_a_page_begins_with_the_verdict_and_its_failures(whole: Report) -> None:
    text = page_of(whole)
    check(text)
    titles = ["Warnings", "Gates", "Accuracy against budget", "Latency", "Parity", "Machine", "How it was made"]
    places = [text.index(f">{title}</h2>") for title in titles]
    assert places == sorted(places)
    assert "made.bundle: FAILED" in text
    assert text.index("max-drop") < text.index(">logits<")
    assert "max-drop: keep more tokens" in text and "iwp-export validate made.bundle" in text


def test_reports_need_no_torch() -> None:
    code = (
        "import sys, iwp_export.reports.measure, iwp_export.reports.comparison; "
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_chromium
def test_a_browser_shows_it_at_a_phones_width(whole: Report, tmp_path: Path) -> None:
    found, console = open_page(page_of(whole), tmp_path, 360)
    assert console == []
    assert found["scroll"] == 360 and found["wide"] == []


def test_control_characters_do_not_cost_a_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt of two lines on the command line, or a board whose name ends in NUL."""
    state = replace(report().state, board="Some board\x00")
    monkeypatch.setattr("iwp_export.reports.report.read_state", lambda: state)
    pipeline, _ = toy_pipeline(keep=0.25)
    gates: Any = [replace(BAD, where="\x1b[2J")]
    made = make_report("bench --prompt 'a\nb'", Path("x.bundle"), pipeline, state, gates, [], False)
    assert (made.command, made.state.board) == ("bench --prompt 'a\\nb'", "Some board\\x00")
    assert "\\x1b[2J" in terminal.render(made.findings())
    assert read_report(write_report(made, tmp_path / "report.json")) == made
