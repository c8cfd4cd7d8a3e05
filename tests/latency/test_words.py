"""Verdicts of made-up benches, their gates, their page and their file."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from iwp_export.bundle.recipe import PruningSource
from iwp_export.device.state import DeviceState
from iwp_export.errors import SettingsError
from iwp_export.latency.figures import Dropped, Energy, Latency, Loop, Ratio, Trend
from iwp_export.latency.gates import LatencyLimits, gates
from iwp_export.latency.spread import spread_of
from iwp_export.latency.words import doubts, figures, layers_of, verdict
from iwp_export.pruning.settings import PruningSettings
from iwp_export.reports.page import make_page
from iwp_export.reports.report import REPORT_JSON, Report, ReportArtefact
from tests.latency.made import latency
from tests.view.browser import needs_chromium, open_page
from tests.view.markup import check

SLOW_DECODE = latency(decode=(1.0, 1.0))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            SLOW_DECODE,
            "prefill 1.80 (1.75 to 1.85) of 1.81 promised; end to end 1.26 (1.22 to 1.29) because decode takes 64 %: "
            "shorter answers or smaller weights would help more",
        ),
        (
            latency(prefill=(0.09, 0.05), decode=(5.0, 5.0)),
            "end to end 1.01 (0.98 to 1.04): no speed-up is shown; decode takes 98 %",
        ),
        (latency(prefill=(0.5, 0.9)), "end to end 0.66 (0.64 to 0.67): pruning makes it slower"),
        (latency(prefill=(1.8, 1.0), decode=(1e-9, 1e-9)), "; time to first token 1.75 (1.70 to 1.81)"),
    ],
)
def test_the_headline_says_what_was_gained_and_why_not_more(made, said):
    assert said in verdict(made)[0]


def test_a_promise_that_is_missed_is_told_with_what_the_choice_of_tokens_takes():
    said = "\n".join(verdict(latency(prefill=(0.6, 0.5))))
    assert "misses its promise" in said and "(4 ms, 1 % of it)" in said
    assert "misses" not in "\n".join(verdict(latency()))


def test_loops_and_caches_are_in_the_verdict_and_trends_are_doubts():
    made = latency(
        trends=(Trend("pruned", "prefill", -0.12),),
        loops=(Loop("pruned", 5.0, (0.0, 0.031), (0.0, 0.0)),),
        dropped=(Dropped("pruned", (9, 5), (9, 9), "read back"),),
    )
    said = "\n".join(verdict(made))
    assert (
        "pruned prefill fell over the runs by 12 % of its median: warm up longer" in doubts(made)[0]
        and "fell" not in said
    )
    assert "at 5 Hz, pruned: 1 of 2 deadlines missed" in said and "31 ms" in said
    assert "TOKENS WERE NOT DROPPED" in said


def test_a_busy_machine_is_told():
    (said,) = doubts(latency(load=(2.1, 9.0)))
    assert "the machine was busy before the bench (load average 2.1 on 4 processors)" in said
    assert not doubts(latency(load=(1.9, 9.0))) and not doubts(latency(load=()))


def test_cache_lengths_in_few_words():
    assert layers_of((9, 9, 5, 5, 5)) == "layers 0 to 1 hold 9, 2 to 4 hold 5"
    assert layers_of((9, 5)) == "layers 0 holds 9, 1 holds 5"


def test_the_whole_text():
    text = figures(latency(energy=(Energy("VDD_IN", "board", "sysfs", 3, (2.0, 2.2), (4.0, 4.2)),)))
    assert "900 -> 500" in text and "1.80 (1.75 to 1.85)" in text and "of it selection" in text
    assert "500*" in text and "a p99 means nothing of fewer than 100 runs, and there are 3" in text
    assert "unpruned 6.0 GiB, pruned 5.0 GiB (8.0 GiB before the first run)" in text
    assert "4.1 J -> 2.1 J an answer, of the board (VDD_IN)" in text
    assert "joules not measured: no power sensor" in text and "load average 0.5 before and 0.6 after" in text


def passed(limits: LatencyLimits, made=None) -> dict[str, bool]:
    return {gate.name: gate.passed for gate in gates(latency() if made is None else made, limits)}


def test_limits():
    always = {"tokens-dropped": True, "tokens-kept": True}
    assert passed(LatencyLimits()) == always
    assert passed(LatencyLimits("end_to_end")) == {**always, "faster-end-to-end": True}
    unsure = latency()
    unsure = replace(unsure, ratios={**unsure.ratios, "end_to_end": Ratio(1.2, 1.0, 1.5)})
    assert passed(LatencyLimits("end_to_end"), unsure)["faster-end-to-end"] is False
    assert passed(LatencyLimits("prefill"), unsure)["faster-prefill"] is True
    assert passed(LatencyLimits(max_ttft_ms=560.1))["max-ttft"] is True
    assert passed(LatencyLimits(max_ttft_ms=559.9))["max-ttft"] is False


def test_a_p99_of_few_runs_passes_no_gate():
    assert passed(LatencyLimits(max_p99_ms=1e6))["max-p99"] is False
    made = latency()
    phases = {**made.pruned.phases, "end_to_end": spread_of([0.7] * 98 + [0.9] * 2)}
    made = replace(made, pruned=replace(made.pruned, phases=phases))
    assert passed(LatencyLimits(max_p99_ms=901), made)["max-p99"] is True
    assert passed(LatencyLimits(max_p99_ms=800), made)["max-p99"] is False


@pytest.mark.parametrize("limits", [{"max_ttft_ms": 0.0}, {"max_p99_ms": float("nan")}, {"fail_if_slower": "vision"}])
def test_limits_that_are_none(limits):
    with pytest.raises(SettingsError):
        LatencyLimits(**limits)


def test_a_cache_of_too_few_layers_fails():
    made = latency(dropped=(Dropped("pruned", (9, 5, 5), (9, 5), "read back"),))
    assert passed(LatencyLimits(), made) == {"tokens-dropped": False}


def reported(made: Latency) -> Report:
    """A report of nothing but this bench."""
    settings, source = PruningSettings(), PruningSource()
    artefact = ReportArtefact("made.bundle", "0" * 64, "made", "llava", "float32", "cpu", settings, source)
    found = tuple(gates(made))
    return Report(
        "iwp-export bench",
        "2026-11-21T00:00:00",
        artefact,
        ("Passed.", *verdict(made)),
        found,
        (),
        DeviceState(),
        latency=made,
    )


def test_a_report_is_read_back_as_it_was():
    made = latency(loops=(Loop("pruned", 5.0, (0.0, 0.031), (0.0, 0.0)),), trends=(Trend("pruned", "prefill", 0.2),))
    report = reported(made)
    data = json.loads(REPORT_JSON.to_text(report))
    assert REPORT_JSON.from_dict(data, "a.json") == report
    assert data["latency"]["pruned"]["prefill"] == list(made.pruned.prefill)


def page_text() -> str:
    made = latency(decode=(1.0, 1.0), loops=(Loop("pruned", 5.0, (0.0, 0.031), (0.0, 0.0)),))
    return make_page(reported(made)).html()


def test_the_page_has_the_verdict_and_the_charts():
    text = page_text()
    markup = check(text)
    assert any(words.startswith("prefill 1.80 (1.75 to 1.85) of 1.81 promised") for words in markup.texts)
    assert text.count("<svg") == 5


@needs_chromium
def test_the_page_in_a_browser(tmp_path):
    found, console = open_page(page_text(), tmp_path, 360)
    assert not console
    assert found["scroll"] <= 360 and not found["wide"]
    assert found["letters"] >= 9


def test_a_keep_ratio_that_drops_nothing_fails():
    """0.999 of 64 tokens, rounded up, is 64: what was expected is there, and nothing was dropped."""
    whole = (Dropped("pruned", (9, 9), (9, 9), "read back"), Dropped("unpruned", (9, 9), (9, 9), "read back"))
    assert passed(LatencyLimits(), latency(dropped=whole)) == {"tokens-dropped": False, "tokens-kept": True}
    assert "NO TOKENS WERE DROPPED" in "\n".join(verdict(latency(dropped=whole)))
