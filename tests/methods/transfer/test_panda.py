"""PANDA: what the teacher's term is worth, where it is nothing at all, and that its answers are the teacher's."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from anytune.errors import MethodError
from anytune.methods import registry
from anytune.methods.distillation import logit_distillation
from anytune.methods.prompts import head_in_place
from anytune.methods.step import StepModule, total
from anytune.methods.transfer.panda import cosine_gap, squared_gap, strength
from anytune.models.soft_prompts import attach_prompt, make_prompt, prompt_of
from tests.methods.transfer.taught import OfKind, answers_of, taught, with_teachers
from tests.methods.tune.by_hand import Small, close, same, weights

KINDS = ("classification", "regression", "token-classification")


def panda(**settings):
    return registry.create("transfer/panda", {"length": 3, "dropout": 0.0, **settings})


def tuning(**settings):
    return registry.create("transfer/prompt_tuning", {"length": 3, "dropout": 0.0, **settings})


# ---------------------------------------------------------------------- the formula


def test_the_gradient_of_the_squared_gap_is_twice_the_difference_over_the_count():
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, 3, generator=draw, dtype=torch.float64) for _ in range(2))
    student.requires_grad_()
    squared_gap(student, teacher).backward()
    torch.testing.assert_close(student.grad, 2 * (student.detach() - teacher) / 15)
    step = 1e-6
    for place in ((0, 0), (4, 2)):
        moved = [student.detach().clone() for _ in range(2)]
        moved[0][place] += step
        moved[1][place] -= step
        finite = (squared_gap(moved[0], teacher) - squared_gap(moved[1], teacher)) / (2 * step)
        assert student.grad[place].item() == pytest.approx(float(finite), abs=1e-8)


def test_a_hot_divergence_is_half_the_squared_gap_of_centred_logits():
    draw = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(6, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    centred = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    limit = float(centred.square().sum(1).mean() / (2 * 4))
    assert float(logit_distillation(student, teacher, 1e4)) == pytest.approx(limit, rel=1e-3)
    assert float(logit_distillation(student, teacher, 2.0)) >= 0
    shifted = student + torch.arange(6.0)[:, None]
    torch.testing.assert_close(logit_distillation(shifted, teacher, 2.0), logit_distillation(student, teacher, 2.0))
    assert not torch.isclose(squared_gap(shifted, teacher), squared_gap(student, teacher))


def test_gaps_of_no_items_are_zero_and_have_a_gradient():
    nothing = torch.zeros(0, 3, requires_grad=True)
    for gap in (squared_gap, cosine_gap):
        found = gap(nothing * 1, torch.zeros(0, 3))
        found.backward()
        assert found.item() == 0


@pytest.mark.parametrize(
    ("schedule", "values"),
    [("const", (1, 1, 1, 1)), ("linear", (1, 1, 0.5, 0)), ("cosine", (1, 1, 0.5, 0))],
)
def test_schedules_hold_and_then_fall_to_nothing(schedule, values):
    found = [strength(progress, schedule, 0.2) for progress in (0.0, 0.2, 0.6, 1.0)]
    assert found == pytest.approx(values)
    assert strength(0.4, "cosine", 0.2) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert strength(0.5, "linear", 0.0) == 0.5


# ---------------------------------------------------------------------- nothing at all


@pytest.mark.parametrize(
    "settings",
    [{"weight": 0.0}, {"similarity": 0.0}, {"similarity": -0.4}, {"similarity": "given"}],
    ids=["weight", "similarity", "negative", "given"],
)
def test_what_counts_nothing_is_prompt_tuning_bit_for_bit(tiny_base, tiny_task, settings):
    plain = Small(tiny_base, tiny_task, dropout=None).train([tuning(dropout=0.3)])
    small = with_teachers(tiny_base, tiny_task, {"similarity": -0.2}, dropout=None, double=False)
    method = panda(dropout=0.3, **settings)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert same(*(_seeded(one) for one in (
        lambda: Small(tiny_base, tiny_task, dropout=None).train([tuning(dropout=0.3)]),
        lambda: small.train([method]),
    )))  # fmt: skip
    assert plain.keys() == weights(small.model).keys()
    assert not torch.equal(torch.get_rng_state(), state), "dropout was on"
    assert method.figures() == {}


def test_several_teachers_of_which_none_is_near_teach_nothing(tiny_base, tiny_task):
    small = with_teachers(tiny_base, tiny_task, {"similarity": -0.2}, {"similarity": 0.0})
    method = panda()
    small.model = method.prepare(small.model, small.run)
    batch = small.batches.batch(0)
    assert list(StepModule(small.model, [method], small.objective)(batch)) == ["loss"]


def _seeded(train):
    torch.manual_seed(4)
    return train()


def test_a_weight_of_zero_needs_no_teacher_and_another_one_does(tiny_base, tiny_task):
    small = Small(tiny_base, tiny_task)
    panda(weight=0.0).prepare(small.model, small.run)
    small = Small(tiny_base, tiny_task)
    with pytest.raises(MethodError, match="needs a teacher prompt"):
        panda().prepare(small.model, small.run)


@pytest.mark.parametrize("loss", ["mse", "kl", "hidden", "cosine"])
def test_a_student_that_is_its_teacher_has_no_distance_and_no_gradient_of_it(tiny_base, tiny_task, loss):
    small = with_teachers(tiny_base, tiny_task, {"length": 3})
    [teacher] = small.run.teachers
    method = panda(loss=loss, weight=3.0)
    # the cached answers are fp32: the student must answer in fp32, too
    small.model = method.prepare(small.model.float(), small.run).train()
    with torch.no_grad():
        prompt_of(small.model).table.copy_(teacher.values)
        for name in small.head_names:
            small.model.state_dict()[name].copy_(teacher.head[name])
    batch = small.batches.batch(0)
    terms = StepModule(small.model, [method], small.objective)(batch)
    # asked in other batches, the teacher's answers differ by rounding
    assert terms["panda"].item() == pytest.approx(0, abs=1e-6 if loss in ("kl", "cosine") else 1e-10)
    terms["panda"].backward()
    assert float(prompt_of(small.model).table.grad.abs().max()) < 1e-6


# ---------------------------------------------------------------------- the teacher's answers


@pytest.mark.parametrize("kind", KINDS)
def test_cached_answers_are_those_of_a_model_with_the_teacher_on(tiny_base, kind):
    made, method = OfKind(tiny_base, kind), panda()
    before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    model = method.prepare(made.model, made.run).train()
    expected = answers_of(tiny_base, kind, made.head_names, made.teacher, made.batch)
    torch.testing.assert_close(method._answers(model, made.batch).double(), expected, rtol=0, atol=1e-6)
    output = made.objective.forward(model, made.batch)
    terms = method.objective(model, made.batch, output, {})
    torch.testing.assert_close(terms["panda"], functional.mse_loss(output.logits, expected), rtol=1e-5, atol=1e-7)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items()), "the teacher left something"
    wide = {
        key: functional.pad(value, (0, 3), value=-100 if key == "labels" else 0)
        if isinstance(value, torch.Tensor) and value.ndim == 2
        else value
        for key, value in made.batch.items()
    }
    assert torch.equal(method._answers(model, wide), method._answers(model, made.batch))


def test_what_a_teacher_says_of_padding_and_unlabelled_tokens_changes_nothing(tiny_base):
    made, method = OfKind(tiny_base, "token-classification"), panda()
    model = method.prepare(made.model, made.run).train()
    assert len(method._answers(model, made.batch)) == made.batch["num_items"]
    batch = {**made.batch, "labels": torch.full_like(made.batch["labels"], -100)}
    made.run.batches.every.append(batch)
    again = OfKind(tiny_base, "token-classification")
    again.run.batches = made.run.batches
    method = panda()
    model = method.prepare(again.model, again.run)
    terms = StepModule(model, [method], again.objective)(batch)
    assert total(terms).item() == 0, "a batch without any label"
    total(terms).backward()


@pytest.mark.parametrize("kind", ["classification", "token-classification"])
@pytest.mark.parametrize("loss", ["hidden", "cosine"])
def test_hidden_states_are_compared_where_the_items_are(tiny_base, kind, loss):
    made, method = OfKind(tiny_base, kind), panda(loss=loss)
    made.run.teachers = [replace(made.teacher, head={}, label_names=("other",))]  # hidden states need no head
    model = method.prepare(made.model, made.run).eval()
    terms = StepModule(model, [method], made.objective)(made.batch)
    student = _states(model, made.batch)
    method.finish(model, made.run)
    other = OfKind(tiny_base, kind)
    config = made.teacher.config
    attach_prompt(other.model, make_prompt(other.model, config, other.base.anatomy, 0, values=made.teacher.values),
                  other.base.anatomy)  # fmt: skip
    teacher = _states(other.model.eval(), made.batch)
    gap = functional.mse_loss if loss == "hidden" else lambda a, b: (1 - functional.cosine_similarity(a, b)).mean()
    torch.testing.assert_close(terms["panda"], gap(student, teacher), rtol=1e-4, atol=1e-7)


def _states(model, batch):
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    hidden = model.bert(**inputs).last_hidden_state
    found = []
    for row in range(len(hidden)):
        if batch["labels"].ndim == 1:
            found.append(hidden[row][batch["attention_mask"][row].bool()].mean(0))
        else:
            found += [hidden[row, place] for place in range(hidden.shape[1]) if batch["labels"][row, place] != -100]
    return torch.stack(found)


def test_a_teacher_of_another_kind_and_length_is_read_as_what_it_is(tiny_base):
    made, method = OfKind(tiny_base, "classification"), panda(kind="deep")
    made.run.teachers = [taught(made, 6, kind="input", length=2)]
    model = method.prepare(made.model, made.run)
    expected = answers_of(tiny_base, "classification", made.head_names, made.run.teachers[0], made.batch)
    torch.testing.assert_close(method._answers(model, made.batch).double(), expected, rtol=0, atol=1e-6)


def test_several_teachers_teach_their_weighted_mean_and_single_means_the_first(tiny_base):
    made = OfKind(tiny_base, "classification")
    teachers = [taught(made, 5 + place, similarity=near) for place, near in enumerate((0.6, 0.2, -0.9))]
    alone = [answers_of(tiny_base, "classification", made.head_names, one, made.batch) for one in teachers]
    for fusion, expected, near in (("late", 0.75 * alone[0] + 0.25 * alone[1], 0.5), ("single", alone[0], 0.6)):
        made = OfKind(tiny_base, "classification")
        made.run.teachers = teachers
        method = panda(fusion=fusion, weight=2.0)
        model = method.prepare(made.model, made.run)
        torch.testing.assert_close(method._answers(model, made.batch).double(), expected, rtol=0, atol=1e-5)
        assert method._weight == pytest.approx(2.0 * near)


def test_shuffled_teachers_say_something_else_of_every_item(tiny_base):
    made, method = OfKind(tiny_base, "token-classification"), panda(shuffle_teacher=True)
    model = method.prepare(made.model, made.run)
    found = method._answers(model, made.batch)
    expected = answers_of(tiny_base, "token-classification", made.head_names, made.teacher, made.batch).float()
    assert not torch.isclose(found, expected, atol=1e-6).all(dim=1).any()
    torch.testing.assert_close(found.sort(dim=0).values, expected.sort(dim=0).values, rtol=0, atol=1e-5)


def test_changed_data_are_noticed(tiny_base):
    made, method = OfKind(tiny_base, "classification"), panda()
    model = method.prepare(made.model, made.run)
    batch = {**made.batch, "input_ids": made.batch["input_ids"].clone()}
    batch["input_ids"][2, 1] = 7
    with pytest.raises(MethodError, match="1 of 4 rows are not among those"):
        StepModule(model, [method], made.objective)(batch)


# ---------------------------------------------------------------------- steps


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_add_up_to_the_whole_batch(tiny_base, kind):
    grads = []
    for pieces in ([[0, 1, 2, 3]], [[0], [1, 2, 3]]):
        made, method = OfKind(tiny_base, kind), panda(weight=3.0)
        model = method.prepare(made.model, made.run).double().eval()
        step = StepModule(model, [method], made.objective)
        for rows in pieces:
            part = {key: one[rows] for key, one in made.batch.items() if isinstance(one, torch.Tensor)}
            items = len(rows) if part["labels"].ndim == 1 else int((part["labels"] != -100).sum())
            (total(step(part)) * items / made.batch["num_items"]).backward()
        grads.append({name: one.grad for name, one in model.named_parameters() if one.grad is not None})
    close(*grads)


def test_the_term_is_weight_times_similarity_times_schedule_times_gap(tiny_base):
    terms = {}
    for settings in ({}, {"weight": 2.0}, {"similarity": 0.3}, {"similarity": 7 / 10, "per_row": True},
                     {"schedule": "linear", "hold": 0.0}):  # fmt: skip
        made, method = OfKind(tiny_base, "classification"), panda(**settings)
        model = method.prepare(made.model, made.run).eval()
        for _ in range(4):
            method.after_step(model)
        found = StepModule(model, [method], made.objective)(made.batch)
        terms[str(settings)] = float(found["panda"].detach())
        assert method.figures()["distance"] > 0
    plain, double, near, per_row, late = terms.values()
    assert double == pytest.approx(2 * plain)
    assert near == pytest.approx(0.3 * plain)
    assert per_row == pytest.approx(0.7 * plain / 4)
    assert late == pytest.approx(0.6 * plain)


def test_a_run_that_goes_on_knows_how_far_the_schedule_was(tiny_base, tiny_task):
    settings = {"schedule": "cosine", "hold": 0.0, "weight": 5.0}
    whole = with_teachers(tiny_base, tiny_task, steps=6)
    after = whole.train([panda(**settings)])
    cut = with_teachers(tiny_base, tiny_task, steps=6)
    first = panda(**settings)
    cut.train([first], last=3)
    again = panda(**settings)
    state = {name: one.clone() for name, one in cut.model.state_dict().items()}
    fresh = with_teachers(tiny_base, tiny_task, steps=6)
    fresh.model = again.prepare(fresh.model, fresh.run)
    again.load_state_dict(first.state_dict())
    fresh.model.load_state_dict(state)
    # the optimizer's moments go along: here its parameters are exchanged for the new ones
    for old, new in zip(cut.optimizer.param_groups, _groups(fresh, again), strict=True):
        for was, now in zip(old["params"], new["params"], strict=True):
            cut.optimizer.state[now] = cut.optimizer.state.pop(was)
        old["params"] = new["params"]
    resumed = fresh.train([again], first=3, prepared=True, optimizer=cut.optimizer)
    assert same(resumed, after)


def _groups(small, method):
    from anytune.engine.stages import method_groups

    return method_groups(small.model, [method], 1e-2, 0.1)


def test_the_published_scheme_asks_in_every_step_with_dropout_and_divides_by_the_batch_once_more(tiny_base):
    made = OfKind(tiny_base, "classification")
    method = panda(preset="paper_code", dropout=0.0)
    assert registry.settings_of(method)["teacher"] == "noisy"
    assert panda(preset="paper_code", weight=0.7).weight == 0.7
    model = method.prepare(made.model, made.run).train()
    before = weights(model)
    torch.manual_seed(3)
    output = made.objective.forward(model, made.batch)
    terms = method.objective(model, made.batch, output, {})
    torch.manual_seed(3)
    again = made.objective.forward(model, made.batch)
    with torch.no_grad(), head_in_place(model, dict(made.teacher.head)):
        prompt_of(model).table.data, own = made.teacher.values.double(), prompt_of(model).table.data
        taught_by = made.objective.forward(model, made.batch).logits
        prompt_of(model).table.data = own
    assert torch.equal(again.logits, output.logits)
    expected = 0.1 * 0.1 * functional.mse_loss(output.logits, taught_by) / 4
    torch.testing.assert_close(terms["panda"], expected)
    assert same(before, weights(model))
    total({**made.objective.terms(output, made.batch), **terms}).backward()
    assert all(one.grad is not None for name, one in model.named_parameters() if one.requires_grad)


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("settings", "change", "what"),
    [
        ({}, {"label_names": ("z", "y", "x")}, "answers 3 labels"),
        ({}, {"head": {}}, "holds no"),
        ({}, {"head": "wide"}, "another number of answers"),
        ({}, {"head": "nan"}, "answers NaN"),
        ({}, {"values": "nan"}, "NaN"),
        ({"teacher": "noisy", "kind": "input"}, {}, "deep prompt, the student a input one"),
    ],
)
def test_teachers_that_do_not_fit_are_refused(tiny_base, settings, change, what):
    made = OfKind(tiny_base, "classification")
    teacher, made.run.label_names = replace(made.teacher, label_names=("x", "y", "z")), ("x", "y", "z")
    odd = {"wide": torch.zeros(5, 32), "nan": torch.full((3, 32), math.nan)}
    if change.get("head"):
        change = {"head": {**teacher.head, "classifier.weight": odd[change["head"]]}}
    if change.get("values") == "nan":
        change = {"values": teacher.values * math.nan}
    made.run.teachers = [replace(teacher, **change)]
    with pytest.raises(MethodError, match=what):
        panda(**settings).prepare(made.model, made.run)


def test_settings_that_cannot_go_together_are_refused(tiny_base):
    with pytest.raises(MethodError, match="shuffle_teacher with teacher=noisy"):
        panda(shuffle_teacher=True, teacher="noisy")
    made = OfKind(tiny_base, "regression")
    with pytest.raises(MethodError, match="loss=kl on a regression task"):
        panda(loss="kl").prepare(made.model, made.run)
