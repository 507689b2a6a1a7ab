"""Span corruption: what an encoder-decoder is pre-trained to write (Raffel et al. 2020, sections 3.1.4 and 3.3.4).

Of the n tokens of a row, ``round(probability * n)`` are cut out, in spans of ``mean_length`` tokens on average. Each
span leaves one sentinel in its place; the target is the spans, each after its sentinel, and one more sentinel that
says that nothing follows::

    text    Thank you for inviting me to your party last week
    input   Thank you <X> me to your party <Y> week </s>
    target  <X> for inviting <Y> last <Z> </s>

The defaults, 15 % and 3 tokens, are those the paper settled on (section 3.3.4). Choices of ours: all ways to place
the spans so that no two of them touch are equally likely, the row's first and last token included; so are all ways to
share the cut-out tokens among the spans.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from anytune.errors import DataError, SettingsError


def span_counts(length: int, probability: float = 0.15, mean_length: float = 3.0) -> tuple[int, int]:
    """How many of ``length`` tokens are cut out, and in how many spans.

    Raises:
        SettingsError: a share or a mean length that cannot be, or a row too short to cut anything out of.
    """
    if not 0 < probability < 1:
        raise SettingsError(f"probability is {probability}", why="It lies between 0 and 1.", fix="0.15")
    if not mean_length >= 1:
        raise SettingsError(f"mean span length is {mean_length}", why="A span holds at least one token.", fix="3")
    if length < 2:
        raise SettingsError(f"a row of {length} tokens", why="One is cut out and one stays.", fix="block_size=128")
    noise = min(max(round(length * probability), 1), length - 1)
    # no two spans touch: between n kept tokens there are n + 1 places
    return noise, min(max(round(noise / mean_length), 1), noise, length - noise + 1)


def span_mask(
    rows: int, length: int, *, generator: torch.Generator, probability: float = 0.15, mean_length: float = 3.0
) -> Tensor:
    """Which tokens are cut out, bool [rows, length]; each row has exactly the numbers ``span_counts`` gives.

    Randomness comes from ``generator`` alone, and the number of draws depends on the shape alone.
    """
    noise, spans = span_counts(length, probability, mean_length)
    # A span stands before a kept token, or after the last: distinct places, so no two spans touch.
    places = _choose(rows, length - noise + 1, spans, generator)
    # Lengths: spans - 1 distinct cuts between the cut-out tokens.
    cuts = _choose(rows, noise - 1, spans - 1, generator) + 1
    borders = torch.cat([torch.zeros(rows, 1, dtype=torch.int64), cuts, torch.full((rows, 1), noise)], dim=1)
    lengths = borders.diff(dim=1)
    starts = places + borders[:, :-1]
    position = torch.arange(length).expand(rows, 1, length)
    inside = (position >= starts.unsqueeze(-1)) & (position < (starts + lengths).unsqueeze(-1))
    return inside.any(dim=1)


def corrupt_spans(input_ids: Tensor, mask: Tensor, *, sentinels: Sequence[int], end_id: int) -> tuple[Tensor, Tensor]:
    """What the encoder reads and what the decoder is to write.

    Args:
        input_ids: token ids [b, n], without an end token.
        mask: bool [b, n], the tokens that are cut out; each row has k of them, in s spans.
        sentinels: ids of <extra_id_0>, <extra_id_1>, ...; span i of a row leaves ``sentinels[i]``.
        end_id: the end token, which closes both rows.

    Returns:
        ``(inputs [b, n - k + s + 1], targets [b, k + s + 2])``, int64.

    Raises:
        DataError: there are fewer than s + 1 sentinels.
    """
    starts = mask & ~torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], dim=1)
    number = starts.cumsum(dim=1) - 1
    spans = int(starts.sum(dim=1).max())
    if spans + 1 > len(sentinels):
        raise DataError(
            f"{spans} spans are cut out of {input_ids.shape[1]} tokens, and there are {len(sentinels)} sentinels",
            why="Each span leaves its own (<extra_id_0>, <extra_id_1>, ...), and one more ends the target.",
            fix="a smaller block_size",
        )
    rows = len(input_ids)
    marks = torch.tensor(list(sentinels), dtype=input_ids.dtype)[number.clamp(min=0)]
    end = torch.full((rows, 1), end_id, dtype=input_ids.dtype)
    kept = torch.where(starts, marks, input_ids)[~mask | starts].view(rows, -1)
    # Beside each token stands the sentinel that goes before it, if it begins a span.
    pairs = torch.stack([marks, input_ids], dim=-1)
    written = pairs[torch.stack([starts, mask], dim=-1)].view(rows, -1)
    closing = torch.full((rows, 1), sentinels[spans], dtype=input_ids.dtype)
    return torch.cat([kept, end], dim=1), torch.cat([written, closing, end], dim=1)


def _choose(rows: int, many: int, few: int, generator: torch.Generator) -> Tensor:
    """``few`` of ``range(many)``, ascending, each choice equally likely: int64 [rows, few]."""
    return torch.rand(rows, many, generator=generator).argsort(dim=1, stable=True)[:, :few].sort(dim=1).values
