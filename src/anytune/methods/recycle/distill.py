"""Distillation from the old model: the upgraded base learns the task from the labels and from what the old one says.

In plain words: the old base with its tuned weights is asked once about every training text; its answers are kept. The
new base is then tuned as usual, from a fresh start, and beside the labels it learns to answer as the old model does
and, if wanted, to read texts as it does, layer by layer. No weight is carried over, so the new base may have another
depth, width or vocabulary. ``label_free`` uses no labels at all: texts are enough.

Formula: L = (1 - alpha) * CE + alpha * T^2 * KL(softmax(z_old / T) || softmax(z_new / T)) + beta * 1/2 * mean over
matched layers, texts and width of (h_new - h_old)^2, h of a text's first token or the mean over its tokens (a
decoder's "first" is its last token, the only one that has read the text). For regression the squared difference of
the two numbers stands in place of T^2 KL. ``label_free``: without the first term, the others as they are. Layers:
state k of the student with the state at the same share of the teacher's depth (``uniform``), counted from the top
(``last``), or as given. ``projection``: h_new goes through a learned linear map first, which is thrown away after.

Paper: Qin, Qian et al. 2023 (Recyclable Tuning), distillation-based method; Hinton et al. 2015 for the answers, Sun
et al. 2019 (patient knowledge distillation) for the hidden states.
Costs: one pass of the old model over the training texts before the first step, in each process; its answers and
states, 4 bytes a number (``store: fp16`` 2). A step is plain tuning's plus a look-up: no second model is held or run.
When not to use it: when the old model is worse than what the labels alone give; when the new base has the old one's
shape and few steps are to be made (``initialize`` starts where distillation wants to go; ``combined`` does both). In
EVIDENCE.md 60 steps on full differences of a small model end below plain tuning, under a teacher far above both; 180
end above that tuning and beside the teacher (tuning afresh for as long: a little higher, with LoRA a little lower).
Choices of ours: alpha weights the teacher, as in the published code (its help text says the opposite). The divergence
is a mean over examples; the published code divides it by the number of classes too, and its alpha and T then mean
something else for each task: ``preset: paper_code`` restores that, with alpha 0.9, T 10, beta 10 (one cell of its
grid, not its choice), the first token and no last layer. The teacher answers without dropout, gradients and labels.
The hidden-state term is fp32 (the published code rounds it to fp16) and off by default. Where rows hold several
labels, it weighs a row by its labels, like the rest. ``label_free`` speaks of training: a run that keeps its best
step (``keep: best``) still chooses it by the validation labels. alpha 0.7 and T 5 are in the published grid and not
tuned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn, optim

from anytune.errors import MethodError
from anytune.methods.consistency import example_weights
from anytune.methods.distillation import Reduction, patience
from anytune.methods.parts import is_part
from anytune.methods.presets import take_preset
from anytune.methods.protocol import Batch, Method, Run, Terms
from anytune.methods.registry import register
from anytune.methods.teacher_cache import Kept, row_keys
from anytune.methods.teaching import MAPS, Asked, At, BlockStates, LayerMap, StateMaps, answer_gap, ask, state_at

#: what a preset sets, where the setting was left at its default
PRESETS: dict[str, dict[str, Any]] = {
    "paper_code": {
        "alpha": 0.9, "temperature": 10.0, "beta": 10.0, "reduction": "element", "states": "first",
        "last_layer": False,
    },
}  # fmt: skip


@register
@dataclass(kw_only=True)
class Distill(Method):
    """A fresh start that learns from the labels and from the old model."""

    alpha: Annotated[float, Field(ge=0, le=1, description="share of the old model's answers; labels get the rest")] = (
        0.7
    )
    temperature: Annotated[
        float, Field(gt=0, le=1000, description="T: both answers are softened by it, the term multiplied by T^2")
    ] = 5.0
    beta: Annotated[float, Field(ge=0, le=1e6, description="weight of the hidden states' term; 0 = none")] = 0.0
    states: Annotated[
        At, Field(description="a text's hidden state: of its first token (a decoder's last), or the mean")
    ] = "mean"
    layers: Annotated[
        LayerMap,
        Field(description="teacher layer of each student layer: uniform, last, or a list (embeddings first, -1 none)"),
    ] = "uniform"
    last_layer: Annotated[
        bool, Field(description="whether the student's last layer is held against the teacher's")
    ] = True
    projection: Annotated[
        bool, Field(description="compare through a learned linear map; needed where the widths differ")
    ] = False
    label_free: Annotated[
        bool, Field(description="use no labels: the old model alone teaches, on --unlabelled or the training texts")
    ] = False
    reduction: Annotated[
        Reduction, Field(description="batch = mean over examples; element = divided by the classes too")
    ] = "batch"
    store: Annotated[Kept, Field(description="how answers are kept: fp32, or fp16 (half the memory, rounded)")] = (
        "fp32"
    )
    preset: Annotated[
        Literal["paper_code"] | None,
        Field(description="paper_code: the published code's losses, where a setting is left at its default"),
    ] = None

    # the old model is not even read
    neutral: ClassVar[Mapping[str, Any] | None] = {"alpha": 0.0, "beta": 0.0}
    begins: ClassVar[Literal["moved", "made", "fresh"]] = "fresh"

    def __post_init__(self) -> None:
        take_preset(self, PRESETS)
        if self.label_free and not self.alpha and not self.beta:
            raise MethodError(
                f"{self.name}: label_free with alpha=0 and beta=0",
                why="Neither labels nor the old model would teach anything.",
                fix="alpha=1",
            )

    def reads_unlabelled(self) -> bool:
        """Texts without labels, where none are used."""
        return self.label_free

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Ask the old model about every training row; put the maps between widths on, where they are wanted.

        Raises:
            MethodError: there are no outdated weights, or states cannot be held against each other.
        """
        self._asked: Asked | None = None
        self._states: BlockStates | None = None
        self._maps: StateMaps | None = None
        self._last: dict[str, Tensor] = {}
        self._anatomy = run.anatomy
        if not self.alpha and not self.beta:
            return model
        plain: Any = run.needed("objective", self)
        self._causal_items = getattr(getattr(plain, "anatomy", None), "objective", "") == "clm"
        depth = len(run.anatomy.block_stacks(model)[0][1])
        self._asked = ask(
            run, self, logits=bool(self.alpha), layers=self.layers if self.beta else None, last=self.last_layer,
            student_depth=depth, at=self.states, kept=self.store,
        )  # fmt: skip
        if self.beta:
            self._fit_widths(model, run, self._asked)
        return model

    def _fit_widths(self, model: nn.Module, run: Run, asked: Asked) -> None:
        body: Any = run.anatomy.backbone(model)
        hidden = int(body.config.hidden_size)
        if hidden != asked.width and not self.projection:
            raise MethodError(
                f"the new base's hidden states are {hidden} wide, the old one's {asked.width}",
                why="Without a map they cannot be held against each other.",
                fix="--set projection=true, or --set beta=0   (answers alone)",
            )
        if self.projection:
            self._maps = StateMaps(len(asked.pairs), hidden, asked.width, run.seed).to(next(model.parameters()))
            model.add_module(MAPS, self._maps)

    def attach(self, model: nn.Module, optimizer: optim.Optimizer) -> None:
        """Listen in on the blocks from here on.

        Raises:
            MethodError: the maps are frozen by another method, or split up over processes.
        """
        if self._asked is None or not self.beta:
            return
        for weight in self._maps.parameters() if self._maps is not None else ():
            if is_part(weight) or not weight.requires_grad:
                raise MethodError(
                    f"{self.name}: the maps of projection=true are {'split up' if is_part(weight) else 'frozen'}",
                    why="They are trained beside the model.",
                    fix="without sharding: fsdp" if is_part(weight) else "another tune method, or --set beta=0",
                )
        self._listen(model)

    def _listen(self, model: nn.Module) -> None:
        if self._states is not None:
            self._states.remove()
        self._states = BlockStates(model, self._anatomy, training=True)

    def objective(self, model: nn.Module, batch: Batch, output: Any, terms: Terms) -> Terms:
        """The labels' term with its share, and the distances to what the old model said.

        Raises:
            MethodError: the batch holds a row that the old model was not asked about.
        """
        if self._asked is None:
            return terms
        asked = self._asked = self._asked.to(batch["input_ids"].device) if "input_ids" in batch else self._asked
        keys = row_keys(batch)
        found = {name: term for name, term in terms.items() if name != "loss"}
        if not self.label_free and self.alpha < 1:
            found = {"loss": (1 - self.alpha) * terms["loss"], **found}
        if asked.logits is not None:
            taught = asked.logits.of(batch, keys)
            gap = answer_gap(output.logits, taught, batch, self.temperature, self.reduction)
            self._last["answers_apart"] = gap.detach()
            found["teacher"] = self.alpha * gap
        if self.beta:
            apart = self._patience(asked, batch, keys)
            self._last["states_apart"] = apart.detach()
            found["patience"] = self.beta * apart
        return found

    def _patience(self, asked: Asked, batch: Batch, keys: Tensor) -> Tensor:
        assert self._states is not None, "attach was not called"
        given = self._states.take()
        mine = [state_at(given[place], batch, self.states, self._anatomy.causal) for place, _ in asked.pairs]
        if self._maps is not None:
            mine = self._maps(mine)
        weights = None if batch["labels"].ndim == 1 else example_weights(batch, self._causal_items)
        return patience(mine, asked.states_of(batch, keys), weights)

    def figures(self) -> dict[str, float]:
        """How far the student was from the old model in the last micro-batch."""
        return {name: value.item() for name, value in self._last.items()}

    def finish(self, model: nn.Module, run: Run) -> nn.Module:
        """Take the maps and the hooks off."""
        if self._states is not None:
            self._states.remove()
        if self._maps is not None:
            for module in list(model.modules()):
                module._modules.pop(MAPS, None)
        self._asked = self._states = self._maps = None
        return model
