"""A prompted model against the bare one: where the prompt stands, and that nobody outside sees its places."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

from anytune import compat
from anytune.errors import BaseError, DataError, MethodError
from anytune.models.anatomy import anatomy_of
from anytune.models.answering import task_output
from anytune.models.dropout import set_dropout
from anytune.models.hyperprompt import make_hyperprompt, reading_module, word_table
from anytune.models.hyperprompt_config import HyperPromptConfig
from anytune.models.language_modelling import causal_lm_loss, labelled_hidden, language_model_loss
from anytune.models.peft_models import make_lora
from anytune.models.prompted import attach, given_prompt, hyperprompt_of, placed, reading, within_pass
from anytune.models.soft_prompt_config import SoftPromptConfig
from anytune.models.soft_prompts import attach_prompt, make_prompt
from tests.models.kinds import DECODERS, ENCODERS, KINDS, POSITIONS, make_config, make_model

VOCABULARY = 96
LENGTH = 4
POSITION = ("after_first", "prepend", "append")
TABLES = ("bert", "roberta", "distilbert", "electra", "gpt2")
#: everything but gpt2's and llama's, which always stand in front
PLACES = [(kind, position) for kind in KINDS for position in POSITION if kind not in DECODERS or position == "prepend"]


@functools.cache
def _made(kind: str, position: str, purpose: str):
    if purpose == "pretraining":
        model = make_model(kind, VOCABULARY)
    else:
        config = make_config(kind, VOCABULARY)
        config.num_labels, config.pad_token_id = 3, 1 if kind == "roberta" else 0
        with compat.quiet_transformers(), compat.seeded(0):
            model = compat.model_class(purpose, config)(config).eval()
    config = HyperPromptConfig(components=3, length=LENGTH, position=position)
    attach(model, make_hyperprompt(model, config, 1), anatomy_of(model))
    return model


def prompted(kind: str, position: str = "after_first", purpose: str = "pretraining"):
    return copy.deepcopy(_made(kind, position, purpose))


def batch_of(kind: str, rows: int = 3, length: int = 10, seed: int = 7, pad: int = 4):
    ids = torch.randint(5, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    if pad:
        mask[-1, -pad:] = 0
    batch = {"input_ids": ids.masked_fill(mask == 0, 1 if kind == "roberta" else 0), "attention_mask": mask}
    if kind == "t5":
        batch["decoder_input_ids"] = ids[:, :5].clone()
    return batch


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


# ---------------------------------------------------------------------- losses


@pytest.mark.parametrize("kind", DECODERS)
def test_no_prediction_of_a_decoder_depends_on_a_token_that_comes_after_it(kind):
    model, batch = prompted(kind), batch_of(kind, pad=0)
    ids = batch["input_ids"]
    for first in (0, 4):  # labels from the beginning on, and of a response alone
        labels = ids.clone()
        labels[:, :first] = -100
        hidden, _ = labelled_hidden(model, {**batch, "labels": labels}, anatomy_of(model))
        for place in range(max(1, first), 10):
            other = ids.clone()
            other[:, place] = other[:, place] % 50 + 6
            changed = {**batch, "input_ids": other, "labels": torch.where(labels < 0, labels, other)}
            moved, _ = labelled_hidden(model, changed, anatomy_of(model))
            known = place - max(1, first) + 1  # predictions of places up to this one
            per_row = len(hidden) // 3
            for row in range(3):
                before = slice(row * per_row, row * per_row + known)
                assert torch.equal(hidden[before], moved[before])
        unread = model(ids, attention_mask=batch["attention_mask"]).logits
        assert unread.shape[1] == 10


def test_a_decoders_prompt_reads_what_stands_before_the_first_label():
    model, batch = prompted("llama"), batch_of("llama", pad=0)
    labels = batch["input_ids"].clone()
    labels[:, :6] = -100
    hidden, _ = labelled_hidden(model, {**batch, "labels": labels}, anatomy_of(model))
    written = hyperprompt_of(model)(batch["input_ids"][:, :6])
    with given_prompt(model, written):
        expected, _ = labelled_hidden(model, {**batch, "labels": labels}, anatomy_of(model))
    assert torch.allclose(hidden, expected, atol=1e-6)
    loss = causal_lm_loss(model, {**batch, "labels": labels}, anatomy_of(model))
    assert torch.allclose(loss, language_model_loss(model, {**batch, "labels": labels}, anatomy_of(model)), atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "t5"])
def test_a_token_that_is_masked_does_not_show_through_the_prompt(kind):
    model, batch = prompted(kind), batch_of(kind, pad=0)
    # what stands at the masked place is only in the labels; nothing of the batch but ids and mask reaches the prompt
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, 3] = batch["input_ids"][:, 3]
    batch["input_ids"][:, 3] = 4
    other = torch.where(labels >= 0, labels % 50 + 6, labels)
    if kind == "t5":
        return_of = [model.encoder(batch["input_ids"], batch["attention_mask"])[0] for _ in (labels, other)]
    else:
        return_of = [labelled_hidden(model, {**batch, "labels": one}, anatomy_of(model))[0] for one in (labels, other)]
    assert torch.equal(*return_of)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_reaches_every_weight_but_the_encoders(kind):
    model, batch = prompted(kind), batch_of(kind)
    batch.pop("decoder_input_ids", None)
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    if kind in DECODERS:
        batch["labels"][:, :4] = -100
    language_model_loss(model.train(), batch, anatomy_of(model)).backward()
    own = hyperprompt_of(model)
    # the last LayerNorm's gain and every map before it; a bias of keys moves nothing
    assert all(weight.grad is not None for weight in own.parameters())
    assert all(float(weight.grad.abs().sum()) > 0 for weight in own.parameters())
    assert all(weight.grad is None for weight in own.encoder.parameters())
    table = word_table(reading_module(model, anatomy_of(model)))
    assert float(table.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "llama", "t5"])
def test_gradient_checkpointing_changes_no_gradient(kind):
    model, batch = prompted(kind), batch_of(kind)
    batch.pop("decoder_input_ids", None)
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    set_dropout(model, 0.0)
    found = []
    for checkpointing in (False, True):
        other = copy.deepcopy(model).train()
        for weight in other.parameters():
            weight.requires_grad_(False)
        hyperprompt_of(other).requires_grad_(True)  # the prompt alone asks for gradients
        if checkpointing:
            other.gradient_checkpointing_enable()  # its newer name is not everywhere
        language_model_loss(other, batch, anatomy_of(other)).backward()
        found.append([weight.grad for weight in hyperprompt_of(other).parameters()])
    assert all(torch.allclose(left, right, atol=1e-6) for left, right in zip(*found, strict=True))
    assert any(float(grad.abs().sum()) > 0 for grad in found[1])


def test_dropout_of_the_hypernetwork_is_drawn_in_training_alone():
    model = make_model("bert", VOCABULARY)
    attach(
        model, make_hyperprompt(model, HyperPromptConfig(components=3, length=4, dropout=0.5), 1), anatomy_of("bert")
    )
    own, ids = hyperprompt_of(model), batch_of("bert")["input_ids"]
    assert torch.equal(own(ids), own(ids))
    model.train()
    assert own.training
    assert not torch.equal(own(ids), own(ids))


def test_autocast_and_half_precision_models_work():
    model, batch = prompted("bert"), batch_of("bert")
    exact = model(**batch).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(model(**batch).logits.float(), exact, atol=0.1)
    assert torch.allclose(model.to(torch.bfloat16)(**batch).logits.float(), exact, atol=0.2)


# ---------------------------------------------------------------------- generation


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "t5"])
def test_generation_with_a_cache_writes_what_it_writes_without(kind, beams):
    model, batch = prompted(kind), batch_of(kind, pad=0)
    batch.pop("decoder_input_ids", None)
    if kind != "t5":
        batch["attention_mask"][2, :4] = 0  # decoders are padded on the left
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "num_beams": beams, "pad_token_id": 0,
                "use_cache": True, "return_dict_in_generate": True, "output_scores": True}  # fmt: skip
    written = model.generate(**batch, **settings)
    # without a cache every step would write a new prompt of all that stands there: the first one is held
    if kind == "t5":
        again = model.generate(**batch, **{**settings, "use_cache": False})
    else:
        prompt = hyperprompt_of(model)(batch["input_ids"], batch["attention_mask"]).repeat_interleave(beams, dim=0)
        with given_prompt(model, prompt):
            again = model.generate(**batch, **{**settings, "use_cache": False})
    assert torch.equal(written.sequences, again.sequences)
    for left, right in zip(written.scores, again.scores, strict=True):
        assert torch.allclose(left, right, atol=1e-4)
    with given_prompt(model, "none"):
        bare = model.generate(**batch, **settings)
    assert not torch.allclose(bare.scores[0], written.scores[0], atol=1e-3)


def test_a_padded_prompt_is_answered_as_if_it_stood_alone():
    for kind in ("gpt2", "llama"):
        model, ids = prompted(kind), batch_of(kind, rows=1, length=6, pad=0)["input_ids"]
        padded = {"input_ids": nn.functional.pad(ids, (3, 0)),
                  "attention_mask": nn.functional.pad(torch.ones_like(ids), (3, 0))}  # fmt: skip
        settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        alone = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        assert torch.equal(model.generate(**padded, **settings)[:, 9:], alone[:, 6:])


# ---------------------------------------------------------------------- copies and wrappers


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_has_a_prompt_of_its_own(kind):
    model, batch = prompted(kind), batch_of(kind)
    before = model(**batch).logits
    copied = copy.deepcopy(model)
    assert torch.equal(copied(**batch).logits, before)
    with torch.no_grad():
        hyperprompt_of(copied).components.add_(1.0)
    assert torch.equal(model(**batch).logits, before)
    assert not torch.equal(copied(**batch).logits, before)
    with given_prompt(copied, "none"):
        assert torch.equal(model(**batch).logits, before)


def test_a_bare_backbone_of_a_prompted_model_is_prompted_as_well():
    model, batch = prompted("bert"), batch_of("bert")
    backbone = copy.deepcopy(model.bert)
    assert torch.equal(backbone(**batch)[0], model.bert(**batch)[0])
    assert hyperprompt_of(backbone) is not hyperprompt_of(model)
    with given_prompt(backbone, "none"):
        assert torch.equal(backbone(**batch)[0], make_model("bert", VOCABULARY).bert(**batch)[0])


@pytest.mark.parametrize("targets", [None, "all-linear", r".*\.(query|joint|dense|weigh|Wqkv|q_proj|q)"])
@pytest.mark.parametrize("kind", ["bert", "modernbert", "llama", "t5"])
def test_lora_leaves_the_hypernetwork_alone(kind, targets):
    model, batch = prompted(kind, purpose="sequence-classification"), batch_of(kind)
    batch.pop("decoder_input_ids", None)
    before = task_output(model, batch).logits
    heads = ["head.dense.weight", "head.norm.weight", "classifier.weight", "classifier.bias"]
    names = list(anatomy_of(model).split(model.state_dict()).task_head)
    wrapped = make_lora(model, head_names=heads if kind == "modernbert" else names, targets=targets)
    own = hyperprompt_of(wrapped)
    assert own is not None
    assert torch.allclose(task_output(wrapped, batch).logits, before, atol=1e-6)
    assert not any(weight.requires_grad for weight in own.parameters())
    assert not [name for name in wrapped.state_dict() if "hyperprompt" in name and ("lora" in name or "saved" in name)]
    assert [name for name, weight in wrapped.named_parameters() if "lora" in name and weight.requires_grad]
    task_output(wrapped.train(), batch).logits.sum().backward()
    merged = wrapped.eval().merge_and_unload()
    assert torch.allclose(task_output(merged, batch).logits, before, atol=1e-5)
    assert hyperprompt_of(merged) is own


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_the_hypernetwork_belong_to_the_backbone(kind):
    model = prompted(kind)
    anatomy = anatomy_of(model)
    names = [name for name in model.state_dict() if name.startswith("hyperprompt.")]
    assert len(names) > 10
    parts = anatomy.split(names)
    assert set(parts.backbone) | set(parts.ignored) == set(names)
    assert all(anatomy.canonical(name) == name == anatomy.in_model(name, True) for name in names)
    assert all(anatomy.depth(name) is None for name in names)
    assert set(parts.ignored) == {name for name in names if not model.state_dict()[name].is_floating_point()}


def test_words_stay_tied_to_the_head_and_a_larger_vocabulary_is_read():
    model, batch = prompted("bert"), batch_of("bert")
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    with compat.quiet_transformers():
        model.resize_token_embeddings(VOCABULARY + 8)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    batch["input_ids"][0, 3] = VOCABULARY + 2  # a word that the hypernetwork's encoder has never heard of
    assert model(**batch).logits.shape == (3, 10, VOCABULARY + 8)


# ---------------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(("kind", "position"), [(kind, place) for kind, place in PLACES if kind in TABLES])
def test_a_text_that_leaves_no_positions_for_its_prompt_is_refused_with_the_longest_that_does(kind, position):
    model = prompted(kind, position)
    room = POSITIONS - LENGTH
    fits = batch_of(kind, length=room, pad=0)
    assert bool(model(**fits).logits.isfinite().all())
    with pytest.raises(DataError, match=f"need {POSITIONS + 1} positions, the base has {POSITIONS}") as caught:
        model(**batch_of(kind, length=room + 1, pad=0))
    assert f"max_length: {room} " in caught.value.fix
    # padding beyond the table needs no positions of its own
    wide = batch_of(kind, length=room + 3, pad=0)
    wide["attention_mask"][:, room:] = 0
    wide["input_ids"] = wide["input_ids"].masked_fill(wide["attention_mask"] == 0, 1 if kind == "roberta" else 0)
    assert torch.allclose(model(**wide).logits[:, :room], model(**{k: v[:, :room] for k, v in wide.items()}).logits,
                          atol=2e-5)  # fmt: skip


@pytest.mark.parametrize("kind", ["deberta-v2", "modernbert", "llama", "t5"])
def test_kinds_without_a_table_have_no_such_limit(kind):
    model, batch = prompted(kind), batch_of(kind, length=POSITIONS, pad=0)
    assert bool(model(**batch).logits.isfinite().all())


def test_a_ready_made_mask_is_refused():
    model, batch = prompted("bert"), batch_of("bert")
    with pytest.raises(DataError, match="ready-made attention mask"):
        model(batch["input_ids"], attention_mask=torch.zeros(3, 1, 10, 10))


def test_a_base_that_reads_token_ids_alone_is_refused():
    """As a kind with code of its own may: its forward has no inputs_embeds."""
    model = make_model("bert", VOCABULARY)
    hyperprompt = make_hyperprompt(model, HyperPromptConfig(components=3, length=LENGTH), 0)

    class Ids(type(model.bert)):
        def forward(self, input_ids, attention_mask=None, token_type_ids=None, position_ids=None):
            return super().forward(input_ids, attention_mask, token_type_ids, position_ids)

    model.bert.__class__ = Ids
    with pytest.raises(BaseError, match="Ids takes no inputs_embeds"):
        attach(model, hyperprompt, anatomy_of("bert"))
    soft = SoftPromptConfig(kind="input", length=3)
    with pytest.raises(BaseError, match="Ids takes no inputs_embeds"):
        attach_prompt(model, make_prompt(model, soft, anatomy_of("bert"), 0), anatomy_of("bert"))


def test_two_hypernetworks_or_one_of_another_width_or_a_model_without_words_are_refused():
    model = prompted("bert")
    own = hyperprompt_of(model)
    with pytest.raises(BaseError, match="already"):
        attach(model, copy.deepcopy(own), anatomy_of(model))
    with pytest.raises(BaseError, match="width 16, words of the base have 8"):
        attach(make_model("electra", VOCABULARY), own, anatomy_of("electra"))

    class Wordless(nn.Module):
        config = make_config("bert", VOCABULARY)

        def __init__(self):
            super().__init__()
            self.bert = nn.Linear(2, 2)

    with pytest.raises(BaseError, match="no table of word embeddings"):
        attach(Wordless(), own, anatomy_of("bert"))
    assert hyperprompt_of(make_model("bert", VOCABULARY)) is None
    assert hyperprompt_of(nn.Linear(2, 2)) is None
