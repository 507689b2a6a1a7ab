from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from anytune.data import sources
from anytune.data.domains import documents, load_domain, load_stream
from anytune.errors import DataError, SettingsError


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "news.txt"
    path.write_text("\n".join(f"document {place}" for place in range(200)))
    return path


def test_a_text_file_becomes_a_domain_with_a_heldout_part(path):
    domain = load_domain(path)
    assert (domain.name, domain.ref, domain.dates) == ("news", None, None)
    assert (len(domain.texts), len(domain.heldout)) == (190, 10)
    assert sorted(domain.texts + domain.heldout) == sorted(path.read_text().split("\n"))
    assert load_domain(path) == domain
    assert domain.record().texts == 190


def test_the_heldout_part_is_the_same_in_any_order_of_the_file(path, tmp_path):
    turned = tmp_path / "turned.txt"
    turned.write_text("\n".join(path.read_text().split("\n")[::-1]))
    assert set(load_domain(turned).heldout) == set(load_domain(path).heldout)
    assert load_domain(turned).content != load_domain(path).content


def test_documents_are_parted_by_blank_lines_else_by_lines():
    assert documents("one\r\ntwo\r\n") == ["one", "two"]
    assert documents("\none\nmore of one\n \t\n\ntwo\n") == ["one\nmore of one", "two"]


def test_duplicates_count_once_and_never_stand_in_both_parts(tmp_path):
    path = tmp_path / "news.txt"
    path.write_text("\n".join(f"document {place % 40}" for place in range(200)))
    domain = load_domain(path, heldout_fraction=0.25)
    assert len(domain.texts) + len(domain.heldout) == 40
    assert not set(domain.texts) & set(domain.heldout)
    assert domain.notes == ("160 exact duplicates left out",)


def test_columns_dates_and_limits(tmp_path):
    path = tmp_path / "tweets.jsonl"
    records = [{"body": f"tweet {place}", "day": f"2016-01-{place + 1:02}"} for place in range(30)]
    path.write_text("\n".join(map(json.dumps, records)))
    domain = load_domain(path, date="day", heldout_fraction=0.1)
    assert len(domain.texts) == 27
    assert (
        dict(zip(domain.texts, domain.dates, strict=True)).items()
        <= {record["body"]: record["day"] for record in records}.items()
    )
    limited = load_domain(path, limit=10, heldout_fraction=0)
    assert len(limited.texts) == 10
    assert set(limited.texts) < set(load_domain(path, limit=11, heldout_fraction=0).texts)
    with pytest.raises(DataError, match="has no column 'txt'"):
        load_domain(path, text="txt")
    with pytest.raises(DataError, match="has no column 'date'"):
        load_domain(path, date="date")


def test_one_document_cannot_be_cut_in_two_parts(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("only one document")
    with pytest.raises(DataError, match="has 1 text in one group"):
        load_domain(path)
    assert load_domain(path, heldout_fraction=0).heldout == ()


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"heldout_fraction": 1.0}, "heldout_fraction is 1.0"), ({"limit": 0}, "limit is 0"), ({"date": "day"}, "date=")],
)
def test_settings_that_make_no_sense_are_refused(path, settings, words):
    with pytest.raises(SettingsError, match=words):
        load_domain(path, **settings)


@pytest.mark.parametrize(("content", "words"), [(b"", "is empty"), (b"caf\xe9\n", "not UTF-8: byte 0xe9 at offset 3")])
def test_an_unusable_text_file_is_named(tmp_path, content, words):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        load_domain(path)


def test_a_missing_text_file_suggests_the_near_one(path):
    with pytest.raises(DataError, match=r"new\.txt does not exist") as caught:
        load_domain(path.with_name("new.txt"))
    assert caught.value.fix == str(path)


def sample(monkeypatch, raw):
    monkeypatch.setattr(sources, "sample_rows", lambda name: SimpleNamespace(name=name, raw=raw, facts={}, splits={}))


def test_groups_of_a_sample_are_held_out_whole(monkeypatch):
    raw = [
        SimpleNamespace(text=f"text {place}", group=f"film {place // 5}", date=f"2020-01-{place % 28 + 1:02}")
        for place in range(200)
    ]
    sample(monkeypatch, raw)
    domain = load_domain("sample:reviews", heldout_fraction=0.1)
    groups = {row.text: row.group for row in raw}
    assert len(domain.heldout) == 20
    assert not {groups[text] for text in domain.texts} & {groups[text] for text in domain.heldout}
    assert (domain.ref, domain.name, len(domain.dates)) == ("sample:reviews", "reviews", 180)


def test_a_group_far_larger_than_the_share_stays_in_training(monkeypatch):
    raw = [
        SimpleNamespace(text=f"text {place}", group="one" if place < 150 else "", date=None) for place in range(200)
    ]
    sample(monkeypatch, raw)
    domain = load_domain("sample:reviews", heldout_fraction=0.05)
    assert len(domain.heldout) == 10
    assert {f"text {place}" for place in range(150)} <= set(domain.texts)
    assert domain.dates is None


def test_a_stream_keeps_the_order_and_refuses_equal_names(path):
    stream = load_stream([{"source": path, "name": "b"}, path, load_domain(path, name="a")])
    assert [domain.name for domain in stream] == ["b", "news", "a"]
    with pytest.raises(DataError, match="two domains of the stream are called 'news'"):
        load_stream([path, path])
    with pytest.raises(DataError, match="without domains"):
        load_stream([])
