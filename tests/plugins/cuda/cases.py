"""Inputs of the CUDA selection, random and adversarial, and the judge of its output."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from iwp_export.engine.kernels import SelectionOptions, SelectionShape
from iwp_export.pruning.reference import select_tokens, selection_gap

TIE = 1e-5
"""A token that was left out may beat one that was taken by this much of the priority's range [0, 1]. Squared distances
come from sums of squares, as in the oracle: |k|^2 / sqrt(d) is about 10, so rounding leaves about 1e-6 in the exponent,
and the penalty multiplies it by 5."""


DEFAULTS = SelectionOptions(chunk=2, growth=2, penalty=5.0, heads="softmax", duplication_norm="none")


@dataclass
class Case:
    """Inputs of one call; values are representable in `shape.data_type` but held in float32."""

    shape: SelectionShape
    options: SelectionOptions
    query: np.ndarray
    key: np.ndarray
    key_rotated: np.ndarray
    value: np.ndarray
    is_visual: np.ndarray
    tie: float = TIE
    name: str = ""

    def encoded(self) -> tuple[np.ndarray, ...]:
        """query, key, key_rotated, value as the library reads them: float32, or the bits of 16-bit floats."""
        return tuple(encode(x, self.shape.data_type) for x in (self.query, self.key, self.key_rotated, self.value))

    def expected(self, sample: int) -> np.ndarray:
        """The oracle's output for one sample."""
        query, key, rotated, value, budget = self._visual(sample)
        keep = ~self.is_visual[sample]
        chosen = select_tokens(query, key, rotated, value, budget, **asdict(self.options))
        keep[np.flatnonzero(self.is_visual[sample])[chosen]] = True
        return np.flatnonzero(keep)

    def judge(self, kept: np.ndarray) -> float:
        """0 if `kept` [B, num_kept] equals the oracle's output, else how far it is from a valid one.

        Raises:
            AssertionError: the output breaks the contract or differs by more than a tie.
        """
        assert kept.shape == (self.shape.batch, self.shape.num_kept)
        worst = 0.0
        for sample, row in enumerate(kept):
            visual = self.is_visual[sample]
            expected = self.expected(sample)
            if np.array_equal(row, expected):
                continue
            mine = set(row.tolist()) - set(expected.tolist())
            text_kept = np.isin(np.flatnonzero(~visual), row).all()
            assert (np.diff(row) > 0).all() and row[0] >= 0 and row[-1] < visual.size and text_kept, (
                f"{self}: sample {sample} is no ascending list with all text: {row}"
            )
            query, key, rotated, value, _ = self._visual(sample)
            chosen = np.flatnonzero(np.isin(np.flatnonzero(visual), row))
            gap = selection_gap(chosen, query, key, rotated, value, **asdict(self.options))
            assert gap <= self.tie, f"{self}: sample {sample} took {mine} instead, off by {gap:.3g}"
            worst = max(worst, gap)
        return worst

    def _visual(self, sample: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
        visual = self.is_visual[sample]
        key, rotated, value = (x[sample][:, visual] for x in (self.key, self.key_rotated, self.value))
        budget = self.shape.num_kept - int((~visual).sum())
        return self.query[sample], key, rotated, value, min(max(budget, 0), int(visual.sum()))

    def __str__(self) -> str:
        return f"{self.name or 'case'} {self.shape} {self.options}"


def encode(x: np.ndarray, data_type: str) -> np.ndarray:
    """float32 values as an array of what the library reads; values must be representable."""
    if data_type == "float32":
        return np.ascontiguousarray(x, np.float32)
    if data_type == "float16":
        return np.ascontiguousarray(x.astype(np.float16))
    return np.ascontiguousarray((np.ascontiguousarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16))


def rounded(x: np.ndarray, data_type: str) -> np.ndarray:
    """float32 values rounded to `data_type` (bfloat16 by truncation, which serves as well for inputs)."""
    if data_type == "float16":
        return x.astype(np.float16).astype(np.float32)
    x = np.ascontiguousarray(x, np.float32)
    return (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32) if data_type == "bfloat16" else x


def make_case(
    rng: np.random.Generator,
    *,
    visual: int,
    text: int,
    keep: float,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 32,
    batch: int = 1,
    data_type: str = "float16",
    clusters: int = 0,
    scale: float = 1.0,
    name: str = "",
    weighting: str = "softmax",
    **options: Any,
) -> Case:
    """A random case; text stands at random places. With `clusters`, visual tokens are near-copies of that many."""
    tokens = visual + text
    is_visual = np.zeros((batch, tokens), bool)
    for row in is_visual:
        row[rng.permutation(tokens)[:visual]] = True

    def draw() -> np.ndarray:
        x = rng.standard_normal((batch, kv_heads, tokens, head_dim), dtype=np.float32)
        if clusters:
            centres = rng.standard_normal((batch, kv_heads, clusters, head_dim), dtype=np.float32)
            x = 0.3 * x + centres[:, :, rng.integers(0, clusters, tokens)]
        # Keys a distance of about sqrt(d) apart make the Gaussian kernel neither 0 nor 1.
        return rounded(scale * x, data_type)

    num_kept = text + int(np.ceil(keep * visual))
    shape = SelectionShape(batch, heads, kv_heads, tokens, head_dim, num_kept, data_type)
    query = rounded(rng.standard_normal((batch, heads, head_dim), dtype=np.float32), data_type)
    return Case(
        shape,
        replace(DEFAULTS, heads=weighting, **options),
        query,
        draw(),
        rounded(0.5 * draw(), data_type),
        draw(),
        is_visual,
        name=name,
    )


def random_cases(count: int, largest: int, seed: int = 0) -> list[Case]:
    """Cases over sizes, head sizes (odd ones too), types, budgets, options and text positions."""
    rng = np.random.default_rng(seed)
    cases = []
    for i in range(count):
        kv_heads = int(rng.choice([1, 2, 3, 4, 8]))
        visual = int(np.exp(rng.uniform(0, np.log(largest))))
        cases.append(
            make_case(
                rng,
                visual=visual,
                text=int(rng.choice([0, 1, 5, 40])),
                keep=float(rng.choice([rng.uniform(0, 1), 0.3, 0.111])),
                heads=kv_heads * int(rng.choice([1, 2, 7, 9])),
                kv_heads=kv_heads,
                head_dim=int(rng.choice([1, 7, 8, 16, 33, 40, 64, 72, 80, 96, 112, 128, 256])),
                batch=int(rng.choice([1, 1, 3])),
                data_type=str(rng.choice(["float32", "float16", "bfloat16"])),
                clusters=int(rng.choice([0, 6, 40])),
                weighting=str(rng.choice(["softmax", "softmax", "raw"])),
                duplication_norm=str(rng.choice(["none", "none", "minmax"])),
                chunk=int(rng.choice([1, 2, 2, 5])),
                growth=int(rng.choice([1, 2, 2, 4])),
                penalty=float(rng.choice([5.0, 5.0, 1.0, 0.0])),
                name=f"random {i}",
            )
        )
    return cases


def adversarial_cases(seed: int = 1) -> list[Case]:
    """Ties, duplicates, zeros, extremes of size and of budget."""
    rng = np.random.default_rng(seed)
    cases = []

    def add(name: str, **arguments: Any) -> Case:
        cases.append(make_case(rng, name=name, **arguments))
        return cases[-1]

    for data_type in ("float32", "float16", "bfloat16"):
        case = add("all tokens equal", visual=70, text=3, keep=0.4, data_type=data_type)
        for x in (case.key, case.key_rotated, case.value):
            x[:] = x[:, :, :1]
        case = add("pairs of exact duplicates", visual=150, text=6, keep=0.5, data_type=data_type)
        for x in (case.key, case.key_rotated, case.value):
            x[:, :, 1::2] = x[:, :, ::2]
        case = add("some zero values", visual=90, text=2, keep=0.7, data_type=data_type)
        case.value[:, :, ::3] = 0
        case = add("all values zero", visual=40, text=2, keep=0.3, data_type=data_type)
        case.value[:] = 0
        case = add("zero query", visual=80, text=2, keep=0.3, data_type=data_type)
        case.query[:] = 0
    for weighting in ("softmax", "raw"):
        case = add("huge logits", visual=100, text=9, keep=0.3, weighting=weighting, scale=8.0)
        case.query *= 16
        case.tie = 1e-4  # logits of several hundred carry rounding of 1e-5, which exp passes on
    add("one visual token, kept", visual=1, text=7, keep=1.0)
    case = add("one visual token, dropped", visual=1, text=7, keep=1.0)
    case.shape = replace(case.shape, num_kept=7)
    add("no visual token", visual=0, text=12, keep=0.5)
    add("decode step", visual=0, text=1, keep=0.5)
    add("all kept", visual=50, text=5, keep=1.0)
    add("none kept", visual=50, text=5, keep=0.0)
    add("no text", visual=130, text=0, keep=0.2)
    add("one beyond a tile", visual=129, text=0, keep=0.9, head_dim=40)
    add("nothing at all", visual=9, text=0, keep=0.0)
    return cases
