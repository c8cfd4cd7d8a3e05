"""Bench: one real, small run; limits that it cannot hold; and what it refuses."""

from __future__ import annotations

import json

import pytest

from iwp_export.cli.main import main
from iwp_export.reports.report import read_report

SMALL = ["--pairs", "14", "--warmup", "1", "--new-tokens", "3", "--threads", "1"]


def test_a_small_run(tiny_bundle, tmp_path, capsys):
    """What is true on any machine, however slow: a tight limit fails, all tokens are accounted for."""
    output = tmp_path / "bench.json"
    limits = ["--max-ttft-ms", "0.001"]
    assert main(["bench", str(tiny_bundle), *SMALL, *limits, "-o", str(output)]) == 1
    shown = capsys.readouterr().out
    assert shown.startswith("FAILED: max-ttft (1 of 3 gates).\nprefill ") and "promised" in shown
    assert "tokens were dropped: layers " in shown
    report = read_report(output)
    found = {gate.name: gate.passed for gate in report.gates}
    assert found == {"tokens-dropped": True, "tokens-kept": True, "max-ttft": False}
    latency = report.latency
    assert latency is not None and not report.passed
    assert (latency.pairs, latency.workload.kept, latency.workload.visual_tokens) == (14, 20, 64)
    assert 1 < latency.promised < 4
    for side in (latency.pruned, latency.unpruned):
        assert min(side.times["vision"]) > 0 and side.phases["step"].runs == 28  # features are computed each time
        parts = [side.times[name] for name in ("preprocess", "vision", "prefill", "decode")]
        whole = side.times["end_to_end"]
        assert all(sum(each) <= last + 1e-6 for *each, last in zip(*parts, whole, strict=True))
    assert latency.pruned.cache < latency.unpruned.cache


def test_json(tiny_bundle, capsys):
    assert main(["bench", str(tiny_bundle), *SMALL, "--keep", "0.5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "iwp-report" and found["latency"]["workload"]["kept"] == 32
    assert set(found["latency"]["ratios"]) == {"prefill", "decode", "first_token", "end_to_end"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--keep", "1"], "prunes nothing"),
        (["--keep", "2"], "keep must be"),
        (["--pairs", "3"], "14 or more, got 3 (--pairs)"),
        (["--pairs", "50", "--max-p99-ms", "5"], "(--pairs)"),
        (["--new-tokens", "0"], "(--new-tokens)"),
        (["--new-tokens", "300"], "256 positions"),
        (["--repeat", "2"], "repeat must be 1 or 3 to 10, got 2 (--repeat)"),
        (["--limit", "0"], "(--limit)"),
        (["--limit", "90"], "14 pairs do not ask all of 90 questions"),
        (["--prompt", "half \udc80"], "not valid UTF-8"),
        (["--max-ttft-ms", "-1"], "(--max-ttft-ms)"),
        (["-o", "report.txt"], ".json or .html"),
        (["--image", "nothing.png"], "nothing.png"),
        (["--data", "nothing.jsonl"], "nothing.jsonl"),
        (["--data", "nothing.jsonl", "--prompt", "x"], "(--data, --image)"),
        (["--provider", "abacus"], "abacus"),
    ],
)
def test_what_cannot_run_is_one_line_and_2(tiny_bundle, capsys, arguments, named):
    small = [word for pair in zip(SMALL[::2], SMALL[1::2], strict=True) if pair[0] not in arguments for word in pair]
    assert main(["bench", str(tiny_bundle), *small, *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and len(shown.err.splitlines()) == 1, shown.err
    assert shown.err.startswith("iwp-export: error: ") and named in shown.err


def test_no_artefact_is_2(tmp_path, capsys):
    assert main(["bench", str(tmp_path / "none.bundle")]) == 2
    assert main(["bench", str(tmp_path / "none.plan")]) == 2
