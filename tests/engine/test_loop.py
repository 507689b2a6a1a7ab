from __future__ import annotations

import json
import math
import os
import signal

import pytest
import torch

from anytune.engine import loop as module
from anytune.engine.loop import Evaluation
from anytune.engine.progress import Silent
from anytune.errors import MethodError, TrainingError
from anytune.methods.protocol import Method, Stage
from tests.engine.conftest import Points


class Scripted:
    """An evaluation that gives one value after the other, and keeps the weights it was shown."""

    def __init__(self, *values: float, loss: float | None = 1.0) -> None:
        self.values, self.loss = list(values), loss
        self.shown: list[dict[str, torch.Tensor]] = []

    def __call__(self, model):
        assert not model.training
        assert not torch.is_grad_enabled()
        self.shown.append(weights(model))
        value = self.values[len(self.shown) - 1]
        return Evaluation({"accuracy": value}, self.loss, value)


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


def test_the_best_weights_on_validation_are_kept(line, fit):
    evaluate = Scripted(0.1, 0.5, 0.9, 0.4, 0.8)
    result = fit(line, 4, evaluate=evaluate, evaluate_every=1)
    assert (result.best_step, result.steps) == (2, 4)
    assert same(weights(line), evaluate.shown[2])


def test_of_equal_scores_the_earlier_weights_are_kept(line, fit):
    evaluate = Scripted(0.1, 0.9, 0.9, 0.9)
    result = fit(line, 3, evaluate=evaluate, evaluate_every=1)
    assert result.best_step == 1
    assert same(weights(line), evaluate.shown[1])


def test_the_weights_from_before_training_may_be_the_best(line, fit):
    start = weights(line)
    result = fit(line, 3, evaluate=Scripted(0.9, 0.1, 0.2, 0.3), evaluate_every=1)
    assert result.best_step == 0
    assert same(weights(line), start)


def test_the_last_weights_are_kept_if_asked_for_and_named_as_the_step_kept(line, fit):
    evaluate = Scripted(0.9, 0.5, 0.1)
    result = fit(line, 4, evaluate=evaluate, evaluate_every=2, keep="last")
    assert result.best_step == 4
    assert same(weights(line), evaluate.shown[-1])
    assert not same(weights(line), evaluate.shown[0])


@pytest.mark.parametrize("evaluate", [None, Scripted(*[math.nan] * 9)], ids=["no evaluation", "no defined score"])
def test_where_nothing_is_best_the_last_weights_are_kept(line, fit, evaluate):
    start = weights(line)
    result = fit(line, 4, evaluate=evaluate, evaluate_every=2)
    assert result.best_step == 4
    assert not same(weights(line), start)


def test_evaluations_stand_at_step_0_at_every_interval_and_at_the_end(line, fit):
    result = fit(line, 7, evaluate=Scripted(*[0.0] * 9), evaluate_every=3)
    assert [point.step for point in result.curve] == [0, 3, 6, 7]
    assert result.curve[0].seconds == 0
    assert [point.seconds for point in result.curve] == sorted(point.seconds for point in result.curve)


def test_by_default_there_are_about_ten_evaluations(line, fit):
    result = fit(line, 25, evaluate=Scripted(*[0.0] * 20))
    assert [point.step for point in result.curve] == [0, 3, 6, 9, 12, 15, 18, 21, 24, 25]


def test_no_steps_only_evaluate(line, fit):
    start = weights(line)
    batches = Points()
    result = fit(line, 0, evaluate=Scripted(0.5), batches=batches)
    assert [point.step for point in result.curve] == [0]
    assert (result.steps, result.best_step, result.examples, batches.asked) == (0, 0, 0, [])
    assert same(weights(line), start)


def test_no_steps_are_possible_on_a_frozen_model_and_one_step_is_not(line, fit):
    line.requires_grad_(False)
    fit(line, 0, evaluate=Scripted(0.5))
    with pytest.raises(TrainingError, match="nothing is trainable"):
        fit(line, 1)


def test_seconds_count_training_and_not_evaluation(line, fit, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    class Slow(Points):
        def batch(self, step):
            now[0] += 1.0
            return super().batch(step)

    def evaluate(model):
        now[0] += 1000.0
        return Evaluation({"accuracy": 0.0}, None, 0.0)

    result = fit(line, 4, evaluate=evaluate, batches=Slow(), evaluate_every=2)
    assert result.seconds == 4.0
    assert [point.seconds for point in result.curve] == [0.0, 2.0, 4.0]


def test_every_batch_is_asked_for_once_in_order_and_counted(line, fit):
    batches = Points()
    result = fit(line, 4, batches=batches, accumulation=3)
    assert batches.asked == list(range(12))
    assert (result.examples, result.items) == (72, 72)


@pytest.mark.parametrize("every", [1, 4, 100])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_rate(line, fit, tmp_path, every):
    with pytest.raises(TrainingError, match=r"lines: the loss is nan at step (\d+) \(learning rate 0.05\)") as caught:
        fit(
            line, 30, batches=Points(poison_at=11), evaluate=Scripted(*[0.0] * 40), evaluate_every=every, work=tmp_path
        )
    step = int(caught.value.what.split("at step ")[1].split()[0])
    assert step == {1: 12, 4: 12, 100: 20}[every]
    assert "precision=fp32" in caught.value.fix


def test_no_checkpoint_is_ever_written_of_broken_weights(line, fit, tmp_path):
    with pytest.raises(TrainingError, match="nan at step 6"):
        fit(line, 30, batches=Points(poison_at=4), work=tmp_path, checkpoint_every=3, evaluate_every=100)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000003"]


def test_an_update_that_breaks_the_weights_in_the_very_last_step_is_noticed(line, fit):
    class Breaks(Method):
        name = "breaks"

        def after_step(self, model):
            with torch.no_grad():
                model.outer.bias.fill_(math.inf)

    with pytest.raises(TrainingError, match=r"the weights of outer.bias are not finite after step 1"):
        fit(line, 1, methods=[Breaks()])


def test_a_held_out_loss_that_is_not_finite_is_not_hidden_by_a_lucky_score(line, fit):
    with pytest.raises(TrainingError, match="the loss on held-out data is nan at step 0"):
        fit(line, 2, evaluate=Scripted(1.0, loss=math.nan))


def test_weight_decay_is_for_matrices_alone(line, fit):
    class Still(Method):
        name = "still"

        def objective(self, model, batch, output, terms):
            return {"loss": terms["loss"] * 0.0}

    start = weights(line)
    fit(line, 3, methods=[Still()], weight_decay=0.5, warmup=0.0, schedule="constant")
    for name, tensor in weights(line).items():
        expected = start[name] * (1 - 0.05 * 0.5) ** 3 if tensor.ndim > 1 else start[name]
        torch.testing.assert_close(tensor, expected)


def test_gradients_are_clipped_after_the_methods_have_seen_them(line, fit):
    class Watches(Method):
        name = "watches"

        def after_backward(self, model):
            for parameter in model.parameters():
                parameter.grad.mul_(1e4)
            self.model = model

        def after_step(self, model):
            self.norm = torch.linalg.vector_norm(torch.cat([one.grad.flatten() for one in model.parameters()])).item()

    method = Watches()
    fit(line, 1, methods=[method], max_grad_norm=0.5)
    assert method.norm == pytest.approx(0.5, rel=1e-4)
    fit(line, 1, methods=[method], max_grad_norm=None)
    assert method.norm > 100


class TwoStages(Method):
    """A teacher for a quarter of the steps, then a student of which only the last layer is trained."""

    name = "two_stages"

    def __init__(self):
        self.begun, self.made = 0, torch.zeros(1)

    def stages(self):
        return (Stage("teacher", 0.25), Stage("student", 0.75))

    def param_groups(self, model, groups):
        self.begun += 1
        return groups

    def after_step(self, model):
        self.made += 1

    def state_dict(self):
        return {"made": self.made}

    def load_state_dict(self, state):
        self.made = state["made"]


def rates(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["learning_rate"] for line in lines if line["kind"] == "train"}


def test_each_stage_has_an_optimizer_and_a_schedule_of_its_own(line, fit, tmp_path):
    method = TwoStages()
    fit(line, 8, methods=[method], work=tmp_path, warmup=0.0, evaluate=Scripted(*[0.0] * 9), evaluate_every=1)
    assert method.begun == 2
    expected = [1, 1 / 2, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert list(rates(tmp_path).values()) == pytest.approx([0.05 * share for share in expected])


class Ends(Silent):
    """Presses Ctrl-C in a step."""

    def __init__(self, at):
        self.at = at

    def step(self, step, values):
        if step == self.at:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("at", [1, 2, 3, 8], ids=["first stage", "border", "second stage", "last step"])
def test_a_run_of_two_stages_resumes_in_the_same_bits_at_any_step(line, fit, tmp_path, at, keep):
    start, scores = weights(line), [0.1, 0.9, 0.2, 0.3, 0.5, 0.1, 0.0, 0.4, 0.6]
    shared = {"accumulation": 2, "evaluate_every": 1, "keep": keep}
    whole = fit(line, 8, methods=[TwoStages()], evaluate=Scripted(*scores), **shared)
    ended, drawn = weights(line), fit.drawn
    line.load_state_dict(start)
    with pytest.raises(TrainingError, match=f"interrupted at step {at} of 8"):
        fit(line, 8, methods=[TwoStages()], evaluate=Scripted(*scores), work=tmp_path, reporter=Ends(at), **shared)
    line.load_state_dict({name: torch.full_like(tensor, 7.0) for name, tensor in start.items()})
    method = TwoStages()
    resumed = fit(line, 8, methods=[method], evaluate=Scripted(*scores[at + 1 :]), work=tmp_path, **shared)
    assert same(weights(line), ended), "where the best are kept, those of step 1 come back from the checkpoint"
    assert (resumed.best_step, resumed.steps, resumed.items) == (1 if keep == "best" else 8, 8, whole.items)
    assert [point.scores for point in resumed.curve] == [point.scores for point in whole.curve]
    assert method.made.item() == 8
    assert torch.equal(fit.drawn, drawn), (
        "what is drawn after training, as in a method's finish, must be the same, too"
    )


def test_an_interrupt_without_a_work_folder_promises_nothing(line, fit):
    with pytest.raises(TrainingError, match="interrupted") as caught:
        fit(line, 4, reporter=Ends(2), evaluate=Scripted(*[0.0] * 9), evaluate_every=1)
    assert not caught.value.fix


def test_a_score_may_have_any_name(line, fit, tmp_path):
    names = ("step", "kind", "loss", "seconds")
    fit(line, 1, work=tmp_path, evaluate=lambda model: Evaluation(dict.fromkeys(names, 0.5), None, 0.5))
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["scores"] == dict.fromkeys(names, 0.5)
    assert (first["kind"], first["step"]) == ("validation", 0)


def test_weights_that_change_their_names_while_training_are_a_methods_fault(line, fit):
    class Freezes(Method):
        name = "freezes"

        def after_step(self, model):
            model.inner.requires_grad_(False)

    with pytest.raises(MethodError, match="changed their names"):
        fit(line, 2, methods=[Freezes()], evaluate=Scripted(1.0, 0.0, 0.0), evaluate_every=1)


def test_the_optimizer_only_holds_what_is_trained(line, fit, tmp_path):
    line.inner.requires_grad_(False)
    start = weights(line)
    with pytest.raises(TrainingError):
        fit(line, 9, work=tmp_path, reporter=Ends(3), evaluate=Scripted(*[0.0] * 9), evaluate_every=1)
    stored = json.loads((tmp_path / "step-00000003" / "state.json").read_text())
    assert set(stored["optimizer"]) == {"outer.weight", "outer.bias"}
    assert torch.equal(line.inner.weight, start["inner.weight"])
