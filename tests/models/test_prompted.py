"""A prompted model against the bare one: where the prompt stands, and that nobody outside sees its places."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from anytune.errors import MethodError
from anytune.models.anatomy import anatomy_of
from anytune.models.answering import task_output
from anytune.models.hyperprompt import reading_module, word_table
from anytune.models.prompted import given_prompt, hyperprompt_of, placed, reading, within_pass
from tests.models.kinds import DECODERS, ENCODERS, KINDS, make_model
from tests.models.prompted_models import LENGTH, PLACES, POSITION, TABLES, VOCABULARY, batch_of, prompted


def by_hand(model, kind: str, position: str, ids, prompt):
    """The logits of one unpadded text [1, n], its prompt put among the word embeddings step by step."""
    anatomy = anatomy_of(model)
    module = reading_module(model, anatomy)
    words, n, length = word_table(module)(ids), ids.shape[1], prompt.shape[1]
    if position == "prepend":
        rows, kept = [*prompt[0], *words[0]], range(length, length + n)
        places = list(range(n + length))
    elif position == "append":
        rows, kept = [*words[0], *prompt[0]], range(n)
        places = list(range(n + length))
    else:
        rows, kept = [words[0, 0], *prompt[0], *words[0, 1:]], [0, *range(length + 1, length + n)]
        places = [0, *range(n, n + length), *range(1, n)]
    inputs = {"inputs_embeds": torch.stack(rows)[None], "attention_mask": torch.ones(1, n + length)}
    if kind in TABLES:
        inputs["position_ids"] = torch.tensor([places]) + anatomy.position_offset
    with given_prompt(model, "none"):
        if kind == "t5":
            read = module(**inputs)[0][:, list(kept)]
            return model(encoder_outputs=(read,), decoder_input_ids=ids[:, :5]).logits
        return model(**inputs).logits[:, list(kept)]


@pytest.mark.parametrize(("kind", "position"), PLACES)
def test_a_prompt_stands_where_it_should_and_leaves_outputs_as_long_as_the_text(kind, position):
    model, batch = prompted(kind, position), batch_of(kind)
    logits = model(**batch).logits
    with given_prompt(model, "none"):
        assert model(**batch).logits.shape == logits.shape
    for row, end in ((0, 10), (2, 6)):
        ids = batch["input_ids"][row : row + 1, :end]
        prompt = hyperprompt_of(model)(batch["input_ids"], batch["attention_mask"])[row : row + 1]
        expected = by_hand(model, kind, position, ids, prompt)
        assert torch.allclose(logits[row : row + 1, : expected.shape[1]], expected, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_without_its_prompt_a_model_is_the_bare_one_bit_for_bit(kind):
    bare, model, batch = make_model(kind, VOCABULARY), prompted(kind), batch_of(kind)
    labels = batch["decoder_input_ids"] if kind == "t5" else batch["input_ids"]
    with given_prompt(model, "none"):
        assert torch.equal(model(**batch).logits, bare(**batch).logits)
        assert torch.equal(model(**batch, labels=labels).loss, bare(**batch, labels=labels).loss)
    assert not torch.equal(model(**batch).logits, bare(**batch).logits)


@pytest.mark.parametrize(("kind", "position"), PLACES)
def test_padding_and_other_texts_change_nothing(kind, position):
    model, batch = prompted(kind, position), batch_of(kind)
    logits = model(**batch).logits
    fill = {"input_ids": 1 if kind == "roberta" else 0, "attention_mask": 0}
    wide = {key: nn.functional.pad(value, (0, 5), value=fill[key]) if key in fill else value
            for key, value in batch.items()}  # fmt: skip
    wider = model(**wide).logits
    real = slice(None) if kind == "t5" else batch["attention_mask"].bool()
    assert torch.allclose(wider[:, : logits.shape[1]][real], logits[real], atol=2e-5)
    alone = model(**{key: value[1:2] for key, value in batch.items()}).logits
    assert torch.allclose(alone, logits[1:2], atol=2e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
def test_a_text_padded_on_the_left_is_read_as_if_it_stood_alone(kind):
    model = prompted(kind)
    ids = batch_of(kind, rows=1, length=6, pad=0)["input_ids"]
    left = nn.functional.pad(ids, (3, 0)), nn.functional.pad(torch.ones_like(ids), (3, 0))
    assert torch.allclose(model(*left[:1], attention_mask=left[1]).logits[:, 3:], model(ids).logits, atol=2e-5)


@pytest.mark.parametrize("position", POSITION)
@pytest.mark.parametrize("kind", TABLES[:4])
def test_a_text_keeps_its_positions_and_its_prompt_takes_the_next(kind, position):
    model, batch, seen = prompted(kind, position), batch_of(kind, pad=0), []
    if kind == "roberta":
        batch["input_ids"][0, 3] = 1  # its padding id inside a text: it counts only what is none
    anatomy = anatomy_of(model)
    table = anatomy.backbone(model).get_submodule(anatomy.position_table)
    table.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with given_prompt(model, "none"):
        model(**batch)
    model(**batch)
    places = placed(batch["attention_mask"], LENGTH, position)
    text, bare, moved = places.cut(seen[1]), seen[0].expand(3, -1), LENGTH if position == "prepend" else 0
    assert torch.equal(text, bare + moved * (bare >= anatomy.position_offset))
    for row in range(3):
        prompt = sorted(set(seen[1][row].tolist()) - set(text[row].tolist()))
        first = anatomy.position_offset if moved else int(text[row].max()) + 1
        assert prompt == list(range(first, first + LENGTH))


def test_without_a_mask_all_tokens_count():
    for kind in KINDS:
        model, batch = prompted(kind), batch_of(kind, pad=0)
        without = {key: value for key, value in batch.items() if key != "attention_mask"}
        assert torch.allclose(model(**without).logits, model(**batch).logits, atol=1e-6), kind


@pytest.mark.parametrize("position", POSITION)
@pytest.mark.parametrize("kind", ENCODERS)
def test_heads_read_the_texts_own_first_token(kind, position):
    model, batch = prompted(kind, position, "sequence-classification"), batch_of(kind, pad=0)
    hidden = anatomy_of(model).backbone(model)(**batch)[0]
    assert hidden.shape[:2] == batch["input_ids"].shape
    if kind == "bert":
        expected = model.classifier(model.bert.pooler(hidden))
    elif kind == "deberta-v2":
        expected = model.classifier(model.pooler(hidden))
    elif kind == "distilbert":
        expected = model.classifier(model.pre_classifier(hidden[:, 0]).relu())
    elif kind == "modernbert":
        expected = model.classifier(model.head(hidden[:, 0]))
    else:
        expected = model.classifier(hidden)
    assert torch.allclose(task_output(model, batch).logits, expected, atol=1e-6)


@pytest.mark.parametrize("kind", [*DECODERS, "t5"])
def test_a_decoder_classifies_at_the_texts_own_last_token(kind):
    model, batch = prompted(kind, purpose="sequence-classification"), batch_of(kind)
    batch.pop("decoder_input_ids", None)
    logits = task_output(model, batch).logits
    assert logits.shape == (3, 3)
    alone = task_output(model, {key: value[2:, :6] for key, value in batch.items()}).logits
    assert torch.allclose(alone, logits[2:], atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_gets_its_tag(kind):
    model, batch = prompted(kind, purpose="token-classification"), batch_of(kind)
    batch.pop("decoder_input_ids", None)
    assert task_output(model, batch).logits.shape == (3, 10, 3)


@pytest.mark.parametrize("position", POSITION)
def test_hidden_states_attentions_and_tuples_are_as_long_as_the_text_too(position):
    model, batch = prompted("bert", position), batch_of("bert")
    model.set_attn_implementation("eager")
    output = model.bert(**batch, output_hidden_states=True, output_attentions=True)
    assert {tuple(layer.shape) for layer in output.hidden_states} == {(3, 10, 16)}
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert {tuple(layer.shape) for layer in output.attentions} == {(3, 2, 10, 10)}
    whole = output.attentions[0].sum(dim=-1)
    assert bool((whole < 1 - 1e-4).all())  # the prompt's places have the rest
    (first, *_) = model.bert(**batch, return_dict=False)
    assert torch.equal(first, output.last_hidden_state)


def test_what_a_block_gives_can_be_cut_inside_the_pass():
    model, batch, seen = prompted("bert", "append"), batch_of("bert"), []
    block = model.bert.encoder.layer[-1]
    block.register_forward_hook(lambda _, __, output: seen.append(within_pass(model, output)))
    hidden = model.bert(**batch)[0]
    assert torch.equal(seen[0], hidden)
    with given_prompt(model, "none"):
        assert torch.equal(model.bert(**batch)[0], seen[1])


def test_places_and_cuts_undo_each_other():
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]])
    text, prompt = torch.arange(12).view(3, 4), torch.arange(100, 106).view(3, 2)
    rows = {
        "after_first": [[0, 100, 101, 1, 2, 3], [4, 102, 103, 5, 6, 7], [8, 104, 105, 9, 10, 11]],
        "prepend": [[100, 101, 0, 1, 2, 3], [102, 103, 4, 5, 6, 7], [104, 105, 8, 9, 10, 11]],
        "append": [[0, 1, 2, 100, 101, 3], [4, 5, 6, 7, 102, 103], [104, 105, 8, 9, 10, 11]],
    }
    for position, expected in rows.items():
        places = placed(mask, 2, position)
        assert places.join(text, prompt).tolist() == expected
        assert torch.equal(places.cut(places.join(text, prompt)), text)


def test_segments_and_given_positions_travel_along():
    model, batch = prompted("bert"), batch_of("bert", pad=0)
    segments = torch.zeros_like(batch["input_ids"])
    segments[:, 5:] = 1
    plain, marked = model(**batch).logits, model(**batch, token_type_ids=segments).logits
    assert torch.allclose(model(**batch, token_type_ids=segments * 0).logits, plain, atol=1e-6)
    assert not torch.allclose(marked, plain, atol=1e-3)
    counted = torch.arange(10).expand(3, -1)
    assert torch.allclose(model(**batch, position_ids=counted).logits, plain, atol=1e-6)
    late = model(**batch, position_ids=counted + 20).logits
    assert not torch.allclose(late, plain, atol=1e-3)


# ---------------------------------------------------------------------- given prompts


def test_given_prompts_take_the_place_of_written_ones_and_gradients_reach_them():
    model, batch = prompted("bert"), batch_of("bert")
    written = model(**batch).logits
    prompts = hyperprompt_of(model)(batch["input_ids"], batch["attention_mask"]).detach().requires_grad_()
    with given_prompt(model, prompts):
        output = model(**batch).logits
        with given_prompt(model, "none"):
            assert not torch.equal(model(**batch).logits, output)
    assert torch.equal(output, written)
    output.sum().backward()
    assert float(prompts.grad.abs().min(dim=-1).values.max()) > 0
    assert all(weight.grad is None for weight in hyperprompt_of(model).parameters())
    shared = prompts[0, :2].detach()
    with given_prompt(model, shared):
        one = model(**batch).logits
    with given_prompt(model, shared.expand(3, -1, -1)):
        assert torch.equal(model(**batch).logits, one)
    assert torch.equal(model(**batch).logits, written)
    with pytest.raises(RuntimeError), given_prompt(model, shared):
        raise RuntimeError
    assert torch.equal(model(**batch).logits, written)


def test_prompts_that_fit_no_batch_and_prompts_for_a_bare_model_are_refused():
    model, bare, batch = prompted("bert"), make_model("bert", VOCABULARY), batch_of("bert")
    for wrong in (torch.zeros(2, 4, 16), torch.zeros(3, 4, 8)):
        with pytest.raises(MethodError, match="given for 3 texts"), given_prompt(model, wrong):
            model(**batch)
    with pytest.raises(MethodError, match="bare model"), given_prompt(bare, torch.zeros(4, 16)):
        pass
    with given_prompt(bare, "none"):
        bare(**batch)
    with pytest.raises(MethodError, match="may be read"), reading(model, torch.ones(3, 4)):
        model(**batch)


def test_given_word_embeddings_are_read_themselves():
    model, batch = prompted("bert"), batch_of("bert", pad=0)
    embedded = word_table(model.bert)(batch["input_ids"])
    assert torch.allclose(model(inputs_embeds=embedded).logits, model(**batch).logits, atol=1e-5)
