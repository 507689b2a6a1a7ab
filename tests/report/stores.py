"""Synthetic stores: manifests only, with scores and curves made from a formula, so that tests know every number."""

from __future__ import annotations

import math
from pathlib import Path

from anytune.manifests import (
    BaseIdentity,
    CurvePoint,
    DomainRecord,
    Environment,
    Manifest,
    MethodRecord,
    Parent,
    TaskRecord,
    digest,
    write_manifest,
)

TASKS = {"hpo": 0.62, "foldoc": 0.48, "rotten-tomatoes": 0.71}
UPGRADES = {"v1": "biomedical", "v2": "computing"}
ENVIRONMENT = Environment(
    versions={"anytune": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"}, threads=2, precision="fp32"
)


def identity(name: str) -> BaseIdentity:
    return BaseIdentity(
        backbone=digest(f"backbone of {name}"), name=name, ref="sample:bert-tiny" if name == "v0" else None
    )


def base(name: str, parent: str, domain: str, losses: dict[str, tuple[float, float]], created: str) -> Manifest:
    scores = {f"heldout:{key}": {"loss": after, "perplexity": math.exp(after)} for key, (_, after) in losses.items()}
    scores |= {f"before:heldout:{key}": {"loss": before} for key, (before, _) in losses.items()}
    return Manifest(
        kind="base",
        name=name,
        id=digest(name),
        created=created,
        base=identity(name),
        parents=[Parent(id=identity(parent).backbone, role="base", name=parent)],
        domains=[DomainRecord(name=domain, texts=4000, tokens=412_000, overlap={"hpo": 0})],
        methods=[MethodRecord(name="pretrain/sequential")],
        scores=scores,
        steps=600,
        seconds=55.0,
        environment=ENVIRONMENT,
        recipe={"job": "pretrain", "base": parent, "domains": [domain]},
    )


def delta(
    task: str,
    on: str,
    arm: str,
    seed: int,
    *,
    steps: int = 400,
    start: float = 0.2,
    end: float = 0.6,
    speed: float = 4.0,
    outdated: str | None = None,
    tagged: bool = True,
    metric: str = "accuracy",
    created: str = "2026-11-21T09:00:00+00:00",
    method: str = "tune/full",
) -> Manifest:
    wobble = 0.012 * math.sin(7.1 * seed + len(task) + len(arm))
    curve = []
    for step in range(0, steps + 1, 25) if steps else []:
        value = (
            start + (end - start) * (1 - math.exp(-speed * step / 400)) + wobble + 0.006 * math.sin(step * (seed + 1))
        )
        curve.append(
            CurvePoint(
                step=step, seconds=step * 0.021 + seed * 0.1, scores={metric: round(value, 4)}, loss=1.5 - value
            )
        )
    last = curve[-1].scores[metric] if curve else start + wobble
    methods = [MethodRecord(name=method)] if arm != "direct" else []
    if outdated:
        methods.append(MethodRecord(name=f"recycle/{arm}"))
    parents = [Parent(id=identity(on).backbone, role="base", name=on)]
    if outdated:
        parents.append(Parent(id=outdated, role="delta", name=f"{task}-v0"))
    name = f"{task}-{on}-{arm.replace(', ', '-').replace(' ', '-')}-s{seed}"
    return Manifest(
        kind="delta",
        name=name,
        id=digest([name, method, steps]),
        created=created,
        base=identity(on),
        parents=parents,
        form="full" if arm == "initialize" or on == "v0" else "scores",
        task=TaskRecord(
            name=task, content=digest(task), metric=metric, counts={"train": 2000, "validation": 300, "test": 900}
        ),
        methods=methods,
        training={"learning_rate": 5e-4, "batch_size": 32, "seed": seed},
        seed=seed,
        scores={"validation": {metric: last}, "test": {metric: round(last - 0.01, 4)}},
        curve=curve,
        steps=steps,
        seconds=steps * 0.021,
        environment=ENVIRONMENT,
        recipe={
            "job": "recycle" if outdated else "tune",
            "task": f"sample:{task}",
            "base": on,
            "seed": seed,
            "steps": steps,
        },
        tags={"arm": arm, "upgrade": on} if tagged else {},
    )


def demo_manifests(seeds: int = 3) -> list[Manifest]:
    """What ``anytune demo`` leaves: two upgrades, three tasks, four arms. Initialize fails on the last task of v2."""
    first = {"biomedical": (6.1, 4.9), "computing": (5.4, 5.5)}
    second = {"biomedical": (4.9, 5.3), "computing": (5.5, 4.6)}
    made = [
        base("v1", "v0", "biomedical", first, "2026-11-21T09:01:00+00:00"),
        base("v2", "v1", "computing", second, "2026-11-21T09:02:00+00:00"),
    ]
    for task, end in TASKS.items():
        for seed in range(seeds):
            old = delta(task, "v0", "fresh", seed, end=end)
            made.append(old)
            for number, on in enumerate(UPGRADES, 1):
                poor = task == "rotten-tomatoes" and on == "v2"
                when = f"2026-11-21T09:1{number}:00+00:00"
                made += [
                    delta(task, on, "direct", seed, steps=0, start=end - 0.03 - 0.03 * number, outdated=old.id,
                          created=when),
                    delta(task, on, "initialize", seed, start=end - 0.06 * number, end=end + (-0.03 if poor else 0.02),
                          speed=6, outdated=old.id, created=when),
                    delta(task, on, "fresh", seed, end=end + 0.005 * number, created=when),
                    delta(task, on, "fresh, whole budget", seed, steps=800, end=end + 0.012, created=when),
                ]  # fmt: skip
    return made


def write_store(folder: Path, manifests: list[Manifest]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for manifest in manifests:
        place = (
            folder
            / ("bases" if manifest.kind == "base" else "deltas")
            / f"{digest(manifest.name)[:8]}-{manifest.id[:12]}"
        )
        write_manifest(place, manifest)
    return folder
