from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anytune.engine.settings import TrainingSettings, learning_rate_share, total_steps, training_settings
from anytune.errors import SettingsError

SCHEDULES = ("linear", "cosine", "constant")


def test_an_unknown_setting_suggests_the_near_one_with_the_value_given():
    with pytest.raises(SettingsError, match="unknown training setting 'lerning_rate'") as caught:
        training_settings({"lerning_rate": 1e-3})
    assert caught.value.fix == "learning_rate=0.001"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", 0), ("steps", -1), ("steps", "many"), ("steps", 1.5), ("epochs", 0), ("epochs", float("inf")),
        ("epochs", float("nan")), ("batch_size", 0), ("learning_rate", 0), ("learning_rate", 10),
        ("learning_rate", float("nan")), ("weight_decay", float("inf")), ("warmup", 1), ("warmup", -0.1),
        ("schedule", "square"), ("max_grad_norm", 0), ("precision", "fp16"), ("keep", "first"), ("max_length", 1),
        ("mask_probability", 1), ("checkpoint_every", 0),
    ],
)  # fmt: skip
def test_a_value_outside_its_limits_is_named_with_the_value_and_what_the_setting_means(key, value):
    with pytest.raises(SettingsError) as caught:
        training_settings({key: value})
    assert f"{key} = {value!r}" in caught.value.what
    assert TrainingSettings.model_fields[key].description in caught.value.why


def test_values_as_a_command_line_gives_them_are_understood():
    settings = training_settings({"steps": "12", "learning_rate": "1e-5", "warmup": "0"})
    assert (settings.steps, settings.learning_rate, settings.warmup) == (12, 1e-5, 0.0)


def test_none_means_not_given_except_for_the_norm_where_it_means_never():
    settings = training_settings({"batch_size": None, "max_grad_norm": None}, batch_size=3)
    assert settings.batch_size == 3
    assert settings.max_grad_norm is None


def test_defaults_fill_what_is_not_given_and_never_win():
    assert training_settings(None, keep="last").keep == "last"
    assert training_settings({"keep": "best"}, keep="last").keep == "best"
    assert training_settings(TrainingSettings(steps=4), keep="last").keep == "last"
    assert training_settings(TrainingSettings(keep="best"), keep="last").keep == "best"


def test_every_setting_says_what_it_means():
    assert all(len(field.description or "") > 10 for field in TrainingSettings.model_fields.values())


def test_steps_win_over_epochs_and_an_epoch_is_shared_out():
    assert total_steps(training_settings({"steps": 7, "epochs": 3}), 10) == 7
    assert total_steps(training_settings({"epochs": 2}), 10) == 20
    assert total_steps(training_settings({"epochs": 2, "accumulation": 4}), 10) == 5
    assert total_steps(training_settings({"epochs": 2, "accumulation": 2}), 10, world=2) == 5
    assert total_steps(training_settings({"epochs": 0.01}), 10) == 1
    assert total_steps(training_settings({}), 10, default_epochs=1.0) == 10


@given(st.integers(1, 3000), st.floats(0, 1, exclude_max=True), st.sampled_from(SCHEDULES))
def test_the_rate_is_never_zero_or_negative_and_never_above_its_peak(steps, warmup, schedule):
    shares = [learning_rate_share(step, steps, warmup, schedule) for step in range(steps)]
    assert all(0 < share <= 1 for share in shares)
    assert max(shares) == 1


@given(st.integers(1, 3000), st.floats(0, 1, exclude_max=True), st.sampled_from(("linear", "cosine")))
def test_the_rate_rises_to_one_peak_and_falls_from_there(steps, warmup, schedule):
    shares = [learning_rate_share(step, steps, warmup, schedule) for step in range(steps)]
    peak = shares.index(1.0)
    assert shares.count(1.0) == 1
    assert shares[: peak + 1] == sorted(shares[: peak + 1])
    assert shares[peak:] == sorted(shares[peak:], reverse=True)


@given(st.integers(1, 10**9), st.sampled_from(SCHEDULES))
def test_the_last_step_is_made_at_a_rate_above_zero_however_long_the_run(steps, schedule):
    assert learning_rate_share(steps - 1, steps, 0.06, schedule) > 0


def test_the_schedule_of_a_short_run_by_hand():
    assert [learning_rate_share(step, 6, 0.34, "linear") for step in range(6)] == [1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25]
    assert [learning_rate_share(step, 4, 0.0, "cosine") for step in range(4)] == pytest.approx(
        [1.0, 0.8535534, 0.5, 0.1464466]
    )
    assert [learning_rate_share(step, 3, 0.34, "constant") for step in range(3)] == [0.5, 1.0, 1.0]
