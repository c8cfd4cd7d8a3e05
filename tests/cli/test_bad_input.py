"""What a user gets wrong: one line that names it, exit code 1, nothing left behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import pytest
from safetensors.numpy import load_file, save_file

from iwp_export.cli.main import main
from iwp_export.models import ALIASES

TINY = Path(ALIASES["tiny-llava"])


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fails(capsys, *arguments: object) -> str:
    """Run a command that must fail, and return its one line."""
    assert main([str(argument) for argument in arguments]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("iwp-export: error: "), shown.err
    return lines[0].removeprefix("iwp-export: error: ")


def refused(capsys, tmp_path, folder: Path, *arguments: object) -> str:
    """Export a checkpoint, which must fail and leave nothing beside it."""
    before = set(tmp_path.iterdir())
    line = fails(capsys, folder, *arguments)
    assert set(tmp_path.iterdir()) == before
    return line


@pytest.fixture(params=[["--dry-run"], []], ids=["dry", "export"])
def dry(request):
    """What is refused by a dry run is refused by an export too."""
    return request.param


def checkpoint(tmp_path: Path, weights: bool = True, **config: object) -> Path:
    """tiny-llava's folder with another configuration."""
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder, ignore=None if weights else shutil.ignore_patterns("*.safetensors"))
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return folder


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--keep", "1.5", "keep must be a number above 0 and at most 1, got 1.5"),
        ("--keep", "0", "keep must be"),
        ("--keep", "nan", "keep must be"),
        ("--layer", "-1", "layer must be"),
        ("--layer", "8", "cannot be pruned at layer 8; choose layer 0 to 7 (--layer)"),
        ("--chunk", "0", "chunk must be"),
        ("--growth", "0", "growth must be"),
        ("--penalty", "-1", "penalty must be"),
        ("--query", "first", "query must be one of text_after_image"),
        ("--heads", "max", "heads must be one of softmax"),
    ],
)
def test_settings_out_of_range(capsys, tmp_path, option, value, named, dry):
    assert named in fails(capsys, "tiny-llava", option, value, *dry)
    assert list(tmp_path.iterdir()) == []


def test_unknown_alias_lists_the_known_ones(capsys):
    line = fails(capsys, "tiny-lava")
    assert "tiny-lava" in line and all(alias in line for alias in ALIASES)


def test_no_network(capsys):
    line = fails(capsys, "nobody/no-such-model", "--dry-run")
    assert "nobody/no-such-model" in line and "network" in line


def test_revision_of_a_folder(capsys, tmp_path):
    assert "--revision" in fails(capsys, checkpoint(tmp_path), "--revision", "main", "--dry-run")


def test_unsupported_model_type(capsys, tmp_path):
    line = fails(capsys, checkpoint(tmp_path, model_type="florence2"), "--dry-run")
    assert "florence2" in line and "llava" in line


def test_remote_code_is_never_run(capsys, tmp_path):
    folder = checkpoint(tmp_path, auto_map={"AutoModel": "evil.Model"})
    (folder / "evil.py").write_text("raise SystemExit('this ran')")
    assert "trust_remote_code" in fails(capsys, folder, "--dry-run")


def test_pickled_weights_are_refused(capsys, tmp_path):
    folder = checkpoint(tmp_path, weights=False)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    line = fails(capsys, folder)
    assert "pytorch_model.bin" in line and "safetensors" in line


def test_no_weights(capsys, tmp_path):
    assert "no weights" in fails(capsys, checkpoint(tmp_path, weights=False), "--dry-run")


def test_exporting_without_its_packages():
    code = """
import sys
sys.modules["onnx_ir"] = None
from iwp_export.cli.main import main
sys.exit(main(["tiny-llava"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == ("iwp-export: error: exporting needs onnx_ir; to get it: pip install 'iwp-export[export]'\n")


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


@pytest.mark.parametrize("options", [[], ["--dtype", "float16"]])
def test_weights_that_overflow_float16(capsys, tmp_path, options):
    changes = {"layers__0__mlp__up_proj__weight": 1e5, "lm_head__weight": -3e38, "norm__weight": 1e-30}
    folder = with_weights(checkpoint(tmp_path, dtype="bfloat16"), ml_dtypes.bfloat16, **changes)
    line = refused(capsys, tmp_path, folder, *options)
    assert line.startswith("4 weights do not fit float16, the largest is 3.004e+38: ")
    assert "layers.0.mlp.up_proj.weight (2)" in line and "lm_head.weight (2)" in line
    assert "norm" not in line and "bfloat16 or float32 (--dtype)" in line
    assert main([str(folder), "--dtype", "bfloat16", "-o", "fits.bundle"]) == 0


@pytest.mark.parametrize("part", ["vision_tower__encoder__layers__0__mlp__fc1__bias", "lm_head__weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
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


def test_folder_without_a_model(capsys, tmp_path):
    assert "config.json" in fails(capsys, tmp_path)


def test_output_exists(capsys, tmp_path):
    (tmp_path / "tiny-llava.bundle").mkdir()
    line = fails(capsys, "tiny-llava")
    assert "already exists" in line and "--force" in line


def test_force_never_replaces_what_is_no_bundle(capsys, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years")
    assert "thesis" in fails(capsys, "tiny-llava", "-o", "thesis", "--force")
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years"


def test_a_plan_that_cannot_be_built_is_refused_before_any_work(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("iwp_export.engine.build.is_installed", lambda name: False)
    line = fails(capsys, "nobody/no-such-model", "-o", "engine.plan")
    assert "iwp-export build NAME.bundle -o NAME.plan" in line and "pip install 'iwp-export[rtx]'" in line


@pytest.mark.parametrize("verb", [["inspect"], ["run", "--prompt", "what ?"]])
def test_missing_bundle(capsys, verb):
    assert "nothing.bundle" in fails(capsys, verb[0], "nothing.bundle", *verb[1:])


def test_a_file_is_no_bundle(capsys, tmp_path):
    (tmp_path / "x.bundle").write_text("")
    assert "x.bundle" in fails(capsys, "inspect", "x.bundle")
