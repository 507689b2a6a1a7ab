"""Masked-language-model targets: which positions the model must guess, and what it sees there.

Of the ordinary tokens (no [CLS], [SEP], [PAD] ...) a share p is chosen. A chosen position is shown as [MASK] with
probability ``replace``, as a random word with probability ``random``, else as it is; its label is the true token, and
-100 everywhere else. The defaults 0.15 / 0.8 / 0.1 are those of BERT (Devlin et al. 2019, section 3.1, Task #1).
Random words come from the whole vocabulary except special tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from anytune.errors import DataError, SettingsError

#: The label of positions that carry no loss, as torch's cross entropy has it.
IGNORED = -100


def mask_tokens(
    input_ids: Tensor,
    *,
    special: Tensor | Sequence[int],
    mask_id: int,
    vocabulary_size: int,
    generator: torch.Generator,
    probability: float = 0.15,
    replace: float = 0.8,
    random: float = 0.1,
    special_ids: Sequence[int] = (),
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose positions and hide them. Pure: the input stays as it is, randomness comes from ``generator`` alone.

    The number of draws depends on the shape alone, so the same generator state and shape give the same choice.

    Args:
        input_ids: token ids [b, n], int64.
        special: positions never chosen, as a bool tensor [b, n], or the ids of the special tokens.
        mask_id: id of the mask token.
        vocabulary_size: random words are drawn from ``range(vocabulary_size)`` except special ids.
        generator: a CPU generator; it is moved on.
        probability: share of ordinary positions chosen.
        replace: share of the chosen positions shown as the mask token.
        random: share of the chosen positions shown as a random word.
        special_ids: ids that are no random words, where ``special`` gives positions.
        counts: int64 [b]: just so many positions of each row are chosen, whatever ``probability``; fewer where a row
            has fewer ordinary ones. The result is on its device, and nothing waits for that.

    Returns:
        ``(masked_ids [b, n], labels [b, n])``; without ``counts`` at least one position of the batch is chosen.

    Raises:
        SettingsError: a share is out of range.
        DataError: the batch holds special tokens only.
    """
    _check_shares(probability, replace, random)
    if isinstance(special, Tensor) and special.dtype == torch.bool:
        barred = special
    else:
        special_ids = [int(token) for token in special]
        barred = torch.isin(input_ids, torch.tensor(special_ids, dtype=input_ids.dtype))
    if bool(barred.all()):
        raise DataError(
            f"no position of a batch of shape {tuple(input_ids.shape)} can be masked: all are special tokens",
            why="Masked language modelling needs ordinary text to guess.",
        )
    draw = torch.rand(input_ids.shape, generator=generator).masked_fill(barred, 2.0)
    action = torch.rand(input_ids.shape, generator=generator)
    words = _random_words(input_ids.shape, {*special_ids, mask_id}, vocabulary_size, generator)

    if counts is None:
        chosen = draw < probability
        if not bool(chosen.any()):  # a small batch: take the position that came nearest
            chosen.view(-1)[draw.view(-1).argmin()] = True
    else:
        place = draw.argsort(dim=1).argsort(dim=1).masked_fill(barred, torch.iinfo(torch.int64).max)
        input_ids, action, words, place = (
            one.to(counts.device, non_blocking=True) for one in (input_ids, action, words, place)
        )
        chosen = place < counts.unsqueeze(1)
    masked = torch.where(chosen & (action < replace), mask_id, input_ids)
    masked = torch.where(chosen & (action >= replace) & (action < replace + random), words, masked)
    return masked, input_ids.masked_fill(~chosen, IGNORED)


def _random_words(shape: torch.Size, barred: set[int], vocabulary_size: int, generator: torch.Generator) -> Tensor:
    """Ids drawn evenly from ``range(vocabulary_size)`` without ``barred`` [b, n]."""
    ordinary = torch.ones(vocabulary_size, dtype=torch.bool)
    ordinary[[token for token in barred if 0 <= token < vocabulary_size]] = False
    choices = ordinary.nonzero().squeeze(1)
    if not len(choices):
        raise DataError(
            f"a vocabulary of {vocabulary_size} tokens holds special tokens only",
            why="Masking replaces some words by random ones.",
        )
    return choices[torch.randint(len(choices), shape, generator=generator)]


def _check_shares(probability: float, replace: float, random: float) -> None:
    if not 0 < probability <= 1:
        raise SettingsError(f"masking probability is {probability}", why="It lies above 0 and up to 1.", fix="0.15")
    if min(replace, random) < 0 or replace + random > 1 + 1e-9:
        raise SettingsError(
            f"masking shares replace={replace} and random={random}",
            why="They are shares of the chosen positions: none below 0, together at most 1.",
            fix="replace=0.8 random=0.1",
        )
