"""Any text in the place of a manifest or a recipe: a valid object, or an AnytuneError; never another exception."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anytune.errors import AnytuneError
from anytune.jobs.recipe_files import parse_pairs, parse_recipe, parse_seeds, parse_value
from anytune.jobs.recipes import load_recipe
from anytune.manifests import MANIFEST_NAME, Manifest, Parent, read_manifest, write_manifest
from anytune.report.page import build as write_report
from anytune.store import Store, describe
from tests.store.conftest import base_manifest, delta_manifest, put

QUICK = settings(
    max_examples=80, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
HARD = ["", "NaN", "../x", "/etc/passwd", "\x1b[31m", "\ud800", "\0", "sample:x", "a/b@c", "1e999", "tune/full", "-1"]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=12),
    st.sampled_from(HARD),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.sampled_from(HARD), inner, max_size=4)
    ),
    max_leaves=12,
)  # fmt: skip

MANIFEST = json.loads(
    delta_manifest(
        parents=[Parent(id="a" * 64, role="base", name="v0")], id="b" * 64, run="c" * 64, label_names=["x", "y"],
        files={"delta.safetensors": "d" * 64}, tags={"arm": "fresh"}, notes=["n"], recipe={"job": "tune"},
        probe={"inputs": [[1, 2]], "outputs": [[0.5, 0.5]]}, curve=[{"step": 1, "seconds": 0.5}],
        training={"steps": 3}, domains=[{"name": "d"}],
    ).model_dump_json()
)  # fmt: skip
RECIPE = {
    "job": "tune", "base": "sample:bert-tiny", "task": "reviews.csv", "method": {"name": "lora", "r": 4},
    "training": {"steps": 5, "learning_rate": 1e-3}, "seeds": [0, 1], "store": "s", "tags": {"arm": "x"},
}  # fmt: skip


def places(value: Any, place: tuple = ()) -> list[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(way for key, one in inner for way in places(one, (*place, key)))]


@st.composite
def mutated(draw, valid: dict) -> Any:
    """A valid object with one to three places put to any value, left out, or doubled under another key."""
    value: Any = json.loads(json.dumps(valid))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(places(value)))
        if not place:
            continue
        target = value
        for key in place[:-1]:
            target = target[key]
        how = draw(st.sampled_from(["put", "put", "put", "drop", "rename"]))
        old = target.pop(place[-1]) if isinstance(target, dict) else target[place[-1]]
        if how == "put":
            target[place[-1]] = draw(VALUES)
        elif how == "rename" and isinstance(target, dict):
            target[draw(st.text(max_size=8))] = old
    return value


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_manifest(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "deltas" / "x"
        folder.mkdir(parents=True)
        (folder / MANIFEST_NAME).write_bytes(data)
        try:
            manifest = read_manifest(folder)
        except AnytuneError:
            return
        assert isinstance(manifest, Manifest)
        # What was read can be listed, shown and written again, or is refused in so many words.
        place = Store(Path(scratch), create=False)
        for entry in place.find():
            describe.rows([entry])
            describe.lineage_tree(place, entry)
            place.problems()
            for call in (lambda one=entry: place.verify(one), lambda one=entry: place.update(one, notes=["n"]),
                         lambda: write_report(place.folder, Path(scratch) / "page.html")):  # fmt: skip
                with contextlib.suppress(AnytuneError):
                    call()


@QUICK
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_as_a_manifest(data):
    check_manifest(data)


@QUICK
@given(VALUES)
def test_any_json_as_a_manifest(value):
    check_manifest(json.dumps(value).encode())


@settings(QUICK, max_examples=250)
@given(mutated(MANIFEST))
def test_a_manifest_with_something_changed(value):
    check_manifest(json.dumps(value).encode())


@QUICK
@given(mutated(MANIFEST))
def test_a_manifest_that_was_read_is_written_as_it_was(value):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / MANIFEST_NAME).write_text(json.dumps(value))
        try:
            first = read_manifest(folder)
            write_manifest(folder, first)
        except AnytuneError:
            return
        again = read_manifest(folder)
        assert json.loads(again.model_dump_json()) == json.loads(first.model_dump_json())
        assert (again.id, again.name, again.files) == (first.id, first.name, first.files)


def check_recipe(text: str) -> None:
    try:
        parsed = parse_recipe(text)
        loaded = load_recipe(parsed.values)
    except AnytuneError:
        return
    assert loaded.jobs


@QUICK
@given(st.text(max_size=200))
def test_any_text_as_a_recipe(text):
    check_recipe(text)


@QUICK
@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@,?\n\t 01.~", max_size=60))
def test_any_signs_of_yaml_as_a_recipe(text):
    check_recipe(text)


@settings(QUICK, max_examples=250)
@given(mutated(RECIPE))
def test_a_recipe_with_something_changed(value):
    check_recipe(yaml.safe_dump(value, allow_unicode=True))
    check_recipe(json.dumps(value))
    if isinstance(value, dict):
        with contextlib.suppress(AnytuneError):
            load_recipe(value)


@QUICK
@given(st.lists(mutated(RECIPE), max_size=3), VALUES)
def test_several_jobs_with_something_changed(jobs, shared):
    for value in ({"jobs": jobs}, {"jobs": jobs, "training": shared}, {"jobs": shared, "seeds": shared}):
        with contextlib.suppress(AnytuneError):
            load_recipe(value)


@QUICK
@given(st.text(max_size=30), VALUES)
def test_any_word_of_a_command_line(word, value):
    parse_value(word) if not word.startswith(("[", "{", "'", '"')) else None
    for call in (lambda: parse_value(word), lambda: parse_pairs([word]), lambda: parse_seeds(word),
                 lambda: parse_seeds(value), lambda: load_recipe(RECIPE, [word]),
                 lambda: load_recipe(RECIPE, [f"training.steps={word}", f"{word}=3"])):  # fmt: skip
        with contextlib.suppress(AnytuneError):
            call()


@settings(QUICK, max_examples=8)
@given(mutated(MANIFEST), mutated(RECIPE))
def test_the_commands_end_with_2_and_leave_the_store_as_it_was(cli, tmp_path_factory, manifest, recipe):
    root = tmp_path_factory.mktemp("any")
    store = Store(root / "store")
    base = put(store, base_manifest())
    entry = put(store, delta_manifest(run="r"))
    (entry.folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    Path("r.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8", errors="replace")
    before = snapshot(store.folder)
    for words in (["list"], ["show", entry.folder], ["verify"], ["verify", base.reference]):
        answer = cli("store", *words, "--store", store.folder)
        assert answer.code in (0, 2), answer
        assert "Traceback" not in answer.err
        assert "bug" not in answer.err
    for words in (["predict", entry.folder, "text"], ["recycle", entry.folder, base.reference], ["run", entry.folder],
                  ["run", "r.yaml", "base=./nowhere"]):  # fmt: skip
        answer = cli(*words, *(["--store", store.folder] if words[0] != "run" else []))
        assert answer.code == 2, (words, answer)
        assert "Traceback" not in answer.err
        assert "(this is a bug" not in answer.err, answer.err
    assert snapshot(store.folder) == before
    shutil.rmtree(root)


def test_the_mutations_reach_both_answers():
    """Some are read and some refused: the strategy tests something."""
    outcomes = set()

    @settings(max_examples=100, deadline=None, database=None)
    @given(mutated(MANIFEST))
    def collect(value):
        try:
            Manifest.model_validate(value)
            outcomes.add("read")
        except ValueError:
            outcomes.add("refused")

    collect()
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize("value", [MANIFEST, RECIPE])
def test_the_unchanged_objects_are_valid(value):
    if "job" in value:
        assert load_recipe(value).jobs
    else:
        assert Manifest.model_validate(value).kind == "delta"
