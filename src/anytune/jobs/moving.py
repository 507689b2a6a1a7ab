"""How a stored delta lands on another base: moved as it is, or the reasons why it cannot be.

Nothing here trains. What is looked at first is whether the two bases hold the same tensors and mean the same by them;
then a full difference is carried bit for bit and an adapter as it is, each word's row to where the word went, and
copies of the old base's weights as differences.
"""

from __future__ import annotations

from collections.abc import Sequence

from anytune.errors import AnytuneError
from anytune.jobs.deltas import AnyDelta, load_delta
from anytune.models.adapters import INSIDE, AdapterDelta
from anytune.models.base import Base
from anytune.models.bottleneck import is_bottleneck
from anytune.models.delta import FullDelta
from anytune.models.fit import reasons_against, refuse
from anytune.models.peft_models import head_modules
from anytune.models.plain_lora import as_plain_lora, is_convertible
from anytune.models.prompt_files import BEFORE
from anytune.models.relabel import (
    CLASSES,
    head_shapes,
    output_names,
    relabelled,
    renamed_head,
    with_renamed_head,
)
from anytune.models.soft_prompt_config import is_soft_prompt
from anytune.models.vocabulary import changed_tables, changed_words
from anytune.store import Entry


def own_delta(entry: Entry, old: Base, order: Sequence[int] | None = None) -> AnyDelta:
    """The stored weights on their own base; an adapter with its whole head.

    Args:
        order: which row of its head each label of the task takes (``relabel.label_order``); None leaves the head.

    Raises:
        DeltaError: they are damaged, or only the run's scores were kept.
    """
    loaded = load_delta(entry)
    delta = complete_head(loaded, entry, old) if isinstance(loaded, AdapterDelta) else loaded
    return delta if order is None else relabelled(delta, order, output_names(old, _kind(entry)))


def moved(entry: Entry, old: Base, new: Base, own: AnyDelta | None = None) -> AnyDelta:
    """The delta as it lands on the new base, without training.

    A full difference is carried bit for bit (its exact corrections only onto the same base); an adapter is carried as
    it is, except that absolute copies of modules the base holds become differences and back, that DoRA's magnitudes
    follow the lengths of their rows, and that PiSSA and OLoRA become plain LoRA. Where words or positions changed,
    each row goes where its word went, and new rows are the new base's.

    Args:
        own: what ``own_delta`` gave, if it was read already.

    Raises:
        BaseError: a base has no tokenizer although the vocabularies differ.
        WrongBaseError: the bases share less than half of their words.
        DeltaError: only its scores were kept, or the bases do not fit (a reason for each setting and tensor).
    """
    delta = own_delta(entry, old) if own is None else own
    if old.anatomy.model_type != new.anatomy.model_type:
        refuse(old, new, reasons_against(old, new, {}))
    tables = changed_tables(old, new, changed_words(old, new))
    # a generating model's head is the base's own vocabulary head: a copy of it moves as a difference too
    head = _kind(entry) == "generation"
    before, after = (base.tensors(pretraining_head=head) for base in (old, new))
    if isinstance(delta, FullDelta):
        refuse(old, new, reasons_against(old, new, tables))
        if delta.base.backbone == new.identity.backbone and not tables:
            return delta
        whole = delta.without_lost_parts(before, after)
        return _with_head_for(new, whole.rebased(new.identity, tables), entry)
    if is_convertible(delta) and old.identity.backbone != new.identity.backbone:
        delta = as_plain_lora(delta, old, _kind(entry), entry.manifest.label_names)
    copies = delta.absolute_copies(before, old.anatomy).values()
    touched = {*copies, *(f"{module}.weight" for module in delta.acts_on(old.anatomy).values())}
    refuse(old, new, reasons_against(old, new, tables, touched))
    landed = delta.rebase(before, after, new.anatomy, tables)
    return _with_head_for(new, _with_lost_pooler(landed, old, new, _kind(entry)), entry)


def moving_notes(old: Base, new: Base, order: Sequence[int] | None, own: AnyDelta | None = None) -> list[str]:
    """What a manifest should say about how the bases, the labels or the form of the weights (``own``) differ."""
    notes = []
    if isinstance(own, AdapterDelta) and is_convertible(own) and old.identity.backbone != new.identity.backbone:
        start, rank = own.config["init_lora_weights"], own.config.get("r", 8)
        notes.append(f"started by '{start}' at rank {rank}; what it added to its base is a LoRA of rank {2 * rank}")
    try:
        words = changed_words(old, new)
    except AnytuneError:
        words = None  # nothing can be carried word by word, and a method that carries says so itself
    if words is not None and words.known:
        notes.append(words.text)
    if order is not None:
        notes.append(f"the labels stand in another order: the head's rows are {', '.join(map(str, order))} of before")
    return notes


def _kind(entry: Entry) -> str:
    return entry.manifest.task.kind if entry.manifest.task else "classification"


def _with_head_for(new: Base, delta: AnyDelta, entry: Entry) -> AnyDelta:
    """The delta with its head under the names that the task models of the new base have."""
    kind = _kind(entry)
    if kind not in CLASSES:
        return delta
    held = delta.head if isinstance(delta, FullDelta) else delta.head(new.tensors(), new.anatomy)
    labels = len(entry.manifest.label_names) or 1
    wanted, own = head_shapes(new, kind, labels), new.tensors()
    strange = {name: tuple(one.shape) for name, one in held.items() if name not in wanted and not is_bottleneck(name)}
    if not strange:
        return delta
    free = {
        name: shape
        for name, shape in wanted.items()
        if name not in held and not new.anatomy.is_ignored(name) and new.anatomy.canonical(name) not in own
    }
    return with_renamed_head(delta, renamed_head(strange, free))


def _with_lost_pooler(adapter: AdapterDelta, old: Base, new: Base, kind: str) -> AdapterDelta:
    """An adapter for a base that lacks a pooler which its own base held: that pooler goes along with the head."""
    before, after = old.tensors(), new.tensors()
    lost = [name for name in before if name not in after and old.anatomy.is_pooler(name)]
    wanted = head_shapes(new, kind, 2) if lost and kind in CLASSES else {}
    held = adapter.head(after, new.anatomy)
    names = {new.anatomy.in_model(name): name for name in lost}
    missing = {full: bare for full, bare in names.items() if full in wanted and full not in held}
    if not missing:
        return adapter
    prefix = BEFORE if is_soft_prompt(adapter.config) else INSIDE
    tensors = {f"{prefix}{full}": before[bare].float() for full, bare in missing.items()}
    module = new.anatomy.in_model(str(new.anatomy.pooler))
    saved = [*(adapter.config.get("modules_to_save") or []), module]
    return AdapterDelta({**adapter.config, "modules_to_save": saved}, {**adapter.tensors, **tensors})


def complete_head(adapter: AdapterDelta, entry: Entry, base: Base) -> AdapterDelta:
    """The adapter with its whole head.

    PEFT alone saves no freshly made pooler, so an adapter made elsewhere may lack one. It is given the values that
    ``load`` answers with (head seed 0); from here on they are trained, saved and moved with it.
    """
    kind = entry.manifest.task.kind if entry.manifest.task else "classification"
    model, head_names = base.task_model(kind, entry.manifest.label_names, seed=0)
    missing = adapter.saved_head_missing(head_names)
    if not missing:
        return adapter
    state = model.state_dict()
    before = BEFORE if is_soft_prompt(adapter.config) else INSIDE
    tensors = {f"{before}{name}": state[name].clone() for name in missing}
    saved = [*(adapter.config.get("modules_to_save") or []), *head_modules(model, missing)]
    return AdapterDelta({**adapter.config, "modules_to_save": saved}, {**adapter.tensors, **tensors})
