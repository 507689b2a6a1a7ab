"""manifests.py: reading anything, writing whole files and whole folders or none."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anytune.errors import StoreError
from anytune.manifests import (
    MANIFEST_NAME,
    BaseIdentity,
    Manifest,
    Probe,
    canonical_json,
    digest,
    file_hashes,
    load_json,
    read_manifest,
    run_key,
    staged_folder,
    write_atomic,
    write_manifest,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
#: Values of every kind under the manifest's own keys, so that reading gets past the first look.
manifest_like = st.fixed_dictionaries(
    {"kind": st.sampled_from(["base", "delta"]), "name": st.text(max_size=5), "base": st.just({"backbone": "a" * 64})},
    optional={name: json_values for name in Manifest.model_fields if name not in {"kind", "name", "base"}},
)
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def minimal(**fields) -> Manifest:
    return Manifest(kind="delta", name="x", base=BaseIdentity(backbone="a" * 64, name="v0"), **fields)


@quick
@given(value=json_values | manifest_like)
def test_any_json_is_a_manifest_or_a_store_error(tmp_path, value):
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(value))
    problem = manifest = None
    try:
        manifest = read_manifest(tmp_path)
    except StoreError as caught:
        problem = caught
    assert isinstance(manifest, Manifest) or str(tmp_path / MANIFEST_NAME) in problem.what


@quick
@given(data=st.binary(max_size=60))
def test_any_bytes_are_a_manifest_or_a_store_error(tmp_path, data):
    (tmp_path / MANIFEST_NAME).write_bytes(data)
    with pytest.raises(StoreError):
        read_manifest(tmp_path)


@quick
@given(value=manifest_like)
def test_what_was_read_is_written_so_that_it_reads_the_same_or_refused(tmp_path, value):
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(value))
    try:
        manifest = read_manifest(tmp_path)
        write_manifest(tmp_path, manifest)
    except StoreError:
        return
    # keys are written in order, whatever theirs was
    assert json.loads(read_manifest(tmp_path).model_dump_json()) == json.loads(manifest.model_dump_json())


@pytest.mark.parametrize(
    "text",
    ["", "[" * 100_000, "1" * 10_000, '{"seed": ' + "9" * 5000 + "}", "null", "[]", '{"kind": "base"}', "\ud800"],
)
def test_odd_manifests_are_store_errors(tmp_path, text):
    (tmp_path / MANIFEST_NAME).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(StoreError):
        read_manifest(tmp_path)


def test_a_missing_manifest_says_how_to_adopt_the_folder(tmp_path):
    with pytest.raises(StoreError, match="store import"):
        read_manifest(tmp_path)


def test_a_manifest_of_a_newer_format_asks_for_an_upgrade(tmp_path):
    (tmp_path / MANIFEST_NAME).write_text(json.dumps({**minimal().model_dump(), "format_version": 99}))
    with pytest.raises(StoreError, match="format 99") as caught:
        read_manifest(tmp_path)
    assert "upgrade" in caught.value.fix


def test_keys_of_a_newer_version_survive_reading_and_writing(tmp_path):
    content = minimal().model_dump()
    content["invented_later"] = {"a": [1, 2.5, None, "ä"]}
    content["base"]["also_new"] = True
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(content))
    write_manifest(tmp_path, read_manifest(tmp_path))
    again = json.loads((tmp_path / MANIFEST_NAME).read_text(encoding="utf-8"))
    assert again["invented_later"] == {"a": [1, 2.5, None, "ä"]}
    assert again["base"]["also_new"] is True


@pytest.mark.parametrize(
    "fields",
    [{"seconds": float("nan")}, {"probe": Probe(inputs=[[1]], outputs=[[float("inf")]])}, {"notes": ["\ud800"]}],
)
def test_a_manifest_that_could_not_be_read_again_is_refused_and_the_old_one_stays(tmp_path, fields):
    write_manifest(tmp_path, minimal(seed=7))
    with pytest.raises(StoreError, match="cannot be written as JSON"):
        write_manifest(tmp_path, minimal().model_copy(update=fields))
    assert read_manifest(tmp_path).seed == 7
    assert os.listdir(tmp_path) == [MANIFEST_NAME]


def test_an_undefined_score_is_written_as_null(tmp_path):
    write_manifest(tmp_path, minimal(scores={"test": {"matthews": float("nan"), "accuracy": 0.5}}))
    assert read_manifest(tmp_path).scores == {"test": {"matthews": None, "accuracy": 0.5}}


def test_equal_values_have_equal_digests_whatever_the_order_of_keys():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert canonical_json({"b": 1, "a": "ä"}) == '{"a":"ä","b":1}'


def test_run_keys_differ_when_anything_that_decides_differs():
    keys = {run_key(seed=0, rate=1e-3), run_key(seed=1, rate=1e-3), run_key(seed=0, rate=2e-3), run_key(seed=0)}
    assert len(keys) == 4
    assert run_key(seed=0, rate=1e-3) in keys


def test_file_hashes_cover_every_file_below_but_the_manifest_at_the_top(tmp_path):
    (tmp_path / "part").mkdir()
    for name in (MANIFEST_NAME, "a.bin", "part/b.bin", f"part/{MANIFEST_NAME}"):
        (tmp_path / name).write_bytes(b"x")
    assert list(file_hashes(tmp_path)) == ["a.bin", f"part/{MANIFEST_NAME}", "part/b.bin"]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch):
    target = tmp_path / "file"
    write_atomic(target, b"old")

    def full_disk(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StoreError, match="No space left"):
        write_atomic(target, b"new")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == []


def test_a_file_where_a_folder_is_needed_is_a_store_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot write"):
        write_atomic(tmp_path / "file" / "inside", b"new")


@pytest.mark.parametrize("problem", [ValueError("bad"), KeyboardInterrupt()])
def test_a_staged_folder_that_fails_leaves_nothing(tmp_path, problem):
    def write_half():
        with staged_folder(tmp_path / "final") as folder:
            (folder / "weights").write_bytes(b"half")
            raise problem

    with pytest.raises(type(problem)):
        write_half()
    assert os.listdir(tmp_path) == []


def test_a_staged_folder_on_a_full_disk_is_a_store_error(tmp_path):
    with pytest.raises(StoreError, match="No space left"), staged_folder(tmp_path / "final"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert os.listdir(tmp_path) == []


def test_of_two_equal_staged_folders_the_first_stays(tmp_path):
    final = tmp_path / "final"
    with staged_folder(final) as second:
        write_manifest(second, minimal(seed=2))
        with staged_folder(final) as first:
            write_manifest(first, minimal(seed=1))
    assert read_manifest(final).seed == 1
    assert os.listdir(tmp_path) == ["final"]


def test_a_killed_process_leaves_no_visible_folder(tmp_path):
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom anytune.manifests import staged_folder\n"
        "with staged_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'weights').write_bytes(b'half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "final")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [name for name in os.listdir(tmp_path) if not name.startswith(".partial-")] == []
    assert Path(tmp_path, os.listdir(tmp_path)[0], "weights").exists(), "the write had begun when it was killed"


def test_half_a_character_in_a_manifest_is_named(tmp_path):
    """JSON can escape one that no file can be written with, in a key as well as in a value."""
    for text in (r'{"\ud800": 1}', r'{"a": ["\uDFFF"]}'):
        (tmp_path / "anytune.json").write_text(text)
        with pytest.raises(StoreError, match="half a character"):
            read_manifest(tmp_path)
    (tmp_path / "x.json").write_text(r'{"a": "\ud83d\ude00", "b": "\\ud800"}')
    assert load_json(tmp_path / "x.json") == {"a": "\U0001f600", "b": r"\ud800"}
