"""Every parameter gets the tensor that from_pretrained loads into it, under whatever name it was stored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import iwp_export
from iwp_export import api
from iwp_export.errors import CheckpointError
from iwp_export.exporter.checkpoint import open_checkpoint
from iwp_export.exporter.loading import empty_model, loaded_tensors
from iwp_export.pruning.settings import PruningSettings
from tests.exporter.tiny import write_llava
from tests.runtime.toy import toy_picture

HEAD, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"


def of_transformers_5(name: str) -> str:
    return name


def as_saved(name: str) -> str:
    """The names that save_pretrained writes."""
    for new, old in (
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.image_newline", "image_newline"),
        ("lm_head.", "language_model.lm_head."),
    ):
        name = name.replace(new, old)
    return name


def before_5(name: str) -> str:
    """The names of checkpoints such as llava-hf/llava-1.5-7b-hf."""
    return as_saved(name).replace("vision_tower.", "vision_tower.vision_model.")


def of_the_base_model(name: str) -> str:
    """What LlavaModel, without a head, would save."""
    return name.removeprefix("model.")


def mixed(name: str) -> str:
    return before_5(name) if "vision" in name else of_transformers_5(name)


LAYOUTS = (of_transformers_5, as_saved, before_5, of_the_base_model, mixed)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models of both families, saved under the names of their parameters."""
    base = tmp_path_factory.mktemp("loading")
    for family, write in {"llava": write_llava, "llava_next": write_llava_next}.items():
        model = write(base / family)
        parameters = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        save_file(parameters, base / family / "model.safetensors", metadata={"format": "pt"})
    return base


def write_llava_next(folder: Path) -> Any:
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

    model = write_llava(folder)
    config = {**model.config.to_dict(), "image_grid_pinpoints": [[112, 224]], "model_type": "llava_next"}
    config["architectures"] = ["LlavaNextForConditionalGeneration"]
    torch.manual_seed(0)
    model = LlavaNextForConditionalGeneration(LlavaNextConfig(**config))
    model.save_pretrained(folder)
    return model


def rewrite(source: Path, target: Path, change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> Path:
    """A copy of a checkpoint with other weights."""
    shutil.copytree(source, target)
    weights = change(load_file(source / "model.safetensors"))
    save_file(dict(weights), target / "model.safetensors", metadata={"format": "pt"})
    return target


def change_config(folder: Path, text: Mapping[str, object] | None = None, **values: object) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **values}
    config["text_config"] = {**config["text_config"], **(text or {})}
    path.write_text(json.dumps(config))


def ours(folder: Path) -> dict[str, np.ndarray]:
    """The values that an export gives each parameter."""
    checkpoint = open_checkpoint(str(folder))
    with empty_model(checkpoint.config, folder) as model:
        return {name: tensor.read() for name, tensor in loaded_tensors(model, checkpoint.weights()).items()}


def theirs(folder: Path) -> dict[str, np.ndarray]:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def assert_same(folder: Path) -> dict[str, np.ndarray]:
    mine, its = ours(folder), theirs(folder)
    assert mine.keys() == its.keys()
    assert [name for name in mine if not np.array_equal(mine[name], its[name])] == []
    return mine


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_names_are_transformers_own_whichever_way_they_were_published(
    written: Path, tmp_path: Path, family: str, layout: Callable[[str], str]
) -> None:
    def rename(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {layout(name): tensor for name, tensor in weights.items()}

    assert_same(rewrite(written / family, tmp_path / "renamed", rename))


def test_tensors_without_a_place_in_the_model_are_left_out(written: Path, tmp_path: Path) -> None:
    """As old CLIP towers' position ids: transformers names such tensors in a report and goes on."""
    extra = {"vision_tower.vision_model.embeddings.position_ids": torch.arange(65), "mask": torch.zeros(2).bool()}
    folder = rewrite(written / "llava", tmp_path / "extra", lambda weights: {**weights, **extra})
    assert not any("position_ids" in name for name in assert_same(folder))


@pytest.mark.parametrize("stored", ["both", "same", "head", "embedding"])
@pytest.mark.parametrize("tied", ["top", "text", "both"])
def test_tied_weights_are_those_that_transformers_ties(written: Path, tmp_path: Path, tied: str, stored: str) -> None:
    """Tied by either configuration; the checkpoint holds different values for both, the same, or only one."""

    def change(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        if stored == "same":
            weights[HEAD] = weights[EMBEDDING].clone()
        elif stored != "both":
            del weights[EMBEDDING if stored == "head" else HEAD]
        return weights

    folder = rewrite(written / "llava", tmp_path / "tied", change)
    change_config(folder, {"tie_word_embeddings": tied != "top"}, tie_word_embeddings=tied != "text")
    loaded = assert_same(folder)
    assert np.array_equal(loaded[HEAD], loaded[EMBEDDING]) == (stored != "both")


def test_a_head_that_is_not_tied_must_be_stored(written: Path, tmp_path: Path) -> None:
    """transformers would make up random values, and say so in its report."""
    folder = rewrite(written / "llava", tmp_path / "headless", lambda w: {name: w[name] for name in w if name != HEAD})
    with pytest.raises(CheckpointError, match=r"lacks lm_head\.weight"):
        api.export(str(folder), tmp_path / "out.bundle", PruningSettings(layer=1))
    assert HEAD not in ours(folder)
    assert not (tmp_path / "out.bundle").exists()


@pytest.mark.slow
def test_a_bundle_of_weights_that_transformers_does_not_tie_gives_its_logits(written: Path, tmp_path: Path) -> None:
    """The configuration ties, and the checkpoint holds different values for both."""
    from transformers import AutoModelForImageTextToText

    folder = rewrite(written / "llava", tmp_path / "tied", lambda weights: weights)
    change_config(folder, {"tie_word_embeddings": True})
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    pipeline = iwp_export.load(str(api.export(str(folder), tmp_path / "out.bundle", PruningSettings(layer=1))))
    pixels = np.random.default_rng(0).standard_normal((1, 3, 112, 112)).astype(np.float32)
    ids = np.array([2, 5, *[4] * 64, 9, 7, 12])
    options: dict[str, Any] = {"keep": 1.0, "max_new_tokens": 1, "stop_at_eos": False, "return_logits": True}
    result = pipeline.generate_ids(ids, [toy_picture(pixels[0])], **options)
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(ids)[None], pixel_values=torch.from_numpy(pixels)).logits[0, -1]
    np.testing.assert_allclose(np.array(result.logits)[0], logits.numpy(), atol=2e-4)


def test_two_tensors_for_one_parameter_are_refused(written: Path, tmp_path: Path) -> None:
    """transformers would take one of them without a word. Of two that are the same it does not matter which."""
    old = as_saved(EMBEDDING)
    twice = rewrite(written / "llava", tmp_path / "twice", lambda w: {**w, old: w[EMBEDDING].clone()})
    assert_same(twice)
    differing = rewrite(written / "llava", tmp_path / "differing", lambda w: {**w, old: w[EMBEDDING] + 1})
    with pytest.raises(CheckpointError) as caught:
        ours(differing)
    assert old in str(caught.value) and EMBEDDING in str(caught.value)


def test_a_conversion_that_is_more_than_a_renaming_is_refused(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers has for families whose experts, or whose queries, keys and values, are stored as one tensor."""
    from transformers import conversion_mapping
    from transformers.core_model_loading import Chunk, WeightConverter

    known = conversion_mapping.get_model_conversion_mapping

    def with_a_split(model: Any) -> list[Any]:
        targets = ["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"]
        return [*known(model), WeightConverter(["self_attn.qkv.weight"], targets, [Chunk(dim=0)])]

    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", with_a_split)
    assert_same(written / "llava")
    name = "model.language_model.layers.0.self_attn.qkv.weight"
    folder = rewrite(written / "llava", tmp_path / "fused", lambda w: {**w, name: torch.zeros(128, 64)})
    with pytest.raises(CheckpointError, match=r"self_attn\.qkv\.weight"):
        ours(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_weights_that_are_no_plain_numbers_are_refused(written: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    folder = rewrite(written / "llava", tmp_path / "packed", lambda w: {**w, name: w[name].to(dtype)})
    with pytest.raises(CheckpointError, match=r"up_proj\.weight is stored as (I8|F8_E4M3)"):
        api.export(str(folder), tmp_path / "out.bundle", PruningSettings(layer=1))
    assert not (tmp_path / "out.bundle").exists()
