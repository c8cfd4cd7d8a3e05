"""Weights that are missing, ambiguous, damaged or beyond what an export can hold: one line, and nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import pytest
from safetensors.numpy import load_file, save_file

from tests.cli.refusals import TINY, checkpoint, fails, refused


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_missing_shard(capsys, tmp_path):
    folder = checkpoint(tmp_path, weights=False)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors" in fails(capsys, folder, "--dry-run")


def test_truncated_weights(capsys, tmp_path):
    folder = checkpoint(tmp_path)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert "model.safetensors" in fails(capsys, folder, "--dry-run")


def test_two_sets_of_weights(capsys, tmp_path, dry):
    folder = checkpoint(tmp_path)
    shutil.copyfile(folder / "model.safetensors", folder / "model-00001-of-00001.safetensors")
    index = {
        "metadata": {},
        "weight_map": dict.fromkeys(load_file(TINY / "model.safetensors"), "model-00001-of-00001.safetensors"),
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    line = refused(capsys, tmp_path, folder, *dry)
    assert "model.safetensors " in line and "model.safetensors.index.json" in line


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_adapter_beside_the_weights(capsys, tmp_path, name, dry):
    folder = checkpoint(tmp_path)
    (folder / name).write_text("{}")
    assert name in refused(capsys, tmp_path, folder, *dry)


def test_weights_under_another_name(capsys, tmp_path, dry):
    folder = checkpoint(tmp_path)
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    line = refused(capsys, tmp_path, folder, *dry)
    assert "consolidated.safetensors" in line and "model.safetensors" in line


@pytest.mark.parametrize("name", ["../model.safetensors", "/tmp/model.safetensors"])
def test_index_that_leads_out_of_the_folder(capsys, tmp_path, name, dry):
    folder = checkpoint(tmp_path)
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    assert name in refused(capsys, tmp_path, folder, *dry)


@pytest.mark.parametrize("weight_map", [[], {}, {"a": 1}, {"a": None}, "model.safetensors", None])
def test_index_of_the_wrong_shape(capsys, tmp_path, weight_map, dry):
    folder = checkpoint(tmp_path, weights=False)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "model.safetensors.index.json is damaged" in refused(capsys, tmp_path, folder, *dry)


def overlap(header):
    header["lm_head.weight"]["data_offsets"][0] -= 2
    header["lm_head.weight"]["data_offsets"][1] -= 2


def shorten(header):
    header["lm_head.weight"]["data_offsets"][1] -= 2


def negate(header):
    header["lm_head.weight"]["data_offsets"] = [-2, 0]


def reverse(header):
    header["lm_head.weight"]["data_offsets"].reverse()


def alias(header):
    one, other = (
        name
        for name in header
        if name.endswith("layers.0.input_layernorm.weight") or name.endswith("layers.1.input_layernorm.weight")
    )
    header[one]["data_offsets"] = header[other]["data_offsets"]


def drop(header):
    del header["lm_head.weight"]


def widen(header):
    header["lm_head.weight"]["dtype"] = "F32"


def misspell(header):
    header["lm_head.weight"]["dtype"] = "F15"


def enlarge(header):
    header["lm_head.weight"]["shape"][0] += 1


@pytest.mark.parametrize("damage", [overlap, shorten, negate, reverse, alias, drop, widen, misspell, enlarge])
def test_damaged_header_of_weights(capsys, tmp_path, damage, dry):
    folder = checkpoint(tmp_path)
    file = folder / "model.safetensors"
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["lm_head.weight"] = header.pop(next(name for name in header if name.endswith("lm_head.weight")))
    damage(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
    assert "model.safetensors is not a readable safetensors file" in refused(capsys, tmp_path, folder, *dry)


def with_weights(folder: Path, dtype: Any, **changes: Any) -> Path:
    """The checkpoint with weights of another element type, in which some values are others."""
    weights = {name: tensor.astype(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    for end, value in changes.items():
        name = next(name for name in weights if name.endswith(end.replace("__", ".")))
        weights[name].flat[3:5] = value
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("vision_tower__encoder__layers__0__mlp__fc1__weight", "vision_tower__encoder__layers__1__mlp__fc1__weight"),
        pytest.param("layers__0__mlp__up_proj__weight", "lm_head__weight", marks=pytest.mark.slow),
    ],
)
def test_weights_that_overflow_float16(capsys, tmp_path, one, other):
    changes = {one: 1e5, other: -3e38, "norm__weight": 1e-30}
    folder = with_weights(checkpoint(tmp_path, dtype="bfloat16"), ml_dtypes.bfloat16, **changes)
    line = refused(capsys, tmp_path, folder)
    assert line.startswith("4 weights do not fit float16, the largest is 3.004e+38: ")
    assert all(f"{name.replace('__', '.')} (2)" in line for name in (one, other))
    assert "norm" not in line and "bfloat16 or float32 (--dtype)" in line


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("vision_tower__encoder__layers__0__mlp__fc1__bias", float("inf")),
        pytest.param("lm_head__weight", float("nan"), marks=pytest.mark.slow),
    ],
)
def test_weights_that_are_not_finite(capsys, tmp_path, part, value):
    folder = with_weights(checkpoint(tmp_path), "float32", **{part: value})
    line = refused(capsys, tmp_path, folder, "--dtype", "float32")
    assert line.startswith("2 weights are NaN or infinite in ") and "model.safetensors" in line
    assert part.replace("__", ".") in line


def test_weights_that_are_lacking(capsys, tmp_path):
    folder = checkpoint(tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("lm_head.weight"))
    save_file({other: weights[other] for other in weights if other != name}, folder / "model.safetensors")
    assert "lacks lm_head.weight" in refused(capsys, tmp_path, folder)


def test_quantised_weights(capsys, tmp_path):
    folder = checkpoint(tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.0.mlp.up_proj.weight"))
    save_file({**weights, name: weights[name].astype("int8")}, folder / "model.safetensors")
    line = refused(capsys, tmp_path, folder)
    assert "layers.0.mlp.up_proj.weight is stored as I8" in line
