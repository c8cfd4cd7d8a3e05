"""`iwp-export inspect BUNDLE`: what is in a bundle."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from iwp_export.bundle.manifest import GraphSpec, Manifest, TensorSpec
from iwp_export.bundle.store import Bundle, Verify
from iwp_export.cli.text import human_bytes, pairs, table

DESCRIPTION = "Show what is in a bundle: model, pruning settings, graphs with their inputs and outputs, files."
EXAMPLES = """\
  iwp-export inspect tiny-llava.bundle             settings, graphs, shapes, sizes
  iwp-export inspect tiny-llava.bundle --verify    also check the SHA-256 of every file
  iwp-export inspect tiny-llava.bundle --json      the same for programs
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder that an export wrote")
    parser.add_argument(
        "--verify", action="store_true", help="hash every file; otherwise sizes, and hashes up to 64 MiB, are checked"
    )
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")


def execute(args: argparse.Namespace) -> None:
    """Print the bundle's manifest."""
    verified: Verify = "full" if args.verify else "quick"
    bundle = Bundle.open(args.bundle, verify=verified)
    manifest = bundle.manifest
    if args.json:
        shown = {"folder": str(bundle.folder), "verified": verified, "bytes": _total(manifest), **manifest.to_dict()}
        print(json.dumps(shown, indent=2))
        return
    print(describe(args.bundle, manifest))
    checked = "every file's SHA-256" if args.verify else "sizes of all files, SHA-256 of those up to 64 MiB"
    print(f"\nverified: {checked}")


def describe(path: Path, manifest: Manifest) -> str:
    """The manifest as text for people."""
    model, decoder, vision = manifest.model, manifest.decoder, manifest.vision
    graphs = manifest.graphs.items()
    sections = [
        f"{path}  {human_bytes(_total(manifest))}",
        pairs(
            [
                ("model", f"{model.name} ({model.model_type}, {model.architecture})"),
                ("source", model.source + (f" at {model.revision}" if model.revision else "")),
                ("decoder", f"{decoder.layers} layers of {decoder.hidden_size}, {decoder.dtype}"),
                ("heads", f"{decoder.heads} query, {decoder.kv_heads} key/value, size {decoder.head_dim}"),
                ("positions", f"{decoder.max_positions}, vocabulary {decoder.vocab_size}"),
                ("image", f"{vision.image_size[0]} x {vision.image_size[1]} pixels -> {_visual(manifest)}"),
                ("made by", ", ".join(f"{name} {version}" for name, version in manifest.tools.items())),
            ]
        ),
        "pruning\n" + pairs(_pruning(manifest), "  "),
        *(f"{role} graph: {graph.file}, opset {graph.opset}\n{_tensors(graph)}" for role, graph in graphs),
        "files\n" + table([(name, human_bytes(f.bytes), f.sha256[:12]) for name, f in manifest.files.items()], "  "),
    ]
    return "\n\n".join(sections)


def _visual(manifest: Manifest) -> str:
    rows, columns = manifest.vision.grid
    return f"{manifest.vision.tokens_per_image} visual tokens ({rows} x {columns})"


def _pruning(manifest: Manifest) -> list[tuple[str, object]]:
    settings, count = manifest.pruning, manifest.vision.tokens_per_image
    shared = {name: value for name, value in settings.to_dict().items() if name != "stages"}
    keep = f"{settings.keep:.2f} -> {settings.num_keep(count)} of {count} visual tokens"
    return [("layer", settings.layer), ("keep", keep), *shared.items()]


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


def _total(manifest: Manifest) -> int:
    return sum(file.bytes for file in manifest.files.values())
