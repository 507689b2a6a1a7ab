"""``anytune store``: what is in a store (:mod:`anytune.store`)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anytune.cli import options, show, values

if TYPE_CHECKING:
    from anytune.store import Entry, Store

Reference = Annotated[str, typer.Argument(metavar="REF", help="Name, id or folder of an artefact.")]


def build(**settings: Any) -> typer.Typer:
    """The group of commands about a store."""
    app = typer.Typer(**settings, help="List, check, adopt and remove what is stored.")
    app.command("list")(list_)
    app.command("show")(show_one)
    app.command("verify")(verify)
    app.command("import")(import_)
    app.command("remove")(remove)
    app.command("work")(work)
    return app


def list_(
    kind: Annotated[str | None, typer.Option(help="'base' or 'delta'.")] = None,
    task: Annotated[str | None, typer.Option(help="Only deltas of this task.")] = None,
    base: Annotated[str | None, typer.Option(help="Only what belongs to this base.")] = None,
    method: Annotated[str | None, typer.Option(help="Only what was made by this method.")] = None,
    seed: Annotated[int | None, typer.Option(help="Only this seed.")] = None,
    score: Annotated[
        float | None, typer.Option(help="Only deltas at least this good on validation, in their own metric.")
    ] = None,
    tag: options.Tag = None,
    store: options.Store = None,
    json: options.Json = False,
) -> None:
    """List bases and deltas, oldest first.

    Example: anytune store list --kind delta --task reviews --score 0.8
    """
    from anytune.errors import StoreError, unknown
    from anytune.store import describe

    if kind is not None and kind not in ("base", "delta"):
        raise unknown("kind", kind, ("base", "delta"), StoreError)
    place = opened(store)
    found = place.find(kind, task=task, base=base, method=method, seed=seed, tags=values.tags(tag or []), score=score)
    rows = describe.rows(found)
    for folder, problem in place.problems():
        show.say(f"warning: {folder.name}: {problem.splitlines()[0]}", file=sys.stderr)
    if json:
        show.print_json(rows)
        return
    if not rows:
        print("nothing there" if kind is task is base is method is seed is tag is score is None else "nothing fits")
        return
    columns = ["reference", "kind", "task", "base", "method", "seed", "metric", "score"]
    show.print_table([*columns, "size"], [[*(row[key] for key in columns), show.size(row["bytes"])] for row in rows])


def show_one(reference: Reference, store: options.Store = None, json: options.Json = False) -> None:
    """Say all about one artefact: its manifest, where it comes from, whether its files are whole."""
    from anytune.errors import StoreError
    from anytune.store.describe import lineage_tree

    place = opened(store, reference)
    entry = place.get(reference)
    try:
        place.verify(entry)
        state, whole = "whole", True
    except StoreError as problem:
        state, whole = problem.what, False
    if json:
        manifest = entry.manifest.model_dump(mode="json", exclude={"probe"})
        parents = [parent.reference for parent in place.lineage(entry)]
        show.print_json(
            {"reference": entry.reference, "manifest": manifest, "lineage": parents, "whole": whole, "files": state}
        )
    else:
        show.say(lineage_tree(place, entry))
        print()
        _print_facts(entry, state)
    if not whole:
        raise typer.Exit(2)


def verify(
    reference: Annotated[
        str | None, typer.Argument(metavar="REF", help="One artefact (default: all).", show_default=False)
    ] = None,
    store: options.Store = None,
) -> None:
    """Check the files of one artefact, or of all, against their SHA-256."""
    from anytune.errors import StoreError

    place = opened(store, reference)
    entries = [place.get(reference)] if reference else place.find()
    bad = {folder.name: problem for folder, problem in place.problems()} if not reference else {}
    for entry in entries:
        try:
            place.verify(entry)
        except StoreError as problem:
            bad[entry.reference] = problem.what
        else:
            show.say(f"whole    {entry.reference}")
    for name, problem_text in bad.items():
        show.say(f"damaged  {name}: {problem_text.splitlines()[0]}")
    if bad:
        raise typer.Exit(2)


def import_(
    folder: Annotated[str, typer.Argument(help="A PEFT folder, or a folder of such folders.")],
    base: Annotated[str, typer.Option(help="The base the adapters were trained on.")],
    name: options.Name = None,
    task: Annotated[str | None, typer.Option(help="Name of the task (default: the delta's name).")] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="Kind of the task: 'classification', 'regression', 'token-classification' or 'generation' "
            "(default: as PEFT's task type says)."
        ),
    ] = None,
    label_names: options.LabelNames = None,
    metric: options.Metric = None,
    tag: options.Tag = None,
    store: options.Store = None,
    json: options.Json = False,
) -> None:
    """Adopt adapters made elsewhere: plain PEFT folders become deltas of this store.

    Example: anytune store import my-adapter --base sample:minilm-l6 --label-names negative,positive
    """
    from anytune.data.tasks import KINDS
    from anytune.errors import AnytuneError, StoreError, unknown
    from anytune.jobs.opening import open_base, open_store
    from anytune.store.importing import import_folder

    def tell(path: Path, result: Entry | AnytuneError) -> None:
        if isinstance(result, AnytuneError):
            show.say(f"not adopted: {path.name}: {result.what}", file=sys.stderr)
        else:
            show.say(f"adopted: {path.name}", file=sys.stderr)

    if kind is not None and kind not in KINDS:
        raise unknown("kind of task", kind, KINDS, StoreError)
    place = open_store(store)
    entries = import_folder(
        place, folder, open_base(base, place), on_result=tell, name=name, task=task, kind=kind,
        label_names=values.names(label_names), metric=metric, tags=values.tags(tag or []),
    )  # fmt: skip
    if json:
        show.print_json([show.run_record(entry) for entry in entries])
        return
    rows = [
        [entry.reference, entry.manifest.task.kind if entry.manifest.task else None, len(entry.manifest.label_names)]
        for entry in entries
    ]
    show.print_table(["reference", "kind", "labels"], [[*row[:2], row[2] or None] for row in rows])
    for note in dict.fromkeys(note for entry in entries for note in entry.manifest.notes if "--kind" in note):
        show.say(f"note: {note}", file=sys.stderr)
    show.say(f"\nnext: {show.predicting(entries[0])}{show.in_store(store)}")


def remove(
    reference: Reference,
    force: Annotated[bool, typer.Option("--force", help="Even if others were made from it.")] = False,
    store: options.Store = None,
) -> None:
    """Delete one artefact."""
    place = opened(store)
    entry = place.get(reference)
    place.remove(entry, force=force)
    show.say(f"removed {entry.reference}")


def work(
    remove: Annotated[
        str | None, typer.Option(metavar="KEY", help="Delete this one: the first digits of its key.")
    ] = None,
    store: options.Store = None,
    json: options.Json = False,
) -> None:
    """List runs that were interrupted, with how far they came; the same command goes on with one.

    Example: anytune store work --remove 3fa9
    """
    from anytune.jobs.resuming import forget, interrupted_runs

    place = opened(store)
    if remove is not None:
        gone = forget(place, remove)
        show.say(f"removed the work of '{gone.title}' ({gone.place})")
        return
    runs = interrupted_runs(place)
    if json:
        show.print_json([
            {"key": run.key, "title": run.title, "step": run.step, "steps": run.steps, "running": run.running,
             "touched": run.touched, "settings": dict(run.settings)} for run in runs
        ])  # fmt: skip
        return
    if not runs:
        print("no run is in work")
        return
    rows = [[run.key[:12], run.title, run.place, f"{run.age} ago", "running" if run.running else ""] for run in runs]
    show.print_table(["key", "run", "at", "last checkpoint", ""], rows)


def opened(store: str | None, reference: str | None = None) -> Store:
    """The store named; else the one around an artefact's folder; else the usual one."""
    from anytune.store import Store

    if store is None and reference is not None and Path(reference).is_dir():
        return Store(Path(reference).resolve().parent.parent, create=False)
    return Store(store or "anytune-store", create=False)


def _print_facts(entry: Entry, state: str) -> None:
    manifest = entry.manifest
    facts: dict[str, Any] = {
        "id": manifest.id, "base": f"{manifest.base.name} {manifest.base.backbone}", "seed": manifest.seed,
        "labels": ", ".join(manifest.label_names), "steps": manifest.steps, "best step": manifest.best_step,
        "seconds": f"{manifest.seconds:.1f}", "created": manifest.created, "size": show.size(entry.size()),
        "tags": ", ".join(f"{key}={value}" for key, value in manifest.tags.items()), "files": state,
    }  # fmt: skip
    for method in manifest.methods:
        facts[f"method {method.name}"] = (
            ", ".join(f"{key}={value}" for key, value in method.settings.items()) or "no settings"
        )
    for split, scores in manifest.scores.items():
        facts[split] = ", ".join(f"{metric} {show.cell(value)}" for metric, value in scores.items())
    for place, note in enumerate(manifest.notes):
        facts["note" + " " * place] = note
    width = max(map(len, facts))
    for key, value in facts.items():
        if value not in (None, ""):
            show.say(f"{' '.join(key.split()):<{width}}  {show.cell(value)}")
    if manifest.recipe:
        import json

        show.say(f"{'recipe':<{width}}  {json.dumps(manifest.recipe, ensure_ascii=False)}")
        local = [key for key in ("base", "task") if ":" not in str(manifest.recipe.get(key, ":"))]
        missing = "".join(f" {key}={'FOLDER' if key == 'base' else 'FILE'}" for key in local)
        show.say(f"\nnext: anytune run {show.quoted(entry.reference)}{missing}   (makes it again)")
