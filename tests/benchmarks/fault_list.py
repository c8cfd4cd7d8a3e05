"""The deliberate faults, how each is made, and the gate that should catch it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image, ImageOps

from iwp_export import api
from iwp_export.bundle.recipe import PruningSource
from iwp_export.bundle.store import Bundle
from iwp_export.models import ALIASES
from iwp_export.models.common.family import Picture
from iwp_export.parity.recording import RECORDING_JSON, record
from iwp_export.pruning.settings import PruningSettings
from iwp_export.runtime.images import ImageSource
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.runtime.processor import Prompt
from tests.benchmarks import faulty
from tests.benchmarks.fault_shop import COULD_NOT_RUN, FAILED, Outcome, Workshop
from tests.parity.tampered import tampered


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        name: what is wrong.
        gate: the one that must fail; empty where the artefact must be refused.
        refusal: words of that refusal.
        judge: makes the fault and validates.
        quick: whether it is made in a moment, for the tests.
        blind: gates that this fault cannot fail, which shows why the others are needed.
    """

    name: str
    gate: str
    judge: Callable[[Workshop], Outcome]
    quick: bool = True
    blind: tuple[str, ...] = ()
    refusal: str = ""

    def caught(self, outcome: Outcome) -> bool:
        """Whether validation says what it should of this fault."""
        if not self.gate:
            return outcome.code == COULD_NOT_RUN and self.refusal != "" and self.refusal in outcome.error
        return outcome.code == FAILED and self.gate in outcome.failed and set(self.blind).isdisjoint(outcome.failed)


CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
"""Of OpenAI's CLIP; tiny-llava has 0.5."""
VALUE = "layers.2.self_attn.v_proj"
TENSOR = "layers.5.mlp.down_proj"


def change_value(values: Any, by: float = 0.05) -> Any:
    """One of a tensor's values, by `by`."""
    values[37, 21] += by
    return values


def weights(change: Callable[[Any], Any], name: str, renew: bool) -> Callable[[Workshop], Outcome]:
    """A bundle with changed weights, with the hashes of before or of now."""

    def judge(shop: Workshop) -> Outcome:
        path = shop.copy()
        faulty.change_weights(path, name, change)
        return shop.judge(faulty.renewed(path) if renew else path)

    return judge


def graph(edit: Callable[[Any], None]) -> Callable[[Workshop], Outcome]:
    """A bundle with another decoder graph."""

    def judge(shop: Workshop) -> Outcome:
        path = shop.copy()
        faulty.edit_graph(path, edit)
        return shop.judge(faulty.renewed(path))

    return judge


def processor(change: Callable[[Path], None]) -> Callable[[Workshop], Outcome]:
    """A bundle with another processor."""

    def judge(shop: Workshop) -> Outcome:
        path = shop.copy()
        change(path / "processor")
        return shop.judge(faulty.renewed(path))

    return judge


def session(pairs: bool = False, **changes: Any) -> Callable[[Workshop], Outcome]:
    """A session that is tampered with."""
    return lambda shop: shop.judge(tampered(shop.right, **changes), pairs=pairs)


def lost_row(layers: Sequence[int], drop: bool) -> Callable[[Workshop], Outcome]:
    """A cache that loses a token of the prompt."""

    def judge(shop: Workshop) -> Outcome:
        wrapped = faulty.LosesRow(shop.right.session, layers, 11, drop)
        return shop.judge(Pipeline(shop.right.manifest, shop.right.processor, wrapped))

    return judge


def _image_settings(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        faulty.edit_json(folder / "processor_config.json", lambda data: data["image_processor"].update(changes))

    return change


def _template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("{{ part['text'] }}", "{{ part['text'] }} ?"))


def _swapped_pictures(shop: Workshop) -> Outcome:
    """The host hands the pictures over in the wrong order."""

    ask_once = shop.right.processor.ask_once

    def swapped(text: str, media: Sequence[ImageSource | Picture]) -> Prompt:
        prompt = ask_once(text, media)
        return replace(prompt, pictures=prompt.pictures[::-1])

    with mock.patch.object(shop.right.processor, "ask_once", swapped):
        return shop.judge(shop.right, pairs=True)


def _overflow(shop: Workshop) -> Outcome:
    """The same function but for rounding: two factors that cancel, and between them values that float16 lacks."""
    path = shop.copy(half=True)
    faulty.change_weights(path, "layers.3.self_attn.v_proj", lambda values: values * 2.0**15)
    faulty.change_weights(path, "layers.3.self_attn.o_proj", lambda values: values * 2.0**-15)
    return shop.judge(faulty.renewed(path))


def _other_checkpoint(shop: Workshop) -> Path:
    """tiny-llava after a step of fine-tuning."""
    from safetensors.numpy import load_file, save_file

    folder = shop.folder / "tuned"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ALIASES["tiny-llava"], folder)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.1.input_layernorm.weight"))
    tensors[name] = tensors[name] * np.asarray(1.001, tensors[name].dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = Bundle.open(shop.bundle).manifest.pruning
    return api.export(str(folder), shop.folder / "tuned.bundle", settings, dtype="float32", force=True)


def _stale_engine(shop: Workshop, tuned: bool) -> Outcome:
    """An engine of another checkpoint, or built before the settings changed. Its graphs run in ONNX Runtime here."""
    from tests.backends.trt.fake_trt import make_session

    path = _other_checkpoint(shop) if tuned else shop.copy()
    manifest = Bundle.open(path).manifest
    if not tuned:
        faulty.edit_graph(path, faulty.rank_alone)
        manifest = replace(manifest, pruning=replace(manifest.pruning, penalty=0.0))
        faulty.renewed(faulty.manifest_changed(path, pruning=manifest.pruning))
    engine = Pipeline.of(manifest, path / "processor", make_session(path)[0])
    if tuned:  # its own folder is where it says that it is from, but the checkpoint is the one of today
        return shop.judge(engine)
    return shop.judge(engine, against=shop.bundle)


def _blind_top_k(shop: Workshop) -> Outcome:
    """A float16 engine with another selection: it does not tell what it chose from."""
    from tests.backends.trt.fake_trt import make_session

    path = shop.copy(half=True)
    faulty.edit_graph(path, faulty.rank_alone)
    faulty.renewed(path)
    return shop.judge(Pipeline.of(Bundle.open(path).manifest, path / "processor", make_session(path)[0]))


def _old_recording(shop: Workshop) -> Outcome:
    """A right recording, and an artefact of another checkpoint."""
    return shop.judge(_other_checkpoint(shop), against=shop.recording)


def _swapped_engine_file(shop: Workshop) -> Outcome:
    """An engine whose plan is another build's."""
    from tests.runtime.toy import write_plan

    path = write_plan(shop.folder / "engine.plan") if not (shop.folder / "engine.plan").exists() else None
    path = path or shop.folder / "engine.plan"
    path.write_bytes(path.read_bytes()[::-1])
    return shop.judge(path)


# What no question of one data set exercises: other pixels, other texts, a second call, the context's end, defaults.


def _tokenizer(edit: Callable[[dict[str, Any]], None]) -> Callable[[Workshop], Outcome]:
    return processor(lambda folder: faulty.edit_json(folder / "tokenizer.json", edit))


def _swap_texts(data: dict[str, Any]) -> None:
    """Answers print 7 for 1; prompts are made by the same ids, since no question has either digit."""
    data["decoder"] = {"type": "Replace", "pattern": {"String": "1"}, "content": "7"}


def _rare_text(data: dict[str, Any]) -> None:
    """A word prints another one, in no answer of the questions."""
    data["decoder"] = {"type": "Replace", "pattern": {"String": "magenta"}, "content": "mauve"}


def _capitals(data: dict[str, Any]) -> None:
    data["normalizer"] = None


def _accents(data: dict[str, Any]) -> None:
    data["pre_tokenizer"] = {"type": "WhitespaceSplit"}


def _first_image_only(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    text = file.read_text()
    loop = "{% for part in message['content'] if part['type'] == 'image' %}<image> {% endfor %}"
    assert loop in text
    file.write_text(text.replace(loop, "{% if message['content'][0]['type'] == 'image' %}<image> {% endif %}"))


def _whitespace(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("{{ part['text'] }}", "{{ part['text'] | trim | replace('\n', ' | ') }}"))


def manifest(part: str, **changes: Any) -> Callable[[Workshop], Outcome]:
    """A bundle whose manifest says something else, in one of its parts."""

    def judge(shop: Workshop) -> Outcome:
        path = shop.copy()
        found = getattr(Bundle.open(path).manifest, part)
        return shop.judge(faulty.manifest_changed(path, **{part: replace(found, **changes)}))

    return judge


def _not_as_it_says(shop: Workshop) -> Outcome:
    """Graph and manifest have another penalty than the paper, whose settings the manifest names as their source."""
    path = shop.copy()
    faulty.edit_graph(path, faulty.rank_alone)
    settings = replace(Bundle.open(shop.bundle).manifest.pruning, penalty=0.0)
    names = tuple(name for name, value in vars(PruningSettings()).items() if getattr(settings, name) != value)
    source = PruningSource("paper", overridden=tuple(name for name in names if name != "penalty"))
    return shop.judge(faulty.renewed(faulty.manifest_changed(path, pruning=settings, pruning_source=source)))


def _image_loading(**changes: Any) -> Callable[[Workshop], Outcome]:
    """A host that reads image files otherwise."""

    def judge(shop: Workshop) -> Outcome:
        with mock.patch.multiple("iwp_export.runtime.images", **changes):
            return shop.judge(shop.right)

    return judge


def _on_white(image: Any) -> Any:
    """Transparency is laid on white; the checkpoint's processor drops it."""
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return ImageOps.exif_transpose(image).convert("RGB") if image.mode == "RGB" else white.convert("RGB")


def _few_keeps(shop: Workshop) -> Outcome:
    """A recording at keep 1 alone."""
    path = shop.folder / "unpruned.npz"
    record(shop.reference(shop.right), shop.questions[:1], (1.0,), path, shop.new_tokens)
    return shop.judge(shop.right, against=path)


def _coarse_recording(shop: Workshop) -> Outcome:
    """A recording that says of itself that it is coarse, sealed again, and an artefact that is not its checkpoint."""
    with np.load(shop.recording) as archive:
        arrays = dict(archive)
    info = RECORDING_JSON.from_dict(json.loads(arrays["recording"].tobytes()), "it")
    text = RECORDING_JSON.to_text(replace(info, dtype="bfloat16")).encode()
    path = shop.folder / "coarse.npz"
    np.savez_compressed(path, **{**arrays, "recording": np.frombuffer(text, np.uint8)})
    faulty_path = shop.copy()
    faulty.change_weights(faulty_path, TENSOR, lambda values: values * 1.01)
    return shop.judge(faulty.renewed(faulty_path), against=path)


DAMAGED = "(its SHA-256 differs)"
FAULTS = (
    Fault("one weight value, damaged file", "", weights(change_value, VALUE, False), refusal=DAMAGED),
    Fault("one weight tensor, damaged file", "", weights(lambda v: v * 1.01, TENSOR, False), refusal=DAMAGED),
    Fault("one weight value by 0.05, hashes renewed", "caches", weights(change_value, VALUE, True)),
    Fault("one weight tensor by 1 %, hashes renewed", "caches", weights(lambda values: values * 1.01, TENSOR, True)),
    Fault("positions shifted by one, in the graph", "caches", graph(faulty.shift_positions), blind=("logits",)),
    Fault("positions shifted by one, by the host", "caches", session(inputs=faulty.later_positions), blind=("logits",)),
    Fault("positions of generated tokens shifted by one", "caches", session(inputs=faulty.later_generated_positions)),
    Fault("RoPE renumbered after pruning", "caches", graph(faulty.renumber_positions)),
    Fault("one token fewer kept", "kept tokens", session(inputs=faulty.other_count(-1))),
    Fault("one token more kept", "kept tokens", session(inputs=faulty.other_count(1))),
    Fault("images swapped, by the host", "pixels", _swapped_pictures),
    Fault("images swapped, in the decoder", "caches", session(order=lambda images: images[::-1], pairs=True)),
    Fault("wrong chat template", "prompt", processor(_template)),
    Fault("pixel normalisation left out", "pixels", processor(_image_settings(do_normalize=False))),
    Fault("pixels normalised by another mean", "pixels", processor(_image_settings(image_mean=CLIP_MEAN))),
    Fault("a cache row lost in one layer", "caches", lost_row((5,), drop=False)),
    Fault("a cache row dropped behind the pruning layer", "caches", lost_row(range(4, 8), drop=True)),
    Fault("fp16 overflow", "caches", _overflow, quick=False),
    Fault("top-k in place of the selection", "kept tokens", graph(faulty.rank_alone)),
    Fault("top-k in place of the selection, float16 engine", "kept tokens", _blind_top_k, quick=False),
    Fault("scored by the wrong query", "kept tokens", session(inputs=faulty.first_queries)),
    Fault("stale engine: another checkpoint", "same checkpoint", lambda shop: _stale_engine(shop, True), quick=False),
    Fault("stale engine: other settings", "same checkpoint", lambda shop: _stale_engine(shop, False)),
    Fault("stale engine: another build's file", "", _swapped_engine_file, refusal=DAMAGED),
    Fault("answers print another digit", "text", _tokenizer(_swap_texts)),
    Fault("a word that no answer has is printed otherwise", "text", _tokenizer(_rare_text)),
    Fault("capitals are unknown words", "prompt", _tokenizer(_capitals)),
    Fault("words split at spaces alone", "prompt", _tokenizer(_accents)),
    Fault("only the first image is placed", "prompt", processor(_first_image_only)),
    Fault("lines of a prompt are joined", "prompt", processor(_whitespace)),
    Fault("nearest pixels in place of bicubic ones", "pixels", processor(_image_settings(resample=0))),
    Fault(
        "images cropped, not squeezed",
        "pixels",
        processor(_image_settings(size={"shortest_edge": 112}, do_center_crop=True)),
    ),
    Fault("a camera's orientation is not read", "pixels", _image_loading(_upright=lambda image: image.convert("RGB"))),
    Fault("transparency laid on white", "pixels", _image_loading(_upright=_on_white)),
    Fault("the context shortened in the manifest", "same checkpoint", manifest("decoder", max_positions=200)),
    Fault("another end of sequence in the manifest", "same checkpoint", manifest("decoder", eos_token_ids=(47,))),
    Fault("a repetition penalty in the manifest", "same checkpoint", manifest("generation", repetition_penalty=1.3)),
    Fault("settings that are not the paper's, as it says", "same checkpoint", _not_as_it_says),
    Fault("a second call's positions begin anew", "caches", session(inputs=faulty.second_calls_begin_anew)),
    Fault("a second call forgets what it sees", "caches", lambda shop: shop.judge(faulty.forgetful(shop.right))),
    Fault("positions end at 200", "caches", session(inputs=faulty.short_positions)),
    Fault("a recording of keep 1 alone", "kept tokens", _few_keeps),
    Fault("a recording that says it is coarse", "", _coarse_recording, refusal="its logits are finer than bfloat16"),
    Fault("a recording of another checkpoint", "", _old_recording, quick=False, refusal="the artefact of tuned"),
)
