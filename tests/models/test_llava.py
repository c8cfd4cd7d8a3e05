"""What LLaVA's file says about the family is what transformers' model does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from iwp_export.errors import CheckpointError
from iwp_export.models import SUPPORTED, family
from iwp_export.models.llava import image_features, vision_info
from tests.export.tiny import write_llava


def test_registry_is_the_file_name() -> None:
    for model_type in SUPPORTED:
        assert family(model_type).__name__ == f"iwp_export.models.{model_type}"  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="paligemma"):
        family("paligemma")


@pytest.mark.parametrize("layers", [-2, [-1, -3]])
def test_features_are_transformers_own(tmp_path: Path, layers: int | list[int]) -> None:
    model = write_llava(tmp_path / "model")
    if isinstance(layers, list):
        size = 32 * len(layers)
        model.model.multi_modal_projector.linear_1 = torch.nn.Linear(size, 64)
    model.config.vision_feature_layer = layers
    pixels = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        theirs = model.model.get_image_features(pixels, vision_feature_layer=layers).pooler_output
        ours = image_features(model, pixels)
    assert torch.equal(ours, torch.stack(list(theirs)))


def test_grid_and_refusals(tmp_path: Path) -> None:
    config = write_llava(tmp_path / "model").config
    info = vision_info(config)
    assert (info.grid, info.tokens_per_image, info.image_token_id) == ((8, 8), 64, 4)
    config.vision_feature_select_strategy = "full"
    with pytest.raises(CheckpointError, match="'full'"):
        vision_info(config)
