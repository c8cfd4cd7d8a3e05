"""The manifest of a bundle: what is in it, how its graphs are called, and what made it."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Annotated, Any

from iwp_export.bundle.document import Document
from iwp_export.bundle.outputs import BUNDLE_FORMAT
from iwp_export.bundle.recipe import Digest, PruningSource
from iwp_export.bundle.schema import Count, FileSize, Flaw, Number, Rule, TokenId, above_zero, from_json, one_of
from iwp_export.pruning.settings import PruningSettings


def is_file_name(name: str) -> bool:
    """Whether a name, with slashes, stays inside its folder on every system, and is not hidden."""
    path = PurePosixPath(name)
    plain = path.as_posix() == name and not path.is_absolute() and not re.search(r"[\\:]", name)
    return plain and name != "" and not any(part.startswith(".") for part in path.parts)


FileName = Annotated[str, Rule(is_file_name, "a name inside of the folder, with slashes and not hidden")]


@dataclass(frozen=True)
class TensorSpec:
    """A graph's input or output: numpy dtype name and shape, with names for the dimensions a request decides."""

    name: str
    dtype: str
    shape: tuple[Count | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """An ONNX graph of the bundle; `file` and `weights` are names inside the bundle's folder."""

    file: FileName
    weights: FileName
    opset: Count
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class ModelInfo:
    """The checkpoint that was exported; `digest` is `Checkpoint.digest`, which tells it from others of its name."""

    name: str
    source: str
    model_type: str
    architecture: str
    revision: str | None = None
    digest: Digest | None = None


@dataclass(frozen=True)
class Bounds:
    """Least, typical and greatest value of a size."""

    least: int
    typical: int
    greatest: int

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.typical <= self.greatest:
            raise ValueError(f"bounds must rise from 0 or more, got {self}")

    @classmethod
    def fixed(cls, value: int) -> Bounds:
        """A size that never changes."""
        return cls(value, value, value)

    def __str__(self) -> str:
        if self.least == self.greatest:
            return str(self.least)
        return f"{self.least} to {self.greatest}, typically {self.typical}"


@dataclass(frozen=True)
class VisionInfo:
    """What the host needs to know about images.

    Attributes:
        image_token_id: the token of a visual token's place in the prompt.
        feature_size: length of a visual token's feature.
        tokens: how many visual tokens an image becomes.
        dims: bounds of the vision graph's named dimensions, for one image.
        geometry: what the family needs to make the graph's inputs of an image; plain JSON.
    """

    image_token_id: int
    feature_size: int
    tokens: Bounds
    dims: Mapping[str, Bounds]
    geometry: Mapping[str, Any]


@dataclass(frozen=True)
class DecoderInfo:
    """The language model; layers below `pruning.layer` cache the full prompt, the others the pruned one.

    `intermediate_size` is the width of its gated MLPs.
    """

    layers: Count
    hidden_size: Count
    intermediate_size: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    vocab_size: Count
    max_positions: Count
    dtype: Annotated[str, one_of("float32", "float16", "bfloat16")]
    bos_token_id: TokenId | None
    eos_token_ids: tuple[TokenId, ...]
    pad_token_id: TokenId | None

    def check(self) -> None:
        """Raise ValueError where numbers contradict each other."""
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} key/value heads")

    def cache_bytes(self, lengths: list[int]) -> int:
        """Bytes of the key/value cache when layer i holds `lengths[i]` tokens."""
        item = {"float32": 4, "float16": 2, "bfloat16": 2}[self.dtype]
        return sum(lengths) * 2 * self.kv_heads * self.head_dim * item


@dataclass(frozen=True)
class GenerationInfo:
    """What the checkpoint's generation_config asks of the choice of tokens.

    Attributes:
        repetition_penalty: divides the logits above 0, and multiplies those below, of tokens that were there before.
        suppress_tokens, begin_suppress_tokens: token ids that are never chosen, and never as an answer's first.
        min_length, min_new_tokens: no end of sequence before so many tokens, with the prompt's and without them.
        top_k, top_p, min_p: among which tokens to draw where a request draws and does not say; None is all.
        do_sample, temperature: for information; a request that gives no temperature takes the likeliest token.
        ignored: settings, as `name = value`, that change transformers' tokens and are not applied.
    """

    repetition_penalty: Annotated[float, above_zero(math.inf)] = 1.0
    suppress_tokens: tuple[TokenId, ...] = ()
    begin_suppress_tokens: tuple[TokenId, ...] = ()
    min_length: Number = 0
    min_new_tokens: Number = 0
    top_k: Count | None = None
    top_p: Annotated[float, above_zero(1)] | None = None
    min_p: Annotated[float, Rule(lambda value: 0 <= value <= 1, "a number from 0 to 1")] | None = None
    do_sample: bool = False
    temperature: Annotated[float, Rule(lambda value: value >= 0, "a number of 0 or more")] | None = None
    ignored: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """What is not applied, as a line; empty if nothing is."""
        return f"generation_config asks for {', '.join(self.ignored)}, which is not applied" if self.ignored else ""


@dataclass(frozen=True)
class FileEntry:
    """Size and SHA-256 of one file of the bundle."""

    bytes: FileSize
    sha256: Digest


@dataclass(frozen=True)
class Manifest:
    """Everything that a reader of the bundle may rely on; `files` covers every file but the manifest itself.

    `graphs` holds `decoder` and `vision`. `pruning_source` says where `pruning` comes from. `processor` names the
    folder with the tokenizer, image processor and chat template. `generation` says how tokens are chosen where a
    request does not. `tools` are the versions that made the bundle.
    """

    model: ModelInfo
    pruning: PruningSettings
    decoder: DecoderInfo
    vision: VisionInfo
    graphs: Mapping[str, GraphSpec]
    pruning_source: PruningSource = field(default_factory=PruningSource)
    processor: FileName = "processor"
    generation: GenerationInfo = field(default_factory=GenerationInfo)
    tools: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[FileName, FileEntry] = field(default_factory=dict)

    def check(self) -> None:
        """Raise ValueError where parts contradict each other."""
        if self.pruning.layer >= self.decoder.layers:
            raise ValueError(f"pruning.layer is {self.pruning.layer}, the decoder has {self.decoder.layers} layers")
        if self.vision.image_token_id < 0:
            raise ValueError(f"vision.image_token_id is {self.vision.image_token_id}, must be 0 or more")
        if missing := {"decoder", "vision"} - self.graphs.keys():
            raise ValueError(f"it has no {min(missing)} graph")
        for role, graph in self.graphs.items():
            file, weights = PurePosixPath(graph.file), PurePosixPath(graph.weights)
            if file.suffix != ".onnx":  # ONNX Runtime opens other suffixes as other formats
                raise ValueError(f"graphs.{role}.file is {graph.file!r}, must end in .onnx")
            if file.parent != weights.parent:
                raise ValueError(f"graphs.{role}: {graph.file} and {graph.weights} are not in the same folder")

    def to_dict(self) -> dict[str, Any]:
        """The content of manifest.json: `format`, `schema_version` and `digest`, then the fields."""
        return MANIFEST_JSON.to_dict(self)


def export_command(data: Mapping[str, Any], path: str) -> str:
    """What to do about a manifest of an older version: the command that exports it again, if its settings are known."""
    default = vars(PruningSettings())
    try:
        source = from_json(str, data["model"]["source"], "source")
        others = {"dtype": data["decoder"]["dtype"], "revision": data["model"]["revision"]}
        settings = vars(from_json(PruningSettings, data["pruning"], "pruning"))
        words = option_words(
            {name: value for name, value in settings.items() if name == "keep" or value != default[name]}
            | {name: from_json(str, value, name) for name, value in others.items() if value is not None}
        )
    except (LookupError, TypeError, Flaw):
        return "export it again, with the settings in its manifest.json"
    # the paper's settings are the base, whatever recipe ships for the model
    command = ["iwp-export", shlex.quote(source), "--recipe", "paper", *words, "-o", shlex.quote(path), "--force"]
    return f"export it again: {' '.join(command)}"


def option_words(options: Mapping[str, Any]) -> list[str]:
    """Settings as words of a command line, quoted for a shell."""
    words = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            words += [flag, shlex.quote(str(value))]
    return words


MANIFEST_JSON = Document(
    Manifest,
    BUNDLE_FORMAT,
    foreign="is not an iwp-export bundle: its manifest.json",
    remedy="copy it or export it again",
    command=export_command,
)
