"""The rows of the schema: what they let through is what real checkpoints have, and a family adds rows as plain data."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from iwp_export.errors import CheckpointError
from iwp_export.exporter.config_schema import DECODER, KINDS, Row, check_rows
from iwp_export.models import SUPPORTED, find_family

PATH = Path("config.json")


def refusal(config: Any, rows: dict[str, tuple[Any, ...]]) -> str:
    with pytest.raises(CheckpointError) as caught:
        check_rows(config, PATH, rows)
    return str(caught.value)


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_every_row_is_a_row(model_type: str) -> None:
    rows = {**DECODER, **find_family(model_type).config_rows}
    assert len(rows) > len(DECODER)
    assert {Row(*fields).kind for fields in rows.values()} <= KINDS.keys()


@pytest.mark.parametrize(
    ("text", "top"),
    [
        ({"model_type": "llama"}, {}),
        ({"model_type": "llama", "vocab_size": 32064, "pad_token_id": 32001}, {"image_token_index": 32000}),
        ({"model_type": "llama", "pad_token_id": -1, "eos_token_id": [2, 7]}, {"vision_feature_layer": [-2, -5, 3]}),
        ({"model_type": "mistral", "num_key_value_heads": 8, "head_dim": 160, "rope_theta": 1e6}, {}),
        ({"model_type": "qwen2", "num_attention_heads": 28, "num_key_value_heads": 4, "hidden_size": 3584}, {}),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, {"dtype": "bfloat16"}),
        (
            {
                "model_type": "llama",
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 500000.0,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            {"torch_dtype": "float16"},
        ),
        (
            {
                "model_type": "qwen2",
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "rope_theta": 1e6,
                    "original_max_position_embeddings": 32768,
                },
            },
            {},
        ),
    ],
)
def test_what_published_checkpoints_have_is_let_through(text: dict[str, Any], top: dict[str, Any]) -> None:
    from transformers import LlavaConfig

    sizes = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 32, **text}
    config = LlavaConfig(text_config={"vocab_size": 32064, **sizes}, **top)
    check_rows(config, PATH, {**DECODER, **find_family("llava").config_rows})


def test_bounds_and_words() -> None:
    config = SimpleNamespace(heads=6, text=SimpleNamespace(size=96, rate=0.5, layers=[1, 2]), none=None, on=True)
    limit = ("int", 1, lambda c: c.text.size // 2)
    check_rows(config, PATH, {"heads": limit, "text.size": ("int", 1, 96, "heads"), "absent.name": ("int",)})
    assert refusal(config, {"text.size": limit}) == "config.json: text.size must be a whole number from 1 to 48, got 96"
    assert "from 1 to 6, got 96" in refusal(config, {"text.size": ("int", 1, "heads")})
    assert "from 1 to 7 and a multiple of 96 (size), got 6" in refusal(config, {"heads": ("int", 1, 7, "text.size")})
    assert "from 1 to 100 and a multiple of 7, got 96" in refusal(config, {"text.size": ("int", 1, 100, 7)})
    assert "a number above 0.5 and at most 1, got 0.5" in refusal(config, {"text.rate": ("number", 0.5, 1)})
    assert "must be a whole number or a list of some from 0 to 1, got [1, 2]" in refusal(
        config, {"text.layers": ("ints", 0, 1)}
    )
    assert "must be a whole number, got True" in refusal(config, {"on": ("int", 0, 1)})
    assert "must be a number, got None" in refusal(config, {"none": ("number", 0, 1)})
    check_rows(config, PATH, {"none": ("number", 0, 1, 0, True)})


def test_a_long_value_is_cut() -> None:
    assert len(refusal(SimpleNamespace(act="x" * 10_000), {"act": ("activation",)})) < 400
