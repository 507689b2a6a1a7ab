"""Put a base into a store, so that the store holds everything its deltas need."""

from __future__ import annotations

import shutil
from pathlib import Path

from anytune.jobs.opening import open_base, open_store
from anytune.jobs.tune import Source
from anytune.manifests import MANIFEST_NAME, METRICS_NAME, Manifest, run_key
from anytune.models.base import Base
from anytune.models.probe import make_probe
from anytune.models.weights import weight_files
from anytune.store import Entry, Store

#: What makes up a plain transformers folder, besides its weight files.
COPIED = ("*.json", "*.txt", "*.model", "*.jinja")


def add_base(base: Base | Source, *, store: Store | Source | None = None, name: str | None = None) -> Entry:
    """Copy a base (a folder, ``sample:NAME``, a hub id) into the store under a name.

    Its weights, and so its fingerprint, stay as they are. Only safetensors, JSON and tokenizer files are copied.
    """
    place = open_store(store)
    opened = open_base(base, place)
    chosen = name or opened.name
    key = run_key(job="add_base", base=opened.identity.backbone, config=opened.identity.config,
                  vocabulary=opened.identity.vocabulary, name=chosen)  # fmt: skip
    finished = place.find("base", run=key)
    if finished:
        return finished[-1]
    model, fresh = opened.pretraining_model(0)
    made = opened.manifest
    manifest = Manifest(
        kind="base", name=chosen, run=key, base=opened.identity.model_copy(update={"name": chosen}),
        probe=None if fresh else make_probe(model, opened.config.vocab_size, 0),
        domains=made.domains if made else [], methods=made.methods if made else [], scores=made.scores if made else {},
        tokens=made.tokens if made else 0, notes=[f"copied from {opened.ref}"] if opened.ref else [],
    )  # fmt: skip

    def write(folder: Path) -> None:
        chosen_files = {path for pattern in COPIED for path in opened.folder.glob(pattern)}
        for path in sorted(chosen_files | set(weight_files(opened.folder))):
            if path.name not in (MANIFEST_NAME, METRICS_NAME) and path.is_file():
                shutil.copyfile(path, folder / path.name)

    return Entry(place.add(manifest, write), manifest)
