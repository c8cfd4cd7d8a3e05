"""`iwp-export run BUNDLE`: an answer about images."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iwp_export.bundle.schema import to_json
from iwp_export.errors import OutputError, RequestError, os_reason
from iwp_export.pruning.settings import check_keep
from iwp_export.view.terminal import human_bytes, table

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
  iwp-export run my.bundle --image a.jpg --prompt "What is it?" --stats
"""
ASKED = ("max_new_tokens", "keep", "temperature", "top_k", "top_p", "seed")
PHASES = ("preprocess", "vision", "prefill", "decode")
UNTOLD = ("timing", "reused_tokens", "pictures", "logits")
"""What an answer holds for Python alone."""
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
    add("--force", action="store_true", help="replace drawings that are there already")
    add("--stats", action="store_true", help="show tokens per layer, what was kept of each image, and where time went")
    add("--json", action="store_true", help="print the answer, times and kept tokens as JSON")


def execute(args: argparse.Namespace) -> None:
    """Load the bundle and answer."""
    _check(args)
    import iwp_export

    pipeline = iwp_export.load(args.bundle, provider=args.provider, threads=args.threads)
    asked = {name: getattr(args, name) for name in ASKED}
    stream = pipeline.stream(args.image, args.prompt, **asked)
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
    stats = table(stats_rows(result)) if args.stats else ""
    drew = (f"drew {path}" for path in drawings)
    for line in (f"{describe(result, keep)}; settings: {source}", stats, result.note, *drew):
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
        from iwp_export.bundle.outputs import check_outputs

        drawings = _drawings(args.save_tokens, len(args.image))
        check_outputs(
            drawings,
            args.force,
            (args.bundle, *args.image),
            kinds=(".png", ".PNG"),
            noun="drawing",
            option="save_tokens",
        )


def _drawings(path: Path, count: int) -> list[Path]:
    """Where drawings go: `path`, or with several images `path` with a number before its suffix."""
    return [path] if count == 1 else [path.with_stem(f"{path.stem}-{i + 1}") for i in range(count)]


def _draw(pipeline: Pipeline, result: Result, path: Path) -> list[Path]:
    """Write a drawing for each image."""
    from iwp_export.files import whole_file

    paths = _drawings(path, len(result.pictures))
    for i, target in enumerate(paths):
        try:
            with whole_file(target) as file:
                pipeline.draw_kept(result, i).save(file)
        except OSError as error:
            raise OutputError(f"Cannot write {target}: {os_reason(error)}", options=("save_tokens",)) from error
    return paths


def describe(result: Result, keep: float) -> str:
    """Times and what pruning kept, as one line."""
    from iwp_export.view.figures import milliseconds

    timing = result.timing
    parts = [f"{name} {milliseconds(getattr(timing, name))}" for name in PHASES]
    speed = f" ({timing.tokens_per_second:.1f} tokens/s)" if timing.decode_tokens else ""
    tokens = f"keep {keep:#.2g} -> {result.visual_tokens_kept} of {result.visual_tokens} visual tokens"
    cache = f"cache {human_bytes(result.cache_bytes_unpruned)} -> {human_bytes(result.cache_bytes)}"
    generated = f"{len(result.token_ids)} tokens{FINISHED[result.finish_reason]}"
    return f"{', '.join(parts)}{speed}; {generated}; {tokens}; {cache}"


def stats_rows(result: Result) -> list[tuple[str, object]]:
    """What one answer says of tokens, caches and time, by name. All of it comes from the artefact: no torch."""
    from iwp_export.view.figures import milliseconds, percent

    timing, text = result.timing, result.prompt_tokens - result.visual_tokens
    rows: list[tuple[str, object]] = [
        ("prompt", f"{result.prompt_tokens:,} tokens: {result.visual_tokens:,} visual, {text:,} others")
    ]
    for number, (picture, kept) in enumerate(zip(result.pictures, result.kept, strict=True), 1):
        share = len(kept) / picture.num_tokens
        rows.append(
            (f"image {number}", f"{len(kept):,} of {picture.num_tokens:,} visual tokens kept ({percent(share)})")
        )
    for length, layers in itertools.groupby(enumerate(result.cache_lengths), lambda entry: entry[1]):
        numbers = [number for number, _ in layers]
        name = f"layers {numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"layer {numbers[0]}"
        rows.append((name, f"{length:,} tokens in the cache"))
    share = result.cache_bytes / result.cache_bytes_unpruned
    sizes = f"{human_bytes(result.cache_bytes)} of {human_bytes(result.cache_bytes_unpruned)} unpruned"
    rows.append(("cache", f"{sizes} ({percent(share)})"))
    phases = {name: getattr(timing, name) for name in PHASES}
    whole = sum(phases.values())
    rows += [(name, f"{milliseconds(value)} ({percent(value / whole)})") for name, value in phases.items()]
    rows.append(("first token", f"after {milliseconds(timing.time_to_first_token)}"))
    if timing.decode_tokens:
        rows.append(("each further", milliseconds(timing.decode / timing.decode_tokens)))
    return rows


def summarise(result: Result, keep: float, provider: str) -> dict[str, Any]:
    """An answer as JSON values; times in seconds, sizes in bytes."""
    timing = {**vars(result.timing), "time_to_first_token": result.timing.time_to_first_token}
    body = {name: value for name, value in vars(result).items() if name not in UNTOLD}
    body["visual_tokens_kept"] = result.visual_tokens_kept
    return {**body, "keep": keep, "provider": provider, "seconds": timing}
