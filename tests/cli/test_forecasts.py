from __future__ import annotations

import json
from pathlib import Path

from anytune.cli.forecasts import clock, cost, print_forecasts, seconds, state
from anytune.engine.trial import Memory, Trial
from anytune.jobs.forecast import Forecast

TRIAL = Trial(
    parameters=1000, trainable=10, examples=16.0, tokens=500.4, step_seconds=0.0125, evaluation_seconds=2.5,
    evaluated=(0, 5, 10), memory=Memory(weights=4000, gradients=40, moments=80, activations=900),
    process_memory=600_000_000,
)  # fmt: skip
RUN = Forecast(
    job="tune", name="hpo-lora", place=Path("store/deltas"), steps=10, seconds=61.2, disk=40, precision="fp32",
    precision_reason="as asked", device="cpu", threads=2, trial=TRIAL,
)  # fmt: skip


def test_times_are_said_as_people_say_them():
    assert [clock(value) for value in (0, 0.2, 59.5, 3661)] == ["0:00", "0:01", "1:00", "1:01:01"]
    assert (seconds(0.0125), seconds(3.4)) == ("12.5 ms", "3.40 s")


def test_a_state_names_the_step_it_goes_on_after():
    assert state(RUN) == "to be made"
    assert state(Forecast("tune", "a", Path("s"), state="begun", done=7)) == "goes on after step 7"


def test_every_part_of_the_cost_is_there():
    said = "\n".join(f"{name} {text}" for name, text in cost(RUN))
    for words in ("1,000, 10 trained (1.00%)", "16 examples, 500 tokens, 12.5 ms", "3 times, 2.50 s each",
                  "5.0 kB: weights 4.0 kB, gradients 40 B, moments 80 B, activations 900 B",
                  "600.0 MB, data and libraries", "fp32: as asked (cpu, 2 threads)"):  # fmt: skip
        assert words in said


def test_the_sum_is_said_and_that_nothing_was_written(capsys):
    print_forecasts([RUN, RUN])
    said = capsys.readouterr().out
    assert "in all: 2 runs, 20 steps, about 2:03, 5.0 kB of memory, 80 B to store" in said
    assert said.endswith("nothing was written\n")
    assert said.count("parameters") == 1, "two seeds share one trial"


def test_as_json_it_holds_the_same(capsys):
    print_forecasts([RUN], json=True, workers=2)
    found = json.loads(capsys.readouterr().out)
    assert found["runs"][0]["trial"]["memory"]["total"] == 5020
    assert found["total"]["workers"] == 2


def test_the_command_writes_nothing(cli, tiny_base, tiny_task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = cli("tune", tiny_base, tiny_task, "--steps", 4, "--precision", "fp32", "--max-length", 32, "--dry-run")
    assert answer.code == 0, answer.err
    assert "to be made" in answer.out
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_is_missing_is_told_before_any_work(cli, tiny_base, tiny_task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = cli("tune", tiny_base, tiny_task, "--log-with", "aim")
    assert answer.code == 2
    assert "pip install 'aim'" in answer.err
    assert list(tmp_path.iterdir()) == []
