"""The library of prompts: features, ranking, matrices, adoption; on a tiny base, in seconds."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

import anytune
from anytune.data.tasks import load_task
from anytune.errors import DataError, SettingsError, StoreError
from anytune.evaluate.transferability import FiredNeurons, logme
from anytune.jobs.opening import open_base, open_store
from anytune.jobs.prompt_library import PromptModels, is_prompt, model_of, one_per_task, prompts_of, relation
from anytune.jobs.prompt_reading import look
from anytune.jobs.prompt_sources import prompt_of_entry
from anytune.jobs.ranking import check_measures
from anytune.jobs.task_features import FEATURES_NAME, read_features, sampled, task_features
from anytune.jobs.transfer import rank
from anytune.jobs.transfer_add import add_prompt
from anytune.jobs.transfer_matrix import matrix
from anytune.models.soft_prompts import given_prompt_values
from tests.conftest import tiny_rows, write_rows

TRAINING = {"steps": 3, "batch_size": 8, "max_length": 24, "precision": "fp32", "learning_rate": 1e-2}
PROMPT = {"name": "prompt_tuning", "length": 4, "dropout": 0.0}


def relabelled(path, seed, label, count=60):
    """Other texts, with labels that a function of the topic's name gives."""
    return write_rows(path, [(text, label(name)) for text, name in tiny_rows(count, seed)])


@pytest.fixture(scope="module")
def library(tmp_path_factory, session_cache, tiny_base, tiny_task):
    """(store, entries by task): prompts of three tasks, one of them ``tiny_task`` itself."""
    folder = tmp_path_factory.mktemp("library")
    tasks = {
        "things": tiny_task,
        "alive": relabelled(folder / "alive.csv", 5, lambda name: "no" if name == "stone" else "yes"),
        "letters": relabelled(folder / "letters.csv", 6, len),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYTUNE_CACHE", str(session_cache))
        made = {
            name: anytune.tune(tiny_base, task, store=folder / "s", method=PROMPT, training=TRAINING)[0]
            for name, task in tasks.items()
        }
    return folder / "s", made, tasks


def test_features_stand_beside_each_prompt_and_are_what_a_loop_over_rows_gives(library, tiny_base, tiny_task):
    _store, made, _ = library
    entry = made["things"]
    kept = read_features(entry.folder, entry.id)
    assert not isinstance(kept, str), kept
    assert FEATURES_NAME not in entry.manifest.files
    base, task = open_base(tiny_base), load_task(tiny_task)
    model = model_of(prompt_of_entry(entry), base)
    rows = sampled(task)
    assert kept.rows == len(rows) == len(task.train)
    tokenizer, summed, plain, neurons = base.tokenizer(), 0.0, 0.0, FiredNeurons()
    fired = []

    def see(module, given, output):
        fired.append(output[:, 0])

    for row in rows:  # one at a time, no padding
        ids = tokenizer(row.text, return_tensors="pt", truncation=True, max_length=24)
        with torch.no_grad():
            fired.clear()
            hooks = [block.intermediate.register_forward_hook(see) for block in model.bert.encoder.layer]
            summed += model.bert(**ids)[0][0].mean(dim=0).double()
            for hook in hooks:
                hook.remove()
            neurons.add(torch.stack(fired, dim=1))
            with given_prompt_values(model, None):
                plain += model.bert(**ids)[0][0].mean(dim=0).double()
    assert np.allclose(kept.embedding["mean"], (summed / len(rows)).numpy(), atol=1e-6)
    assert np.allclose(kept.plain["mean"], (plain / len(rows)).numpy(), atol=1e-6)
    assert not np.allclose(kept.plain["mean"], kept.embedding["mean"], atol=1e-4), "the prompt changes something"
    assert np.array_equal(kept.neurons, neurons.bits())


def test_features_depend_on_neither_batches_nor_padding(library, tiny_base, tiny_task):
    from anytune.engine.runtime import make_runtime

    _, made, _ = library
    base, task, runtime = open_base(tiny_base), load_task(tiny_task), make_runtime("fp32")
    model = model_of(prompt_of_entry(made["things"]), base)
    small, large = (task_features(model, base, task, runtime, batch_size=size) for size in (3, 32))
    for pooling in ("mean", "cls"):
        assert np.allclose(small.embedding[pooling], large.embedding[pooling], atol=1e-6)


def test_damaged_features_are_made_again_if_the_task_is_at_hand_else_named(library, tmp_path, tiny_base, tiny_task):
    store, made, _ = library
    copy = tmp_path / "s"
    shutil.copytree(store, copy)
    place = open_store(copy)
    entry = place.get(made["things"].reference)
    before = read_features(entry.folder, entry.id)
    raw = bytearray((entry.folder / FEATURES_NAME).read_bytes())
    raw[-3] ^= 255
    (entry.folder / FEATURES_NAME).write_bytes(bytes(raw))
    assert "damaged" in read_features(entry.folder, entry.id)
    place.verify(entry)  # the prompt itself is whole
    found = matrix(tiny_base, store=copy)
    assert "things" not in found.tasks
    assert "does not say where its task's data are" in next(iter(found.left_out.values()))
    _, again = add_prompt(entry.reference, task=tiny_task, store=copy)
    assert np.array_equal(again.embedding["mean"], before.embedding["mean"])
    assert "things" in matrix(tiny_base, store=copy).tasks
    other = place.get(made["alive"].reference)
    shutil.copy(entry.folder / FEATURES_NAME, other.folder / FEATURES_NAME)
    assert "another artefact" in read_features(other.folder, other.id)


def test_a_new_task_is_ranked_by_every_measure_with_itself_left_out(library, tiny_base, tiny_task):
    store, made, _ = library
    found = rank(tiny_task, tiny_base, store=store)
    assert {one.task for one in found.ranked} == {"alive", "letters"}
    assert list(found.left_out) == [made["things"].reference]
    assert found.metric == "logme"
    assert [one.rank for one in found.ranked] == [1, 2]
    problems = {one.name: one.problem for one in found.measures}
    assert not any(problems.values()), problems  # the task's own prompt is in the store
    assert found.scores("size") == {"alive": 42, "letters": 42} or len(found.scores("size")) == 2
    # the ranking measure against its own function on features read row by row
    base, task = open_base(tiny_base), load_task(tiny_task)
    labels = [row.label for row in task.train]
    for one in found.ranked:
        model = model_of(prompt_of_entry(one.entry), base)
        features = []
        for row in task.train:
            with torch.no_grad():
                features.append(model.bert(**base.tokenizer()(row.text, return_tensors="pt"))[0][0].mean(dim=0))
        assert one.scores["logme"] == pytest.approx(logme(torch.stack(features), labels, classes=3), abs=1e-4)
    again = rank(tiny_task, tiny_base, store=store)
    assert [one.scores for one in again.ranked] == [one.scores for one in found.ranked]


def test_without_a_prompt_of_the_task_the_measures_that_need_one_say_so(library, tiny_base, tmp_path):
    store = tmp_path / "s"
    shutil.copytree(library[0], store)
    task = relabelled(tmp_path / "new.csv", 11, lambda name: "s" if name == "stone" else "other")
    found = rank(task, tiny_base, store=store)
    assert len(found.ranked) == 3
    assert not found.left_out
    lacking = {one.name for one in found.measures if "needs a prompt" in one.problem}
    assert {"task_cosine", "neuron_overlap", "prompt_mean_cosine"} <= lacking
    with pytest.raises(DataError, match="needs a prompt"):
        rank(task, tiny_base, store=store, metric="task_cosine")
    trained = rank(task, tiny_base, store=store, metric="task_cosine", train=2)
    assert trained.metric == "task_cosine"
    assert len(trained.ranked) == 3
    assert all(-1 <= one.similarity <= 1 for one in trained.ranked)


def test_kinds_of_task_rank_too(library, tiny_base, tmp_path):
    store, _, _ = library
    numbers = write_rows(tmp_path / "numbers.csv", [(text, len(text) + 0.5) for text, _ in tiny_rows(60, 12)])
    found = rank(numbers, tiny_base, store=store, kind="regression")
    assert found.metric == "logme"
    assert found.scores("h_score")
    words = [(str(text.split()).replace("'", '"'), str(["O" if len(word) < 5 else "B-X" for word in text.split()])
              .replace("'", '"')) for text, _ in tiny_rows(40, 13)]  # fmt: skip
    tags = tmp_path / "tags.jsonl"
    tags.write_text("\n".join(f'{{"words": {left}, "tags": {right}}}' for left, right in words))
    found = rank(tags, tiny_base, store=store)
    assert len(found.scores("logme")) == 3
    assert "no head of classes" in next(one.problem for one in found.measures if one.name == "leep")


def test_one_class_is_a_clear_error(library, tiny_base, tiny_task):
    from dataclasses import replace

    task = load_task(tiny_task)
    one_class = replace(task, train=tuple(row for row in task.train if row.label == 0), content="other", name="one")
    with pytest.raises(DataError, match=r"all .* labels are class 0"):
        rank(one_class, tiny_base, store=library[0], metric="logme")


def test_an_empty_library_and_one_of_the_task_alone_are_errors(library, tmp_path, tiny_base, other_base, tiny_task):
    with pytest.raises(StoreError, match="no soft prompt of base"):
        rank(tiny_task, tiny_base, store=tmp_path / "none")
    with pytest.raises(StoreError, match="no soft prompt of base"):
        rank(tiny_task, other_base, store=library[0])
    with pytest.raises(StoreError, match="is no source for itself"):
        rank(tiny_task, tiny_base, store=library[0], sources=[library[1]["things"]])
    with pytest.raises(SettingsError, match="logme"):
        rank(tiny_task, tiny_base, store=library[0], metric="logmee")
    with pytest.raises(SettingsError, match="Each once"):
        check_measures(["logme", "logme"])


def test_a_prompt_that_holds_nan_is_left_out_with_a_word(library, tmp_path, tiny_base, tiny_task):
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "s"
    shutil.copytree(library[0], copy)
    path = copy / "deltas" / library[1]["alive"].reference / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["prompt_embeddings"][0, 0] = float("nan")
    save_file(tensors, path)
    found = rank(tiny_task, tiny_base, store=copy, metrics=["logme"])
    assert [one.task for one in found.ranked] == ["letters"]
    assert any("not finite" in why for why in found.left_out.values())


def test_the_same_rows_under_another_name_are_the_task_itself(library, tmp_path, tiny_task):
    _, made, _ = library
    entry = made["things"]
    features = read_features(entry.folder, entry.id)
    rows = tiny_rows()
    renamed = load_task(write_rows(tmp_path / "renamed.csv", rows[::-1]), name="another")
    assert relation(entry.manifest.task, features, renamed) == (True, True)
    same_texts = load_task(write_rows(tmp_path / "texts.csv", [(text, "ab"[len(text) % 2]) for text, _ in rows]))
    assert relation(entry.manifest.task, features, same_texts) == (False, True)
    others = load_task(write_rows(tmp_path / "others.csv", tiny_rows(60, 77)))
    assert relation(entry.manifest.task, features, others) == (False, False)


def test_the_matrix_is_symmetric_and_written(library, tmp_path, tiny_base):
    found = matrix(tiny_base, store=library[0], metric="task_cosine")
    assert np.allclose(found.values, found.values.T)
    assert np.allclose(np.diag(found.values), 1)
    assert sorted(found.order) == [0, 1, 2]
    written = found.write(tmp_path / "out")
    assert [path.name for path in written] == ["task_cosine.csv", "task_cosine.svg"]
    table = [line.split(",") for line in written[0].read_text().splitlines()]
    row, column = found.order[0], found.order[1]
    assert table[0][1:] == [found.tasks[place] for place in found.order]
    assert float(table[1][2]) == pytest.approx(found.values[row, column], abs=1e-6)
    assert "<svg" in written[1].read_text()
    assert found.tasks[0] in written[1].read_text()
    for metric in ("neuron_overlap", "tfidf", "prompt_mean_cosine", "prompt_max_pairwise"):
        assert np.isfinite(matrix(tiny_base, store=library[0], metric=metric).values).all()
    with pytest.raises(SettingsError, match="logme"):
        matrix(tiny_base, store=library[0], metric="logme")


def test_centring_and_pooling_change_the_cosines(library, tiny_base):
    plain = matrix(tiny_base, store=library[0])
    for choice in ({"centring": "library"}, {"centring": "base"}, {"pooling": "cls"}):
        assert not np.allclose(matrix(tiny_base, store=library[0], **choice).values, plain.values)
    with pytest.raises(SettingsError, match="pooling"):
        matrix(tiny_base, store=library[0], pooling="max")


def test_a_prompt_made_elsewhere_joins_with_its_task(library, tmp_path, tiny_base):
    store, made, tasks = library
    out = tmp_path / "mine"
    anytune.export(made["alive"], out, store=store)
    (out / "anytune.json").unlink()
    (out / FEATURES_NAME).unlink(missing_ok=True)
    entry, features = add_prompt(out, base=tiny_base, task=tasks["alive"], store=tmp_path / "s")
    assert entry.manifest.task.name == "alive"
    assert entry.manifest.label_names == ["no", "yes"]
    kept = read_features(made["alive"].folder, made["alive"].id)
    assert np.allclose(features.embedding["mean"], kept.embedding["mean"], atol=1e-5)
    ranked = rank(tasks["letters"], tiny_base, store=tmp_path / "s", metrics=["logme", "task_cosine"])
    assert [one.task for one in ranked.ranked] == ["alive"]
    with pytest.raises(DataError, match=r"labels differ|unknown label"):
        add_prompt(entry.reference, task=tasks["letters"], store=tmp_path / "s")


def test_of_several_prompts_of_a_task_the_best_stands_for_it(library, tiny_base):
    store, made, _ = library
    place = open_store(store)
    entries = prompts_of(place, open_base(tiny_base))
    assert {entry.id for entry in entries} >= {entry.id for entry in made.values()}
    assert all(is_prompt(entry) for entry in entries)
    alone = one_per_task(entries)
    assert len({entry.manifest.task.name for entry in alone}) == len(alone)


def test_looking_leaves_the_model_as_it_was(library, tiny_base, tiny_task):
    from anytune.data.batches import evaluation_batches
    from anytune.engine.runtime import make_runtime
    from anytune.jobs.task_features import encoded_rows

    base, task = open_base(tiny_base), load_task(tiny_task)
    model = model_of(prompt_of_entry(library[1]["things"]), base).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    batches = list(evaluation_batches(encoded_rows(task, task.train, base, 24), 16))
    seen = look(model, base.anatomy, batches, make_runtime("fp32"), logits=True, neurons=True)
    assert model.training
    assert seen.logits.shape == (len(task.train), 3)
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_prompts_that_share_a_body_answer_as_each_does_alone(library, tiny_base, tiny_task):
    base = open_base(tiny_base)
    entries = [*library[1].values(), library[1]["things"]]
    models = PromptModels(base, torch.device("cpu"))
    ids = base.tokenizer()("cat the dog near a rose", return_tensors="pt")
    for entry in entries:
        prompt = prompt_of_entry(entry)
        with torch.no_grad(), models.with_prompt(prompt) as model:
            shared = model(**ids).logits
        assert torch.equal(shared, model_of(prompt, base)(**ids).logits), entry.name
    bodies = {id(model.bert) for model, _ in models._models.values()}
    assert len(bodies) == 1
    assert len(models._models) == 2, "one for each number of labels"
