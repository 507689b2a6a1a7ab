from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from anytune import methods
from anytune.errors import MethodError, SettingsError
from anytune.methods import registry
from anytune.methods.protocol import Method
from anytune.methods.registry import register


@register
@dataclass(kw_only=True)
class Throwaway(Method):
    """Made outside the rooms, as in a notebook."""

    rate: Annotated[float, Field(gt=0, description="how fast")] = 1.0
    _seen: int = field(default=0, init=False)


def test_every_file_of_a_room_is_a_method_and_private_ones_are_not(tmp_path, monkeypatch):
    for name in ("dps.py", "_masks.py", "__init__.py"):
        (tmp_path / "tune").mkdir(exist_ok=True)
        (tmp_path / "tune" / name).touch()
    monkeypatch.setattr(registry, "__file__", str(tmp_path / "registry.py"))
    assert registry.names() == ["tune/dps"]
    assert registry.names("recycle") == []


def test_names_are_listed_by_room_without_importing_a_method():
    script = (
        "import sys; from anytune.methods import registry; names = registry.names()\n"
        "rooms = [one for one in sys.modules if one.startswith('anytune.methods.') and one.count('.') == 3]\n"
        "assert rooms == [], rooms\n"
        "print(*names)"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60).stdout
    files = {
        f"{path.parent.name}/{path.stem}"
        for path in Path(methods.__file__).parent.glob("*/*.py")
        if not path.stem.startswith("_")
    }
    assert set(out.split()) == files
    assert out.split() == registry.names()


@pytest.mark.parametrize("name", registry.names())
def test_a_method_is_named_after_its_file_and_found_by_both_names(name):
    cls = registry.get(name)
    assert f"{cls.room}/{cls.name}" == name
    assert registry.get(cls.name, cls.room) is cls
    assert registry.create(name).name == cls.name


@pytest.mark.parametrize(
    ("name", "room", "words", "fix"),
    [
        ("loar", None, "unknown method 'loar'", "lora"),
        ("loar", "tune", "unknown tune method 'loar'", "lora"),
        ("tune/loar", None, "unknown method 'tune/loar'", "tune/lora"),
        ("direct", "tune", "unknown tune method 'direct'", None),
        (
            "zzzzzz",
            "recycle",
            "unknown recycle method 'zzzzzz'",
            f"one of {', '.join(name.partition('/')[2] for name in registry.names('recycle'))}",
        ),
    ],
)
def test_an_unknown_method_suggests_the_near_one_or_lists_them(name, room, words, fix):
    with pytest.raises(MethodError, match=words) as caught:
        registry.get(name, room)
    assert fix is None or caught.value.fix == fix


def test_a_name_in_several_rooms_must_be_given_with_its_room(monkeypatch):
    monkeypatch.setattr(registry, "names", lambda room=None: ["tune/mix", "recycle/mix"])
    with pytest.raises(MethodError, match="several methods") as caught:
        registry.get("mix")
    assert caught.value.fix == "one of tune/mix, recycle/mix"


@pytest.mark.parametrize(
    ("settings", "words", "fix"),
    [
        ({"rnak": 3, "r": 2}, "method 'lora' has no setting 'rnak'", None),
        ({"alhpa": 3}, "method 'lora' has no setting 'alhpa'", "alpha=3"),
        ({"r": 0}, "method 'lora': r = 0: input should be greater than 0", None),
        ({"r": "many"}, "method 'lora': r = 'many'", None),
        ({"alpha": float("inf")}, "method 'lora': alpha = inf", None),
        ({"alpha": float("nan")}, "method 'lora': alpha = nan", None),
        ({"dropout": 1.0}, "method 'lora': dropout = 1.0", None),
        ({"targets": "everything"}, "method 'lora': targets = 'everything'", None),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(settings, words, fix):
    with pytest.raises(SettingsError) as caught:
        registry.create("lora", settings)
    assert words in caught.value.what
    assert "[" not in caught.value.what, "a branch of a union means nothing to a user"
    assert fix is None or caught.value.fix == fix
    assert caught.value.fix


def test_settings_as_a_command_line_gives_them_become_what_they_mean():
    method = registry.create("lora", {"r": "4", "alpha": "8", "targets": ["query"]})
    assert registry.settings_of(method) == {"r": 4, "alpha": 8.0, "dropout": 0.0, "targets": ["query"]}


def test_private_state_is_no_setting():
    sequential = registry.create("sequential")
    sequential._anatomy = object()
    assert registry.settings_of(sequential) == {"head_rate": 1.0}
    assert registry.record(sequential).model_dump() == {"name": "pretrain/sequential", "settings": {"head_rate": 1.0}}
    assert [setting.name for setting in registry.describe("sequential")] == ["head_rate"]
    with pytest.raises(SettingsError, match="no setting '_anatomy'") as caught:
        registry.create("sequential", {"_anatomy": None})
    assert caught.value.why == "Its settings: head_rate."


@pytest.mark.parametrize("name", registry.names())
def test_recorded_settings_are_json_and_make_the_same_method_again(name):
    settings = registry.record(registry.create(name)).settings
    again = registry.create(name, json.loads(json.dumps(settings)))
    assert registry.record(again).settings == settings


def test_a_setting_is_described_by_type_default_and_meaning():
    r, *_, targets = registry.describe("lora")
    assert (r.name, r.default, r.description) == ("r", 8, "rank of the difference")
    assert r.type.startswith("Annotated[int, Field(gt=0, le=4096")
    assert targets.default == "attention"
    assert registry.describe("full") == []


def test_a_card_is_the_docstring_of_its_file():
    assert registry.card("tune/full").startswith("Full fine-tuning: every weight")


@pytest.mark.parametrize(
    "given",
    [
        "lora",
        "tune/lora",
        ["lora"],
        {"name": "lora"},
        {"name": "lora", "settings": None},
        [{"name": "tune/lora", "settings": {"r": 8}}],
        [registry.create("lora")],
        registry.create("lora"),
    ],
    ids=str,
)
def test_all_ways_to_say_which_method_mean_the_same(given):
    [method] = registry.parse(given, "tune")
    assert (method.name, registry.settings_of(method)) == ("lora", registry.settings_of(registry.create("lora")))


def test_settings_may_stand_beside_the_name_and_win_over_inner_ones():
    [method] = registry.parse({"name": "lora", "settings": {"r": 2, "alpha": 3}, "r": 4}, "tune")
    assert (method.r, method.alpha) == (4, 3)


def test_a_list_may_mix_the_ways_and_keeps_its_order():
    found = registry.parse(["bitfit", {"name": "lora", "r": 2}, Throwaway()], "tune")
    assert [method.name for method in found] == ["bitfit", "lora", "throwaway"]
    assert registry.parse([], "tune") == []


@pytest.mark.parametrize("given", [3, [None], {"r": 8}, [{"name": 3}], [["lora"]]], ids=str)
def test_anything_else_is_refused_with_an_example(given):
    with pytest.raises((SettingsError, TypeError)) as caught:
        registry.parse(given if isinstance(given, list | dict) else [given], "tune")
    assert isinstance(caught.value, SettingsError)
    assert caught.value.fix == "method: {name: lora, r: 8}"


def test_each_parse_makes_new_objects():
    assert registry.parse("lora", "tune")[0] is not registry.parse("lora", "tune")[0]


def test_a_method_made_outside_the_rooms_is_named_after_its_class():
    assert (Throwaway.name, Throwaway.room) == ("throwaway", "tune")
    assert registry.record(Throwaway(rate=2.0)).model_dump() == {"name": "tune/throwaway", "settings": {"rate": 2.0}}


def test_a_script_may_register_a_method_with_a_name_and_room_of_its_own():
    script = (
        "from dataclasses import dataclass\n"
        "from anytune.methods.protocol import Method\n"
        "from anytune.methods.registry import register\n"
        "@register\n@dataclass(kw_only=True)\nclass Mine(Method):\n    pass\n"
        "@register\n@dataclass(kw_only=True)\nclass Named(Method):\n    name = 'other'\n    room = 'pretrain'\n"
        "print(Mine.room, Mine.name, Named.room, Named.name)"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60).stdout
    assert out.split() == ["tune", "mine", "pretrain", "other"]
