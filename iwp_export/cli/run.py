"""`iwp-export run BUNDLE`: an answer about images."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iwp_export.bundle.schema import to_json
from iwp_export.errors import OutputError, RequestError
from iwp_export.pruning.settings import check_keep
from iwp_export.tables import human_bytes

if TYPE_CHECKING:
    from iwp_export.runtime.pipeline import Pipeline
    from iwp_export.runtime.result import Result

DESCRIPTION = (
    "Answer a question about images. The answer streams to stdout; times, and what pruning kept,\n"
    "go to stderr. Needs no torch."
)
EXAMPLES = """\
  iwp-export run tiny-llava.bundle --image photo.png --prompt "what is the red digit ?"
  iwp-export run my.bundle --image a.jpg --image b.jpg --prompt "What differs?" --keep 0.2
  iwp-export run my.bundle --image a.jpg --prompt "What is it?" --save-tokens kept.png
"""
FINISHED = {"stop": "", "length": ", cut at --max-new-tokens", "context": ", cut where the model's context ends"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", type=Path, help="folder that an export wrote")
    add("--image", metavar="FILE", type=Path, action="append", default=[], help="an image; repeat for several")
    add("--prompt", metavar="TEXT", required=True, help="the question")
    add("--keep", metavar="RATIO", type=float, help="fraction of visual tokens that stays (default: the exported one)")
    add("--max-new-tokens", metavar="N", type=int, default=64, help="length of the answer at most (default: 64)")
    add("--temperature", metavar="T", type=float, default=0.0, help="0 takes the likeliest token (default: 0)")
    add("--top-k", metavar="N", type=int, help="draw from the N likeliest tokens")
    add("--top-p", metavar="P", type=float, help="draw from the likeliest tokens that sum to P")
    add("--seed", metavar="N", type=int, help="repeat the same draws")
    add("--provider", default="cpu", help="execution provider: cpu, cuda, tensorrt, ... (default: cpu)")
    add("--threads", metavar="N", type=int, help="threads of one operator (default: the provider's choice)")
    add("--save-tokens", metavar="PNG", type=Path, help="draw the image with the dropped visual tokens dimmed")
    add("--json", action="store_true", help="print the answer, times and kept tokens as JSON")


def execute(args: argparse.Namespace) -> None:
    """Load the bundle and answer."""
    _check(args)
    import iwp_export

    pipeline = iwp_export.load(args.bundle, provider=args.provider, threads=args.threads)
    stream = pipeline.stream(
        args.image,
        args.prompt,
        max_new_tokens=args.max_new_tokens,
        keep=args.keep,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
    )
    for piece in stream:
        if not args.json:
            print(piece, end="", flush=True)
    result = stream.result
    drawings = _draw(pipeline, result, args.save_tokens) if args.save_tokens else []
    keep = pipeline.manifest.pruning.keep if args.keep is None else args.keep
    source = pipeline.manifest.pruning_source
    if args.json:
        answer = summarise(result, keep, pipeline.provider)
        body = {**answer, "pruning_source": to_json(source), "drawings": list(map(str, drawings))}
        print(json.dumps(body, indent=2))
        return
    print(flush=True)
    for line in (f"{describe(result, keep)}; settings: {source}", result.note, *(f"drew {path}" for path in drawings)):
        if line:
            print(line, file=sys.stderr)


def _check(args: argparse.Namespace) -> None:
    """Refuse what can be refused before a model is loaded."""
    if args.keep is not None:
        check_keep(args.keep)
    for image in args.image:
        if not image.is_file():
            raise RequestError(f"cannot read the image {image}: there is no such file")
    if args.save_tokens:
        if not args.image:
            raise RequestError("--save-tokens draws on an image: give one with --image")
        if args.save_tokens.suffix.lower() != ".png":
            raise OutputError(f"--save-tokens writes PNG files; {args.save_tokens} does not end in .png")
        if not args.save_tokens.parent.is_dir():
            raise OutputError(f"cannot write {args.save_tokens}: there is no folder {args.save_tokens.parent}")


def _draw(pipeline: Pipeline, result: Result, path: Path) -> list[Path]:
    """Write a drawing per image: `path`, or with several images `path` with a number before its suffix."""
    count = len(result.pictures)
    paths = [path] if count == 1 else [path.with_stem(f"{path.stem}-{i + 1}") for i in range(count)]
    for i, target in enumerate(paths):
        pipeline.draw_kept(result, i).save(target)
    return paths


def describe(result: Result, keep: float) -> str:
    """Times and what pruning kept, as one line."""
    timing = result.timing
    parts = [f"{name} {1000 * getattr(timing, name):.0f} ms" for name in ("preprocess", "vision", "prefill", "decode")]
    speed = f" ({timing.tokens_per_second:.1f} tokens/s)" if timing.decode_tokens else ""
    tokens = f"keep {keep:.2f} -> {result.visual_tokens_kept} of {result.visual_tokens} visual tokens"
    cache = f"cache {human_bytes(result.cache_bytes_unpruned)} -> {human_bytes(result.cache_bytes)}"
    generated = f"{len(result.token_ids)} tokens{FINISHED[result.finish_reason]}"
    return f"{', '.join(parts)}{speed}; {generated}; {tokens}; {cache}"


def summarise(result: Result, keep: float, provider: str) -> dict[str, Any]:
    """An answer as JSON values; times in seconds, sizes in bytes."""
    names = (
        "text",
        "token_ids",
        "finish_reason",
        "note",
        "prompt_tokens",
        "visual_tokens",
        "visual_tokens_kept",
        "kept",
    )
    sizes = ("cache_bytes", "cache_bytes_unpruned")
    timing = {**vars(result.timing), "time_to_first_token": result.timing.time_to_first_token}
    body = {name: getattr(result, name) for name in (*names, *sizes)}
    return {**body, "keep": keep, "provider": provider, "seconds": timing}
