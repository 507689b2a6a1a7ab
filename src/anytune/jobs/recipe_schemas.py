"""The schema of each job's recipe: its fields are the arguments of the job's function, no more and no fewer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from anytune.jobs.recipe_files import parse_seeds

Method = str | dict[str, Any] | list[str | dict[str, Any]]
Source = str | dict[str, Any]
Seeds = Annotated[list[int], BeforeValidator(parse_seeds)]
#: see :data:`anytune.methods.registry.TUNING`, which is not imported here: a wrong key should be told at once
TUNING = ("tune", "transfer")
#: see :data:`anytune.jobs.resuming.Resume`
Resume = Literal["auto", "must", "never"]
Count = Annotated[int, Field(gt=0)]


def _listed(value: Any) -> Any:
    """One source may stand without a list."""
    return value if value is None or isinstance(value, list) else [value]


Sources = Annotated[list[Source], BeforeValidator(_listed)]
#: see :data:`anytune.jobs.extra_scores.LabelMap`
LabelMap = dict[str, dict[str, str | None]]


class JobRecipe(BaseModel):
    """What all recipes share: unknown keys are errors, and only what is given is handed to the job."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)
    #: module and function that run it
    home: ClassVar[tuple[str, str]]
    #: key -> room or rooms of the methods it names
    rooms: ClassVar[Mapping[str, str | tuple[str, ...]]] = {}

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of the job's function."""
        return {
            key: value
            for key, value in self.model_dump(exclude_unset=True).items()
            if key != "job" and value is not None
        }


class TaskColumns(JobRecipe):
    """How a task's data are read: the arguments of ``load_task``, apart from its name."""

    text: str | list[str] | None = None
    label: str | None = None
    metric: str | None = None
    kind: Literal["classification", "regression", "token-classification", "generation"] | None = None
    validation: str | None = None
    test: str | None = None
    split_seed: int | None = None
    validation_fraction: float | None = None
    test_fraction: float | None = None
    limit: Count | None = None
    label_names: list[str] | None = None


class TuneRecipe(TaskColumns):
    """``job: tune``; see :func:`anytune.jobs.tune.tune`."""

    home = ("anytune.jobs.tune", "tune")
    rooms: ClassVar[Mapping[str, str | tuple[str, ...]]] = {"method": TUNING, "against": TUNING}
    job: Literal["tune"] = "tune"
    base: str
    task: Source
    store: str | None = None
    method: Method = "full"
    training: dict[str, Any] | None = None
    resume: Resume = "auto"
    workers: int | None = None
    fan_out: str = "processes"
    log_with: str | list[str] | None = None
    log_dir: str | None = None
    start_from: str | None = None
    sources: Sources | None = None
    teachers: Sources | None = None
    seeds: Seeds | None = None
    train_size: Count | None = None
    train_sizes: list[Count] | None = None
    per_class: Count | None = None
    subset_seed: Literal["run"] | int | None = None
    score_on: Sources | None = None
    label_map: LabelMap | None = None
    probe_on: Sources | None = None
    against: Method | None = None
    keep: Literal["weights", "scores"] = "weights"
    keep_sample: bool = True
    name: str | None = None
    tags: dict[str, str] | None = None


class PretrainRecipe(JobRecipe):
    """``job: pretrain``; see :func:`anytune.jobs.pretrain.pretrain`."""

    home = ("anytune.jobs.pretrain", "pretrain")
    rooms: ClassVar[Mapping[str, str | tuple[str, ...]]] = {"method": "pretrain"}
    job: Literal["pretrain"] = "pretrain"
    base: str
    domains: Sources
    store: str | None = None
    method: Method = "sequential"
    training: dict[str, Any] | None = None
    resume: Resume = "auto"
    log_with: str | list[str] | None = None
    log_dir: str | None = None
    seed: int = 0
    names: list[str] | None = None
    watch: list[Source] = Field(default_factory=list)
    apart_from: list[Source] = Field(default_factory=list)
    text: str | None = None
    date: str | None = None
    limit: Count | None = None
    heldout_fraction: float | None = None


class RecycleRecipe(TaskColumns):
    """``job: recycle``; see :func:`anytune.jobs.recycle.recycle`."""

    home = ("anytune.jobs.recycle", "recycle")
    rooms: ClassVar[Mapping[str, str | tuple[str, ...]]] = {"method": "recycle", "tune": TUNING}
    job: Literal["recycle"] = "recycle"
    delta: str
    base: str
    store: str | None = None
    method: str | dict[str, Any] = "initialize"
    tune: Method | None = None
    task: Source | None = None
    unlabelled: Source | list[str] | None = None
    projection: str | None = None
    old_base: str | None = None
    training: dict[str, Any] | None = None
    resume: Resume = "auto"
    log_with: str | list[str] | None = None
    log_dir: str | None = None
    seeds: Seeds | None = None
    train_size: Count | None = None
    per_class: Count | None = None
    keep: Literal["weights", "scores"] = "weights"
    keep_sample: bool = True
    name: str | None = None
    tags: dict[str, str] | None = None


class UpgradeRecipe(JobRecipe):
    """``job: upgrade``; see :func:`anytune.jobs.upgrade.upgrade`."""

    home = ("anytune.jobs.upgrade", "upgrade")
    job: Literal["upgrade"] = "upgrade"
    old: str
    new: str
    store: str | None = None
    budget: str | float | None = None
    tolerance: str | float = 0.01
    tasks: dict[str, Source] | None = None
    unlabelled: Source | None = None
    deltas: Annotated[list[str], BeforeValidator(_listed)] | None = None
    steps: Annotated[list[str], BeforeValidator(_listed)] | None = None
    headroom: bool = False
    workers: int | None = None
    fan_out: str = "processes"
    out: str | None = None


class EvaluateRecipe(TaskColumns):
    """``job: evaluate``; see :func:`anytune.jobs.load.evaluate`."""

    home = ("anytune.jobs.load", "evaluate")
    job: Literal["evaluate"] = "evaluate"
    delta: str
    task: Source | None = None
    split: Literal["train", "validation", "test"] = "test"
    store: str | None = None
    base: str | None = None
    batch_size: Count | None = None


class CompareRecipe(JobRecipe):
    """``job: compare``; see :func:`anytune.jobs.arms.compare_arms`."""

    home = ("anytune.jobs.arms", "compare_arms")
    job: Literal["compare"] = "compare"
    base: str
    tasks: Sources
    arms: dict[str, Any]
    out: str
    control: str = "plain"
    store: str | None = None
    seeds: Seeds | None = None
    train_sizes: list[Count] | None = None
    subset_seed: Literal["run"] | int | None = None
    training: dict[str, Any] | None = None
    score_on: Sources | None = None
    label_map: LabelMap | None = None
    probe_on: Sources | None = None
    workers: int | None = None
    fan_out: str = "processes"


class AnytimeRecipe(JobRecipe):
    """``job: anytime``; see :func:`anytune.jobs.anytime.anytime_matrix`."""

    home = ("anytune.jobs.anytime", "anytime_matrix")
    job: Literal["anytime"] = "anytime"
    base: str
    domains: list[dict[str, Any]]
    arms: dict[str, Any]
    out: str
    control: str = "sequential"
    store: str | None = None
    orders: int | list[list[str]] | None = None
    seeds: Seeds | None = None
    runs: Literal["crossed", "paired"] = "crossed"
    training: dict[str, Any] | None = None
    tokens: Count | Literal["smallest"] | None = None
    tuning: dict[str, Any] | None = None
    cells: Literal["needed", "all"] = "needed"
    metrics: list[str] | None = None
    workers: int | None = None
    fan_out: str = "processes"


class TransferRecipe(JobRecipe):
    """``job: transfer``; see :func:`anytune.jobs.transfer_grid.transfer_grid`."""

    home = ("anytune.jobs.transfer_grid", "transfer_grid")
    job: Literal["transfer"] = "transfer"
    base: str
    sources: Sources
    targets: Sources
    arms: dict[str, Any]
    out: str
    control: str = "prompt tuning"
    store: str | None = None
    prompt: dict[str, Any] | None = None
    seeds: Seeds | None = None
    train_size: Count | None = None
    source_size: Count | None = None
    source_seed: int = 0
    training: dict[str, Any] | None = None
    source_training: dict[str, Any] | None = None
    rates: list[float] | None = None
    measures: list[str] | None = None
    choose_by: str = "logme"
    rows: Count | None = None
    workers: int | None = None
    fan_out: str = "processes"


class RecycleGridRecipe(JobRecipe):
    """``job: recycle-grid``; see :func:`anytune.jobs.recycle_grid.recycle_grid`."""

    home = ("anytune.jobs.recycle_grid", "recycle_grid")
    job: Literal["recycle-grid"] = "recycle-grid"
    base: str
    upgrades: list[dict[str, Any]]
    tasks: Sources
    forms: dict[str, Any]
    arms: dict[str, Any]
    out: str
    control: str = "fresh"
    store: str | None = None
    old: list[int | Literal["full"]] | None = None
    new: list[int | Literal["full"]] | None = None
    seeds: Seeds | None = None
    training: dict[str, Any] | None = None
    pretraining: dict[str, Any] | None = None
    upgrade_seed: int = 0
    connect: dict[str, Any] | None = None
    workers: int | None = None
    fan_out: str = "processes"


class ReportRecipe(JobRecipe):
    """``job: report``; see :func:`anytune.jobs.report.report`."""

    home = ("anytune.jobs.report", "report")
    job: Literal["report"] = "report"
    store: str | None = None
    out: str | None = None
    figures: str | None = None
    anytime: Annotated[list[str], BeforeValidator(_listed)] = Field(default_factory=list)
    transfer: Annotated[list[str], BeforeValidator(_listed)] = Field(default_factory=list)
    recycle: Annotated[list[str], BeforeValidator(_listed)] = Field(default_factory=list)


JOBS: dict[str, type[JobRecipe]] = {
    "tune": TuneRecipe,
    "pretrain": PretrainRecipe,
    "recycle": RecycleRecipe,
    "upgrade": UpgradeRecipe,
    "evaluate": EvaluateRecipe,
    "compare": CompareRecipe,
    "anytime": AnytimeRecipe,
    "transfer": TransferRecipe,
    "recycle-grid": RecycleGridRecipe,
    "report": ReportRecipe,
}
