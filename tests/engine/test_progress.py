from __future__ import annotations

import io
import json
import sys

from anytune.engine import progress
from anytune.engine.progress import JsonLines, Live, PlainLines, Silent


class Clock:
    def __init__(self, monkeypatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def test_plain_lines_say_start_a_line_in_ten_seconds_and_the_end(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    lines = PlainLines(stream)
    lines.start("things on v1", 100)
    for step in range(1, 101):
        clock.now += 0.25
        lines.step(step, {"loss": 1.23456})
    lines.finish()
    assert stream.getvalue().splitlines() == [
        "things on v1: 100 steps",
        "things on v1: step 40/100, loss 1.235, 4.0 steps/s, 0:15 left",
        "things on v1: step 80/100, loss 1.235, 4.0 steps/s, 0:05 left",
        "things on v1: step 100/100, loss 1.235, 0:25 taken",
    ]


def test_plain_lines_of_a_resumed_run_count_only_its_own_speed(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    lines = PlainLines(stream)
    lines.start("things", 20_000, done=9_000)
    clock.now += 10
    lines.step(9_000, {})
    clock.now += 10
    lines.step(9_020, {"loss": 2.0})
    assert stream.getvalue().splitlines() == [
        "things: 20000 steps, going on at step 9000",
        "things: step 9000/20000, 0.0 steps/s, time left unknown",
        "things: step 9020/20000, loss 2, 1.0 steps/s, 3:03:00 left",
    ]


def test_finishing_twice_or_without_a_step_says_nothing():
    stream = io.StringIO()
    lines = PlainLines(stream)
    lines.finish()
    lines.start("x", 0)
    lines.finish()
    lines.finish()
    assert stream.getvalue() == "x: 0 steps\n"


def test_the_reporter_is_silent_when_asked_live_on_a_terminal_and_lines_elsewhere(monkeypatch):
    assert isinstance(progress.reporter(quiet=True), Silent)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(progress.reporter(), PlainLines)
    sys.stderr.isatty = lambda: True
    assert isinstance(progress.reporter(), Live)


def test_a_live_bar_can_be_used_again_and_closed_at_any_time():
    live = Live()
    live.finish()
    for _ in range(2):
        live.start("run", 10, done=2)
        live.step(5, {"loss": 0.5})
        live.say("[not markup]")
    live.finish()
    live.step(6, {})


def lines_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_after_the_step_that_is_resumed_at_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = JsonLines(path)
    for step in (0, 10, 20, 30):
        log.write(step=step, loss=1.0)
    log.close()
    log = JsonLines(path, resume_at=20)
    log.write(step=30, loss=2.0)
    log.close()
    assert [(line["step"], line["loss"]) for line in lines_of(path)] == [(0, 1.0), (10, 1.0), (20, 1.0), (30, 2.0)]


def test_the_half_line_of_a_killed_process_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n[2]\n"x"\n{"step": null}\n{"step": 2, "lo\xc3')
    JsonLines(path, resume_at=5).close()
    assert lines_of(path) == [{"step": 1}]


def test_a_fresh_run_starts_its_log_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    JsonLines(path).close()
    assert path.read_text() == ""


def test_every_line_is_json_that_any_reader_takes(tmp_path):
    path = tmp_path / "deep" / "metrics.jsonl"
    log = JsonLines(path)
    log.write(step=1, loss=float("nan"), scores={"pearson": float("inf"), "step": 0.5})
    log.close()
    assert path.read_text() == '{"step": 1, "loss": null, "scores": {"pearson": null, "step": 0.5}}\n'


def test_without_a_path_nothing_is_written():
    log = JsonLines(None)
    log.write(step=1)
    log.close()
