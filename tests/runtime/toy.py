"""A toy model whose next token is arithmetic over its caches: as a numpy session, and as a bundle of ONNX graphs.

Its two layers cache each token's embedding (its id, or its image feature) as key and value; layer 1 is the pruned one,
and pruning keeps the first visual tokens. The next token depends on every entry of layer 1's cache and on the last
position, so a wrong cache, order or position shows in the answer.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import iwp_export
from iwp_export.backends.session import Cache, CallLimits, Features, Floats, Inside, StepInputs, StepOutput
from iwp_export.bundle.manifest import Bounds, DecoderInfo, GraphSpec, Manifest, ModelInfo, TensorSpec, VisionInfo
from iwp_export.bundle.store import BundleWriter
from iwp_export.engine.files import EngineInfo, EngineWriter, Fingerprint
from iwp_export.engine.flavour import FlavourName
from iwp_export.engine.profiles import EngineLimits
from iwp_export.errors import BackendError, RequestError
from iwp_export.models import find_family
from iwp_export.models.common.family import Array, Colours, Picture
from iwp_export.pruning.onnx_function import VERSION
from iwp_export.pruning.settings import PruningSettings
from iwp_export.runtime import generate as request
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.runtime.processor import Processor

ASSETS = Path(iwp_export.__file__).parent / "assets" / "tiny_llava"
PROCESSOR_FILES = ("chat_template.jinja", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
VISION = VisionInfo(
    image_token_id=4, feature_size=3, tokens=Bounds.fixed(64), dims={}, geometry={"pixels": 112, "side": 8}
)
FAMILY = find_family("llava")
FIRST_WORD, VOCABULARY = 7, 48
"""The model only says words from 7 on: below are special tokens and the names of roles."""


def decoder_info(dtype: str = "float32", max_positions: int = 512) -> DecoderInfo:
    return DecoderInfo(2, 3, 6, 1, 1, 3, VOCABULARY, max_positions, dtype, 2, (3,), 0)


def toy_picture(pixels: Array) -> Picture:
    """A picture of pixels [3, 112, 112]."""
    return FAMILY.picture({"pixel_values": pixels[None]}, VISION, Colours())


def build_prompt(
    ids: npt.ArrayLike, image_token: int, settings: PruningSettings, keep: float | None = None, start: int = 0
) -> StepInputs:
    """Inputs of a prompt whose positions go on from `start`."""
    tokens = np.asarray(ids, np.int64)
    positions = np.arange(start, start + tokens.size)[None]
    return request.build_prompt(tokens, tokens == image_token, positions, settings, keep)


def build_decode(token: int, position: int) -> StepInputs:
    """Inputs of a generated token."""
    return request.build_decode(token, np.array([[position]]))


def next_token(key: np.ndarray[Any, Any], position: int) -> int:
    """The rule of the model, from layer 1's keys [P, 3] and the last position."""
    weights = np.array([1, 2, 3])
    return FIRST_WORD + int((key @ weights).sum() + 5 * position) % (VOCABULARY - FIRST_WORD)


@dataclass
class ToyFeatures:
    values: Floats

    @property
    def count(self) -> int:
        return len(self.values)

    @property
    def nbytes(self) -> int:
        return self.values.nbytes


@dataclass
class ToyCache:
    layers: list[Floats] = field(default_factory=lambda: [np.zeros((0, 3), np.float32)] * 2)

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(map(len, self.layers))

    @property
    def nbytes(self) -> int:
        return 2 * sum(layer.nbytes for layer in self.layers)


class ToySession:
    """The toy in numpy; counts what it was asked for, and answers `answers` first where a test wants certain words."""

    provider = "toy"
    call_limits: CallLimits | None = None
    no_look = "the toy has nothing inside"

    def __init__(self) -> None:
        self.encoded = 0
        self.calls: list[StepInputs] = []
        self.answers: list[int] = []
        self.fail = False

    def encode(self, inputs: Mapping[str, Array]) -> Features:
        self.encoded += 1
        return ToyFeatures(toy_features(inputs["pixel_values"]))

    def new_cache(self) -> Cache:
        return ToyCache()

    def step(self, inputs: StepInputs, features: Sequence[Features], cache: Cache) -> StepOutput:
        assert isinstance(cache, ToyCache)
        if self.fail:
            raise BackendError("the toy was told to fail")
        if self.call_limits is not None and not self.call_limits.allow(inputs.feature_index[0] >= 0):
            raise RequestError("the call is beyond the toy's limits")
        self.calls.append(inputs)
        index = inputs.feature_index[0]
        rows = np.concatenate(
            [image.values for image in features if isinstance(image, ToyFeatures)] or [np.zeros((1, 3), np.float32)]
        )
        assert index.max() < len(rows)
        ids = inputs.input_ids[0]
        hidden = np.where(index[:, None] >= 0, rows[index.clip(0)], np.stack([ids, ids, ids], 1)).astype(np.float32)
        order = np.argsort(np.where(index >= 0, np.arange(len(ids)), -1), kind="stable")
        kept = np.sort(order[: inputs.num_kept])
        cache.layers = [
            np.concatenate([cache.layers[0], hidden]),
            np.concatenate([cache.layers[1], hidden[kept]]),
        ]
        token = next_token(cache.layers[1], int(inputs.position_ids[0, -1]))
        token = self.answers.pop(0) if self.answers else token
        logits = -np.abs(np.arange(VOCABULARY, dtype=np.float32) - token)
        return StepOutput(logits, kept.astype(np.int64))

    def read_features(self, features: Features) -> Floats:
        assert isinstance(features, ToyFeatures)
        return features.values

    def read_cache(self, cache: Cache, layer: int) -> tuple[Floats, Floats]:
        assert isinstance(cache, ToyCache)
        return cache.layers[layer][None], cache.layers[layer][None]

    def look(self, inputs: StepInputs, features: Sequence[Features], cache: Cache) -> tuple[StepOutput, Inside]:
        raise BackendError(self.no_look)


def toy_features(pixel_values: Floats) -> Floats:
    """Mean colour of each patch, times four and rounded: [T * 64, 3]."""
    tiles = pixel_values.reshape(-1, 3, 8, 14, 8, 14).mean((3, 5))
    return np.rint(tiles * 4).transpose(0, 2, 3, 1).reshape(-1, 3).astype(np.float32)


def toy_manifest(dtype: str = "float32", max_positions: int = 512, keep: float = 0.5) -> Manifest:
    past = [
        TensorSpec(f"past_key_values.{i}.{kind}", dtype, (1, 1, f"past_{i}", 3))
        for i in (0, 1)
        for kind in ("key", "value")
    ]
    present = [TensorSpec(t.name.replace("past_key_values", "present"), dtype, (1, 1, "total", 3)) for t in past]
    inputs = (
        TensorSpec("input_ids", "int64", (1, "S")),
        TensorSpec("image_features", dtype, ("N", 3)),
        TensorSpec("feature_index", "int64", (1, "S")),
        TensorSpec("query_index", "int64", ("Q",)),
        TensorSpec("position_ids", "int64", (1, "S")),
        TensorSpec("num_kept", "int64", (1,)),
        *past,
    )
    outputs = (
        TensorSpec("logits", "float32", (1, 1, VOCABULARY)),
        *present,
        TensorSpec("kept_index", "int64", (1, "K")),
    )
    vision_in = (TensorSpec("pixel_values", "float32", (1, 3, 112, 112)),)
    vision_out = (TensorSpec("image_features", dtype, ("n", 3)),)
    return Manifest(
        model=ModelInfo("toy", "toy", "llava", "Toy"),
        pruning=PruningSettings(layer=1, keep=keep),
        decoder=decoder_info(dtype, max_positions),
        vision=VISION,
        graphs={
            "decoder": GraphSpec("decoder.onnx", "decoder.weights", 20, inputs, outputs),
            "vision": GraphSpec("vision.onnx", "vision.weights", 20, vision_in, vision_out),
        },
    )


def toy_pipeline(max_positions: int = 512, keep: float = 0.5) -> tuple[Pipeline, ToySession]:
    """A pipeline with the real processor of tiny-llava over the numpy session."""
    session = ToySession()
    processor = Processor(ASSETS, VISION, FAMILY)
    return Pipeline(toy_manifest(max_positions=max_positions, keep=keep), processor, session), session


def write_toy_bundle(path: Path, dtype: str = "float32") -> Path:
    """The toy as a bundle of ONNX graphs, with tiny-llava's processor."""
    from onnx import save

    manifest = toy_manifest(dtype)
    with BundleWriter(path) as writer:
        (writer.folder / "processor").mkdir()
        for name in PROCESSOR_FILES:
            shutil.copy(ASSETS / name, writer.folder / "processor")
        for name, model in (("decoder", _decoder(manifest)), ("vision", _vision(manifest))):
            save(
                model,
                writer.folder / f"{name}.onnx",
                save_as_external_data=True,
                location=f"{name}.weights",
                size_threshold=0,
            )
            (writer.folder / f"{name}.weights").touch()
        writer.commit(manifest)
    return path


def _decoder(manifest: Manifest) -> Any:
    from onnx.parser import parse_graph

    kind = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}[manifest.decoder.dtype]
    number = {"float32": 1, "float16": 10, "bfloat16": 16}[manifest.decoder.dtype]
    layers = "\n".join(
        f"""present_{i}_{name} = Concat <axis=2> (past_key_values_{i}_{name}, {"heads" if i == 0 else "kept_heads"})"""
        for i in (0, 1)
        for name in ("key", "value")
    )
    pasts = ", ".join(f"{kind}[1, 1, P{i}, 3] past_key_values_{i}_{name}" for i in (0, 1) for name in ("key", "value"))
    presents = ", ".join(f"{kind}[1, 1, T{i}, 3] present_{i}_{name}" for i in (0, 1) for name in ("key", "value"))
    text = f"""
    decoder (int64[1, S] input_ids, {kind}[N, 3] image_features, int64[1, S] feature_index, int64[Q] query_index,
        int64[1, S] position_ids, int64[1] num_kept, {pasts})
        => (float[1, 1, {VOCABULARY}] logits, {presents}, int64[1, K] kept_index)
    <float[3] weights = {{1, 2, 3}}, float[1] words = {{{VOCABULARY - FIRST_WORD}}}, float[1] first = {{{FIRST_WORD}}},
     int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] last = {{-1}}, int64 none = {{0}}, int64 step = {{1}},
     float[1] five = {{5}}, int64[3] ones = {{1, 1, 3}}, float[1] small = {{-1}}>
    {{
        visual = GreaterOrEqual(feature_index, zero)
        row = Max(feature_index, zero)
        features = Gather <axis=0> (image_features, row)
        column = Unsqueeze(input_ids, last)
        wide = Expand(column, ones)
        embedded = Cast <to={number}> (wide)
        mask = Unsqueeze(visual, last)
        hidden = Where(mask, features, embedded)
        heads = Unsqueeze(hidden, one)
        shape = Shape(input_ids)
        length = Gather <axis=0> (shape, step)
        range = Range(none, length, step)
        order = Cast <to=1> (range)
        rank = Where(visual, order, small)
        ignored, chosen = TopK <axis=1, largest=0> (rank, num_kept)
        kept_index, ignored_too = TopK <axis=1, largest=0> (chosen, num_kept)
        kept_row = Squeeze(kept_index, zero)
        kept_heads = Gather <axis=2> (heads, kept_row)
        {layers}
        keys = Cast <to=1> (present_1_key)
        product = Mul(keys, weights)
        sum = ReduceSum <keepdims=0> (product)
        position = Gather <axis=1> (position_ids, last)
        place = Cast <to=1> (position)
        scaled = Mul(place, five)
        total = Add(sum, scaled)
        word = Mod <fmod=1> (total, words)
        shifted = Add(word, words)
        positive = Mod <fmod=1> (shifted, words)
        token = Add(positive, first)
        vocabulary = Constant <value_floats=[{", ".join(f"{i}.0" for i in range(VOCABULARY))}]> ()
        difference = Sub(vocabulary, token)
        distance = Abs(difference)
        negative = Neg(distance)
        logits = Unsqueeze(negative, zero)
    }}"""
    graph = parse_graph(text)
    for tensors in (graph.input, graph.output):  # the text form of ONNX has no dots in names
        for tensor in tensors:
            tensor.name = _dotted(tensor.name)
    for node in graph.node:
        node.input[:] = map(_dotted, node.input)
        node.output[:] = map(_dotted, node.output)
    return _model(graph)


def _dotted(name: str) -> str:
    return re.sub(r"_(\d)_(key|value)$", r".\1.\2", name)


def _vision(manifest: Manifest) -> Any:
    from onnx.parser import parse_graph

    kind = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}[manifest.decoder.dtype]
    number = {"float32": 1, "float16": 10, "bfloat16": 16}[manifest.decoder.dtype]
    text = f"""
    vision (float[1, 3, 112, 112] pixel_values) => ({kind}[n, 3] image_features)
    <float[1] four = {{4}}, int64[2] flat = {{-1, 3}}>
    {{
        mean = AveragePool <kernel_shape=[14, 14], strides=[14, 14]> (pixel_values)
        scaled = Mul(mean, four)
        rounded = Round(scaled)
        last = Transpose <perm=[0, 2, 3, 1]> (rounded)
        rows = Reshape(last, flat)
        image_features = Cast <to={number}> (rows)
    }}"""
    return _model(parse_graph(text))


def _model(graph: Any) -> Any:
    from onnx import checker, helper

    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    checker.check_model(model)
    return model


def write_plan(
    path: Path,
    version: str = "1.7.1.116",
    sms: tuple[str, ...] = ("86", "89"),
    flavour: FlavourName = "rtx",
    profiles: int = 1,
) -> Path:
    """An engine's files whose engines are a few bytes."""
    with EngineWriter(path) as writer:
        for engine in (writer.paths.graph("decoder"), writer.paths.graph("vision")):
            writer.staged(engine).write_bytes(f"no engine, {engine.name}".encode())
        processor = writer.staged(writer.paths.processor)
        processor.mkdir()
        for name in PROCESSOR_FILES:
            shutil.copy(ASSETS / name, processor)
        fingerprint = Fingerprint(flavour, version, sms, str(VERSION))
        writer.commit(
            EngineInfo(fingerprint, EngineLimits(256, 200, 1), profiles, 0.3, "build toy.bundle", toy_manifest(), {})
        )
    return path
