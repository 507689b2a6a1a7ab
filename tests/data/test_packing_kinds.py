"""Packed blocks with the tokenizers of every kind of model."""

from __future__ import annotations

import pytest
import torch

from anytune.data.batches import BlockBatches, heldout_batches
from anytune.data.packing import TokenizerFacts, pack
from anytune.errors import DataError
from tests.data.test_spans import joined
from tests.models.kinds import DECODERS, ENCODERS, KINDS, SENTINELS, make_tokenizer

TEXTS = ["the cat was near oakleaf", "", "a dogpaw under some moss and the fern", "owl"] * 12


def documents(tokenizer) -> list[list[int]]:
    return [ids for ids in tokenizer(TEXTS, add_special_tokens=False)["input_ids"] if ids]


def row_of(blocks) -> list[int]:
    return blocks[:].reshape(-1).tolist()


@pytest.mark.parametrize("kind", DECODERS)
def test_causal_documents_end_with_the_end_token_and_begin_as_the_tokenizer_begins_a_text(kind):
    tokenizer = make_tokenizer(kind)
    begin = [tokenizer.bos_token_id] if kind == "llama" else []  # what each tokenizer does itself
    assert tokenizer("owl")["input_ids"][: len(begin)] == begin
    expected: list[int] = []
    for number, ids in enumerate(documents(tokenizer)):
        expected += ([tokenizer.eos_token_id] if number else []) + begin + ids
    blocks = pack(TEXTS, tokenizer, 16, objective="clm")
    assert row_of(blocks) == expected[: len(blocks) * 16]
    assert blocks.dropped_tokens == len(expected) - len(blocks) * 16


def test_a_tokenizer_without_end_of_text_token_cannot_part_causal_documents():
    tokenizer = make_tokenizer("gpt2")
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="lacks an end-of-text token"):
        pack(TEXTS, tokenizer, 16, objective="clm")


@pytest.mark.parametrize("kind", ENCODERS)
def test_masked_blocks_begin_and_end_as_the_tokenizer_begins_and_ends_a_text(kind):
    tokenizer = make_tokenizer(kind)
    first, *_, last = tokenizer("owl")["input_ids"]
    blocks = pack(TEXTS, tokenizer, 16)
    assert {(int(row[0]), int(row[-1])) for row in blocks[:]} == {(first, last)}
    batch = BlockBatches(blocks, 4, seed=0, objective="mlm", facts=tokenizer).batch(0)
    special = torch.isin(batch["input_ids"], torch.tensor(tokenizer.all_special_ids))
    hidden = batch["labels"] != -100
    assert not torch.isin(batch["labels"][hidden], torch.tensor(tokenizer.all_special_ids)).any()
    assert (batch["input_ids"][special & hidden] == tokenizer.mask_token_id).all()


def test_span_documents_follow_each_other_without_a_token_between():
    tokenizer = make_tokenizer("t5")
    flat = [token for ids in documents(tokenizer) for token in ids]
    blocks = pack(TEXTS, tokenizer, 32, objective="span")
    assert row_of(blocks) == flat[: len(blocks) * 32]


def test_span_batches_join_to_their_blocks_and_are_a_function_of_seed_and_step():
    tokenizer = make_tokenizer("t5")
    sentinels = TokenizerFacts.of(tokenizer).sentinel_ids
    assert tokenizer.convert_ids_to_tokens(list(sentinels)) == [f"<extra_id_{index}>" for index in range(SENTINELS)]
    blocks = pack(TEXTS, tokenizer, 32, objective="span")
    batches = BlockBatches(blocks, 4, seed=5, objective="span", facts=tokenizer)
    again = BlockBatches(blocks, 4, seed=5, objective="span", facts=tokenizer)
    assert len({tuple(batches.batch(step)["input_ids"][0].tolist()) for step in (0, 1)}) == 2
    for step in (1, 0, batches.batches_per_epoch):
        batch = batches.batch(step)
        assert torch.equal(batch["input_ids"], again.batch(step)["input_ids"])
        assert batch["attention_mask"].all()
        assert batch["num_items"] == batch["labels"].numel()
        expected = blocks[batches.rows(step).tolist()]
        for row, (read, written) in enumerate(zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)):
            marks = {mark: 900 + number for number, mark in enumerate(sentinels)}
            read, written = ([marks.get(token, token) for token in ids] for ids in (read, written))
            assert joined(read, written) == expected[row].tolist()
    epochs = [batches.batch(step)["input_ids"] for step in (0, batches.batches_per_epoch)]
    assert not torch.equal(*epochs)


def test_held_out_spans_are_the_same_for_every_batch_size():
    tokenizer = make_tokenizer("t5")
    blocks = pack(TEXTS, tokenizer, 32, objective="span")
    whole = [torch.cat([batch["labels"] for batch in heldout_batches(blocks, size, 0, "span", tokenizer)])
             for size in (2, 5)]  # fmt: skip
    assert torch.equal(*whole)
    assert len(whole[0]) == len(blocks)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"t5"}))
def test_only_tokenizers_with_sentinels_can_mark_spans(kind):
    with pytest.raises(DataError, match="has 0 sentinels"):
        pack(TEXTS, make_tokenizer(kind), 16, objective="span")


def test_a_block_with_more_spans_than_sentinels_is_refused_before_anything_is_tokenised():
    with pytest.raises(DataError, match=f"has {SENTINELS} sentinels, blocks of 512 tokens need 27"):
        pack(TEXTS, make_tokenizer("t5"), 512, objective="span")
