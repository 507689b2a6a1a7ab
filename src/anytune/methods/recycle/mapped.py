"""Mapped reuse of a LoRA: carried over to a base of another depth, width or number of heads, then tuned briefly.

In plain words: nothing of two bases of different shape can be added up. But they share words, some of their blocks
give similar states, some of their heads look at similar things. From that come maps between the two, and the LoRA's
factors are sent through them. What arrives is a start, not a result: without the tuning after it, it gives close to
nothing over the bare new base, by the method's own published table.

Formula: R and T by least squares over the embeddings of shared words: E_old ~ E_new R^T, E_new ~ E_old T. New block j
takes the old block i that dynamic programming over linear CKA of the blocks' states gives it (in order, each once).
Heads are paired by the cosine of what they compute (assignment problem), with a least-squares map in each pair;
neurons one to one (``neurons: paired``) or by least squares (``mixed``). With u the map of a part's units: maps that
make units get A R, u B; maps that read them A u', T^T B; u' the map back. A new block, head or neuron without a
partner gets B = 0 there.

Paper: Li et al. 2025 (LoRASuite).
Costs: two passes over ``texts`` training rows where the depth differs; least squares in the width (its cube), the
pairing of neurons (between the square and the cube of their number, for each block: minutes for thousands of them,
then take ``mixed``). Then as tuning a LoRA.
When not to use it: where ``initialize`` is possible (equal shapes). Instead of tuning: it needs some rows and steps,
and is sensitive to the learning rate. Where no words are shared, or the bases are of different kinds: ``distill``.
Choices of ours: the maps of hidden states come from the embeddings and serve all blocks, as in the paper; each old
block is used at most once; heads are compared by query^T key and out value together. The head (the classifier) is
copied where all of its shapes agree, else it starts afresh. LoRAs with ranks of their own for some layers are refused;
copied modules and trained tokens beside the factors stay behind, which a note says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from anytune import compat
from anytune.data.splits import permutation
from anytune.errors import MethodError
from anytune.methods.of_stream import answering, on_device
from anytune.methods.outdated import outdated_of
from anytune.methods.protocol import Method, Run
from anytune.methods.registry import register
from anytune.models.adapters import HARMLESS_STARTS, AdapterDelta
from anytune.models.anatomy import ANATOMIES
from anytune.models.mapping import (
    Factors,
    HiddenMap,
    Neurons,
    align,
    hidden_map,
    map_lora,
    resemblance,
    shared_words,
)
from anytune.models.peft_models import make_lora
from anytune.models.permutation import Symmetry, symmetries

OTHER_WAY = "--method distill   (learns from the old model, whatever its shape)"
#: settings of a LoRA that name layers one by one, which have other numbers in the new base
BY_LAYER = ("rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern", "layer_replication")


def word_states(base: Any, words: Tensor) -> Tensor:
    """What the first block reads of a word, before positions and norms: its embedding in the hidden width [n, width].

    Kinds with narrower embeddings (ELECTRA) map them up.
    """
    tensors = base.tensors()
    rows: Tensor = tensors[base.anatomy.word_embeddings][words].double()
    if "embeddings_project.weight" in tensors:
        rows = rows @ tensors["embeddings_project.weight"].double().T + tensors["embeddings_project.bias"].double()
    return rows


@torch.no_grad()
def block_states(model: Any, anatomy: Any, batches: list[dict[str, Any]]) -> list[Tensor]:
    """What each block gave, a text's mean over its tokens: ``[texts, width]`` for each block, in fp64."""
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    found: list[list[Tensor]] = []
    with answering(model):
        for batch in batches:
            given = {name: batch[name] for name in inputs if name in batch}
            states = anatomy.backbone(model)(**given, output_hidden_states=True).hidden_states[1:]
            mask = batch["attention_mask"].unsqueeze(-1).double()
            found.append([(state.double() * mask).sum(dim=1).cpu() / mask.sum(dim=1).cpu() for state in states])
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


@register
@dataclass(kw_only=True)
class Mapped(Method):
    """A LoRA whose factors are sent through maps between two bases of different shape."""

    texts: Annotated[
        int, Field(ge=4, le=65536, description="training rows whose states say which block resembles which")
    ] = 128
    neurons: Annotated[
        Neurons, Field(description="paired: each neuron has at most one partner; mixed: a least-squares map")
    ] = "paired"

    neutral = None
    neutral_reason = "the start is the method; with all-zero factors it is fresh tuning of a LoRA"
    begins: ClassVar[Literal["moved", "made", "fresh"]] = "made"
    kinds: ClassVar[tuple[str, ...] | None] = tuple(kind for kind, row in ANATOMIES.items() if row.decoder is None)
    kinds_reason = "blocks are aligned in one stack, and an encoder-decoder has two"
    suggests = {"learning_rate": 1e-3}  # noqa: RUF012 - as lora

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Make a LoRA of the old one's size on the new base, its factors those that the maps give.

        Raises:
            MethodError: the outdated weights are no LoRA, or one with settings by layer; the bases are of different
                kinds, or share too few words.
        """
        outdated = outdated_of(run, self.name)
        old, new, adapter = outdated.old_base, outdated.new_base, outdated.adapter
        config = _checked(adapter, outdated.kind, old, new)
        hidden, words = self._hidden(old, new)
        before, after = old.tensors(), new.tensors()
        units_old, units_new = (
            symmetries({name: tensors.shape(name) for name in tensors}, base.anatomy, base.config)
            for base, tensors in ((old, before), (new, after))
        )
        pairs = self._pairs(model, run, units_old, units_new)
        factors = factors_of(adapter, old.anatomy)
        made = map_lora(factors, before, after, units_old, units_new, new.anatomy.blocks, pairs, hidden, self.neurons)
        if not made:
            raise MethodError(
                "this LoRA has no factor on a map of the blocks", why="There is nothing that could be carried.",
                fix=OTHER_WAY,
            )  # fmt: skip
        kept = self._head(model, outdated.head)
        wrapped = make_lora(
            model, head_names=run.head_names, r=config["r"], alpha=config["lora_alpha"],
            dropout=config.get("lora_dropout") or 0.0, targets=config["target_modules"], seed=run.seed,
            use_rslora=bool(config.get("use_rslora")),
        )  # fmt: skip
        written = put_factors(wrapped, made, new.anatomy)
        without = sum(pair < 0 for pair in pairs)
        # copies of the old base's modules, trained tokens: what is neither a factor nor the head has no map
        left = len(adapter.tensors) - 2 * len(factors) - len(outdated.head)
        self._said = (
            f"mapped: {len(written)} of {len(factors)} maps of the old LoRA carried by {words:,} shared words, "
            f"{without} of {len(pairs)} blocks without a partner; the head {'copied' if kept else 'starts afresh'}"
            f"{f'; {left} other tensors of it stay behind' if left else ''}"
        )
        return wrapped

    def _hidden(self, old: Any, new: Any) -> tuple[HiddenMap, int]:
        """The maps of hidden states, and by how many words they were found.

        Raises:
            MethodError: the bases share fewer words than a hidden state has entries.
        """
        mine, theirs = shared_words(old.tokenizer().get_vocab(), new.tokenizer().get_vocab())
        sizes = [base.tensors().shape(base.anatomy.word_embeddings)[0] for base in (old, new)]
        held = (mine < sizes[0]) & (theirs < sizes[1])  # a tokenizer may have more words than its model
        mine, theirs = mine[held], theirs[held]
        width = max(int(base.config.hidden_size) for base in (old, new))
        if len(mine) < width:
            raise MethodError(
                f"{old.name} and {new.name} share {len(mine)} words, and hidden states have {width} entries",
                why="A map between them cannot be fitted from fewer words.",
                fix=OTHER_WAY,
            )
        return hidden_map(word_states(old, mine), word_states(new, theirs)), len(mine)

    def _pairs(self, model: nn.Module, run: Run, units_old: list[Symmetry], units_new: list[Symmetry]) -> list[int]:
        """For each new block its old one. With equal depth that is block i for block i, and no text is read."""
        depths = [sum(one.kind == "neurons" for one in units) for units in (units_old, units_new)]
        if depths[0] == depths[1]:
            return list(range(depths[1]))
        outdated: Any = run.outdated
        encoded = run.needed("batches", self).encoded
        rows = permutation(len(encoded), "texts", run.seed)[: self.texts].tolist()
        device, teacher = run.device or torch.device("cpu"), outdated.make_teacher()
        teacher.disable_adapter_layers()  # base against base: what tuning did is no matter of depth
        before = next(model.parameters()).device
        states = []
        for one, anatomy, of in (
            (teacher, outdated.old_base.anatomy, outdated.teacher_rows(encoded)), (model, run.anatomy, encoded),
        ):  # fmt: skip
            batches = [on_device(of.batch(rows[start : start + 32]), device) for start in range(0, len(rows), 32)]
            states.append(block_states(one.to(device), anatomy, batches))
        model.to(before)
        return align(resemblance(*states))

    def _head(self, model: nn.Module, head: dict[str, Tensor]) -> bool:
        """Copy the head if all of it fits; whether it did."""
        state = model.state_dict()
        if not head or any(name not in state or state[name].shape != tensor.shape for name, tensor in head.items()):
            return False
        with torch.no_grad():
            for name, tensor in head.items():
                state[name].copy_(tensor)
        return True

    def notes(self) -> list[str]:
        """What was carried."""
        return [self._said]


def _checked(adapter: AdapterDelta | None, kind: str, old: Any, new: Any) -> dict[str, Any]:
    """The settings of a LoRA that can be mapped.

    Raises:
        MethodError: it cannot; why, and what can be done.
    """
    if adapter is None or kind != "lora":
        raise MethodError(
            f"mapped carries LoRAs, and these weights are of the kind '{kind}'",
            why="Only factors can be sent through a map from each side.",
            fix=OTHER_WAY,
        )
    start = adapter.config.get("init_lora_weights", True)
    reason = "DoRA's magnitudes are of its base's own weights" if adapter.config.get("use_dora") else ""
    if start not in HARMLESS_STARTS:
        reason = f"it was started by '{start}', so that its factors hold a part of its base"
    layers = [name for name in BY_LAYER if adapter.config.get(name)]
    if reason or layers:
        raise MethodError(
            f"this LoRA cannot be mapped: {reason or f'it has {layers[0]}, settings for single layers'}",
            why="The new base has other layers." if layers else "Its factors only mean something on their own base.",
            fix=OTHER_WAY,
        )
    if old.anatomy.model_type != new.anatomy.model_type or new.anatomy.encoder_decoder:
        raise MethodError(
            f"{old.name} is of kind {old.anatomy.model_type}, {new.name} of kind {new.anatomy.model_type}",
            why="Parts are matched by what they are called, in one stack of blocks.",
            fix=OTHER_WAY,
        )
    return adapter.config


def factors_of(adapter: AdapterDelta, anatomy: Any) -> dict[str, Factors]:
    """Canonical module name -> factors of a LoRA."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in adapter.tensors.items():
        module, _, factor = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        if factor in ("lora_A", "lora_B"):
            found.setdefault(anatomy.canonical(module), {})[factor] = tensor
    return {module: Factors(both["lora_A"], both["lora_B"]) for module, both in found.items()}


def put_factors(peft_model: Any, factors: dict[str, Factors], anatomy: Any) -> list[str]:
    """Write factors into a LoRA on the new base; returns the modules that have them. Others stay as they were made."""
    state = {name: tensor.detach().clone() for name, tensor in compat.adapter_state(peft_model).items()}
    written = []
    for name in list(state):
        module, _, factor = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        given = factors.get(anatomy.canonical(module))
        if given is not None and factor in ("lora_A", "lora_B"):
            state[name] = (given.a if factor == "lora_A" else given.b).to(state[name])
            written.append(anatomy.canonical(module))
    compat.set_adapter_state(peft_model, state)
    return sorted(set(written))
