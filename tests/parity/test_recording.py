"""A recording says what its reference said, on a device without torch, and is refused where it is not whole."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iwp_export.errors import DataError, OutputError, RecordingError, RequestError
from iwp_export.parity.check import check_parity, open_reference
from iwp_export.parity.checkpoint import CheckpointReference
from iwp_export.parity.observation import Choice, Observation
from iwp_export.parity.recording import check_recording, pack, read_recording, record, unpack
from iwp_export.parity.verdict import gates
from iwp_export.questions import Question
from iwp_export.runtime.pipeline import Pipeline
from tests.parity.made_up import S, observation
from tests.parity.tampered import tampered

KEEPS = (1.0, 0.3)
MODEL = ("float32", 20)
"""Element type and vocabulary of the observation made by hand."""


@pytest.fixture(scope="module")
def golden(
    checkpoint: CheckpointReference, questions: list[Question], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    asked = [questions[0], Question((questions[0].images[0], questions[2].images[0]), "how many ?")]
    path = tmp_path_factory.mktemp("recordings") / "deep" / "golden.npz"
    return record(checkpoint, asked, KEEPS, path, 4, hidden_states=True)


def test_an_artefact_is_what_was_recorded(pipeline: Pipeline, golden: Path) -> None:
    parity = check_parity(pipeline, open_reference(pipeline, str(golden)), hidden_states=True)
    assert parity.new_tokens == 4
    assert all(gate.passed for gate in gates(parity))
    assert parity.keeps[1].stages[-1].stage == "hidden states" and parity.notes == ()
    assert (parity.samples, [keep.keep for keep in parity.keeps]) == (2, list(KEEPS))
    assert golden.stat().st_size < 2 << 20


def test_a_recording_catches_what_its_reference_catches(pipeline: Pipeline, golden: Path) -> None:
    recording = read_recording(golden)
    for changes, expected in (
        ({"pixels": lambda array: array * 0.99}, "features"),
        ({"order": lambda images: images[::-1]}, "caches"),
        ({"cache": lambda part, layer: np.roll(part, 1, axis=1) if layer == 6 else part}, "caches"),
        ({"logits": lambda logits: logits * np.float32(1.001)}, "logits"),
    ):
        parity = check_parity(tampered(pipeline, **changes), recording, max_new_tokens=4)
        assert expected in [gate.name for gate in gates(parity) if not gate.passed]


def test_on_a_device_there_is_no_torch(tiny_bundle: Path, golden: Path) -> None:
    code = f"""
import sys
for name in ("torch", "matplotlib"):
    sys.modules[name] = None
from iwp_export.runtime.pipeline import Pipeline
from iwp_export.parity import verdict
from iwp_export.parity.check import check_parity, open_reference
pipeline = Pipeline.open({str(tiny_bundle)!r}, threads=1)
reference = open_reference(pipeline, {str(golden)!r})
parity = check_parity(pipeline, reference, max_new_tokens=4, path={str(tiny_bundle)!r})
from iwp_export.errors import BackendError
try:
    open_reference(pipeline)
except BackendError as error:
    assert "needs torch" in str(error) and "recording" in str(error), error
print(all(gate.passed for gate in verdict.gates(parity)), len(verdict.view(parity).tables))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout.split() == ["True", "1"], result.stderr


def test_a_recording_has_no_other_answers(pipeline: Pipeline, golden: Path) -> None:
    recording = read_recording(golden)
    for tokens in (3, 5):
        with pytest.raises(RecordingError, match=f"the recording has answers of 4 tokens, not {tokens}"):
            check_parity(pipeline, recording, max_new_tokens=tokens)


def test_what_is_no_recording_is_refused(golden: Path, tmp_path: Path) -> None:
    whole = golden.read_bytes()
    middle = len(whole) // 2
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    for name, content, says in (
        ("cut.npz", whole[:-5000], "is damaged or is no recording"),
        ("flipped.npz", whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], "is damaged"),
        ("text.npz", b"no archive", "is damaged or is no recording"),
        ("empty.npz", b"", "is damaged or is no recording"),
        ("other.npz", (tmp_path / "other.npz").read_bytes(), "is not a recording: it has no entry 'recording'"),
    ):
        (tmp_path / name).write_bytes(content)
        assert says in refusal(tmp_path / name)
    assert refusal(tmp_path / "nothing.npz") == f"there is no recording {tmp_path / 'nothing.npz'}"
    assert "\n" not in refusal(tmp_path / "cut.npz")


def test_changed_entries_are_told(golden: Path, tmp_path: Path) -> None:
    with np.load(golden) as archive:
        arrays = dict(archive)
    assert "the content of 0.0.logits changed" in refusal(
        saved(tmp_path, arrays, **{"0.0.logits": arrays["0.0.logits"] + 1})
    )
    assert "its entries are not those that it lists: extra" in refusal(saved(tmp_path, arrays, extra=np.zeros(1)))
    lacking = {name: array for name, array in arrays.items() if name != "1.1.kept"}
    assert "its entries are not those that it lists: 1.1.kept" in refusal(saved(tmp_path, lacking))
    text = arrays["recording"].tobytes()
    for old, new, says in (
        (b'"new_tokens": 4', b'"new_tokens": 5', "was changed by hand or damaged: its digest differs"),
        (b'"schema_version": 2', b'"schema_version": 3', "schema version 3, this version reads 2: upgrade iwp-export"),
        (b'"schema_version": 2', b'"schema_version": 1', "schema version 1, this version reads 2: record again"),
        (b"iwp-recording", b"iwp-recipes", "is not a recording: it has no format"),
        (b"{", b"[", "is damaged or is no recording"),
    ):
        changed = np.frombuffer(text.replace(old, new, 1), np.uint8)
        assert says in refusal(saved(tmp_path, arrays, recording=changed))


def test_python_objects_are_not_loaded(golden: Path, tmp_path: Path) -> None:
    with np.load(golden) as archive:
        arrays = dict(archive)
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.array([Path], dtype=object), allow_pickle=True)
    path = saved(tmp_path, arrays)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("code.npy", stream.getvalue())
    assert "is damaged or is no recording" in refusal(path)


def test_a_file_that_is_there_stays(checkpoint: CheckpointReference, golden: Path) -> None:
    before = golden.read_bytes()
    with pytest.raises(OutputError, match="it already exists"):
        check_recording(golden)
    check_recording(golden, force=True)
    with pytest.raises(DataError, match="there is nothing to record"):
        record(checkpoint, [], KEEPS, golden, 2)
    assert golden.read_bytes() == before


def saved(folder: Path, arrays: dict[str, Any], **changes: Any) -> Path:
    path = folder / "changed.npz"
    np.savez(path, **{**arrays, **changes})
    return path


def refusal(path: Path) -> str:
    with pytest.raises(RecordingError) as refused:
        read_recording(path)
    return str(refused.value)


def test_a_prompt_may_have_several_lines(
    pipeline: Pipeline, checkpoint: CheckpointReference, questions: list[Question], tmp_path: Path
) -> None:
    """A document refuses control characters, after everything was measured."""
    asked = Question(questions[0].images, "what is the red digit ?\n\tanswer:")
    file = record(checkpoint, [asked], [0.3], tmp_path / "golden.npz", 1)
    recording = read_recording(file)
    assert (recording.samples or [])[0].prompt == asked.prompt
    assert all(gate.passed for gate in gates(check_parity(pipeline, recording)))


@pytest.mark.parametrize("name", ["golden", "golden.bin", "file/golden.npz"])
def test_what_could_not_be_found_or_written_is_refused_at_once(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OutputError) as caught:
        check_recording(tmp_path / name)
    assert caught.value.options == ("record",)


def npy(head: str) -> bytes:
    text = head.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def test_a_bomb_is_refused_by_its_listing(golden: Path, tmp_path: Path) -> None:
    with np.load(golden) as archive:
        arrays = dict(archive)
    np.savez_compressed(tmp_path / "bomb.npz", **arrays, zeros=np.zeros(100 << 20, np.uint8))
    assert "is no recording: it claims to hold 1" in refusal(tmp_path / "bomb.npz")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_coarser_element_type_is_not_believed(dtype: str) -> None:
    """Its limits are up to a thousand times wider."""
    first = observation()
    with pytest.raises(RecordingError, match=f"its logits are finer than {dtype}"):
        unpack(pack(first, 0, 0), 0, 0, dtype, 20)
    coarse = replace(first, logits=np.full_like(first.logits, 0.5))
    assert same(unpack(pack(coarse, 0, 0), 0, 0, dtype, 20), coarse)


@pytest.mark.parametrize(
    ("entry", "content"),
    [
        ("recording", b"no array"),
        ("recording.npy", b"no array"),
        ("recording.npy", npy("{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999,), }")),
    ],
)
def test_entries_that_claim_what_they_are_not(entry: str, content: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        archive.writestr(entry, content)
    with pytest.raises(RecordingError, match="damaged or is no recording"):
        read_recording(tmp_path / "bad.npz")


def test_an_image_that_ends_early_is_named(
    pipeline: Pipeline, checkpoint: CheckpointReference, questions: list[Question], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(questions[0].images[0].read_bytes()[:60])
    with pytest.raises(RequestError, match=r"image 1 of sample 1 \(broken.png\): cannot read the image of 60 bytes"):
        record(checkpoint, [Question((broken,), "what ?")], [0.3], tmp_path / "golden.npz", 1)
    assert not (tmp_path / "golden.npz").exists()


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Observation | Choice):
        return type(a) is type(b) and all(same(value, vars(b)[name]) for name, value in vars(a).items())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    return a is b is None or np.array_equal(a, b)


@pytest.mark.parametrize("hidden", [True, False])
def test_observations_come_back(hidden: bool) -> None:
    first, second = observation(hidden), observation(hidden)
    unpruned = replace(first, kept=np.arange(S), choice=None)
    arrays = {**pack(unpruned, 0, 0), **pack(first, 0, 1), **pack(second, 11, 0)}
    assert same(unpack(arrays, 0, 1, *MODEL), first)
    assert same(unpack(arrays, 11, 0, *MODEL), second)
    assert not same(unpack(arrays, 11, 0, *MODEL), first)


@pytest.mark.parametrize("name", ["0.token_ids", "0.0.cache.lengths", "0.features.norm", "0.alike"])
def test_what_does_not_fit_is_damage(name: str) -> None:
    arrays = pack(observation(), 0, 0)
    with pytest.raises(RecordingError, match="the recording is damaged: sample 0"):
        unpack({each: array for each, array in arrays.items() if each != name}, 0, 0, *MODEL)
    if name != "0.token_ids":
        with pytest.raises(RecordingError, match="the recording is damaged: sample 0"):
            unpack({**arrays, name: arrays[name][:-1]}, 0, 0, *MODEL)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("0.0.logits", lambda array: array[0]),
        ("0.0.logits", lambda array: array[:2]),
        ("0.0.forced", lambda array: array.astype(float)),
        ("0.0.tokens", lambda array: array[:0]),
        ("0.0.kept", lambda array: array[::-1]),
        ("0.0.kept", lambda array: array + S),
        ("0.visual", lambda array: array[:-1]),
        ("0.token_ids", lambda array: array[None]),
        ("0.token_ids", lambda array: array + 12),
        ("0.0.forced", lambda array: array - 5),
        ("0.0.tokens", lambda array: array + 2**40),
        ("0.0.text", lambda array: array[::-1] + 128),
        ("0.images", lambda array: array + 1),
        ("0.0.cache.sketch", lambda array: array[:, :3]),
        ("0.features.sketch", lambda array: array.astype("U8")),
    ],
)
def test_arrays_that_do_not_fit_are_damage(name: str, change: Any) -> None:
    """Whoever writes a file can seal it: comparisons must not meet shapes that they do not expect."""
    arrays = pack(observation(), 0, 0)
    arrays[name] = change(arrays[name])
    with pytest.raises(RecordingError, match="damaged"):
        unpack(arrays, 0, 0, *MODEL)
