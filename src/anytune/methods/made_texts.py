"""Texts a base makes up itself, after the pattern of given ones: no text of a task need be kept to have some like it.

A decoder goes on from the first tokens of a text. A masked-word model hides a share of a text's words, fills in words
drawn from what it holds likely, and does so several times over, other words each time, until little of the text is
left. All draws come from the generator that is given; what a model answers, without gradients and dropout, does the
rest, so the same seed gives the same texts in every process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from anytune.data.packing import TokenizerFacts
from anytune.errors import MethodError
from anytune.methods.step import upcast
from anytune.models.anatomy import Anatomy
from anytune.models.language_modelling import NO_LABEL, labelled_logits

#: Texts made at once.
AT_ONCE = 32


@dataclass(frozen=True)
class Drawing:
    """How words are drawn: what is most likely is softened by ``temperature``, and only ``among`` so many count."""

    temperature: float = 1.0
    among: int = 50


def draw(logits: Tensor, how: Drawing, barred: Sequence[int], generator: Generator) -> Tensor:
    """A word for each row of ``logits`` [items, words], int64 [items] on the CPU.

    Args:
        logits: what the model answers.
        how: see ``Drawing``.
        barred: words that are never drawn (special tokens).
        generator: on the CPU; moved on.
    """
    likely = upcast(logits).detach().cpu().clone()
    likely[:, [word for word in barred if word < likely.shape[1]]] = -torch.inf
    best = likely.topk(min(how.among, likely.shape[1]), dim=-1)
    shares = torch.softmax(best.values / how.temperature, dim=-1)
    places = torch.multinomial(shares, 1, generator=generator)
    return best.indices.gather(1, places)[:, 0]


@torch.no_grad()
def refilled(
    model: nn.Module, anatomy: Anatomy, rows: Sequence[Sequence[int]], facts: TokenizerFacts, generator: Generator, *,
    share: float, rounds: int, how: Drawing, device: Any,
) -> list[list[int]]:  # fmt: skip
    """Rows of token ids with their ordinary words drawn anew, some at a time.

    Args:
        model: a masked-word model in eval mode, on ``device``.
        anatomy: of its kind.
        rows: token ids with their special tokens, which stay.
        facts: of the tokenizer.
        generator: decides which words are hidden and what is drawn.
        share: of a row's ordinary words hidden at a time; at least one.
        rounds: how often.
        how: words are drawn.
        device: where the model is.
    """
    assert facts.mask_id is not None
    special, filling = torch.tensor(facts.special_ids), facts.padding()
    made: list[list[int]] = []
    for start in range(0, len(rows), AT_ONCE):
        chunk = [torch.tensor(row) for row in rows[start : start + AT_ONCE]]
        ids = pad_sequence(chunk, batch_first=True, padding_value=filling)
        mask = pad_sequence([torch.ones_like(row) for row in chunk], batch_first=True)
        ordinary = mask.bool() & ~torch.isin(ids, special)
        hidden_count = (ordinary.sum(dim=1) * share).ceil().long()
        for _ in range(rounds):
            order = (
                torch.rand(ids.shape, generator=generator).masked_fill(~ordinary, 2.0).argsort(dim=1).argsort(dim=1)
            )
            chosen = ordinary & (order < hidden_count[:, None])
            if not bool(chosen.any()):
                break
            batch = {
                "input_ids": ids.masked_fill(chosen, facts.mask_id).to(device),
                "attention_mask": mask.to(device),
                "labels": torch.where(chosen, ids, NO_LABEL).to(device),
            }
            logits, _ = labelled_logits(model, batch, anatomy)
            ids[chosen] = draw(logits, how, facts.special_ids, generator)
        made += [row[: len(given)].tolist() for row, given in zip(ids, chunk, strict=True)]
    return made


@torch.no_grad()
def continued(
    model: nn.Module, rows: Sequence[Sequence[int]], facts: TokenizerFacts, generator: Generator, *,
    beginning: int, how: Drawing, device: Any,
) -> list[list[int]]:  # fmt: skip
    """Rows of token ids that a decoder writes on from their first ``beginning`` tokens, up to their old length.

    Args:
        model: a decoder with its vocabulary head, in eval mode, on ``device``.
        rows: token ids; shorter ones than ``beginning`` stay as they are.
        facts: of the tokenizer; its end-of-text token ends a text early.
        generator: decides what is drawn.
        beginning: tokens kept, at least 1.
        how: words are drawn.
        device: where the model is.
    """
    barred = [token for token in facts.special_ids if token != facts.end_id]
    made = [list(row) for row in rows]
    # texts of like length together: a batch is written until its longest is done
    long = sorted((place for place, row in enumerate(made) if len(row) > beginning), key=lambda one: -len(made[one]))
    for start in range(0, len(long), AT_ONCE):
        places = long[start : start + AT_ONCE]
        ids = torch.tensor([made[place][:beginning] for place in places])
        known: Any = None
        for length in range(beginning, len(made[places[0]])):
            given = ids if known is None else ids[:, -1:]
            output = model(
                input_ids=given.to(device), attention_mask=torch.ones(len(ids), length, device=device).long(),
                past_key_values=known, use_cache=True,
            )  # fmt: skip
            known = output.past_key_values
            ids = torch.cat([ids, draw(output.logits[:, -1], how, barred, generator)[:, None]], dim=1)
        for place, row in zip(places, ids.tolist(), strict=True):
            written = row[: len(made[place])]
            ends = [at for at, token in enumerate(written) if token == facts.end_id and at >= beginning]
            made[place] = written[: ends[0]] if ends else written
    return made


def look_real(real: Tensor, made: Tensor, strength: float = 1.0) -> Tensor:
    """How much each made text looks like a real one to a linear probe that has not seen it, [made] in fp64.

    The probe is ridge regression on (1 real, 0 made), fitted on every other text and asked about the rest, and the
    other way round; columns are standardised first.

    Args:
        real: [n, d] vectors of real texts.
        made: [m, d] of made ones.
        strength: of the ridge, for each text.

    Raises:
        MethodError: there are fewer than two of either.
    """
    if min(len(real), len(made)) < 2:
        raise MethodError(
            f"{len(real)} real and {len(made)} made texts",
            why="A probe that tells them apart needs two of each.",
            fix="--set keep=1   (no probe), or more seed texts",
        )
    rows = torch.cat([real, made]).double()
    rows = (rows - rows.mean(dim=0)) / rows.std(dim=0).clamp(min=1e-9)
    rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], dim=1)
    is_real = torch.zeros(len(rows), dtype=torch.float64)
    is_real[: len(real)] = 1
    # real and made count alike, however many there are of each
    weights = torch.where(is_real == 1, 1 / len(real), 1 / len(made)) * len(rows) / 2
    half = torch.cat([torch.arange(len(real)) % 2, torch.arange(len(made)) % 2])
    found = torch.empty(len(made), dtype=torch.float64)
    for part in (0, 1):
        seen = half == part
        weighted = rows[seen] * weights[seen][:, None]
        gram = weighted.T @ rows[seen] + strength * int(seen.sum()) * torch.eye(rows.shape[1], dtype=torch.float64)
        probe = torch.linalg.solve(gram, weighted.T @ is_real[seen])
        asked = ~seen
        asked[: len(real)] = False
        found[asked[len(real) :]] = rows[asked] @ probe
    return found
