"""The language model of the benchmarks on a CPU: random weights, exported, prompted, and timed in turn."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from calibration.random_checkpoint import IMAGE_TOKEN, write_processor
from iwp_export import api
from iwp_export.pruning.cost import PrefillCost
from iwp_export.pruning.settings import PruningSettings
from tests.runtime.toy import build_prompt

TEXT_TOKENS = 32


@dataclass(frozen=True)
class Shape:
    """The language model and the prompt."""

    layers: int = 12
    hidden: int = 768
    heads: int = 12
    inner: int = 2048
    vocabulary: int = 32000
    grid: int = 24

    @property
    def visual(self) -> int:
        return self.grid**2

    @property
    def prompt(self) -> int:
        return self.visual + TEXT_TOKENS

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    @property
    def cost(self) -> PrefillCost:
        return PrefillCost(
            layers=self.layers,
            hidden=self.hidden,
            inner=self.inner,
            query=self.hidden,
            key_value=self.hidden,
            vocabulary=self.vocabulary,
            visual=self.visual,
            text=TEXT_TOKENS,
        )


def make_model(shape: Shape) -> Any:
    """A LLaVA with a small tower whose grid has `shape.visual` tokens."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=14 * shape.grid,
        patch_size=14,
        projection_dim=32,
    )
    text = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=4096,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN, vision_feature_layer=-1)
    return LlavaForConditionalGeneration(config).eval()


def write_model(shape: Shape, folder: Path) -> Path:
    """The model as a checkpoint, if it is not there already; returns its folder."""
    checkpoint = folder / f"{shape.layers}-layers"
    if not checkpoint.exists():
        model = make_model(shape)
        model.save_pretrained(checkpoint)
        write_processor(checkpoint, model.config)
    return checkpoint


def exported(checkpoint: Path, settings: PruningSettings) -> Path:
    """The bundle with these settings, beside the checkpoint; made once."""
    name = hashlib.sha256(json.dumps(settings.to_dict()).encode()).hexdigest()[:12]
    bundle = checkpoint.with_name(f"{checkpoint.name}-{name}.bundle")
    return bundle if bundle.exists() else api.export(str(checkpoint), bundle, settings)


@contextlib.contextmanager
def work_folder(kept: Path | None) -> Iterator[Path]:
    """`kept`, whose bundles a later run uses again, or a folder that goes away."""
    if kept is not None:
        yield kept
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


class Decoder:
    """An exported decoder in ONNX Runtime, and the prompt."""

    def __init__(self, checkpoint: Path, shape: Shape, settings: PruningSettings, threads: int) -> None:
        self.shape, self.settings = shape, settings
        self.session = open_session(exported(checkpoint, settings) / "decoder.onnx", threads)

    def prompt(self, keep: float | None = None) -> dict[str, np.ndarray]:
        """Inputs of a prefill; None is the settings' keep ratio."""
        shape, rng = self.shape, np.random.default_rng(0)
        ids = np.concatenate([np.arange(5) + 9, np.full(shape.visual, IMAGE_TOKEN), np.arange(TEXT_TOKENS - 5) + 9])
        empty = [np.zeros((1, shape.heads, 0, shape.head_size), np.float32)] * (2 * shape.layers)
        features = rng.standard_normal((shape.visual, shape.hidden)).astype(np.float32)
        return self.feeds(build_prompt(ids, IMAGE_TOKEN, self.settings, keep), features, empty)

    def feeds(self, inputs: Any, features: np.ndarray, past: list[np.ndarray]) -> dict[str, np.ndarray]:
        """Inputs of a call by name."""
        names = [f"past_key_values.{i}.{part}" for i in range(self.shape.layers) for part in ("key", "value")]
        return {
            "input_ids": inputs.input_ids,
            "image_features": features,
            "feature_index": inputs.feature_index,
            "query_index": inputs.query_index,
            "position_ids": inputs.position_ids,
            "num_kept": np.array([inputs.num_kept]),
            **dict(zip(names, past, strict=True)),
        }

    def prefill(self, keep: float | None = None) -> Callable[[], object]:
        feeds = self.prompt(keep)
        return lambda: self.session.run(None, feeds)


def open_session(model: Path | bytes, threads: int) -> onnxruntime.InferenceSession:
    """A session on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def measure(
    calls: Mapping[str, Callable[[], object]], rounds: int, repeats: Mapping[str, int] | None = None
) -> dict[str, list[float]]:
    """Seconds of each call, all calls in turn in every round; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds + 1):
        for name, call in calls.items():
            repeat = (repeats or {}).get(name, 1)
            start = time.perf_counter()
            for _ in range(repeat):
                call()
            if index:
                seconds[name].append((time.perf_counter() - start) / repeat)
    return seconds


def ratios(seconds: Mapping[str, list[float]], over: str, under: str) -> list[float]:
    """Of neighbouring runs, in order of size."""
    return sorted(a / b for a, b in zip(seconds[over], seconds[under], strict=True))


def spread(values: list[float], digits: int = 3) -> dict[str, Any]:
    """Median and quartiles."""
    low, middle, high = (round(value, digits) for value in statistics.quantiles(values, n=4, method="inclusive"))
    return {"median": middle, "quartiles": [low, high]}


def surroundings() -> dict[str, Any]:
    """Machine and versions, as a result's JSON tells them."""
    return {
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "onnxruntime")},
    }
