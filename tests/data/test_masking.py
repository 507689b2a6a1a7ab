from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anytune.data.masking import IGNORED, mask_tokens
from anytune.errors import DataError, SettingsError

PAD, CLS, SEP, MASK = 0, 2, 3, 4
SPECIAL = (PAD, 1, CLS, SEP, MASK)
VOCABULARY = 60


def ids(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    tokens = torch.randint(5, VOCABULARY, (rows, width), generator=torch.Generator().manual_seed(seed))
    tokens[:, 0], tokens[:, -1] = CLS, SEP
    return tokens


def mask(tokens, seed=0, **settings_):
    arguments = {"special": SPECIAL, "mask_id": MASK, "vocabulary_size": VOCABULARY} | settings_
    return mask_tokens(tokens, generator=torch.Generator().manual_seed(seed), **arguments)


@given(rows=st.integers(1, 4), width=st.integers(3, 40), seed=st.integers(0, 2**31), share=st.floats(0.01, 1.0))
@settings(max_examples=60, deadline=None)
def test_labels_are_the_true_tokens_and_nothing_else_changes(rows, width, seed, share):
    tokens = ids(rows, width, seed)
    before = tokens.clone()
    masked, labels = mask(tokens, seed, probability=share)
    chosen = labels != IGNORED
    assert torch.equal(tokens, before)
    assert chosen.any()
    assert torch.equal(labels[chosen], tokens[chosen])
    assert torch.equal(masked[~chosen], tokens[~chosen])
    assert not chosen[torch.isin(tokens, torch.tensor(SPECIAL))].any()
    shown = masked[chosen & (masked != tokens)]
    assert not torch.isin(shown, torch.tensor([token for token in SPECIAL if token != MASK])).any()


def test_shares_are_fifteen_percent_and_eighty_ten_ten():
    tokens = ids(400, 128)
    masked, labels = mask(tokens)
    chosen = labels != IGNORED
    ordinary = (~torch.isin(tokens, torch.tensor(SPECIAL))).sum()
    count = chosen.sum().item()
    assert count / ordinary == pytest.approx(0.15, abs=0.01)
    hidden, kept = (masked[chosen] == MASK).sum() / count, (masked[chosen] == tokens[chosen]).sum() / count
    words = VOCABULARY - len(SPECIAL)
    assert hidden == pytest.approx(0.8, abs=0.02)
    assert kept == pytest.approx(0.1 + 0.1 / words, abs=0.02)  # a random word may be the true one


def test_random_words_come_evenly_from_the_whole_vocabulary_without_special_tokens():
    masked, labels = mask(ids(200, 64), probability=1.0, replace=0.0, random=1.0)
    counts = torch.bincount(masked[labels != IGNORED], minlength=VOCABULARY)
    assert counts[list(SPECIAL)].sum() == 0
    expected = counts.sum() / (VOCABULARY - len(SPECIAL))
    assert counts[5:].min() > 0.7 * expected
    assert counts[5:].max() < 1.3 * expected


def test_the_same_generator_gives_the_same_bits_and_another_gives_others():
    tokens = ids(4, 64)
    first, second, other = mask(tokens, 7), mask(tokens, 7), mask(tokens, 8)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[1], other[1])


def test_the_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = mask(ids(2, 32))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(first[0], mask(ids(2, 32))[0])


def test_special_positions_may_be_given_as_a_tensor():
    tokens = ids(8, 32)
    positions = torch.zeros_like(tokens, dtype=torch.bool)
    positions[:, :16] = True
    _, labels = mask(tokens, special=positions, probability=1.0, special_ids=SPECIAL)
    assert (labels[:, :16] == IGNORED).all()
    assert (labels[:, 16:] == tokens[:, 16:]).all()


def test_at_least_one_position_is_chosen_in_the_smallest_batch():
    for seed in range(50):
        _, labels = mask(torch.tensor([[CLS, 9, SEP, PAD]]), seed, probability=0.001)
        assert labels.tolist() == [[IGNORED, 9, IGNORED, IGNORED]]


def test_a_batch_of_special_tokens_is_refused():
    with pytest.raises(DataError, match="all are special tokens"):
        mask(torch.tensor([[CLS, SEP, PAD]]))


@pytest.mark.parametrize("wrong", [{"probability": 0.0}, {"probability": 1.5}, {"replace": 0.95}, {"random": -0.1}])
def test_shares_out_of_range_are_refused(wrong):
    with pytest.raises(SettingsError, match=str(next(iter(wrong.values())))):
        mask(ids(1, 8), **wrong)


@given(rows=st.integers(1, 4), width=st.integers(3, 40), seed=st.integers(0, 2**31), data=st.data())
@settings(max_examples=40, deadline=None)
def test_just_so_many_positions_of_each_row_are_chosen_as_far_as_it_has_them(rows, width, seed, data):
    tokens = ids(rows, width, seed)
    counts = torch.tensor(data.draw(st.lists(st.integers(0, 45), min_size=rows, max_size=rows)))
    masked, labels = mask(tokens, seed, counts=counts)
    chosen = labels != IGNORED
    assert torch.equal(chosen.sum(dim=1), counts.clamp(max=width - 2))
    assert not chosen[:, [0, -1]].any()
    assert torch.equal(labels[chosen], tokens[chosen])
    assert torch.equal(masked[~chosen], tokens[~chosen])


def test_positions_chosen_by_number_are_equally_likely():
    tokens = ids(4000, 12)
    _, labels = mask(tokens, counts=torch.full((4000,), 3))
    share = (labels != IGNORED)[:, 1:-1].double().mean(dim=0)
    # the standard error of each is 0.0072
    assert (share - 0.3).abs().max() < 0.035
