"""Which token a text is classified by: the last real one, however the batch is padded."""

from __future__ import annotations

import pytest
import torch

from anytune.models.answering import left_aligned, task_output
from anytune.models.base import load_base
from anytune.models.peft_models import make_lora
from tests.models.conftest import LABELS, scatter
from tests.models.kinds import DECODERS, ENCODERS, KINDS, make_kind

LAST_TOKEN_KINDS = (*DECODERS, "t5", "t5-gated")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: make_kind(kind, tmp_path_factory.mktemp(kind)) for kind in (*KINDS, "t5-gated")}


@pytest.fixture
def classifier(folders):
    def make(kind: str):
        base = load_base(folders[kind])
        model, head = base.task_model("classification", LABELS, seed=3)
        return base, scatter(model, 5).double().eval(), head

    return make


def texts(base, count: int = 5) -> list[list[int]]:
    """Token ids of texts of different lengths, T5's with their end token."""
    tokenizer = base.tokenizer()
    words = ["the", "cat", "was", "near", "oakleaf", "and", "a", "slaterock", "under", "some", "moss"]
    return [tokenizer(" ".join(words[row : row + 2 + row]))["input_ids"] for row in range(count)]


def padded(rows: list[list[int]], filling: int, side: str) -> dict[str, torch.Tensor]:
    width = max(map(len, rows)) + 2
    ids, mask = torch.full((len(rows), width), filling), torch.zeros(len(rows), width, dtype=torch.int64)
    for place, row in enumerate(rows):
        part = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[place, part], mask[place, part] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


def alone(model, rows: list[list[int]]) -> torch.Tensor:
    """The oracle: each text by itself, unpadded, read at its last token by the model's own parts."""
    answers = []
    for row in rows:
        ids = torch.tensor([row])
        if hasattr(model, "classification_head"):
            shifted = torch.tensor([[model.config.decoder_start_token_id, *row[:-1]]])
            hidden = model.transformer(input_ids=ids, decoder_input_ids=shifted)[0]
            answers.append(model.classification_head(hidden[:, -1]))
        else:
            answers.append(model.score(getattr(model, model.base_model_prefix)(ids)[0][:, -1]))
    return torch.cat(answers)


@torch.no_grad()
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", LAST_TOKEN_KINDS)
def test_a_padded_batch_answers_as_each_text_alone_whatever_pads_it(kind, side, classifier):
    base, model, _ = classifier(kind)
    rows = texts(base)
    expected = alone(model, rows)
    end = model.config.eos_token_id
    for filling in {model.config.pad_token_id, end, 7}:
        answers = task_output(model, padded(rows, filling, side)).logits
        assert (answers - expected).abs().max() < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("kind", LAST_TOKEN_KINDS)
def test_a_text_may_end_with_the_padding_token_or_hold_the_end_token(kind, classifier):
    base, model, _ = classifier(kind)
    pad, end, ordinary = model.config.pad_token_id, base.config.eos_token_id, 30
    rows = [[ordinary, 31, pad], [ordinary, end, 31, 32], [pad, pad], [31, 32, end, end], [ordinary]]
    expected = alone(model, rows)
    for side in ("right", "left"):
        answers = task_output(model, padded(rows, pad, side)).logits
        assert (answers - expected).abs().max() < 1e-12


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_where_the_stock_model_reads_the_right_token_the_answers_are_the_same(kind, classifier):
    base, model, _ = classifier(kind)
    batch = padded(texts(base), model.config.pad_token_id, "right")
    ours, stock = task_output(model, batch).logits, model(**batch).logits
    assert (ours - stock).abs().max() < 1e-12 if kind in LAST_TOKEN_KINDS else torch.equal(ours, stock)


@torch.no_grad()
@pytest.mark.parametrize("kind", DECODERS)
def test_the_stock_decoder_reads_a_text_that_ends_with_the_padding_token_too_early(kind, classifier):
    """Why ``answering`` is there: should this fail one day, the stock forward may do."""
    _, model, _ = classifier(kind)
    pad = model.config.pad_token_id
    rows = [[30, 31, pad], [30, 32, 33]]
    stock = model(**padded(rows, pad, "right")).logits
    assert (stock[0] - alone(model, rows)[0]).abs().max() > 1e-6


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_segment_ids_of_a_careless_tokenizer_do_not_reach_a_model_without_segments(kind, classifier):
    base, model, _ = classifier(kind)
    batch = padded(texts(base), 0, "right")
    more = batch | {"token_type_ids": torch.ones_like(batch["input_ids"]), "labels": 1, "num_items": 5}
    assert torch.equal(task_output(model, more).logits, task_output(model, batch).logits)


@torch.no_grad()
@pytest.mark.parametrize("kind", LAST_TOKEN_KINDS)
def test_embeddings_instead_of_ids(kind, classifier):
    base, model, _ = classifier(kind)
    if kind.startswith("t5"):
        pytest.skip("its decoder reads the ids")
    batch = padded(texts(base), 0, "left")
    by_ids = task_output(model, batch).logits
    given = {
        "inputs_embeds": model.get_input_embeddings()(batch["input_ids"]),
        "attention_mask": batch["attention_mask"],
    }
    assert torch.equal(task_output(model, given).logits, by_ids)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "t5", "bert"])
def test_an_adapter_answers_through_its_own_matrices_and_head(kind, classifier):
    base, model, head = classifier(kind)
    batch = padded(texts(base), model.config.pad_token_id, "right")
    before = task_output(model, batch).logits
    wrapped = make_lora(model, head_names=head, r=2).eval()
    assert torch.equal(task_output(wrapped, batch).logits, before)  # B starts at 0
    scatter(wrapped, 9)
    after = task_output(wrapped, batch).logits
    assert (after - before).abs().max() > 1e-4
    assert (wrapped(**batch).logits - after).abs().max() < 1e-12


def test_left_aligned_moves_every_entry_and_keeps_rows_that_begin_at_once():
    batch = {"input_ids": torch.tensor([[0, 0, 5, 6], [7, 8, 9, 0]]),
             "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]]), "labels": 3}  # fmt: skip
    moved = left_aligned(batch)
    assert moved["input_ids"].tolist() == [[5, 6, 0, 0], [7, 8, 9, 0]]
    assert moved["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
    assert moved["labels"] == 3
    assert left_aligned({"input_ids": batch["input_ids"]})["input_ids"] is batch["input_ids"]


@torch.no_grad()
@pytest.mark.parametrize("kind", ENCODERS)
def test_other_models_are_called_as_they_are(kind, classifier):
    base, model, _ = classifier(kind)
    batch = padded(texts(base), base.tokenizer().pad_token_id, "right")
    assert torch.equal(task_output(model, batch).logits, model(**batch).logits)
