"""Go on pre-training a base over a stream of domains: ``anytune pretrain``."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anytune.data.batches import BlockBatches, heldout_batches
from anytune.data.domains import Domain, joined, load_domains, load_stream
from anytune.data.packing import Blocks, Objective, pack
from anytune.data.samples import cache_folder
from anytune.data.separation import overlap
from anytune.data.tasks import Task
from anytune.engine.loop import Evaluation, train
from anytune.engine.prediction import language_loss
from anytune.engine.progress import Reporter, Silent
from anytune.engine.run_state import TrainingResult
from anytune.engine.runtime import Runtime, derive_seed, make_runtime, seeded
from anytune.engine.settings import TrainingSettings, decisive, total_steps, training_settings
from anytune.engine.tracking import Tracking, tracking
from anytune.errors import DataError, SettingsError, StoreError
from anytune.jobs.command import check_seeds, recipe_of
from anytune.jobs.forecast import Forecast, Prepared, announce_precision, forecast_run, unwritten
from anytune.jobs.opening import fitting, open_base, open_store, open_task
from anytune.jobs.resuming import Resume, RunIdentity, check_resume, insist, once
from anytune.jobs.tune import Source
from anytune.manifests import (
    METRICS_NAME,
    BaseIdentity,
    DomainRecord,
    Manifest,
    Parent,
    caches_written,
    digest,
    load_json,
    write_atomic,
)
from anytune.methods import registry
from anytune.methods.objective import LanguageModelling
from anytune.methods.protocol import Method, Run, overrides
from anytune.models.base import Base, save_base
from anytune.models.carried import carried_digest, load_carried, save_carried
from anytune.models.dropout import set_dropout
from anytune.models.fingerprint import fingerprint_folder
from anytune.models.probe import make_probe
from anytune.store import Entry, Store

#: Held-out blocks scored per domain: enough for a standard error near 0.02 nats, and seconds on a small model.
HELDOUT_BLOCKS = 128


@dataclass(frozen=True)
class PackedDomain:
    """A domain as token blocks, training and held-out part apart."""

    domain: Domain
    train: Blocks
    heldout: Blocks | None

    @classmethod
    def of(cls, domain: Domain, tokenizer: Any, settings: TrainingSettings, objective: Objective) -> PackedDomain:
        """Tokenise and pack both parts, cached by content."""
        cache = cache_folder() / "blocks"
        whole = pack(domain.texts, tokenizer, settings.block_size, objective=objective, cache=cache)
        try:
            heldout = pack(domain.heldout, tokenizer, settings.block_size, objective=objective, cache=cache)
        except DataError:
            heldout = None  # too little held-out text for one block: nothing is scored on this domain
        return cls(domain, whole, heldout)


@unwritten
def pretrain(
    base: Base | Entry | Source,
    domains: Domain | Source | Mapping[str, Any] | Sequence[Domain | Source | Mapping[str, Any]],
    *,
    store: Store | Source | None = None,
    method: str | Sequence[Any] | Mapping[str, Any] = "sequential",
    training: TrainingSettings | Mapping[str, Any] | None = None,
    seed: int = 0,
    names: Sequence[str] | None = None,
    watch: Sequence[Domain | Source | Mapping[str, Any]] = (),
    apart_from: Sequence[Task | Source] = (),
    reporter: Reporter | None = None,
    resume: Resume = "auto",
    log_with: str | Sequence[str] | None = None,
    log_dir: str | Path | None = None,
    dry_run: bool = False,
    **columns: Any,
) -> list[Entry]:
    """Pre-train ``base`` on each domain in turn; every stage becomes a base of its own in the store.

    Args:
        domains: text, JSONL, CSV or Parquet files, ``sample:NAME``, ``{"source": ..., "name": ...}``, or Domains, in
            order; with ``split_by`` a source of dated text is a domain for each period.
        names: names of the new bases, one per domain (default: ``BASE+DOMAIN``).
        watch: further domains whose held-out loss is measured before and after each stage.
        apart_from: tasks whose validation and test texts must not occur in the domains; near-duplicates are counted
            and anything but zero is an error.
        training: see :class:`~anytune.engine.settings.TrainingSettings`; ``steps`` counts per domain.
        resume: "auto" goes on with a stage that was interrupted; "must" is an error where the first one was not begun
            before; "never" begins at step 0. (To start a new run from stored weights, name them as ``base``.)
        log_with: experiment trackers that follow the runs: "tensorboard", "trackio", "wandb" ..., or a list.
        log_dir: folder of the files that trackers write (default: ``anytune-logs``).
        dry_run: make nothing; the list holds a :class:`~anytune.jobs.forecast.Forecast` for each stage instead.
        columns: ``text``, ``date``, ``limit`` ... of :func:`load_domain`, and ``split_by``.

    Returns:
        One store entry per domain, each a plain transformers folder with a manifest.

    Raises:
        AnytuneError: bad input, overlap with a task, names that do not fit; earlier stages stay in the store.
    """
    resume = check_resume(resume)
    followed = tracking(log_with, log_dir)
    place = open_store(store)
    current = open_base(base, place)
    sources = [domains] if isinstance(domains, str | Path | Domain | Mapping) else list(domains)
    heard = stream = load_stream([domain for source in sources for domain in load_domains(source, **columns)])
    flow = stream_of(registry.parse(method, "pretrain", current.anatomy.model_type))
    if flow == "joint":
        stream = (joined(heard),)
    check_seeds([seed])
    if names is not None and len(names) != len(stream):
        raise SettingsError(f"{len(names)} names for {len(stream)} domains", fix="one name per domain, or none")
    tasks = [open_task(task) for task in apart_from]
    overlaps = {domain.name: count_overlap(domain, tasks) for domain in heard}
    settings = given = fitting(training_settings(training, keep="last"), current)
    if flow == "joint" and settings.steps is not None:  # they count per domain, and the mixture gets them all
        settings = settings.model_copy(update={"steps": settings.steps * len(heard)})
    tokenizer = current.tokenizer()
    objective = current.anatomy.objective
    further = [domain for source in watch for domain in load_domains(source)]
    known = {domain.name: domain for domain in [*further, *heard]}
    watched = [known[name] for name in dict.fromkeys([*(domain.name for domain in heard), *known])]
    made: dict[str, PackedDomain] = {}

    def packed(domain: Domain) -> PackedDomain:
        """Packed when a run first needs it: one that is finished needs none, and one that goes on has said so."""
        if domain.name not in made:
            made[domain.name] = PackedDomain.of(domain, tokenizer, settings, objective)
        return made[domain.name]

    entries: list[Any] = []
    first = current
    for number, domain in enumerate(stream):
        parts = heard if flow == "joint" else (domain,)
        stage = _Stage(
            base=current, domain=domain, parts=parts, watched=watched, packed=packed, settings=settings, seed=seed,
            methods=registry.parse(method, "pretrain", current.anatomy.model_type),
            overlap={part.name: overlaps[part.name] for part in parts},
            tracking=followed,
            name=names[number] if names else f"{current.name}+{domain.name}",
            recipe=recipe_of("pretrain", base=current, domains=list(parts), method=method, training=given,
                             seed=seed, names=[names[number]] if names else None,
                             watch=[one for one in watched if not any(one is part for part in parts)],
                             apart_from=list(apart_from),
                             **{key: value for key, value in columns.items() if key != "split_by"}),
        )  # fmt: skip
        if dry_run:
            made_before = number == 0 or flow == "restart" or entries[-1].state == "stored"
            entries.append(stage.forecast(place, pending=not made_before))
            stored = entries[-1].state == "stored"
            renamed = current.identity.model_copy(update={"name": stage.name})
            current = open_base(entries[-1].place) if stored else replace(current, identity=renamed)
            current = first if flow == "restart" else current
            continue
        entry = stage.run(place, reporter or Silent(), resume if number == 0 or resume == "never" else "auto")
        entries.append(entry)
        current = first if flow == "restart" else open_base(entry)
    return entries


def stream_of(methods: Sequence[Method]) -> str:
    """How the stages of a stream follow each other: what the one method that says so wants, else "chain".

    Raises:
        SettingsError: two methods want different streams.
    """
    wanted = {method.stream: method.name for method in methods if method.stream != "chain"}
    if len(wanted) > 1:
        one, other = wanted.values()
        raise SettingsError(
            f"methods '{one}' and '{other}' cannot be combined: each orders the stream in its own way",
            fix=f"--method {one}   or   --method {other}",
        )
    return next(iter(wanted), "chain")


def count_overlap(domain: Domain, tasks: Sequence[Task]) -> dict[str, int]:
    """Task name -> texts of the domain that are near-duplicates of its validation or test texts (always 0).

    Raises:
        DataError: a count is not zero: the comparison on that task would be void.
    """
    counts = {}
    for task in tasks:
        counts[task.name] = _overlap(domain, task)
        if counts[task.name]:
            raise DataError(
                f"{counts[task.name]} texts of domain '{domain.name}' are also in the held-out part of task "
                f"'{task.name}'",
                why="Scores on that task after this pre-training would not be honest.",
                fix=f"take those texts out of '{domain.name}'; the samples of this project are already apart",
            )
    return counts


def _overlap(domain: Domain, task: Task) -> int:
    """The count, kept by content: every stage of a stream asks for it, and comparing all texts takes seconds."""
    kept = cache_folder() / "overlaps" / f"{digest(['near-duplicates', domain.content, task.content])[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return int(load_json(kept)["texts"])
    held = [text for row in (*task.validation, *task.test) for text in (row.text, row.text_pair) if text]
    found = overlap(domain.texts, held)
    if caches_written():
        with contextlib.suppress(StoreError):  # a cache that cannot be written is no reason to stop
            write_atomic(kept, json.dumps({"texts": found}).encode())
    return found


@dataclass(kw_only=True)
class _Stage:
    base: Base
    domain: Domain
    #: the domains it is made of: itself, or all of a stream that are mixed
    parts: Sequence[Domain]
    watched: Sequence[Domain]
    packed: Callable[[Domain], PackedDomain]
    methods: Sequence[Method]
    settings: TrainingSettings
    seed: int
    name: str
    overlap: dict[str, dict[str, int]]
    recipe: dict[str, Any]
    tracking: Tracking | None = None

    def identity(self, runtime: Runtime) -> RunIdentity:
        """What decides the result: the run key is a hash over it."""
        decides = {
            "job": "pretrain", "base": [self.base.identity.backbone, self.base.identity.vocabulary],
            "domain": self.domain.content,
            "methods": [registry.record(method).model_dump() for method in self.methods],
            "training": {**decisive(self.settings), **runtime.decides()}, "seed": self.seed, "name": self.name,
            "watched": sorted(one.content for one in self.watched),
        }  # fmt: skip
        carried = carried_digest(self.base.folder)
        if carried is not None:
            decides["carried"] = carried
        names = {
            "base": self.base.name, "domain": self.domain.name, "watched": ", ".join(one.name for one in self.watched)
        }  # fmt: skip
        return RunIdentity(decides, names, f"pretrain {self.name} seed {self.seed}")

    def run(self, store: Store, reporter: Reporter, resume: Resume = "auto") -> Entry:
        runtime = make_runtime(self.settings.precision, sharding=self.settings.sharding)
        identity = self.identity(runtime)
        if resume == "must":
            insist(store, "base", [identity])
        return once(
            store, "base", identity, lambda work: self._make(store, identity, work, runtime, reporter),
            resume=resume, reporter=reporter, runtime=runtime,
        )  # fmt: skip

    def forecast(self, store: Store, *, pending: bool) -> Forecast:
        """What the stage would cost; ``pending`` if its base is still to be made by the stage before it."""
        runtime = make_runtime(self.settings.precision, sharding=self.settings.sharding)
        return forecast_run(
            store, "base", self.identity(runtime), runtime, lambda: self._prepared(runtime), name=self.name,
            pending=pending,
        )  # fmt: skip

    def _make(self, store: Store, identity: RunIdentity, work: Path, runtime: Runtime, reporter: Reporter) -> Entry:
        announce_precision(runtime, self.settings.precision, reporter)
        with self._prepared(runtime) as ready:
            result = train(
                ready.model, **ready.arguments, work=work, title=f"{self.name}: pre-training on {self.domain.name}",
                reporter=reporter,
                tracked=self.tracking.of(self.name, self.seed, identity.key, identity.settings)
                if self.tracking else None,
            )  # fmt: skip
            model = ready.model
            for method in reversed(self.methods):
                model = method.finish(model, ready.run)
            scores = result.curve[-1].scores
            if any(overrides(method, "finish") for method in self.methods):  # it may leave other weights than the last
                model.eval()
                with torch.no_grad():
                    scores = runtime.first(lambda: ready.arguments["evaluate"](model).scores)
        return runtime.first(lambda: self._keep(store, identity.key, model, result, scores, runtime, work))

    @contextlib.contextmanager
    def _prepared(self, runtime: Runtime) -> Iterator[Prepared]:
        """The stage ready to begin; inside, torch draws from the run's own seed."""
        settings, base = self.settings, self.base
        tokenizer = base.tokenizer()
        objective = LanguageModelling(base.anatomy)
        part = self.packed(self.domain)
        batches = BlockBatches(
            part.train, settings.batch_size, derive_seed(self.seed, "order", self.domain.content),
            base.anatomy.objective, tokenizer, probability=settings.mask_probability,
        )  # fmt: skip
        steps = total_steps(settings, batches.batches_per_epoch, default_epochs=1.0, world=runtime.world)
        parts = {one.name: self.packed(one).heldout for one in self.watched}
        scored = {name: blocks for name, blocks in parts.items() if blocks is not None}

        def losses(model: nn.Module) -> dict[str, float]:
            return {
                name: self._heldout_loss(model, blocks, objective, tokenizer, runtime)
                for name, blocks in scored.items()
            }

        def evaluate(model: nn.Module) -> Evaluation:
            found = losses(model)
            own = found.get(self.domain.name)
            return Evaluation(found, own, better=-own if own is not None else math.nan)

        with seeded(derive_seed(self.seed, "pretrain")):
            model, fresh = base.pretraining_model(derive_seed(self.seed, "head"))
            if settings.dropout is not None:
                set_dropout(model, settings.dropout)
            run = Run(seed=derive_seed(self.seed, "method"), steps=steps, anatomy=base.anatomy, head_names=fresh,
                      objective=objective, batches=batches, base=base, device=runtime.device,
                      carried=load_carried(base.folder))  # fmt: skip
            for method in self.methods:
                model = method.prepare(model, run)
            yield Prepared(model, run, {
                "methods": self.methods, "objective": objective, "batches": batches, "steps": steps,
                "settings": settings, "learning_rate": settings.learning_rate or 5e-5, "runtime": runtime,
                "evaluate": evaluate,
            })  # fmt: skip

    def _heldout_loss(
        self, model: nn.Module, blocks: Blocks, objective: LanguageModelling, tokenizer: Any, runtime: Runtime
    ) -> float:
        size = self.settings.evaluate_batch_size
        batches = heldout_batches(
            blocks, size, 0, objective.anatomy.objective, tokenizer, self.settings.mask_probability
        )
        return language_loss(model, objective, islice(batches, max(1, HELDOUT_BLOCKS // size)), runtime)

    def _keep(
        self, store: Store, key: str, model: nn.Module, result: TrainingResult,
        found: Mapping[str, float | None], runtime: Runtime, work: Path,
    ) -> Entry:  # fmt: skip
        base = self.base
        model = model.cpu()
        scores: dict[str, dict[str, float | None]] = {}
        for prefix, losses in (("before:heldout", result.curve[0].scores), ("heldout", found)):
            for name, loss in losses.items():
                perplexity = math.exp(loss) if loss is not None and loss < 700 else None
                scores[f"{prefix}:{name}"] = {"loss": loss, "perplexity": perplexity}
        records: list[DomainRecord] = [part.record() for part in self.parts]
        for record, part in zip(records, self.parts, strict=True):
            record.tokens, record.overlap = self.packed(part).train.token_count, self.overlap[part.name]
        parents = (
            [Parent(id=base.manifest.id, role="base", name=base.name)] if base.manifest and base.manifest.id else []
        )
        manifest = Manifest(
            kind="base", name=self.name, run=key, base=base.identity, parents=parents, domains=records,
            methods=[registry.record(method) for method in self.methods],
            training={**self.settings.model_dump(), "learning_rate": self.settings.learning_rate or 5e-5,
                      "steps": result.steps},
            seed=self.seed, scores=scores, curve=result.curve, steps=result.steps, best_step=result.best_step,
            seconds=round(result.seconds, 3), examples=result.examples,
            tokens=result.examples * self.settings.block_size, environment=runtime.environment(), recipe=self.recipe,
            probe=make_probe(model, base.config.vocab_size, self.seed),
        )  # fmt: skip

        def write(folder: Path) -> None:
            save_base(model, base, folder, base.held_over())
            prints = fingerprint_folder(folder, cache=False)
            manifest.base = BaseIdentity(
                backbone=prints.backbone, config=prints.config, vocabulary=prints.vocabulary, name=self.name
            )
            save_carried(folder, {method.name: method.carry_state() for method in self.methods})
            if (work / METRICS_NAME).exists():
                shutil.copy(work / METRICS_NAME, folder / METRICS_NAME)

        folder = store.add(manifest, write)
        return Entry(folder, manifest)
