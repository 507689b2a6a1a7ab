"""ATTEMPT: each text mixes its own prompt from frozen source prompts and one that is trained.

In plain words: several prompts of other tasks stay as they are, and a new one is trained beside them. A small network
reads each text's words and says how much of every prompt this text gets. A source that is
of no use can get little weight; training that starts from it has to forget it.

Formula: P(x) = P_t + sum_j a_j(x) P_j over the k sources and P_t itself, each [n, w] (n places, w values at a place).
a(x) = softmax_j(<h(x), p_j> / (temperature * sqrt(w))), p_j = the largest of each of the w values over P_j's places;
h(x) = LayerNorm(W_up silu(W_down m(x))), m(x) = the largest of each of the d values over the text's word embeddings,
W_down: [width, d], W_up: [w, width].

Paper: Asai et al. 2022 (ATTEMPT: Attentional Mixtures of Soft Prompts).
Costs: a prompt of its own for each text, so the prompt's places are no longer shared by the rows of a batch;
width * (d + w) trained weights beside the prompt (for deep prompts w is twice the widths of all layers), which are not
stored; k frozen prompts in memory.
When not to use it: with one source, where ``prompt_transfer`` starts from it at no cost; where the sources are of
another length or kind (refused); where every text must be answered with a mixture of its own, see below.
Choices of ours: what is stored is one plain prompt that PEFT loads: the mean of the prompts that ``texts`` training
texts mix, drawn by the run's seed. Validation scores that prompt too, so that what is chosen is what is kept. ``per:
task`` trains that very prompt, so that training and use agree; ``per: text`` is the paper's way. Attention is divided
by sqrt(w), so that a temperature means the same for prompts of any width. Special tokens are read like words; of a
text that is to be continued, only what stands before the first answer. The attention starts at random from the run's
seed: it is not trained on the sources' tasks first. Width, temperature and texts are ours and not tuned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from anytune.data.splits import permutation
from anytune.methods.consistency import word_modules
from anytune.methods.mixing import private_generator
from anytune.methods.objective import LanguageModelling
from anytune.methods.prompts import RATE, Dropout, put_on
from anytune.methods.protocol import Batch, Method, Run
from anytune.methods.registry import register
from anytune.methods.several_prompts import several_prompts
from anytune.methods.step import upcast
from anytune.models.hyperprompt import unscored_beginning
from anytune.models.language_modelling import NO_LABEL
from anytune.models.soft_prompts import SoftPrompt, given_prompt_values, make_prompt, prompt_of

#: texts whose words are looked up at once
ROWS_AT_ONCE = 64

# ---------------------------------------------------------------------- on tensors


def largest_of_words(words: Tensor, read: Tensor) -> Tensor:
    """The largest of each value over the words of a text that are read: [b, d]; 0 for a text of none.

    Args:
        words: embeddings [b, n, d].
        read: 1 or True for words that are read, [b, n].
    """
    read = read.bool().unsqueeze(-1)
    largest = words.masked_fill(~read, -math.inf).amax(dim=1)
    return largest.masked_fill(~read.any(dim=1), 0.0)


def attention(queries: Tensor, prompts: Tensor, temperature: float = 1.0) -> Tensor:
    """``softmax_j(<h, p_j> / (temperature * sqrt(w)))`` [b, k]: how much of each prompt a text gets.

    Args:
        queries: h, one for each text, [b, w].
        prompts: values of k prompts, [k, n, w]; p_j is the largest of each value over the n places.
        temperature: above 0; the larger, the more alike the weights.
    """
    keys = prompts.amax(dim=1)
    scores = upcast(queries @ keys.T) / (temperature * math.sqrt(queries.shape[-1]))
    return scores.softmax(dim=-1)


def mixed_prompts(target: Tensor, sources: Tensor, weights: Tensor) -> Tensor:
    """``P_t + sum_j a_j P_j`` over the sources and P_t: [..., n, w].

    Args:
        target: P_t, [n, w].
        sources: [k, n, w].
        weights: a, [..., k + 1], the target's last.
    """
    of_sources = torch.tensordot(weights[..., :-1], sources, dims=1)
    return of_sources + (1 + weights[..., -1])[..., None, None] * target


# ---------------------------------------------------------------------- modules


class TextQuery(nn.Module):
    """``h(x) = LayerNorm(W_up silu(W_down m(x)))``: what a text asks of the prompts.

    Args:
        words: d, values of a word.
        width: of the layer between.
        values: w, values at a place of a prompt.
        seed: of the weights, drawn as torch draws linear maps'.
    """

    def __init__(self, words: int, width: int, values: int, seed: int) -> None:
        super().__init__()
        # not filled by torch, which would draw from its own generator
        self.down = nn.utils.skip_init(nn.Linear, words, width, bias=False)
        self.up = nn.utils.skip_init(nn.Linear, width, values, bias=False)
        self.norm = nn.LayerNorm(values)
        with torch.no_grad():
            for index, layer in enumerate((self.down, self.up)):
                bound = layer.in_features**-0.5
                layer.weight.uniform_(-bound, bound, generator=private_generator(seed, 0, index))

    def forward(self, texts: Tensor) -> Tensor:
        """h [b, w] of m [b, d]."""
        found: Tensor = self.norm(self.up(functional.silu(self.down(texts))))
        return found


class PromptMixture(SoftPrompt):
    """A prompt that is the mean of those that some texts mix from frozen prompts and a trained one.

    Args:
        target: what becomes P_t.
        sources: [k, n, w].
        texts: m(x) of the texts whose mean it is, [N, d].
        query: says what a text asks for.
        temperature: see ``attention``.
    """

    sources: Tensor
    texts: Tensor

    def __init__(
        self, target: SoftPrompt, sources: Tensor, texts: Tensor, query: TextQuery, temperature: float
    ) -> None:
        super().__init__(target.config, target.layout)
        self.table = target.table
        self.query, self.temperature = query, temperature
        # made by prepare from what is stored elsewhere: no weights of the model
        self.register_buffer("sources", sources, persistent=False)
        self.register_buffer("texts", texts, persistent=False)

    def weights(self, texts: Tensor) -> Tensor:
        """How much of each prompt a text gets, [b, k + 1], P_t's last."""
        every = torch.cat([self.sources, self.table.unsqueeze(0)])
        return attention(self.query(texts), every, self.temperature)

    def values(self) -> Tensor:
        """The mean of the prompts of ``texts``, [n, w]."""
        return mixed_prompts(self.table, self.sources, self.weights(self.texts).mean(dim=0))

    def values_of(self, texts: Tensor) -> Tensor:
        """Each text's own prompt, [b, n, w]."""
        return mixed_prompts(self.table, self.sources, self.weights(texts))


# ---------------------------------------------------------------------- the method


@register
@dataclass(kw_only=True)
class Attempt(Method):
    """Attention over frozen source prompts and a trained one."""

    per: Annotated[
        Literal["text", "task"],
        Field(description="what is trained: text = a mixture for each text; task = the mean one, which is stored"),
    ] = "text"
    width: Annotated[
        int, Field(ge=1, le=4096, description="of the layer between a text's words and what it asks of the prompts")
    ] = 64
    temperature: Annotated[
        float, Field(gt=0, le=1000, description="the higher, the more alike the weights of the prompts")
    ] = 1.0
    texts: Annotated[
        int, Field(ge=1, description="training texts whose mean mixture is the prompt that is scored and stored")
    ] = 256
    dropout: Dropout = 0.1
    init_std: Annotated[
        float, Field(gt=0, le=10, description="standard deviation of the values the trained prompt starts from")
    ] = 0.02

    neutral = None
    neutral_reason = "a mixture of several prompts is the method; one that starts at random is prompt_tuning"
    takes = ("sources",)
    suggests = {"learning_rate": RATE}  # noqa: RUF012

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Put the mixture on; trained are its own prompt, its attention and the head.

        Raises:
            MethodError: there is no source, sources of different kind or length or for another base, or an adapter on
                the model.
        """
        self._plain, self._anatomy = run.needed("objective", self), run.anatomy
        self._shares: Tensor | None = None
        config, sources = several_prompts(model, run, self, self.dropout)
        target = make_prompt(model, config, run.anatomy, run.seed, std=self.init_std)
        texts = self._some_texts(model, run)
        query = TextQuery(texts.shape[1], self.width, sources.shape[2], run.seed)
        return put_on(model, run, self, PromptMixture(target, sources, texts, query, self.temperature))

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """The plain pass with each text's own prompt, or with that of all."""
        mixture = prompt_of(model)
        assert isinstance(mixture, PromptMixture)
        texts = self._read(model, batch) if self.per == "text" else mixture.texts
        weights = mixture.weights(texts)
        self._shares = weights.detach().mean(dim=0)
        weights = weights if self.per == "text" else weights.mean(dim=0)
        with given_prompt_values(model, mixed_prompts(mixture.table, mixture.sources, weights)):
            return self._plain.forward(model, batch)

    def figures(self) -> dict[str, float]:
        """How much of its own prompt the last texts got, and of each source."""
        if self._shares is None:
            return {}
        *of_sources, own = self._shares.tolist()
        return {"own": own, **{f"source_{number}": share for number, share in enumerate(of_sources, 1)}}

    @torch.no_grad()
    def _read(self, model: nn.Module, batch: Batch) -> Tensor:
        """m(x) [b, d] of a batch's texts; where text is to be written, of what stands before the first answer."""
        words = word_modules(model, self._anatomy)[0](batch["input_ids"])
        read = batch.get("attention_mask")
        read = torch.ones_like(batch["input_ids"]) if read is None else read
        if self._anatomy.causal and isinstance(self._plain, LanguageModelling):
            read = read.bool() & unscored_beginning(batch["labels"], NO_LABEL)
        return upcast(largest_of_words(words, read))

    @torch.no_grad()
    def _some_texts(self, model: nn.Module, run: Run) -> Tensor:
        """m(x) of ``texts`` training texts, [N, d]: drawn by the run's seed, or an epoch's first as they come."""
        batches, found, count = run.needed("batches", self), list[Tensor](), 0
        device = next(model.parameters()).device
        for batch in _batches_of(batches, self.texts, run.seed):
            on_device = {key: one.to(device) for key, one in batch.items() if isinstance(one, Tensor)}
            found.append(self._read(model, on_device))
            count += len(found[-1])
            if count >= self.texts:
                break
        return torch.cat(found)[: self.texts]


def _batches_of(batches: Any, texts: int, seed: int) -> Iterator[Batch]:
    encoded = getattr(batches, "encoded", None)
    if encoded is None:
        yield from (batches.batch(number) for number in range(batches.batches_per_epoch))
        return
    rows = permutation(len(encoded), "texts", seed)[:texts]
    for start in range(0, len(rows), ROWS_AT_ONCE):
        yield encoded.batch(rows[start : start + ROWS_AT_ONCE])
