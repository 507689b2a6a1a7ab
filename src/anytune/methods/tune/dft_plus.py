"""DFT++: tune on the task, guess masked words of its texts, and learn from the model's own earlier self.

In plain words: two things help direct tuning on few examples. The task's own texts go on being read as in
pre-training: words are hidden and guessed, beside the task's own loss. And the run is cut into generations: when one
ends, a copy of the model becomes the teacher of the next, which goes on from the same weights and learns both the
labels and the teacher's answers.

Formula: L = CE + weight * MLM in the first generation; afterwards L = alpha * CE + (1 - alpha) * T^2 *
KL(softmax(teacher / T) || softmax(student / T)) + weight * MLM, with logits [items, classes] and T the temperature.
MLM is the cross-entropy of the masked words (15 % of a text's: 80 % shown as the mask, 10 % as a random word, 10 % as
they are), a mean over each text's masked words and then over texts. For regression the squared difference of the two
numbers stands in place of T^2 KL. Generations are of equal length in optimizer steps.

Paper: Zhang et al. 2023 (DFT++, arXiv 2306.05278).
Costs: two forwards and backwards (the text as it is, and masked, with the vocabulary head at the masked words), from
the second generation on a third forward without gradients; the pre-training head's weights with their moments; with
more than one generation a second copy of the weights. Masks are drawn on the CPU, text by text: some milliseconds for
a batch.
When not to use it: where labelled text is plenty; on decoders, which have no masked words; on texts of a few words.
Choices of ours: alpha, temperature, weight and the number of generations have no source in our notes, and the
defaults are not tuned. The paper's third part, more texts written by GPT-J, is left out: it needs a second model. The
published code clips the teacher's gradients and leaves out T^2; ours does neither. The teacher answers without
dropout. Each text is masked anew in every step, from the seed, the step and the text itself: so a text has the same
mask in whatever micro-batch or process it stands. The mean is over texts first, as the task's own term is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from anytune.data.masking import IGNORED, mask_tokens
from anytune.data.packing import TokenizerFacts
from anytune.data.splits import stable_seed
from anytune.errors import MethodError
from anytune.methods.consistency import FrozenCopy, example_weights, is_regression, squared_difference
from anytune.methods.distillation import logit_distillation
from anytune.methods.protocol import Batch, Method, Run, Terms
from anytune.methods.registry import register
from anytune.models.anatomy import ANATOMIES, Anatomy
from anytune.models.language_modelling import label_loss, labelled_logits

#: what the borrowed pre-training head is called in the model while it trains
GRAFT = "borrowed_head"


class BorrowedHead(nn.Module):
    """The pre-training head of a base on the backbone of another model: together, a pre-training model.

    Only the head is a part of it; the backbone is looked at where it is. What the head shared with its own model's
    word embeddings it shares with this one's. It is trained and stands in a run's checkpoints, which hold the trained
    parameters; but it is on loan, so ``state_dict`` leaves it out, and nothing that is saved of the model has it.

    Args:
        model: the task model (or a PEFT wrapping of one).
        pretraining: a pre-training model of the same base, which gives its head away.
        anatomy: of their kind.
    """

    def __init__(self, model: nn.Module, pretraining: nn.Module, anatomy: Anatomy) -> None:
        super().__init__()
        backbone = anatomy.backbone(model)
        theirs = anatomy.backbone(pretraining).get_parameter(anatomy.word_embeddings)
        words = backbone.get_submodule(anatomy.word_module)
        for step in dict.fromkeys(
            s for path in (anatomy.pretraining_head, *anatomy.other_pretraining_heads) for s in path
        ):
            if hasattr(pretraining, step):
                setattr(self, step, getattr(pretraining, step))
        for module in self.modules():
            for name, parameter in module._parameters.items():
                if parameter is theirs:
                    module._parameters[name] = words.get_parameter("weight")
        self.config = pretraining.config
        # past nn.Module's own way of keeping modules: the backbone is no part of the head
        self.__dict__[anatomy.prefix] = backbone

        self.register_load_state_dict_post_hook(_not_missed)

    def state_dict(self, *arguments: Any, destination: Any = None, **settings: Any) -> Any:
        """Nothing."""
        return {} if destination is None else destination


def _not_missed(_: nn.Module, found: Any) -> None:
    """A state that was saved without the borrowed head lacks nothing."""
    found.missing_keys[:] = [name for name in found.missing_keys if f"{GRAFT}." not in name]


def generation(step: int, steps: int, generations: int) -> int:
    """The generation (0, 1, ...) of optimizer step ``step`` (0, 1, ...) of ``steps``: of equal length up to one."""
    return step * generations // steps


def masked_texts(batch: Batch, facts: TokenizerFacts, *parts: str | int) -> tuple[Tensor, Tensor]:
    """What the model reads and what it must guess, each ``[b, n]`` on the batch's device.

    A text's mask depends on ``parts`` and its own tokens alone. A text without an ordinary word has none.

    Args:
        batch: ``input_ids`` and ``attention_mask``, [b, n].
        facts: of the tokenizer.
        parts: decide the masks, with the text.
    """
    ids = batch["input_ids"].cpu()
    real = (
        batch["attention_mask"].cpu().bool() if "attention_mask" in batch else torch.ones_like(ids, dtype=torch.bool)
    )
    special = torch.isin(ids, torch.tensor(facts.special_ids))
    shown, labels = ids.clone(), torch.full_like(ids, IGNORED)
    assert facts.mask_id is not None
    for row in range(len(ids)):
        place = real[row]
        if bool(special[row][place].all()):
            continue
        text = ids[row][place]
        generator = torch.Generator().manual_seed(stable_seed(*parts, *text.tolist()))
        shown[row, place], labels[row, place] = (
            found[0]
            for found in mask_tokens(
                text[None], special=facts.special_ids, mask_id=facts.mask_id,
                vocabulary_size=facts.vocabulary_size, generator=generator,
            )
        )  # fmt: skip
    return shown.to(batch["input_ids"].device), labels.to(batch["input_ids"].device)


def masked_word_loss(model: Any, batch: Batch, shown: Tensor, labels: Tensor, anatomy: Anatomy) -> Tensor:
    """Cross-entropy of the hidden words: a mean over each text's, then over items; in fp32 or wider.

    Args:
        model: a pre-training model.
        batch: of the task.
        shown: what the model reads, ``[b, n]``.
        labels: what it must guess, ``[b, n]``, -100 elsewhere.
        anatomy: of the model's kind.
    """
    logits, words = labelled_logits(model, {**batch, "input_ids": shown, "labels": labels}, anatomy)
    chosen = labels != IGNORED
    losses = label_loss(logits, words, "none")
    per_word = example_weights(batch, anatomy.causal, losses.dtype) / chosen.sum(dim=1).clamp(min=1)
    return (losses * per_word[:, None].expand(labels.shape)[chosen]).sum()


@register
@dataclass(kw_only=True)
class DFTPlus(Method):
    """Direct fine-tuning with masked words and sequential self-distillation."""

    weight: Annotated[float, Field(ge=0, le=1000, description="weight of the masked-word loss")] = 0.1
    generations: Annotated[
        int, Field(ge=1, le=100, description="parts of the run; each but the first learns from the one before")
    ] = 2
    alpha: Annotated[
        float, Field(ge=0, le=1, description="share of the labels beside the teacher, from the second generation on")
    ] = 0.5
    temperature: Annotated[float, Field(gt=0, le=100, description="both answers are softened by it")] = 1.0

    neutral = {"weight": 0.0, "generations": 1}  # noqa: RUF012 - no head is borrowed, nothing is copied or drawn
    kinds = tuple(row.model_type for row in ANATOMIES.values() if row.objective == "mlm")
    kinds_reason = "its second loss is that of masked words"

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Keep a copy for the teacher, and borrow the base's pre-training head.

        Raises:
            MethodError: there are more generations than steps, or the tokenizer has no mask.
        """
        self._anatomy, self._seed, self._steps = run.anatomy, run.seed, run.steps
        self._step, self._taught = -1, False
        self._plain: Any = run.needed("objective", self) if self.generations > 1 else None
        if self.generations > max(1, run.steps):
            raise MethodError(
                f"{self.generations} generations in {run.steps} steps",
                why="Each has at least one step.",
                fix=f"--set generations={max(1, run.steps)}   (or more steps)",
            )
        self._teacher = FrozenCopy(model, self.name) if self.generations > 1 else None
        if self.weight:
            base = run.needed("base", self)
            self._facts = TokenizerFacts.of(base.tokenizer())
            if self._facts.mask_id is None:
                raise MethodError(
                    f"the tokenizer of {base.name} has no mask",
                    why="Words are hidden behind it.",
                    fix="--set weight=0   (the generations stay)",
                )
            pretraining, _ = base.pretraining_model(run.seed)
            model.add_module(GRAFT, BorrowedHead(model, pretraining, run.anatomy))
        return model

    def before_step(self, model: nn.Module) -> None:
        """Count the step; where a generation begins, the model as it is becomes its teacher."""
        self._step += 1
        if self._teacher is None:
            return
        now = generation(self._step, self._steps, self.generations)
        if self._step and now > generation(self._step - 1, self._steps, self.generations):
            self._teacher.follow(model)
            self._taught = True
        self._teacher.place(model)

    def objective(self, model: nn.Module, batch: Batch, output: Any, terms: Terms) -> Terms:
        """The plain terms beside the teacher's answers, and the masked words."""
        if self._teacher is not None and self._taught:
            with torch.no_grad():
                taught = self._plain.forward(self._teacher.model, batch).logits
            if is_regression(batch):
                pull = squared_difference(output.logits, taught)
            else:
                pull = logit_distillation(output.logits, taught, self.temperature)
            terms = {**terms, "loss": self.alpha * terms["loss"], "teacher": (1 - self.alpha) * pull}
        if self.weight:
            shown, labels = masked_texts(batch, self._facts, "dft_plus", self._seed, self._step)
            words = masked_word_loss(borrowed(model), batch, shown, labels, self._anatomy)
            terms = {**terms, "masked_words": self.weight * words}
        return terms

    def finish(self, model: nn.Module, run: Run) -> nn.Module:
        """Take the borrowed head off."""
        for module in list(model.modules()):
            module._modules.pop(GRAFT, None)
        self._teacher = None
        return model

    def state_dict(self) -> dict[str, Any]:
        """The clock, and the teacher once there is one."""
        taught = self._teacher is not None and self._taught
        return {"step": self._step, **({"teacher": self._teacher.state_dict()} if taught and self._teacher else {})}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back the clock and the teacher."""
        self._step = state["step"]
        if self._teacher is not None and "teacher" in state:
            self._teacher.load_state_dict(state["teacher"])
            self._taught = True


def borrowed(model: nn.Module) -> nn.Module:
    """The borrowed head in a model, or in what wraps it."""
    return next(module for module in model.modules() if GRAFT in module._modules)._modules[GRAFT]  # type: ignore[return-value]
