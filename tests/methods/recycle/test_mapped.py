"""A LoRA on a base of another shape: what is carried, what is refused, and that it trains on from there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import anytune
from anytune.errors import AnytuneError, MethodError
from anytune.methods import registry
from anytune.methods.recycle.mapped import _checked, factors_of
from anytune.models.base import load_base
from tests.conftest import VOCABULARY, write_tiny_tokenizer
from tests.contract.bench import mean_loss, state
from tests.methods.recycle.outdated import SETTINGS, Case, logits, store_of


def write_base(folder, seed=4, **sizes):
    """A random BERT of other sizes than the tiny base, with its words."""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=VOCABULARY, max_position_embeddings=64, pad_token_id=0,
        **{"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80, **sizes},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertForMaskedLM(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.mul_(4.0 if ".layer." in name and parameter.ndim == 2 else 1.0)
        model.save_pretrained(folder)
    write_tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("larger") / "base")


@pytest.fixture(scope="module")
def larger_case(old_lora, moving_bases, larger, tiny_task) -> Case:
    return Case(old_lora, moving_bases[0], larger, tiny_task)


def test_another_shape_is_refused_by_copying_with_this_way_out(larger_case, old_lora, larger, tiny_task, moving_bases):
    assert larger_case.outdated.refusal
    with pytest.raises(AnytuneError) as caught:
        anytune.recycle(
            old_lora, larger, store=store_of(old_lora), method="direct", task=tiny_task, old_base=moving_bases[0]
        )
    assert "mapped" in caught.value.fix


def test_a_lora_arrives_on_a_base_of_another_depth_width_and_number_of_heads(larger_case):
    model, method = larger_case.prepared("mapped", texts=30)
    assert "1 of 3 blocks without a partner; the head starts afresh" in method.notes()[0]
    assert "12 of 12 maps" in method.notes()[0]
    assert "stay behind" not in method.notes()[0]
    with_factors = {
        name for name, tensor in state(model).items() if "lora_B" in name and bool(tensor.any())
    }  # fmt: skip
    assert len(with_factors) == 12
    assert len({name.split(".layer.")[1].split(".")[0] for name in with_factors}) == 2
    answers = logits(larger_case, model)
    assert answers.isfinite().all()
    with model.disable_adapter():
        assert not torch.allclose(answers, logits(larger_case, model), atol=1e-4), "the factors do something"


def test_what_has_no_map_is_said_to_stay_behind(old_lora, moving_bases, larger, tiny_task):
    case = Case(old_lora, moving_bases[0], larger, tiny_task)
    own = case.moving.own
    tokens = "base_model.model.bert.embeddings.word_embeddings.token_adapter.trainable_tokens_delta"
    vars(case.moving)["own"] = replace(own, tensors={**own.tensors, tokens: torch.zeros(1, 32)})
    method = registry.create("recycle/mapped", {"texts": 8})
    vars(method)["_pairs"] = lambda *_: [0, 1, -1]  # the teacher is of no interest
    method.prepare(case.model()[0], case.run())
    assert "1 other tensors of it stay behind" in method.notes()[0]


def test_it_is_the_same_for_the_same_seed(larger_case):
    first, second = (state(larger_case.prepared("mapped", texts=30)[0]) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_recycled_it_trains_on_and_stays_a_lora(old_lora, larger, tiny_task, moving_bases):
    store = store_of(old_lora)
    [entry] = anytune.recycle(
        old_lora, larger, store=store, method="mapped", task=tiny_task, old_base=moving_bases[0],
        training={**SETTINGS, "steps": 60, "learning_rate": 1e-2, "evaluate_every": 60},
    )  # fmt: skip
    assert entry.manifest.form == "peft"
    assert entry.manifest.steps == 60
    assert any(note.startswith("mapped: ") for note in entry.manifest.notes)
    first, last = entry.manifest.curve[0], entry.manifest.curve[-1]
    assert last.loss < first.loss
    assert anytune.score(entry, tiny_task, store=store, split="test") == entry.manifest.scores["test"]


@pytest.mark.parametrize("kind", ["lora_case"])
def test_onto_the_same_base_it_is_direct_reuse_up_to_rounding(kind, old_lora, moving_bases, tiny_task):
    case = Case(old_lora, moving_bases[0], moving_bases[0], tiny_task)
    model, method = case.prepared("mapped")
    assert "the head copied" in method.notes()[0]
    torch.testing.assert_close(logits(case, model), logits(case, case.prepared("direct")[0]), rtol=0, atol=1e-3)


def test_a_base_with_more_blocks_and_the_same_blocks_gets_them_where_they_are(
    old_lora, moving_bases, tiny_task, tmp_path
):
    """The old base with a block of noise put in between: CKA finds which is which."""
    from safetensors.torch import load_file, save_file

    folder = write_base(tmp_path / "deeper", hidden_size=32, num_attention_heads=2, intermediate_size=64)
    old, new = (load_file(path / "model.safetensors") for path in (moving_bases[0], folder))
    for name in new:
        source = name.replace("encoder.layer.2.", "encoder.layer.1.")
        if "encoder.layer.1." not in name and source in old:
            new[name] = old[source].clone()
        elif "encoder.layer.1." in name:  # it changes nothing: the residual alone goes through
            quiet = name.endswith(("output.dense.weight", "output.dense.bias"))
            new[name] = torch.zeros_like(new[name]) if quiet else new[name]
    save_file(new, folder / "model.safetensors", metadata={"format": "pt"})
    case = Case(old_lora, moving_bases[0], folder, tiny_task)
    model, _ = case.prepared("mapped")
    found = {name: tensor for name, tensor in state(model).items() if "lora_B" in name}
    assert any(bool(tensor.any()) for name, tensor in found.items() if ".layer.0." in name)
    assert any(bool(tensor.any()) for name, tensor in found.items() if ".layer.2." in name)
    assert mean_loss(model, case.objective, [case.encoded.batch(range(12))]) < 1.5


def test_what_cannot_be_mapped_is_refused_with_what_to_do(full_case, lora_case, larger_case):
    with pytest.raises(MethodError, match="mapped carries LoRAs, and these weights are of the kind 'full'") as caught:
        full_case.prepared("mapped")
    assert "distill" in caught.value.fix
    adapter = lora_case.outdated.adapter
    bases = lora_case.outdated.old_base, lora_case.outdated.new_base
    for change, match in (
        ({"rank_pattern": {"query": 2}}, "rank_pattern"), ({"use_dora": True}, "DoRA"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
    ):  # fmt: skip
        changed = replace(adapter, config={**adapter.config, **change})
        with pytest.raises(MethodError, match=match):
            _checked(changed, "lora", *bases)
    other = replace(bases[1], anatomy=replace(bases[1].anatomy, model_type="roberta"))
    with pytest.raises(MethodError, match="of kind roberta"):
        _checked(adapter, "lora", bases[0], other)


def test_too_few_shared_words_are_refused(larger_case):
    wide = registry.create("recycle/mapped")
    narrow = load_base(larger_case.new.folder)
    config = type("Config", (), {"hidden_size": 999})()
    with pytest.raises(MethodError, match="share 200 words, and hidden states have 999 entries"):
        wide._hidden(larger_case.outdated.old_base, replace(narrow, config=config))


def test_factors_are_read_by_module(lora_case):
    factors = factors_of(lora_case.outdated.adapter, lora_case.new.anatomy)
    assert len(factors) == 12
    one = factors["encoder.layer.0.intermediate.dense"]
    assert one.a.shape == (4, 32)
    assert one.b.shape == (64, 4)
