"""Time of the pruning op alone, where the backend lets it be told apart from the prefill."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from iwp_export.backends.ort.session import ELEMENT_TYPES, OrtSession, create_session
from iwp_export.backends.session import CARRIERS
from iwp_export.bundle.manifest import Manifest
from iwp_export.latency.figures import Selection
from iwp_export.latency.requests import answer
from iwp_export.latency.spread import spread_of
from iwp_export.latency.workload import Ask
from iwp_export.runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from iwp_export.backends.torch.session import TorchSession

IN_A_GRAPH = "the op in a graph of its own, on random keys of the prompt's shape"
IN_PLACE = "in the prefill"
NO_ONNX = "not measured: a graph of the op alone needs the package onnx; to get it: pip install onnx"
NO_BACKEND = "not measured: {} runs it inside of the prefill and does not tell its time"
WARMUP = 3


def time_selection(
    pipeline: Pipeline, ask: Ask, keep: float, prompt: tuple[int, int, int], runs: int, threads: int | None = None
) -> Selection:
    """Time the choice of tokens.

    Args:
        pipeline: the artefact.
        ask: a request, for backends in which the op runs in its place.
        keep: share of the visual tokens that stays.
        prompt: visual tokens, text tokens, and visual tokens that stay.
        runs: how often.
        threads: of one operator, as the pipeline's.
    """
    session = pipeline.session
    if isinstance(session, OrtSession):
        try:
            call = op_in_a_graph(pipeline.manifest, session.provider, prompt, threads)
        except ModuleNotFoundError as error:
            if str(error.name).partition(".")[0] != "onnx":
                raise
            return Selection(None, NO_ONNX)
        return Selection(spread_of(_timed(call, runs)), IN_A_GRAPH)
    if session.provider == "torch":
        seconds = _in_torch(pipeline, ask, keep, runs)
        return Selection(spread_of(seconds), IN_PLACE) if seconds else Selection(None, NO_BACKEND.format("torch"))
    return Selection(None, NO_BACKEND.format(session.provider))


def op_in_a_graph(
    manifest: Manifest, provider: str, prompt: tuple[int, int, int], threads: int | None
) -> Callable[[], object]:
    """A call of the op alone in ONNX Runtime; its number of rounds depends on the prompt's shape, not on the keys.

    Raises:
        ModuleNotFoundError: there is no `onnx`, which makes the graph.
    """
    from iwp_export.pruning.onnx_function import op_alone

    decoder, (visual, text, kept) = manifest.decoder, prompt
    model = op_alone(
        manifest.pruning,
        decoder.kv_heads,
        decoder.head_dim,
        ELEMENT_TYPES[decoder.dtype],
        manifest.graphs["decoder"].opset,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "select.onnx"
        path.write_bytes(model.SerializeToString())
        session = create_session(path, provider, threads)
    rng, tokens = np.random.default_rng(0), visual + text
    shape = (1, decoder.kv_heads, tokens, decoder.head_dim)
    binding = session.io_binding()  # copies to the device now, not when it is timed
    inputs: dict[str, Any] = {
        "importance": rng.random((1, tokens), np.float32),
        "is_visual": (np.arange(tokens) < visual)[None],
        "num_kept": np.array([kept + text], np.int64),
    }
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    for name in ("key", "value"):
        values = rng.standard_normal(shape, np.float32)
        bits = values.astype(CARRIERS[decoder.dtype]) if decoder.dtype != "bfloat16" else _bfloat16(values)
        binding.bind_ortvalue_input(name, _ort_value(bits, decoder.dtype))
    binding.bind_output("kept_index")
    return lambda: (session.run_with_iobinding(binding), inputs)


def _timed(call: Callable[[], object], runs: int) -> list[float]:
    seconds = []
    for number in range(WARMUP + runs):
        start = time.perf_counter()
        call()
        if number >= WARMUP:
            seconds.append(time.perf_counter() - start)
    return seconds


def _in_torch(pipeline: Pipeline, ask: Ask, keep: float, runs: int) -> list[float]:
    """Seconds of the op in prefills of the torch reference."""
    import torch

    from iwp_export.backends.torch.decoder import select_in_torch

    session: TorchSession = pipeline.session  # type: ignore[assignment]
    chosen, seconds = select_in_torch(pipeline.manifest.pruning), []

    def select(*inputs: torch.Tensor) -> torch.Tensor:
        on_gpu = inputs[0].is_cuda
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        kept = chosen(*inputs)
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        return kept

    timed = session.choosing(pipeline.manifest.pruning, select)
    for _ in range(WARMUP + runs):
        answer(pipeline, ask, keep, 1, timed)
    return seconds[WARMUP:]


def _bfloat16(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The upper halves of float32 values, which are bfloat16."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def _ort_value(array: np.ndarray[Any, Any], dtype: str) -> Any:
    from onnxruntime import OrtValue

    return OrtValue.ortvalue_from_numpy_with_onnx_type(array, ELEMENT_TYPES[dtype])
