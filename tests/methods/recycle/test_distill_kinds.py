"""Distillation on every kind of model, task and delta: it runs, and what it listens to is what it should be."""

from __future__ import annotations

import json
import random

import pytest
import torch

import anytune
from anytune.errors import DataError, MethodError
from anytune.jobs.deltas import load_delta
from anytune.methods.teaching import BlockStates
from anytune.models.anatomy import anatomy_of
from tests.conftest import COMMON, TOPICS, write_rows
from tests.models.kinds import KINDS, make_kind, make_model

TRAINING = {"steps": 2, "learning_rate": 1e-2, "batch_size": 8, "precision": "fp32", "evaluate_every": 2,
            "max_length": 48}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_states_it_listens_to_are_those_transformers_gives(kind):
    model = make_model(kind, 120)
    listening = BlockStates(model, anatomy_of(model), training=False)
    ids = torch.arange(10).reshape(2, 5) + 7
    given = {"decoder_input_ids": ids} if kind.startswith("t5") else {}
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True, **given)
    expected = output.encoder_hidden_states if given else output.hidden_states
    found = listening.take()
    assert len(found) == len(expected)
    # the last one of transformers comes after a last norm, where the kind has one
    assert all(torch.equal(one, other) for one, other in zip(found[:-1], expected[:-1], strict=True))
    with pytest.raises(MethodError, match="0 hidden states"):
        listening.take()


def test_nothing_is_kept_while_a_model_is_scored():
    model = make_model("bert", 120).eval()
    listening = BlockStates(model, anatomy_of(model), training=True)
    model(input_ids=torch.tensor([[7, 8]]))
    assert listening._found == []
    model.train()(input_ids=torch.tensor([[7, 8]]))
    assert len(listening._found) == 3
    listening.remove()
    model(input_ids=torch.tensor([[7, 8]]))
    assert listening._found == []


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("tasks"), random.Random(0)
    sentences = []
    for _ in range(40):
        words = draw.choices(COMMON, k=4) + draw.choices(TOPICS["animal"], k=2)
        draw.shuffle(words)
        tags = ["B-ANIMAL" if word in TOPICS["animal"] else "O" for word in words]
        sentences.append({"tokens": words, "tags": tags})
    asked = [
        {"prompt": f"{COMMON[number % 9]} {word}", "response": topic}
        for topic, words in TOPICS.items()
        for number, word in enumerate(words[:12])
    ]
    draw.shuffle(asked)
    files = {"tags": folder / "tags.jsonl", "responses": folder / "responses.jsonl", "numbers": folder / "numbers.csv"}
    files["tags"].write_text("\n".join(map(json.dumps, sentences)))
    files["responses"].write_text("\n".join(map(json.dumps, asked)))
    texts = [" ".join(draw.choices(COMMON, k=5)) for _ in range(40)]
    write_rows(
        files["numbers"], [(text, round(len(text) / 10 + 0.013 * place, 3)) for place, text in enumerate(texts)]
    )
    return files


@pytest.fixture(scope="module")
def shelf(tasks, tiny_task, tmp_path_factory):
    """``shelf(kind, task, method)`` -> (the delta, the new base, the task, the store)."""
    root, made = tmp_path_factory.mktemp("shelf"), {}

    def base(kind, seed):
        folder = root / f"{kind}-{seed}"
        return folder if folder.exists() else make_kind(kind, folder, seed)

    def get(kind, task, method="full"):
        key = (kind, task, str(method))
        file = tasks.get(task, tiny_task)
        if key not in made:
            [made[key]] = anytune.tune(base(kind, 0), file, store=root / "store", method=method, training=TRAINING)
        return made[key], base(kind, 1), file, root / "store"

    return get


@pytest.mark.parametrize("method", ["distill", "combined"])
@pytest.mark.parametrize(
    ("kind", "task", "tuned"),
    [
        ("bert", "numbers", "full"), ("bert", "tags", "full"), ("gpt2", "tags", "lora"),
        ("llama", "responses", "lora"), ("gpt2", "responses", "full"), ("t5", "responses", "full"),
        ("t5", "classes", "full"),
        ("roberta", "classes", {"name": "prompt_tuning", "length": 3}),
        ("gpt2", "classes", {"name": "prompt_tuning", "length": 3, "kind": "input"}),
        ("bert", "classes", {"name": "bottleneck", "width": 4}), ("bert", "classes", {"name": "sift", "share": 0.1}),
    ],
)  # fmt: skip
def test_every_kind_of_delta_and_task_can_be_distilled(kind, task, tuned, method, shelf):
    old, base, file, store = shelf(kind, task, tuned)
    [entry] = anytune.recycle(
        old, base, store=store, task=file, training=TRAINING, method={"name": method, "beta": 0.5, "alpha": 0.5}
    )
    assert entry.manifest.form == old.manifest.form
    before, after = load_delta(old), load_delta(entry)
    assert type(before) is type(after)
    if entry.manifest.form == "peft":
        assert set(before.tensors) == set(after.tensors)
    else:
        assert set(before.head) == set(after.head)
    assert anytune.score(entry, file, store=store) == pytest.approx(entry.manifest.scores["test"], rel=1e-4)


def test_between_works_on_prompts_and_networks_put_in(shelf):
    for kind, tuned in (
        ("roberta", {"name": "prompt_tuning", "length": 3}),
        ("bert", {"name": "bottleneck", "width": 4}),
    ):
        old, base, file, store = shelf(kind, "classes", tuned)
        [entry] = anytune.recycle(
            old, base, store=store, task=file, training=TRAINING, method={"name": "interpolation_distillation"}
        )
        assert entry.manifest.steps == 2


def test_sentences_without_tags_are_read_like_those_with(shelf):
    old, base, file, store = shelf("bert", "tags")
    [entry] = anytune.recycle(
        old, base, store=store, task=file, training=TRAINING, unlabelled=["the catling is old", "by some fox"],
        method={"name": "distill", "label_free": True, "alpha": 1.0, "beta": 1.0},
    )  # fmt: skip
    assert entry.manifest.steps == 2


@pytest.mark.parametrize(("kind", "task"), [("bert", "tags"), ("gpt2", "classes")])
def test_texts_are_made_up_by_encoders_and_decoders(kind, task, shelf):
    old, base, file, store = shelf(kind, task)
    [entry] = anytune.recycle(
        old, base, store=store, task=file, training=TRAINING, method={"name": "synthetic", "texts": 6, "rounds": 1}
    )
    assert entry.manifest.steps == 2


def test_what_has_no_answer_without_a_response_is_refused(shelf):
    old, base, file, store = shelf("gpt2", "responses")
    for method, given in (("distill", {"unlabelled": ["a text"]}), ("synthetic", {})):
        settings = {"name": method, "label_free": True} if given else method
        with pytest.raises(DataError, match="generation"):
            anytune.recycle(old, base, store=store, task=file, training=TRAINING, method=settings, **given)


def test_an_encoder_decoder_makes_no_texts_up(shelf):
    old, base, file, store = shelf("t5", "classes")
    with pytest.raises(MethodError, match="does not work on a base of kind 't5'"):
        anytune.recycle(old, base, store=store, task=file, training=TRAINING, method="synthetic")
