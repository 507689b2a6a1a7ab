"""The protocol of a method: a few hooks around plain training, every one optional.

The loop calls them in this order (``engine/loop.py`` is this text as code)::

    method.check_task(kind)                             # refuse tasks it cannot be run on, before anything
    method.needs(); method.reads_unlabelled()           # what it cannot do without, asked before anything
    model = method.prepare(model, run)                  # wrap, freeze, re-initialise, take anchors
    step  = StepModule(model, methods, objective)       # forward(batch) -> named loss terms
    for stage in method.stages():                       # one by default
        optimizer = AdamW(method.param_groups(model, groups)); method.attach(model, optimizer)
        for batch in batches:
            on the first micro-batch of a step:
                method.before_step(model)
            batch = method.prepare_batch(batch)         # double it, add cached teacher rows
            terms = step(batch)         # output = method.forward(model, batch); terms = method.objective(...)
            backward(sum(terms))        # weighted by items, over the whole step
            on the last micro-batch of a step:
                method.after_backward(model)            # gradients complete and reduced, before clipping
                clip; optimizer.step()                  # calls what attach hung on the optimizer
                method.after_step(model)
                method.figures()                        # every few steps: what the method says of itself, for the log
    model = method.finish(model, run)                   # unwrap, restore what was changed
    method.carry_state()                                # pre-training: what the next domain needs
    method.notes(); method.files()                      # what it found out, and what it keeps beside the weights

Two rules keep methods composable and correct. All state lives in the method object, never in a module, a class or a
global. And a loss term is a *mean over the items of its micro-batch* (examples, or scored tokens): the loop weights
micro-batches by their share of the step's items, so that accumulating k batches of b equals one batch of k * b.

With several processes every hook runs in each of them, on the process's own batches, and every hook must leave equal
weights everywhere: torch's global generator differs from process to process (dropout does), so what must be equal (a
mask, a perturbation) is drawn from a generator of the method's own, seeded from ``run.seed``. Where the weights are
split up (``sharding: fsdp``), ``prepare`` and ``finish`` see plain whole weights; the hooks in between see DTensors,
new objects under the old names: keep names, never parameters or tensor hooks, and make what is combined with a weight
from it (``torch.zeros_like(weight)``). A method that cannot declares ``sharded = False``.

What must see the true weights beside the clipped gradients, or the optimizer's moments, is hung on the optimizer in
``attach`` (``register_step_pre_hook`` / ``register_step_post_hook``): these run inside ``optimizer.step()``, after
every method's ``after_backward``, and not at all in a step that a gradient scaler skips.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from anytune.errors import MethodError

if TYPE_CHECKING:  # the protocol itself loads no torch, so that methods can be listed at once
    from torch import Tensor, device, nn, optim

    from anytune.methods.outdated import OutdatedWeights
    from anytune.models.anatomy import Anatomy
    from anytune.models.base import Base
    from anytune.models.soft_prompts import PromptSource

Room = Literal["pretrain", "tune", "transfer", "recycle"]
Batch = dict[str, Any]
Terms: TypeAlias = "dict[str, Tensor]"

#: Hooks of which one run can have only one owner; two methods that both define one collide.
EXCLUSIVE_HOOKS = ("forward", "stages")


@dataclass(frozen=True)
class Stage:
    """A part of a run with its own optimizer. ``share`` is its part of the run's steps; the shares add up to one."""

    name: str = "train"
    share: float = 1.0


@dataclass(kw_only=True)
class Run:
    """What a method may know about the run it is part of."""

    seed: int
    #: optimizer steps of the whole run, all stages together
    steps: int
    anatomy: Anatomy
    #: state-dict names the base file does not hold (a freshly made pooler included): always trained, saved and moved
    head_names: Sequence[str] = ()
    #: recycle methods only: the outdated weights, on their way to this base
    outdated: OutdatedWeights | None = None
    #: ``outdated.install``, or all there is of them: puts the moved weights into the model; may wrap it (PEFT)
    install_outdated: Callable[[nn.Module], nn.Module] | None = None
    #: the plain objective, for further forward passes: ``objective.forward(model, batch)``, ``.terms(output, batch)``
    objective: Any = None
    #: the training data: ``batches.batch(0)``, ``batch(1)`` ... (over all epochs), ``batches.batches_per_epoch``; a
    #: recycle method may put other batches in their place in ``prepare``, the number of steps stays
    batches: Any = None
    #: methods that read them: texts without labels, as batches like the task's; their labels are placeholders
    unlabelled: Any = None
    #: the main validation metric of a model, higher is better (the sign turned for errors)
    validate: Callable[[nn.Module], float] | None = None
    #: recycle methods: a projection of outdated weights that was trained on another task; the run then trains nothing
    projection: Mapping[str, Tensor] | None = None
    #: the base that is trained: its tokenizer, its pre-training head
    base: Base | None = None
    #: where training will compute; ``prepare`` gets the model before it is moved there
    device: device | None = None
    #: of a task with classes: what output i of the head means
    label_names: Sequence[str] = ()
    #: methods that take them: stored prompts of this base, tuned on other tasks, best first
    sources: Sequence[PromptSource] = ()
    #: methods that take them: stored prompts of this base, with their heads, tuned on this very task
    teachers: Sequence[PromptSource] = ()
    #: pre-training: what this method's ``carry_state`` gave at the end of the stage before, by method name
    carried: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.install_outdated is None and self.outdated is not None:
            self.install_outdated = self.outdated.install

    def needed(self, what: str, method: Method) -> Any:
        """``objective``, ``batches``, ``base``, ``device`` or ``validate``, for a method that cannot do without.

        Raises:
            MethodError: whoever made the run did not give it (a loop of one's own, a Trainer on a plain data set).
        """
        found = getattr(self, what)
        if found is None:
            raise MethodError(
                f"method '{method.name}' needs to know the run's {what}",
                why="The loop that called it did not say.",
                fix=f"Run(..., {what}=...)   or   hf_trainer(..., {what}=...)" if what in ("objective", "base")
                else f"Run(..., {what}=...)   (in a Trainer: an ExampleBatches as train_dataset)",
            )  # fmt: skip
        return found


class Method:
    """Base class of every method; each hook does nothing by default.

    A method is a dataclass whose fields are its settings: typed, with limits, they become the recipe schema and the
    ``--set`` options. ``room`` and ``name`` are set by the registry from where the file stands.
    """

    room: ClassVar[Room]
    name: ClassVar[str]
    #: False for methods that only move weights (the loop is not entered, steps must be 0)
    trains: ClassVar[bool] = True
    #: settings under which the method equals plain training bit for bit, or None with the reason beside it
    neutral: ClassVar[Mapping[str, Any] | None] = None
    neutral_reason: ClassVar[str] = ""
    #: the kinds of model it works on (``model_type`` of the anatomy), None for all, with the reason beside it
    kinds: ClassVar[tuple[str, ...] | None] = None
    kinds_reason: ClassVar[str] = ""
    #: False for methods that compute on whole weights in their hooks: refused where the weights are split up (FSDP2)
    sharded: ClassVar[bool] = True
    #: True where the loss reaches other weights from step to step (with several processes, DDP then looks each time)
    varying: ClassVar[bool] = False
    #: True if it puts other weights in place between ``before_step`` and ``after_backward``: one method of a run can
    swaps: ClassVar[bool] = False
    #: pre-training methods: "chain" goes on from the stage before, "restart" begins every stage at the first base,
    #: "joint" makes one stage of all domains mixed
    stream: ClassVar[Literal["chain", "restart", "joint"]] = "chain"
    #: which stored prompts it may be given beside the task, as ``run.sources`` and ``run.teachers``. Prompts that no
    #: method of a run takes, and none where a method ``needs`` them, are an error before anything is computed
    takes: ClassVar[tuple[Literal["sources", "teachers"], ...]] = ()
    #: recycle methods: what the run begins with. "moved": the outdated weights as they land on the new base (an error
    #: where they cannot); "made": weights the method makes of them itself, a parametrisation included; "fresh": a
    #: fresh head and whatever the tune methods make
    begins: ClassVar[Literal["moved", "made", "fresh"]] = "moved"
    #: recycle methods: True if the stored result is the moved delta itself, bit for bit
    moves_only: ClassVar[bool] = False
    #: training settings this method suggests (a recipe's own always win), for example {"learning_rate": 1e-3}
    suggests: ClassVar[Mapping[str, Any]] = {}

    def needs(self) -> Sequence[str]:
        """Which of ``takes`` it cannot do without, under its settings."""
        return self.takes

    def check_task(self, kind: str) -> None:
        """Refuse, under its settings, a kind of task (of :data:`anytune.data.tasks.KINDS`) that it cannot be run on.

        Called before anything is computed, for every task of a grid, so that no arm stops it half way. ``prepare``
        refuses the same for whoever calls the method without a job.

        Raises:
            MethodError: it cannot.
        """

    def reads_unlabelled(self) -> bool:
        """Whether, under its settings, it trains on texts without labels where the run has some."""
        return False

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Wrap, freeze or re-initialise the model before training; returns the model to train.

        Also called when a run goes on from a checkpoint, before ``load_state_dict``.
        """
        return model

    def stages(self) -> Sequence[Stage]:
        """The stages of the run, in order."""
        return (Stage(),)

    def param_groups(self, model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Split or change the optimizer's parameter groups (each: ``params``, ``names``, ``lr``, ``weight_decay``).

        Called as a stage begins, and again when a run goes on within it: it must depend on nothing that training
        changes. ``names`` and ``params`` stay side by side.
        """
        return groups

    def attach(self, model: nn.Module, optimizer: optim.Optimizer) -> None:
        """A stage's optimizer has been made: hang hooks on it, keep it.

        Also called when a run goes on from a checkpoint, before the optimizer has its moments back. The names of its
        parameters stand in each group's ``names``.
        """

    def before_step(self, model: nn.Module) -> None:
        """Called once per optimizer step, before its first micro-batch: draw a mask, perturb."""

    def prepare_batch(self, batch: Batch) -> Batch:
        """Change a micro-batch: double it, add cached teacher rows."""
        return batch

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """Replace the forward pass; the output must suit the run's objective."""
        raise NotImplementedError

    def objective(self, model: nn.Module, batch: Batch, output: Any, terms: Terms) -> Terms:
        """Add to or change the loss terms (each a scalar, a mean over the micro-batch's items)."""
        return terms

    def after_backward(self, model: nn.Module) -> None:
        """Gradients are complete and reduced over processes; clipping comes next."""

    def after_step(self, model: nn.Module) -> None:
        """The optimizer has stepped."""

    def figures(self) -> dict[str, float]:
        """What the method says about itself at the moment, for the run's log: numbers by name, at every look.

        Called in each process; what process 0 says is logged. It may wait for the device: looks are few.
        """
        return {}

    def finish(self, model: nn.Module, run: Run) -> nn.Module:
        """Take off what ``prepare`` put on; returns the model to evaluate and save."""
        return model

    def notes(self) -> Sequence[str]:
        """What the method found out, a sentence each, for the manifest. Called after ``finish``, on process 0."""
        return ()

    def files(self) -> Mapping[str, Mapping[str, Tensor]]:
        """What is kept beside the stored weights: file name -> tensors. Called after ``finish``, on process 0."""
        return {}

    def carry_state(self) -> dict[str, Any]:
        """What the next stage of a stream needs beside the weights (a Fisher matrix, a buffer): tensors and JSON.

        Pre-training methods only. Called after ``finish``, on process 0; stored with the new base, and there for the
        next stage as ``run.carried[name]``, so that next month's command goes on where this one ended.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs: tensors and JSON-able values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""


def overrides(method: Method, hook: str) -> bool:
    """Whether the method defines this hook itself."""
    return getattr(type(method), hook) is not getattr(Method, hook)


def check_kinds(methods: Sequence[Method], model_type: str) -> None:
    """Refuse a method that does not work on a kind of model, before anything is computed.

    Raises:
        MethodError: names the method, the kind and the kinds it works on.
    """
    for method in methods:
        if method.kinds is not None and model_type not in method.kinds:
            raise MethodError(
                f"method '{method.name}' does not work on a base of kind '{model_type}'",
                why=f"It works on {', '.join(method.kinds)}: {method.kinds_reason or 'so its card says'}.",
                fix=f"another method, or a base of one of these kinds   (anytune methods {method.name})",
            )


def check_given(methods: Sequence[Method], given: Mapping[str, int]) -> None:
    """Refuse stored prompts that no method takes, and a method without the prompts that it needs.

    Args:
        given: how many ``sources`` and ``teachers`` there are.

    Raises:
        MethodError: names the method and the option.
    """
    for role, count in given.items():
        option, one = f"--{role.removesuffix('s')}", role.removesuffix("s")
        if count and not any(role in method.takes for method in methods):
            names = ", ".join(method.name for method in methods)
            raise MethodError(
                f"{count} {one} prompt{'s are' if count > 1 else ' is'} given, and method {names} takes none",
                why="It would be passed over without a word.",
                fix="--method prompt_transfer" if role == "sources" else "--method panda",
            )
        for method in methods:
            if not count and role in method.needs():
                raise MethodError(
                    f"method '{method.name}' needs a {one} prompt, and none is given",
                    why="It starts from a prompt that was tuned on another task." if role == "sources"
                    else "It learns from a prompt and a head that were tuned on this task.",
                    fix=f"{option} DELTA   (a stored run of prompt_tuning or prompt_transfer on this base)",
                )  # fmt: skip


def check_composition(methods: Sequence[Method]) -> None:
    """Refuse two methods that claim the same exclusive hook, or the same method twice.

    Raises:
        MethodError: names both methods and the hook.
    """
    seen: set[str] = set()
    for method in methods:
        if method.name in seen:
            raise MethodError(f"method '{method.name}' is given twice", fix=f"--method {method.name} once")
        seen.add(method.name)
    for hook in EXCLUSIVE_HOOKS:
        owners = [method.name for method in methods if overrides(method, hook)]
        if len(owners) > 1:
            raise MethodError(
                f"methods '{owners[0]}' and '{owners[1]}' cannot be combined: both replace '{hook}'",
                why="Only one method of a run can own that part of training.",
                fix=f"--method {owners[0]}   or   --method {owners[1]}",
            )
    swapping = [method.name for method in methods if method.swaps]
    if len(swapping) > 1:
        raise MethodError(
            f"methods '{swapping[0]}' and '{swapping[1]}' cannot be combined: both put other weights into the model",
            why="Each computes a step's gradients at weights of its own.",
            fix=f"--method {swapping[0]}   or   --method {swapping[1]}",
        )
