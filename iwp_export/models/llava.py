"""LLaVA-1.5: one square image, a vision tower, a two-layer projector, and a plain decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from iwp_export.bundle.manifest import Bounds, VisionInfo
from iwp_export.models.common.family import Array, Colours, Family, Picture, View, VisionGraph
from iwp_export.models.common.tiles import TOWER_ROWS, pixels_of, tower_features, tower_side


class Llava(Family):
    config_rows = TOWER_ROWS

    def vision_info(self, config: Any) -> VisionInfo:
        """One image is one tile of side x side tokens."""
        side = tower_side(config, "llava")
        return VisionInfo(
            image_token_id=config.image_token_id,
            feature_size=config.text_config.hidden_size,
            tokens=Bounds.fixed(side * side),
            dims={},
            geometry={"pixels": config.vision_config.image_size, "side": side},
        )

    def vision_graph(self, model: Any) -> VisionGraph:
        import torch

        class Encoder(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
                return tower_features(self.model, pixel_values.to(self.model.dtype)).flatten(0, 1)

        size = model.config.vision_config.image_size
        return VisionGraph(Encoder(), {"pixel_values": torch.zeros(1, 3, size, size)}, {})

    def picture(self, outputs: Mapping[str, Array], vision: VisionInfo, colours: Colours) -> Picture:
        size, side = vision.geometry["pixels"], vision.geometry["side"]
        pixels = pixels_of(outputs, (1, 3, size, size))
        tokens = np.arange(side * side).reshape(side, side)
        return Picture({"pixel_values": pixels}, side * side, (View(colours.seen(pixels[0]), tokens),))


FAMILY = Llava()
