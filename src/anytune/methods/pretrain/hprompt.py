"""HPrompt-CPT: a hypernetwork writes a prompt for each text; losses keep what generalises and set domains apart.

In plain words: a small network reads a text and writes a few vectors (a soft prompt) that stand beside its words, so
that a domain can be learnt partly there and needs no name later. Two losses look at a frozen copy of the base as it
was when the stage began. Agreement: under a random prompt, which stands for any other domain, the model must still
think as the copy does. Disagreement: under the text's own prompt it must not, so that each domain gets states of its
own.

Formula: L = CE(x, P) + agreement * D(u, u') + disagreement * S(v, v'), with P = sum_m alpha_m(x) V_m [length, width]
the prompt of the masked text x; u, v what the model makes of the text under a random prompt and under P; u', v' the
same of the copy, without gradients; D = KL(copy || model) of the guesses at scored positions (or 1 - cos of each
token's last hidden state, or their squared difference); S = cos^2 of a text's mean hidden state less the batch's mean.

Paper: Jiang, Jiang, Xue, Zhang, Zhou, Lian, Wei 2023 (HPrompt-CPT, "Towards Anytime Fine-tuning: Continually
Pre-trained Language Models with Hypernetwork Prompts", Findings of EMNLP 2023). Its code was never released, and its
equations were not at hand: this is an implementation of the published description, and what that leaves open is said
below.
Costs: per step two forward and backward passes of the model (one for each side of the losses that it takes part in:
the second is for the random prompt) and two passes of the copy, where plain training has one and none; the
hypernetwork and its frozen encoder beside them; ``length`` more positions. Memory: one frozen copy of the weights, two
from the second stage on (the encoder is the first base; an encoder-decoder's lies beside the copy from the first on),
and AdamW's state for the hypernetwork. ``loss_share`` and ``loss_every`` save passes, ``preset: light`` most of all
that. A prompted base costs more in tuning, too.
When not to use it: when no unseen domain matters, or the base is so small that the hypernetwork outweighs it. On six
real domains and two layers no rate of plain training with as many steps learnt as much and kept as much; plain
training that went over the same text 3.4 times at a third of the rate, which costs the same, did. Compare with that
first. Tuned scores did not tell the two apart; on six layers, where unseen domains kept as much, they were three to
five points lower at a rate that suited the bare base, and one at a sixth of it on longer texts: try other rates. And
watch ``cosine_between_texts`` in the log: there the prompts soon were nearly the same for every text, and ``prompt:
constant`` did as well; agreement was what helped.
Choices of ours: nearly all of it, each a setting. The hypernetwork reads the masked text, or a hidden word would show
through the prompt; in a decoder only the first ``reads`` tokens, which then carry no loss (held-out losses score all
tokens, so there its prompt is written from the first one alone). It reads through a frozen copy of the first base, has
min(6, the base's) layers, pools by the mean, and its weights are linear. The prompt stands after the first token (a
decoder's in front) and is ``length`` = 10 long of 32 components; ``preset: paper`` has 50 and 100, and 6 layers, as
far as we know the paper's sizes. A random prompt is drawn for each text from a Gaussian with the moments of the
components; it depends on seed, step and text alone. Agreement: on guesses, softened by 2 as in learning without
forgetting, the model without dropout (so it begins at exactly 0), weight 1. On our development domains that let a
stage's own loss fall further than plain training and kept the losses of unseen domains where they were; cosines of
states at weight 1 were plain training. Disagreement: the states of the training pass itself, per text, centred,
squared cosine: where nothing has moved it has no gradient (``gram`` and ``dot`` have); the gradient also reaches the
hypernetwork unless ``detach_prompt``. The copy and its prompt get none. Of an encoder-decoder the decoder's states are
compared. Centring, ``gram``, ``coda`` and a ``loss_share`` below 1 look at a batch as a whole: accumulating parts of
it is then not the same. Its weight is 0.01, where it does next to nothing: at 1 and 10 it cost both own and unseen
domains. Weights are not multiplied up where ``loss_every`` skips steps. ``prompt: constant`` (one trained prompt for
all texts), ``prompt: none`` and ``train_hypernetwork: false`` are ablations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from anytune.data.splits import stable_seed
from anytune.errors import MethodError
from anytune.methods.agreement import (
    Agreement,
    Disagreement,
    Rows,
    agreement,
    centred,
    disagreement,
    effective_number,
    unit,
    vectors_of,
    weight_entropy,
)
from anytune.methods.consistency import EarlierSelf, FrozenCopy
from anytune.methods.distillation import logit_distillation
from anytune.methods.objective import Labelled
from anytune.methods.of_base import split_groups
from anytune.methods.of_stream import answering
from anytune.methods.presets import take_preset
from anytune.methods.protocol import Batch, Method, Run, Terms
from anytune.methods.registry import register
from anytune.methods.step import upcast
from anytune.models.anatomy import Anatomy
from anytune.models.hyperprompt import HyperPrompt, make_hyperprompt, mixture, unscored_beginning
from anytune.models.hyperprompt_config import HyperPromptConfig
from anytune.models.language_modelling import NO_LABEL, at_labels, text_hidden
from anytune.models.prompted import attach, given_prompt, hyperprompt_of, within_pass

Prompt = Tensor | Literal["none"]

#: what a preset sets, where the setting was left at its default
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"components": 100, "length": 50, "layers": 6},
    "light": {
        "components": 16,
        "length": 5,
        "layers": 1,
        "encoder": "embeddings",
        "agreement": 2.0,
        "loss_share": 0.5,
        "loss_every": 3,
    },
}
#: the settings of the hypernetwork, which it keeps for all later stages
OF_HYPERNETWORK = (
    "components",
    "length",
    "layers",
    "width",
    "encoder",
    "pooling",
    "mix",
    "temperature",
    "position",
    "init",
)  # fmt: skip


def first_rows(batch: Batch, count: int) -> Batch:
    """The first ``count`` rows of a batch; what is no tensor stays as it is."""
    return {key: value[:count] if isinstance(value, Tensor) else value for key, value in batch.items()}


def without_first_labels(labels: Tensor, count: int) -> Tensor:
    """``labels`` [b, n] with none among the first ``count`` positions of a row; at least the last one stays."""
    kept = labels.clone()
    kept[:, : min(count, labels.shape[1] - 1)] = NO_LABEL
    return kept


def random_like(prompt: Tensor, rows: int, generator: torch.Generator) -> Tensor:
    """Gaussian prompts [rows, L, d] with the mean and variance that one prompt [L, d] has over its places."""
    drawn = torch.randn(rows, *prompt.shape, generator=generator).to(prompt)
    return prompt.mean(dim=0) + drawn * prompt.std(dim=0, unbiased=False)


@dataclass(frozen=True)
class States:
    """What a pass gave: hidden states [b, n, width] of the layer asked for, and, if asked for, scored logits."""

    hidden: Tensor
    logits: Tensor | None = None


@register
@dataclass(kw_only=True)
class HPrompt(Method):
    """Hypernetwork prompts with agreement and disagreement losses."""

    preset: Annotated[
        Literal["paper", "light"] | None,
        Field(description="paper: 50 positions, 100 components, 6 layers; light: a small hypernetwork, losses on "
                          "half the texts in every third step; a setting other than its default wins"),
    ] = None  # fmt: skip
    prompt: Annotated[
        Literal["generated", "constant", "none"],
        Field(description="what stands beside a text: written for it, one trained prompt for all texts, or nothing"),
    ] = "generated"
    components: Annotated[int, Field(ge=1, description="M: prompt components that are mixed")] = 32
    length: Annotated[int, Field(ge=1, description="L: positions of a prompt")] = 10
    layers: Annotated[
        int | None, Field(ge=0, description="of the hypernetwork's transformer; null: as the base has, at most 6")
    ] = None
    width: Annotated[
        int | None, Field(ge=1, description="of the hypernetwork's transformer; null: the base's own")
    ] = None
    encoder: Annotated[
        Literal["frozen_base", "embeddings"],
        Field(description="what the hypernetwork reads through: a frozen copy of the first base, or its embeddings"),
    ] = "frozen_base"
    pooling: Annotated[
        Literal["mean", "first"], Field(description="how the vectors of a text's tokens become one")
    ] = "mean"
    mix: Annotated[
        Literal["linear", "softmax"], Field(description="weights of components as they come, or softmax of them")
    ] = "linear"
    temperature: Annotated[float, Field(gt=0, description="of the softmax over components; 1 with linear weights")] = (
        1.0
    )
    position: Annotated[
        Literal["after_first", "prepend", "append"],
        Field(description="where the prompt stands in the text; in a decoder always in front"),
    ] = "after_first"
    init: Annotated[
        Literal["normal", "vocabulary"],
        Field(description="what components start as: random numbers, or embeddings of random words"),
    ] = "normal"
    reads: Annotated[
        int | None,
        Field(ge=1, description="decoders: how many first tokens are read and not scored; null: an eighth of a block"),
    ] = None
    train_hypernetwork: Annotated[bool, Field(description="false: the hypernetwork stays as it is in this stage")] = (
        True
    )
    hypernetwork_rate: Annotated[
        float, Field(gt=0, le=1000, description="learning rate of the hypernetwork, as a multiple of the body's")
    ] = 1.0
    agreement: Annotated[float, Field(ge=0, le=1000, description="lambda 1: weight of the agreement loss")] = 1.0
    disagreement: Annotated[float, Field(ge=0, le=1000, description="lambda 2: weight of the disagreement loss")] = (
        0.01
    )
    agreement_form: Annotated[
        Literal["kl", "cosine", "mse"],
        Field(description="divergence of the guesses at scored positions; or of states 1 - cos, squared difference"),
    ] = "kl"
    agreement_per: Annotated[
        Literal["token", "text"], Field(description="compare each token, or each text's mean over tokens")
    ] = "token"
    agreement_temperature: Annotated[
        float, Field(gt=0, le=100, description="kl only: both guesses are softened by it, the term times its square")
    ] = 2.0
    disagreement_form: Annotated[
        Disagreement,
        Field(description="cos2, abs, dot (raw), gram (all pairs of rows), coda (all pairs less identity)"),
    ] = "cos2"
    disagreement_per: Annotated[
        Literal["token", "text"], Field(description="compare each token, or each text's mean over tokens")
    ] = "text"
    centre: Annotated[bool, Field(description="disagreement: take the batch's mean off the rows first")] = True
    normalise: Annotated[
        bool, Field(description="rows are scaled to length 1 first, for the forms that see lengths: mse, dot, coda")
    ] = False
    layer: Annotated[
        int | None, Field(ge=1, description="block whose output is compared, from 1; null: what the head is given")
    ] = None
    random_prompt: Annotated[
        Literal["gaussian", "mixture"],
        Field(description="Gaussian with the components' moments, or components mixed by random weights"),
    ] = "gaussian"
    random_shared: Annotated[bool, Field(description="one random prompt a step, instead of one for each text")] = False
    detach_prompt: Annotated[
        bool, Field(description="no gradient of the disagreement reaches the hypernetwork; costs a further pass")
    ] = False
    loss_share: Annotated[
        float, Field(gt=0, le=1, description="share of a batch's texts on which the two losses are computed")
    ] = 1.0
    loss_every: Annotated[int, Field(ge=1, description="the two losses are computed in every n-th step")] = 1

    neutral = {"prompt": "none", "agreement": 0.0, "disagreement": 0.0}  # noqa: RUF012 - nothing is made then

    def __post_init__(self) -> None:
        take_preset(self, PRESETS)
        self.config()

    def config(self) -> HyperPromptConfig:
        """The settings of the hypernetwork.

        Raises:
            SettingsError: they do not go together.
        """
        if self.prompt == "constant":  # softmax over one component is 1, whatever is read
            return HyperPromptConfig(
                components=1, length=self.length, layers=0, encoder="embeddings", mix="softmax",
                position=self.position, init=self.init,
            )  # fmt: skip
        return HyperPromptConfig(**{name: getattr(self, name) for name in OF_HYPERNETWORK})

    # ------------------------------------------------------------------ before training

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Give the base a hypernetwork if it has none, and keep a frozen copy of it.

        Raises:
            MethodError: the base has a hypernetwork made with other settings, or fewer blocks than ``layer``.
            SettingsError: the settings do not fit the base.
        """
        self._anatomy: Anatomy = run.anatomy
        self._seed, self._step = run.seed, 0
        self._teacher: FrozenCopy | EarlierSelf | None = None
        self._shares = False
        self._prompt: Prompt = "none"
        self._random: Prompt = "none"
        self._alpha: Tensor | None = None
        self._states: States | None = None
        self._last: dict[str, Tensor] = {}
        self._plain: Any = run.needed("objective", self)
        blocks = len(run.anatomy.block_stacks(model)[-1][1])
        if self.layer is not None and self.layer > blocks:
            raise MethodError(
                f"hprompt: layer = {self.layer}, and this base has {blocks} blocks", fix=f"layer={blocks}   (or null)"
            )
        if self.prompt != "none":
            self._equip(model, run)
        hyperprompt = hyperprompt_of(model)
        if hyperprompt is not None:
            hyperprompt.requires_grad_(self.prompt != "none" and self.train_hypernetwork)
        if self._compares:
            self._teacher = self._copy(model, hyperprompt)
        return model

    @property
    def _compares(self) -> bool:
        return bool(self.agreement or self.disagreement)

    def _equip(self, model: nn.Module, run: Run) -> None:
        present = hyperprompt_of(model)
        if present is None:
            # an adapter has changed the modules inside the model; what it reads through is the base
            source = run.needed("base", self) if hasattr(model, "peft_config") else model
            self._check_room(run)
            attach(model, make_hyperprompt(source, self.config(), run.seed), run.anatomy)
            return
        wanted, has = self.config().resolved(model.config), present.config
        # how its components began says nothing about one that is trained already
        other = [name for name in OF_HYPERNETWORK if name != "init" and getattr(wanted, name) != getattr(has, name)]
        if other:
            raise MethodError(
                f"this base has a hypernetwork with {other[0]} = {getattr(has, other[0])}, "
                f"the settings say {getattr(wanted, other[0])}",
                why="It is made in the first stage and only trained on in later ones.",
                fix="--set " + " --set ".join(f"{name}={getattr(has, name)}" for name in other),
            )

    def _check_room(self, run: Run) -> None:
        """The base's positions must hold a block and the prompt; said here, before anything is computed."""
        limit = None if run.base is None else run.base.position_limit
        size = getattr(getattr(run.batches, "blocks", None), "block_size", 0)
        length = self.config().length
        if limit is not None and size + length > limit:
            fits = f"block_size={limit - length}" if limit - length > 7 else f"a base of more than {limit} positions"
            raise MethodError(
                f"hprompt: blocks of {size} tokens and a prompt of {length} places; the base has {limit} positions",
                why="Every token and every place of the prompt has a position of its own.",
                fix=f"{fits}   (or a shorter prompt: length={max(1, limit - size)})" if size < limit else fits,
            )

    def _copy(self, model: nn.Module, hyperprompt: HyperPrompt | None) -> FrozenCopy | EarlierSelf:
        if hasattr(model, "peft_config"):  # adapters are small; all else of the base is there already
            return EarlierSelf(model, self.name)
        without: list[nn.Module] = [] if hyperprompt is None else [hyperprompt]
        if not (self.agreement and self.agreement_form == "kl"):  # nobody asks the copy for words
            found = (getattr(model, step, None) for step in self._anatomy.pretraining_head)
            without += [module for module in found if isinstance(module, nn.Module)]
        return FrozenCopy(model, self.name, without)

    def param_groups(self, model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The hypernetwork's weights in groups of their own, if their rate differs."""
        if self.hypernetwork_rate == 1.0:
            return groups
        return [
            {**group, "lr": group["lr"] * (self.hypernetwork_rate if written else 1.0)}
            for written, group in split_groups(groups, lambda name, _: "hyperprompt" in name.split("."))
        ]

    # ------------------------------------------------------------------ a step

    def before_step(self, model: nn.Module) -> None:
        """Count the steps; see that the copy is where the model computes."""
        self._step += 1
        if isinstance(self._teacher, FrozenCopy):
            self._teacher.place(model)
            if not self._shares:
                self._share_first_base(model, self._teacher)
                self._shares = True
        elif self._teacher is not None:
            self._teacher.place(model)

    def _share_first_base(self, model: nn.Module, teacher: FrozenCopy) -> None:
        """In a first stage the copy is the base that the hypernetwork reads through: one set of weights is enough."""
        hyperprompt = hyperprompt_of(model)
        if hyperprompt is None or self._anatomy.encoder_decoder:
            return
        theirs = dict(hyperprompt.encoder.named_parameters())
        for name, own in self._anatomy.backbone(teacher.model).named_parameters():
            other = theirs.get(name)
            if other is not None and other.dtype == own.dtype and other.shape == own.shape and torch.equal(other, own):
                own.data = other.data

    def prepare_batch(self, batch: Batch) -> Batch:
        """In a decoder the first tokens of a text carry no loss: they are what the prompt is written from."""
        if not self._anatomy.causal or self.prompt != "generated":
            return batch
        reads = self.reads or max(1, batch["labels"].shape[1] // 8)
        return {**batch, "labels": without_first_labels(batch["labels"], reads)}

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """The plain forward pass beside a prompt written for the batch; the prompt is kept for the losses."""
        self._prompt = self._written(model, batch)
        with given_prompt(model, self._prompt), self._watched(model) as seen:
            output = self._plain.forward(model, batch)
        self._states = None
        if self._due:
            self._states = States(seen[0] if seen else self._text_hidden(output), output.logits)
        return output

    def _text_hidden(self, output: Any) -> Tensor:
        if not isinstance(output, Labelled) or output.hidden is None:
            raise MethodError(
                "hprompt needs the hidden states of the text, and the objective gives none",
                why="Both losses compare them.",
                fix="Run(..., objective=LanguageModelling(anatomy))",
            )
        return output.hidden

    @property
    def _due(self) -> bool:
        return self._teacher is not None and (self._step - 1) % self.loss_every == 0

    def _written(self, model: nn.Module, batch: Batch) -> Prompt:
        hyperprompt = hyperprompt_of(model)
        if hyperprompt is None or self.prompt == "none":
            return "none"
        allowed = unscored_beginning(batch["labels"], NO_LABEL) if self._anatomy.causal else None
        weights = hyperprompt.weights(batch["input_ids"], batch.get("attention_mask"), allowed)
        self._alpha = weights.detach()
        return mixture(weights, hyperprompt.components)

    def objective(self, model: nn.Module, batch: Batch, output: Any, terms: Terms) -> Terms:
        """The plain terms, and those of the two losses whose weight is not 0, in the steps in which they are due."""
        states, self._states = self._states, None
        prompt = self._prompt
        if isinstance(prompt, Tensor):
            self._prompt = prompt.detach()
        if states is None:
            return terms
        count = math.ceil(self.loss_share * len(batch["input_ids"]))
        part = first_rows(batch, count)
        own: Prompt = prompt if isinstance(prompt, str) else prompt[:count].detach()
        before: States | None = None
        terms = dict(terms)
        if self.agreement:
            random = self._drawn(model, part)
            if isinstance(random, str):  # no prompt: the pass was made already
                now = States(states.hidden[:count], self._logits_of_first(states, batch, part))
            else:
                with answering(model):
                    now = self._asked(model, part, random, logits=self.agreement_form == "kl")
            then = self._before(model, part, random)
            before = then if isinstance(random, str) else None
            terms["agreement"] = self.agreement * self._agreement(now, then, part)
        if self.disagreement:
            hidden = states.hidden[:count]
            if self.detach_prompt and not isinstance(own, str):
                with answering(model):
                    hidden = self._asked(model, part, own, logits=False).hidden
            then = before or self._before(model, part, own)
            terms["disagreement"] = self.disagreement * self._disagreement(hidden, then.hidden, part)
        self._last = {name: terms[name].detach() for name in ("agreement", "disagreement") if name in terms}
        return terms

    def _logits_of_first(self, states: States, batch: Batch, part: Batch) -> Tensor | None:
        if states.logits is None or self.agreement_form != "kl":
            return None
        labels = part["labels"][:, 1:] if self._anatomy.causal else part["labels"]
        return states.logits[: int((labels != NO_LABEL).sum())]  # items stand row by row

    # ------------------------------------------------------------------ the losses

    def _agreement(self, now: States, then: States, batch: Batch) -> Tensor:
        if self.agreement_form == "kl":
            assert now.logits is not None
            assert then.logits is not None
            if not len(now.logits):
                return upcast(now.logits).sum()
            return logit_distillation(now.logits, then.logits, self.agreement_temperature)
        form: Agreement = self.agreement_form
        current, weights = self._rows(now.hidden, batch, self.agreement_per)
        previous, _ = self._rows(then.hidden, batch, self.agreement_per)
        if self.normalise:
            current, previous = unit(current), unit(previous)
        return agreement(current, previous, form, weights)

    def _disagreement(self, now: Tensor, then: Tensor, batch: Batch) -> Tensor:
        current, weights = self._rows(now, batch, self.disagreement_per)
        previous, _ = self._rows(then, batch, self.disagreement_per)
        if self.centre:
            current, previous = centred(current, weights), centred(previous, weights)
        if self.normalise:
            current, previous = unit(current), unit(previous)
        return disagreement(current, previous, self.disagreement_form, weights)

    def _rows(self, hidden: Tensor, batch: Batch, per: Rows) -> tuple[Tensor, Tensor]:
        if self._anatomy.encoder_decoder:
            mask = (batch["labels"] != NO_LABEL).long()
        else:
            mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        return vectors_of(hidden, mask, batch, per, self._anatomy.causal)

    # ------------------------------------------------------------------ passes

    def _asked(self, model: nn.Module, batch: Batch, prompt: Prompt, *, logits: bool) -> States:
        with given_prompt(model, prompt), self._watched(model) as seen:
            hidden = text_hidden(model, batch, self._anatomy)
        scored = None
        if logits:
            scored = self._anatomy.pretraining_logits(model, at_labels(hidden, batch, self._anatomy)[0])
        return States(seen[0] if seen else hidden, scored)

    @torch.no_grad()
    def _before(self, model: nn.Module, batch: Batch, prompt: Prompt) -> States:
        logits = bool(self.agreement) and self.agreement_form == "kl"
        if isinstance(self._teacher, FrozenCopy):
            return self._asked(self._teacher.model, batch, prompt, logits=logits)
        assert self._teacher is not None
        with self._teacher.in_place(model), answering(model):
            return self._asked(model, batch, prompt, logits=logits)

    @contextmanager
    def _watched(self, model: nn.Module) -> Iterator[list[Tensor]]:
        """Inside, the states that block ``layer`` gives for the text are put into the list; none if that is null."""
        seen: list[Tensor] = []
        if self.layer is None or self._teacher is None:
            yield seen
            return
        block = self._anatomy.block_stacks(model)[-1][1][self.layer - 1]

        def keep(module: nn.Module, arguments: Any, output: Any) -> None:
            seen.append(within_pass(model, output if isinstance(output, Tensor) else output[0]))

        handle = block.register_forward_hook(keep)
        try:
            yield seen
        finally:
            handle.remove()

    @torch.no_grad()
    def _drawn(self, model: nn.Module, batch: Batch) -> Prompt:
        """Random prompts [b, L, d], or [1, L, d] for all texts; the same for a text however the batch is cut."""
        hyperprompt = hyperprompt_of(model)
        if hyperprompt is None or self.prompt == "none":
            return "none"
        if self.random_shared:
            self._random = self._draw(hyperprompt, stable_seed("prompt", self._seed, self._step))
        else:
            texts = [",".join(map(str, row)) for row in batch["input_ids"].tolist()]
            seeds = [stable_seed("prompt", self._seed, self._step, text) for text in texts]
            self._random = torch.cat([self._draw(hyperprompt, seed) for seed in seeds])
        return self._random

    def _draw(self, hyperprompt: HyperPrompt, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        if len(hyperprompt.components) == 1:  # mixed, it would be what it is
            return random_like(hyperprompt.components[0], 1, generator)
        return hyperprompt.random(1, generator, self.random_prompt)

    # ------------------------------------------------------------------ looking on

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """What the last micro-batch says about the two losses and the prompts; empty without any.

        ``agreement``, ``disagreement``: the two terms, weighted, of the last step in which they were due.
        ``components``: the effective number of components in use. ``entropy``: of a text's weights over them, in nats.
        ``cosine_to_random``: between texts' prompts and the random ones of the last step that drew some, the mean;
        near 1, agreement and disagreement ask for opposite things. ``cosine_between_texts``: between the prompts of
        two texts of the batch, the mean over all pairs; near 1, there is one prompt for all of them.
        """
        found = {name: float(term) for name, term in self._last.items()}
        if self._alpha is None:
            return found
        found |= {
            "components": float(effective_number(self._alpha)),
            "entropy": float(weight_entropy(self._alpha)),
        }
        if isinstance(self._prompt, Tensor) and len(self._prompt) > 1:
            each = unit(self._prompt.detach().flatten(1))
            count = len(each)
            found["cosine_between_texts"] = float((each @ each.T).sum() - each.square().sum()) / (count * (count - 1))
        if isinstance(self._random, Tensor) and isinstance(self._prompt, Tensor):
            own, random = (unit(one.detach().flatten(1)) for one in (self._prompt, self._random))
            count = min(len(own), len(random))
            random = random if len(random) == 1 else random[:count]
            own = own if len(random) == 1 else own[:count]
            found["cosine_to_random"] = float((own * random).sum(dim=-1).mean())
        return found

    def finish(self, model: nn.Module, run: Run) -> nn.Module:
        """All that is left trains again; the copy is let go."""
        self._teacher, self._states = None, None
        hyperprompt = hyperprompt_of(model)
        if hyperprompt is not None:
            hyperprompt.requires_grad_(True)
        return model

    def state_dict(self) -> dict[str, Any]:
        """How many steps were made: random prompts differ from step to step."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the count back."""
        self._step = int(state["step"])
