"""`iwp-export inspect BUNDLE` or `NAME.plan`: what is in a bundle or an engine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from iwp_export.bundle.manifest import FileEntry, GenerationInfo, GraphSpec, Manifest, TensorSpec
from iwp_export.bundle.recipe import SHOWN_DIGITS, PruningSource
from iwp_export.bundle.store import Bundle, Verify
from iwp_export.engine.files import SUFFIX, EngineInfo, read_engine
from iwp_export.engine.flavour import TITLES
from iwp_export.tables import human_bytes, pairs, table

DESCRIPTION = (
    "Show what is in a bundle or an engine: model, pruning settings, inputs and outputs, files; of an engine also\n"
    "what it loads on and what it holds. Needs no TensorRT."
)
EXAMPLES = """\
  iwp-export inspect tiny-llava.bundle             settings, graphs, shapes, sizes
  iwp-export inspect tiny-llava.bundle --verify    also check the SHA-256 of every file
  iwp-export inspect tiny-llava.bundle --json      the same for programs
  iwp-export inspect engine.plan                   which TensorRT and GPUs it loads on, its limits
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("path", metavar="PATH", type=Path, help="folder that an export wrote, or NAME.plan")
    parser.add_argument(
        "--verify", action="store_true", help="hash every file; otherwise sizes, and hashes up to 64 MiB, are checked"
    )
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")


def execute(args: argparse.Namespace) -> None:
    """Print what the bundle's or the engine's manifest says, after a look at the files."""
    verified: Verify = "full" if args.verify else "quick"
    path: Path = args.path
    if path.suffix == SUFFIX and not path.is_dir():
        _, info = read_engine(path, verified)
        content, text, files = info.to_dict(), describe_engine(path, info), info.files
    else:
        manifest = Bundle.open(path, verify=verified).manifest
        content, text, files = manifest.to_dict(), describe(path, manifest), manifest.files
    if args.json:
        found = {"path": str(path), "verified": verified, "bytes": _total(files)}
        print(json.dumps({**found, **content}, indent=2))
        return
    print(text)
    checked = "every file's SHA-256" if args.verify else "sizes of all files, SHA-256 of those up to 64 MiB"
    print(f"\nverified: {checked}")


def describe(path: Path, manifest: Manifest) -> str:
    """A bundle's manifest as text for people."""
    graphs = manifest.graphs.items()
    sections = [
        f"{path}  {human_bytes(_total(manifest.files))}",
        pairs(_model(manifest)),
        "pruning\n" + pairs(_pruning(manifest), "  "),
        *(f"{role} graph: {graph.file}, opset {graph.opset}\n{_tensors(graph)}" for role, graph in graphs),
        _files(manifest.files),
    ]
    return "\n\n".join(sections)


def describe_engine(path: Path, info: EngineInfo) -> str:
    """What describes an engine, as text for people."""
    wanted = info.fingerprint
    needs: list[tuple[str, object]] = [
        ("loads on", f"{TITLES[wanted.flavour]} {wanted.version} and a GPU of SM {', '.join(wanted.sms)}"),
        ("plugin", f"version {wanted.plugin_version}"),
        ("context", info.limits),
        ("profiles", info.profiles),
        ("tuned for", f"keep {info.keep:.2f}"),
        ("built by", f"iwp-export {info.source}"),
    ]
    sections = [
        f"{path}  {human_bytes(_total(info.files))}",
        pairs(needs),
        pairs(_model(info.manifest)),
        "pruning\n" + pairs(_pruning(info.manifest), "  "),
        f"language model\n{_tensors(info.manifest.graphs['decoder'])}",
        _files(info.files),
    ]
    return "\n\n".join(sections)


def _model(manifest: Manifest) -> list[tuple[str, object]]:
    model, decoder, vision = manifest.model, manifest.decoder, manifest.vision
    return [
        ("model", f"{model.name} ({model.model_type}, {model.architecture})"),
        ("source", model.source + (f" at {model.revision}" if model.revision else "")),
        ("decoder", f"{decoder.layers} layers of {decoder.hidden_size}, {decoder.dtype}"),
        ("heads", f"{decoder.heads} query, {decoder.kv_heads} key/value, size {decoder.head_dim}"),
        ("positions", f"{decoder.max_positions}, vocabulary {decoder.vocab_size}"),
        ("image", f"{vision.tokens} visual tokens"),
        ("made by", ", ".join(f"{name} {version}" for name, version in manifest.tools.items())),
        *_generation(manifest.generation),
    ]


def _generation(wishes: GenerationInfo) -> list[tuple[str, object]]:
    """What the checkpoint asks of the choice of tokens, where it does."""
    obeyed = ("repetition_penalty", "suppress_tokens", "begin_suppress_tokens", "min_length", "min_new_tokens")
    drawing = ("temperature", "top_k", "top_p", "min_p")
    default = GenerationInfo()
    lists = [
        [f"{name} {getattr(wishes, name)}" for name in names if getattr(wishes, name) != getattr(default, name)]
        for names in (obeyed, drawing)
    ]
    texts = [", ".join(lists[0]), f"when drawing: {', '.join(lists[1])}" if lists[1] else "", wishes.note]
    return [("generation", "; ".join(filter(None, texts)))] if any(texts) else []


def _files(files: Mapping[str, FileEntry]) -> str:
    return "files\n" + table([(name, human_bytes(f.bytes), f.sha256[:12]) for name, f in files.items()], "  ")


def _pruning(manifest: Manifest) -> list[tuple[str, object]]:
    settings, count = manifest.pruning, manifest.vision.tokens.typical
    shared = {name: value for name, value in settings.to_dict().items() if name != "stages"}
    keep = f"{settings.keep:.2f} -> {settings.num_keep(count)} of {count} visual tokens"
    rows = [("settings", _source(manifest.pruning_source)), ("layer", settings.layer), ("keep", keep)]
    return [*rows, *shared.items()]


def _source(source: PruningSource) -> str:
    return str(source) + (f" (SHA-256 {source.digest[:SHOWN_DIGITS]})" if source.digest else "")


def _tensors(graph: GraphSpec) -> str:
    """Inputs and outputs; tensors that differ by a layer's number alone share a line."""
    rows = [(side, *row) for side in ("inputs", "outputs") for row in _merged(getattr(graph, side))]
    return table([(side[:-1], name, dtype, shape) for side, name, dtype, shape in rows], "  ")


def _merged(tensors: tuple[TensorSpec, ...]) -> list[tuple[str, str, str]]:
    layers: dict[tuple[str, str, str], list[int]] = {}
    for tensor in tensors:
        parts = tensor.name.split(".")
        numbers = [int(part) for part in parts if part.isdigit()]
        name = ".".join("{}" if part.isdigit() else part for part in parts)
        shape = "[" + ", ".join(map(str, tensor.shape)) + "]"
        layers.setdefault((name, tensor.dtype, shape), []).extend(numbers)
    return [(name.replace("{}", _span(found)), dtype, shape) for (name, dtype, shape), found in layers.items()]


def _span(numbers: list[int]) -> str:
    return f"{{{min(numbers)}..{max(numbers)}}}" if len(numbers) > 1 else "".join(map(str, numbers))


def _total(files: Mapping[str, FileEntry]) -> int:
    return sum(file.bytes for file in files.values())
