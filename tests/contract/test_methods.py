"""What every registered method promises; a new file in a room is tested by being there."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pytest
import torch

import anytune
from anytune.jobs.opening import open_base
from anytune.methods import registry
from anytune.methods.protocol import overrides
from anytune.models.probe import check_probe
from anytune.store import Store
from tests.contract.bench import JOBS, METHODS, TRAINING_METHODS, Bench, equal, room_of, shared
from tests.contract.settings import EXERCISES, exercise


def test_the_settings_name_only_methods_that_exist():
    assert set(EXERCISES) <= set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_its_card_is_complete_and_every_setting_is_described(name):
    card = registry.card(name)
    title, _, rest = card.partition("\n")
    assert title.endswith(".")
    assert ": " in title
    places = [rest.find(part) for part in (
        "In plain words: ", "Formula: ", "Paper: ", "Costs: ", "When not to use it: ", "Choices of ours: ",
    )]  # fmt: skip
    assert -1 not in places
    assert places == sorted(places)
    assert registry.get(name).__doc__
    for setting in registry.describe(name):
        assert len(setting.description) > 10, f"{name}: {setting.name} has no description"


@pytest.mark.parametrize("name", METHODS)
def test_it_says_under_which_settings_it_is_plain_training_or_why_under_none(name):
    cls = registry.get(name)
    if cls.neutral is None:
        assert len(cls.neutral_reason) > 10
    else:
        registry.create(name, cls.neutral)


@pytest.mark.parametrize("name", METHODS)
def test_its_class_keeps_no_state_and_its_settings_are_plain_values(name):
    cls = registry.get(name)
    assert dataclasses.is_dataclass(cls)
    one, other = registry.create(name), registry.create(name)
    assert vars(one) == vars(other)
    json.dumps(registry.settings_of(one), allow_nan=False)
    assert registry.create(name, registry.settings_of(registry.create(name, exercise(name).settings))) is not None
    kept = {key for key, value in vars(cls).items() if isinstance(value, dict | list | set | torch.Tensor)}
    assert kept <= {"neutral", "suggests", "__annotations__", "__dataclass_fields__", "__pydantic_config__"}


@pytest.mark.parametrize("name", [name for name in METHODS if registry.get(name).neutral is not None])
def test_its_neutral_setting_is_plain_training_bit_for_bit(name, bench: Bench):
    neutral = bench.loop(name, settings={**shared(name), **registry.get(name).neutral})
    assert equal(neutral.after, bench.plain(name).after)


@pytest.mark.parametrize("name", [name for name in METHODS if registry.get(name).neutral is not None])
def test_its_exercise_is_not_neutral_unless_it_has_no_settings(name, bench: Bench):
    if registry.describe(name):
        assert not equal(bench.loop(name).after, bench.plain(name).after)


@pytest.mark.parametrize("name", TRAINING_METHODS)
def test_its_loss_falls(name, bench: Bench):
    if exercise(name).no_labels:
        pytest.skip(exercise(name).no_labels)
    before, after = bench.loop(name, steps=60, measured=True).losses
    assert after < 0.95 * before


@pytest.mark.parametrize("name", TRAINING_METHODS)
def test_it_moves_every_weight_it_trains_and_no_other(name, bench: Bench):
    trained = bench.loop(name)
    after = trained.after
    assert after.keys() == trained.before.keys()
    tied = {found for found in after if found not in dict(trained.model.named_parameters())}
    for found in after.keys() - tied:
        moved = not torch.equal(after[found], trained.before[found])
        assert moved == exercise(name).trains(found, trained.head_names), found
        assert moved == (found in trained.trained_names), found


@pytest.mark.parametrize("name", [name for name in METHODS if name not in TRAINING_METHODS])
def test_without_training_it_changes_the_model_all_the_same(name, bench: Bench):
    moved = bench.loop(name)
    changed = {found for found, tensor in moved.after.items() if not torch.equal(tensor, moved.before[found])}
    assert any("classifier" in found for found in changed)
    assert exercise(name).by_score or any("encoder.layer.0" in found for found in changed)
    assert moved.result.steps == 0
    assert bench.finished(name).manifest.steps == 0


@pytest.mark.parametrize("name", METHODS)
def test_it_saves_loads_and_answers_the_same(name, bench: Bench):
    entry = bench.finished(name)
    store = Store(entry.folder.parent.parent)
    again = store.get(entry.manifest.id)
    store.verify(again)
    if room_of(name) == "pretrain":
        model, fresh = open_base(again).pretraining_model(99)
        assert not fresh
        assert check_probe(model, again.manifest.probe) <= 1e-6
        return
    scores = anytune.score(again, bench.task, store=store, split="test")
    assert scores == again.manifest.scores["test"]
    task = anytune.load_task(bench.task)
    stored = [json.loads(line) for line in (again.folder / "predictions.jsonl").read_text().splitlines()]
    answers = anytune.predict(again, [row.text for row in task.test], store=store)
    assert [answer["label"] for answer in answers] == [line["predicted"] for line in stored]
    assert [answer["probability"] for answer in answers] == pytest.approx(
        [line["probability"] for line in stored], abs=1e-4
    )


@pytest.mark.parametrize("name", METHODS)
def test_its_manifest_records_every_setting_and_says_how_to_make_it_again(name, bench: Bench):
    manifest, given = bench.finished(name).manifest, [one.id for many in bench.given(name).values() for one in many]
    [record] = [one for one in manifest.methods if one.name == name]
    assert record.settings == registry.settings_of(registry.create(name, exercise(name).settings))
    assert manifest.recipe["job"] == JOBS.get(room_of(name), room_of(name))
    parents = [parent.id for parent in manifest.parents if parent.role == "delta"]
    assert parents[len(parents) - len(given) :] == given
    assert manifest.environment.threads == torch.get_num_threads()
    assert manifest.environment.precision == "fp32"


@pytest.mark.parametrize("name", TRAINING_METHODS)
def test_bf16_runs_and_the_weights_stay_fp32_and_finite(name, bench: Bench):
    trained = bench.loop(name, precision="bf16")
    for found, tensor in trained.after.items():
        assert tensor.dtype == trained.before[found].dtype
        assert torch.isfinite(tensor).all(), found
    assert all(parameter.dtype == torch.float32 for parameter in trained.model.parameters())
    assert not equal(trained.after, bench.loop(name).after), "autocast did nothing"


@pytest.mark.parametrize("name", TRAINING_METHODS)
def test_accumulating_micro_batches_of_any_size_equals_the_whole_batch(name, bench: Bench):
    if exercise(name).no_accumulation:
        pytest.skip(exercise(name).no_accumulation)
    # a modest rate: AdamW turns a gradient that is 0 but for rounding (a key's bias) into up to 1e8 times its size
    settings = {"precise": True, "steps": 4, "batch_size": 6, "learning_rate": 1e-3}
    whole, cut = bench.loop(name, **settings), bench.loop(name, **settings, pieces=2)
    assert whole.result.items == cut.result.items
    assert whole.result.examples == cut.result.examples
    for found, tensor in cut.after.items():
        torch.testing.assert_close(
            tensor, whole.after[found], rtol=0, atol=1e-12, msg=lambda text, n=found: f"{n}: {text}"
        )


@pytest.mark.parametrize("name", METHODS)
def test_the_random_state_of_the_caller_is_left_as_it_was(name, bench: Bench, tmp_path):
    torch.manual_seed(1234)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    store = bench.store(f"random-{tmp_path.name}")
    bench.job(name, store, **({"steps": 2} if name in TRAINING_METHODS else {}))
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.mark.parametrize("name", METHODS)
def test_what_it_keeps_between_steps_survives_a_checkpoint(name):
    method = registry.create(name, exercise(name).settings)
    if overrides(method, "state_dict"):
        assert overrides(method, "load_state_dict")
