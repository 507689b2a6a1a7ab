"""Greedy responses, and predictions of the kinds of task that label tokens."""

from __future__ import annotations

import math
import random

import pytest
import torch

from anytune.data.batches import encode_prompts, encode_task
from anytune.data.tasks import Example
from anytune.engine.generation import GreedyDecoding, longest_response, prompts_of
from anytune.engine.prediction import predict_tags, response_losses
from anytune.engine.runtime import make_runtime
from anytune.methods.objective import Generation
from anytune.models.base import load_base
from tests.models.kinds import WORDS, make_kind

KINDS = ("gpt2", "llama", "qwen2", "t5")


def pairs(count=7, seed=0):
    draw = random.Random(seed)
    return [Example(" ".join(draw.choices(WORDS, k=draw.randint(1, 9))), None,
                    " ".join(draw.choices(WORDS, k=draw.randint(1, 4)))) for _ in range(count)]  # fmt: skip


def opened(kind, folder):
    base = load_base(make_kind(kind, folder))
    return base, base.task_model("generation", (), 0)[0], base.tokenizer()


def decoding(base, tokenizer, longest=6, limit=None):
    return GreedyDecoding(tokenizer, longest, limit or base.position_limit, base.anatomy.encoder_decoder)


@pytest.mark.parametrize("kind", KINDS)
def test_responses_are_those_of_one_prompt_alone_whatever_shares_its_batch(kind, tmp_path):
    base, model, tokenizer = opened(kind, tmp_path)
    rows, runtime = pairs(), make_runtime("fp32")
    encoded = encode_task(rows, tokenizer, 40, "generation", base.anatomy.encoder_decoder)
    prompts = prompts_of(encoded)
    said = decoding(base, tokenizer).respond(model.train(), prompts, 4, runtime)
    assert model.training
    model.eval()
    for ids, answer in zip(prompts.input_ids, said, strict=True):  # step by step, without padding or cache
        start = [] if not base.anatomy.encoder_decoder else [base.config.decoder_start_token_id]
        new: list[int] = []
        while len(new) < 6 and (not new or new[-1] != tokenizer.eos_token_id):
            with torch.no_grad():
                if base.anatomy.encoder_decoder:
                    output = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([start + new]))
                else:
                    output = model(input_ids=torch.tensor([ids + new]))
            new.append(int(output.logits[0, -1].argmax()))
        assert answer == tokenizer.decode(new, skip_special_tokens=True).strip()


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_prompts_to_answer_are_those_of_training(kind, tmp_path):
    base, _, tokenizer = opened(kind, tmp_path)
    rows, half = pairs(), base.anatomy.encoder_decoder
    ours = prompts_of(encode_task(rows, tokenizer, 40, "generation", half))
    alone = encode_prompts([row.text for row in rows], tokenizer, 40, half)
    assert ours.input_ids == alone.input_ids
    assert ours.padding_side == alone.padding_side
    assert len(prompts_of(encode_task(rows, tokenizer, 40, "generation", half), 3)) == 3


def test_a_response_ends_where_the_position_table_does_and_never_before_its_longest(tmp_path):
    base, model, tokenizer = opened("gpt2", tmp_path)
    prompts = encode_prompts(["the fox " * 40, "the"], tokenizer, 60)
    config = decoding(base, tokenizer, longest=30)._config(model, prompts.pad_id, int(prompts.lengths.max()))
    assert config.max_new_tokens == base.position_limit - 60
    assert len(decoding(base, tokenizer, longest=30).respond(model, prompts, 2, make_runtime("fp32"))) == 2


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_losses_of_responses_are_sums_over_their_own_tokens(kind, tmp_path):
    base, model, tokenizer = opened(kind, tmp_path)
    rows, half = pairs(), base.anatomy.encoder_decoder
    encoded = encode_task(rows, tokenizer, 40, "generation", half)
    assert longest_response(encoded) == max(sum(one != -100 for one in labels) for labels in encoded.labels)
    found = response_losses(model, Generation(base.anatomy), encoded, 3, make_runtime("fp32"))
    for row in range(len(rows)):
        batch = encoded.batch([row])
        with torch.no_grad():
            stock = model(**{key: batch[key] for key in ("input_ids", "attention_mask", "labels")}).loss.item()
        assert found[row, 1] == batch["num_items"]
        assert math.isclose(found[row, 0] / found[row, 1], stock, rel_tol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_every_word_gets_the_tag_of_its_first_piece_and_cut_ones_the_tag_outside(kind, tmp_path):
    base = load_base(make_kind(kind, tmp_path))
    model, _ = base.task_model("token-classification", ("B-X", "I-X", "O"), 0)
    tokenizer, draw, runtime = base.tokenizer(), random.Random(0), make_runtime("fp32")
    said = [tuple(draw.choices(WORDS, k=length)) for length in (3, 14, 6)]
    rows = [Example(" ".join(words), None, (0,) * len(words), words) for words in said]
    whole = encode_task(rows, tokenizer, 60, "token-classification")
    short = encode_task(rows, tokenizer, 10, "token-classification")
    tags = predict_tags(model, whole, [3, 14, 6], 2, runtime, outside=2)
    for row, words in enumerate(said):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([whole.input_ids[row]])).logits[0]
        expected = [int(logits[place].argmax()) for place in whole.first_pieces[row]]
        assert tags.indices[row] == expected
        assert len(words) == len(tags.probabilities[row])
    cut = predict_tags(model, short, [3, 14, 6], 2, runtime, outside=2)
    lost = [place < 0 for place in short.first_pieces[1]]
    assert any(lost)
    assert all(
        tag == 2 and sure == 0
        for tag, sure, gone in zip(cut.indices[1], cut.probabilities[1], lost, strict=True)
        if gone
    )
    unlabelled = predict_tags(model, encode_task(rows, tokenizer, 60, None), [3, 14, 6], 2, runtime, outside=2)
    assert unlabelled.indices == tags.indices
    assert (unlabelled.loss, tags.loss > 0) == (0.0, True)
