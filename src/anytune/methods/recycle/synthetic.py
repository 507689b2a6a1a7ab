"""Synthetic distillation: the base makes up texts like the task's, and the new weights learn the old model's answers.

In plain words: the task's data are gone or may not be used, a few texts are left. The new base writes texts after
their pattern; a simple probe throws out those that look least like the real ones; then the new weights learn to answer
these texts as the old model does. No label is used.

Formula: of each of the seed texts, versions by the base itself: a masked-word model hides ``share`` of the words and
draws others in ``rounds`` rounds; a decoder goes on from the first ``beginning`` tokens. Of ``texts / keep`` of them
the ``texts`` with the highest probe value are kept: ridge regression of real against made on mean hidden states,
each asked only about texts it was not fitted on. Then the loss of ``distill`` with ``label_free``.

Paper: Wang, Runqian et al. 2024 (Trans-LoRA): made texts, a discriminator, distillation from the old adapter.
Costs: texts / keep * rounds forward passes of the base for a masked-word model, one for each token for a decoder; one
pass for the probe and one of the old model over the texts; a step is plain tuning's. In every process.
When not to use it: when the task's own texts are at hand (``distill`` with ``label_free``, and with real unlabelled
texts better still); for tasks whose answer lies in a fixed format that a base of this size does not write.
Choices of ours: the paper writes with a large instruction-tuned model and trains a discriminator of its own size; a
small base rewrites seed texts, and the probe is linear. Seeds are the training rows, or the first ``seeds`` of them by
chance, and are themselves not trained on, but for those too short for a decoder to go on from. Pairs are rewritten
text by text. The probe is off with ``keep: 1``. None of the defaults is tuned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from anytune.data.packing import TokenizerFacts
from anytune.data.tasks import Example
from anytune.errors import MethodError
from anytune.methods.made_texts import AT_ONCE, Drawing, continued, look_real, refilled
from anytune.methods.outdated import outdated_of
from anytune.methods.protocol import Run
from anytune.methods.recycle.distill import Distill
from anytune.methods.registry import register
from anytune.methods.teaching import state_at
from anytune.models.anatomy import ANATOMIES


@register
@dataclass(kw_only=True)
class Synthetic(Distill):
    """Distillation on texts that the new base makes up."""

    texts: Annotated[int, Field(ge=1, le=1_000_000, description="how many made texts are trained on")] = 256
    seeds: Annotated[int, Field(ge=0, description="training rows that serve as patterns; 0 = all")] = 0
    share: Annotated[
        float, Field(gt=0, le=1, description="masked-word models: share of a text's words drawn anew in a round")
    ] = 0.3
    rounds: Annotated[int, Field(ge=1, le=100, description="masked-word models: how often words are drawn anew")] = 3
    beginning: Annotated[int, Field(ge=1, le=1000, description="decoders: tokens of a seed text that are kept")] = 4
    softness: Annotated[float, Field(gt=0, le=100, description="temperature of the base's draws")] = 1.0
    among: Annotated[int, Field(ge=1, description="words are drawn among so many of the likeliest")] = 50
    keep: Annotated[
        float, Field(gt=0, le=1, description="share of the made texts that is kept, by their likeness to real ones")
    ] = 0.5
    label_free: Annotated[Literal[True], Field(description="no label is ever used")] = True

    neutral = None
    neutral_reason = "it trains on texts of its own, so no setting is training on the task"
    begins: ClassVar[Literal["moved", "made", "fresh"]] = "fresh"

    kinds = tuple(row.model_type for row in ANATOMIES.values() if not row.encoder_decoder)
    kinds_reason = "an encoder-decoder writes what was cut out, not whole texts"

    def reads_unlabelled(self) -> bool:
        """It makes its own."""
        return False

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        """Make the texts, put them in the place of the training rows, and ask the old model about them.

        Raises:
            MethodError: the base cannot write (its pre-training head is gone), or the
                task's answers are responses.
        """
        outdated = outdated_of(run, self.name)
        run.batches = outdated.batches_of(self._made(outdated, run))
        return super().prepare(model, run)

    def _made(self, outdated: Any, run: Run) -> list[Example]:
        generator = Generator().manual_seed(run.seed)
        rows: list[Example] = list(outdated.examples)
        order = torch.randperm(len(rows), generator=generator).tolist()
        real = [rows[place] for place in order[: self.seeds or None]]
        wanted = math.ceil(self.texts / self.keep)
        patterns = [real[place % len(real)] for place in range(wanted)]
        base, device = run.needed("base", self), run.needed("device", self)
        writer, tokenizer = self._writer(base), base.tokenizer()
        writer = writer.to(device)
        pieces = [text for one in patterns for text in (one.text, one.text_pair) if text is not None]
        written = iter(self._rewritten(pieces, writer, tokenizer, run, generator))
        made = [_like(one, next(written), next(written) if one.text_pair is not None else None) for one in patterns]
        if self.keep < 1:
            kept, others = (self._vectors(some, writer, tokenizer, run) for some in (real, made))
            best = look_real(kept, others).argsort(descending=True, stable=True)[: self.texts]
            made = [made[place] for place in sorted(best.tolist())]
        return made

    def _writer(self, base: Any) -> nn.Module:
        writer, missing = base.pretraining_model(0)
        if missing:
            raise MethodError(
                f"base {base.name} has no pre-training head: {', '.join(missing[:3])}",
                why="With a random one it would write at random.",
                fix="--method distill --set label_free=true --unlabelled FILE",
            )
        model: nn.Module = writer
        return model

    def _rewritten(
        self, texts: Sequence[str], writer: nn.Module, tokenizer: Any, run: Run, generator: Generator
    ) -> list[str]:
        facts, how = TokenizerFacts.of(tokenizer), Drawing(self.softness, self.among)
        rows = self._ids(texts, tokenizer, run)
        if run.anatomy.objective == "mlm":
            made = refilled(
                writer, run.anatomy, rows, facts, generator, share=self.share, rounds=self.rounds, how=how,
                device=run.device,
            )  # fmt: skip
        else:
            made = continued(
                writer, rows, facts, generator, beginning=self.beginning, how=how, device=run.device
            )  # fmt: skip
        found = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in made]
        return [text or given for text, given in zip(found, texts, strict=True)]

    def _ids(self, texts: Sequence[str], tokenizer: Any, run: Run) -> list[list[int]]:
        """Token ids cut at the length the task is read at."""
        longest = getattr(getattr(run.batches, "encoded", None), "max_length", None) or 128
        given = tokenizer(list(texts), truncation=True, max_length=longest, padding=False, verbose=False)
        rows: list[list[int]] = given["input_ids"]
        return rows

    @torch.no_grad()
    def _vectors(self, examples: Sequence[Example], writer: nn.Module, tokenizer: Any, run: Run) -> Tensor:
        """[n, width]: the mean hidden state of each text (of pairs, of both texts as one)."""
        texts = [one.text if one.text_pair is None else f"{one.text} {one.text_pair}" for one in examples]
        rows, found = self._ids(texts, tokenizer, run), []
        filling = TokenizerFacts.of(tokenizer).padding()
        body = run.anatomy.backbone(writer)
        for start in range(0, len(rows), AT_ONCE):
            chunk = rows[start : start + AT_ONCE]
            width = max(1, *map(len, chunk))
            ids = torch.tensor([[*row, *[filling] * (width - len(row))] for row in chunk], device=run.device)
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in chunk], device=run.device)
            hidden = body(input_ids=ids, attention_mask=mask)[0]
            found.append(state_at(hidden, {"attention_mask": mask}, "mean", run.anatomy.causal).cpu())
        return torch.cat(found)


def _like(pattern: Example, first: str, second: str | None) -> Example:
    """A row like the pattern with other texts; of rows of words the text's own words. Its label means nothing."""
    words = tuple(first.split()) or pattern.words if pattern.words is not None else None
    return replace(pattern, text=" ".join(words) if words else first, text_pair=second, words=words, label=0)
