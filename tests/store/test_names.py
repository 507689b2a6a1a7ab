"""names.py: safe folder names, and no path of anybody's machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anytune.errors import StoreError
from anytune.store.names import NAME_LIMIT, absolute_paths, is_absolute, is_inside, refuse_absolute_paths, slug
from tests.store.conftest import delta_manifest


@given(st.text(max_size=300))
def test_a_slug_is_always_a_safe_folder_name(text):
    made = slug(text)
    assert 0 < len(made) <= NAME_LIMIT
    assert made.isascii()
    assert not set(made) & set('/\\:*?"<>| \n\0')
    assert made[0] not in ".-"
    assert slug(made) == made


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("my task/v1", "my-task-v1"),
        ("../../etc", "etc"),
        (".hidden", "hidden"),
        ("hpo_full.v2", "hpo_full.v2"),
        ("—", "unnamed"),
        ("", "unnamed"),
        ("a" * 200, "a" * NAME_LIMIT),
    ],
)
def test_slugs_keep_what_is_safe(text, expected):
    assert slug(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "/data",
        "/home/me/model",
        "//server/share",
        "~/model",
        "~me/model",
        "C:\\models",
        "c:/models",
        "\\\\server\\share",
        "file:///tmp/x",
        "made from '/home/me/model' by hand",
        "--base /home/me/model",
        "base=/home/me/x",
        "see C:\\models\\x",
    ],
)
def test_absolute_paths_are_seen(text):
    assert is_absolute(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        " / ",
        "//",
        "data/train.csv",
        "./x",
        "../x",
        "and/or",
        "sample:hpo",
        "owner/name",
        "n/a",
        "1/2",
        "a: b",
        "~",
        "https://example.org/a/b",
        "see https://example.org/a/b.",
        "<unk>",
        "</s>",
        "5 km/h",
        "tune/full",
        "a /b c",
    ],
)
def test_other_texts_are_no_paths(text):
    assert not is_absolute(text)


def test_the_key_of_an_absolute_path_is_named_wherever_it_stands():
    value = {"recipe": {"task": [{"file": "data.csv"}, {"file": "/home/me/data.csv"}]}, "/root/x": 1}
    assert list(absolute_paths(value)) == [
        ("recipe.task[1].file", "/home/me/data.csv"),
        ("/root/x", "/root/x"),
    ]


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"recipe": {"base": "/home/me/m"}}, "recipe.base"),
        ({"tags": {"from": "/home/me/m"}}, "tags.from"),
        ({"notes": ["ok", "made of /home/me/m"]}, "notes[1]"),
        ({"task": {"name": "t", "ref": "/data/t.csv"}}, "task.ref"),
        ({"invented": {"path": "C:\\x"}}, "invented.path"),
    ],
)
def test_a_manifest_with_an_absolute_path_is_refused_naming_the_key(fields, key):
    with pytest.raises(StoreError) as caught:
        refuse_absolute_paths(delta_manifest(**fields))
    assert f"{key} = " in caught.value.what


def test_label_names_are_data_and_may_look_like_paths():
    refuse_absolute_paths(delta_manifest(label_names=["/sports", "/world/news"], recipe={"label_names": ["/sports"]}))


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a\\..\\x", "C:x", "C:/x", "a\0b"])
def test_names_that_leave_the_folder_are_seen(name):
    assert not is_inside(name)


@pytest.mark.parametrize("name", ["model.safetensors", "parts/a.safetensors", "..a", "a..b"])
def test_names_inside_the_folder_pass(name):
    assert is_inside(name)
