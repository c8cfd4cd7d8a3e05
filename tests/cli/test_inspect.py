"""Inspect: the manifest for people and for programs, and damage found."""

from __future__ import annotations

import json
import shutil

import pytest

from iwp_export.bundle.manifest import MANIFEST_JSON, TensorSpec
from iwp_export.bundle.store import Bundle
from iwp_export.cli.inspect import merged
from iwp_export.cli.main import main
from iwp_export.engine.files import ENGINE_JSON, read_engine
from tests.runtime.toy import write_plan


def without_report(shown):
    """What inspect printed of a manifest or an engine's description, without what it found out itself."""
    return {name: value for name, value in shown.items() if name not in ("path", "verified", "bytes")}


def test_json_is_the_manifest(tiny_bundle, capsys):
    assert main(["inspect", str(tiny_bundle), "--json", "--verify"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["verified"] == "full" and shown["path"] == str(tiny_bundle)
    manifest = Bundle.open(tiny_bundle).manifest
    assert MANIFEST_JSON.from_dict(without_report(shown), "output") == manifest
    assert shown["bytes"] == sum(file.bytes for file in manifest.files.values())


def test_text_names_what_matters(tiny_bundle, capsys):
    assert main(["inspect", str(tiny_bundle)]) == 0
    shown = capsys.readouterr().out
    for part in (
        "0.30 -> 20 of 64 visual tokens",
        "decoder.onnx",
        "input_ids",
        "num_kept",
        "float32",
        "softmax",
        "given in full",
    ):
        assert part in shown


def test_verify_finds_a_changed_byte(tiny_bundle, tmp_path, capsys):
    copy = tmp_path / "copy.bundle"
    shutil.copytree(tiny_bundle, copy)
    with (copy / "decoder.weights").open("r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 1]))
    assert main(["inspect", str(copy), "--verify"]) == 1
    error = capsys.readouterr().err
    assert "decoder.weights" in error and len(error.splitlines()) == 1


def test_an_engine_shows_what_it_needs(tmp_path, capsys):
    path = write_plan(tmp_path / "toy.plan")
    assert main(["inspect", str(path)]) == 0
    shown = capsys.readouterr().out
    for part in (
        "TensorRT-RTX 1.7.1.116 and a GPU of SM 86, 89",
        "256 tokens, 200 a call",
        "num_kept",
        "the paper's\n",
        "toy.vision.plan",
    ):
        assert part in shown
    assert main(["inspect", str(path), "--json", "--verify"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["path"], shown["verified"], shown["fingerprint"]["sms"]) == (str(path), "full", ["86", "89"])
    assert ENGINE_JSON.from_dict(without_report(shown), "output") == read_engine(path)[1]


def test_a_damaged_engine_is_one_line(tmp_path, capsys):
    path = write_plan(tmp_path / "toy.plan")
    path.write_bytes(b"something else")
    assert main(["inspect", str(path)]) == 1
    assert "toy.plan has 14 bytes, not 19" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["past.{}.key", "x"])
def test_tensors_of_many_layers_share_a_line(name):
    tensors = tuple(TensorSpec(name.format(i), "float16", (1, "n")) for i in range(3))
    rows = merged(tensors)
    assert rows == [("past.{0..2}.key" if "{}" in name else "x", "float16", "[1, n]")]
