"""Smoke-test a bundle before publishing it: use once what was written, as a run would.

Needs no ONNX Runtime: what the graphs compute is for the tests, and their weights' names and shapes for the tracing.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from iwp_export.bundle.manifest import DecoderInfo, GraphSpec, Manifest, VisionInfo
from iwp_export.errors import CheckpointError, IwpError, RequestError, in_one_line
from iwp_export.models.common.family import Family, Picture
from iwp_export.runtime.processor import (
    TOKENIZER,
    Processor,
    assistant_message,
    load_tokenizer,
    template_file,
    user_message,
)

QUESTION, ANSWER, FURTHER = "What is in the picture?", "A cup.", "Where is it?"
IMAGE_SIZE = (96, 64)
"""Width and height of the synthetic image, smaller than what any model takes."""


def prove_rope(text: Any) -> None:
    """Check that frequencies go from 1 downward, none at 0, as every supported language model computes them.

    Raises:
        CheckpointError: a run of the bundle would fail, or answer nonsense.
    """
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    settings = getattr(text, "rope_parameters", None)
    try:
        rotary = LlamaRotaryEmbedding(text)
        frequencies, scaling = rotary.inv_freq.tolist(), float(rotary.attention_scaling)
    except Exception as error:
        raise CheckpointError(f"the bundle would not run: its rope_parameters {settings} fail: {error}") from error
    sane = all(math.isfinite(value) and 0 < value <= 1 for value in frequencies) and 0 < scaling < math.inf
    _demand(sane, f"its rope_parameters {settings} give no usable frequencies")


def prove_processor(folder: Path, decoder: DecoderInfo, vision: VisionInfo, family: Family) -> tuple[Picture, str]:
    """Ask a staged processor folder a question about an image, up to the decoder's inputs, and a second one.

    Returns:
        The image as the vision graph takes it; and why no conversation is possible, only `generate_ids`, empty if all
        is well.

    Raises:
        CheckpointError: a run of the bundle would fail, or answer nonsense.
    """
    try:
        processor = Processor(folder, vision, family)
        picture = processor.image(_image())
        _prove_picture(picture, vision)
        no_template = processor.no_template or _not_for_images(processor)
        if not no_template:
            _prove_conversations(processor, picture, decoder, vision, family)
    except CheckpointError:
        raise
    except Exception as error:  # damaged files make the libraries below fail in ways of their own
        text = in_one_line(error)
        text = text if isinstance(error, IwpError) else f"its processor fails: {type(error).__name__}: {text}"
        text = text.replace(str(folder), "the checkpoint")  # the folder is gone when this is read
        raise CheckpointError(f"the bundle would not run: {text}") from error
    if no_template:
        no_template += (
            ": the bundle answers token ids alone (Pipeline.generate_ids); "
            f"a template in {template_file(folder)} that places one {processor.image_token} an image mends it"
        )
    return picture, no_template


def _not_for_images(processor: Processor) -> str:
    """What a chat template does with an image in place of placing it; empty if it does, or renders no text either."""

    def says(text: str) -> bool:
        return QUESTION.lower() in text.lower()

    try:
        text = processor.render([user_message(QUESTION, 1)])
    except RequestError:  # templates of language models take the content as text, not as a list
        try:
            text = processor.render([{"role": "user", "content": QUESTION}])
        except RequestError:
            return ""
        return "its chat template takes no images, only text" if says(text) else ""
    found = processor.count_images(text)
    return (
        f"its chat template writes {found} {processor.image_token} for one image" if found != 1 and says(text) else ""
    )


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json where only the files that it is made of lie: reading those may need further packages.

    Raises:
        CheckpointError: it cannot be made.
    """
    if not (folder / TOKENIZER).exists():
        tokenizer = load_tokenizer(folder)
        _demand(tokenizer.is_fast, f"its {type(tokenizer).__name__} cannot be written as {TOKENIZER}")
        tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))


def _prove_picture(picture: Picture, vision: VisionInfo) -> None:
    count, bounds = picture.num_tokens, vision.tokens
    inside = bounds.least <= count <= bounds.greatest
    _demand(inside, f"its processor makes {count} visual tokens of an image, its model {bounds}")
    for name, array in picture.inputs.items():
        if np.issubdtype(array.dtype, np.floating):
            _demand(bool(np.isfinite(array).all()), f"its image processor makes {name} that are not finite")
            _demand(float(np.ptp(array)) > 0, f"its image processor makes the same {name} everywhere")


def _prove_conversations(
    processor: Processor, picture: Picture, decoder: DecoderInfo, vision: VisionInfo, family: Family
) -> None:
    first = [user_message(QUESTION, 1)]
    for turns in (first, [*first, assistant_message(ANSWER), user_message(FURTHER, 0)]):
        text = processor.render(turns)
        question = turns[-1]["content"][-1]["text"]
        _demand(question.lower() in text.lower(), "its chat template leaves out what the user says")
        ids = processor.token_ids(text, [picture])
        visual = ids == vision.image_token_id
        outside = ids[~visual & ((ids < 0) | (ids >= decoder.vocab_size))]
        _demand(
            not outside.size,
            f"its tokenizer makes token {outside[:1].tolist()}, its model has a vocabulary of {decoder.vocab_size}",
        )
        end = family.positions(visual, [picture], 0)[1]
        _demand(
            end < decoder.max_positions,
            f"a question about one image reaches position {end}, its max_position_embeddings is "
            f"{decoder.max_positions}",
        )
    try:
        without = processor.render([user_message(QUESTION, 0)])
    except RequestError:  # a template may insist on an image
        return
    processor.token_ids(without, [])  # else the image token is one of the words


def prove_graphs(manifest: Manifest, picture: Picture) -> None:
    """Check inputs and outputs of the graphs against what the manifest says and a picture brings.

    Raises:
        CheckpointError: they do not fit.
    """
    _prove_decoder_graph(manifest.graphs["decoder"], manifest.decoder)
    _prove_vision_graph(manifest.graphs["vision"], manifest.vision, picture)


def _prove_decoder_graph(graph: GraphSpec, decoder: DecoderInfo) -> None:
    inputs, outputs = ({tensor.name: tensor.shape for tensor in side} for side in (graph.inputs, graph.outputs))
    names = [f"{layer}.{part}" for layer in range(decoder.layers) for part in ("key", "value")]
    for prefix, side in (("past_key_values", inputs), ("present", outputs)):
        found = {name for name in side if name.startswith(f"{prefix}.")}
        _demand(found == {f"{prefix}.{name}" for name in names}, f"its decoder has not {decoder.layers} layers")
        for name in found:
            heads = (side[name][1], side[name][3])
            _demand(heads == (decoder.kv_heads, decoder.head_dim), f"its decoder's {name} has heads of {heads}")
    logits = outputs["logits"][-1]
    _demand(logits == decoder.vocab_size, f"its decoder makes {logits} logits, for {decoder.vocab_size} tokens")


def _prove_vision_graph(graph: GraphSpec, vision: VisionInfo, picture: Picture) -> None:
    wanted = {tensor.name: tensor.shape for tensor in graph.inputs}
    names = sorted(picture.inputs)
    _demand(names == sorted(wanted), f"its vision graph takes {sorted(wanted)}, its processor makes {names}")
    for name, array in picture.inputs.items():
        shape = wanted[name]
        fits = len(shape) == array.ndim and all(
            _is_within(size, dim, vision) for size, dim in zip(array.shape, shape, strict=True)
        )
        _demand(fits, f"its vision graph takes {name} of {list(shape)}, its processor makes {list(array.shape)}")
    features = graph.outputs[0].shape[-1]
    _demand(features == vision.feature_size, f"its features have {features} numbers, not {vision.feature_size}")


def _is_within(size: int, dim: int | str, vision: VisionInfo) -> bool:
    if isinstance(dim, int):
        return size == dim
    bounds = vision.dims.get(dim)
    return bounds is None or bounds.least <= size <= bounds.greatest


def _image() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A gradient, uint8 [H, W, 3]: no two rows or columns are alike."""
    width, height = IMAGE_SIZE
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([x, y, (x + y) / 2], axis=-1).astype(np.uint8)


def _demand(fulfilled: bool, problem: str) -> None:
    if not fulfilled:
        raise CheckpointError(f"the bundle would not run: {problem}")
