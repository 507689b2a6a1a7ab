"""What went wrong in the published scripts of recyclable tuning, as regression tests.

| defect | in short | test here |
|---|---|---|
| B1 | the head is moved as a difference of random heads | ``test_b01_...`` |
| B2 | recycled adapters train without their head | ``test_b02_...`` |
| B3 | ... and are stored without it | ``test_b03_...`` |
| B4 | distilled adapters are stored with the old backbone, which later overwrites the new one | ``test_b04_...`` |
| B5 | plain and combined distillation share a folder, and the second is never run | ``test_b05_...`` |
| B6 | the student's base is fixed, whatever is asked for | ``test_b06_...`` |
| B7 | the first adapter of a path stands on the second one's backbone | ``test_b07_...`` |
| B8 | whole numbers are interpolated and cut | ``test_b08_...`` |
| B9 | the divergence is divided by the number of classes | ``test_b09_...`` |
| B10 | the hidden states' term is rounded to fp16 | ``test_b10_...`` |
| B11 | the teacher runs with autograd and labels | ``test_b11_...`` |
| B12 | the last weights are recycled, not the best on validation | ``test_b12_...`` |
| B13 | an adapter loads only from a path with a certain word, at one width | ``test_b13_...`` |
| B14 | a trained path fails on a list of names with holes | none: a path is never trained; a name that an end lacks is refused (``tests/evaluate/test_connectivity.py``) |
| B15 | tensors are skipped by their place in the list | ``test_b15_...`` |
| B16 | all seeds write one few-shot file | ``test_b16_...`` |
| B17 | a label that only validation has ends in a KeyError | ``test_b17_...`` |
| B18 | training without a logger crashes | none of its own: no test here gives a reporter or tracker |
| B19 | comments and README name other options and files | none of its own: ``tests/test_readme.py`` runs what the documents say |
"""  # noqa: E501 - a table

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

import anytune
from anytune.data.tasks import load_task
from anytune.engine.loop import Evaluation
from anytune.errors import DataError, DeltaError
from anytune.evaluate.connectivity import path_between
from anytune.jobs.deltas import load_delta
from anytune.jobs.load import evaluate
from anytune.jobs.outdated import OutdatedInRun
from anytune.jobs.recycle import recycling_plans
from anytune.methods import registry
from anytune.methods.distillation import logit_distillation, patience
from anytune.models.base import load_base
from anytune.models.delta import FullDelta
from anytune.models.difference import same_bits
from anytune.store import Store
from tests.conftest import tiny_rows, write_rows, write_tiny_base
from tests.methods.recycle.outdated import SETTINGS, Case, logits, store_of

FEW = {**SETTINGS, "steps": 3, "evaluate_every": 3}


@pytest.fixture(scope="module")
def third_base(tmp_path_factory):
    return write_tiny_base(tmp_path_factory.mktemp("third") / "third", seed=5)


def recycled(case: Case, base, store, method="initialize", **given):
    [entry] = anytune.recycle(
        case.moving.entry, base, store=store, old_base=case.moving.old, method=method, task=case.task, training=FEW,
        **given,
    )  # fmt: skip
    return entry


@pytest.fixture(scope="module")
def hop(lora_case, moving_bases, tmp_path_factory):
    """(store, the LoRA after one hop, tuned on)."""
    store = Store(tmp_path_factory.mktemp("hop"))
    return store, recycled(lora_case, moving_bases[1], store)


def heads(case: Case) -> dict[str, torch.Tensor]:
    return case.outdated.head


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors by the names of the model inside."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    return {name.replace(".base_layer", "").replace(".modules_to_save.default", ""): tensor
            for name, tensor in inner.state_dict().items()
            if "lora_" not in name and "original_module" not in name}  # fmt: skip


@pytest.mark.parametrize("method", ["direct", "initialize", "combined"])
def test_b01_the_head_is_copied_and_all_methods_start_from_the_same_answers(full_case, method):
    old = load_delta(full_case.moving.entry)
    fresh = full_case.model()[0].state_dict()
    model, _ = full_case.prepared(method)
    assert set(heads(full_case)) == set(old.head)
    for name, tensor in old.head.items():
        assert same_bits(model.state_dict()[name], tensor).all(), name
        assert not torch.equal(fresh[name], tensor), "the fresh head is another one"
    assert torch.equal(logits(full_case, model), logits(full_case, full_case.prepared("direct")[0]))


def test_b02_a_recycled_adapter_trains_what_a_fresh_one_trains_its_head_included(lora_case):
    method = registry.create("tune/lora", {"r": 4, "targets": "all-linear"})
    fresh = method.prepare(lora_case.model()[0], lora_case.run(outdated=None))
    moved, _ = lora_case.prepared("initialize")

    def trained(model):
        return {name for name, parameter in model.named_parameters() if parameter.requires_grad}

    assert trained(moved) == trained(fresh)
    for part in ("classifier", "pooler"):
        assert any(part in name for name in trained(moved)), part


def test_b03_a_recycled_adapter_is_stored_with_its_head_and_the_next_hop_begins_with_it(hop, lora_case, third_base):
    store, entry = hop
    delta, before = load_delta(entry), load_delta(lora_case.moving.entry)
    assert set(delta.tensors) == set(before.tensors)
    own = {name for name in delta.tensors if "lora_" not in name}
    assert own
    assert any(not torch.equal(delta.tensors[name], before.tensors[name]) for name in own), "the head was trained"
    [second] = anytune.recycle(
        entry, third_base, store=store, old_base=lora_case.new, method="direct", task=lora_case.task
    )
    assert all(torch.equal(load_delta(second).tensors[name], delta.tensors[name]) for name in own)


@pytest.mark.parametrize("method", ["distill", "combined"])
def test_b04_a_distilled_adapter_holds_no_backbone_and_leaves_that_of_the_next_base(
    method, lora_case, moving_bases, third_base, tmp_path
):
    entry = recycled(lora_case, moving_bases[1], Store(tmp_path), method)
    delta = load_delta(entry)
    assert all(any(part in name for part in ("lora_", "classifier", "pooler")) for name in delta.tensors)
    [second] = anytune.recycle(
        entry, third_base, store=tmp_path, old_base=lora_case.new, method="direct", task=lora_case.task
    )
    third = load_base(third_base)
    state = {third.anatomy.canonical(name): tensor for name, tensor in
             state_of(anytune.load(second, store=tmp_path, base=third)[0]).items()}  # fmt: skip
    tensors = third.tensors()
    shared = [name for name in tensors if name in state and not name.startswith("pooler")]
    assert len(shared) > 20
    for name in shared:
        assert same_bits(state[name], tensors[name]).all(), name


def test_b05_no_two_ways_to_recycle_share_a_place(full_case, moving_bases, tmp_path):
    store, keys = store_of(full_case.moving.entry), []
    for method in ("direct", "initialize", "distill", "combined", {"name": "distill", "alpha": 0.8},
                   {"name": "distill", "beta": 1.0}, {"name": "combined", "alpha": 0.8}):  # fmt: skip
        [plan], _ = recycling_plans(full_case.moving.entry, moving_bases[1], store=store, method=method,
                                    old_base=moving_bases[0], task=full_case.task, training=FEW)  # fmt: skip
        keys.append(plan.identity(plan.runtime()).key)
    assert len(set(keys)) == len(keys)


def test_b06_the_student_stands_on_the_base_that_is_asked_for(full_case, moving_bases, third_base, tmp_path):
    made = [recycled(full_case, base, Store(tmp_path), "distill") for base in (moving_bases[1], third_base)]
    wanted = [load_base(base).identity.backbone for base in (moving_bases[1], third_base)]
    assert [entry.manifest.base.backbone for entry in made] == wanted
    assert len({entry.manifest.run for entry in made}) == 2


def test_b07_each_end_of_a_path_stands_on_its_own_backbone(hop, lora_case):
    store, entry = hop
    first = anytune.load(lora_case.moving.entry, store=store_of(lora_case.moving.entry), base=lora_case.moving.old)[0]
    second = anytune.load(entry, store=store, base=lora_case.new)[0]
    wanted = [logits(lora_case, model) for model in (first, second)]
    ends = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in (first, second)]
    seen = []

    def look(model):
        seen.append(logits(lora_case, model))
        return Evaluation({}, 0.0, better=0.0)

    path = path_between(second, *ends, look, points=3)
    assert path.mode == "adapter"
    assert torch.equal(seen[0], wanted[0])
    assert torch.equal(seen[2], wanted[1])
    assert not torch.equal(seen[0], seen[2])


class Counting(nn.Module):
    def __init__(self, weight: float, places: list[int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), weight))
        self.register_buffer("places", torch.tensor(places))


def test_b08_whole_numbers_are_never_mixed():
    places = list(range(514))
    ends = [Counting(weight, places).state_dict() for weight in (0.0, 1.0)]
    model, seen = Counting(0.0, places), []

    def look(model):
        seen.append((model.places.clone(), float(model.weight.detach()[0])))
        return Evaluation({}, 0.0, better=0.0)

    path_between(model, *ends, look, points=26)
    assert all(found.dtype == torch.int64 and found.tolist() == places for found, _ in seen)
    assert [weight for _, weight in seen] == pytest.approx([place / 25 for place in range(26)])
    other = Counting(1.0, places[::-1]).state_dict()
    with pytest.raises(DeltaError, match="Whole numbers"):
        path_between(model, ends[0], other, look, points=3)


def test_b09_the_divergence_is_a_mean_over_examples_and_not_over_classes():
    draw = torch.Generator().manual_seed(0)
    for classes in (2, 13):
        student, teacher = torch.randn(2, 4, classes, generator=draw).unbind()
        p, q = (torch.softmax(one.double() / 5, dim=-1) for one in (teacher, student))
        naive = 25 * (p * (p / q).log()).sum(dim=-1).mean()
        found = logit_distillation(student, teacher, 5.0)
        assert float(found) == pytest.approx(float(naive), rel=1e-4)
        twice = logit_distillation(torch.cat([student, student]), torch.cat([teacher, teacher]), 5.0)
        assert twice == pytest.approx(float(found), rel=1e-6)
        published = logit_distillation(student, teacher, 5.0, "element")
        assert published * classes == pytest.approx(float(found), rel=1e-6)


@pytest.mark.parametrize("apart", [1e-5, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_b10_small_and_large_distances_of_hidden_states_are_kept(apart, dtype):
    teacher = [torch.zeros(2, 4, dtype=dtype)]
    student = [torch.full((2, 4), apart, dtype=dtype)]
    found = patience(student, teacher)
    assert found.dtype == torch.float32
    assert torch.isfinite(found)
    assert float(found) == pytest.approx(0.5 * float(student[0][0, 0]) ** 2, rel=1e-3)
    assert not 0 < float(found.half()) < float("inf"), "in fp16 it would be lost"


@pytest.mark.parametrize("method", ["distill", "combined"])
def test_b11_the_teacher_is_asked_without_gradients_labels_and_dropout(method, full_case, monkeypatch):
    seen, whole = [], OutdatedInRun.make_teacher

    def watched(self):
        teacher = whole(self)
        assert not any(parameter.requires_grad for parameter in teacher.parameters())

        def look(model, args, given):
            seen.append((torch.is_grad_enabled(), model.training, given.get("labels")))

        teacher.register_forward_pre_hook(look, with_kwargs=True)
        return teacher

    monkeypatch.setattr(OutdatedInRun, "make_teacher", watched)
    full_case.prepared(method, alpha=1.0)
    assert seen
    assert all(one == (False, False, None) for one in seen)


def test_b12_what_is_recycled_are_the_weights_that_validated_best(moving_bases, tmp_path):
    # labels that nothing says: the score goes up and down
    rows = [(text, "abc"[sum(map(ord, text)) % 3]) for text, _ in tiny_rows(90, 12)]
    task = write_rows(tmp_path / "task.csv", rows)
    training = {**SETTINGS, "steps": 12, "evaluate_every": 1, "keep": "best"}
    for seed in range(4):
        [entry] = anytune.tune(moving_bases[0], task, store=tmp_path, training=training, seeds=[seed])
        scores = [point.scores["accuracy"] for point in entry.manifest.curve]
        if scores[-1] < max(scores):
            break
    else:
        pytest.fail("no run ended below its best")
    assert entry.manifest.best_step != entry.manifest.steps
    found = evaluate(entry, task, store=tmp_path, base=moving_bases[0], split="validation")
    assert found["accuracy"] == pytest.approx(max(scores))
    [same] = anytune.recycle(entry, moving_bases[0], old_base=moving_bases[0], store=tmp_path, method="direct",
                             task=task)  # fmt: skip
    assert same.score("validation") == pytest.approx(max(scores))


@pytest.mark.parametrize("method", [{"name": "lora", "r": 3}, {"name": "bottleneck", "width": 5}])
def test_b13_an_adapter_of_any_width_loads_from_any_path(method, moving_bases, tiny_task, tmp_path):
    [entry] = anytune.tune(moving_bases[0], tiny_task, store=tmp_path / "s", method=method, training=FEW, name="x")
    moved = shutil.copytree(entry.folder, tmp_path / "elsewhere")
    texts = [text for text, _ in tiny_rows(4, 3)]
    answers = [anytune.predict(place, texts, base=moving_bases[0], store=tmp_path / "s")
               for place in (entry.folder, moved)]  # fmt: skip
    assert answers[0] == answers[1]
    [new] = anytune.recycle(moved, moving_bases[1], old_base=moving_bases[0], store=tmp_path / "s", method="direct",
                            task=tiny_task)  # fmt: skip
    assert anytune.predict(new, texts, store=tmp_path / "s", base=moving_bases[1]) != answers[0]


def test_b15_tensors_are_told_by_name_and_not_by_place(full_case):
    old = full_case.moving.old
    delta = load_delta(full_case.moving.entry)
    model, names = old.task_model("classification", full_case.task.label_names, 0)
    delta.install(model, old.tensors(), old.identity)
    state = model.state_dict()
    turned = dict(reversed(state.items()))
    found = [FullDelta.extract(old.tensors(), one, names, old.anatomy, old.identity) for one in (state, turned)]
    assert set(found[0].difference) == set(found[1].difference)
    assert any("word_embeddings" in name for name in found[1].difference)
    assert all(torch.equal(found[0].difference[name], found[1].difference[name]) for name in found[0].difference)


def test_b16_the_rows_of_a_seed_are_its_own_whatever_was_drawn_before(tiny_task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = {seed: load_task(tiny_task).subset(per_class=3, seed=seed) for seed in (20, 30, 40)}
    again = {seed: load_task(tiny_task).subset(per_class=3, seed=seed) for seed in (40, 20, 30)}
    assert all(first[seed] == again[seed] for seed in first)
    assert len({first[seed].train for seed in first}) == 3
    assert not list(tmp_path.iterdir())


def test_b17_a_label_that_only_validation_has_is_known(tmp_path):
    rows = [row for row in tiny_rows(60, 4) if row[1] != "stone"]
    train = write_rows(tmp_path / "train.csv", rows)
    held = write_rows(tmp_path / "held.csv", tiny_rows(12, 9))
    with pytest.raises(DataError, match=r"line 4 of .*held.csv has the unknown label 'stone'"):
        load_task(train, validation=held)
    task = load_task(train, validation=held, label_names=["animal", "plant", "stone"])
    assert task.label_names == ("animal", "plant", "stone")
    assert {row.label for row in task.validation} == {0, 1, 2}
    few = replace(task, train=task.train[:8])
    assert few.label_names == task.label_names
