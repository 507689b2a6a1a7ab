from __future__ import annotations

import json

import anytune
from tests.conftest import tiny_rows, write_rows


def test_table_json_and_page(cli, tiny_base, other_base, tiny_task, tmp_path):
    anytune.tune(tiny_base, tiny_task, method="lora", store=tmp_path / "store", name="things",
                 training={"steps": 4, "max_length": 16, "keep": "last"})  # fmt: skip
    words = ("diagnose", tiny_base, other_base, "--delta", "things", "--store", tmp_path / "store", "--points", 3)
    told = cli(*words, "--out", "page.html", "--quiet")
    assert told.code == 0
    assert "Relative distance" in told.out
    assert "things-" in told.out
    assert "the page: page.html" in told.out
    assert "<html" in (tmp_path / "page.html").read_text(encoding="utf-8")
    found = json.loads(cli(*words, "--json", "--quiet").out)
    assert found["deltas"][0]["form"] == "lora"
    assert len(found["deltas"][0]["path"]["points"]) == 3
    write_rows(tmp_path / "texts.csv", [(text,) for text, _ in tiny_rows(5)], header=("text",))
    [one] = json.loads(cli(*words, "--texts", "texts.csv", "--json", "--quiet").out)["deltas"]
    assert (one["rows"], one["source"], one["before"]) == (5, "texts", None)


def test_two_bases_alone_need_no_store(cli, tiny_base, other_base, tmp_path):
    told = cli("diagnose", tiny_base, other_base)
    assert told.code == 0
    assert "away from" in told.out
    assert not (tmp_path / "anytune-store").exists()


def test_what_is_wrong_is_said_without_a_traceback(cli, tiny_base, tmp_path):
    told = cli("diagnose", tiny_base, tmp_path / "nothing")
    assert told.code == 2
    assert "Traceback" not in told.err
    told = cli("diagnose", tiny_base, tiny_base, "--tolerance", "1")
    assert told.code == 2
    assert "1%" in told.err
    told = cli("diagnose", tiny_base, tiny_base, "--points", 1)
    assert told.code == 2
    assert "points = 1" in told.err


def test_a_damaged_delta_does_not_end_the_others_and_the_command_exits_2(
    cli, tiny_base, other_base, tiny_task, tmp_path
):
    store = tmp_path / "store"
    for seed, name in enumerate(("good", "bad")):
        [made] = anytune.tune(tiny_base, tiny_task, method="lora", store=store, name=name, seeds=[seed],
                              training={"steps": 2, "max_length": 16, "keep": "last"})  # fmt: skip
    weights = made.folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    words = ("diagnose", tiny_base, other_base, "--store", store, "--points", 0, "--quiet", "--delta", "bad")
    told = cli(*words, "--delta", "good", "--out", "page.html")
    assert told.code == 2
    assert "Traceback" not in told.err
    listed = cli(*words, "--delta", "good", "--json")
    assert listed.code == 2
    bad, good = json.loads(listed.out)["deltas"]
    assert (bad["verdict"], bad["before"]) == ("damaged", None)
    assert good["verdict"] != "damaged"
    assert good["before"] is not None
    assert "put them back from a copy" in told.out
    assert "put them back from a copy" in (tmp_path / "page.html").read_text(encoding="utf-8")
    alone = cli(*words)
    assert alone.code == 2
    assert alone.out == ""
