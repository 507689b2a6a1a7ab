"""Held-out loss of each base on each domain, before and after its pre-training: adaptation and forgetting."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from anytune.evaluate.runs import Artefact
from anytune.evaluate.scores import number
from anytune.manifests import Manifest

PREFIX = "heldout:"


@dataclass(frozen=True)
class HeldOut:
    """Loss (nats per predicted token) of ``base`` on a domain's held-out text.

    ``trained`` tells whether this very base was pre-trained on the domain: a fall there is adaptation, a rise
    elsewhere is forgetting.
    """

    base: str
    base_id: str
    domain: str
    before: float | None
    after: float | None
    trained: bool

    @property
    def change(self) -> float | None:
        """``after - before``, None where one of them is missing."""
        return None if self.before is None or self.after is None else self.after - self.before


def held_out(artefacts: Iterable[Artefact]) -> list[HeldOut]:
    """One entry per base and domain with a held-out score, in the order in which the bases were made.

    After = ``scores["heldout:DOMAIN"]["loss"]``. Before = the first of: ``scores["before:heldout:DOMAIN"]["loss"]``,
    ``scores["heldout:DOMAIN"]["loss_before"]``, a curve point of split ``heldout:DOMAIN`` at step 0, the parent
    base's own after.
    """
    bases = [artefact.manifest for artefact in artefacts if artefact.manifest.kind == "base"]
    found = []
    for manifest in sorted(bases, key=lambda base: (base.created, base.name)):
        trained = {domain.name for domain in manifest.domains}
        domains = sorted(split.removeprefix(PREFIX) for split in manifest.scores if split.startswith(PREFIX))
        for domain in domains:
            found.append(
                HeldOut(
                    base=manifest.name,
                    base_id=manifest.id,
                    domain=domain,
                    before=_before(manifest, domain, bases),
                    after=_loss(manifest, PREFIX + domain),
                    trained=domain in trained,
                )
            )
    return found


def parent_base(manifest: Manifest, bases: Iterable[Manifest]) -> Manifest | None:
    """The base this one was pre-trained from, if it is among ``bases``: by id or backbone, else by its name."""
    parents = [parent for parent in manifest.parents if parent.role == "base"]
    others = [base for base in bases if base is not manifest]
    for parent in parents:
        for base in others:
            if parent.id and parent.id in {base.id, base.base.backbone}:
                return base
    for parent in parents:
        for base in others:
            if parent.name and parent.name == base.name:
                return base
    return None


def _loss(manifest: Manifest, split: str, key: str = "loss") -> float | None:
    return number((manifest.scores.get(split) or {}).get(key))


def _before(manifest: Manifest, domain: str, bases: list[Manifest]) -> float | None:
    split = PREFIX + domain
    start = next((point for point in manifest.curve if point.split == split and point.step == 0), None)
    at_start = None if start is None else number(start.loss if start.loss is not None else start.scores.get("loss"))
    parent = parent_base(manifest, bases)
    candidates = (
        _loss(manifest, f"before:{split}"),
        _loss(manifest, split, "loss_before"),
        at_start,
        _loss(parent, split) if parent else None,
    )
    return next((value for value in candidates if value is not None), None)
