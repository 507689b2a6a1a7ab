"""Runs of one command in parallel processes: whether it is worth it, and who makes which.

The rule where nobody says how many: runs are spread over the cores, at most eight processes, if

    at least two are to be made, on a CPU, with a base that is named, in a process that
    may have children, and
    what they would take one after the other is estimated at :data:`WORTH_SECONDS` or more, and
    each process has the memory for a model of its own.

The estimate counts floating point operations (6 for each weight of a block and token in training, 2 in evaluation) at
:data:`OPERATIONS_PER_SECOND` of one core, and :data:`STEP_SECONDS` a step; a process takes about eight seconds to
start, so below the limit the start would cost more than it saves.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from anytune.engine.fanout import worker_count
from anytune.engine.processes import launched
from anytune.engine.settings import total_steps
from anytune.jobs.machine import free_memory
from anytune.jobs.tuning_plan import TuningPlan
from anytune.models.base import Base

WORTH_SECONDS = 20.0
OPERATIONS_PER_SECOND = 3e10
STEP_SECONDS = 0.01
#: Bytes a process needs beside weights, gradients and moments (16 for each number): libraries, data, activations.
PROCESS_BYTES = 1_000_000_000


def chosen_workers(plans: Sequence[TuningPlan], call: Mapping[str, Any]) -> int:
    """How many processes to spread ``plans`` over by the rule above; 1 is this one.

    Args:
        plans: the runs that are to be made.
        call: what would be sent to each process.
    """
    if len(plans) < 2 or plans[0].runtime().device.type != "cpu" or not may_spread(call):
        return 1
    if sum(map(estimated_seconds, plans)) < WORTH_SECONDS:
        return 1
    return that_fit(len(plans), plans[0].base.config)


def may_spread(call: Mapping[str, Any]) -> bool:
    """Whether this process may start others, and ``call`` can be sent to them."""
    if isinstance(call["base"], Base) or launched()[1] > 1:
        return False
    if multiprocessing.current_process().daemon or not main_can_be_imported():
        return False
    try:
        ForkingPickler.dumps(dict(call))  # what a process that is started is sent
    except Exception:  # an open thing that cannot be sent; then this process does the work
        return False
    return True


def that_fit(runs: int, config: Any) -> int:
    """How many processes for so many runs of a model of this config: no more than there are cores and memory for."""
    free, each = free_memory(), PROCESS_BYTES + 16 * _parameters(config)
    count = worker_count(runs)
    return max(1, count if free is None else min(count, free // each))


def pretraining_seconds(config: Any, tokens: float, steps: float) -> float:
    """About how long pre-training on so many tokens in so many steps takes on one core."""
    return steps * STEP_SECONDS + 6 * tokens * _block_weights(config) / OPERATIONS_PER_SECOND


def estimated_seconds(plan: TuningPlan) -> float:
    """About how long a run takes on one core."""
    settings, task = plan.settings, plan.task
    steps = total_steps(settings, math.ceil(len(task.train) / settings.batch_size))
    tokens = _tokens(plan)
    trained = steps * settings.batch_size * settings.accumulation
    looks = steps // (settings.evaluate_every or max(1, math.ceil(steps / 10))) + 1
    read = looks * len(task.validation) + len(task.test)
    operations = (6 * trained + 2 * read) * tokens * _block_weights(plan.base.config)
    return steps * settings.accumulation * STEP_SECONDS + operations / OPERATIONS_PER_SECOND


def _tokens(plan: TuningPlan) -> float:
    """Tokens of a usual example: a quarter of its letters, cut at the longest length."""
    rows = plan.task.train[:200]
    letters = sum(len(row.text) + len(row.text_pair or "") for row in rows) / max(1, len(rows))
    return min(plan.settings.max_length, 2 + letters / 4)


def _block_weights(config: Any) -> int:
    """Weights of the blocks, 12 times layers times width squared."""
    width, layers = (getattr(config, name, 0) or 0 for name in ("hidden_size", "num_hidden_layers"))
    return 12 * int(layers) * int(width) ** 2


def _parameters(config: Any) -> int:
    return _block_weights(config) + int(getattr(config, "vocab_size", 0) or 0) * int(getattr(config, "hidden_size", 0))


def main_can_be_imported() -> bool:
    """Whether a new process may import this program's main module once more without doing its work again.

    A script does so only if it keeps its work behind ``if __name__ == "__main__"``; a notebook has no file.
    """
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    if file is None:
        return True
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return "__name__" in Path(file).read_text(encoding="utf-8")
    return False
