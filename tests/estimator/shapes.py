"""A model and a device so small that every phase can be worked out by hand."""

from __future__ import annotations

from iwp_export.device.specs import DeviceSpec
from iwp_export.estimator.roofline import Efficiency, Prompt, Share
from iwp_export.estimator.shape import LanguageShape, ModelShape, TowerShape

LANGUAGE = LanguageShape(layers=2, hidden=4, inner=8, query=4, key_value=2, vocabulary=10)
TOWER = TowerShape(layers=1, hidden=2, inner=4, tokens=5, visual=4, patch=3, joined=2, out=4)
MODEL = ModelShape(LANGUAGE, TOWER)
PROMPT = Prompt(visual=3, text=1, new=3, layer=1, kept=1, tiles=2)
EXACT = Efficiency(Share(1, 1, 1), Share(1, 1, 1), Share(1, 1, 1))


def device(bandwidth: float = 1000) -> DeviceSpec:
    """One with 500 products and so many bytes a second."""
    return DeviceSpec("toy", "Toy", 1e-9, None, None, bandwidth / 1e9, 10**10, False, "fast", ("fast",), ())
