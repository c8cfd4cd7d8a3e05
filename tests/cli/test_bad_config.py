"""A config.json that is wrong by shape, type or range: one line that names the value, and nothing written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.refusals import TINY, checkpoint, fails, refused

HUGE = 10**30
WRONG_VALUES: dict[str, list[Any]] = {
    "text_config.num_key_value_heads": [0, -1, 3, 1.5, "2", True, HUGE],
    "text_config.num_attention_heads": [0, -4, None, HUGE],
    "text_config.hidden_size": [0, -128, 127.0, "128", None, HUGE],
    "text_config.head_dim": [0, 33, -2, "32", HUGE],
    "text_config.intermediate_size": [0, None, HUGE],
    "text_config.num_hidden_layers": [0, -8, 8.0, None, 10**9, HUGE],
    "text_config.vocab_size": [0, -1, None, HUGE],
    "text_config.max_position_embeddings": [0, -1, None, HUGE],
    "text_config.hidden_act": ["swish_of_mine", "", None, 3, ["silu"]],
    "text_config.rms_norm_eps": [0.0, -1.0, "small", None, float("nan")],
    "text_config.eos_token_id": ["x", [], ["x"], 1.5, -4, HUGE],
    "text_config.bos_token_id": ["x", [2], HUGE],
    "text_config.pad_token_id": ["x", 48, -2, HUGE],
    "text_config.rope_parameters.rope_theta": [0, -1.0, "x", None, float("inf"), float("nan")],
    "image_token_index": [-4, 48, 10**9, HUGE, None, "4", 4.0],
    "projector_hidden_act": ["swish_of_mine", None],
    "vision_feature_layer": [99, 5, -6, [], [-1, 99], "last", None, 1.5],
    "vision_config.patch_size": [0, -14, 113, 14.5, None, "14", HUGE],
    "vision_config.image_size": [0, -112, None, 10**9, HUGE],
    "vision_config.num_hidden_layers": [0, -1, 10**9, None],
    "vision_config.num_attention_heads": [0, -4, None],
    "vision_config.hidden_size": [0, None, "x"],
    "vision_config.num_channels": [0, 1, 4],
    "vision_config.hidden_act": ["swish_of_mine", None],
    "dtype": ["load", "int8", "float8_e4m3fn", "x", 16],
    "architectures": ["LlavaForConditionalGeneration", [], 7, [None]],
    "num_labels": [10**9, HUGE, "x"],
    "tie_word_embeddings": ["yes", 1],
    "text_config": [3, [], "llama"],
    "vision_config": [3, [], "clip"],
}
"""Values of config.json that are wrong by type, or by range, each for a name."""


def with_value(tmp_path: Path, name: str, value: Any) -> Path:
    """tiny-llava's folder with one other value in its configuration."""
    config = json.loads((TINY / "config.json").read_text())
    *path, key = name.split(".")
    part = config
    for each in path:
        part = part[each]
    part[key] = value
    return checkpoint(tmp_path, weights=False, **config)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in WRONG_VALUES for value in WRONG_VALUES[name]])
def test_values_of_the_configuration(capsys, tmp_path, name, value):
    line = refused(capsys, tmp_path, with_value(tmp_path, name, value))
    assert "config.json" in line and name.split(".")[-1] in line and len(line) < 600


@pytest.mark.parametrize(
    "value", [[], [[112]], [[0, 112]], [[112, -112]], [[112, 112.0]], [["112", 112]], "112", 7, [[10**9, 112]]]
)
def test_tiles_of_llava_next(capsys, tmp_path, value):
    folder = checkpoint(tmp_path, weights=False, model_type="llava_next", image_grid_pinpoints=value)
    assert "image_grid_pinpoints" in refused(capsys, tmp_path, folder)


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_heads_that_do_not_divide_the_hidden_size(capsys, tmp_path, part):
    line = refused(capsys, tmp_path, with_value(tmp_path, f"{part}.num_attention_heads", 3))
    assert "config.json" in line and "heads (3)" in line


def test_values_that_older_files_have_elsewhere(capsys, tmp_path):
    config = json.loads((TINY / "config.json").read_text())
    del config["text_config"]["rope_parameters"]
    config["text_config"]["rope_theta"] = 0
    assert "rope_theta must be" in refused(capsys, tmp_path, checkpoint(tmp_path, weights=False, **config), "--dry-run")


@pytest.mark.parametrize("part", [None, "text_config", "vision_config"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ("per_layer_config", {"0": {"num_key_value_heads": 1}}),
        ("auto_map", {"AutoConfig": "evil.Config"}),
    ],
)
def test_keys_that_change_what_the_weights_mean(capsys, tmp_path, part, key, value):
    folder = with_value(tmp_path, f"{part}.{key}" if part else key, value)
    line = refused(capsys, tmp_path, folder)
    assert ("trust_remote_code" if key == "auto_map" else key) in line


@pytest.mark.parametrize(
    "content", ["{", "[]", "3", '"model_type"', "null", "{}", '{"model_type": []}', "[" * 100_000, "\udcff", ""]
)
def test_configuration_that_is_none(capsys, tmp_path, content):
    folder = checkpoint(tmp_path, weights=False)
    (folder / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    assert fails(capsys, folder)


def test_damaged_configuration(capsys, tmp_path):
    folder = checkpoint(tmp_path)
    (folder / "config.json").write_text("{")
    assert "config.json" in fails(capsys, folder, "--dry-run")
