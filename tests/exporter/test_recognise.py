"""Checkpoints as people have them: what each is called, in one line, by a dry run too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from iwp_export.cli.main import main
from iwp_export.exporter.proof import write_tokenizer
from iwp_export.exporter.recognise import name_leftovers
from iwp_export.runtime.processor import load_tokenizer
from tests.conftest import graphs_of
from tests.exporter.tiny import ASSETS, CANVASES, write_llava

TEMPLATE = (ASSETS / "chat_template.jinja").read_text()
LAYER = "model.language_model.layers.0.self_attn.q_proj."
Change = Callable[[Path], object]


def config(_name: str = "config.json", /, **values: Any) -> Change:
    """Set values in a JSON file: `a__b` is b in a, and what is `...` is removed."""

    def change(folder: Path) -> None:
        file = folder / _name
        data = json.loads(file.read_text()) if file.exists() else {}
        for name, value in values.items():
            *path, last = name.split("__")
            inner = data
            for key in path:
                inner = inner.setdefault(key, {})
            inner.pop(last, None) if value is ... else inner.update({last: value})
        file.write_text(json.dumps(data))

    return change


def write(name: str, content: str | bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def weights(change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> Change:
    def rewrite(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file(dict(change(load_file(file))), file, metadata={"format": "pt"})

    return rewrite


def beside(*names: str) -> Change:
    """Tensors of no place in the model beside complete weights."""
    return weights(lambda stored: {**stored, **{name: np.zeros((2, 2), np.float16) for name in names}})


def renamed(rename: Callable[[str], str]) -> Change:
    return weights(lambda stored: {rename(name): tensor for name, tensor in stored.items()})


def only(*names: str) -> Change:
    """Leave no other files than these."""

    def change(folder: Path) -> None:
        for file in folder.iterdir():
            if file.name not in names:
                file.unlink()

    return change


def all_of(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


LORA = config("adapter_config.json", peft_type="LORA", base_model_name_or_path="llava-hf/llava-1.5-7b-hf")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:abcd\nsize 14000000000\n"
REFUSED: dict[str, tuple[Change, str]] = {
    "lora": (beside(f"{LAYER}lora_A.weight", f"{LAYER}lora_B.weight"), "q_proj.lora_A.weight (and 1 more), part of"),
    "lora of embeddings": (
        beside("model.language_model.embed_tokens.lora_embedding_A"),
        "lora_embedding_A, part of an",
    ),
    "wrapped by an adapter": (beside(f"{LAYER}base_layer.weight"), "q_proj.base_layer.weight, part of an adapter"),
    "adapter": (beside("model.language_model.layers.0.adapter.down.weight"), "merge it into the model first"),
    "MLX's scales": (beside(f"{LAYER}scales", f"{LAYER}biases"), "of a quantised model, though config.json has no"),
    "GPTQ's weights": (
        beside(f"{LAYER}qweight", f"{LAYER}qzeros", f"{LAYER}g_idx"),
        "g_idx (and 2 more), of a quantised",
    ),
    "fp8's scales": (beside(f"{LAYER}weight_scale_inv"), "weight_scale_inv, of a quantised model"),
    "bitsandbytes": (beside(f"{LAYER}SCB"), "SCB, of a quantised model"),
    "pruned by torch": (beside(f"{LAYER}weight_mask"), "remove the parametrisation"),
    "DataParallel": (renamed(lambda name: f"module.{name}"), "have 'module.' before them"),
    "compiled": (renamed(lambda name: f"_orig_mod.{name}"), "have '_orig_mod.' before them"),
    "PEFT's wrapper": (renamed(lambda name: f"base_model.model.{name}"), "have 'base_model.model.' before them"),
    "another wrapper": (renamed(lambda name: f"net.{name}"), "have 'net.' before them"),
    "a part compiled": (
        renamed(lambda name: name.replace(".layers.", "._orig_mod.layers.")),
        "have '_orig_mod.' before",
    ),
    "adapter alone": (
        all_of(only(), LORA),
        "is a LoRA adapter of llava-hf/llava-1.5-7b-hf: merge it into the model first",
    ),
    "adapter and config": (
        all_of(LORA, lambda folder: (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")),
        "is a LoRA adapter of llava-hf/llava-1.5-7b-hf: merge",
    ),
    "original LLaVA": (config(mm_vision_tower="openai/clip", model_type="llava_llama"), "layout of the original LLaVA"),
    "original LLaVA's class": (config(architectures=["LlavaLlamaForCausalLM"]), "use a checkpoint that was converted"),
    "MLX": (
        config(quantization={"group_size": 64, "bits": 4}),
        "is quantised (its config.json has a quantization, as MLX",
    ),
    "older compressed-tensors": (config(compression_config={"format": "x"}), "has a compression_config)"),
    "GPTQ": (
        write("quantize_config.json", '{"bits": 4}'),
        "is quantised (it has quantize_config.json, as GPTQ writes)",
    ),
    "ModelOpt": (write("hf_quant_config.json", "{}"), "as ModelOpt writes"),
    "GGUF": (all_of(only(), write("model.gguf", b"GGUF")), "has no config.json but a GGUF file of llama.cpp"),
    "weights' pointer": (write("model.safetensors", POINTER), "model.safetensors is a Git LFS pointer, not the file"),
    "tokenizer's pointer": (write("tokenizer.json", POINTER), "tokenizer.json is a Git LFS pointer, not the file"),
    "a web page": (write("config.json", "<!DOCTYPE html>\n<html>"), "config.json is a web page, not the file itself"),
    "a default that does not fit": (
        config(image_token_index=...),
        "lacks image_token_index, and transformers' default, 32000, does not fit the rest",
    ),
    "SigLIP with default": (
        config(vision_config__model_type="siglip_vision_model"),
        "vision_feature_select_strategy 'default' drops SigLIP's first patch, as there is no class token",
    ),
    "CLIP with full": (config(vision_feature_select_strategy="full"), "keeps CLIP's class token: not supported"),
    "image token is pad": (config(image_token_index=0), "image_token_index is 0, which is <pad> in the tokenizer of"),
    "image token is a word": (config(image_token_index=7), "; <image> has id 4"),
    "mistral's window": (
        config(text_config__model_type="mistral", text_config__sliding_window=100),
        "sliding-window attention is not supported (mistral with a window of 100)",
    ),
    "mistral's window that nobody wrote": (
        config(text_config__model_type="mistral", text_config__max_position_embeddings=32768),
        "a window of 4096, transformers' default; where the model has none, set text_config.sliding_window to null",
    ),
    "sentencepiece": (
        all_of(write("tokenizer.model", b"\x0a\x0e\x0a"), lambda folder: (folder / "tokenizer.json").unlink()),
        "is tokenizer.model without tokenizer.json, and reading that needs a package: pip install sentencepiece",
    ),
    "tiktoken": (
        all_of(write("tokenizer.model", b"IQ== 0\nIg== 1\n"), lambda folder: (folder / "tokenizer.json").unlink()),
        "needs a package: pip install tiktoken",
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ASSETS, tmp_path / "model"))


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    installed = SimpleNamespace(distributions=lambda: [SimpleNamespace(name="protobuf")])
    monkeypatch.setattr("iwp_export.runtime.processor.metadata", installed)
    change, line = REFUSED[kind]
    change(folder)
    for arguments in (["--dry-run"], ["-o", str(folder.parent / "out.bundle")]):
        assert main([str(folder), *arguments]) == 1
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.count("\n") == 1, shown.err
        assert line in shown.err, shown.err
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


NOTED: dict[str, tuple[Change, str]] = {
    "a tensor too many": (beside("model.other.weight"), "are left out: model.other.weight"),
    "no template": (
        lambda folder: (folder / "chat_template.jinja").unlink(),
        "it has no chat template: the bundle answers",
    ),
    "a template of text": (
        write("chat_template.jinja", "{% for m in messages %}{{ '[INST] ' + m.content }}{% endfor %}"),
        "its chat template takes no images, only text: the bundle answers token ids alone",
    ),
    "a template that prints parts": (
        write("chat_template.jinja", "{% for m in messages %}{{ m.content }}{% endfor %}"),
        "its chat template writes 0 <image> for one image: the bundle answers token ids alone",
    ),
    "a template with its own image": (
        write("chat_template.jinja", f"<image>{TEMPLATE}"),
        "writes 2 <image> for one image: the bundle answers token ids alone (Pipeline.generate_ids); "
        "a template in chat_template.jinja that places one <image> an image mends it",
    ),
    "such a one in the processor's file": (
        config("processor_config.json", chat_template=f"<image>{TEMPLATE}"),
        "a template in processor_config.json that places one <image> an image mends it",
    ),
    "such a one in the older file": (
        config("chat_template.json", chat_template=f"<image>{TEMPLATE}"),
        "a template in chat_template.json that",
    ),
}


@pytest.mark.parametrize("kind", NOTED)
def test_what_is_noted(folder: Path, capsys: pytest.CaptureFixture[str], kind: str, tiny_bundle: Path) -> None:
    change, line = NOTED[kind]
    change(folder)
    assert main([str(folder), "--dry-run"]) == 0
    notes = [row for row in capsys.readouterr().out.splitlines() if row.startswith("note ")]
    assert len(notes) == 1 and line in notes[0], notes
    with graphs_of(tiny_bundle):
        assert main([str(folder), "-o", str(folder.parent / "out.bundle"), "--dtype", "float32"]) == 0
    warning = capsys.readouterr().err
    assert warning.startswith("iwp-export: warning: ") and line in warning and warning.count("\n") == 1


@pytest.mark.parametrize("canvases", [CANVASES[:2], CANVASES[::-1]])
def test_canvases_of_the_processor_are_the_models(
    random_next: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], canvases: list[list[int]]
) -> None:
    folder = Path(shutil.copytree(random_next, tmp_path / "model"))
    config("processor_config.json", image_processor__image_grid_pinpoints=canvases)(folder)
    assert main([str(folder), "--dry-run", "--layer", "1"]) == 1
    line = f"its image processor's image_grid_pinpoints are {canvases}, its model's {CANVASES}: make them the same"
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_a_window_as_long_as_the_context_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str
) -> None:
    window: dict[str, Any] = {"sliding_window": 256, "use_sliding_window": True, "max_window_layers": 0}
    write_llava(tmp_path / "model", family, **window)
    arguments = [str(tmp_path / "model"), "--dry-run", "--layer", "1"]
    assert main(arguments) == 0, capsys.readouterr()
    config(text_config__sliding_window=255)(tmp_path / "model")
    assert main(arguments) == 1 and "with a window of 255" in capsys.readouterr().err


def test_what_models_compute_themselves_is_not_noted() -> None:
    names = ["vision_tower.embeddings.position_ids", "layers.0.self_attn.rotary_emb.inv_freq"]
    assert name_leftovers(names, [*names, "a.weight"], "x") == ""
    assert name_leftovers(["logit_scale", "b", "c", "d"], ["a"], "x").endswith("left out: logit_scale, b, c and 1 more")


def test_a_bundle_has_a_tokenizer_that_needs_no_package(tmp_path: Path) -> None:
    """tokenizer.json is made of the files that are there, and encodes the same."""
    words = ["<pad>", "<unk>", "<image>", "a", "b", "Ġ", "ab", "Ġab"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nĠ ab\n", encoding="utf-8")
    added = {"2": {"content": "<image>", "special": True}}
    config("tokenizer_config.json", tokenizer_class="Qwen2Tokenizer", added_tokens_decoder=added)(tmp_path)
    before = load_tokenizer(tmp_path)("ab ab<image>b")["input_ids"]
    write_tokenizer(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink()
    assert load_tokenizer(tmp_path)("ab ab<image>b")["input_ids"] == before == [6, 7, 2, 4]
