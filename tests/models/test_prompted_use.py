"""A prompted model in use: losses, generation, copies and wrappers, and what cannot be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from anytune import compat
from anytune.errors import BaseError, DataError
from anytune.models.anatomy import anatomy_of
from anytune.models.answering import task_output
from anytune.models.dropout import set_dropout
from anytune.models.hyperprompt import make_hyperprompt, reading_module, word_table
from anytune.models.hyperprompt_config import HyperPromptConfig
from anytune.models.language_modelling import causal_lm_loss, labelled_hidden, language_model_loss
from anytune.models.peft_models import make_lora
from anytune.models.prompted import attach, given_prompt, hyperprompt_of
from anytune.models.soft_prompt_config import SoftPromptConfig
from anytune.models.soft_prompts import attach_prompt, make_prompt
from tests.models.kinds import DECODERS, KINDS, POSITIONS, make_config, make_model
from tests.models.prompted_models import LENGTH, PLACES, TABLES, VOCABULARY, batch_of, prompted

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
