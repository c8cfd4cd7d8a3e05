"""Inputs of the CUDA selection, random and adversarial, and the judge of its output."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from iwp_export.engine.kernels import DATA_TYPES, DUPLICATION_NORMS, SIMILARITIES, SelectionOptions, SelectionShape
from iwp_export.pruning.reference import select_by_importance, selection_gap

TIE = 1e-5
"""A token that was left out may beat one that was taken by this much of the priority's range [0, 1]. Squared distances
come from sums of squares, as in the oracle: |k|^2 / sqrt(d) is about 10, so rounding leaves about 1e-6 in the exponent,
and the penalty multiplies it by 5."""


DEFAULTS = SelectionOptions(
    chunk=2, growth=2, penalty=5.0, similarity="dual_weight", duplication_norm="none", select="mmr"
)


@dataclass
class Case:
    """Inputs of one call; keys and values are representable in `shape.data_type` but held in float32."""

    shape: SelectionShape
    options: SelectionOptions
    importance: np.ndarray
    key: np.ndarray
    value: np.ndarray
    is_visual: np.ndarray
    name: str = ""

    def encoded(self) -> tuple[np.ndarray, ...]:
        """importance, key, value as the library reads them; keys and values may be the bits of 16-bit floats."""
        return (self.importance, *(encode(x, self.shape.data_type) for x in (self.key, self.value)))

    def expected(self, sample: int) -> np.ndarray:
        """The oracle's output for one sample."""
        visual = self.is_visual[sample]
        budget = self.shape.num_kept - int((~visual).sum())
        budget = min(max(budget, 0), int(visual.sum()))
        keep = ~visual
        chosen = select_by_importance(*self._of_visual(sample), budget, **asdict(self.options))
        keep[np.flatnonzero(visual)[chosen]] = True
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
            chosen = np.flatnonzero(np.isin(np.flatnonzero(visual), row))
            gap = selection_gap(chosen, *self._of_visual(sample), **asdict(self.options))
            assert gap <= TIE, f"{self}: sample {sample} took {mine} instead, off by {gap:.3g}"
            worst = max(worst, gap)
        return worst

    def _of_visual(self, sample: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """importance, key, value of a sample's visual tokens."""
        visual = self.is_visual[sample]
        return self.importance[sample, visual], self.key[sample][:, visual], self.value[sample][:, visual]

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
    kv_heads: int = 2,
    head_dim: int = 32,
    batch: int = 1,
    data_type: str = "float16",
    clusters: int = 0,
    levels: int = 0,
    name: str = "",
    **options: Any,
) -> Case:
    """A random case; text stands at random places, its importance is not a number.

    Args:
        clusters: visual tokens are near-copies of that many.
        levels: importance has that many values, so that tokens tie.
    """
    tokens = visual + text
    is_visual = np.zeros((batch, tokens), bool)
    for row in is_visual:
        row[rng.permutation(tokens)[:visual]] = True
    importance = rng.lognormal(sigma=2, size=(batch, tokens)) * 10 ** rng.uniform(-6, 3)
    if levels:
        importance = np.floor(rng.uniform(-levels / 2, levels / 2, (batch, tokens)))
    importance[~is_visual] = np.nan

    def draw(scale: float) -> np.ndarray:
        x = rng.standard_normal((batch, kv_heads, tokens, head_dim), dtype=np.float32)
        if clusters:
            centres = rng.standard_normal((batch, kv_heads, clusters, head_dim), dtype=np.float32)
            x = 0.3 * x + centres[:, :, rng.integers(0, clusters, tokens)]
        return rounded(scale * x, data_type)

    num_kept = text + int(np.ceil(keep * visual))
    shape = SelectionShape(batch, kv_heads, tokens, head_dim, num_kept, data_type)
    # Keys a distance of about sqrt(d) apart make the Gaussian kernel neither 0 nor 1.
    key, value = draw(0.5), draw(1.0)
    return Case(shape, replace(DEFAULTS, **options), importance.astype(np.float32), key, value, is_visual, name)


def covering(case: Case) -> Case:
    """The same inputs for coverage."""
    return replace(case, options=replace(case.options, select="coverage"))


def random_cases(count: int, largest: int, seed: int = 0) -> list[Case]:
    """Cases over sizes, head sizes (odd ones too), budgets, options; 24 have every type, similarity and norm."""
    rng = np.random.default_rng(seed)
    cases = []
    kinds = list(product(DATA_TYPES, SIMILARITIES, DUPLICATION_NORMS))
    rng.shuffle(kinds)
    for i in range(count):
        data_type, similarity, duplication_norm = kinds[i % len(kinds)]
        visual = int(np.exp(rng.uniform(0, np.log(largest))))
        head_dim = int(rng.choice([1, 7, 8, 16, 33, 40, 64, 72, 80, 96, 112, 128, 256]))
        if head_dim == 1 and similarity in ("value", "key"):
            duplication_norm = "none"  # every cosine is 1 or -1, and minmax would spread what rounding leaves of that
        cases.append(
            make_case(
                rng,
                visual=visual,
                text=int(rng.choice([0, 1, 5, 40])),
                keep=float(rng.choice([rng.uniform(0, 1), 0.3, 0.111])),
                kv_heads=int(rng.choice([1, 2, 3, 4, 8])),
                head_dim=head_dim,
                batch=int(rng.choice([1, 1, 3])),
                data_type=data_type,
                clusters=int(rng.choice([0, 6, 40])),
                levels=int(rng.choice([0, 0, 8])),
                similarity=similarity,
                duplication_norm=duplication_norm,
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

    for data_type, similarity in zip(DATA_TYPES, ("dual_weight", "value", "key"), strict=True):
        case = add("all tokens equal", visual=70, text=3, keep=0.4, data_type=data_type)
        for x in (case.key, case.value):
            x[:] = x[:, :, :1]
        case = add("exact duplicates", visual=150, text=0, keep=0.5, data_type=data_type, similarity=similarity)
        for x in (case.key, case.value, case.importance[:, None]):
            x[:, :, 1::2] = x[:, :, ::2]
        case = add("some zero vectors", visual=90, text=2, keep=0.7, data_type=data_type, similarity=similarity)
        case.key[:, :, ::3] = case.value[:, :, ::3] = 0
        case = add("all vectors zero", visual=40, text=2, keep=0.3, data_type=data_type, similarity=similarity)
        case.key[:] = case.value[:] = 0
    add("far keys", visual=60, text=2, keep=0.5, similarity="kernel").key[:] *= 20
    add("equal importance", visual=80, text=2, keep=0.3).importance[:] = -2.5
    case = add("importance of all magnitudes", visual=100, text=9, keep=0.6)
    case.importance[:] = 10 ** rng.uniform(-37, 37, case.importance.shape)
    case = add("samples with more and less text", visual=60, text=20, keep=0.7, batch=3)
    case.is_visual[1, ::3] = False
    case.is_visual[2, np.flatnonzero(case.is_visual[2])[10:]] = False
    case.shape = replace(case.shape, num_kept=72)
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
