"""The verb report, and where reports may be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from iwp_export.cli.main import main
from iwp_export.reports.report import write_report
from tests.accuracy.made_up import measured
from tests.latency.made import latency
from tests.reports.made_up import BAD, GOOD, report


def test_one_report_two_of_one_artefact_and_two_of_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="the extra [report] is not installed")
    scored = write_report(report(accuracy=measured(tmp_path, 30, 4, 1)), tmp_path / "scored.json")
    timed = write_report(report(latency=latency(), gates=(BAD,)), tmp_path / "timed.json")
    other = write_report(report(digest="cd" * 32, latency=latency()), tmp_path / "other.json")
    page = tmp_path / "page.html"
    assert main(["report", str(scored), "-o", str(page)]) == 0
    assert "Some CPU" in capsys.readouterr().out and "made.bundle: passed" in page.read_text()
    assert main(["report", str(scored), "-o", str(page)]) == 2
    assert "already exists" in capsys.readouterr().err
    assert main(["report", str(scored), str(timed), "-o", str(page), "--force"]) == 1
    assert capsys.readouterr().out.startswith("FAILED: max-drop (1 of 2 gates).")
    assert "made.bundle: FAILED" in page.read_text()
    assert main(["report", str(timed), str(other), "-o", str(page), "--force"]) == 1
    assert "What is compared" in capsys.readouterr().out and "Comparison of reports" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere.json"], "nowhere.json"),
        (["empty.json"], "is not JSON"),
        (["good.json", "./good.json"], "given twice"),
        (["good.json", "-o", "page.json"], "ends in .html, got page.json (-o)"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    arguments: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_report(report(gates=(GOOD,)), "good.json")
    Path("empty.json").write_text("")
    assert main(["report", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("iwp-export: error: ") and named in line
