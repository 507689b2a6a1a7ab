"""Warm a base for masked language modelling, once, on text outside every task and stream.

Some sample weights have no working masked-word head: BERT-tiny was tuned as a retriever, MiniLM never had one. A few
minutes of ordinary masked language modelling on general English (the Brown corpus and a dictionary, GCIDE) repair
that. Because this text occurs in no task and no domain, every comparison can start from the warmed base.

The warmed BERT-tiny is part of the package. It was made by::

    python -m anytune.jobs.warm bert-tiny-splade --out FOLDER --bf16

MiniLM is warmed on request (``anytune demo --model minilm-l6``) and kept in the cache.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anytune.data.domains import Domain, load_domain
from anytune.data.samples import cache_folder, sample_folder
from anytune.engine.progress import Reporter, reporter
from anytune.errors import unknown
from anytune.jobs.pretrain import pretrain
from anytune.manifests import BaseIdentity, DomainRecord, read_manifest, staged_folder, write_manifest
from anytune.models.base import Base, load_base, save_base
from anytune.models.fingerprint import fingerprint_folder
from anytune.models.probe import make_probe
from anytune.store import Store

COMMAND = "python -m anytune.jobs.warm bert-tiny-splade --out FOLDER --bf16"
NOTES = (
    "weights rounded to bfloat16",
    "made from sample:bert-tiny-splade (Apache-2.0) by masked language modelling on the Brown corpus and on a part of "
    "GCIDE, the Collaborative International Dictionary of English (GPL-2.0-or-later)",
)
#: Text that is in no task and no stream of this project.
GENERAL_TEXT = ("brown", "gcide")
#: Entries of the dictionary used, chosen by hash: about twice the tokens of Brown.
DICTIONARY_ENTRIES = 45_000


@dataclass(frozen=True)
class Warming:
    """The recorded recipe of one warming."""

    steps: int
    learning_rate: float
    head_rate: float
    batch_size: int = 16
    block_size: int = 128
    seed: int = 0

    def training(self) -> dict[str, Any]:
        """As training settings."""
        return {
            "steps": self.steps, "learning_rate": self.learning_rate, "batch_size": self.batch_size,
            "block_size": self.block_size, "evaluate_every": max(1, self.steps // 4), "precision": "auto",
        }  # fmt: skip


#: sample -> recipe. Rates from earlier single trials on these weights (5e-4; body 2e-4 with a fresh head at 1e-3).
WARMINGS = {
    "bert-tiny-splade": Warming(steps=4000, learning_rate=5e-4, head_rate=1.0),
    "minilm-l6": Warming(steps=800, learning_rate=2e-4, head_rate=5.0),
}


def general_text() -> Domain:
    """The warming text as one domain: Brown and a part of GCIDE, documents in an order decided by their hash."""
    parts = [
        load_domain(f"sample:{GENERAL_TEXT[0]}"),
        load_domain(f"sample:{GENERAL_TEXT[1]}", limit=DICTIONARY_ENTRIES),
    ]
    return mix(parts, "general")


def mix(domains: Sequence[Domain], name: str) -> Domain:
    """Several domains as one, their documents mingled in an order decided by hash alone."""

    def mingled(texts: list[str]) -> tuple[str, ...]:
        return tuple(sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest()))

    content = hashlib.sha256("".join(domain.content for domain in domains).encode()).hexdigest()
    return Domain(
        name=name,
        texts=mingled([text for domain in domains for text in domain.texts]),
        heldout=mingled([text for domain in domains for text in domain.heldout]),
        dates=None,
        ref=None,
        content=content,
        notes=tuple(f"with {domain.name}" for domain in domains),
    )


def warmed_folder(sample: str, recipe: Warming | None = None) -> Path:
    """Where the warmed base of a sample is kept; it exists once it has been made."""
    return cache_folder() / "warmed" / f"{sample}-{(recipe or WARMINGS[sample]).steps}"


def warmed(sample: str, *, tell: Reporter | None = None, steps: int | None = None) -> Base:
    """The warmed base of a sample, from the cache or made now.

    Args:
        steps: fewer steps than the recorded recipe (for trials); cached under its own name.

    Raises:
        AnytuneError: the sample has no warming recipe, or its text cannot be fetched.
    """
    if sample not in WARMINGS:
        raise unknown("warming", sample, WARMINGS)
    recipe = WARMINGS[sample] if steps is None else Warming(**{**vars(WARMINGS[sample]), "steps": steps})
    final = warmed_folder(sample, recipe)
    if not final.exists():
        store = Store(cache_folder() / "warming")
        base = load_base(f"sample:{sample}", resolve_sample=sample_folder)
        [entry] = pretrain(
            base,
            [general_text()],
            store=store,
            method={"name": "sequential", "head_rate": recipe.head_rate},
            training=recipe.training(),
            seed=recipe.seed,
            names=[f"{sample}-warmed"],
            reporter=tell,
        )
        with staged_folder(final) as folder:
            shutil.copytree(entry.folder, folder, dirs_exist_ok=True)
        shutil.rmtree(store.folder, ignore_errors=True)
    return load_base(final, name=sample)


def write_bf16(base: Base, out: Path, name: str) -> Path:
    """Write a warmed base with bf16 weights and a manifest of its own, as the package carries it."""
    model, _ = base.pretraining_model(0)
    assert base.manifest is not None
    with staged_folder(out) as folder:
        save_base(model, base, folder, base.held_over(), dtype=torch.bfloat16)
        prints = fingerprint_folder(folder, cache=False)
        identity = BaseIdentity(
            backbone=prints.backbone,
            config=prints.config,
            vocabulary=prints.vocabulary,
            name=name,
            ref=f"sample:{name}",
        )
        stored, _ = load_base(folder).pretraining_model(0)
        manifest = base.manifest.model_copy(
            update={
                "name": name, "base": identity, "probe": make_probe(stored, base.config.vocab_size, 0), "files": {},
                "parents": [], "id": "", "run": "", "notes": list(NOTES), "recipe": {"command": COMMAND},
                "domains": [DomainRecord(**domain.model_dump()) for domain in base.manifest.domains],
            }
        )  # fmt: skip
        write_manifest(folder, manifest)
    return out


def main() -> None:
    """Command line of the recorded recipe."""
    parser = argparse.ArgumentParser(description="warm a sample for masked language modelling")
    parser.add_argument("sample", choices=sorted(WARMINGS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bf16", action="store_true", help="store bfloat16 weights, as the package does")
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    base = warmed(options.sample, tell=reporter(), steps=options.steps)
    if options.bf16:
        write_bf16(base, options.out, options.sample.removesuffix("-splade"))
    else:
        shutil.copytree(base.folder, options.out)
    print(options.out, read_manifest(options.out).scores)


if __name__ == "__main__":
    main()
