from __future__ import annotations

import pytest

from anytune.cli import values
from anytune.errors import SettingsError


def test_settings_of_one_method_need_no_name():
    assert values.methods(["lora"], ["r=4", "dropout=1e-1"]) == [
        {"name": "lora", "settings": {"r": 4, "dropout": 0.1}}
    ]


def test_settings_of_several_methods_say_whose_they_are():
    assert values.methods(["tune/full", "llrd"], ["full.x=1", "llrd.decay=0.9"]) == [
        {"name": "tune/full", "settings": {"x": 1}},
        {"name": "llrd", "settings": {"decay": 0.9}},
    ]


@pytest.mark.parametrize("pair", ["r=4", "rdrop.alpha=1"])
def test_a_setting_that_could_be_of_several_methods_is_refused(pair):
    with pytest.raises(SettingsError) as caught:
        values.methods(["lora", "llrd"], [pair])
    assert "lora, llrd" in caught.value.why
    assert caught.value.fix.startswith("--set lora.")


def test_training_takes_its_own_options_and_all_others():
    assert values.training(["warmup=1e-1", "max_grad_norm=null"], steps=3, epochs=None) == {
        "steps": 3, "warmup": 0.1, "max_grad_norm": None,
    }  # fmt: skip


def test_one_setting_in_both_ways_is_refused():
    with pytest.raises(SettingsError, match="--batch-size 8 and --training batch_size=4"):
        values.training(["batch_size=4"], batch_size=8)


def test_what_can_stand_in_its_place_can_be_named_too():
    assert values.placed([("base", "a", None), ("task", None, "b"), ("x", None, None)]) == ["a", "b", None]
    assert values.placed([("base", "a", "a")]) == ["a"]
    with pytest.raises(SettingsError, match="two values for base: 'a' and --base 'b'"):
        values.placed([("base", "a", "b")])


def test_tags_are_texts_and_none_is_none():
    assert values.tags(["arm=fresh", "run=3"]) == {"arm": "fresh", "run": "3"}
    assert values.tags([]) is None


def test_names_are_parted_by_commas():
    assert values.names("a, b,,c") == ["a", "b", "c"]
    assert values.names(None) is None
