"""Processor folders: the template that AutoProcessor takes, and nothing of the folder that runs."""

from __future__ import annotations

import ast
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import iwp_export
from iwp_export.errors import BundleError, RequestError
from iwp_export.runtime.images import MOST_TILES
from iwp_export.runtime.processor import Processor, user_message
from tests.runtime.toy import ASSETS, FAMILY, PROCESSOR_FILES, VISION

MESSAGES = [user_message("what", 1)]
PLACES: dict[str, tuple[str, ...]] = {
    "chat_template.json": ("", "text", "named"),
    "chat_template.jinja": ("", "text"),
    "additional_chat_templates": ("", "tool_use", "default"),
    "tokenizer_config.json": ("", "text", "list", "list without default"),
    "processor_config.json": ("", "text", "named", "named without default"),
}
"""Where a checkpoint may keep its template, and as what."""


def copy_processor(target: Path) -> Path:
    for name in PROCESSOR_FILES:
        shutil.copy(ASSETS / name, target)
    return target


def change(file: Path, **values: Any) -> None:
    old = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**old, **values}))


def template(place: str, name: str = "") -> str:
    return f"{place} {name}".strip() + " <image>"


def write_template(folder: Path, place: str, form: str) -> None:
    default = "other" if form.endswith("without default") else "default"
    file = folder / place
    named = {default: template(place, default), "tool_use": template(place, "tool_use")}
    if place == "additional_chat_templates":
        file.mkdir()
        (file / f"{form}.jinja").write_text(template(place, form))
    elif place == "chat_template.jinja":
        file.write_text(template(place))
    elif form == "text":
        change(file, chat_template=template(place))
    elif form.startswith("named"):
        change(file, chat_template=named)
    else:
        change(file, chat_template=[{"name": name, "template": text} for name, text in named.items()])


@pytest.mark.parametrize("own", PLACES["processor_config.json"])
@pytest.mark.parametrize("old", PLACES["chat_template.json"])
def test_the_template_is_the_one_of_auto_processor(tmp_path: Path, own: str, old: str) -> None:
    """In every combination of places. Where AutoProcessor has none, it is the tokenizer's."""
    others = [place for place in PLACES if place not in ("processor_config.json", "chat_template.json")]
    for forms in itertools.product(*(PLACES[place] for place in others)):
        folder = tmp_path / ",".join(forms)
        folder.mkdir()
        copy_processor(folder)
        (folder / "chat_template.jinja").unlink()
        places = dict(zip(others, forms, strict=True)) | {"processor_config.json": own, "chat_template.json": old}
        for place, form in places.items():
            if form:
                write_template(folder, place, form)
        assert rendered(folder) == rendered_by_transformers(folder), places


def rendered(folder: Path) -> str:
    try:
        return Processor(folder, VISION, FAMILY).render(MESSAGES)
    except BundleError as error:
        assert "which transformers refuses" in str(error)
        return "conflict"
    except RequestError as error:
        assert "it has no chat template" in str(error) or "none is called default" in str(error)
        return "none"


def rendered_by_transformers(folder: Path) -> str:
    from transformers import AutoProcessor, AutoTokenizer

    try:
        reference = AutoProcessor.from_pretrained(folder)
    except ValueError as error:
        assert "conflicting files" in str(error)
        return "conflict"
    if reference.chat_template is None:
        reference = AutoTokenizer.from_pretrained(folder)
    try:
        return str(reference.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True))
    except ValueError as error:
        assert "chat template" in str(error)
        return "none"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.json", "{"),
        ("chat_template.json", "[]"),
        ("chat_template.json", "{}"),
        ("chat_template.json", '{"chat_template": 7}'),
        ("chat_template.json", '{"chat_template": ["x"]}'),
        ("chat_template.json", "[" * 100_000),
        ("processor_config.json", "{"),
        ("processor_config.json", "[]"),
        ("processor_config.json", '{"chat_template": 7}'),
        ("tokenizer.json", "{"),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "[]"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"chat_template": 7}'),
        ("chat_template.jinja", "\x80"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: str) -> None:
    folder = copy_processor(tmp_path)
    if name != "chat_template.jinja":
        (folder / "chat_template.jinja").unlink()
    (folder / name).write_text(content, encoding="latin-1")
    with pytest.raises(BundleError) as caught:
        Processor(folder, VISION, FAMILY)
    assert "\n" not in str(caught.value)


CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no such folder"):
        Processor(tmp_path / "nothing", VISION, FAMILY)


CODE: dict[str, Any] = {
    "AutoConfig": "evil.Evil",
    "AutoImageProcessor": "evil.Evil",
    "AutoProcessor": "evil.Evil",
    "AutoTokenizer": ["evil.Evil", "evil.Evil"],
}


def test_code_in_the_folder_is_neither_run_nor_asked_about(tmp_path: Path) -> None:
    """`auto_map` beside classes that transformers has, and beside ones it lacks; "y" waits on standard input."""
    for file, known in itertools.product(CONFIGS, (True, False)):
        folder = tmp_path / f"{file}-{known}"
        folder.mkdir()
        copy_processor(folder)
        shutil.copy(ASSETS / "config.json", folder)
        (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
        values: dict[str, Any] = {"auto_map": CODE}
        if not known:  # nothing else says what the classes are
            values |= {"tokenizer_class": "EvilTokenizer", "image_processor_type": "EvilImageProcessor"}
            change(folder / "config.json", model_type="evil", auto_map=CODE)
        if file == "processor_config.json":
            images = json.loads((folder / file).read_text())["image_processor"]
            values["image_processor"] = {**images, **values}
        change(folder / file, **values)
    code = f"""
from pathlib import Path
from iwp_export.errors import BundleError
from iwp_export.runtime.processor import Processor
from tests.runtime.toy import FAMILY, VISION
for folder in sorted(Path({str(tmp_path)!r}).glob("*-*")):
    try:
        Processor(folder, VISION, FAMILY)
    except BundleError as error:
        print(folder.name, error)
"""
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", code], input="y\n" * 50, capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()
    assert "[y/N]" not in done.stdout + done.stderr
    assert "processor_config.json-False" in done.stdout
    assert all("needs code of its own, which is never run" in line for line in done.stdout.splitlines())


def test_every_auto_class_is_told_not_to_trust_code() -> None:
    """In the whole package: what is left out makes transformers ask on the terminal."""
    found = 0
    for file in Path(iwp_export.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = ast.unparse(node.func.value)
            if node.func.attr in ("from_pretrained", "from_config") and owner.lower().startswith("auto"):
                found += 1
                trust = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert trust.get("trust_remote_code") == "False", f"{file}:{node.lineno}"
    assert found >= 3


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"size": {"height": 100_000, "width": 100_000}}, "100,000"),
        ({"size": {"height": 10_000, "width": 10_000}}, "10,000 x 10,000"),
        ({"size": {"height": 1e9, "width": 112}}, "1,000,000,000"),
        ({"size": {"height": -112, "width": 100_000}}, "100,000"),
        ({"size": {"shortest_edge": 100_000}}, "100,000"),
        ({"size": {"shortest_edge": 10_000}}, "10,000 x 10,000"),
        ({"size": {"longest_edge": 10_000}}, "10,000 x 10,000"),
        ({"crop_size": {"height": 100_000, "width": 100_000}, "do_center_crop": True}, "crop_size"),
        ({"pad_size": {"height": 10_000, "width": 10_000}, "do_pad": True}, "pad_size"),
        (
            {"image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": [[112, 100_000]]},
            "image_grid_pinpoints",
        ),
        ({"image_processor_type": "GotOcr2ImageProcessor", "max_patches": 10**9}, "max_patches"),
        (
            {
                "image_processor_type": "Qwen2VLImageProcessor",
                "size": {"shortest_edge": 10**12, "longest_edge": 10**12},
            },
            "1,000,000,000,000",
        ),
        ({"size": {"height": "x", "width": []}}, ""),
    ],
)
def test_sizes_out_of_proportion(tmp_path: Path, settings: dict[str, Any], named: str) -> None:
    folder = copy_processor(tmp_path)
    file = folder / "processor_config.json"
    images = json.loads(file.read_text())["image_processor"]
    change(file, image_processor={**images, **settings})
    with pytest.raises(BundleError) as caught:
        Processor(folder, VISION, FAMILY)
    assert named in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kind", ["CLIP", "Llava", "LlavaNext", "LlavaOnevision", "Siglip", "Qwen2VL", "GotOcr2", "Idefics3", "Glm4v"]
)
def test_sizes_of_published_processors_are_fine(tmp_path: Path, kind: str) -> None:
    from iwp_export.runtime.processor import load_image_processor

    change(tmp_path / "preprocessor_config.json", image_processor_type=f"{kind}ImageProcessor")
    assert load_image_processor(tmp_path, MOST_TILES * 336 * 336)
