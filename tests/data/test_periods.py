"""Dated text cut into periods: domains and tasks of a stream over time."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from anytune.data import sources
from anytune.data.domains import load_domain, load_domains, load_periods, load_stream
from anytune.data.periods import periods
from anytune.data.tasks import load_task, load_task_periods
from anytune.errors import DataError, SettingsError

DATES = ["2017-05-01", "2016-12-31T23:59:59Z", "2016-01-02", "2018", "2017-04"]


def test_rows_fall_into_years_months_and_between_borders():
    assert periods(DATES, "year") == {"2016": [1, 2], "2017": [0, 4], "2018": [3]}
    assert periods(DATES[:3], "month") == {"2016-01": [2], "2016-12": [1], "2017-05": [0]}
    assert periods(DATES, ["2016-12-31", 2018]) == {
        "before-2016-12-31": [2], "from-2016-12-31": [0, 1, 4], "from-2018": [3],
    }  # fmt: skip
    assert list(periods(["2018", "2016", "2017"], "year")) == ["2016", "2017", "2018"]


@pytest.mark.parametrize(
    ("dates", "split_by", "words", "kind"),
    [
        (["28.09.2016"], "year", r"row 1 of x has the date '28.09.2016'", DataError),
        (["2016", "2016-13"], "year", "row 2", DataError),
        (["2016-02-99"], "year", "2016-02-99", DataError),
        (["2016"], "month", "names no month|row 1 of x", DataError),
        (["2016"], ["2017"], "no text in the period 'from-2017'", DataError),
        (["2016"], "yaer", "split_by = 'yaer'", SettingsError),
        (["2016"], ["2017", "2016"], "each later|split_by", SettingsError),
        (["2016"], ["spring"], "split_by", SettingsError),
        (["2016"], [], "split_by", SettingsError),
        (["2016"], 2016, "split_by", SettingsError),
    ],
)
def test_what_is_no_date_and_no_border_is_named(dates, split_by, words, kind):
    with pytest.raises(kind, match=words):
        periods(dates, split_by, "x")


@pytest.fixture
def posts(tmp_path):
    path = tmp_path / "posts.jsonl"
    records = [{"body": f"post {place}", "day": f"{2016 + place % 3}-01-{place % 28 + 1:02}", "who": f"w{place % 2}"}
               for place in range(180)]  # fmt: skip
    records += [{"body": "post 2", "day": "2016-05-05", "who": "w0"}]
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def test_one_dated_file_is_a_stream_of_domains(posts):
    given = {"source": posts, "text": "body", "date": "day", "split_by": "year", "heldout_fraction": 0.1}
    found = load_stream([given, {"source": posts, "text": "body", "name": "all"}])
    assert [domain.name for domain in found] == ["posts-2016", "posts-2017", "posts-2018", "all"]
    for year, domain in zip((2016, 2017, 2018), found, strict=False):
        assert all(date.startswith(str(year)) for date in domain.dates)
        assert (len(domain.heldout), len(domain.texts)) == (6, 55 if year == 2016 else 54 if year == 2017 else 53)
        assert domain.notes == ("1 exact duplicates left out",)
    assert "post 2" in {*found[0].texts, *found[0].heldout}, "a text of two periods belongs to the earlier one"
    parts = [text for domain in found[:3] for text in (*domain.texts, *domain.heldout)]
    assert len(parts) == len(set(parts)) == 180
    assert found[0] == load_periods({**given, "name": None})["2016"]
    assert found[0].content != found[1].content


def test_one_period_is_had_again_by_what_its_recipe_says(posts):
    given = {"text": "body", "date": "day", "split_by": "year", "heldout_fraction": 0.1}
    whole = load_domains(str(posts), **given)
    assert [domain.cut for domain in whole] == [{"split_by": "year", "period": str(y)} for y in (2016, 2017, 2018)]
    again = load_domains({"source": str(posts), "name": "second", **whole[1].cut}, text="body", date="day",
                         heldout_fraction=0.1)  # fmt: skip
    assert [domain.name for domain in again] == ["second"]
    assert (again[0].texts, again[0].heldout, again[0].content) == (
        whole[1].texts, whole[1].heldout, whole[1].content
    )  # fmt: skip
    with pytest.raises(DataError, match=r"no period '2015'\s.*2016, 2017, 2018"):
        load_domains(str(posts), **given, period="2015")


def test_dates_are_needed_and_split_by_is_no_setting_of_one_domain(posts):
    with pytest.raises(DataError, match="posts has no dates"):
        load_periods(posts, split_by="year", text="body")
    with pytest.raises(SettingsError, match="split_by is missing"):
        load_periods(posts, text="body", date="day")
    with pytest.raises(SettingsError, match="split_by"):
        load_domain({"source": posts, "split_by": "year"})


def sample(monkeypatch, raw=(), splits=None):
    found = SimpleNamespace(name="x", raw=raw, facts={"metric": "accuracy"}, splits=splits or {})
    monkeypatch.setattr(sources, "sample_rows", lambda name: found)


def test_a_group_that_one_period_holds_out_is_trained_on_in_none(monkeypatch):
    raw = [
        SimpleNamespace(
            text=f"text {place}", group=f"film {place % (30 if place < 90 else 17)}", date=f"{2016 + place // 90}"
        )
        for place in range(180)
    ]  # fmt: skip
    sample(monkeypatch, raw)
    found = load_periods("sample:films", split_by="year", heldout_fraction=0.1)
    group = {row.text: row.group for row in raw}
    held = {group[text] for domain in found.values() for text in domain.heldout}
    trained = {group[text] for domain in found.values() for text in domain.texts}
    assert len(held) >= 3
    assert not held & trained
    assert any("another period holds out" in note for domain in found.values() for note in domain.notes)
    assert all(len(domain.dates) == len(domain.texts) for domain in found.values())


def test_a_dated_task_is_a_task_for_each_period(posts):
    found = load_task_periods({"source": posts, "text": "body", "label": "who", "date": "day", "split_by": "year",
                               "name": "who", "test_fraction": 0.5})  # fmt: skip
    assert list(found) == ["2016", "2017", "2018"]
    year = {f"post {place}": str(2016 + place % 3) for place in range(180) if place != 2}
    for period, task in found.items():
        assert (task.name, task.ref, task.label_names) == (f"who-{period}", None, ("w0", "w1"))
        assert len(task.test) == 30
        rows = [row for split in (task.train, task.validation, task.test) for row in split]
        assert {year.get(row.text, period) for row in rows} == {period}
    whole = load_task(posts, text="body", label="who")
    assert sum(len(task.train) + len(task.validation) + len(task.test) for task in found.values()) == sum(
        len(split) for split in (whole.train, whole.validation, whole.test)
    )


def test_a_dated_sample_brings_its_dates_and_every_split_needs_every_period(monkeypatch):
    def rows(years, count):
        return [SimpleNamespace(text=f"{year} {place}", text_pair=None, label="ab"[place % 2], date=f"{year}-01-01")
                for year in years for place in range(count)]  # fmt: skip

    sample(monkeypatch, splits={"train": rows((2016, 2017), 8), "validation": rows((2016, 2017), 2),
                                "test": rows((2016, 2017), 4)})  # fmt: skip
    found = load_task_periods("sample:talk", split_by="year")
    assert [(period, len(task.train), len(task.test)) for period, task in found.items()] == [
        ("2016", 8, 4), ("2017", 8, 4),
    ]  # fmt: skip
    sample(monkeypatch, splits={"train": rows((2016, 2017), 8), "test": rows((2017, 2018), 4)})
    with pytest.raises(DataError, match="no test row in the period '2016'"):
        load_task_periods("sample:talk", split_by="year")


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"split_by": None}, "split_by is missing"), ({"date": "dya"}, "day"), ({"labl": "who"}, "label"),
     ({"limit": 0}, "limit is 0"), ({"metric": "acuracy"}, "acuracy")],
)  # fmt: skip
def test_wrong_settings_of_a_dated_task_are_told(posts, changed, words):
    from anytune.errors import AnytuneError

    given = {"source": posts, "text": "body", "label": "who", "date": "day", "split_by": "year", **changed}
    with pytest.raises(AnytuneError, match=words):
        load_task_periods(given)
