"""Tasks of tagged words and of prompts with responses, from files to splits."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from anytune.data import sources
from anytune.data.tasks import KINDS, Example, load_task
from anytune.errors import DataError, SettingsError

TAGS = (["B-PER", "I-PER", "O"], ["O", "B-LOC", "O"], ["O", "O", "O"])


def sentences(count=60, start=0):
    return [{"tokens": [f"w{place}", "x y", "."], "tags": TAGS[place % 3]} for place in range(start, start + count)]


def answers(count=60, start=0):
    return [{"prompt": f"say {place}", "response": "ha " * (1 + place % 7) + str(place)}
            for place in range(start, start + count)]  # fmt: skip


def write(path, records):
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def conll(path, records):
    lines = [
        "\n".join(f"{word}\t{tag}" for word, tag in zip(row["tokens"], row["tags"], strict=True)) for row in records
    ]
    path.write_text("\n\n".join(lines) + "\n")
    return path


def splits(task):
    return {split: getattr(task, split) for split in ("train", "validation", "test")}


def test_the_kinds_of_task():
    assert KINDS == ("classification", "regression", "token-classification", "generation")


def test_lists_of_words_and_tags_become_a_task(tmp_path):
    task = load_task(write(tmp_path / "ner.jsonl", sentences()))
    assert (task.kind, task.metric) == ("token-classification", "f1_entities")
    assert task.label_names == ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")
    assert (task.text_columns, task.label_column) == (("tokens",), "tags")
    assert task.record().counts == {"train": 42, "validation": 6, "test": 12}
    assert task.record().kind == "token-classification"
    everything = {example.words: example for part in splits(task).values() for example in part}
    assert len(everything) == 60
    for row in sentences():
        example = everything[tuple(row["tokens"])]
        assert example.text == " ".join(row["tokens"])
        assert example.text_pair is None
        assert [task.label_names[tag] for tag in example.label] == row["tags"]
    # rare tags stand in every split in proportion
    assert sum(task.label_names.index("B-PER") in example.label for example in task.test) == 4


def test_a_conll_file_a_folder_of_them_and_json_lines_are_one_task(tmp_path):
    first = load_task(write(tmp_path / "ner.jsonl", sentences()))
    second = load_task(conll(tmp_path / "ner.conll", sentences()))
    assert (first.content, splits(first)) == (second.content, splits(second))
    folder = tmp_path / "folder"
    folder.mkdir()
    for split, start in (("train", 0), ("validation", 100), ("test", 200)):
        conll(folder / f"{split}.conll", sentences(6, start))
    task = load_task(folder)
    assert task.record().counts == {"train": 6, "validation": 6, "test": 6}
    assert [example.words[0] for example in task.test] == [f"w{place}" for place in range(200, 206)]


def test_tags_that_are_no_entities_are_scored_by_word(tmp_path):
    rows = [{"words": [f"w{place}", "b"], "pos": ["NOUN", "VERB" if place % 2 else "DET"]} for place in range(40)]
    task = load_task(write(tmp_path / "pos.jsonl", rows))
    assert (task.metric, task.label_names) == ("accuracy_tokens", ("DET", "NOUN", "VERB"))
    with pytest.raises(SettingsError, match="f1_entities' on the tags DET, NOUN, VERB") as caught:
        load_task(tmp_path / "pos.jsonl", metric="f1_entities")
    assert caught.value.fix == "metric=accuracy_tokens"
    assert load_task(tmp_path / "pos.jsonl", metric="accuracy_tokens", kind="token-classification") == task


def test_two_columns_of_prompts_and_responses_become_a_task(tmp_path):
    task = load_task(write(tmp_path / "say.jsonl", answers()))
    assert (task.kind, task.metric, task.label_names) == ("generation", "exact_match", ())
    assert (task.text_columns, task.label_column) == (("prompt",), "response")
    found = {example.text: example.label for part in splits(task).values() for example in part}
    assert found == {row["prompt"]: row["response"] for row in answers()}
    assert task.train[0].words is None
    path = tmp_path / "say.csv"
    path.write_text("input,target\n" + "".join(f'"a {place}",{place % 5}\n' for place in range(40)))
    assert load_task(path).kind == "classification"
    task = load_task(path, kind="generation")
    assert task.train[0] == Example("a 0", None, "0")
    assert load_task(path, metric="perplexity").kind == "generation"


def test_the_content_hash_follows_words_and_responses(tmp_path):
    rows = sentences()
    first = load_task(write(tmp_path / "a.jsonl", rows))
    split_up = [{**row, "tokens": [row["tokens"][0], "x", "y ."]} for row in rows]
    assert load_task(write(tmp_path / "b.jsonl", split_up)).train[0].text == first.train[0].text
    assert load_task(tmp_path / "b.jsonl").content != first.content
    other = [{**row, "tags": ["O", *row["tags"][1:]]} for row in rows]
    assert load_task(write(tmp_path / "c.jsonl", other)).content != first.content
    said = load_task(write(tmp_path / "d.jsonl", answers()))
    changed = [{**row, "response": f"{row['response']}!"} for row in answers()]
    assert load_task(write(tmp_path / "e.jsonl", changed)).content != said.content
    assert load_task(tmp_path / "d.jsonl", split_seed=1).content != said.content
    assert load_task(tmp_path / "d.jsonl") == said


@pytest.mark.parametrize("make", [sentences, answers])
def test_few_shot_subsets_have_a_size_and_no_classes(tmp_path, make):
    task = load_task(write(tmp_path / "rows.jsonl", make()))
    small, large = task.subset(train_size=6, seed=2), task.subset(train_size=20, seed=2)
    assert (len(small.train), len(small.validation), small.test) == (6, 6, task.test)
    assert set(small.train) < set(large.train) < set(task.train)
    if make is sentences:
        assert len({frozenset(example.label) for example in small.train}) == 3
    with pytest.raises(SettingsError, match=f"per_class=4 on a {task.kind} task") as caught:
        task.subset(per_class=4)
    assert caught.value.why
    assert caught.value.fix == "train_size=4"


def test_repeats_and_loose_entities_are_noted(tmp_path):
    rows = sentences(9)
    rows[0]["tags"] = ["I-PER", "I-PER", "O"]
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "test.jsonl", [*sentences(2), *sentences(3, start=90)])
    task = load_task(tmp_path, validation_fraction=0.2)
    assert any(note.startswith("1 entities of train begin with an I- tag") for note in task.notes)
    assert any("of 5 test texts stand in train word for word" in note for note in task.notes)


def test_a_column_of_lists_is_no_text(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"tokens": ["a"], "label": "pos"}, {"tokens": ["b"], "label": "neg"}])
    with pytest.raises(DataError, match=r"line 1 of .* has a list in column 'tokens', which is no text") as caught:
        load_task(path, text="tokens", kind="classification")
    assert "kind=token-classification" in caught.value.fix
    with pytest.raises(DataError, match="has 'pos' in column 'label', which is no list of tags"):
        load_task(path, text="tokens", label="label")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"metric": "accuracy", "kind": "generation"}, "metric 'accuracy' scores classification, the task is generat"),
        ({"metric": "f1_entities", "kind": "generation"}, "one of exact_match, perplexity"),
        ({"label_names": ["a", "b"]}, "label names a, b for generation"),
        ({"kind": "generating"}, "Try: generation"),
    ],
)
def test_settings_that_do_not_fit_the_kind_are_refused(tmp_path, settings, words):
    with pytest.raises(SettingsError, match=words):
        load_task(write(tmp_path / "rows.jsonl", answers()), **settings)


def test_a_row_that_cannot_be_used_is_named_in_any_split(tmp_path):
    write(tmp_path / "train.jsonl", sentences())
    write(tmp_path / "test.jsonl", [*sentences(3), {"tokens": ["a", "b"], "tags": ["O"]}])
    with pytest.raises(DataError, match=r"line 4 of .*test\.jsonl has 2 words"):
        load_task(tmp_path)
    write(tmp_path / "test.jsonl", [*sentences(3), {"tokens": ["a"], "tags": ["B-ORG"]}])
    with pytest.raises(DataError, match=r"line 4 of .*test\.jsonl has the unknown tag 'B-ORG' at word 1, 'a'"):
        load_task(tmp_path)
    write(tmp_path / "test.jsonl", [*sentences(3), {"tokens": ["a"], "tags": ["I-LOC"]}])
    assert load_task(tmp_path).test[-1].label == (3,)
    write(tmp_path / "train.jsonl", answers())
    write(tmp_path / "test.jsonl", [*answers(3), {"prompt": "say", "response": ""}])
    with pytest.raises(DataError, match=r"line 4 of .*test\.jsonl has no response"):
        load_task(tmp_path)


def sample(monkeypatch, rows, **facts):
    parts = {split: tuple(SimpleNamespace(text_pair=None, **row) for row in rows) for split in ("train", "test")}
    found = SimpleNamespace(splits=parts, raw=(), facts=facts)
    monkeypatch.setattr(sources, "sample_rows", lambda name: found)


def test_samples_hold_words_and_tags_joined_by_spaces(monkeypatch):
    rows = [{"text": f"w{place} b c", "label": TAGS_JOINED[place % 2]} for place in range(20)]
    sample(monkeypatch, rows, kind="token-classification", metric="f1_entities", label_names=["O", "B-X", "I-X"])
    task = load_task("sample:any")
    assert task.test[1] == Example("w1 b c", None, (0, 1, 2), ("w1", "b", "c"))
    assert task.label_names == ("O", "B-X", "I-X")
    sample(monkeypatch, [{"text": f"p {place}", "label": f"r {place}"} for place in range(20)], kind="generation")
    assert load_task("sample:any").test[3] == Example("p 3", None, "r 3")


TAGS_JOINED = ("B-X O O", "O B-X I-X")


def test_hub_data_sets_name_their_tags(monkeypatch):
    import datasets

    names = ["O", "B-PER", "I-PER"]
    tags = datasets.List(datasets.ClassLabel(names=names))
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": tags})
    columns = {
        "tokens": [[f"w{place}", "b"] for place in range(40)],
        "ner_tags": [[1, 2 * (place % 2)] for place in range(40)],
    }
    loaded = datasets.DatasetDict(train=datasets.Dataset.from_dict(columns, features=features))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: loaded)
    task = load_task("owner/name")
    assert (task.kind, task.label_names, task.ref) == ("token-classification", tuple(names), "owner/name")
    assert {example.label for example in task.train} == {(1, 0), (1, 2)}
