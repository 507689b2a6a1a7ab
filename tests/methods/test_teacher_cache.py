"""A teacher's answers are found again whatever the batch, and never for another row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anytune.data.batches import Encoded, ExampleBatches
from anytune.errors import MethodError
from anytune.methods import teacher_cache
from anytune.methods.teacher_cache import TeacherCache, at_items, digest_of, items_of_rows, row_keys

DRAW = np.random.default_rng(3)
ROWS = [DRAW.integers(5, 200, size=length).tolist() for length in (4, 9, 17, 4, 12, 6, 3, 9)]
#: two rows that differ in their segments alone, and one that stands there twice
ROWS = [*ROWS, ROWS[1], ROWS[2], ROWS[2]]
TYPES = [[0] * len(row) for row in ROWS[:8]] + [[0] * 5 + [1] * 4, [0] * 17, [0] * 17]


def encoded(labels="row") -> Encoded:
    lengths = np.array([len(row) for row in ROWS])
    found = torch.arange(len(ROWS)) % 3 if labels == "row" else [
        [token % 3 if token % 2 else -100 for token in row] for row in ROWS
    ]  # fmt: skip
    layout = "row" if labels == "row" else "position"
    return Encoded(ROWS, TYPES, found, lengths, 0, 0, 64, layout=layout)


def naive(batch):
    """Two numbers for each item, out of what its row holds, by loops."""
    found = []
    for row in range(len(batch["input_ids"])):
        places = [place for place in range(batch["input_ids"].shape[1]) if batch["attention_mask"][row, place]]
        whole = sum((place + 1) * int(batch["input_ids"][row, place]) for place in places)
        types = sum(int(batch["token_type_ids"][row, place]) for place in places)
        if batch["labels"].ndim == 1:
            found.append([whole, types])
        else:
            found += [[whole + place, int(batch["labels"][row, place])] for place in places
                      if batch["labels"][row, place] != -100]  # fmt: skip
    return torch.tensor(found, dtype=torch.float32).reshape(-1, 2)


@pytest.mark.parametrize("labels", ["row", "position"])
def test_answers_are_found_again_at_any_batch_size_order_and_padding(labels):
    rows = encoded(labels)
    cache = TeacherCache.build(ExampleBatches(rows, 3, 0), naive)
    for size, seed in ((1, 0), (4, 5), (11, 9)):
        batches = ExampleBatches(rows, size, seed)
        for number in range(2 * batches.batches_per_epoch):
            batch = batches.batch(number)
            assert torch.equal(cache.of(batch), naive(batch))
    wide = rows.batch([0, 2])
    alone = rows.batch([0])
    assert wide["input_ids"].shape[1] > alone["input_ids"].shape[1]
    assert torch.equal(row_keys(wide)[:1], row_keys(alone))


def test_rows_of_one_item_are_found_without_counting(monkeypatch):
    rows = encoded()
    cache = TeacherCache.build(ExampleBatches(rows, 3, 0), naive)
    assert cache.one_each
    assert not TeacherCache.build(ExampleBatches(encoded("position"), 3, 0), naive).one_each
    # how long its result is has to be asked of a device, in every step
    monkeypatch.setattr(torch, "repeat_interleave", None)
    batch = rows.batch([3, 0, 1])
    assert torch.equal(cache.of(batch), naive(batch))


def test_padding_on_the_left_is_the_same_row():
    right = encoded().batch([0, 3])
    left = {key: right[key].flip(1) for key in ("input_ids", "attention_mask", "token_type_ids")}
    for key in ("input_ids", "token_type_ids"):  # the tokens in their order again, after the padding
        for row in range(2):
            real = left["attention_mask"][row].bool()
            left[key][row, real] = right[key][row, right["attention_mask"][row].bool()]
    assert torch.equal(row_keys({**left, "labels": right["labels"]}), row_keys(right))


def test_keys_tell_tokens_their_order_segments_and_labelled_places_apart():
    base = {
        "input_ids": torch.tensor([[5, 6, 7, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0]]),
        "token_type_ids": torch.zeros(1, 4, dtype=torch.long),
        "labels": torch.tensor([[1, -100, 2, -100]]),
    }
    others = [
        {"input_ids": torch.tensor([[5, 7, 6, 0]])},
        {"input_ids": torch.tensor([[5, 6, 8, 0]])},
        {"attention_mask": torch.tensor([[1, 1, 1, 1]])},
        {"token_type_ids": torch.tensor([[0, 0, 1, 0]])},
        {"labels": torch.tensor([[1, 2, -100, -100]])},
        {"labels": torch.tensor([[1, -100, 2, 0]])},
    ]
    keys = {int(row_keys({**base, **other})) for other in [{}, *others]}
    assert len(keys) == 1 + len(others)
    unseen = {**base, "token_type_ids": torch.tensor([[0, 0, 0, 1]]), "input_ids": torch.tensor([[5, 6, 7, 9]])}
    assert torch.equal(row_keys(unseen), row_keys(base)), "padding was read"


def test_many_rows_have_as_many_keys():
    ids = torch.randint(0, 50, (4000, 6), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert len(set(row_keys(batch).tolist())) == len(set(map(tuple, ids.tolist())))


def test_every_distinct_row_is_asked_about_once_in_an_order_of_its_own():
    asked = []

    def answers(batch):
        asked.append(batch["input_ids"])
        return naive(batch)

    caches = [TeacherCache.build(ExampleBatches(encoded(), size, seed), answers) for size, seed in ((3, 0), (8, 7))]
    assert sum(len(ids) for ids in asked) == 2 * (len(ROWS) - 2)
    assert torch.equal(asked[0], asked[1])
    for name in ("keys", "starts", "counts", "outputs"):
        assert torch.equal(getattr(caches[0], name), getattr(caches[1], name))


def test_a_row_that_was_not_asked_about_is_an_error_and_so_are_changed_data():
    cache = TeacherCache.build(ExampleBatches(encoded(), 3, 0), naive)
    batch = encoded().batch([0, 1])
    batch["input_ids"][0, 1] += 1
    with pytest.raises(MethodError, match="1 of 2 rows are not among those the teacher was asked about") as caught:
        cache.of(batch)
    assert "changed" in caught.value.why
    with pytest.raises(MethodError, match="without token ids"):
        cache.of({"inputs_embeds": torch.zeros(1, 2, 3)})


def test_it_is_written_and_read_again_and_belongs_to_its_data_and_teacher(tmp_path):
    cache = TeacherCache.build(ExampleBatches(encoded("position"), 3, 0), naive)
    digest = digest_of({"prompt": torch.ones(2, 3)}, cache.content)
    cache.save(tmp_path / "answers.safetensors", digest)
    again = TeacherCache.load(tmp_path / "answers.safetensors", digest)
    batch = encoded("position").batch([4, 1, 8])
    assert torch.equal(again.of(batch), naive(batch))
    assert digest_of({"prompt": torch.zeros(2, 3)}, cache.content) != digest
    assert digest_of({"prompt": torch.ones(2, 3)}, "other data") != digest
    with pytest.raises(MethodError, match="another teacher or to other data"):
        TeacherCache.load(tmp_path / "answers.safetensors", "0" * 64)
    (tmp_path / "answers.safetensors").write_bytes(b"cut")
    with pytest.raises(MethodError, match="cannot read"):
        TeacherCache.load(tmp_path / "answers.safetensors", digest)


def test_half_precision_rounds_and_refuses_what_does_not_fit():
    cache = TeacherCache.build(ExampleBatches(encoded(), 3, 0), lambda batch: naive(batch) / 997, kept="fp16")
    batch = encoded().batch([0, 5, 2])
    assert cache.outputs.dtype == torch.float16
    assert torch.equal(cache.of(batch), (naive(batch) / 997).half().float())
    with pytest.raises(MethodError, match="does not fit into fp16") as caught:
        TeacherCache.build(ExampleBatches(encoded(), 3, 0), lambda batch: naive(batch) * 1e6, kept="fp16")
    assert caught.value.fix == "store=fp32"
    with pytest.raises(MethodError, match="answers NaN"):
        TeacherCache.build(ExampleBatches(encoded(), 3, 0), lambda batch: naive(batch) / 0 - naive(batch) / 0)


def test_answers_that_are_too_many_to_keep_are_refused(monkeypatch):
    monkeypatch.setattr(teacher_cache, "MOST_BYTES", 40)
    with pytest.raises(MethodError, match="take more than") as caught:
        TeacherCache.build(ExampleBatches(encoded(), 3, 0), naive)
    assert "loss=hidden" in caught.value.fix


def test_shuffled_gives_every_item_the_answer_to_another_one():
    cache = TeacherCache.build(ExampleBatches(encoded("position"), 3, 0), naive)
    numbered = TeacherCache(cache.keys, cache.starts, cache.counts, torch.arange(len(cache.outputs))[:, None].float())
    shuffled = numbered.shuffled(4)
    assert not (shuffled.outputs == numbered.outputs).any()
    assert sorted(shuffled.outputs.flatten().tolist()) == numbered.outputs.flatten().tolist()
    assert torch.equal(shuffled.outputs, numbered.shuffled(4).outputs)
    assert not torch.equal(shuffled.outputs, numbered.shuffled(5).outputs)


def test_items_and_hidden_states_of_rows_tokens_and_next_tokens():
    hidden = torch.arange(24.0).view(2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    row = {"labels": torch.tensor([0, 1]), "attention_mask": mask}
    assert items_of_rows(row).tolist() == [1, 1]
    torch.testing.assert_close(at_items(hidden, row), torch.stack([hidden[0, :3].mean(0), hidden[1, :2].mean(0)]))
    tokens = {"labels": torch.tensor([[7, -100, 2, -100], [-100, 4, -100, -100]]), "attention_mask": mask}
    assert items_of_rows(tokens).tolist() == [2, 1]
    assert torch.equal(at_items(hidden, tokens), torch.stack([hidden[0, 0], hidden[0, 2], hidden[1, 1]]))
    assert items_of_rows(tokens, causal=True).tolist() == [1, 1], "nothing stands before the first place"
    assert torch.equal(at_items(hidden, tokens, causal=True), torch.stack([hidden[0, 1], hidden[1, 0]]))
