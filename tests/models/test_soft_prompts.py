"""A model with a soft prompt against the bare one, naive attention, and PEFT."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
from torch import nn

from anytune import compat
from anytune.errors import DataError, MethodError, SettingsError
from anytune.models.anatomy import anatomy_of
from anytune.models.answering import task_output
from anytune.models.hyperprompt import make_hyperprompt
from anytune.models.hyperprompt_config import HyperPromptConfig
from anytune.models.prompted import attach, given_prompt
from anytune.models.soft_prompt_config import SoftPromptConfig
from anytune.models.soft_prompts import (
    attach_prompt,
    detach_prompt,
    given_prompt_values,
    layout_of,
    make_prompt,
    prompt_of,
    prompt_width,
)
from tests.models.kinds import DECODERS, KINDS, POSITIONS, VARIANTS, make_config, make_model

VOCABULARY = 96
LENGTH = 4
ALL = (*KINDS, *VARIANTS)
TABLES = ("bert", "roberta", "distilbert", "electra", "gpt2")
SEQUENCE, TOKENS = "sequence-classification", "token-classification"


@functools.cache
def _made(kind: str, purpose: str, attention: str):
    if purpose in ("pretraining", "backbone"):
        model = make_model(kind, VOCABULARY, purpose=purpose, attn_implementation=attention)
    else:
        config = make_config(kind, VOCABULARY, attn_implementation=attention)
        config.num_labels, config.pad_token_id = 3, 1 if kind == "roberta" else 0
        with compat.quiet_transformers(), compat.seeded(0), torch.no_grad():
            model = compat.model_class(purpose, config)(config).eval()
            for weight in model.parameters():
                weight.add_(torch.randn(weight.shape) * 0.05)
    return model


def task_model(kind: str, purpose: str = SEQUENCE, attention: str = "sdpa"):
    return copy.deepcopy(_made(kind, purpose, "eager" if kind == "deberta-v2" else attention))


def prompted(kind: str, prompts: str = "deep", purpose: str = SEQUENCE, attention: str = "sdpa", **settings):
    model = task_model(kind, purpose, attention)
    config = SoftPromptConfig(kind=prompts, length=LENGTH, **settings)
    prompt = make_prompt(model, config, anatomy_of(model), seed=3, std=1.0)
    attach_prompt(model, prompt, anatomy_of(model))
    return model


def batch_of(kind: str, rows: int = 3, length: int = 10, seed: int = 7, pad: int = 4, writes: bool = False):
    ids = torch.randint(5, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    if pad:
        mask[-1, -pad:] = 0
    batch = {"input_ids": ids.masked_fill(mask == 0, 1 if kind == "roberta" else 0), "attention_mask": mask}
    if writes and VARIANTS.get(kind, kind) == "t5":
        batch["decoder_input_ids"] = ids[:, :5].clone()
    return batch


def real_of(batch, logits, kind):
    """Where answers mean something: not at padding."""
    written = VARIANTS.get(kind, kind) == "t5" and logits.shape[1] == 5
    return batch["attention_mask"].bool() if logits.dim() == 3 and not written else slice(None)


def answers(model, batch):
    with torch.no_grad():
        return task_output(model, batch).logits


# ---------------------------------------------------------------------- settings, sizes, the start


def test_settings_survive_json_and_bad_ones_are_named():
    config = SoftPromptConfig(kind="input", length=7, dropout=0.1, projection=12)
    assert SoftPromptConfig.from_json(config.to_json()) == config
    for bad in ({"kind": "both"}, {"length": 0}, {"length": True}, {"dropout": 1}, {"projection": 0}):
        with pytest.raises(SettingsError, match=next(iter(bad))):
            SoftPromptConfig(**bad)
    with pytest.raises(SettingsError, match="lack"):
        SoftPromptConfig.from_json('{"format": 1, "kind": "deep"}')
    with pytest.raises(SettingsError, match="unknown prompt setting 'n'"):
        SoftPromptConfig.from_json(config.to_json().replace('"length"', '"n"'))
    with pytest.raises(SettingsError, match="another format"):
        SoftPromptConfig.from_json(config.to_json().replace('"format": 1', '"format": 2'))


@pytest.mark.parametrize("kind", ALL)
def test_widths_are_those_of_the_keys_and_values_a_model_makes(kind):
    model = task_model(kind)
    anatomy, seen = anatomy_of(model), []
    stack, blocks = anatomy.block_stacks(model)[-1]
    names = ("key", "k_lin", "key_proj", "k_proj", "k")
    for block in blocks:
        maps = dict(block.get_submodule(stack.attention[0]).named_modules())
        found = [module for name, module in maps.items() if name.rpartition(".")[2] in names]
        seen += [module.weight.shape[0] for module in found] or [16]  # one map for all three: width 16
    assert prompt_width(model, "deep", anatomy) == 2 * sum(seen)
    assert prompt_width(model, "input", anatomy) == (8 if kind == "electra" else 16)
    assert (prompt_width(model, "deep", anatomy) == 2 * 2 * 8) == (kind in ("llama", "qwen2", "qwen3"))


def test_a_prompt_starts_as_its_seed_says_and_torchs_own_state_stays():
    model = task_model("bert")
    anatomy, config = anatomy_of(model), SoftPromptConfig(length=50)
    before = torch.get_rng_state()
    first, again = (make_prompt(model, config, anatomy, seed=5) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.table, again.table)
    assert not torch.equal(first.table, make_prompt(model, config, anatomy, seed=6).table)
    assert 0.018 < float(first.table.std()) < 0.022
    assert torch.equal(make_prompt(model, config, anatomy, 5, std=0.04).table, first.table * 2)
    values = torch.randn(50, 64)
    assert torch.equal(make_prompt(model, config, anatomy, 5, values=values).table, values)


def test_a_projection_gives_the_values_and_takes_none():
    model = task_model("bert")
    anatomy, config = anatomy_of(model), SoftPromptConfig(length=3, projection=6)
    prompt = make_prompt(model, config, anatomy, seed=1)
    assert prompt.table.shape == (3, 16)
    one, two = prompt.projection[0], prompt.projection[2]
    expected = torch.tanh(prompt.table @ one.weight.T + one.bias) @ two.weight.T + two.bias
    torch.testing.assert_close(prompt.values(), expected)
    assert prompt.values().shape == (3, 64)
    with pytest.raises(MethodError, match="projection"):
        make_prompt(model, config, anatomy, 1, values=torch.zeros(3, 64))


# ---------------------------------------------------------------------- where it stands


@pytest.mark.parametrize("prompts", ["deep", "input"])
@pytest.mark.parametrize("purpose", [SEQUENCE, TOKENS, "pretraining"])
@pytest.mark.parametrize("kind", ALL)
def test_outputs_are_as_long_as_the_text_and_no_prompt_is_the_bare_model(kind, purpose, prompts):
    bare, model = task_model(kind, purpose), prompted(kind, prompts, purpose)
    batch = batch_of(kind, writes=purpose == "pretraining")
    before, with_it = answers(bare, batch), answers(model, batch)
    real = real_of(batch, before, kind)
    assert with_it.shape == before.shape
    assert float((with_it - before)[real].abs().max()) > 1e-5
    values = torch.randn(3, 5, prompt_of(model).layout.width(prompts))
    with given_prompt_values(model, None):
        assert torch.equal(answers(model, batch), before)
    bare, exact = bare.double(), copy.deepcopy(model).double()  # single precision is rounded as the processor does
    with given_prompt_values(exact, values.double(), torch.zeros(3, 5)):  # every place masked: as if none were there
        torch.testing.assert_close(answers(exact, batch)[real], answers(bare, batch)[real], rtol=0, atol=1e-12)
    with given_prompt_values(model, torch.zeros(5, values.shape[2])):  # zeros take their share of the attention
        assert float((answers(model, batch) - before)[real].abs().max()) > 1e-5
    detach_prompt(model)
    assert torch.equal(answers(model, batch), before)
    assert prompt_of(model) is None
    assert set(model.state_dict()) == set(bare.state_dict())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("prompts", ["deep", "input"])
@pytest.mark.parametrize("kind", ALL)
def test_a_shorter_prompt_padded_in_front_is_that_prompt(kind, prompts, attention):
    model, batch = prompted(kind, prompts, TOKENS, attention), batch_of(kind)
    expected = answers(model, batch)
    own = prompt_of(model).values().detach()
    padded = torch.cat([torch.randn(3, 3, own.shape[1]), own.expand(3, -1, -1)], dim=1)
    mask = torch.arange(LENGTH + 3).expand(3, -1) >= 3
    with given_prompt_values(model, padded, mask):
        found = answers(model, batch)
    real = real_of(batch, found, kind)
    torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prompts", ["deep", "input"])
@pytest.mark.parametrize("kind", ALL)
def test_padding_and_attention_functions_change_no_answer(kind, prompts):
    eager, model = prompted(kind, prompts, attention="eager"), prompted(kind, prompts)
    batch = batch_of(kind)
    expected = answers(model, batch)
    torch.testing.assert_close(answers(eager, batch), expected, rtol=1e-4, atol=1e-5)
    last = {key: value[2:, :6] for key, value in batch.items()}
    torch.testing.assert_close(answers(model, last), expected[2:], rtol=1e-4, atol=1e-5)


def naive_first_layer(model, prompt, batch):
    """BERT's first attention in plain sums: the prompt's keys and values in front, the text from position n on."""
    embeddings, attention = model.bert.embeddings, model.bert.encoder.layer[0].attention.self
    ids = batch["input_ids"]
    hidden = embeddings.LayerNorm(
        embeddings.word_embeddings(ids)
        + embeddings.token_type_embeddings(torch.zeros_like(ids))
        + embeddings.position_embeddings(torch.arange(LENGTH, LENGTH + ids.shape[1]))
    )
    found = torch.zeros_like(hidden)
    for row in range(len(ids)):
        keys = torch.cat([prompt[:, :16], attention.key(hidden[row])])
        values = torch.cat([prompt[:, 16:32], attention.value(hidden[row])])
        shown = torch.cat([torch.ones(LENGTH), batch["attention_mask"][row]]).bool()
        for head in (slice(0, 8), slice(8, 16)):
            scores = attention.query(hidden[row])[:, head] @ keys[:, head].T / math.sqrt(8)
            found[row, :, head] = torch.softmax(scores.masked_fill(~shown, -math.inf), dim=-1) @ values[:, head]
    return found


@torch.no_grad()
def test_a_deep_prompt_is_keys_and_values_in_front_by_the_plain_formula():
    model, batch, seen = prompted("bert"), batch_of("bert"), []
    model.bert.encoder.layer[0].attention.self.register_forward_hook(lambda *found: seen.append(found[2][0]))
    answers(model, batch)
    expected = naive_first_layer(model, prompt_of(model).values(), batch)
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prompts", ["deep", "input"])
@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoders_cache_and_generation_go_on_after_the_prompt(kind, prompts):
    model = prompted(kind, prompts, "pretraining")
    batch = batch_of(kind, pad=0)
    whole = answers(model, batch)
    with torch.no_grad():
        first = model(batch["input_ids"][:, :6], use_cache=True)
        rest = model(batch["input_ids"][:, 6:], past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], dim=1), whole, rtol=1e-4, atol=1e-5)
    asked = {"input_ids": batch["input_ids"][:2], "attention_mask": batch["attention_mask"][:2]}
    model.generation_config.eos_token_id = None  # all five words
    how = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    quick = model.generate(**asked, **how)
    assert torch.equal(model.generate(**asked, **how, use_cache=False), quick)
    text = asked["input_ids"]
    for _ in range(5):
        text = torch.cat([text, answers(model, {"input_ids": text})[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(quick, text)
    # padded on the left, the shorter text answers as by itself
    padded = {"input_ids": text[:, :7].clone(), "attention_mask": torch.ones(2, 7, dtype=torch.long)}
    padded["input_ids"][1, :3], padded["attention_mask"][1, :3] = 0, 0
    alone = model.generate(text[1:, 3:7], attention_mask=torch.ones(1, 4, dtype=torch.long), **how)
    assert torch.equal(model.generate(**padded, **how)[1, 7:], alone[0, 4:])
    beams = model.generate(**asked, **how, num_beams=3)
    assert torch.equal(model.generate(**asked, **how, num_beams=3, use_cache=False), beams)
    own = prompt_of(model).values().detach()
    with given_prompt_values(model, torch.cat([own[:1], own]).expand(2, -1, -1), torch.arange(5).expand(2, -1) > 0):
        assert torch.equal(model.generate(**asked, **how, num_beams=3), beams)
    each = torch.stack([own, -own])  # a prompt for each text goes with all of the text's beams
    with given_prompt_values(model, each):
        both = model.generate(**asked, **how, num_beams=3)
    for row in range(2):
        with given_prompt_values(model, each[row]):
            alone = model.generate(**{name: one[row : row + 1] for name, one in asked.items()}, **how, num_beams=3)
        assert torch.equal(both[row], alone[0])


@pytest.mark.parametrize("prompts", ["deep", "input"])
@pytest.mark.parametrize("kind", ["t5", "t5-gated"])
def test_an_encoder_decoder_writes_the_same_with_and_without_a_cache(kind, prompts):
    model = prompted(kind, prompts, "pretraining")
    asked = batch_of(kind)
    how = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    quick = model.generate(**asked, **how)
    assert torch.equal(model.generate(**asked, **how, use_cache=False), quick)
    beams = model.generate(**asked, **how, num_beams=2)
    assert torch.equal(model.generate(**asked, **how, num_beams=2, use_cache=False), beams)
    own = prompt_of(model).values().detach()
    with given_prompt_values(model, torch.cat([own[:2], own]).expand(3, -1, -1), torch.arange(6).expand(3, -1) > 1):
        assert torch.equal(model.generate(**asked, **how), quick)


@pytest.mark.parametrize("prompts", ["deep", "input"])
@pytest.mark.parametrize("kind", TABLES)
def test_positions_start_after_the_prompt_and_too_long_a_text_is_refused(kind, prompts):
    model = prompted(kind, prompts, TOKENS)
    fits = batch_of(kind, length=POSITIONS - LENGTH, pad=0)
    assert answers(model, fits).isfinite().all()
    long = batch_of(kind, length=POSITIONS - LENGTH + 1, pad=0)
    with pytest.raises(DataError, match=f"max_length: {POSITIONS - LENGTH}"):
        answers(model, long)
    long["attention_mask"][:, -1] = 0  # padding needs no position
    if kind == "roberta":
        long["input_ids"][:, -1] = 1
    if kind != "gpt2":
        torch.testing.assert_close(answers(model, long)[:, :-1], answers(model, fits | {
            "input_ids": long["input_ids"][:, :-1]}), rtol=1e-4, atol=1e-5)  # fmt: skip


def test_what_is_handed_to_the_table_of_positions_starts_at_the_prompts_length():
    model, seen = prompted("roberta", "deep"), []
    model.roberta.embeddings.position_embeddings.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    answers(model, batch_of("roberta"))
    assert seen[0][0].tolist() == list(range(LENGTH + 2, LENGTH + 12))
    assert seen[0][2].tolist() == [*range(LENGTH + 2, LENGTH + 8), 1, 1, 1, 1]  # padding keeps its own


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("prompts", ["deep", "input"])
@pytest.mark.parametrize("kind", ALL)
def test_gradients_reach_the_prompt_alone_and_checkpointing_changes_none(kind, prompts):
    grads = []
    for checkpointing in (False, True):
        model = prompted(kind, prompts, projection=None)
        for name, weight in model.named_parameters():
            weight.requires_grad_(name.startswith("soft_prompt"))
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        _quiet(model)
        task_output(model, batch_of(kind)).logits.square().sum().backward()
        assert [name for name, weight in model.named_parameters() if weight.grad is not None] == ["soft_prompt.table"]
        grads.append(prompt_of(model).table.grad)
    assert float(grads[0].abs().max()) > 0
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-6 * float(grads[0].abs().max()) + 1e-9)


def _quiet(model):
    """Attention dropout stands in numbers, not in modules."""
    for module in model.modules():
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def test_a_second_pass_before_the_backward_keeps_each_passs_own_prompt():
    """Also where layers are run again for their gradients (DeBERTa hands its prompt from layer to layer)."""
    for kind in ("bert", "deberta-v2"):
        batch, grads = batch_of(kind), []
        for between in (False, True):
            model = prompted(kind)
            model.requires_grad_(False)
            prompt_of(model).requires_grad_(True)
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
            loss = task_output(model, batch).logits.square().sum()
            if between:
                with given_prompt_values(model, torch.randn(2, prompt_width(model, "deep", anatomy_of(model)))):
                    task_output(model, batch)
            loss.backward()
            grads.append(prompt_of(model).table.grad)
        assert torch.equal(*grads)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])  # all of whose sums are as exact as their inputs
def test_gradients_are_those_of_finite_differences(kind):
    model, batch = prompted(kind).double(), batch_of(kind)
    values = prompt_of(model).values().detach().double().requires_grad_(True)

    def loss(own):
        with given_prompt_values(model, own):
            return task_output(model, batch).logits.square().sum()

    loss(values).backward()
    step = torch.zeros_like(values)
    for place in ((0, 0), (1, 9), (3, 63), (2, 33)):
        step.zero_()
        step[place] = 1e-5
        with torch.no_grad():
            slope = (loss(values + step) - loss(values - step)) / 2e-5
        torch.testing.assert_close(values.grad[place], slope, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("prompts", ["deep", "input"])
def test_dropout_falls_on_the_prompts_values_while_training_a_mask_for_each_text(prompts):
    model = prompted("bert", prompts, dropout=0.5)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    batch = batch_of("bert", pad=0)
    batch = {key: value[:1].expand(3, -1) for key, value in batch.items()}
    still = answers(model, batch)
    assert torch.equal(still[0], still[1])
    model.train()
    with compat.seeded(0):
        moved = answers(model, batch)
    assert float((moved[0] - moved[1]).abs().max()) > 1e-5
    with compat.seeded(0):
        kept = nn.functional.dropout(prompt_of(model).values().expand(3, -1, -1), 0.5)
    model.eval()
    with given_prompt_values(model, kept.detach()):
        torch.testing.assert_close(answers(model, batch), moved)


@pytest.mark.parametrize("prompts", ["deep", "input"])
@pytest.mark.parametrize("kind", ["bert", "llama", "t5", "deberta-v2", "modernbert"])
def test_half_precision_models_read_a_prompt_kept_in_full(kind, prompts):
    model = prompted(kind, prompts)
    full = answers(model, batch_of(kind))
    prompt = prompt_of(model)
    model.to(torch.bfloat16)
    prompt.float()
    half = answers(model, batch_of(kind))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, rtol=0.1, atol=0.15)


@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "t5"])
@pytest.mark.parametrize("prompts", ["deep", "input"])
def test_a_copy_has_a_prompt_of_its_own(kind, prompts):
    model, batch = prompted(kind, prompts), batch_of(kind)
    before = answers(model, batch)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        prompt_of(twin).table.mul_(-3.0)
    with given_prompt_values(twin, None):
        assert torch.equal(answers(model, batch), before)
    assert float((answers(twin, batch) - before).abs().max()) > 1e-5
    detach_prompt(twin)
    assert torch.equal(answers(model, batch), before)


# ---------------------------------------------------------------------- beside other things


@pytest.mark.parametrize("prompts", ["deep", "input"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_a_soft_prompt_stands_beside_a_hypernetworks(kind, prompts):
    model, batch = task_model(kind, "pretraining"), batch_of(kind, pad=0)
    attach(model, make_hyperprompt(model, HyperPromptConfig(components=3, length=2), 1), anatomy_of(model))
    before = answers(model, batch)
    config = SoftPromptConfig(kind=prompts, length=LENGTH)
    attach_prompt(model, make_prompt(model, config, anatomy_of(model), 3, std=1.0), anatomy_of(model))
    with given_prompt_values(model, None):
        assert torch.equal(answers(model, batch), before)
    both = answers(model, batch)
    assert both.shape == before.shape
    assert float((both - before).abs().max()) > 1e-5
    with given_prompt_values(model, torch.randn(3, 2, prompt_of(model).layout.width(prompts)), torch.zeros(3, 2)):
        torch.testing.assert_close(answers(model, batch), before, rtol=1e-4, atol=1e-5)
    if kind != "bert":
        how = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        asked = {name: one[:2] for name, one in batch.items()}
        model.generation_config.eos_token_id = None
        with given_prompt(model, torch.zeros(2, 16)):  # else without a cache each step would write a new one
            assert torch.equal(model.generate(**asked, **how), model.generate(**asked, **how, use_cache=False))


def test_prompts_are_never_the_backbones():
    model = prompted("bert")
    anatomy = anatomy_of(model)
    assert not any(anatomy.is_backbone(name) for name in model.state_dict() if name.startswith("soft_prompt"))
    assert layout_of(model, anatomy).slots(1) == (2, 3)
