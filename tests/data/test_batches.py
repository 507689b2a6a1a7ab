from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anytune.data.batches import (
    BlockBatches,
    Encoded,
    ExampleBatches,
    encode_task,
    evaluation_batches,
    heldout_batches,
)
from anytune.data.masking import IGNORED
from anytune.data.packing import TokenizerFacts, pack
from anytune.data.splits import stable_seed
from anytune.data.tasks import Example
from anytune.errors import DataError, SettingsError
from tests.data.conftest import WORDS, causal


def plain(lengths: list[int]) -> Encoded:
    return Encoded(
        input_ids=[[place + 5] * length for place, length in enumerate(lengths)],
        token_type_ids=None,
        labels=torch.arange(len(lengths)),
        lengths=np.array(lengths),
        truncated=0,
        pad_id=0,
        max_length=64,
    )


LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=150)


@given(LENGTHS, st.integers(1, 9), st.booleans(), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_example_stands_in_exactly_one_batch_of_an_epoch(lengths, batch_size, grouped, epoch):
    batches = ExampleBatches(plain(lengths), batch_size, seed=1, group_by_length=grouped)
    steps = range(epoch * batches.batches_per_epoch, (epoch + 1) * batches.batches_per_epoch)
    labels = [batches.batch(step)["labels"].tolist() for step in steps]
    assert sorted(label for batch in labels for label in batch) == list(range(len(lengths)))
    assert sum(len(batch) < batch_size for batch in labels) <= 1


def same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, second[name]), name
        else:
            assert value == second[name], name


def test_a_step_gives_the_same_batch_whatever_was_asked_before():
    encoded = plain(list(range(1, 64)))
    walked = ExampleBatches(encoded, 4, seed=3)
    batches = [walked.batch(step) for step in range(40)]
    for step in (39, 0, 17, 16, 38):
        same(ExampleBatches(encoded, 4, seed=3).batch(step), batches[step])
        same(walked.batch(step), batches[step])


def test_epochs_and_seeds_put_other_examples_together():
    encoded = plain([4] * 40)
    batches, other = ExampleBatches(encoded, 4, seed=0), ExampleBatches(encoded, 4, seed=1)

    def together(chosen, steps):
        return {frozenset(chosen.rows(step).tolist()) for step in steps}

    assert not together(batches, range(10)) & together(batches, range(10, 20))
    assert not together(batches, range(10)) & together(other, range(10))


def test_grouping_by_length_saves_padding():
    lengths = np.random.default_rng(0).integers(1, 200, size=1000).tolist()
    encoded = plain(lengths)
    encoded = Encoded(**{**vars(encoded), "max_length": 512})

    def computed(grouped):
        batches = ExampleBatches(encoded, 8, 0, group_by_length=grouped)
        return sum(batches.batch(step)["input_ids"].numel() for step in range(batches.batches_per_epoch))

    assert computed(True) < 1.1 * sum(lengths) + 1000 * 8
    assert computed(True) < 0.75 * computed(False)


def test_batches_are_padded_to_a_multiple_of_eight_within_the_longest_length():
    batch = plain([3, 9]).batch([0, 1])
    assert batch["input_ids"].tolist() == [[5] * 3 + [0] * 13, [6] * 9 + [0] * 7]
    assert batch["attention_mask"].tolist() == [[1] * 3 + [0] * 13, [1] * 9 + [0] * 7]
    assert batch["num_items"] == 2
    assert type(batch["num_items"]) is int
    short = Encoded(**{**vars(plain([3, 9])), "max_length": 10})
    assert short.batch([1])["input_ids"].shape == (1, 10)


def test_evaluation_visits_everything_once_longest_first():
    encoded = plain([3, 9, 1, 40, 9])
    found = list(evaluation_batches(encoded, 2))
    assert [rows.tolist() for rows, _ in found] == [[3, 1], [4, 0], [2]]
    for rows, batch in found:
        assert torch.equal(batch["labels"], rows)


def examples(count=20, pair=False):
    return [
        Example(
            " ".join(WORDS[(place + step) % 40] for step in range(1 + place)),
            "ba be" if pair else None,
            place % 3,
        )
        for place in range(count)
    ]


def test_encoding_cuts_counts_and_ignores_what_the_tokenizer_file_switched_on(bert_tokenizer):
    # the fixture's tokenizer truncates at 6 and pads to 32 by itself
    encoded = encode_task(examples(), bert_tokenizer, 12)
    assert encoded.lengths.tolist() == [min(place + 1 + 2, 12) for place in range(20)]
    assert encoded.truncated == 10
    assert all(ids[0] == 2 and ids[-1] == 3 for ids in encoded.input_ids)
    assert encoded.labels.dtype == torch.int64
    batch = encoded.batch([0, 19])
    assert batch["token_type_ids"].sum() == 0


def test_pairs_carry_segments_and_lose_the_longer_text_first(bert_tokenizer):
    encoded = encode_task(examples(pair=True), bert_tokenizer, 12)
    assert encoded.lengths.max() == 12
    assert all(ids[-3:] == encoded.input_ids[0][-3:] for ids in encoded.input_ids)
    assert all(sum(types) == 3 for types in encoded.token_type_ids)


def test_regression_labels_are_floats_and_prediction_needs_none(gpt_tokenizer):
    rows = [Example("ba be", None, 0.5), Example("da", None, -1.0)]
    encoded = encode_task(rows, gpt_tokenizer, 16, "regression")
    assert encoded.labels.dtype == torch.float32
    assert encoded.labels.tolist() == [0.5, -1.0]
    assert encoded.token_type_ids is None
    assert "labels" not in encode_task(rows, gpt_tokenizer, 16, None).batch([0])


def test_the_end_of_text_token_pads_where_there_is_no_padding_token(gpt_tokenizer):
    batch = encode_task([Example("ba be", None, 0)], gpt_tokenizer, 16).batch([0])
    assert batch["input_ids"][0, 2:].tolist() == [gpt_tokenizer.eos_token_id] * 6
    assert batch["attention_mask"].sum() == 2
    with pytest.raises(DataError, match="neither a padding token"):
        encode_task([Example("ba be", None, 0)], causal(mask_token="<mask>"), 16)


def test_what_cannot_be_encoded_is_refused(bert_tokenizer, gpt_tokenizer):
    with pytest.raises(DataError, match="no examples"):
        encode_task([], bert_tokenizer, 16)
    with pytest.raises(SettingsError, match="max_length is 2"):
        encode_task(examples(), bert_tokenizer, 2)
    with pytest.raises(DataError, match="no token of text 2: ' '"):
        encode_task([Example("ba", None, 0), Example(" ", None, 0)], gpt_tokenizer, 16)
    with pytest.raises(SettingsError, match="batch_size is 0"):
        ExampleBatches(plain([1]), 0, 0)


@pytest.fixture(scope="module")
def texts():
    return [" ".join(WORDS[(place * 7 + step) % len(WORDS)] for step in range(13)) for place in range(50)]


def test_masks_belong_to_the_step_and_come_back_after_a_restart(texts, bert_tokenizer):
    blocks = pack(texts, bert_tokenizer, 16)
    batches = BlockBatches(blocks, 4, 5, "mlm", bert_tokenizer)
    walked = [batches.batch(step) for step in range(2 * batches.batches_per_epoch)]
    for step in (3, 0, len(walked) - 1):
        same(BlockBatches(blocks, 4, 5, "mlm", TokenizerFacts.of(bert_tokenizer)).batch(step), walked[step])
    assert not torch.equal(walked[0]["labels"] == IGNORED, walked[1]["labels"] == IGNORED)
    for batch in walked:
        assert batch["num_items"] == (batch["labels"] != IGNORED).sum().item() > 0
        assert type(batch["num_items"]) is int
        assert batch["attention_mask"].all()


def restored(batch):
    """The true tokens of a masked batch, as far as they can be told: unmasked positions and labels."""
    return torch.where(batch["labels"] == IGNORED, batch["input_ids"], batch["labels"])


@pytest.mark.parametrize("epoch", [0, 2])
def test_every_block_stands_in_exactly_one_batch_of_an_epoch(texts, bert_tokenizer, epoch):
    blocks = pack(texts, bert_tokenizer, 16)
    batches = BlockBatches(blocks, 5, 0, "mlm", bert_tokenizer)
    steps = range(epoch * batches.batches_per_epoch, (epoch + 1) * batches.batches_per_epoch)
    rows = torch.cat([restored(batches.batch(step)) for step in steps])
    assert sorted(rows.tolist()) == sorted(blocks[:].tolist())
    assert rows.tolist() != blocks[:].tolist()


def test_causal_batches_predict_every_token_but_the_first(texts, gpt_tokenizer):
    blocks = pack(texts, gpt_tokenizer, 16, objective="clm")
    batch = BlockBatches(blocks, 3, 0, "clm", gpt_tokenizer).batch(0)
    assert torch.equal(batch["labels"], batch["input_ids"])
    assert batch["num_items"] == 3 * 15


def test_the_heldout_mask_is_one_for_every_batch_size_and_call(texts, bert_tokenizer):
    blocks = pack(texts, bert_tokenizer, 16)

    def joined(batch_size, seed=0):
        found = list(heldout_batches(blocks, batch_size, seed, "mlm", bert_tokenizer))
        rows = {name: torch.cat([batch[name] for batch in found]) for name in ("input_ids", "labels")}
        return rows | {"num_items": sum(batch["num_items"] for batch in found)}

    same(joined(4), joined(7))
    assert torch.equal(restored(joined(4)), blocks[:])
    assert not torch.equal(joined(4)["labels"], joined(4, seed=1)["labels"])


def test_blocks_of_one_objective_are_refused_for_the_other(texts, bert_tokenizer):
    blocks = pack(texts, bert_tokenizer, 16)
    with pytest.raises(SettingsError, match="objective 'clm' on blocks packed for 'mlm'"):
        BlockBatches(blocks, 4, 0, "clm", bert_tokenizer)
    with pytest.raises(SettingsError, match="objective 'clm'"):
        next(heldout_batches(blocks, 4, 0, "clm", bert_tokenizer))


@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_any_blocks_become_a_batch_as_the_steps_own_do(objective, texts, bert_tokenizer, gpt_tokenizer):
    tokenizer = bert_tokenizer if objective == "mlm" else gpt_tokenizer
    blocks = pack(texts, tokenizer, 16, objective=objective)
    batches = BlockBatches(blocks, 4, 5, objective, tokenizer)
    own = batches.batch(3)
    generator = torch.Generator().manual_seed(stable_seed("mask", 5, 3))
    same(batches.labelled(blocks[batches.rows(3).tolist()], generator), own)
    counts = torch.tensor([1, 0, 3])
    found = batches.labelled(blocks[[2, 2, 9]], torch.Generator().manual_seed(0), counts)
    if objective == "mlm":
        assert torch.equal((found["labels"] != IGNORED).sum(dim=1), counts)
        assert torch.equal(restored(found), blocks[[2, 2, 9]])
    else:
        assert torch.equal(found["labels"], blocks[[2, 2, 9]])
