"""An export that would not run says so in a line, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import iwp_export
from iwp_export.bundle.manifest import Bounds
from iwp_export.bundle.store import Bundle
from iwp_export.cli.main import main
from iwp_export.errors import CheckpointError, RequestError
from iwp_export.exporter.checkpoint import open_checkpoint
from iwp_export.exporter.plan import plan_export
from iwp_export.exporter.proof import prove_graphs, prove_processor
from tests.conftest import graphs_of
from tests.exporter.tiny import ASSETS

TEMPLATE = (ASSETS / "chat_template.jinja").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ASSETS, tmp_path / "model"))


def change(file: Path, *path: str, **values: Any) -> None:
    """Set values in a JSON file, below the keys of `path`."""
    data = json.loads(file.read_text()) if file.exists() else {}
    inner = data
    for key in path:
        inner = inner[key]
    inner.update(values)
    file.write_text(json.dumps(data))


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The line with which exporting fails."""
    output = folder.parent / "out.bundle"
    assert main([str(folder), "-o", str(output)]) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1, shown.err
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert "partial" not in shown.err
    return shown.err.removeprefix("iwp-export: error: ").strip()


@pytest.mark.parametrize("name", ["tokenizer.json", "processor_config.json"])
@pytest.mark.parametrize("content", [None, "{", "{}", "[]", '{"a": 1}'])
def test_missing_and_broken_processor_files(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, content: str | None
) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    assert "the bundle would not run" in refused(folder, capsys)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_tokenizer_config(folder: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    (folder / "tokenizer_config.json").write_text(content)
    assert "the bundle would not run" in refused(folder, capsys)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"size": {"height": 100_000, "width": 100_000}}, "100,000"),
        ({"size": {"height": 336, "width": 336}}, "336"),
        ({"image_mean": [0.5]}, "mean"),
        ({"image_std": [0, 0, 0]}, ""),
        ({"image_mean": [float("nan")] * 3}, "not finite"),
        ({"rescale_factor": 0}, "same pixel"),
        ({"resample": 99}, ""),
        ({"do_normalize": "x", "image_std": "y"}, ""),
        ({"image_processor_type": "NoSuchProcessor"}, ""),
        ({"image_processor_type": "BertTokenizer"}, ""),
    ],
)
def test_image_processors_that_fail(
    folder: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], named: str
) -> None:
    change(folder / "processor_config.json", "image_processor", **settings)
    line = refused(folder, capsys)
    assert "the bundle would not run" in line and named in line


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ raise_exception('only system messages') }}", "only system messages"),
        ("{% for", "cannot be read"),
        ("{{ 'a' * 10**13 }}", "256 MiB"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "is not rendered"),
        ("hello", "leaves out what the user says"),
        (TEMPLATE + "{{ raise_exception('no answers') if messages | length > 1 }}", "no answers"),
        (TEMPLATE + "{{ 'how ' * 200 }}", "its max_position_embeddings is 256"),
    ],
)
def test_templates_that_fail(folder: Path, capsys: pytest.CaptureFixture[str], template: str, named: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
    line = refused(folder, capsys)
    assert "the bundle would not run" in line and named in line


@pytest.mark.parametrize(
    ("values", "text", "named"),
    [
        ({"image_token_index": -4}, {}, "image_token_index must be a whole number from 0 to 47, got -4"),
        (
            {"image_token_index": 1_000_000_000},
            {},
            "image_token_index must be a whole number from 0 to 47, got 1000000000",
        ),
        ({"image_token_index": 1e9}, {}, ""),
        (
            {"image_token_index": 7},
            {},
            "image_token_index is 7, which is what in the tokenizer of the checkpoint; <image> has id 4",
        ),
        (
            {},
            {"max_position_embeddings": 0},
            "max_position_embeddings must be a whole number from 1 to 2147483647, got 0",
        ),
        ({}, {"max_position_embeddings": -5}, "got -5"),
        ({}, {"max_position_embeddings": 64}, "reaches position 73, its max_position_embeddings is 64"),
        ({}, {"vocab_size": 10}, ""),
        ({}, {"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}}, "rope_parameters"),
        ({}, {"rope_parameters": {"rope_type": "default", "rope_theta": -10000.0}}, "rope_parameters"),
        ({}, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e-9}}, "rope_parameters"),
        ({}, {"rope_parameters": {"rope_type": "default", "rope_theta": float("nan")}}, "rope_parameters"),
        ({}, {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 0.0}}, "rope"),
        ({}, {"num_hidden_layers": 9}, "layers.8"),
    ],
)
def test_configurations_that_fail(
    folder: Path, capsys: pytest.CaptureFixture[str], values: dict[str, Any], text: dict[str, Any], named: str
) -> None:
    change(folder / "config.json", **values)
    change(folder / "config.json", "text_config", **text)
    assert named in refused(folder, capsys)


@pytest.mark.parametrize("where", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("eos", ["x", [3, "x"], 48, -1, 3.5, True, {"a": 1}])
def test_ends_of_sequence_that_are_no_tokens(
    folder: Path, capsys: pytest.CaptureFixture[str], where: str, eos: object
) -> None:
    if where == "config.json":
        (folder / "generation_config.json").unlink()
        change(folder / where, "text_config", eos_token_id=eos)
    else:
        change(folder / where, eos_token_id=eos)
    line = refused(folder, capsys)
    assert where in line or "text_config" in line, line
    with pytest.raises(CheckpointError):  # a dry run says it too
        plan_export(str(folder))


def test_without_a_template_the_bundle_takes_token_ids(
    random_llava: Path,
    random_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(random_llava, tmp_path / "model"))
    (folder / "chat_template.jinja").unlink()
    change(folder / "generation_config.json", num_beams=4)
    with graphs_of(random_bundle):
        assert main([str(folder), "-o", str(folder.parent / "out.bundle"), "--layer", "1"]) == 0
    warnings = capsys.readouterr().err.splitlines()
    assert warnings == [
        "iwp-export: warning: it has no chat template: the bundle answers token ids alone (Pipeline.generate_ids); "
        "a template in chat_template.jinja that places one <image> an image mends it",
        "iwp-export: warning: generation_config asks for num_beams = 4, which is not applied",
    ]
    pipeline = iwp_export.load(str(folder.parent / "out.bundle"))
    with pytest.raises(RequestError, match=r"no chat template\. Make token ids and use generate_ids"):
        pipeline(None, "what ?")
    result = pipeline.generate_ids([2, 9, 7], max_new_tokens=2)
    assert result.token_ids
    assert result.note == "generation_config asks for num_beams = 4, which is not applied"
    assert pipeline.generate_ids([2, 9, 7], max_new_tokens=2).note == result.note


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 7},
        {"layers": 9},
        {"kv_heads": 3},
        {"head_dim": 16},
        {"vocab_size": 49},
    ],
)
def test_graphs_that_are_not_the_models(tiny_bundle: Path, change: dict[str, Any]) -> None:
    manifest, checkpoint = Bundle.open(tiny_bundle).manifest, open_checkpoint("tiny-llava")
    decoder, vision = manifest.decoder, manifest.vision
    picture, _ = prove_processor(tiny_bundle / "processor", decoder, vision, checkpoint.family)
    prove_graphs(manifest, picture)
    other = replace(decoder, **change)
    with pytest.raises(CheckpointError, match="would not run"):
        prove_graphs(replace(manifest, decoder=other), picture)


def test_pictures_that_are_not_the_vision_graphs(tiny_bundle: Path) -> None:
    manifest, family = Bundle.open(tiny_bundle).manifest, open_checkpoint("tiny-llava").family
    picture, _ = prove_processor(tiny_bundle / "processor", manifest.decoder, manifest.vision, family)
    for inputs in ({}, {"pixels": picture.inputs["pixel_values"]}, {"pixel_values": np.zeros((1, 3, 336, 336))}):
        with pytest.raises(CheckpointError, match="its vision graph takes"):
            prove_graphs(manifest, replace(picture, inputs=inputs))
    with pytest.raises(CheckpointError, match="64 visual tokens of an image, its model 16"):
        vision = replace(manifest.vision, tokens=Bounds.fixed(16))
        prove_processor(tiny_bundle / "processor", manifest.decoder, vision, family)
