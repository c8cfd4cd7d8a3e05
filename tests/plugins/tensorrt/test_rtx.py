"""libiwp_plugin.so in TensorRT-RTX's registry, parser and builder, on a CPU."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iwp_export.engine.flavour import is_installed
from iwp_export.engine.kernels import NoKernels, SelectionOptions, SelectionShape
from iwp_export.engine.plugin import ATTRIBUTES
from iwp_export.pruning.settings import PruningSettings
from tests.plugins.tensorrt.building import PLUGINS
from tests.plugins.tensorrt.rtx_process import HEAD_DIM, KV_HEADS, TOKENS

Build = Callable[..., tuple[dict[str, Any], bytes]]

FIELD_BYTES = 90
"""From the last field's name to the end of its value in a plan."""


@pytest.fixture
def build_in_rtx(tmp_path: Path) -> Build:
    """Runs `rtx_process`; gives its answer and the plan's bytes."""
    if not is_installed("rtx"):
        pytest.skip("TensorRT-RTX is not installed: pip install 'iwp-export[rtx]' runs these tests, with no GPU")

    def build(
        library: Path | None,
        *,
        embed: bool = False,
        data_type: str = "float16",
        profiles: tuple[int, ...] = (TOKENS,),
        **attributes: Any,
    ) -> Any:
        plan = tmp_path / "engine.plan"
        request = {
            "library": str(library) if library else None,
            "attributes": attributes,
            "data_type": data_type,
            "profiles": profiles,
            "embed": embed,
            "plan": str(plan),
        }
        command = [sys.executable, "-m", "tests.plugins.tensorrt.rtx_process", json.dumps(request)]
        done = subprocess.run(command, cwd=PLUGINS.parent, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        answer = json.loads(done.stdout.splitlines()[-1])
        return answer, plan.read_bytes() if answer["built"] else b""

    return build


def test_exports_two_functions_and_needs_no_tensorrt(plugin_library: Path) -> None:
    defined = _run("nm", "-D", "--defined-only", str(plugin_library))
    assert sorted(line.split()[-1] for line in defined.splitlines()) == ["getCreators", "setLoggerFinder"]
    needed = _run("readelf", "-d", str(plugin_library))
    assert "nvinfer" not in needed and "cudart" not in needed


def test_stays_registered_where_the_plugin_in_python_is_asked_for_next(plugin_library: Path) -> None:
    code = f"""
from pathlib import Path
from iwp_export.engine.flavour import load_flavour
from iwp_export.engine.kernels import NoKernels
from iwp_export.engine.network import register_plugin
rtx = load_flavour("rtx")
for library in (Path({str(plugin_library)!r}), None, Path({str(plugin_library)!r})):
    assert register_plugin(rtx, NoKernels(), print, library) is None
assert rtx.trt.get_plugin_registry().get_creator("SelectTokens", "3", "iwp") is not None
"""
    _run(sys.executable, "-c", code)


def test_builds_with_the_fields_of_the_graph(plugin_library: Path, build_in_rtx: Build) -> None:
    answer, plan = build_in_rtx(plugin_library, chunk=3, penalty=4.25, similarity="kernel")
    assert answer["errors"] == []
    assert list(answer["fields"]) == list(ATTRIBUTES)
    assert answer["layers"] == ["PLUGIN_V3"]
    assert answer["output"] == ["DataType.INT64", [1, -1]]
    fields = _fields_of(plan)
    assert struct.pack("<i", 3) in _part(fields, b"chunk", b"growth")
    assert struct.pack("<f", 4.25) in _part(fields, b"penalty", b"similarity")
    assert b"kernel" in _part(fields, b"similarity", b"duplication_norm")


@pytest.mark.parametrize("in_python", [False, True])
def test_a_plan_stores_what_each_profile_was_granted(
    plugin_library: Path, build_in_rtx: Build, in_python: bool
) -> None:
    profiles = (TOKENS, 50, 5000)
    _, plan = build_in_rtx(None if in_python else plugin_library, profiles=profiles)
    options = SelectionOptions(**PruningSettings().selection())
    shapes = [SelectionShape(1, KV_HEADS, n, HEAD_DIM, n, "float16") for n in profiles]
    stored = [plan[place : place + FIELD_BYTES] for place in _places(plan, b"workspace")]
    granted = [struct.pack("<q", NoKernels().workspace_bytes(shape, options)) for shape in shapes]
    owners = [granted.index(size) for field in stored for size in granted if size in field]
    assert len(owners) == len(stored) and set(owners) == {0, 1, 2}


@pytest.mark.parametrize("changes", [{"select": "coverage"}, {"chunk": 1, "growth": 1}])
def test_builds_for_other_selections(plugin_library: Path, build_in_rtx: Build, changes: dict[str, Any]) -> None:
    plans = []
    for library in (plugin_library, None):
        answer, plan = build_in_rtx(library, profiles=(5000,), **changes)
        assert answer["built"] and answer["errors"] == []
        plans.append(plan)
    fields = _fields_of(plans[0])
    assert fields == _fields_of(plans[1])
    assert changes.get("select", "mmr").encode() in _part(fields, b"select", b"workspace")


def test_stores_in_a_plan_what_the_python_plugin_stores(plugin_library: Path, build_in_rtx: Build) -> None:
    plans = [build_in_rtx(library, duplication_norm="minmax")[1] for library in (plugin_library, None)]
    assert _fields_of(plans[0]) == _fields_of(plans[1])


@pytest.mark.parametrize("data_type", ["float32", "bfloat16"])
def test_builds_for_other_types(plugin_library: Path, build_in_rtx: Build, data_type: str) -> None:
    answer, _ = build_in_rtx(plugin_library, data_type=data_type)
    assert answer["built"] and answer["errors"] == []


def test_the_library_can_travel_in_the_plan(plugin_library: Path, build_in_rtx: Build) -> None:
    library = plugin_library.read_bytes()
    answer, plan = build_in_rtx(plugin_library, embed=True)
    assert answer["errors"] == []
    assert library in plan
    assert library not in build_in_rtx(plugin_library)[1]


def test_an_unknown_variant_fails_in_the_parser_with_the_reason(plugin_library: Path, build_in_rtx: Build) -> None:
    answer, _ = build_in_rtx(plugin_library, similarity="hidden")
    assert not answer["parsed"] and answer["layers"] == []
    assert "similarity must be one of dual_weight, value, key, kernel, the node has 'hidden'" in answer["errors"][0]


def test_num_kept_must_be_a_shape_input(plugin_library: Path, build_in_rtx: Build) -> None:
    answer, _ = build_in_rtx(plugin_library, tensorrt_plugin_shape_input_indices=None)
    assert not answer["built"]
    assert any("tensorrt_plugin_shape_input_indices = [4]" in line for line in answer["errors"])


def test_a_bundle_becomes_an_engine(plugin_library: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    if not is_installed("rtx"):
        pytest.skip("TensorRT-RTX is not installed: pip install 'iwp-export[rtx]' runs these tests, with no GPU")
    plan = tmp_path / "engine.plan"
    settings = ["--target", "rtx", "--sm", "86", "--max-context", "256", "--plugin", str(plugin_library)]
    command = [sys.executable, "-m", "iwp_export.cli.main", "build", str(tiny_bundle), "-o", str(plan), *settings]
    done = subprocess.run(command, cwd=PLUGINS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert b"dual_weight" in _fields_of(plan.read_bytes())


def _fields_of(plan: bytes) -> bytes:
    """The plugin's fields as they stand in a plan, from the first name to the last value."""
    begin = plan.index(b"chunk")
    return plan[begin : plan.index(b"workspace", begin) + FIELD_BYTES]


def _places(data: bytes, name: bytes) -> list[int]:
    return [match.start() for match in re.finditer(name, data)]


def _part(data: bytes, begin: bytes, end: bytes) -> bytes:
    return data[data.index(begin) : data.index(end)]


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
