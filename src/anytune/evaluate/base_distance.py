"""How far an upgrade moved a base: weight by weight, word by word, setting by setting.

The further a base moved, the less of what was tuned on the old one can be expected to work on the new one. Distances
are taken over the backbone alone (heads of pre-training are of no use to a tuned model), in fp64:

    relative = ||new - old|| / ||old||      rms = ||new - old|| / sqrt(n)      cosine = <new, old> / (||new|| ||old||)

Words that both vocabularies hold are compared with each other, whatever number each has.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from anytune.errors import BaseError
from anytune.models.anatomy import Anatomy
from anytune.models.base import Base

#: Numbers handled at a time: bounds the fp64 copies whatever the size of a tensor.
CHUNK = 1 << 22
#: Settings of a config that say where it came from, not what it computes.
_NO_SHAPE = frozenset({
    "_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures", "use_cache",
    "id2label", "label2id", "_attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset",
    "problem_type", "gradient_checkpointing", "output_attentions", "output_hidden_states", "return_dict",
    "chunk_size_feed_forward", "_commit_hash", "_experts_implementation_internal",
})  # fmt: skip


@dataclass
class Sums:
    """Running sums over pairs of numbers: how many, ||old||^2, ||new||^2, <old, new>, ||new - old||^2."""

    numbers: int = 0
    old: float = 0.0
    new: float = 0.0
    product: float = 0.0
    difference: float = 0.0

    def add(self, old: Tensor, new: Tensor) -> None:
        """Count two tensors of one shape in."""
        self.numbers += old.numel()
        pieces = zip(old.reshape(-1).split(CHUNK), new.reshape(-1).split(CHUNK), strict=True)
        for before, after in ((left.double(), right.double()) for left, right in pieces):
            self.old += float(before @ before)
            self.new += float(after @ after)
            self.product += float(before @ after)
            change = after - before
            self.difference += float(change @ change)

    def plus(self, other: Sums) -> Sums:
        """Both together."""
        return Sums(*(left + right for left, right in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Distance:
    """How far ``numbers`` weights moved; ``length`` is ||old||."""

    numbers: int
    length: float
    l2: float
    relative: float
    rms: float
    cosine: float

    @classmethod
    def of(cls, sums: Sums) -> Distance:
        """From sums; weights of nothing but zeros that stayed so are at distance 0 and cosine 1."""
        l2, length = math.sqrt(sums.difference), math.sqrt(sums.old)
        relative = l2 / length if length else (math.inf if l2 else 0.0)
        lengths = math.sqrt(sums.old * sums.new)
        # equal weights are at cosine 1, which rounding would miss
        cosine = sums.product / lengths if lengths and l2 else (1.0 if not l2 else 0.0)
        return cls(sums.numbers, length, l2, relative, l2 / math.sqrt(max(1, sums.numbers)), cosine)


@dataclass(frozen=True)
class Vocabularies:
    """Words of two tokenizers: how many each has, how many both have, and how many of these have another number."""

    old: int
    new: int
    shared: int
    renumbered: int

    @property
    def same(self) -> bool:
        """Whether every word has the same number in both."""
        return self.old == self.new == self.shared and not self.renumbered


@dataclass(frozen=True)
class BaseDistance:
    """Everything that differs between two versions of a base.

    Attributes:
        whole: over all backbone weights that can be compared.
        modules: by part: ``embeddings``, ``layer 0 attention`` ..., in the order of the model.
        vocabulary: None where a tokenizer cannot be read.
        config: setting -> (old, new) of every setting of the model's shape that differs.
        apart: tensors that cannot be compared, with the reason for each.
    """

    whole: Distance
    modules: dict[str, Distance]
    vocabulary: Vocabularies | None = None
    config: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    apart: tuple[str, ...] = ()

    @property
    def same_shape(self) -> bool:
        """Whether every tensor has its partner of the same shape."""
        return not self.apart

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **vars(self.whole),
            "modules": {name: vars(one) for name, one in self.modules.items()},
            "vocabulary": vars(self.vocabulary) | {"same": self.vocabulary.same} if self.vocabulary else None,
            "config": {name: list(pair) for name, pair in self.config.items()},
            "apart": list(self.apart),
        }


def base_distance(old: Base, new: Base, *, words: bool = True) -> BaseDistance:
    """Compare two versions of a base. Reads each tensor once and holds two at a time.

    Args:
        words: compare the tokenizers too, and embeddings word by word where words have moved.
    """
    found = _vocabularies(old, new) if words else None
    rows = None if found is None or found[0].same else found[1]
    measured = weights_distance(old.tensors(), new.tensors(), old.anatomy, rows=rows)
    return BaseDistance(
        measured.whole, measured.modules, found[0] if found else None, config_difference(old.config, new.config),
        measured.apart,
    )  # fmt: skip


def weights_distance(
    old: Mapping[str, Tensor],
    new: Mapping[str, Tensor],
    anatomy: Anatomy,
    *,
    rows: tuple[Tensor, Tensor] | None = None,
) -> BaseDistance:
    """Compare tensors by canonical name: the part of ``base_distance`` that needs no tokenizer.

    Args:
        rows: (rows in the old table, rows in the new one) of the words that both have, ``[shared]`` each; None
            compares word embeddings row by row.
    """
    by_module: dict[str, Sums] = {}
    apart = []
    # a mapping that reads a file gives a shape without reading the tensor
    for name in old:
        if anatomy.is_ignored(name) or not anatomy.is_backbone(name):
            continue
        if name not in new:
            apart.append(f"{name}: the new base has none")
            continue
        before, after = old[name], new[name]
        if not (before.is_floating_point() and after.is_floating_point()):
            continue
        if name == anatomy.word_embeddings and rows is not None and before.shape[1:] == after.shape[1:]:
            if before.shape != after.shape:
                apart.append(f"{name}: {list(before.shape)} and {list(after.shape)}, compared word by word")
            held = (rows[0] < len(before)) & (rows[1] < len(after))  # a tokenizer may have more words than its model
            before, after = before[rows[0][held]], after[rows[1][held]]
        if before.shape != after.shape:
            apart.append(f"{name}: {list(before.shape)} and {list(after.shape)}")
            continue
        by_module.setdefault(module_of(name, anatomy), Sums()).add(before, after)
    apart += [
        f"{name}: the old base has none"
        for name in new
        if name not in old and anatomy.is_backbone(name) and not anatomy.is_ignored(name)
    ]
    total = Sums()
    for sums in by_module.values():
        total = total.plus(sums)
    ordered = sorted(by_module, key=_place)
    return BaseDistance(
        Distance.of(total), {name: Distance.of(by_module[name]) for name in ordered}, apart=tuple(apart)
    )


def module_of(name: str, anatomy: Anatomy) -> str:
    """The part of a model that a backbone tensor belongs to: ``embeddings``, ``layer 3 attention``, ``pooler`` ...

    The decoder's layers of an encoder-decoder are ``decoder layer 3 attention`` and so on.
    """
    bare = anatomy.canonical(name)
    for number, stack in enumerate(anatomy.stacks):
        if not bare.startswith(f"{stack.blocks}."):
            continue
        layer, inside = bare.removeprefix(f"{stack.blocks}.").split(".", 1)
        where = f"{'decoder ' if number else ''}layer {layer}"
        kinds = {"norms": stack.norms, "attention": stack.attention, "feed-forward": stack.feed_forward}
        for kind, parts in kinds.items():  # norms first: they may sit inside the others
            if any(inside == part or inside.startswith(f"{part}.") for part in parts):
                return f"{where} {kind}"
        return where
    if anatomy.depth(bare) == 0:
        return "embeddings"
    return bare.split(".", 1)[0]


def _place(module: str) -> tuple[int, int, str]:
    """Embeddings first, then layer by layer, the rest at the end."""
    words = module.split()
    decoder = words[0] == "decoder"
    if "layer" in words[:2]:
        return (2 if decoder else 1, int(words[words.index("layer") + 1]), module)
    return (0 if module == "embeddings" else 3, 0, module)


def norm_of(difference: Mapping[str, Tensor]) -> float:
    """The length of a difference of many tensors: ``sqrt(sum of squares)``, in fp64."""
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in difference.values()))


def config_difference(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Settings of two configs that differ and say something about the model."""
    before, after = old.to_dict(), new.to_dict()
    names = [name for name in dict.fromkeys((*before, *after)) if name not in _NO_SHAPE]
    return {
        name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)
    }  # fmt: skip


def vocabularies(old: Mapping[str, int], new: Mapping[str, int]) -> tuple[Vocabularies, tuple[Tensor, Tensor]]:
    """Compare two vocabularies (word -> number); also the numbers of the shared words in each, ``[shared]`` int64."""
    shared = sorted(old.keys() & new.keys(), key=lambda word: old[word])
    rows = (_numbers(old[word] for word in shared), _numbers(new[word] for word in shared))
    return Vocabularies(len(old), len(new), len(shared), int((rows[0] != rows[1]).sum())), rows


def _numbers(values: Iterable[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int64)


def _vocabularies(old: Base, new: Base) -> tuple[Vocabularies, tuple[Tensor, Tensor]] | None:
    try:
        return vocabularies(old.tokenizer().get_vocab(), new.tokenizer().get_vocab())
    except BaseError:
        return None  # a base without a tokenizer can be compared all the same
