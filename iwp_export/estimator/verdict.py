"""An estimate in words: whether it fits, what pruning changes, and what was assumed."""

from __future__ import annotations

from iwp_export.device.specs import GB
from iwp_export.estimator.estimate import BANDWIDTH, Estimate, Side
from iwp_export.view.figures import percent
from iwp_export.view.view import Column, Table, View

FAST = 1000
"""Tokens a second above which a step spends its time on starting some hundred kernels."""
LITTLE = 1.1
"""A ratio of operations below this is within any run's noise."""


def view(estimate: Estimate) -> View:
    """The whole estimate."""
    device, prompt, before, after = estimate.device, estimate.prompt, estimate.unpruned, estimate.pruned
    facts = (
        ("model", f"{estimate.model}, weights {estimate.weights} ({gigabytes(estimate.weights_bytes)})"),
        ("device", f"{device.title}, {device.mode}"),
        ("request", f"{prompt.visual} visual and {prompt.text} text tokens, {prompt.new} new tokens"),
        ("pruning", f"at the input of layer {prompt.layer}: {prompt.kept} of {prompt.visual} stay"),
        ("settings", estimate.settings),
    )
    rows = (
        (
            "prefill, 10^9 multiply-adds",
            *(_short(side.prefill_operations / GB) for side in (before, after)),
            f"{estimate.operations_ratio:.2f}",
        ),
        ("decode", _speed(before), _speed(after), f"{before.step_bytes / after.step_bytes:.2f}"),
        ("cache", gigabytes(before.cache_bytes), gigabytes(after.cache_bytes), None),
        ("memory", gigabytes(before.memory_bytes), gigabytes(after.memory_bytes), None),
    )
    columns = [Column(title, number=True) for title in ("", "all tokens", "pruned", "ratio")]
    return View("Estimate", sentences(estimate), facts, tables=(Table(columns, rows),), notes=assumptions(estimate))


def sentences(estimate: Estimate) -> list[str]:
    """Whether it fits, and what pruning would bring."""
    said = [_fit(estimate), _gain(estimate)]
    if estimate.pruned.tokens_per_second[0] > FAST:
        said.append("So small a model waits for kernels to start, which is not counted: its decoding will be slower.")
    return said


def _fit(estimate: Estimate) -> str:
    device, need = estimate.device, gigabytes(estimate.pruned.memory_bytes)
    sold = f"{device.memory / GB:.0f} GB"
    room = f"{gigabytes(device.usable)} usable of {sold}"
    would = f"; {estimate.smaller} weights would" if estimate.smaller else ""
    weights = f"{gigabytes(estimate.weights_bytes)} of weights"
    if estimate.weights_bytes > device.usable:
        return f"Does not fit into {sold}: {weights}{would}."
    if not estimate.fits:
        return f"Does not fit: {weights} and {gigabytes(estimate.pruned.cache_bytes)} of caches, in {room}{would}."
    fits = "Fits" if estimate.unpruned.memory_bytes <= device.usable else "Fits only when pruned"
    return f"{fits}: {need} in {room}."


def _gain(estimate: Estimate) -> str:
    before, after, ratio = estimate.unpruned, estimate.pruned, estimate.operations_ratio
    if after.visual_tokens == before.visual_tokens:
        return "Nothing is pruned: every visual token stays."
    read = percent(after.step_bytes / before.step_bytes)
    said = f"Pruned, a prefill takes {percent(1 / ratio)} of the operations and a decode step {read} of the bytes"
    return f"{said}: little is gained; prune at an earlier layer, or keep less." if ratio < LITTLE else f"{said}."


def assumptions(estimate: Estimate) -> list[str]:
    """What the estimate takes for granted."""
    device, (low, high) = estimate.device, map(percent, BANDWIDTH)
    reserve = gigabytes(device.memory - device.usable)
    lines = [
        f"Decoding reaches {low} to {high} of the {device.bandwidth:g} GB/s of "
        f"{device.mode} (docs/estimate.md); slower power modes are slower.",
        f"{reserve} are not usable: {'system, desktop, CUDA' if device.shared else 'CUDA and a screen'}.",
        "One request alone; activations, images and the choice of tokens are not counted. Operations are no time.",
    ]
    if estimate.weights != "fp16":
        lines.append(
            f"{estimate.weights} weights of the decoder's layers; embedding, head and tower are float16. iwp-export "
            "writes no such weights yet."
        )
    return lines


def gigabytes(count: float) -> str:
    """A size in GB or MB of 10^9 and 10^6 bytes, as data sheets and weights are counted."""
    return f"{count / GB:.1f} GB" if count >= GB / 10 else f"{count / 1e6:.1f} MB"


def _speed(side: Side) -> str:
    low, high = map(_short, side.tokens_per_second)
    return f"{low} to {high} tokens/s"


def _short(value: float) -> str:
    """Two figures or more: the estimate holds no more."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
