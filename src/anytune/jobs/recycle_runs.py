"""The runs of a grid of recycling: bases, old deltas, what stands in for them, then the arms upgrade by upgrade."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from anytune.data.tasks import Task
from anytune.engine.fanout import Unit, run_units, worker_count
from anytune.engine.progress import Reporter
from anytune.engine.settings import training_settings
from anytune.errors import DeltaError, MethodError
from anytune.evaluate.control_deltas import mean_delta, random_delta, with_body_of
from anytune.jobs.bundles import BundledRun, run_bundles
from anytune.jobs.command import Command
from anytune.jobs.deltas import load_delta
from anytune.jobs.failures import failures_kept
from anytune.jobs.opening import open_base
from anytune.jobs.pretrain import pretrain
from anytune.jobs.recycle import recycle, recycling_plans
from anytune.jobs.recycle_design import WHOLE, Design, Form, RecycleArm, Upgrade
from anytune.jobs.scoring import encodings_kept
from anytune.jobs.tune import tune
from anytune.jobs.tuning_plan import TuningPlan
from anytune.jobs.workers import WORTH_SECONDS, may_spread, pretraining_seconds, that_fit
from anytune.manifests import Parent, digest
from anytune.models.adapters import AdapterDelta
from anytune.models.base import Base
from anytune.store import Entry, Store


@dataclass(frozen=True)
class Planned:
    """A run of the grid.

    Attributes:
        arm: None for an old delta on its own base.
        upgrade: None for an old delta.
        old: data of the old delta; None for a fresh run.
        new: data of the run; None for an old delta.
        call: the arguments of the job's function, and ``job``.
        plan: the run itself, without the weights it stands on; None where these diverged.
        key: the run key; empty where there is no run.
        refused: why the method cannot do anything with the delta; empty where it can.
    """

    arm: str | None
    upgrade: str | None
    form: str
    task: str
    old: str | None
    new: str | None
    seed: int
    part: Task
    call: Mapping[str, Any]
    plan: TuningPlan | None
    key: str = ""
    refused: str = ""


#: What an old delta is known by: form, task, data, seed.
Known = tuple[str, str, str, int]


@dataclass
class Made:
    """What is stored so far: the bases, the old deltas and what stands in for them, and the arms' runs."""

    design: Design
    #: as the user named it, so that workers can open it
    base: Any
    store: Store
    #: upgrade -> its base; an upgrade that changes nothing is not here
    bases: dict[str, Entry] = field(default_factory=dict)
    #: upgrade -> its base's whole stages, first to last
    stages: dict[str, list[Entry]] = field(default_factory=dict)
    planned: list[Planned] = field(default_factory=list)
    #: run key -> the artefact
    entries: dict[str, Entry] = field(default_factory=dict)
    #: run key -> why its method refused the delta
    refused: dict[str, str] = field(default_factory=dict)
    old: dict[Known, Entry] = field(default_factory=dict)
    stand_ins: dict[tuple[str, Known], Entry] = field(default_factory=dict)
    #: (arm, upgrade, old, new, form, task, seed) -> what a hopping arm gave
    hops: dict[tuple[str, str, str, str, str, str, int], Entry] = field(default_factory=dict)
    _opened: dict[str, Base] = field(default_factory=dict)
    _parts: dict[tuple[str, str, int], Task] = field(default_factory=dict)

    def refresh(self) -> None:
        """Look into the store again."""
        self.entries = {entry.manifest.run: entry for entry in self.store.find("delta")}

    def named(self, upgrade: str | None) -> Any:
        """The base of an upgrade as a worker can open it; of None the first base."""
        changed = self._changed(upgrade)
        return self.base if changed is None else self.bases[changed].folder

    def opened(self, upgrade: str | None) -> Base:
        """The base of an upgrade, open; of None the first base."""
        changed = self._changed(upgrade)
        if changed is None:
            return self.design.base
        if changed not in self._opened:
            self._opened[changed] = open_base(self.bases[changed])
        return self._opened[changed]

    def _changed(self, upgrade: str | None) -> str | None:
        """The upgrade whose pre-training made this one's base: itself, or one before it."""
        while upgrade is not None and not self.design.upgrade(upgrade).domains:
            upgrade = self.design.upgrade(upgrade).after
        return upgrade

    def same_base(self, upgrade: str) -> bool:
        """Whether the base of the upgrade is the first one."""
        return self._changed(upgrade) is None

    def part(self, task: str, size: str, seed: int) -> Task:
        """The task with so much of its training data, drawn by the run's seed; equal parts are one object."""
        whole = self.design.task(task)
        if size == WHOLE:
            return whole
        key = (task, size, seed)
        if key not in self._parts:
            self._parts[key] = whole.subset(per_class=int(size), seed=seed)
        return self._parts[key]


# Bases


def make_bases(made: Made, workers: int | None, fan_out: str, tell: Reporter) -> None:
    """Pre-train every upgrade that changes something, those of one depth beside each other."""
    design = made.design
    for depth in range(1 + max(design.depth(one.name) for one in design.upgrades)):
        here = [one for one in design.upgrades if one.domains and design.depth(one.name) == depth]
        calls = {one.name: _pretraining(made, one) for one in here}
        seconds = sum(_seconds(made, one) for one in here)
        count = worker_count(len(here), workers) if workers is not None else 1
        if workers is None and len(here) > 1 and seconds >= WORTH_SECONDS and may_spread(calls[here[0].name]):
            count = that_fit(len(here), design.base.config)
        if count > 1:
            units = [Unit(f"pre-training {one.name}", make_base, calls[one.name], _steps_of(one)) for one in here]
            run_units(units, title="upgrades", reporter=tell, workers=count, fan_out=fan_out)
        for one in here:  # what a worker made is found in the store
            made.stages[one.name] = pretrain(**calls[one.name], reporter=tell)
            made.bases[one.name] = made.stages[one.name][-1]


def make_base(*, reporter: Reporter, **call: Any) -> None:
    """One upgrade."""
    pretrain(**call, reporter=reporter)


def _pretraining(made: Made, upgrade: Upgrade) -> dict[str, Any]:
    return {
        "base": made.named(upgrade.after), "domains": list(upgrade.domains), "store": str(made.store.folder),
        "method": upgrade.method, "training": dict(upgrade.training), "seed": made.design.upgrade_seed,
        "apart_from": list(made.design.tasks),
    }  # fmt: skip


def _steps_of(upgrade: Upgrade) -> int:
    return (training_settings(upgrade.training).steps or 0) * len(upgrade.domains)


def _seconds(made: Made, upgrade: Upgrade) -> float:
    settings = training_settings(upgrade.training)
    steps = _steps_of(upgrade)
    tokens = steps * settings.batch_size * settings.accumulation * settings.block_size
    return pretraining_seconds(made.design.base.config, tokens, steps)


# Old deltas


def plan_old(made: Made) -> Iterator[Planned]:
    """Every old delta that any arm needs."""
    design = made.design
    wanted: dict[Known, None] = {}
    for arm in design.arms:
        for form in arm.forms:
            for task in arm.tasks if arm.weights in ("own", "random") else [one.name for one in design.tasks]:
                wanted.update(dict.fromkeys((form, task, old, seed) for old in arm.old for seed in arm.seeds))
    for form, task, old, seed in sorted(wanted, key=lambda one: (one[0], one[1], one[2], one[3])):
        yield _tuned(made, None, None, design.form(form), task, old, None, seed, keep="weights")


def keep_old(made: Made, planned: Sequence[Planned], tell: Reporter) -> None:
    """Remember the old deltas; of one that diverged nothing can be recycled."""
    for one in planned:
        entry = made.entries[one.key]
        if entry.manifest.failed:
            tell.say(f"the {one.form} delta of {one.task}, seed {one.seed}, diverged and is left out")
        else:
            assert one.old is not None
            made.old[one.form, one.task, one.old, one.seed] = entry


# What stands in for old deltas


def make_stand_ins(made: Made, tell: Reporter) -> None:
    """Store what stands in for the old deltas of the arms that want it."""
    design = made.design
    for arm in design.arms:
        if arm.weights == "own":
            continue
        for known, own in list(made.old.items()):
            form, task, old, seed = known
            wanted = form in arm.forms and task in arm.tasks and old in arm.old and seed in arm.seeds
            if wanted and (arm.weights, known) not in made.stand_ins:
                found = stand_in(made, arm.weights, known, own)
                if found is None:
                    tell.say(f"no {arm.weights} delta for {task} ({form}), seed {seed}: the others diverged")
                else:
                    made.stand_ins[arm.weights, known] = found


def stand_in(made: Made, weights: str, known: Known, own: Entry) -> Entry | None:
    """A delta that stands in for another one, from the store or put there; None where there is nothing to make it of.

    The wrong task is the one listed after the delta's own (after the last the first); the mean is of all others.
    """
    form, task, old, seed = known
    names = [one.name for one in made.design.tasks]
    place = names.index(task)
    others = [made.old[form, name, old, seed] for name in (*names[place + 1 :], *names[:place])
              if (form, name, old, seed) in made.old]  # fmt: skip
    used = {"random": [], "wrong-task": others[:1], "mean": others}[weights]
    if weights != "random" and not used:
        return None
    run = digest({"stand-in": weights, "of": own.id, "made of": [one.id for one in used], "seed": seed})
    there = made.store.find("delta", run=run)
    if there:
        return there[0]
    delta: Any = load_delta(own)
    loaded: list[Any] = [load_delta(one) for one in used]
    if weights == "random":
        delta = random_delta(delta, seed)
    elif weights == "mean":
        delta = mean_delta(delta, loaded)
    else:
        delta = with_body_of(delta, loaded[0])
    manifest = own.manifest.model_copy(deep=True, update={
        "name": f"{own.name}-{weights}", "run": run, "id": "", "files": {}, "scores": {}, "curve": [], "probe": None,
        "recipe": {}, "tags": {"stand-in": weights}, "steps": 0, "best_step": 0, "seconds": 0.0, "examples": 0,
        "notes": [f"stands in for {own.name}: {weights}"],
        "parents": [*own.manifest.parents,
                    *(Parent(id=one.id, role="delta", name=one.name) for one in (own, *used))],
    })  # fmt: skip

    def write(folder: Path) -> None:
        if isinstance(delta, AdapterDelta):
            delta.save(folder, manifest.base)
        else:
            delta.save(folder)

    return Entry(made.store.add(manifest, write), manifest)


# Arms


def plan_arm(made: Made, arm: RecycleArm, upgrade: str) -> Iterator[Planned]:
    """The runs of an arm on one upgrade, of which all that they stand on is there."""
    for name in arm.forms if upgrade in arm.upgrades else ():
        form = made.design.form(name)
        for task in arm.tasks:
            for new in arm.new:
                for seed in arm.seeds:
                    if arm.kind == "fresh":
                        yield _tuned(
                            made, arm, upgrade, form, task, None, new, seed, keep=_keep(made, arm, "", new, seed)
                        )
                        continue
                    for old in arm.old:
                        yield _recycled(made, arm, upgrade, form, task, old, new, seed)


def _keep(made: Made, arm: RecycleArm, old: str, new: str, seed: int) -> str:
    connect = made.design.connect
    wanted = connect.wants(arm.name, old or (connect.old[0] if connect.old else ""), new, seed)
    return "weights" if arm.hop or wanted else "scores"


def _tuned(
    made: Made, arm: RecycleArm | None, upgrade: str | None, form: Form, task: str, old: str | None, new: str | None,
    seed: int, *, keep: str,
) -> Planned:  # fmt: skip
    part = made.part(task, (old if arm is None else new) or WHOLE, seed)
    tags = {"arm": "old"} if arm is None else {"arm": arm.name, "upgrade": str(upgrade)}
    settings = made.design.settings(form, arm)
    command = Command.of(made.store, made.opened(upgrade), part, training=settings, seeds=[seed], keeps_failure=True)
    [plan] = command.plans(form.method, keep, None, tags)
    call = {
        "job": "tune", "base": made.named(upgrade), "task": part, "store": str(made.store.folder),
        "method": form.method, "training": settings, "seeds": [seed], "keep": keep, "tags": tags,
    }  # fmt: skip
    name = None if arm is None else arm.name
    return Planned(name, upgrade, form.name, task, old, new, seed, part, call, plan, key_of(plan))


def _recycled(
    made: Made, arm: RecycleArm, upgrade: str, form: Form, task: str, old: str, new: str, seed: int
) -> Planned:
    part = made.part(task, new, seed)
    before = made.design.upgrade(upgrade).after
    known, old_base = (form.name, task, old, seed), None
    if arm.hop and before is not None and before in arm.upgrades:
        outdated, old_base = made.hops.get((arm.name, before, old, new, form.name, task, seed)), before
    elif arm.weights == "own":
        outdated = made.old.get(known)
    else:
        outdated = made.stand_ins.get((arm.weights, known))
    if outdated is None:
        return Planned(arm.name, upgrade, form.name, task, old, new, seed, part, {}, None)
    given = {
        "base": made.named(upgrade), "old_base": made.named(old_base), "method": arm.method, "task": part,
        "training": made.design.settings(form, arm), "seeds": [seed], "keep": _keep(made, arm, old, new, seed),
        "store": str(made.store.folder), "tags": {"arm": arm.name, "upgrade": upgrade},
    }  # fmt: skip
    opened = {**given, "base": made.opened(upgrade), "old_base": made.opened(old_base), "store": made.store}
    try:
        with failures_kept():
            [plan], _ = recycling_plans(outdated, **opened)
    except (DeltaError, MethodError) as problem:
        return Planned(arm.name, upgrade, form.name, task, old, new, seed, part, {}, None, refused=problem.what)
    call = {"job": "recycle", "delta": outdated.folder, **given}
    # thousands of plans are held, and each would hold its delta
    light = replace(plan, outdated=None)
    return Planned(arm.name, upgrade, form.name, task, old, new, seed, part, call, light, key_of(plan))


def key_of(plan: TuningPlan) -> str:
    """The key a run stands under in the store."""
    return plan.identity(plan.runtime()).key


def keep_hops(made: Made, planned: Sequence[Planned]) -> None:
    """Remember what hopping arms gave, for the upgrade after."""
    for one in planned:
        if one.plan is None or one.arm is None or not made.design.arm(one.arm).hop:
            continue
        entry = made.entries.get(one.key)
        if entry is not None and not entry.manifest.failed and one.upgrade and one.old and one.new:
            made.hops[one.arm, one.upgrade, one.old, one.new, one.form, one.task, one.seed] = entry


# Making them


def make(
    made: Made, planned: Sequence[Planned], title: str, workers: int | None, fan_out: str, tell: Reporter
) -> None:
    """Make the runs that the store lacks; those of one task stay together."""
    made.refresh()
    missing: dict[str, Planned] = {}
    for one in planned:
        if one.plan is not None and one.key not in made.entries:
            missing.setdefault(one.key, one)
    if missing:
        tell.say(f"{title}: {len(missing)} runs to make, {len(planned) - len(missing)} are in the store")
        runs = list(missing.values())
        bundled = [
            BundledRun(f"{one.arm or 'old'}, {one.form}, {one.task}", one.call, one.plan)
            for one in runs if one.plan is not None
        ]  # fmt: skip
        run_bundles(
            bundled, make_runs, title=title, base=made.base, workers=workers, fan_out=fan_out, reporter=tell
        )  # fmt: skip
        made.refresh()
        for one in runs:
            if one.key not in made.entries:  # its method refused, maybe in another process: ask it why
                made.refused[one.key] = make_run(one.call, tell) or "it left nothing"
    made.planned += planned


def make_runs(calls: Sequence[Mapping[str, Any]], reporter: Reporter) -> None:
    """Some runs, one after the other; one that diverges is stored as failed, one that is refused is told and left."""
    with encodings_kept():
        for call in calls:
            make_run(call, reporter)


def make_run(call: Mapping[str, Any], reporter: Reporter) -> str:
    """One run; why its method refused the delta, empty if it did not."""
    given = {key: value for key, value in call.items() if key != "job"}
    with failures_kept():
        if call["job"] != "recycle":
            tune(**given, reporter=reporter, workers=1)
            return ""
        try:
            recycle(**given, reporter=reporter)
        except (DeltaError, MethodError) as problem:
            reporter.say(f"{problem.what}; the other runs go on")
            return problem.what
    return ""
