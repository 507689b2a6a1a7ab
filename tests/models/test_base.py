from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anytune import compat
from anytune.errors import BaseError
from anytune.manifests import BaseIdentity, Manifest, write_manifest
from anytune.models.base import Base, load_base, save_base
from anytune.models.fingerprint import fingerprint_folder
from tests.models.conftest import KINDS, LABELS, VOCABULARY, equal_bits, logits, save, scatter, tiny_config, tiny_model


def fresh_bits(base: Base, seed: int) -> dict:
    model, head = base.task_model("classification", LABELS, seed=seed)
    return {name: model.state_dict()[name] for name in head}


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_model_has_the_weights_of_the_base_and_a_head_of_exactly_what_the_file_lacks(kind, make_base, batch):
    base = make_base(kind=kind)
    model, head = base.task_model("classification", LABELS, seed=0)
    in_file = {base.anatomy.canonical(name) for name in load_file(base.folder / "model.safetensors")}
    state = model.state_dict()
    assert set(head) == {name for name in state if base.anatomy.canonical(name) not in in_file}
    for bare, tensor in base.tensors().items():
        assert torch.equal(state[base.anatomy.in_model(bare)], tensor)
    assert logits(model, batch).shape == (3, len(LABELS))
    assert model.config.id2label == dict(enumerate(LABELS))
    assert not model.training


def test_a_fresh_pooler_is_head_and_a_stored_one_is_not(make_base):
    assert sorted(fresh_bits(make_base("plain"), 0)) == [
        "bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight",
    ]  # fmt: skip
    assert sorted(fresh_bits(make_base("pooled", purpose="backbone"), 0)) == ["classifier.bias", "classifier.weight"]


def test_the_fresh_head_depends_on_the_seed_alone_and_leaves_torchs_random_state(make_base):
    base = make_base()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = fresh_bits(base, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(17)
    assert equal_bits(fresh_bits(base, seed=5), first)
    assert not equal_bits(fresh_bits(base, seed=6), first)


def test_two_bases_of_one_architecture_start_from_the_same_head(make_base):
    assert equal_bits(fresh_bits(make_base("one", seed=1), 3), fresh_bits(make_base("two", seed=2), 3))


def test_regression_has_one_output(make_base, batch):
    model, _ = make_base().task_model("regression", (), seed=0)
    assert logits(model, batch).shape == (3, 1)
    assert model.config.problem_type == "regression"


def test_weights_are_fp32_whatever_the_file_stores_unless_another_precision_is_asked_for(make_base):
    base = make_base(dtype=torch.bfloat16)
    model, _ = base.task_model("classification", LABELS, seed=0)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert {tensor.dtype for tensor in base.pretraining_model(0)[0].state_dict().values()} == {torch.float32}
    half, _ = base.task_model("classification", LABELS, seed=0, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.bfloat16}
    assert base.tensors()["embeddings.word_embeddings.weight"].dtype == torch.bfloat16


def test_training_a_model_changes_no_file_and_no_other_model(make_base):
    base = make_base()
    before = fingerprint_folder(base.folder, cache=False)
    first, _ = base.task_model("classification", LABELS, seed=0)
    second, _ = base.task_model("classification", LABELS, seed=0)
    scatter(first, 1)
    assert equal_bits(
        {name: second.state_dict()[base.anatomy.in_model(name)] for name in base.tensors()}, dict(base.tensors())
    )
    assert fingerprint_folder(base.folder, cache=False) == before


def test_a_task_head_in_the_base_file_is_not_used(make_base, tmp_path, batch):
    base = make_base()
    tuned, _ = base.task_model("classification", LABELS, seed=1)
    save(scatter(tuned, 8), tmp_path / "tuned")
    again = load_base(tmp_path / "tuned")
    model, head = again.task_model("classification", LABELS, seed=0)
    assert sorted(head) == ["classifier.bias", "classifier.weight"]
    assert not torch.equal(model.classifier.weight, tuned.classifier.weight)
    five, _ = again.task_model("classification", tuple("abcde"), seed=0)
    assert logits(five, batch).shape == (3, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pretraining_model_has_nothing_new_where_the_file_has_its_head(kind, make_base, batch):
    base = make_base(kind=kind)
    model, missing = base.pretraining_model(seed=0)
    assert missing == []
    assert torch.equal(logits(model, batch), logits(tiny_model(kind), batch))


def test_a_fresh_pretraining_head_is_seeded_tied_and_named(make_base):
    base = make_base(purpose="backbone")
    model, missing = base.pretraining_model(seed=4)
    assert missing
    assert all(name.startswith("cls.") for name in missing)
    assert "cls.predictions.decoder.weight" not in missing
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert model.cls.predictions.decoder.bias is model.cls.predictions.bias
    assert equal_bits(dict(model.state_dict()), dict(base.pretraining_model(seed=4)[0].state_dict()))
    assert not equal_bits(dict(model.state_dict()), dict(base.pretraining_model(seed=5)[0].state_dict()))


def test_a_pooler_that_pretraining_drops_travels_with_the_upgrade(make_base, tmp_path, batch):
    from transformers import AutoModelForSequenceClassification

    base = make_base(purpose="backbone")
    model, _ = base.pretraining_model(seed=0)
    save_base(scatter(model, 3), base, tmp_path / "up", base.held_over())
    upgrade = load_base(tmp_path / "up")
    assert sorted(base.held_over()) == ["bert.pooler.dense.bias", "bert.pooler.dense.weight"]
    assert sorted(fresh_bits(upgrade, 0)) == ["classifier.bias", "classifier.weight"]
    with compat.quiet_transformers():
        plain, info = AutoModelForSequenceClassification.from_pretrained(upgrade.folder, output_loading_info=True)
    assert set(info["missing_keys"]) == {"classifier.bias", "classifier.weight"}
    assert torch.equal(plain.bert.pooler.dense.weight, base.tensors()["pooler.dense.weight"])
    assert make_base("plain").held_over() == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("purpose", ["pretraining", "backbone"])
def test_an_untrained_upgrade_is_the_base(kind, purpose, make_base, tmp_path, batch):
    base = make_base(kind=kind, purpose=purpose)
    model, _ = base.pretraining_model(seed=0)
    save_base(model, base, tmp_path / "up", base.held_over())
    upgrade = load_base(tmp_path / "up")
    assert upgrade.identity.backbone == base.identity.backbone
    assert upgrade.identity.config == base.identity.config
    assert upgrade.identity.vocabulary == base.identity.vocabulary != ""
    again, missing = upgrade.pretraining_model(seed=9)
    assert missing == []
    assert torch.equal(logits(again, batch), logits(model, batch))


def test_a_saved_base_is_a_plain_folder_that_transformers_loads_and_names_no_path(make_base, tmp_path, batch):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    base = make_base()
    model, _ = base.pretraining_model(seed=0)
    save_base(scatter(model, 3), base.tokenizer(), tmp_path / "up", dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in load_file(tmp_path / "up" / "model.safetensors").values()} == {torch.bfloat16}
    with compat.quiet_transformers():
        plain = AutoModelForMaskedLM.from_pretrained(tmp_path / "up", dtype=torch.float32)
    assert torch.allclose(logits(plain, batch), logits(model, batch), atol=0.05)
    assert AutoTokenizer.from_pretrained(tmp_path / "up")("w3 w4")["input_ids"] == [2, 8, 9, 3]
    for file in (tmp_path / "up").glob("*.json"):
        assert str(tmp_path) not in file.read_text()
    assert model.dtype == torch.float32


def test_weights_that_are_not_finite_make_no_base(make_base, tmp_path):
    model, _ = make_base().pretraining_model(seed=0)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[0, 0] = float("nan")
    with pytest.raises(BaseError, match=r"1 tensors hold NaN or infinity, first bert.embeddings.word"):
        save_base(model, None, tmp_path / "up")
    assert not (tmp_path / "up" / "model.safetensors").exists()


def test_loading_and_making_models_is_silent(make_base, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        base = make_base(purpose="backbone")
        capfd.readouterr()
        base.task_model("classification", LABELS, seed=0)
        base.pretraining_model(seed=0)
        base.tokenizer()
    assert capfd.readouterr() == ("", "")


def test_a_sample_is_found_through_the_resolver_and_keeps_its_reference(tmp_path):
    folder = save(tiny_model(), tmp_path / "abc")
    base = load_base("sample:tiny", resolve_sample={"tiny": folder}.__getitem__)
    assert (base.ref, base.name, base.folder) == ("sample:tiny", "tiny", folder)
    with pytest.raises(BaseError, match="'sample:tiny' cannot be resolved"):
        load_base("sample:tiny")


def test_a_folder_is_named_by_its_manifest_or_itself_and_has_no_reference(make_base):
    base = make_base("first")
    assert (base.name, base.ref, base.manifest) == ("first", None, None)
    write_manifest(base.folder, Manifest(kind="base", name="news-2026", base=base.identity))
    assert load_base(base.folder).name == "news-2026"
    assert load_base(base.folder, name="mine", ref="sample:x").identity.ref == "sample:x"


def test_weights_that_are_not_those_of_the_manifest_are_refused(make_base):
    base = make_base()
    write_manifest(base.folder, Manifest(kind="base", name="b", base=BaseIdentity(backbone="f" * 64)))
    with pytest.raises(BaseError, match=r"the weights have the hash .{10}, its manifest says ffffffffff"):
        load_base(base.folder)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("./nowhere", r"there is no folder './nowhere'"),
        ("/no/such/folder", r"there is no folder '/no/such/folder'[\s\S]*sample:bert-tiny"),
        ("a b", r"there is no folder 'a b'"),
        ("owner/name", r"'owner/name' is no folder here and could not be had[\s\S]*sample:bert-tiny"),
        ("bert-base-nowhere", r"'bert-base-nowhere' is no folder here and could not be had"),
    ],
)
def test_what_cannot_be_found_is_a_clear_error_that_suggests_a_sample(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BaseError, match=message):
        load_base(source)


def test_a_missing_folder_suggests_its_near_sibling(tmp_path):
    save(tiny_model(), tmp_path / "my-base-v1")
    with pytest.raises(BaseError, match=r"Try: .*my-base-v1"):
        load_base(tmp_path / "my-base-1")


def test_folders_that_are_no_base_say_what_they_are(tmp_path, make_base):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BaseError, match=r"has no config\.json"):
        load_base(tmp_path / "empty")
    with pytest.raises(BaseError, match="is a file"):
        load_base(make_base().folder / "config.json")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(BaseError, match="is a PEFT adapter, not a base"):
        load_base(tmp_path / "adapter")
    make_base("outer/inner")
    with pytest.raises(BaseError, match=r"Try: .*outer/inner"):
        load_base(tmp_path / "outer")


def damaged(base: Base, **change) -> Path:
    path = base.folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return base.folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "berd"}, "unknown kind of model 'berd'"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"num_hidden_layers": 3}, "16 backbone tensors are missing"),
        ({"num_hidden_layers": 1}, "16 are left over"),
        ({"hidden_size": 32}, "do not fit its config.json"),
        ({"num_attention_heads": 3}, "do not fit its config.json"),
    ],
)
def test_a_config_that_does_not_describe_the_weights_is_refused(change, message, make_base):
    with pytest.raises(BaseError, match=message):
        load_base(damaged(make_base(), **change)).task_model("classification", LABELS, seed=0)


def test_a_tensor_missing_from_the_file_is_no_silent_random_weight(make_base):
    base = make_base()
    tensors = load_file(base.folder / "model.safetensors")
    tensors.pop("bert.encoder.layer.1.output.dense.weight")
    save_file(tensors, base.folder / "model.safetensors", {"format": "pt"})
    for make in (lambda b: b.task_model("classification", LABELS, seed=0), lambda b: b.pretraining_model(seed=0)):
        with pytest.raises(BaseError, match=r"1 backbone tensors are missing \(bert.encoder.layer.1.output.dense.w"):
            make(load_base(base.folder))


def test_files_with_old_names_of_layer_norms_load(make_base, batch):
    base = make_base()
    want = logits(base.pretraining_model(0)[0], batch)
    tensors = load_file(base.folder / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    save_file(old | {"bert.embeddings.position_ids": torch.arange(40)[None]}, base.folder / "model.safetensors")
    again = load_base(base.folder)
    assert again.identity.backbone == base.identity.backbone
    model, missing = again.pretraining_model(0)
    assert missing == []
    assert torch.equal(logits(model, batch), want)


def test_a_base_without_tokenizer_says_so_when_one_is_asked_for(tmp_path):
    base = load_base(save(tiny_model(), tmp_path / "bare", tokenizer=False))
    with pytest.raises(BaseError, match="has no tokenizer"):
        base.tokenizer()


def test_the_loaded_tokenizer_is_the_folders(make_base):
    assert make_base().tokenizer()("w0 w1")["input_ids"] == [2, 5, 6, 3]


def test_a_decoder_without_padding_token_takes_the_tokenizers(tmp_path, batch):
    from transformers import LlamaForCausalLM

    config = tiny_config("llama")
    config.pad_token_id = None
    base = load_base(save(LlamaForCausalLM(config), tmp_path / "llama"))
    model, head = base.task_model("classification", LABELS, seed=0)
    assert head == ["score.weight"]
    assert model.config.pad_token_id == 0
    assert logits(model, batch).shape == (3, 3)


def test_the_folder_may_be_moved(make_base, tmp_path, batch):
    base = make_base()
    shutil.move(base.folder, tmp_path / "elsewhere")
    moved = load_base(tmp_path / "elsewhere")
    assert moved.identity.backbone == base.identity.backbone
    assert moved.task_model("classification", LABELS, seed=0)[0].config.vocab_size == VOCABULARY
