"""`iwp-export inspect BUNDLE` or `NAME.plan`: what is in a bundle or an engine."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from iwp_export.bundle.manifest import GenerationInfo, GraphSpec, Manifest, TensorSpec
from iwp_export.bundle.recipe import SHOWN_DIGITS
from iwp_export.bundle.store import Bundle, Verify
from iwp_export.engine.files import SUFFIX, EngineInfo, read_engine
from iwp_export.engine.flavour import TITLES
from iwp_export.view.terminal import human_bytes, render
from iwp_export.view.view import Table, View

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

NUMBER = r"(?<![^.])\d+(?![^.])"
"""A part of a tensor's name that is a number: its layer."""
OBEYED = ("repetition_penalty", "suppress_tokens", "begin_suppress_tokens", "min_length", "min_new_tokens")
DRAWING = ("temperature", "top_k", "top_p", "min_p")
"""A checkpoint's wishes for the choice of tokens: always obeyed, and those for drawing."""


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
        content, manifest, files, about = info.to_dict(), info.manifest, info.files, _engine(info)
        graphs = {"language model": manifest.graphs["decoder"]}
    else:
        manifest = Bundle.open(path, verify=verified).manifest
        content, files, about = manifest.to_dict(), manifest.files, []
        graphs = {f"{role} graph: {spec.file}, opset {spec.opset}": spec for role, spec in manifest.graphs.items()}
    size = sum(file.bytes for file in files.values())
    if args.json:
        print(json.dumps({"path": str(path), "verified": verified, "bytes": size, **content}, indent=2))
        return
    checked = "every file's SHA-256" if args.verify else "sizes of all files, SHA-256 of those up to 64 MiB"
    contents = [(name, human_bytes(file.bytes), file.sha256[:SHOWN_DIGITS]) for name, file in files.items()]
    parts = (
        View("pruning", facts=_pruning(manifest)),
        *(View(title, tables=(_tensors(graph),)) for title, graph in graphs.items()),
        View("files", tables=(Table(("file", "size", "SHA-256"), contents),)),
    )
    facts = [("artefact", f"{path}  {human_bytes(size)}"), *about, *_model(manifest), ("verified", checked)]
    print(render([View(path.name, facts=facts, parts=parts)]))


def _engine(info: EngineInfo) -> list[tuple[str, object]]:
    """What an engine needs and holds."""
    wanted = info.fingerprint
    return [
        ("loads on", f"{TITLES[wanted.flavour]} {wanted.version} and a GPU of SM {', '.join(wanted.sms)}"),
        ("plugin", f"version {wanted.plugin_version}"),
        ("context", info.limits),
        ("profiles", info.profiles),
        ("tuned for", f"keep {info.keep:#.2g}"),
        ("built by", f"iwp-export {info.source}"),
    ]


def _model(manifest: Manifest) -> list[tuple[str, object]]:
    model, decoder = manifest.model, manifest.decoder
    return [
        ("model", f"{model.name} ({model.model_type}, {model.architecture})"),
        ("source", model.source + (f" at {model.revision}" if model.revision else "")),
        ("decoder", f"{decoder.layers} layers of {decoder.hidden_size}, {decoder.dtype}"),
        ("heads", f"{decoder.heads} query, {decoder.kv_heads} key/value, size {decoder.head_dim}"),
        ("positions", f"{decoder.max_positions}, vocabulary {decoder.vocab_size}"),
        ("image", f"{manifest.vision.tokens} visual tokens"),
        ("made by", ", ".join(f"{name} {version}" for name, version in manifest.tools.items())),
        *([("generation", said)] if (said := _generation(manifest.generation)) else []),
    ]


def _generation(wishes: GenerationInfo) -> str:
    """What the checkpoint asks of the choice of tokens, where it does."""
    default = GenerationInfo()
    obeyed, drawing = (
        ", ".join(
            f"{name} {getattr(wishes, name)}" for name in names if getattr(wishes, name) != getattr(default, name)
        )
        for names in (OBEYED, DRAWING)
    )
    return "; ".join(filter(None, (obeyed, drawing and f"when drawing: {drawing}", wishes.note)))


def _pruning(manifest: Manifest) -> list[tuple[str, object]]:
    settings, source, count = manifest.pruning, manifest.pruning_source, manifest.vision.tokens.typical
    digest = f" (SHA-256 {source.digest[:SHOWN_DIGITS]})" if source.digest else ""
    shared = {name: value for name, value in settings.to_dict().items() if name != "stages"}
    keep = f"{settings.keep:#.2g} -> {settings.num_keep(count)} of {count} visual tokens"
    return [("settings", f"{source}{digest}"), ("layer", settings.layer), ("keep", keep), *shared.items()]


def _tensors(graph: GraphSpec) -> Table:
    """Inputs and outputs; tensors that differ by a layer's number alone share a row."""
    rows = [(side[:-1], *row) for side in ("inputs", "outputs") for row in merged(getattr(graph, side))]
    return Table(("", "tensor", "type", "shape"), rows)


def merged(tensors: tuple[TensorSpec, ...]) -> list[tuple[str, str, str]]:
    """Names, types and shapes of tensors, those of many layers as one: past.{0..11}.key."""
    layers: dict[tuple[str, str, str], list[int]] = {}
    for tensor in tensors:
        shape = "[" + ", ".join(map(str, tensor.shape)) + "]"
        key = (re.sub(NUMBER, "{}", tensor.name), tensor.dtype, shape)
        layers.setdefault(key, []).extend(map(int, re.findall(NUMBER, tensor.name)))
    return [(name.replace("{}", _span(found)), dtype, shape) for (name, dtype, shape), found in layers.items()]


def _span(numbers: list[int]) -> str:
    return f"{{{min(numbers)}..{max(numbers)}}}" if len(numbers) > 1 else "".join(map(str, numbers))
