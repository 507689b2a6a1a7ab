"""Bases and deltas of every kind of model: out and in again, bit for bit."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors import safe_open

from anytune import compat
from anytune.models.adapters import AdapterDelta
from anytune.models.answering import task_output
from anytune.models.base import load_base, save_base
from anytune.models.delta import FullDelta
from anytune.models.fingerprint import fingerprint_state
from anytune.models.peft_models import make_lora, merge
from anytune.models.weights import write_tensors
from tests.models.conftest import LABELS, equal_bits, scatter
from tests.models.kinds import DECODERS, ENCODERS, KINDS, POSITIONS, VARIANTS, make_kind

ALL = (*KINDS, *VARIANTS)
TASKS = ("classification", "regression", "token-classification")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {(kind, seed): make_kind(kind, tmp_path_factory.mktemp(f"{kind}-{seed}"), seed)
            for kind in ALL for seed in (0, 1)}  # fmt: skip


@pytest.fixture
def base_of(folders):
    return lambda kind, seed=0: load_base(folders[kind, seed])


def batch_of(base):
    tokenizer = base.tokenizer()
    rows = [tokenizer(text)["input_ids"] for text in ("the cat was near oakleaf", "moss", "a dogpaw under some fern")]
    width = max(map(len, rows))
    ids, mask = torch.full((3, width), 0), torch.zeros(3, width, dtype=torch.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)], mask[place, : len(row)] = torch.tensor(row), 1
    return {"input_ids": ids, "attention_mask": mask}


def names_in(folder):
    with safe_open(str(folder / "model.safetensors"), framework="pt") as handle:
        return set(handle.keys())


@torch.no_grad()
def answers(model, base):
    return task_output(model.eval(), batch_of(base)).logits


@torch.no_grad()
@pytest.mark.parametrize("kind", ALL)
def test_the_pretraining_model_is_the_one_transformers_loads(kind, base_of):
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    base = base_of(kind)
    model, missing = base.pretraining_model()
    loader = AutoModelForMaskedLM if kind in ENCODERS else AutoModelForCausalLM if kind in DECODERS else None
    with compat.quiet_transformers():
        stock = (loader or AutoModelForSeq2SeqLM).from_pretrained(str(base.folder)).eval()
    assert missing == []
    assert equal_bits(dict(model.state_dict()), dict(stock.state_dict()))
    batch = batch_of(base) | ({"decoder_input_ids": torch.tensor([[0, 5]] * 3)} if loader is None else {})
    assert torch.equal(model(**batch).logits, stock(**batch).logits)


@pytest.mark.parametrize("kind", ALL)
def test_the_head_is_every_module_that_the_base_file_lacks(kind, base_of):
    base = base_of(kind)
    held = {base.anatomy.canonical(name) for name in names_in(base.folder)} | {copy for copy, _ in base.anatomy.tied}
    for task in TASKS:
        model, head = base.task_model(task, () if task == "regression" else LABELS, seed=4)
        lacking = [name for name in model.state_dict() if base.anatomy.canonical(name) not in held]
        warm = [name for name in model.state_dict() if base.anatomy.is_warm_head(name)]
        assert set(head) == {*lacking, *warm}
        assert lacking
        assert bool(warm) == (kind == "modernbert")
        for name in warm:
            assert torch.equal(model.state_dict()[name], base.stored[name])
        again, _ = base.task_model(task, () if task == "regression" else LABELS, seed=4)
        assert equal_bits(dict(model.state_dict()), dict(again.state_dict()))


@pytest.mark.parametrize("kind", ALL)
def test_a_file_of_the_bare_backbone_is_the_same_base_without_its_head(kind, base_of, tmp_path):
    """As many hub files are: names without a prefix, no pre-training head, GPT-2's with its causal masks."""
    base = base_of(kind)
    own = {name: base.tensors()[name] for name in base.tensors()}
    masks = {f"h.{block}.attn.bias": torch.ones(1, 1, 8, 8).tril() for block in range(2)} if kind == "gpt2" else {}
    write_tensors(tmp_path / "model.safetensors", own | masks, {"format": "pt"})
    shutil.copy(base.folder / "config.json", tmp_path)
    base.copy_tokenizer(tmp_path)
    bare = load_base(tmp_path)
    assert bare.identity.backbone == base.identity.backbone
    model, head = bare.task_model("classification", LABELS, seed=1)
    from_whole, same = base.task_model("classification", LABELS, seed=1)
    assert head == same
    for name in set(model.state_dict()) - set(head):
        assert torch.equal(model.state_dict()[name], from_whole.state_dict()[name])
    pretraining, missing = bare.pretraining_model(seed=1)
    assert all(base.anatomy.is_pretraining_head(name) for name in missing)
    assert pretraining.get_output_embeddings().weight is pretraining.get_input_embeddings().weight
    assert bool(missing) == (kind in ENCODERS)  # the others' heads are the word embeddings and nothing else
    again, _ = bare.pretraining_model(seed=1)
    assert equal_bits(dict(pretraining.state_dict()), dict(again.state_dict()))


@pytest.mark.parametrize("kind", ALL)
def test_the_position_limit_is_what_the_kind_reads(kind, base_of):
    assert base_of(kind).position_limit == (None if VARIANTS.get(kind, kind) == "t5" else POSITIONS)


@torch.no_grad()
@pytest.mark.parametrize("kind", ALL)
def test_a_base_saved_is_the_base_loaded(kind, base_of, tmp_path):
    base = base_of(kind)
    model, _ = base.pretraining_model()
    scatter(model, 3)
    save_base(model, base, tmp_path / "upgrade", base.held_over())
    upgrade = load_base(tmp_path / "upgrade")
    again, missing = upgrade.pretraining_model()
    assert missing == []
    assert equal_bits(dict(model.state_dict()), dict(again.state_dict()))
    assert upgrade.identity.vocabulary == base.identity.vocabulary
    assert upgrade.identity.config == base.identity.config
    assert upgrade.identity.backbone == fingerprint_state(model.state_dict(), base.anatomy)
    assert upgrade.identity.backbone != base.identity.backbone
    same = tmp_path / "same"
    save_base(base.pretraining_model()[0], base, same, base.held_over())
    assert load_base(same).identity.backbone == base.identity.backbone
    batch = batch_of(base) | (
        {"decoder_input_ids": torch.tensor([[0, 5]] * 3)} if base.anatomy.encoder_decoder else {}
    )
    assert torch.equal(model(**batch).logits, again(**batch).logits)


@pytest.mark.parametrize("task", ["classification", "token-classification"])
@pytest.mark.parametrize("kind", ALL)
def test_a_full_difference_gives_the_tuned_model_bit_for_bit(kind, task, base_of, tmp_path):
    base = base_of(kind)
    model, head = base.task_model(task, LABELS, seed=1)
    scatter(model, 8)
    FullDelta.extract(base.tensors(), model.state_dict(), head, base.anatomy, base.identity).save(tmp_path)
    delta = FullDelta.load(tmp_path)
    fresh, _ = base.task_model(task, LABELS, seed=2)
    delta.install(fresh, base.tensors(), base.identity)
    assert equal_bits(dict(model.state_dict()), dict(fresh.state_dict()))
    assert torch.equal(answers(model, base), answers(fresh, base))
    other = base_of(kind, 1)
    moved, _ = other.task_model(task, LABELS, seed=2)
    delta.rebased(other.identity).install(moved, other.tensors(), other.identity)
    word = base.anatomy.in_model(base.anatomy.word_embeddings)
    added = moved.state_dict()[word] - other.tensors()[base.anatomy.word_embeddings]
    assert torch.allclose(added, model.state_dict()[word] - base.tensors()[base.anatomy.word_embeddings], atol=1e-6)
    for name in head:
        assert torch.equal(moved.state_dict()[name], model.state_dict()[name])


@pytest.mark.parametrize("kind", ALL)
def test_an_adapter_comes_back_bit_for_bit_moves_and_merges(kind, base_of, tmp_path):
    base, other = base_of(kind), base_of(kind, 1)
    model, head = base.task_model("classification", LABELS, seed=1)
    tuned = scatter(make_lora(model, head_names=head, r=2, targets=base.anatomy.linear_maps(model), seed=3), 8).eval()
    # the base's own weights must not move: scatter moved them too, so put them back
    own = base.tensors()
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            inside = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
            bare = base.anatomy.canonical(inside)
            if bare in own and "lora_" not in name:
                weight.copy_(own[bare])
    delta = AdapterDelta.from_model(tuned, base.identity)
    assert any(name.endswith("lora_B.weight") for name in delta.tensors)
    delta.save(tmp_path / "adapter")
    back = AdapterDelta.load(tmp_path / "adapter")
    assert equal_bits(delta.tensors, back.tensors)
    assert back.saved_head_missing(head) == []
    fresh, _ = base.task_model("classification", LABELS, seed=9)
    attached = back.attach(fresh, trainable=False)
    assert torch.equal(answers(attached, base), answers(tuned, base))
    # a LoRA reads nothing of its base, so it lands on another as it is
    moved = back.rebase(base.tensors(), other.tensors(), anatomy=base.anatomy)
    assert equal_bits(moved.tensors, back.tensors)
    landed, _ = other.task_model("classification", LABELS, seed=9)
    assert not torch.equal(answers(moved.attach(landed), other), answers(tuned, base))
    expected = answers(tuned, base)
    merged = merge(tuned)
    assert (answers(merged, base) - expected).abs().max() < 1e-5
    save_base(merged, base, tmp_path / "merged")
    plain = load_base(tmp_path / "merged")
    with compat.quiet_transformers():
        cls = compat.model_class("sequence-classification", plain.config)
        stock = cls.from_pretrained(str(plain.folder)).eval()
    assert torch.equal(answers(stock, base), answers(merged, base))
