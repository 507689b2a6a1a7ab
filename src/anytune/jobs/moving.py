"""How a stored delta lands on another base: moved as it is, or the reasons why it cannot be.

Nothing here trains. What is looked at first is whether the two bases speak of the same words and hold the same
tensors; then a full difference is carried bit for bit, and an adapter as it is, with its copies made differences.
"""

from __future__ import annotations

from anytune.errors import DeltaError, WrongBaseError
from anytune.jobs.tuning import AnyDelta, load_delta
from anytune.models.adapters import INSIDE, AdapterDelta, head_modules
from anytune.models.base import Base
from anytune.models.delta import FullDelta
from anytune.models.layout import is_hyperprompt
from anytune.models.prompt_files import BEFORE
from anytune.models.soft_prompt_config import is_soft_prompt
from anytune.store import Entry

#: How many reasons an error lists.
LISTED = 5


def own_delta(entry: Entry, old: Base) -> AnyDelta:
    """The stored weights on their own base; an adapter with its whole head.

    Raises:
        DeltaError: they are damaged, or only the run's scores were kept.
    """
    delta = load_delta(entry)
    return complete_head(delta, entry, old) if isinstance(delta, AdapterDelta) else delta


def moved(entry: Entry, old: Base, new: Base, own: AnyDelta | None = None) -> AnyDelta:
    """The delta as it lands on the new base, without training.

    A full difference is carried bit for bit (its exact corrections only onto the same base); an adapter is carried as
    it is, except that absolute copies of modules the base holds become differences and back.

    Args:
        own: what ``own_delta`` gave, if it was read already.

    Raises:
        WrongBaseError: the words of the bases have other numbers.
        DeltaError: only its scores were kept, or the bases' tensors do not fit (a reason for each).
    """
    delta = own_delta(entry, old) if own is None else own
    check_vocabulary(old, new)
    check_shapes(old, new)
    if isinstance(delta, FullDelta):
        return delta if delta.base.backbone == new.identity.backbone else delta.rebased(new.identity)
    # a generating model's head is the base's own vocabulary head: a copy of it moves as a difference too
    head = entry.manifest.task is not None and entry.manifest.task.kind == "generation"
    before, after = (base.tensors(pretraining_head=head) for base in (old, new))
    return delta.rebase(before, after, new.anatomy)


def check_shapes(old: Base, new: Base) -> None:
    """Both bases hold the same tensors in the same shapes, the rows of the word embeddings apart.

    Raises:
        DeltaError: they do not; a reason for each of the first tensors, and how many there are.
    """
    before, after, words = old.tensors(), new.tensors(), old.anatomy.word_embeddings
    if old.anatomy.model_type != new.anatomy.model_type:
        raise DeltaError(
            f"{old.name} is a {old.anatomy.model_type}, {new.name} a {new.anatomy.model_type}",
            why="Their tensors have other names and other tasks.",
        )
    optional = {name for name in {*before, *after} if is_hyperprompt(name) or new.anatomy.may_be_left_out(name)}
    reasons = [f"{name}: {new.name} has none" for name in before if name not in after and name not in optional]
    reasons += [f"{name}: {old.name} has none" for name in after if name not in before and name not in optional]
    for name in before:
        if name in after:
            cut = 1 if name == words else 0
            one, other = before.shape(name)[cut:], after.shape(name)[cut:]
            if one != other:
                reasons.append(f"{name}: {list(before.shape(name))} became {list(after.shape(name))}")
    if reasons:
        more = f"; and {len(reasons) - LISTED} more" if len(reasons) > LISTED else ""
        raise DeltaError(
            f"{new.name} has another shape than {old.name}, {len(reasons)} tensors: "
            f"{'; '.join(reasons[:LISTED])}{more}",
            why="A difference can only be added to a tensor of the same name and shape.",
        )


def check_vocabulary(old: Base, new: Base) -> None:
    """Every word of the old base must have the same number in the new one; words may have been added.

    Shapes would not tell: with the same number of words, each tuned embedding would land on another word.

    Raises:
        WrongBaseError: some words have another number, or none.
    """
    if old.identity.vocabulary == new.identity.vocabulary:
        return
    before, after = old.tokenizer().get_vocab(), new.tokenizer().get_vocab()
    changed = sorted(word for word, number in before.items() if after.get(word) != number)
    if changed:
        word = changed[0]
        raise WrongBaseError(
            f"the vocabularies of {old.name} and {new.name} differ in {len(changed)} of {len(before)} words: "
            f"{word!r} is number {before[word]} in one and {after.get(word, 'none')} in the other",
            why="The tuned weights were learned for other words.",
            fix=f"an upgrade of {old.name} that keeps its vocabulary, or tune the task afresh on {new.name}",
        )


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
