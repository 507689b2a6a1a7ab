from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from anytune.errors import MethodError
from anytune.methods import registry, replay_buffer
from anytune.methods.protocol import Run
from anytune.methods.replay_buffer import ReplayBuffer, Rows, block_batches, is_chosen, slots
from tests.methods.pretrain.little_stream import Little


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shown(first: int, count: int, width: int = 3) -> torch.Tensor:
    """Blocks that say their own number."""
    return torch.arange(first, first + count).unsqueeze(1).expand(count, width).clone()


def of_numbers(buffer: ReplayBuffer) -> list[int]:
    assert all(len(set(row)) == 1 for row in buffer.blocks.tolist())
    return buffer.blocks[:, 0].tolist()


def empty() -> ReplayBuffer:
    return ReplayBuffer(torch.zeros(0, 3, dtype=torch.int32))


def test_a_reservoir_is_filled_first_and_then_each_new_block_takes_a_place_with_falling_probability():
    found = slots(4, 0, 0, 200, generator(0))
    assert found[:4].tolist() == [0, 1, 2, 3]
    drawn = torch.rand(200, generator=generator(0), dtype=torch.float64)
    naive = []
    for number in range(200):
        place = int(drawn[number] * (number + 1))
        naive.append(number if number < 4 else place if place < 4 else -1)
    assert found.tolist() == naive
    assert (found[100:] >= 0).sum() < (found[4:100] >= 0).sum()


def test_every_block_of_a_stream_is_kept_with_the_same_probability_whatever_its_stage():
    kept, runs = torch.zeros(40), 3000
    for seed in range(runs):
        buffer = empty()
        for first, count in ((0, 10), (10, 25), (35, 5)):
            buffer, _ = buffer.extended(shown(first, count), list(range(count)), 8, seed * 7 + first)
        assert (len(buffer), buffer.seen) == (8, 40)
        kept[of_numbers(buffer)] += 1
    rate = kept / runs
    # the standard error of each rate is 0.0073
    assert (rate - 8 / 40).abs().max() < 0.03
    for stage in (rate[:10], rate[10:35], rate[35:]):
        assert stage.mean().item() == pytest.approx(0.2, abs=0.012)


def test_what_is_held_and_what_stands_beside_it_stay_together_and_new_ones_are_named():
    buffer, new = empty().extended(shown(0, 6), [4, 1, 5], 3, 0)
    assert of_numbers(buffer) == [4, 1, 5]
    assert new.tolist() == [True] * 3
    buffer = ReplayBuffer(buffer.blocks, buffer.seen, {"twice": buffer.blocks[:, :1] * 2})
    after, new = buffer.extended(shown(100, 4), [0, 1, 2, 3], 3, 3)
    assert 0 < new.sum() < 3
    assert torch.equal(after.beside["twice"][~new], after.blocks[~new][:, :1] * 2)
    assert not after.beside["twice"][new].any()
    assert all((number >= 100) == bool(flag) for number, flag in zip(of_numbers(after), new, strict=True))
    assert of_numbers(buffer) == [4, 1, 5], "the reservoir itself is not changed"


def test_a_smaller_capacity_drops_some_and_a_larger_one_is_filled():
    buffer, _ = empty().extended(shown(0, 20), list(range(20)), 10, 0)
    fewer, new = buffer.extended(shown(0, 0), [], 4, 5)
    assert len(fewer) == 4
    assert set(of_numbers(fewer)) < set(of_numbers(buffer))
    assert not new.any()
    more, new = buffer.extended(shown(50, 30), list(range(30)), 12, 5)
    assert len(more) == 12
    assert new[10:].all()


def test_a_reservoir_comes_back_as_it_was(tiny_base, tiny_domain):
    little, method = Little(tiny_base, tiny_domain), registry.create("pretrain/replay")
    assert len(ReplayBuffer.carried(little.run, method)) == 0
    assert ReplayBuffer.carried(little.run, method).state() == {}
    buffer, _ = ReplayBuffer.carried(little.run, method).extended(little.batches.blocks, [3, 0], 5, 0)
    assert torch.equal(buffer.blocks.long(), little.batches.blocks[[3, 0]])
    little.run.carried = {"replay": buffer.state()}
    again = ReplayBuffer.carried(little.run, method)
    assert torch.equal(again.blocks, buffer.blocks)
    assert again.seen == 2


def test_blocks_of_another_length_are_refused_and_so_are_batches_without_blocks(tiny_base, tiny_domain):
    little, method = Little(tiny_base, tiny_domain), registry.create("pretrain/replay")
    little.run.carried = {"replay": {"blocks": torch.zeros(2, 16, dtype=torch.int32), "seen": 2}}
    with pytest.raises(MethodError, match="blocks of 16 tokens, and this stage has blocks of 32") as caught:
        method.prepare(little.model, little.run)
    assert caught.value.fix == "--training block_size=16"
    run = Run(seed=0, steps=1, anatomy=little.base.anatomy, batches=[1, 2])
    with pytest.raises(MethodError, match="replays blocks of tokens, and the run's batches hold none"):
        block_batches(run, method)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.3, 0.9, 1.0])
def test_chosen_rows_are_evenly_spaced(share):
    chosen = [number for number in range(1000) if is_chosen(number, share)]
    assert abs(len(chosen) - 1000 * share) <= 1
    steps = {right - left for left, right in pairwise(chosen)}
    assert steps <= {int(1 / share), int(1 / share) + 1}


def met(pieces: list[int], share: float = 0.4) -> list[tuple[int, int]]:
    rows = Rows("test", 3)
    return [(draw.number, draw.index(1000)) for count in pieces for draw in rows.drawn(count, share)]


def test_what_a_row_meets_does_not_depend_on_how_rows_are_put_into_batches():
    whole = met([24])
    assert len(whole) == 9
    assert whole == met([5, 1, 18]) == met([8, 8, 8])
    assert len({index for _, index in whole}) > 5
    assert [index for _, index in whole] != [draw.index(1000) for draw in Rows("test", 4).drawn(24, 0.4)]


def test_two_processes_meet_what_one_that_accumulates_meets(monkeypatch):
    alone = met([6, 6, 6, 6])
    together = []
    for rank in range(2):
        monkeypatch.setattr(replay_buffer, "_processes", lambda rank=rank: (2, rank))
        together += met([6, 6])
    assert sorted(together) == alone


def test_counting_goes_on_where_it_was(tiny_base, tiny_domain):
    batches = Little(tiny_base, tiny_domain).batches
    rows, other = Rows("test", 3), Rows("test", 3)
    for _ in range(3):
        rows.drawn(4, 0.5)
    other.load(rows.state())
    assert [draw.number for draw in other.drawn(4, 0.5)] == [draw.number for draw in rows.drawn(4, 0.5)] == [13, 15]
    expected = [int(row) for number in range(4) for row in batches.rows(number)]
    assert other.shown(batches) == rows.shown(batches) == expected
    for _ in range(2 * batches.batches_per_epoch):
        rows.drawn(4, 0.5)
    assert sorted(rows.shown(batches)) == list(range(len(batches.blocks))), "each block once, after several epochs"
