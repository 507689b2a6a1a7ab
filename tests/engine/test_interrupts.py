from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from anytune.engine.interrupts import InterruptedRunError, postponed_interrupt
from anytune.errors import TrainingError


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_the_old_handler_comes_back(number):
    before = signal.getsignal(number)
    with postponed_interrupt() as asked:
        assert not asked()
        os.kill(os.getpid(), number)
        assert asked()
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_is_at_once():
    with postponed_interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_second_sigterm_still_waits_for_the_step():
    with postponed_interrupt() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked()


def test_a_ctrl_c_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with postponed_interrupt() as asked:
            os.kill(os.getpid(), signal.SIGINT)
            assert not asked()
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_nothing_is_postponed():
    seen = []

    def work():
        with postponed_interrupt() as asked:
            seen.append(asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_an_interrupted_run_is_a_training_error_with_the_exit_code_of_what_a_user_can_go_on_with():
    assert issubclass(InterruptedRunError, TrainingError)
    assert InterruptedRunError("x").exit_code == 2


SAYS_WHY = """
import os, signal, time
from anytune.engine import interrupts
interrupts.LAST_WORDS = 0.5
try:
    with interrupts.postponed_interrupt():
        raise ValueError("the other one is gone")
except ValueError as problem:
    os.kill(os.getpid(), signal.SIGTERM)
    print(problem, flush=True)
    time.sleep(30)
"""


@pytest.mark.parametrize(("world", "said"), [("2", "the other one is gone\n"), ("1", "")])
def test_under_a_launcher_an_error_is_said_before_a_request_to_end_is_followed(world, said):
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": world}
    done = subprocess.run(
        [sys.executable, "-c", SAYS_WHY], env=environment, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.stdout == said
    assert done.returncode == (-signal.SIGALRM if world == "2" else -signal.SIGTERM), done.stderr
