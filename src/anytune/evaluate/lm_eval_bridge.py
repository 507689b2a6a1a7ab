"""The bridge to lm-eval (the language model evaluation harness): its tasks, our models.

A loaded generation model and its tokenizer are handed to lm-eval's own wrapper (``HFLM``), so what it counts is what
it counts for everybody else. Needs the extra ``anytune[lm-eval]``; nothing of it is imported before it is used.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from anytune.errors import AnytuneError, SettingsError, unknown

INSTALL = 'pip install "anytune[lm-eval]"'
#: Draws for the error bars of metrics that have no formula for them (lm-eval's own default takes minutes).
BOOTSTRAP = 1000


def needs_lm_eval() -> None:
    """Raise SettingsError where lm-eval is not installed."""
    if find_spec("lm_eval") is None:
        raise SettingsError("lm-eval is not installed", why="Its tasks and its counting come from it.", fix=INSTALL)


def lm_eval_scores(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    include_path: str | Path | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 8,
    max_length: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Run tasks of lm-eval on a loaded model.

    The random states of Python, numpy and torch, which lm-eval seeds, are put back afterwards.

    Args:
        model: a causal or sequence-to-sequence model (a PEFT model as well), in evaluation mode.
        tasks: names of tasks or groups of lm-eval.
        limit: at most so many examples of each task, for a quick look.
        include_path: a folder of further tasks (YAML). Such a folder can hold Python that lm-eval runs.
        num_fewshot: examples in the prompt; by default each task's own number.
        max_length: longest input in tokens; by default what the model's config says.

    Returns:
        Task -> ``{"scores": {metric: value}, "stderr": {metric: value}, "examples": n, "higher_is_better":
        {metric: bool}, "version": v}``. A metric behind a filter is called ``metric(filter)``.

    Raises:
        SettingsError: lm-eval is not installed, a task is unknown, or its data cannot be had.
    """
    needs_lm_eval()
    if not tasks:
        raise SettingsError("no task of lm-eval is named", fix="--tasks hellaswag,arc_easy")
    if limit is not None and limit < 1:
        raise SettingsError(f"limit = {limit}", why="It is a number of examples.", fix="--limit 100")
    folder = None if include_path is None else Path(include_path)
    if folder is not None and not folder.is_dir():
        raise SettingsError(f"{folder} is no folder", why="--include-path names a folder of task files (YAML).")
    _stay_offline()
    with _own_random_state(), _quiet(), _without_its_record_of_the_machine():
        from lm_eval.evaluator import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        manager = _tasks_of(folder, tasks)
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=max_length)
        try:
            results = simple_evaluate(
                wrapped, tasks=list(tasks), task_manager=manager, limit=limit, num_fewshot=num_fewshot,
                bootstrap_iters=BOOTSTRAP, log_samples=False,
            )  # fmt: skip
        except AnytuneError:
            raise
        except Exception as problem:
            words = str(problem).strip().splitlines()
            raise SettingsError(
                f"lm-eval could not run {', '.join(tasks)}: {words[0][:200] if words else type(problem).__name__}",
                why="Its tasks fetch their data from the hub, or from the files that they name.",
                fix="once with network, or --include-path FOLDER with tasks of local files",
            ) from problem
    return {name: _task_scores(name, results) for name in results["results"]}


def _task_scores(name: str, results: dict[str, Any]) -> dict[str, Any]:
    scores: dict[str, float] = {}
    errors: dict[str, float] = {}
    for key, value in results["results"][name].items():
        metric, comma, chosen = key.partition(",")
        if not comma or isinstance(value, bool) or not isinstance(value, int | float):
            continue  # alias, name, length; "N/A" where there is no error bar
        found, metric = (errors, metric.removesuffix("_stderr")) if metric.endswith("_stderr") else (scores, metric)
        found[metric if chosen == "none" else f"{metric}({chosen})"] = float(value)
    counted = results.get("n-samples", {}).get(name, {})
    return {
        "scores": scores, "stderr": errors, "examples": counted.get("effective"),
        "higher_is_better": results.get("higher_is_better", {}).get(name, {}),
        "version": results.get("versions", {}).get(name),
    }  # fmt: skip


def _tasks_of(folder: Path | None, wanted: Sequence[str]) -> Any:
    """lm-eval's index of tasks: of the folder alone where that has them all (its own 14,000 take half a minute)."""
    from lm_eval.tasks import TaskManager

    if folder is not None:
        own = TaskManager(include_path=str(folder), include_defaults=False)
        if set(wanted) <= set(own.all_tasks):
            return own
    every = TaskManager(include_path=None if folder is None else str(folder))
    for name in wanted:
        if name not in every.all_tasks:
            problem = unknown("task of lm-eval", name, every.all_tasks, SettingsError)
            raise SettingsError(
                problem.what, why=f"lm-eval knows {len(every.all_tasks)} tasks.", fix=problem.fix[:200]
            )
    return every


def _stay_offline() -> None:
    """What lm-eval brings along reaches no network that was forbidden, and counts no downloads."""
    from huggingface_hub import constants

    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    if constants.HF_HUB_OFFLINE:
        for name in ("HF_EVALUATE_OFFLINE", "HF_DATASETS_OFFLINE"):
            os.environ.setdefault(name, "1")


@contextlib.contextmanager
def _own_random_state() -> Iterator[None]:
    import numpy
    import torch

    states = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        torch.set_rng_state(states[2])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Only errors of lm-eval's log: it warns of every default that a task leaves unsaid."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


@contextlib.contextmanager
def _without_its_record_of_the_machine() -> Iterator[None]:
    """lm-eval asks git and pip about the machine after each run; it takes seconds and is not used here."""
    from lm_eval import evaluator

    kept = {}
    for name in ("get_git_commit_hash", "add_env_info"):
        if hasattr(evaluator, name):
            kept[name] = getattr(evaluator, name)
            setattr(evaluator, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(evaluator, name, function)
