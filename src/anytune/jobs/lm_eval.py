"""Score a delta or a base with tasks of lm-eval: ``anytune lm-eval``."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anytune.engine.runtime import make_runtime
from anytune.errors import BaseError, DeltaError, StoreError
from anytune.evaluate.lm_eval_bridge import lm_eval_scores, needs_lm_eval
from anytune.jobs.load import load
from anytune.jobs.opening import DEFAULT_STORE, base_of_delta, open_base, open_store
from anytune.models.base import Base
from anytune.models.soft_prompts import prompt_of
from anytune.store import Entry, Store

Source = str | Path


def lm_eval(
    reference: Entry | Base | Source,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    include_path: Source | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 8,
    store: Store | Source | None = None,
    base: Base | Entry | Source | None = None,
) -> dict[str, Any]:
    """Score a generation delta, or a base that predicts next words, with tasks of lm-eval.

    Scores of whole tasks (without ``limit``) are also written into the manifest of an artefact of the store, under
    ``lm-eval:TASK``.

    Args:
        reference: a delta (name, id, folder), or a base (also ``sample:NAME`` or a hub id).
        tasks: names of tasks of lm-eval.
        limit, include_path, num_fewshot, batch_size: see
            :func:`~anytune.evaluate.lm_eval_bridge.lm_eval_scores`.
        base: a delta's base, if it is not found by itself.

    Returns:
        ``{"reference": ..., "limit": ..., "tasks": {task: {"scores": {metric: value}, "stderr": ...}}}``

    Raises:
        SettingsError: lm-eval is not installed, or a task is unknown.
        BaseError, DeltaError: the model does not predict next words.
    """
    needs_lm_eval()
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    place, entry = _in_store(reference, store)
    model, opened = _model(entry or reference, place, base)
    runtime = make_runtime("fp32")
    found = lm_eval_scores(
        model.to(runtime.device), opened.tokenizer(), names, limit=limit, include_path=include_path,
        num_fewshot=num_fewshot, batch_size=batch_size, max_length=opened.position_limit,
    )  # fmt: skip
    if entry is not None and limit is None:
        with contextlib.suppress(StoreError):  # a store that is only read
            Store(entry.folder.parent.parent, create=False).update(
                entry, scores={f"lm-eval:{name}": result["scores"] for name, result in found.items()}
            )
    return {"reference": entry.reference if entry else opened.name, "limit": limit, "tasks": found}


def _in_store(reference: Entry | Base | Source, store: Store | Source | None) -> tuple[Store | None, Entry | None]:
    """The store, and the artefact that is meant; None for a base that stands in no store."""
    if isinstance(reference, Entry):
        return Store(reference.folder.parent.parent, create=False), reference
    here = store is not None or Path(DEFAULT_STORE).is_dir()
    place = open_store(store, create=False) if here else None
    if isinstance(reference, Base):
        return place, None
    folder = Path(reference)
    if (folder / "anytune.json").is_file():
        home = Store(folder.resolve().parent.parent, create=False)
        return home, home.get(folder.resolve())
    if place is not None and not folder.exists() and not str(reference).startswith("sample:"):
        try:
            return place, place.get(reference)
        except StoreError as problem:
            if "/" not in str(reference):  # no hub id either
                raise problem
    return place, None


def _model(
    reference: Entry | Base | Source, place: Store | None, base: Base | Entry | Source | None
) -> tuple[Any, Base]:
    if isinstance(reference, Entry) and reference.manifest.kind == "delta":
        task = reference.manifest.task
        if task is None or task.kind != "generation":
            raise DeltaError(
                f"'{reference.reference}' was tuned for {task.kind if task else 'an unknown kind of task'}",
                why="lm-eval asks a model for the words that come next; this one has another head.",
                fix="a delta of a generation task, or anytune evaluate for this one",
            )
        assert place is not None
        opened = base_of_delta(reference, place, base)
        _refuse_prompted(opened)
        model, _ = load(reference, store=place, base=opened)
        if prompt_of(model) is not None:
            raise DeltaError(
                f"'{reference.reference}' is a soft prompt",
                why="lm-eval fills contexts up to the base's last position, and the prompt needs some of them.",
                fix="anytune evaluate",
            )
        return model, opened
    opened = open_base(reference, place)
    if opened.anatomy.objective == "mlm":
        raise BaseError(
            f"{opened.name} ({opened.anatomy.model_type}) fills gaps in a text",
            why="lm-eval asks for the words that come next, which only decoders and encoder-decoders predict.",
            fix="a base such as GPT-2, Llama or Qwen",
        )
    _refuse_prompted(opened)
    model, fresh = opened.pretraining_model()
    if fresh:
        raise BaseError(
            f"{opened.name} lacks its vocabulary head ({', '.join(fresh[:3])})",
            why="A random one would be scored.",
            fix="the model's full folder",
        )
    return model, opened


def _refuse_prompted(base: Base) -> None:
    """A decoder's prompt would be written of the answers that lm-eval scores in the same pass."""
    if base.hyperprompt is not None and base.anatomy.causal:
        raise BaseError(
            f"{base.name} writes a prompt of the text it is given, and lm-eval gives it the answers too",
            why="The prompt stands in front of all words: the answers would be seen before they are asked for.",
            fix="anytune evaluate, or a base without a hypernetwork",
        )
