"""A run ends where it is told to: at a score, or when it stops getting better."""

from __future__ import annotations

import pytest
import torch

from anytune.engine.loop import Evaluation
from anytune.engine.settings import decisive, training_settings


class Scripted:
    def __init__(self, *values: float, metric: str = "accuracy") -> None:
        self.values, self.metric, self.looks = list(values), metric, 0

    def __call__(self, model):
        value = self.values[self.looks]
        self.looks += 1
        return Evaluation({self.metric: value}, 1.0, value if self.metric == "accuracy" else -value)


def test_the_first_evaluation_that_is_as_good_ends_the_run(line, fit):
    result = fit(line, 6, evaluate=Scripted(0.1, 0.5, 0.8, 0.9, 1.0, 1.0, 1.0), evaluate_every=1, stop_at=0.8)
    assert (result.steps, result.best_step) == (2, 2)
    assert [point.step for point in result.curve] == [0, 1, 2]


def test_of_an_error_less_is_as_good(line, fit):
    result = fit(line, 4, evaluate=Scripted(9.0, 3.0, 0.5, 0.1, 0.1, metric="mse"), evaluate_every=1, stop_at=1.0)
    assert result.steps == 2


def test_no_step_is_made_where_the_start_is_good_enough(line, fit):
    before = {name: tensor.clone() for name, tensor in line.state_dict().items()}
    result = fit(line, 4, evaluate=Scripted(0.9, 1.0, 1.0, 1.0, 1.0), evaluate_every=1, stop_at=0.8)
    assert result.steps == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in line.state_dict().items())


@pytest.mark.parametrize(("patience", "steps"), [(1, 3), (2, 4), (None, 6)])
def test_patience_counts_evaluations_since_the_best(line, fit, patience, steps):
    scores = Scripted(0.1, 0.5, 0.6, 0.6, 0.5, 0.2, 0.3)
    result = fit(line, 6, evaluate=scores, evaluate_every=1, **({"patience": patience} if patience else {}))
    assert (result.steps, result.best_step) == (steps, 2)


def test_a_score_that_is_no_number_never_ends_a_run_and_counts_as_worse(line, fit):
    nan = float("nan")
    assert fit(line, 3, evaluate=Scripted(nan, nan, nan, 0.9), evaluate_every=1, stop_at=0.8).steps == 3


def test_a_run_that_is_given_neither_keeps_its_key():
    plain = training_settings({"steps": 3})
    assert not {"stop_at", "patience"} & set(decisive(plain))
    assert decisive(training_settings({"steps": 3, "stop_at": 0.5}))["stop_at"] == 0.5
