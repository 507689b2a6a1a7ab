"""Outdated weights as recycle methods are given them: read, moved and turned into a teacher when asked for.

``Moving`` belongs to a command and is shared by its runs; ``OutdatedInRun`` is what one run's methods see of it
(:class:`anytune.methods.outdated.OutdatedWeights`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from anytune.data.batches import Encoded, ExampleBatches, encode_task
from anytune.data.tasks import Example, Task
from anytune.engine.runtime import Runtime, derive_seed
from anytune.engine.settings import TrainingSettings
from anytune.errors import AnytuneError, DataError, DeltaError, MethodError
from anytune.jobs.deltas import AnyDelta, install_delta
from anytune.jobs.moving import moved, moving_notes, own_delta
from anytune.models.adapters import AdapterDelta
from anytune.models.base import Base
from anytune.models.bottleneck import put_bottlenecks
from anytune.models.delta import FullDelta
from anytune.models.difference import subtract
from anytune.models.peft_models import merge
from anytune.models.soft_prompt_config import is_soft_prompt
from anytune.store import Entry

#: A difference is sparse where at most this share of the entries of the tensors it holds is not zero.
SPARSE = 0.5
OTHER_WAYS = "--method distill   (learns from the old model, whatever its shape), or --method mapped (LoRA)"


@dataclass
class Moving:
    """A stored delta on its way from its base to another one. Nothing is read before it is asked for.

    Attributes:
        entry: the delta in the store.
        old: the base it belongs to.
        new: the base it moves to.
        order: which row of its head each label of the task takes, where the labels changed.
    """

    entry: Entry
    old: Base
    new: Base
    order: Sequence[int] | None = None

    @cached_property
    def own(self) -> AnyDelta:
        """The weights on their own base.

        Raises:
            DeltaError: they are damaged, or only scores were kept.
        """
        return own_delta(self.entry, self.old, self.order)

    @cached_property
    def _landed(self) -> tuple[AnyDelta | None, AnytuneError | None]:
        own = self.own  # damaged weights are damaged for every method, and no question of shapes
        try:
            return moved(self.entry, self.old, self.new, own), None
        except AnytuneError as problem:
            return None, problem

    @property
    def label_names(self) -> list[str]:
        """The labels of its head, in the order in which the task has them."""
        names = self.entry.manifest.label_names
        return list(names) if self.order is None else [names[row] for row in self.order]

    @property
    def delta(self) -> AnyDelta:
        """The weights as they land on the new base.

        Raises:
            DeltaError: they cannot; with the reasons and what to do instead.
        """
        delta, problem = self._landed
        if delta is None:
            assert problem is not None
            raise type(problem)(problem.what, why=problem.why, fix=problem.fix or OTHER_WAYS)
        return delta

    @property
    def refusal(self) -> str | None:
        """Why they cannot land there, or None."""
        problem = self._landed[1]
        return None if problem is None else problem.what

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What a manifest should say about how words and labels differ."""
        return tuple(moving_notes(self.old, self.new, self.order, self.own))

    def install(self, model: nn.Module, scale: float = 1.0) -> nn.Module:
        """See ``OutdatedWeights.install``."""
        delta = self.delta
        if scale == 1.0:
            return install_delta(delta, model, self.new, trainable=True)
        tensors = self.new.tensors(pretraining_head=True)
        if isinstance(delta, AdapterDelta):
            return install_delta(delta.scaled(scale, tensors, self.new.anatomy), model, self.new, trainable=True)
        delta.install(model, tensors, self.new.identity, scale)
        return model

    def in_run(
        self, task: Task, train: Encoded, settings: TrainingSettings, seed: int, runtime: Runtime
    ) -> OutdatedInRun:
        """What the methods of one run are given."""
        return OutdatedInRun(self, task, settings, seed, runtime, [(train, task.train, False)])


@dataclass
class OutdatedInRun:
    """The outdated weights beside the rows and the precision of one run."""

    moving: Moving
    task: Task
    settings: TrainingSettings
    seed: int
    runtime: Runtime
    #: encoded rows, what they were made of, and whether labels are placeholders
    _known: list[tuple[Encoded, Sequence[Example], bool]] = field(default_factory=list)

    @property
    def old_base(self) -> Base:
        """The base the weights were tuned on."""
        return self.moving.old

    @property
    def new_base(self) -> Base:
        """The base that is trained."""
        return self.moving.new

    @property
    def refusal(self) -> str | None:
        """Why the weights cannot be put onto the new base, or None."""
        return self.moving.refusal

    @property
    def examples(self) -> Sequence[Example]:
        """The task's training rows as texts."""
        return self.task.train

    @property
    def autocast(self) -> Callable[[], Any] | None:
        """The context of the run's precision."""
        return self.runtime.autocast()

    @cached_property
    def kind(self) -> str:
        """Their form."""
        own = self.moving.own
        if isinstance(own, AdapterDelta):
            return "prompt" if is_soft_prompt(own.config) else str(own.config["peft_type"]).lower()
        if own.bottleneck is not None:
            return "bottleneck"
        held = sum(tensor.numel() for tensor in own.difference.values())
        changed = sum(int(tensor.count_nonzero()) for tensor in own.difference.values())
        return "sparse" if held and changed <= SPARSE * held else "full"

    @property
    def head(self) -> dict[str, Tensor]:
        """The head, as it was trained."""
        own = self.moving.own
        if isinstance(own, FullDelta):
            return own.head
        return own.head(self.moving.old.tensors(pretraining_head=True), self.moving.old.anatomy)

    def install(self, model: nn.Module, scale: float = 1.0) -> nn.Module:
        """Put the moved weights into a task model of the new base."""
        return self.moving.install(model, scale)

    def difference(self) -> dict[str, Tensor]:
        """What the weights add to the body of the new base."""
        delta = self.moving.delta
        if isinstance(delta, FullDelta):
            return {name: tensor.float() for name, tensor in delta.difference.items()}
        if is_soft_prompt(delta.config):
            return {}
        return adapter_difference(delta, self._task_model(self.new_base), self.new_base)

    def install_difference(self, model: nn.Module, difference: Mapping[str, Tensor]) -> nn.Module:
        """Add a changed difference to a task model of the new base."""
        base, delta = self.new_base, self.moving.delta
        tensors = base.tensors(pretraining_head=True)
        head = delta.head if isinstance(delta, FullDelta) else delta.head(tensors, base.anatomy)
        inserted = delta.bottleneck if isinstance(delta, FullDelta) else None
        if inserted is not None:
            put_bottlenecks(model, inserted)
        bare = FullDelta.extract(tensors, model.state_dict(), list(head), base.anatomy, base.identity, inserted)
        unknown = [name for name in difference if name not in bare.body]
        if unknown:
            raise DeltaError(
                f"{len(unknown)} names of a difference are none of {base.name}'s: {', '.join(unknown[:5])}",
                why="They would be passed over without a word.",
            )
        kept: dict[str, tuple[Tensor, Tensor]] = {}
        if isinstance(delta, FullDelta):  # onto its own base, what was not changed comes out bit for bit
            kept = {
                name: found
                for name, found in delta.corrections.items()
                if name in difference and torch.equal(difference[name], delta.difference[name].float())
            }
        changed = replace(bare, difference=dict(difference), corrections=kept, head=head)
        changed.install(model, tensors, base.identity)
        return model

    @property
    def adapter(self) -> AdapterDelta | None:
        """The adapter on its own base; None for other weights."""
        own = self.moving.own
        return own if isinstance(own, AdapterDelta) and not is_soft_prompt(own.config) else None

    def install_adapter(
        self, model: nn.Module, change: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    ) -> nn.Module:
        """Put the moved adapter with changed tensors onto a task model of the new base."""
        delta = self.moving.delta
        if not isinstance(delta, AdapterDelta):
            raise DeltaError("these weights are no adapter", why="A full difference has no factors.")
        changed = AdapterDelta(dict(delta.config), change(delta.tensors))
        return install_delta(changed, model, self.new_base, trainable=True)

    def make_teacher(self) -> nn.Module:
        """The old base with the old weights, in eval mode and without gradients."""
        model = install_delta(self.moving.own, self._task_model(self.old_base), self.old_base, trainable=False)
        return model.eval().requires_grad_(False)

    def teacher_rows(self, encoded: Encoded) -> Encoded:
        """The same rows in the old base's tokens."""
        if self.old_base.identity.vocabulary == self.new_base.identity.vocabulary:
            return encoded
        for known, examples, _ in self._known:
            if known is encoded:
                return self._encoded(self.old_base, examples)
        raise MethodError(
            "rows that the run does not know cannot be read by the old base",
            why="Its tokenizer is another one, and the texts behind the token ids are not known.",
            fix="rows of run.batches.encoded, or of run.outdated.batches_of(texts)",
        )

    def batches_of(self, examples: Sequence[Example]) -> ExampleBatches:
        """Texts without labels as training batches."""
        rows = [replace(one, label=self._placeholder(one)) for one in examples]
        encoded = self._encoded(self.new_base, rows)
        self._known.append((encoded, rows, True))
        return ExampleBatches(encoded, self.settings.batch_size, derive_seed(self.seed, "unlabelled"))

    def _encoded(self, base: Base, rows: Sequence[Example]) -> Encoded:
        limit = base.position_limit
        length = self.settings.max_length if limit is None else min(limit, self.settings.max_length)
        return encode_task(rows, base.tokenizer(), length, self.task.kind, base.anatomy.encoder_decoder)

    def _placeholder(self, example: Example) -> Any:
        if self.task.kind == "generation":
            raise DataError(
                "texts without labels are given, and the task is one of generation",
                why="Its responses are what the old model is asked about, and there are none.",
                fix="without --unlabelled: the task's own prompts and responses are read",
            )
        if self.task.kind == "token-classification":
            return tuple([0] * len(example.words or ()))
        return 0

    def _task_model(self, base: Base) -> Any:
        return base.task_model(self.task.kind, self.moving.label_names, seed=0)[0]


def adapter_difference(delta: AdapterDelta, model: nn.Module, base: Base) -> dict[str, Tensor]:
    """Canonical name -> what an adapter of ``base`` adds to its body, fp32; tensors it leaves alone are absent.

    Args:
        delta: an adapter that is no prompt.
        model: a task model of ``base``; used up.

    Raises:
        DeltaError: PEFT cannot merge this kind of adapter.
    """
    tensors, anatomy = base.tensors(pretraining_head=True), base.anatomy
    wrapped = delta.attach(model, trainable=False)
    found: dict[str, Tensor] = {}
    products = delta.config.get("peft_type") == "LORA" and not delta.config.get("use_dora")
    # trained tokens are no product: what they add is seen where all is merged
    if products and not any("trainable_tokens_" in name for name in delta.tensors):
        for name, module in wrapped.get_base_model().named_modules():
            if hasattr(module, "get_delta_weight") and wrapped.active_adapter in getattr(module, "scaling", ()):
                bare = anatomy.canonical(f"{name}.weight")
                found[bare] = module.get_delta_weight(wrapped.active_adapter).detach().float().cpu()
        for name, bare in delta.absolute_copies(tensors, anatomy).items():
            found[bare] = (delta.tensors[name].double() - tensors[bare].double()).float()
        return found
    for name, tensor in merge(wrapped).state_dict().items():
        bare = anatomy.canonical(name)
        if bare in tensors and anatomy.is_backbone(name) and tensor.is_floating_point():
            step = subtract(tensors[bare], tensor.detach().cpu())
            if step is not None:
                found[bare] = step.values.float()
    return found
