"""Run: an answer from a bundle, its picture, and requests that cannot be served."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from iwp_export.cli.main import main

PROMPT = ["--prompt", "what is the red digit ?", "--max-new-tokens", "3", "--threads", "1"]


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)).save(path)
    return str(path)


def test_answer_goes_to_stdout_and_times_to_stderr(tiny_bundle, image, capsys):
    assert main(["run", str(tiny_bundle), "--image", image, *PROMPT]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 1
    (line,) = shown.err.splitlines()
    assert "keep 0.30 -> 20 of 64 visual tokens" in line and "prefill" in line and "tokens/s" in line
    assert line.endswith("; settings: given in full")


def test_json(tiny_bundle, image, capsys):
    assert main(["run", str(tiny_bundle), "--image", image, *PROMPT, "--keep", "0.5", "--json"]) == 0
    shown = capsys.readouterr()
    answer = json.loads(shown.out)
    assert shown.err == ""
    assert answer["visual_tokens"] == 64 and answer["visual_tokens_kept"] == 32 == len(answer["kept"][0])
    assert answer["keep"] == 0.5 and answer["provider"] == "cpu" and len(answer["token_ids"]) <= 3
    assert {"vision", "prefill", "decode", "time_to_first_token"} <= set(answer["seconds"])
    assert answer["cache_bytes"] < answer["cache_bytes_unpruned"]


def test_the_streamed_text_is_the_answer(tiny_bundle, image, capsys):
    command = ["run", str(tiny_bundle), "--image", image, *PROMPT, "--temperature", "1", "--seed", "3"]
    assert main([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert main(command) == 0
    assert capsys.readouterr().out.strip() == answer["text"]


def test_tokens_are_drawn(tiny_bundle, image, tmp_path, capsys):
    drawing = tmp_path / "kept.png"
    assert main(["run", str(tiny_bundle), "--image", image, *PROMPT, "--save-tokens", str(drawing)]) == 0
    assert f"drew {drawing}" in capsys.readouterr().err
    with Image.open(drawing) as picture:
        assert min(picture.size) >= 112


def test_several_images_are_drawn_apart(tiny_bundle, image, tmp_path, capsys):
    drawing = tmp_path / "kept.png"
    images = ["--image", image, "--image", image]
    assert main(["run", str(tiny_bundle), *images, *PROMPT, "--json", "--save-tokens", str(drawing)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["drawings"] == [str(tmp_path / "kept-1.png"), str(tmp_path / "kept-2.png")]
    assert answer["visual_tokens"] == 128


def test_text_alone(tiny_bundle, capsys):
    assert main(["run", str(tiny_bundle), *PROMPT, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["visual_tokens"] == 0 and answer["kept"] == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--image", "nothing.png"], "nothing.png"),
        (["--keep", "2"], "keep must be"),
        (["--save-tokens", "kept.png"], "--image"),
        (["--image", "IMAGE", "--save-tokens", "kept.jpg"], ".png"),
        (["--image", "IMAGE", "--provider", "abacus"], "abacus"),
        (["--image", "IMAGE", "--provider", "qnn"], "qnn"),
        (["--image", "IMAGE", "--threads", "0"], "threads must be"),
        (["--image", "IMAGE", "--threads", "100000"], "cores, got 100000 (--threads)"),
        (
            ["--image", "IMAGE", "--temperature", "1", "--seed", "-1"],
            "seed must be a whole number of 0 or more",
        ),
        (["--image", "IMAGE", "--seed", "-1"], "seed must be"),
        (["--image", "IMAGE", "--prompt", b"what \xff ?".decode(errors="surrogateescape")], "not valid UTF-8"),
        (["--image", f"{'a' * 300}.png"], "File name too long"),
        (["--image", "IMAGE", "--max-new-tokens", "0"], "max_new_tokens"),
        (["--image", "IMAGE", "--temperature", "-1"], "temperature"),
        (["--image", "IMAGE", "--temperature", "1", "--top-p", "0"], "top_p"),
        (["--image", "IMAGE", "--temperature", "1", "--top-k", "0"], "top_k"),
        (["--image", "TEXT"], "cannot read the image"),
        (["--image", "IMAGE"] * 4, "256"),
    ],
)
def test_requests_that_cannot_be_served(tiny_bundle, image, tmp_path, capsys, arguments, named):
    text = tmp_path / "text.png"
    text.write_text("no image")
    files = {"IMAGE": image, "TEXT": str(text)}
    command = ["run", str(tiny_bundle), *PROMPT, *(files.get(argument, argument) for argument in arguments)]
    assert main(command) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and len(shown.err.splitlines()) == 1, shown.err
    assert shown.err.startswith("iwp-export: error: ") and named in shown.err


def test_stats_of_one_request(tiny_bundle, image, capsys):
    """64 visual tokens, of which 20 go on past layer 4; two images are told apart."""
    command = ["run", str(tiny_bundle), "--image", image, *PROMPT]
    assert main([*command, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    lengths = answer["cache_lengths"]
    text = answer["prompt_tokens"] - 64 + len(answer["token_ids"]) - 1
    assert lengths == [text + 64] * 4 + [text + 20] * 4
    assert main([*command, "--stats"]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().err.splitlines()[1:])
    found = {name: value.strip() for name, value in lines.items()}
    assert found["image 1"] == "20 of 64 visual tokens kept (31.2 %)"
    assert found["layers 0 to 3"] == f"{lengths[0]} tokens in the cache"
    assert found["layers 4 to 7"] == f"{lengths[7]} tokens in the cache"
    assert found["prompt"].startswith(f"{answer['prompt_tokens']} tokens: 64 visual")
    assert {"cache", "preprocess", "vision", "prefill", "decode", "first token"} <= set(found)
    assert main([*command, "--image", image, "--stats"]) == 0
    assert "image 2" in capsys.readouterr().err
