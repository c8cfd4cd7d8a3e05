"""generation_config: obeyed as transformers' `generate` does, or named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import iwp_export
from iwp_export.bundle.manifest import GenerationInfo
from iwp_export.bundle.schema import Flaw, from_json
from iwp_export.bundle.store import Bundle
from iwp_export.cli.main import main
from iwp_export.errors import CheckpointError
from iwp_export.exporter.checkpoint import open_checkpoint
from iwp_export.exporter.exporter import export_bundle
from iwp_export.exporter.plan import HARMLESS, NEUTRAL, plan_export, read_generation
from iwp_export.pruning.settings import PruningSettings
from tests.conftest import export, graphs_of
from tests.exporter.tiny import ASSETS, write_llava, write_llava_next


def read(folder: Path, **values: Any) -> GenerationInfo:
    """What is read of tiny-llava with this generation_config."""
    target = folder / "model"
    shutil.copytree(ASSETS, target, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    (target / "generation_config.json").write_text(json.dumps({"eos_token_id": 3, **values}))
    return read_generation(open_checkpoint(str(target), weights=False), 48)[1]


def test_what_is_obeyed(tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "repetition_penalty": 1.1,
        "suppress_tokens": [5],
        "begin_suppress_tokens": [6, 7],
        "min_new_tokens": 2,
    }
    drawing = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.8, "min_p": 0.05}
    lists = {"suppress_tokens": (5,), "begin_suppress_tokens": (6, 7)}
    assert read(tmp_path, **asked, **drawing) == GenerationInfo(**{**asked, **drawing, **lists})
    assert read(tmp_path, min_length=9).min_length == 9
    assert read(tmp_path, min_length=9, min_new_tokens=2).min_length == 0
    assert read(tmp_path, top_k=0, do_sample=True).top_k is None


@pytest.mark.parametrize(
    ("values", "ignored"),
    [
        ({"num_beams": 4, "early_stopping": True, "length_penalty": 2.0}, ["num_beams = 4"]),
        ({"no_repeat_ngram_size": 3}, ["no_repeat_ngram_size = 3"]),
        ({"bad_words_ids": [[5], [6, 7]]}, ["bad_words_ids = [[5], [6, 7]]"]),
        ({"forced_eos_token_id": 3}, ["forced_eos_token_id = 3"]),
        ({"encoder_repetition_penalty": 1.2}, ["encoder_repetition_penalty = 1.2"]),
        ({"encoder_no_repeat_ngram_size": 2}, ["encoder_no_repeat_ngram_size = 2"]),
        ({"exponential_decay_length_penalty": [3, 1.1]}, ["exponential_decay_length_penalty = [3, 1.1]"]),
        ({"guidance_scale": 1.5}, ["guidance_scale = 1.5"]),
        ({"sequence_bias": [[[5], 2.0]]}, ["sequence_bias = [[[5], 2.0]]"]),
        ({"stop_strings": ["stop"]}, ["stop_strings = ['stop']"]),
        ({"typical_p": 0.9, "do_sample": True}, ["typical_p = 0.9"]),
        ({"penalty_alpha": 0.6, "top_k": 4}, ["penalty_alpha = 0.6"]),
        ({"dola_layers": "high", "top_h": 0.3}, ["dola_layers = high", "top_h = 0.3"]),
        ({"bad_words_ids": [[n] for n in range(40)]}, ["bad_words_ids = [[0], [1], [2], [3], [4], [5], [6], [..."]),
        ({name: values[0] for name, values in NEUTRAL.items()}, []),
        ({"max_new_tokens": 4, "max_length": 20, "use_cache": False, "num_return_sequences": 1}, []),
        ({"remove_invalid_values": True, "renormalize_logits": True, "forced_bos_token_id": 5}, []),
        ({"chat_format": "chatml", "max_window_size": 7}, []),  # transformers reads neither
    ],
)
def test_what_is_named(tmp_path: Path, values: dict[str, Any], ignored: list[str]) -> None:
    assert list(read(tmp_path, **values).ignored) == ignored


def test_every_setting_of_transformers_has_its_place() -> None:
    """A new one is named until somebody decides; an old one that is gone is taken off the lists."""
    from transformers import GenerationConfig

    known = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert known >= HARMLESS | set(NEUTRAL)


@pytest.mark.parametrize(
    "values",
    [
        {"repetition_penalty": 0.0},
        {"repetition_penalty": "x"},
        {"suppress_tokens": ["x"]},
        {"suppress_tokens": 5},
        {"min_new_tokens": -1},
        {"top_p": 7.0, "do_sample": True},
        {"bos_token_id": "x"},
        {"pad_token_id": [1]},
    ],
)
def test_settings_of_the_wrong_kind(tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"generation_config\.json is not valid") as caught:
        read(tmp_path, **values)
    assert "\n" not in str(caught.value)


def test_without_the_file_the_configuration_counts(tmp_path: Path) -> None:
    from transformers import GenerationConfig

    read(tmp_path)
    (tmp_path / "model" / "generation_config.json").unlink()
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["eos_token_id"] = [3, 5]
    file.write_text(json.dumps({**config, "repetition_penalty": 1.5}))
    checkpoint = open_checkpoint(str(file.parent), weights=False)
    tokens, info = read_generation(checkpoint, 48)
    assert tokens == {"bos_token_id": 2, "eos_token_ids": (3, 5), "pad_token_id": 0}
    theirs = GenerationConfig.from_model_config(checkpoint.config)
    assert info.repetition_penalty == (theirs.repetition_penalty or 1.0)


ASKED: list[dict[str, Any]] = [
    {"repetition_penalty": 1.4},
    {"suppress_tokens": [5, 9, 20], "begin_suppress_tokens": [30, 31]},
    {"min_new_tokens": 6, "eos_token_id": list(range(5, 48, 2))},
    {"min_length": 72, "eos_token_id": list(range(5, 48, 2))},
    {"repetition_penalty": 0.8, "suppress_tokens": [12], "min_new_tokens": 3, "eos_token_id": list(range(5, 40))},
]


def test_greedy_tokens_equal_generate(random_llava: Path, random_bundle: Path, tmp_path: Path) -> None:
    """Of a tiny random model, for each generation_config; one image, nothing pruned."""
    import torch

    shutil.copytree(random_llava, tmp_path / "model")
    model = open_checkpoint(str(random_llava)).load_model()
    ids = np.array([2, 5, *[4] * 64, 9, 7, 12])
    pixels = np.random.default_rng(3).standard_normal((1, 3, 112, 112)).astype(np.float32)
    inputs = {"input_ids": torch.from_numpy(ids)[None], "pixel_values": torch.from_numpy(pixels)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    pipeline = iwp_export.load(str(random_bundle), threads=1)
    picture = pipeline.processor.picture({"pixel_values": pixels})
    different = set()
    for asked in ASKED:
        config = {"eos_token_id": 3, "pad_token_id": 0, **asked}
        (tmp_path / "model" / "generation_config.json").write_text(json.dumps(config))
        tokens, info = read_generation(open_checkpoint(str(tmp_path / "model")), 48)
        object.__setattr__(pipeline.manifest, "generation", info)
        object.__setattr__(pipeline.manifest.decoder, "eos_token_ids", tokens["eos_token_ids"])
        theirs = model.generate(**inputs, max_new_tokens=12, do_sample=False, **config)[0, len(ids) :].tolist()
        ours = pipeline.generate_ids(ids, [picture], keep=1, max_new_tokens=12)
        assert ours.token_ids == theirs, asked
        different.add(tuple(theirs))
    assert len(different) == len(ASKED)


def test_a_bundle_keeps_and_shows_it(
    random_llava: Path,
    random_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And the templates beside the default one, which lie in a folder of their own."""
    folder = Path(shutil.copytree(random_llava, tmp_path / "model"))
    asked = {"repetition_penalty": 1.1, "suppress_tokens": [5], "do_sample": True, "temperature": 0.6, "num_beams": 2}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 3, **asked}))
    named = folder / "additional_chat_templates"
    named.mkdir()
    (folder / "chat_template.jinja").rename(named / "default.jinja")
    (named / "tool_use.jinja").write_text("{{ 1 }}")
    with graphs_of(random_bundle):
        bundle = export_bundle(plan_export(str(folder), PruningSettings(layer=1)), tmp_path / "out.bundle")
    files = [name for name in Bundle.open(bundle).manifest.files if "template" in name]
    assert sorted(files) == [f"processor/additional_chat_templates/{name}.jinja" for name in ("default", "tool_use")]
    expected = GenerationInfo(1.1, (5,), do_sample=True, temperature=0.6, ignored=("num_beams = 2",))
    manifest = Bundle.open(bundle).manifest
    assert manifest.generation == expected
    capsys.readouterr()
    assert main(["inspect", str(bundle)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("generation"))
    assert "repetition_penalty 1.1, suppress_tokens (5,); when drawing: temperature 0.6; " in line
    assert line.endswith("generation_config asks for num_beams = 2, which is not applied")
    assert main(["run", str(bundle), "--prompt", "how many ?"]) == 0
    assert "num_beams = 2, which is not applied" in capsys.readouterr().err
    content = manifest.to_dict()
    generation = {**content["generation"], "repetition_penalty": 0}
    with pytest.raises(Flaw, match=r"repetition_penalty is 0\.0, must be a number above 0"):
        from_json(GenerationInfo, generation, "")


def assert_as_large_as_planned(checkpoint: Path | str, bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    plan = plan_export(str(checkpoint), PruningSettings(layer=1), dtype=manifest.decoder.dtype)  # type: ignore[arg-type]
    graphs = [ir.load(bundle / graph.file).graph for graph in manifest.graphs.values()]  # small tensors lie inside
    tensors = [value.const_value for graph in graphs for value in graph.initializers.values()]
    written = sum(tensor.nbytes for tensor in tensors if tensor is not None)
    assert plan.weight_bytes == pytest.approx(written, rel=0.01)


@pytest.mark.parametrize(
    ("checkpoint", "bundle"),
    [("tiny-llava", "tiny_bundle"), ("tiny-llava", "half_bundle"), ("random_next", "random_next_bundle")],
)
def test_a_dry_run_counts_the_bytes_of_the_bundle(checkpoint: str, bundle: str, request: pytest.FixtureRequest) -> None:
    """Towers are read before their last layers, which no bundle holds."""
    folder = checkpoint if checkpoint == "tiny-llava" else request.getfixturevalue(checkpoint)
    assert_as_large_as_planned(folder, request.getfixturevalue(bundle))


WORDS = 1024
"""Of the vocabulary: the optimiser turns smaller embeddings, and stores them again."""


@pytest.mark.parametrize(
    ("family", "decoder", "dtype", "stored"),
    [
        ("llava", "qwen2", "float32", "once"),
        ("llava", "qwen2", "bfloat16", "same"),
        pytest.param("llava", "llama", "bfloat16", "differing", marks=pytest.mark.slow),
        pytest.param("llava_next", "qwen2", "float32", "once", marks=pytest.mark.slow),
        ("llava_next", "qwen2", "float16", "differing"),
    ],
)
def test_a_tied_embedding_is_written_once(tmp_path: Path, family: str, decoder: str, dtype: str, stored: str) -> None:
    """Tied by the configuration; where the checkpoint holds other values for the head, transformers does not tie it."""
    write = write_llava if family == "llava" else write_llava_next
    model = write(tmp_path / "model", decoder, vocab_size=WORDS, tie_word_embeddings=True)
    if stored != "once":
        from safetensors.torch import load_file, save_file

        weights = load_file(tmp_path / "model" / "model.safetensors")
        head = model.state_dict()["model.language_model.embed_tokens.weight"].clone()
        weights["language_model.lm_head.weight"] = head + (stored == "differing")
        save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    export(tmp_path / "model", tmp_path / "out.bundle", dtype, layer=1)
    graph = onnx.load(str(tmp_path / "out.bundle" / "decoder.onnx"), load_external_data=False).graph
    words = [tensor.name for tensor in graph.initializer if WORDS in tensor.dims]
    assert len(words) == 1 + (stored == "differing")
    assert_as_large_as_planned(tmp_path / "model", tmp_path / "out.bundle")
