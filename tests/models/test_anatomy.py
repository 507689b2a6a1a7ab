"""Every row of the table against a really made model of its kind."""

from __future__ import annotations

import functools

import pytest
import torch

from anytune import compat
from anytune.errors import BaseError
from anytune.models.anatomy import ANATOMIES, anatomy_of
from tests.models.conftest import tiny_model
from tests.models.kinds import DECODERS, KINDS, VARIANTS, make_config, make_model

ALL = (*KINDS, *VARIANTS)
VOCABULARY = 96


@functools.cache
def model_of(kind: str, purpose: str = "pretraining"):
    """A tiny model: "pretraining", "backbone", or one of the task classes."""
    if purpose in ("pretraining", "backbone"):
        return make_model(kind, VOCABULARY, purpose=purpose)
    config = make_config(kind, VOCABULARY)
    config.num_labels, config.pad_token_id = 3, 0
    with compat.quiet_transformers():
        return compat.model_class(purpose, config)(config).eval()


def batch_of(kind: str):
    ids = torch.randint(5, VOCABULARY, (3, 10), generator=torch.Generator().manual_seed(7))
    attention = torch.ones_like(ids)
    attention[2, 6:] = 0
    return {"input_ids": ids.masked_fill(attention == 0, 0), "attention_mask": attention}


def test_every_row_of_the_table_is_tested_here():
    assert set(ANATOMIES) == set(KINDS)


@pytest.mark.parametrize("purpose", ["pretraining", "backbone", "sequence-classification", "token-classification"])
@pytest.mark.parametrize("kind", ALL)
def test_every_name_of_every_class_belongs_to_one_part(kind, purpose):
    model = model_of(kind, purpose)
    anatomy, state = anatomy_of(model), list(model.state_dict())
    parts = anatomy.split(state)
    assert sorted([*parts.backbone, *parts.pretraining_head, *parts.task_head, *parts.ignored]) == sorted(state)
    inside = {id(weight) for weight in anatomy.backbone(model).parameters()}
    if not (purpose == "pretraining" and anatomy.encoder_decoder):  # T5 has no module around its backbone there
        backbone = [name for name, weight in model.named_parameters() if id(weight) in inside]
        assert set(parts.backbone) == set(backbone)
    heads = {"pretraining": parts.pretraining_head, "backbone": (), "sequence-classification": parts.task_head,
             "token-classification": parts.task_head}[purpose]  # fmt: skip
    assert bool(heads) == (purpose != "backbone")
    assert not parts.task_head or "classification" in purpose
    warm = [name for name in parts.pretraining_head if anatomy.is_warm_head(name)]
    assert not parts.pretraining_head or purpose == "pretraining" or list(parts.pretraining_head) == warm


@pytest.mark.parametrize("kind", ALL)
def test_a_backbone_tensor_has_one_canonical_name_in_every_class(kind):
    anatomy, bare = anatomy_of(model_of(kind)), set(model_of(kind, "backbone").state_dict())
    assert {anatomy.canonical(name) for name in bare} == bare
    learned = set(anatomy.split(bare).backbone)
    for purpose in ("pretraining", "sequence-classification", "token-classification"):
        parts = anatomy.split(model_of(kind, purpose).state_dict())
        found = {anatomy.canonical(name) for name in parts.backbone}
        assert found <= learned
        assert all(anatomy.may_be_left_out(name) for name in learned - found)
        pretraining = purpose == "pretraining"
        assert {anatomy.in_model(name, pretraining) for name in found} == set(parts.backbone)


@pytest.mark.parametrize("kind", ALL)
def test_what_is_ignored_is_made_or_tied(kind):
    model = model_of(kind)
    learned = {name: weight.data_ptr() for name, weight in model.named_parameters(remove_duplicate=False)}
    anatomy = anatomy_of(model)
    parts = anatomy.split(model.state_dict())
    for name in parts.ignored:
        source = dict(anatomy.tied).get(name)
        assert name not in learned or learned[name] == learned[anatomy.in_model(source, pretraining=True)]


@pytest.mark.parametrize("kind", ALL)
def test_the_parts_of_a_block_cover_all_its_weights(kind):
    model = model_of(kind)
    anatomy = anatomy_of(model)
    assert [len(blocks) for _, blocks in anatomy.block_stacks(model)] == ([2, 2] if anatomy.encoder_decoder else [2])
    for stack, blocks in anatomy.block_stacks(model):
        for block in blocks:
            parts = [*stack.attention, *stack.feed_forward, *stack.norms]
            for name, _ in block.named_parameters():
                assert any(name.startswith(f"{part}.") for part in parts), name
            for part in (*stack.attention, *stack.feed_forward):
                assert sum(weight.numel() for weight in block.get_submodule(part).parameters()) > 0
            for part in stack.norms:
                assert all(weight.dim() == 1 for weight in block.get_submodule(part).parameters())
            assert not set(stack.attention) & set(stack.feed_forward)


@pytest.mark.parametrize("kind", ALL)
def test_all_weights_of_the_backbone_sit_in_embeddings_blocks_or_after_them(kind):
    model = model_of(kind, "backbone")
    anatomy = anatomy_of(model)
    assert model.get_parameter(anatomy.word_embeddings).shape[0] >= VOCABULARY
    depths = {name: anatomy.depth(name) for name in anatomy.split(model.state_dict()).backbone}
    assert set(depths.values()) - {None} == {0, 1, 2}
    in_blocks = {id(weight) for block in anatomy.block_modules(model) for weight in block.parameters()}
    for name, weight in model.named_parameters():
        if name in depths:
            assert (id(weight) in in_blocks) == (depths[name] in (1, 2)), name
    after = {name for name, depth in depths.items() if depth is None}
    assert all(anatomy.is_pooler(name) or "norm" in name or name.startswith("ln_f") for name in after), after
    assert anatomy.depth("classifier.weight") is None


@pytest.mark.parametrize("kind", ALL)
def test_lora_targets_are_exactly_the_linear_maps_of_the_blocks(kind):
    model = model_of(kind)
    anatomy = anatomy_of(model)
    maps = anatomy.linear_maps(model)
    assert all(any(f".{name}".endswith(f".{target}") for target in anatomy.lora_targets) for name in maps)
    attention = anatomy.linear_maps(model, "attention")
    assert attention
    assert set(attention) < set(maps)
    used = {target for target in anatomy.lora_targets for name in maps if f".{name}".endswith(f".{target}")}
    unused = set(anatomy.lora_targets) - used
    assert unused <= {"wi", "wi_0", "wi_1"}  # T5 has either one map in or, gated, two
    outside = [name for name, module in model.named_modules()
               if isinstance(module, compat.linear_types()) and anatomy.depth(f"{name}.weight") is None]  # fmt: skip
    matched = [name for name in outside if any(f".{name}".endswith(f".{target}") for target in anatomy.lora_targets)]
    assert not matched  # PEFT matches names wherever they are


@pytest.mark.parametrize("kind", ALL)
def test_transposed_is_what_the_weights_are(kind):
    model = model_of(kind)
    anatomy = anatomy_of(model)
    _, blocks = anatomy.block_stacks(model)[0]
    maps = {name: module for name, module in blocks[0].named_modules() if isinstance(module, compat.linear_types())}
    wide = next(module for name, module in maps.items() if name.endswith(("c_fc", "lin1", "wi", "wi_0", "up_proj",
                                                                          "Wi", "intermediate.dense")))  # fmt: skip
    rows, columns = wide.weight.shape
    assert (rows < columns) == anatomy.transposed


@pytest.mark.parametrize("kind", [kind for kind in ALL if not VARIANTS.get(kind, kind).startswith("t5")])
def test_the_pretraining_head_gives_the_logits_of_the_whole_model(kind):
    model, batch = model_of(kind), batch_of(kind)
    anatomy = anatomy_of(model)
    with torch.no_grad():
        ours = anatomy.pretraining_logits(model, anatomy.backbone(model)(**batch)[0])
        assert torch.equal(ours, model(**batch).logits)


@pytest.mark.parametrize("kind", ["t5", "t5-gated"])
def test_the_head_of_an_encoder_decoder_scales_where_the_config_says_so(kind):
    model, batch = model_of(kind), batch_of(kind)
    anatomy = anatomy_of(model)
    assert model.config.scale_decoder_outputs == (kind == "t5")
    with torch.no_grad():
        read = model.encoder(**batch)[0]
        hidden = model.decoder(batch["input_ids"], encoder_hidden_states=read,
                               encoder_attention_mask=batch["attention_mask"])[0]  # fmt: skip
        stock = model(**batch, decoder_input_ids=batch["input_ids"]).logits
        assert torch.equal(anatomy.pretraining_logits(model, hidden), stock)


def test_the_newer_head_of_deberta_is_found_and_given_the_embeddings():
    model, batch = make_model("deberta-v2", VOCABULARY, legacy=False), batch_of("deberta-v2")
    anatomy = anatomy_of(model)
    assert {name.split(".")[0] for name in anatomy.split(model.state_dict()).pretraining_head} == {"lm_predictions"}
    with torch.no_grad():
        ours = anatomy.pretraining_logits(model, anatomy.backbone(model)(**batch)[0])
        assert torch.equal(ours, model(**batch).logits)


def test_a_deberta_with_a_convolution_has_every_weight_somewhere():
    model = make_model("deberta-v2", VOCABULARY, purpose="backbone", conv_kernel_size=3, conv_act="gelu")
    anatomy = anatomy_of(model)
    assert anatomy.depth("encoder.conv.conv.weight") == 0
    assert all(anatomy.depth(name) is not None for name in anatomy.split(model.state_dict()).backbone)


@pytest.mark.parametrize("kind", ALL)
def test_causal_is_what_the_kind_does(kind):
    model = model_of(kind, "backbone")
    anatomy = anatomy_of(model)
    ids = batch_of(kind)["input_ids"][:1]
    changed = ids.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 90 + 5
    more = {"decoder_input_ids": ids} if anatomy.encoder_decoder else {}
    with torch.no_grad():
        before, after = model(ids, **more)[0][0, 0], model(changed, **more)[0][0, 0]
    assert torch.equal(before, after) == anatomy.causal == (kind in DECODERS)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("bert.encoder.layer.0.output.dense.weight", "encoder.layer.0.output.dense.weight"),
        ("encoder.layer.0.output.dense.weight", "encoder.layer.0.output.dense.weight"),
        ("bert.embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight"),
        ("bert.embeddings.LayerNorm.beta", "embeddings.LayerNorm.bias"),
        ("cls.predictions.transform.LayerNorm.gamma", "cls.predictions.transform.LayerNorm.weight"),
        ("classifier.weight", "classifier.weight"),
    ],
)
def test_a_tensor_has_one_canonical_name_whatever_class_or_age_of_library_wrote_it(name, canonical):
    assert ANATOMIES["bert"].canonical(name) == canonical


def test_names_are_split_into_backbone_pretraining_head_task_head_and_what_holds_no_weights():
    parts = ANATOMIES["bert"].split(
        ["bert.embeddings.position_ids", "bert.pooler.dense.bias", "cls.predictions.bias", "classifier.bias"]
    )
    assert parts.ignored == ("bert.embeddings.position_ids",)
    assert parts.backbone == ("bert.pooler.dense.bias",)
    assert parts.pretraining_head == ("cls.predictions.bias",)
    assert parts.task_head == ("classifier.bias",)


@pytest.mark.parametrize(
    ("kind", "name", "part"),
    [
        ("gpt2", "h.0.attn.bias", "ignored"),  # the causal mask of the first files
        ("gpt2", "h.0.attn.masked_bias", "ignored"),
        ("gpt2", "h.0.attn.c_attn.bias", "backbone"),
        ("electra", "discriminator_predictions.dense.weight", "pretraining_head"),
        ("deberta-v2", "mask_predictions.dense.weight", "pretraining_head"),
        ("deberta-v2", "lm_predictions.lm_head.dense.weight", "pretraining_head"),
        ("deberta-v2", "pooler.dense.weight", "task_head"),  # not the backbone's, as it is BERT's
        ("t5", "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight", "ignored"),
        ("t5", "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "backbone"),
        ("t5", "encoder.embed_tokens.weight", "ignored"),
        ("t5", "transformer.decoder.embed_tokens.weight", "ignored"),
        ("modernbert", "decoder.bias", "pretraining_head"),
    ],
)
def test_names_that_published_files_hold(kind, name, part):
    assert getattr(ANATOMIES[kind].split([name]), part) == (name,)


def test_bias_names_are_those_of_the_backbone_alone():
    names = ANATOMIES["bert"].bias_names(tiny_model())
    assert "bert.encoder.layer.1.output.LayerNorm.bias" in names
    assert not any(name.startswith("cls") or name.endswith(".weight") for name in names)


def test_an_unknown_kind_is_refused_the_known_ones_are_named_and_how_to_add_one():
    with pytest.raises(BaseError, match=r"unknown kind of model 'bertt'[\s\S]*bert, deberta-v2, distilbert, electra"):
        anatomy_of("bertt")
    with pytest.raises(BaseError, match=r"a row in anytune/models/anatomy.py"):
        anatomy_of("mamba")


def test_a_model_without_pretraining_head_says_so():
    with pytest.raises(BaseError, match="BertModel has no 'cls'"):
        ANATOMIES["bert"].pretraining_logits(tiny_model(purpose="backbone"), torch.zeros(1, 16))
