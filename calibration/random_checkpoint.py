"""Checkpoints of a real model's shape with random weights, to measure exports where no hub can be reached."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

SHARD_BYTES = 2 << 30
TOKENIZER_FROM = Path(__file__).parent.parent / "iwp_export" / "assets" / "tiny_llava"


IMAGE_TOKEN = 4
"""The image token of tiny-llava's tokenizer, which these checkpoints borrow."""
SPECIAL_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CANVASES = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def llava_config(layers: int = 32, vision_layers: int = 24) -> Any:
    """The configuration of LLaVA-1.5-7B (CLIP ViT-L/14 at 336 pixels, Vicuna-7B), with fewer layers if asked."""
    from transformers import LlamaConfig, LlavaConfig

    text = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32064,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        **SPECIAL_TOKENS,
    )
    return LlavaConfig(
        vision_config=_clip_large(vision_layers),
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        architectures=["LlavaForConditionalGeneration"],
    )


def llava_next_config(layers: int = 32, vision_layers: int = 24) -> Any:
    """The configuration of LLaVA-NeXT-7B (llava-v1.6-mistral-7b), with fewer layers if asked."""
    from transformers import LlavaNextConfig, MistralConfig

    text = MistralConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=32064,
        max_position_embeddings=32768,
        rms_norm_eps=1e-5,
        rope_theta=1e6,
        sliding_window=None,
        **SPECIAL_TOKENS,
    )
    return LlavaNextConfig(
        vision_config=_clip_large(vision_layers),
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        image_grid_pinpoints=CANVASES,
        architectures=["LlavaNextForConditionalGeneration"],
    )


def _clip_large(layers: int) -> Any:
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=layers,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )


FAMILIES: Mapping[str, Callable[[int, int], Any]] = {"llava": llava_config, "llava_next": llava_next_config}
"""From a family to the configuration of its 7B model, given the layers of language model and tower."""


def write_checkpoint(folder: Path, config: Any, seed: int = 0) -> int:
    """Write a checkpoint with random float16 weights in shards of 2 GiB; returns the bytes of its weights.

    Matrices are normal with standard deviation 1 / sqrt(columns), so that activations keep their size through the
    layers; norms are 1 and biases 0. One tensor at a time is in memory.
    """
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    shards: list[dict[str, np.ndarray]] = [{}]
    sizes, weight_map = [0], {}
    total = 0

    def flush(last: bool) -> None:
        name = f"model-{len(sizes):05d}.safetensors"
        save_file(shards[0], folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shards[0], name))
        shards[0] = {}
        if not last:
            sizes.append(0)

    for name, array in _random_tensors(config, seed):
        if sizes[-1] and sizes[-1] + array.nbytes > SHARD_BYTES:
            flush(last=False)
        shards[0][name] = array
        sizes[-1] += array.nbytes
        total += array.nbytes
    flush(last=True)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    config.dtype = "float16"
    config.save_pretrained(folder)
    write_processor(folder, config)
    return total


def _random_tensors(config: Any, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Names as published checkpoints have them, with values."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForImageTextToText

    with FakeTensorMode():
        shapes = {
            name: tuple(tensor.shape)
            for name, tensor in AutoModelForImageTextToText.from_config(config, dtype=torch.float16).named_parameters()
        }
    rng = np.random.default_rng(seed)
    for name, shape in shapes.items():
        if len(shape) > 1:
            array = rng.standard_normal(shape, np.float32)
            array *= float(np.prod(shape[1:])) ** -0.5 if "embed" not in name else 1.0
        else:
            array = np.full(shape, 0.0 if name.endswith("bias") else 1.0, np.float32)
        yield _published(name), array.astype(np.float16)


def _published(name: str) -> str:
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    name = name.removeprefix("model.")
    name = name.replace("language_model.", "language_model.model.", 1)
    return name.replace("vision_tower.", "vision_tower.vision_model.", 1)


def write_processor(folder: Path, config: Any) -> None:
    """tiny-llava's words and template, at this model's image size: enough to run, not to mean anything."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(TOKENIZER_FROM / name, folder / name)
    processor = json.loads((TOKENIZER_FROM / "processor_config.json").read_text())
    side = config.vision_config.image_size
    square = {"height": side, "width": side}
    if config.model_type == "llava_next":
        from transformers import LlavaNextImageProcessorPil

        images = LlavaNextImageProcessorPil(
            size={"shortest_edge": side}, crop_size=square, image_grid_pinpoints=config.image_grid_pinpoints
        )
        processor |= {"processor_class": "LlavaNextProcessor", "image_processor": images.to_dict()}
    else:
        processor["image_processor"] |= {"size": square, "crop_size": square}
    processor["patch_size"] = config.vision_config.patch_size
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", choices=FAMILIES, default="llava", help="whose 7B model (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=32, help="layers of the language model (default: %(default)s)")
    parser.add_argument("--vision-layers", type=int, default=24, help="layers of the tower (default: %(default)s)")
    args = parser.parse_args()
    total = write_checkpoint(args.folder, FAMILIES[args.family](args.layers, args.vision_layers))
    print(f"{args.folder}: {total / 1e9:.2f} GB of random float16 weights")


if __name__ == "__main__":
    main()
