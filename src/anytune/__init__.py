"""anytune: keep what you tuned when the base model is upgraded.

    import anytune
    [delta] = anytune.tune("sample:bert-tiny", "reviews.csv", method="lora")
    [base] = anytune.pretrain("sample:bert-tiny", "news.txt", names=["news-2026-11"])
    [kept] = anytune.recycle(delta, base, task="reviews.csv")
    model, tokenizer = anytune.load(kept)

Nothing heavy is imported here: each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from anytune._version import __version__

if TYPE_CHECKING:
    from anytune.data.domains import load_domain as load_domain
    from anytune.data.tasks import load_task as load_task
    from anytune.engine.hf_trainer import hf_trainer as hf_trainer
    from anytune.jobs.anytime import anytime_matrix as anytime_matrix
    from anytune.jobs.arms import compare_arms as compare_arms
    from anytune.jobs.chain import recycle_chain as recycle_chain
    from anytune.jobs.diagnose import diagnose as diagnose
    from anytune.jobs.hub import pull as pull
    from anytune.jobs.hub import push as push
    from anytune.jobs.lm_eval import lm_eval as lm_eval
    from anytune.jobs.load import evaluate as score  # noqa: F401
    from anytune.jobs.load import export as export
    from anytune.jobs.load import load as load
    from anytune.jobs.load import merge as merge
    from anytune.jobs.load import predict as predict
    from anytune.jobs.opening import open_base as open_base
    from anytune.jobs.pretrain import pretrain as pretrain
    from anytune.jobs.recipes import run as run
    from anytune.jobs.recycle import recycle as recycle
    from anytune.jobs.recycle_grid import recycle_grid as recycle_grid
    from anytune.jobs.report import report as write_report  # noqa: F401
    from anytune.jobs.transfer import rank as rank_sources  # noqa: F401
    from anytune.jobs.transfer_grid import transfer_grid as transfer_grid
    from anytune.jobs.transfer_matrix import matrix as transfer_matrix  # noqa: F401
    from anytune.jobs.transfer_run import transfer_run as transfer_run
    from anytune.jobs.tune import tune as tune
    from anytune.jobs.upgrade import upgrade as upgrade
    from anytune.store import Store as Store

#: What goes by another name here than where it stands; ``anytune.evaluate`` and ``anytune.report`` are rooms.
_RENAMED = {
    "score": "evaluate",
    "write_report": "report",
    "rank_sources": "rank",
    "transfer_matrix": "matrix",
}
_HOMES = {
    "pretrain": "anytune.jobs.pretrain",
    "tune": "anytune.jobs.tune",
    "compare_arms": "anytune.jobs.arms",
    "anytime_matrix": "anytune.jobs.anytime",
    "rank_sources": "anytune.jobs.transfer",
    "transfer_matrix": "anytune.jobs.transfer_matrix",
    "transfer_run": "anytune.jobs.transfer_run",
    "transfer_grid": "anytune.jobs.transfer_grid",
    "recycle": "anytune.jobs.recycle",
    "recycle_chain": "anytune.jobs.chain",
    "recycle_grid": "anytune.jobs.recycle_grid",
    "upgrade": "anytune.jobs.upgrade",
    "diagnose": "anytune.jobs.diagnose",
    "load": "anytune.jobs.load",
    "predict": "anytune.jobs.load",
    "score": "anytune.jobs.load",
    "merge": "anytune.jobs.load",
    "export": "anytune.jobs.load",
    "lm_eval": "anytune.jobs.lm_eval",
    "push": "anytune.jobs.hub",
    "pull": "anytune.jobs.hub",
    "write_report": "anytune.jobs.report",
    "hf_trainer": "anytune.engine.hf_trainer",
    "run": "anytune.jobs.recipes",
    "open_base": "anytune.jobs.opening",
    "load_task": "anytune.data.tasks",
    "load_domain": "anytune.data.domains",
    "Store": "anytune.store",
}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 - the keys are strings


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), _RENAMED.get(name, name))
    raise AttributeError(f"module 'anytune' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
