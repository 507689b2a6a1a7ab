from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from anytune.data.spans import corrupt_spans, span_counts, span_mask
from anytune.errors import DataError, SettingsError

SENTINELS = list(range(900, 1000))
END = 1


def joined(inputs: list[int], targets: list[int]) -> list[int]:
    """The oracle: the text, with each sentinel of the input replaced by what the target says after it."""
    assert inputs[-1] == END
    assert targets[-1] == END
    spans: dict[int, list[int]] = {}
    for token in targets[:-1]:
        if token in SENTINELS:
            spans[current := token] = []
        else:
            spans[current].append(token)
    text: list[int] = []
    for token in inputs[:-1]:
        text += spans.pop(token) if token in SENTINELS else [token]
    assert list(spans.values()) == [[]]  # the last sentinel has nothing to say
    return text


@pytest.mark.parametrize("length", [2, 3, 7, 8, 20, 64, 128, 513])
@pytest.mark.parametrize(("probability", "mean_length"), [(0.15, 3.0), (0.5, 1.0), (0.9, 3.0), (0.15, 10.0)])
def test_joining_the_spans_gives_the_text_back_and_the_numbers_are_exact(length, probability, mean_length):
    generator = torch.Generator().manual_seed(3)
    text = torch.randint(5, 500, (6, length), generator=generator)
    mask = span_mask(6, length, generator=generator, probability=probability, mean_length=mean_length)
    noise, spans = span_counts(length, probability, mean_length)
    assert noise == min(max(round(length * probability), 1), length - 1)
    assert mask.sum(dim=1).tolist() == [noise] * 6
    runs = [sum(value for value, _ in itertools.groupby(row)) for row in mask.tolist()]
    assert runs == [spans] * 6
    if spans < len(SENTINELS):
        inputs, targets = corrupt_spans(text, mask, sentinels=SENTINELS, end_id=END)
        assert inputs.shape == (6, length - noise + spans + 1)
        assert targets.shape == (6, noise + spans + 2)
        for row in range(6):
            assert joined(inputs[row].tolist(), targets[row].tolist()) == text[row].tolist()
            marks = [token for token in inputs[row].tolist() if token in SENTINELS]
            assert marks == SENTINELS[:spans]


def test_the_example_of_the_paper():
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week"]
    ids = torch.arange(10, 20)[None]
    mask = torch.tensor([[word in ("for", "inviting", "last") for word in words]])
    inputs, targets = corrupt_spans(ids, mask, sentinels=SENTINELS, end_id=END)
    assert inputs.tolist() == [[10, 11, 900, 14, 15, 16, 17, 901, 19, END]]
    assert targets.tolist() == [[900, 12, 13, 901, 18, 902, END]]


def test_the_defaults_are_15_percent_in_spans_of_3():
    assert span_counts(512) == (77, 26)
    assert span_counts(100) == (15, 5)


def test_every_placement_of_spans_that_do_not_touch_is_equally_likely():
    noise, spans = span_counts(7, 0.43, 1.5)
    assert (noise, spans) == (3, 2)
    possible = {
        bits
        for bits in itertools.product([False, True], repeat=7)
        if sum(bits) == 3 and sum(value for value, _ in itertools.groupby(bits)) == 2
    }
    generator = torch.Generator().manual_seed(0)
    mask = span_mask(20_000, 7, generator=generator, probability=0.43, mean_length=1.5)
    seen = Counter(map(tuple, mask.tolist()))
    assert set(seen) == possible
    expected = 20_000 / len(possible)
    assert all(abs(count - expected) < 6 * expected**0.5 for count in seen.values())


def test_the_generator_alone_decides_and_a_row_does_not_move_it_further():
    first = span_mask(3, 50, generator=torch.Generator().manual_seed(5))
    torch.rand(7)
    assert torch.equal(first, span_mask(3, 50, generator=torch.Generator().manual_seed(5)))
    assert not torch.equal(first, span_mask(3, 50, generator=torch.Generator().manual_seed(6)))


def test_too_few_sentinels_and_impossible_shares_are_refused():
    mask = span_mask(1, 64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(DataError, match="3 spans are cut out of 64 tokens, and there are 3 sentinels"):
        corrupt_spans(torch.arange(64)[None], mask, sentinels=SENTINELS[:3], end_id=END)
    corrupt_spans(torch.arange(64)[None], mask, sentinels=SENTINELS[:4], end_id=END)
    for wrong in ({"length": 1}, {"length": 9, "probability": 1.0}, {"length": 9, "mean_length": 0.5}):
        with pytest.raises(SettingsError):
            span_counts(**wrong)
