"""The monitors in words: what they warn of, and their view. Needs no torch."""

from __future__ import annotations

from iwp_export.monitors.figures import Monitors
from iwp_export.view.figures import percent, spread
from iwp_export.view.view import Axis, Chart, Column, Series, Table, View

READ = 0.95
"""An image has been read where this share of what it brings is there without its tokens."""
BEGUN = 0.05
LEAST_GAIN = 0.05
"""What an image must bring, as a share of all questions, for the curve to say anything."""


def shares_read(monitors: Monitors) -> dict[int, float]:
    """By layer, the share of what the image brings that is there if no visual token goes on from the layer on.

    What it brings is the score with every token less the one without the image; empty where that is less than
    `LEAST_GAIN`.
    """
    blind, gain = monitors.depth[0].score.mean, monitors.depth[-1].score.mean - monitors.depth[0].score.mean
    return {p.layer: (p.score.mean - blind) / gain for p in monitors.depth} if gain >= LEAST_GAIN else {}


def warnings(monitors: Monitors) -> list[str]:
    """What makes a score at these settings prove little."""
    whole, blind = (percent(point.score.mean) for point in (monitors.depth[-1], monitors.depth[0]))
    scores = f"{whole} {_measure(monitors)} with every token, {blind} without the image"
    shares, layer = shares_read(monitors), monitors.pruning_layer
    if not shares:
        return [f"These questions do not need the image ({scores}): no figure of them says anything about pruning."]
    if shares.get(layer, 0.0) < READ:
        return []
    return [
        f"The model has read the image before layer {layer}: with no visual token from there on it keeps "
        f"{percent(shares[layer])} of what the image brings ({scores}), so that a good score there proves nothing "
        "about which tokens are kept."
    ]


def view(monitors: Monitors) -> View:
    """What was found."""
    which, title = _measure(monitors), "Where the model reads the image"
    places = tuple(float(point.layer) for point in monitors.depth)
    means, lows, highs = (
        tuple(getattr(point.score, end) for point in monitors.depth) for end in ("mean", "low", "high")
    )
    here = Series("pruned here", (float(monitors.pruning_layer),) * 2, (0.0, 1.0))
    chart = Chart(
        "lines",
        title,
        f"Read-depth curve: {which} of {monitors.questions} questions by the layer that ends the image",
        [Series(which, places, means, lows, highs), here],
        Axis("no visual token from layer", "whole"),
        Axis(which, "percent", low=0.0),
        caption="The rightmost point has every token, the leftmost none.",
    )
    asked = [("asked", f"{monitors.questions:,} questions of {monitors.data}")]
    return View(title, _sentences(monitors), asked, charts=[chart], tables=[_layers(monitors)])


def _measure(monitors: Monitors) -> str:
    return "agreement" if monitors.depth[-1].accuracy is None else "accuracy"


def _sentences(monitors: Monitors) -> list[str]:
    shares, layer = shares_read(monitors), monitors.pruning_layer
    if not shares:
        return []
    done = next(layer for layer, share in shares.items() if share >= READ)
    begun = max((layer for layer, share in shares.items() if share <= BEGUN and layer <= done), default=min(shares))
    where = f"in layer {max(done - 1, 0)}" if done - begun <= 1 else f"from layer {begun} to layer {done - 1}"
    if layer not in shares:
        return [f"The image is read {where}."]
    before = percent(max(shares[layer], 0))
    return [f"The image is read {where}; {before} of what it brings before layer {layer}, which drops tokens."]


def _layers(monitors: Monitors) -> Table:
    attention = {each.layer: each for each in monitors.attention}
    rows: list[list[object]] = []
    for point in monitors.depth:
        each = attention.get(point.layer)
        left = [spread(point.score), spread(point.agreement), f"{point.kl.mean:.3g}"]
        seen = [percent(each.retention), f"{each.entropy.mean:.2f}", f"{each.entropy_pruned.mean:.2f}"] if each else []
        rows.append([point.layer if each else "every token", *left, *(seen or ["", "", ""])])
    titles = (_measure(monitors), "agreement", "KL, nats", "visual tokens seen", "entropy, nats", "pruned")
    columns: list[Column | str] = ["layer", *(Column(title, number=True) for title in titles)]
    caption = "Answers if no visual token goes on from a layer on, with 95 % intervals, and the text's attention there"
    return Table(columns, rows, caption)
