"""What LLaVA's file says about the family is what transformers' model does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from iwp_export.bundle.manifest import Bounds
from iwp_export.errors import CheckpointError
from iwp_export.models import SUPPORTED, find_family
from iwp_export.models.llava import FAMILY
from tests.exporter.tiny import write_llava


def test_registry_is_the_file_name() -> None:
    assert {"llava", "llava_next"} <= set(SUPPORTED)
    for model_type in SUPPORTED:
        assert type(find_family(model_type)).__module__ == f"iwp_export.models.{model_type}"
    with pytest.raises(CheckpointError, match="paligemma"):
        find_family("paligemma")
    with pytest.raises(CheckpointError, match="'common'"):
        find_family("common")


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
        ours = FAMILY.vision_graph(model).module(pixels)
    assert torch.equal(ours, torch.cat(list(theirs)))


def test_grid_and_refusals(tmp_path: Path) -> None:
    config = write_llava(tmp_path / "model").config
    info = FAMILY.vision_info(config)
    assert (info.tokens, info.image_token_id, info.geometry) == (Bounds.fixed(64), 4, {"pixels": 112, "side": 8})
    config.vision_feature_select_strategy = "full"
    with pytest.raises(CheckpointError, match="'full'"):
        FAMILY.vision_info(config)
