from __future__ import annotations

import pytest
import torch

from anytune.data.masking import IGNORED
from anytune.methods.pretrain.replay import Replay, with_old_rows
from anytune.methods.replay_buffer import Rows
from tests.conftest import TOPICS, tiny_rows
from tests.methods.pretrain.little_stream import Little, same


@pytest.fixture(scope="module")
def topics(tmp_path_factory):
    """Two domains that share no content words."""
    folder, found = tmp_path_factory.mktemp("topics"), []
    for topic in ("animal", "stone"):
        lines = [" ".join(word for word in text.split() if word in TOPICS[topic]) for text, _ in tiny_rows(900, 5)]
        path = folder / f"{topic}.txt"
        path.write_text("\n\n".join(f"{line} {other}" for line, other in zip(lines[::2], lines[1::2], strict=True)))
        found.append(path)
    return found


def restored(batch, rows):
    """True tokens: what is read where nothing is asked for, else the label."""
    labels = batch["labels"][rows]
    return torch.where(labels == IGNORED, batch["input_ids"][rows], labels)


def after_a_stage(tiny_base, domain, **settings):
    little, method = Little(tiny_base, domain), Replay(**settings)
    little.train([method])
    return little, little.finish(method)


def test_the_first_stage_is_plain_training_and_gathers_what_it_was_shown(tiny_base, tiny_domain):
    plain = Little(tiny_base, tiny_domain).train([])
    little, method = Little(tiny_base, tiny_domain), Replay(share=0.5, size=100)
    assert same(little.train([method]), plain)
    carried = little.finish(method)["replay"]
    rows = [int(row) for step in range(little.steps) for row in little.batches.rows(step)]
    assert carried["seen"] == len(rows) == 16
    assert torch.equal(carried["blocks"].long(), little.batches.blocks[rows])


def test_chosen_rows_are_old_blocks_hidden_in_as_many_places_and_the_others_are_left_alone(tiny_base, topics):
    _, carried = after_a_stage(tiny_base, topics[0])
    little = Little(tiny_base, topics[1], carried=carried)
    method = little.prepared(Replay(share=0.5))
    old = {tuple(block) for block in carried["replay"]["blocks"].tolist()}
    met = set()
    for step in range(little.batches.batches_per_epoch - 1):
        before = little.batches.batch(step)
        kept = {key: value.clone() for key, value in before.items() if isinstance(value, torch.Tensor)}
        after = method.prepare_batch(before)
        assert all(torch.equal(before[key], kept[key]) for key in kept), "the batch itself is not written to"
        assert all(torch.equal(after[key][[0, 2]], before[key][[0, 2]]) for key in kept)
        found = {tuple(row) for row in restored(after, [1, 3]).tolist()}
        assert found <= old
        assert torch.equal((after["labels"] != IGNORED).sum(1), (before["labels"] != IGNORED).sum(1))
        assert after["num_items"] == before["num_items"] == int((after["labels"] != IGNORED).sum())
        met |= found
    assert len(met) > 4


def test_the_same_block_is_hidden_in_other_places_each_time(tiny_base, tiny_domain):
    little = Little(tiny_base, tiny_domain)
    batch, rows = little.batches.batch(0), Rows("here", 1)
    first, second = (with_old_rows(batch, rows.drawn(4, 0.9), little.batches.blocks[[7]], little.batches)
                     for _ in range(2))  # fmt: skip
    assert torch.equal(restored(first, [1, 2, 3]), little.batches.blocks[[7, 7, 7]])
    assert torch.equal(restored(first, [1, 2, 3]), restored(second, [1, 2, 3]))
    assert not torch.equal(first["labels"], second["labels"])
    assert len({tuple(row) for row in first["labels"][1:].tolist()}) == 3


def test_old_text_is_remembered_better_than_by_plain_training(tiny_base, topics):
    first = Little(tiny_base, topics[0], steps=40)
    method = Replay(size=500)
    first.train([method])
    carried, weights = first.finish(method), first.model.state_dict()
    losses = {}
    for name, methods in (("plain", []), ("replay", [Replay(share=0.5)])):
        second = Little(tiny_base, topics[1], steps=40, carried=carried)
        second.model.load_state_dict(weights)
        second.train(methods)
        first.model.load_state_dict(second.model.state_dict())
        losses[name] = sum(first.loss(step).item() for step in range(10)) / 10
    assert losses["plain"] > losses["replay"] + 0.3


def test_a_share_of_nothing_draws_and_keeps_nothing(tiny_base, tiny_domain):
    little = Little(tiny_base, tiny_domain)
    method = little.prepared(Replay(share=0.0))
    batch = little.batches.batch(0)
    assert method.prepare_batch(batch) is batch
    assert little.finish(method) == {"replay": {}}
    assert method.state_dict() == {}
