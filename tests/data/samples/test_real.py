"""The real samples. Skipped unless they are in the cache already, or ANYTUNE_TEST_DOWNLOADS=1 asks for downloads."""

from __future__ import annotations

import json
import os

import pytest

from anytune.data.samples import fetched_facts, get_sample, is_fetched, list_samples, sample_folder, sample_rows
from anytune.data.tasks import load_task

#: train, validation, test, raw, classes or tags (0 where there are none), of the packages the catalogue names
EXPECTED = {
    "rotten_tomatoes": (8932, 1272, 2548, 9974, 2),
    "hpo": (7355, 1048, 2100, 13265, 19),
    "hpo_names": (11514, 1645, 3290, 14312, 0),
    "foldoc_terms": (10457, 1494, 2988, 16428, 3),
    "foldoc": (2713, 388, 774, 9857, 15),
    "debian": (12456, 1779, 3561, 13638, 30),
    "bbc": (1487, 212, 426, 1487, 5),
    "newsgroups": (9815, 1403, 7521, 9811, 20),
    "r8": (4734, 678, 2176, 4730, 8),
    "r52": (5600, 805, 2553, 5596, 52),
    "tweets2016": (3946, 564, 1127, 3946, 2),
    "guardian_headlines": (0, 0, 0, 4079, 0),
    "licence_notice": (3478, 240, 754, 9647, 20),
    "vader_tweets": (2940, 420, 840, 2940, 0),
    "vader_amazon": (2595, 371, 742, 2591, 0),
    "vader_movies": (7424, 1060, 2121, 7422, 0),
    "vader_nyt": (3630, 519, 1037, 3575, 0),
    "wordnet_pairs": (13650, 1950, 3900, 75487, 3),
    "lee_pairs": (595, 10, 45, 328, 0),
    "brown": (0, 0, 0, 14580, 0),
    "gcide": (0, 0, 0, 104307, 0),
}
pytestmark = pytest.mark.downloads


def need(name: str) -> None:
    bundled = get_sample(name).source.client == "bundled"  # made by a recipe of its own, never downloaded
    if not is_fetched(name) and (bundled or os.environ.get("ANYTUNE_TEST_DOWNLOADS") != "1"):
        pytest.skip(f"sample {name} is not in the cache; ANYTUNE_TEST_DOWNLOADS=1 downloads it")


@pytest.mark.parametrize("sample", list_samples("text"), ids=lambda sample: sample.name)
def test_real_text_has_the_recorded_counts(sample):
    need(sample.name)
    rows = sample_rows(sample.name)
    if fetched_facts(sample.name)["warnings"]:
        pytest.skip("the registry serves newer data than the counts are of")
    counts = tuple(rows.facts["counts"].get(split, 0) for split in ("train", "validation", "test", "raw"))
    assert (*counts, len(rows.label_names)) == EXPECTED[sample.name]
    assert rows.facts["overlap"] == 0
    for _, row in rows.labelled():
        assert all(row.texts)
        assert (row.text_pair is None) == (len(sample.text_columns) == 1)
    dated = [text for text in rows.raw if text.date]
    assert bool(dated) == sample.dated


def test_no_label_markup_and_no_source_package_is_shared_by_debian_texts():
    need("debian")
    rows = sample_rows("debian")
    texts = [text.text for text in rows.raw] + [row.text for _, row in rows.labelled()]
    marks = (
        "role::",
        "implemented-in::",
        "devel::",
        "works-with::",
        "Description-md5",
        "Section: ",
        "packaged by debcargo",
    )
    assert [text for text in texts if any(mark in text for mark in marks)] == []
    sources = {split: {row.group for row in rows.splits[split]} for split in rows.splits}
    sources["raw"] = {text.group for text in rows.raw}
    for split in ("validation", "test"):
        assert not sources[split] & (sources["train"] | sources["raw"])
    assert not sources["validation"] & sources["test"]


@pytest.mark.parametrize("name", ["bert-tiny", "bert-tiny-splade", "minilm-l6", "smollm2-135m"])
def test_real_models_are_plain_transformers_folders(name):
    need(name)
    folder = sample_folder(name)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] in ("bert", "llama")
    assert "quantization_config" not in config
    assert (folder / "model.safetensors").stat().st_size > 1_000_000
    assert (folder / "tokenizer.json").is_file()


@pytest.mark.parametrize("name", ["foldoc_terms", "hpo_names"])
def test_real_tagged_words_and_responses_become_tasks(name):
    need(name)
    task = load_task(f"sample:{name}", limit=200)
    assert (task.kind, task.metric, task.ref) == (get_sample(name).task, get_sample(name).metric, f"sample:{name}")
    assert task.record().counts == {"train": 200, "validation": 200, "test": 200}
    if name == "foldoc_terms":
        assert task.label_names == ("O", "B-TERM", "I-TERM")
        assert all(len(example.words) == len(example.label) >= 8 for example in task.train)
        assert all(1 in example.label for example in task.train)
    else:
        prompts = {example.text for example in task.train}
        assert not any(example.text in prompts for example in (*task.validation, *task.test))
        assert len({example.label for example in task.train}) == 200
