from __future__ import annotations

import json
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from anytune import compat
from anytune.errors import DeltaError
from anytune.models.adapters import ADAPTER_FILE, CONFIG_FILE, AdapterDelta, move_copy
from anytune.models.base import load_base, save_base
from anytune.models.difference import same_bits
from anytune.models.peft_models import head_modules, make_lora, merge
from tests.models.conftest import KINDS, LABELS, equal_bits, logits, scatter


def task_model(base, seed=0):
    return base.task_model("classification", LABELS, seed=seed)


def tuned_lora(base, seed=0, **settings):
    """A LoRA as after training: every trainable weight moved."""
    model, head = task_model(base, seed)
    peft_model = make_lora(model, head_names=head, r=4, seed=seed, **settings)
    generator = torch.Generator().manual_seed(seed + 50)
    with torch.no_grad():
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return peft_model.eval(), head


def made_by_peft_alone(base, **settings):
    """What a user who never heard of anytune has: PEFT's own defaults for sequence classification."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(11)
    with compat.quiet_transformers():
        model = AutoModelForSequenceClassification.from_pretrained(base.folder, num_labels=len(LABELS))
        peft_model = get_peft_model(
            model, LoraConfig(task_type="SEQ_CLS", r=4, **{"target_modules": ["query"], **settings})
        )
    return scatter_trainable(peft_model)


def scatter_trainable(peft_model):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return peft_model.eval()


def save_with_peft(peft_model, folder):
    with compat.quiet_transformers():
        peft_model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_lora_answers_as_the_model_did_and_trains_the_whole_head(kind, make_base, batch):
    base = make_base(kind=kind)
    model, head = task_model(base)
    want = logits(model, batch)
    peft_model = make_lora(model, head_names=head, r=4)
    assert torch.equal(logits(peft_model, batch), want)
    trainable = {name for name, weight in peft_model.named_parameters() if weight.requires_grad}
    assert all("lora_" in name or "modules_to_save.default" in name for name in trainable)
    saved = {name.removeprefix("base_model.model.") for name in AdapterDelta.from_model(peft_model).tensors}
    assert set(head) <= saved
    for target in base.anatomy.lora_targets:
        assert any(f".{target}.lora_A" in name for name in saved), target


@pytest.mark.parametrize("kind", KINDS)
def test_plain_peft_loads_the_folder_and_answers_equally(kind, make_base, tmp_path, batch):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    base = make_base(kind=kind)
    peft_model, _ = tuned_lora(base)
    AdapterDelta.from_model(peft_model, base.identity).save(tmp_path / "adapter", base.identity)
    torch.manual_seed(123)  # whatever PEFT and transformers draw must not matter
    with compat.quiet_transformers():
        plain = AutoModelForSequenceClassification.from_pretrained(base.folder, num_labels=len(LABELS))
        plain = PeftModel.from_pretrained(plain, tmp_path / "adapter")
    assert torch.equal(logits(plain, batch), logits(peft_model, batch))


def test_peft_alone_would_lose_the_fresh_pooler_which_is_why_ours_is_saved(make_base, tmp_path):
    base = make_base()
    folder = save_with_peft(made_by_peft_alone(base), tmp_path / "theirs")
    _, head = task_model(base)
    missing = AdapterDelta.load(folder).saved_head_missing(head)
    assert sorted(missing) == ["bert.pooler.dense.bias", "bert.pooler.dense.weight"]
    ours, head = tuned_lora(base)
    assert AdapterDelta.from_model(ours).saved_head_missing(head) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trainable", [True, False])
def test_a_saved_adapter_comes_back_with_the_same_bits_on_any_seed_of_head(
    kind, trainable, make_base, tmp_path, batch
):
    base = make_base(kind=kind)
    peft_model, _ = tuned_lora(base)
    first = AdapterDelta.from_model(peft_model, base.identity)
    first.save(tmp_path)
    loaded = AdapterDelta.load(tmp_path)
    assert equal_bits(loaded.tensors, first.tensors)
    assert loaded.config == first.config
    before = torch.get_rng_state()
    again = loaded.attach(task_model(base, seed=77)[0], trainable=trainable)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(logits(again, batch), logits(peft_model, batch))

    def trained(model):
        return {name for name, weight in model.named_parameters() if weight.requires_grad}

    assert trained(again) == (trained(peft_model) if trainable else set())
    second = AdapterDelta.from_model(again, base.identity)
    assert equal_bits(second.tensors, first.tensors)
    assert second.config == first.config


def test_a_model_that_was_loaded_trains_the_same_names_and_leaves_the_backbone_alone(make_base, tmp_path, batch):
    base = make_base()
    peft_model, _ = tuned_lora(base)
    again = AdapterDelta.from_model(peft_model).attach(task_model(base, 3)[0]).train()
    frozen = {name: weight.clone() for name, weight in again.named_parameters() if not weight.requires_grad}
    optimizer = torch.optim.AdamW([weight for weight in again.parameters() if weight.requires_grad], lr=0.1)
    again(**batch, labels=torch.tensor([0, 1, 2])).loss.backward()
    optimizer.step()
    assert all(torch.equal(dict(again.named_parameters())[name], weight) for name, weight in frozen.items())
    assert not equal_bits(AdapterDelta.from_model(again).tensors, AdapterDelta.from_model(peft_model).tensors)


def test_equal_seeds_give_equal_adapters_and_equal_bytes(make_base, tmp_path):
    base = make_base()
    for name in ("one", "two"):
        torch.rand(3)
        AdapterDelta.from_model(tuned_lora(base, seed=4)[0], base.identity).save(tmp_path / name, base.identity)
    for file in (ADAPTER_FILE, CONFIG_FILE, "README.md"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    # PEFT keeps targets as a set, whose order changes from process to process.
    targets = AdapterDelta.load(tmp_path / "one").config["target_modules"]
    assert targets == sorted(targets)
    other = AdapterDelta.from_model(tuned_lora(base, seed=5)[0])
    assert not equal_bits(other.tensors, AdapterDelta.load(tmp_path / "one").tensors)


@pytest.mark.parametrize(
    ("given", "written"),
    [("sample:tiny", "sample:tiny"), ("owner/name", "owner/name"), ("/home/me/models/abc", "abc"), ("../abc", "abc")],
)
def test_no_path_is_written_into_an_adapter(given, written, make_base, tmp_path):
    adapter = AdapterDelta.from_model(tuned_lora(make_base())[0])
    AdapterDelta(adapter.config | {"base_model_name_or_path": given}, adapter.tensors).save(tmp_path / "out")
    assert json.loads((tmp_path / "out" / CONFIG_FILE).read_text())["base_model_name_or_path"] == written
    AdapterDelta.from_model(tuned_lora(make_base("again"))[0]).save(tmp_path / "plain")
    for file in (tmp_path / "plain").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()


def test_merging_gives_the_plain_model_with_the_adapters_answers_and_original_names(make_base, batch):
    base = make_base()
    peft_model, _ = tuned_lora(base)
    want = logits(peft_model, batch)
    merged = merge(peft_model)
    assert torch.allclose(logits(merged, batch), want, atol=1e-5)
    assert merged.state_dict().keys() == task_model(base)[0].state_dict().keys()


def test_moving_to_the_same_base_changes_no_bit(make_base):
    base = make_base(purpose="backbone")
    modules = ["bert.pooler", "LayerNorm", "word_embeddings", "classifier"]
    adapter = AdapterDelta.from_model(made_by_peft_alone(base, modules_to_save=modules))
    assert len(adapter.absolute_copies(base.tensors(), base.anatomy)) == 13
    moved = adapter.rebase(base.tensors(), base.tensors(), base.anatomy)
    assert equal_bits(moved.tensors, adapter.tensors)


def test_absolute_copies_move_as_differences_and_all_else_is_carried_bit_for_bit(make_base, tmp_path, batch):
    old, new = make_base("old", seed=0), make_base("new", seed=5)
    theirs = made_by_peft_alone(
        old, target_modules=["query"], modules_to_save=["bert.pooler", "LayerNorm", "word_embeddings"]
    )
    adapter = AdapterDelta.load(save_with_peft(theirs, tmp_path / "theirs"))
    copies = adapter.absolute_copies(old.tensors(), old.anatomy)
    moved = adapter.rebase(old.tensors(), new.tensors(), new.anatomy)
    assert len(copies) == 11  # 5 layer norms with weight and bias, and the word embeddings; the fresh pooler is head
    for name, bare in copies.items():
        expected = new.tensors()[bare].double() + (adapter.tensors[name].double() - old.tensors()[bare].double())
        assert torch.equal(moved.tensors[name], expected.float())
        assert not torch.equal(moved.tensors[name], adapter.tensors[name])
    rest = [name for name in adapter.tensors if name not in copies]
    assert any("pooler" in name for name in rest)
    assert any("classifier" in name for name in rest)
    assert equal_bits({name: moved.tensors[name] for name in rest}, {name: adapter.tensors[name] for name in rest})
    attached = moved.attach(task_model(new)[0])
    norm = attached.get_base_model().bert.embeddings.LayerNorm.modules_to_save["default"].weight
    copy = next(name for name, bare in copies.items() if bare == "embeddings.LayerNorm.weight")
    assert torch.equal(norm, moved.tensors[copy])


def test_a_copied_module_without_difference_would_have_put_the_old_base_back(make_base, batch):
    """The fault this guards against: an untrained copy of a module must become the new base's module."""
    old, new = make_base("old", seed=0), make_base("new", seed=5)
    model, head = task_model(old)
    peft_model = make_lora(model, head_names=[*head, *_names(old, "embeddings")], r=2)
    moved = AdapterDelta.from_model(peft_model).rebase(old.tensors(), new.tensors(), new.anatomy)
    plain, _ = task_model(new)
    assert torch.allclose(logits(moved.attach(task_model(new)[0]), batch), logits(plain, batch), atol=1e-6)


def _names(base, part):
    return [base.anatomy.in_model(name) for name in base.tensors() if name.startswith(f"{part}.")]


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_trained_biases_are_absolute_copies_too(bias, make_base, tmp_path):
    old, new = make_base("old", seed=0), make_base("new", seed=5)
    theirs = AdapterDelta.load(save_with_peft(made_by_peft_alone(old, bias=bias), tmp_path / "theirs"))
    copies = theirs.absolute_copies(old.tensors(), old.anatomy)
    assert {"encoder.layer.0.attention.self.query.bias"} <= set(copies.values())
    assert len(copies) == {"lora_only": 2, "all": 17}[bias]
    moved = theirs.rebase(old.tensors(), new.tensors(), new.anatomy)
    assert not any(torch.equal(moved.tensors[name], theirs.tensors[name]) for name in copies)
    attached = moved.attach(task_model(new)[0])
    assert equal_bits(AdapterDelta.from_model(attached).tensors, moved.tensors)


FLOATS = st.floats(-(2.0**99), 2.0**99, width=32)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(FLOATS, FLOATS, FLOATS), min_size=1, max_size=20))
def test_moving_a_copy_keeps_its_bits_where_the_bases_agree_and_the_bases_where_nothing_was_tuned(triples):
    copy, old, new = torch.tensor(triples, dtype=torch.float32).T.contiguous()
    assert bool(same_bits(move_copy(copy, old, old), copy).all())
    assert bool((move_copy(old, old, new) == new).all())
    moved = move_copy(copy, old, new)
    expected = (new.double() + (copy.double() - old.double())).float()
    assert bool(((moved == expected) | same_bits(old, new)).all())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"init_lora_weights": "pissa", "use_dora": True}, "started by 'pissa'"),
        ({"init_lora_weights": "pissa_niter_4"}, "started by 'pissa_niter_4'"),
        ({"init_lora_weights": "loftq"}, "started by 'loftq'"),
        ({"init_lora_weights": "corda"}, "started by 'corda'"),
        ({"peft_type": "LN_TUNING"}, "kind LN_TUNING"),
    ],
)
def test_adapters_that_depend_on_their_base_do_not_move(change, reason, make_base):
    base = make_base()
    adapter = AdapterDelta.from_model(tuned_lora(base)[0])
    assert adapter.why_not_movable() == ""
    bad = AdapterDelta(adapter.config | change, adapter.tensors)
    with pytest.raises(DeltaError, match=f"cannot move to another base: .*{reason}"):
        bad.rebase(base.tensors(), base.tensors(), base.anatomy)


def test_a_copy_of_another_shape_does_not_move(make_base):
    old = make_base()
    theirs = AdapterDelta.from_model(made_by_peft_alone(old, modules_to_save=["word_embeddings"]))
    new = dict(old.tensors())
    word = "embeddings.word_embeddings.weight"
    new[word] = torch.zeros(100, 16)
    with pytest.raises(DeltaError, match=r"adapter \[96, 16\], old base \[96, 16\], new base \[100, 16\]"):
        theirs.rebase(old.tensors(), new, old.anatomy)
    new.pop(word)
    with pytest.raises(DeltaError, match="new base nothing"):
        theirs.rebase(old.tensors(), new, old.anatomy)


def test_names_and_shapes_that_do_not_match_are_refused_on_attaching(make_base):
    base = make_base()
    adapter = AdapterDelta.from_model(tuned_lora(base)[0])
    name = next(name for name in adapter.tensors if "lora_A" in name)
    for tensors, message in (
        ({key: tensor for key, tensor in adapter.tensors.items() if key != name}, "lora_A.weight: not in the adapter"),
        (adapter.tensors | {"base_model.model.stray": torch.zeros(1)}, "stray: not in the model"),
        (adapter.tensors | {name: torch.zeros(9, 16)}, r"adapter \[9, 16\], model \[4, 16\]"),
    ):
        with pytest.raises(DeltaError, match=message):
            AdapterDelta(adapter.config, tensors).attach(task_model(base)[0])
    with pytest.raises(DeltaError, match="classifier"):
        adapter.attach(base.task_model("classification", ("a", "b"), 0)[0])
    with pytest.raises(DeltaError, match="PEFT cannot put this LORA adapter onto BertForSequenceClassification"):
        AdapterDelta(adapter.config | {"target_modules": ["nowhere"]}, adapter.tensors).attach(task_model(base)[0])


@pytest.mark.parametrize("settings", [{"r": 0}, {"targets": ["nowhere"]}, {"no_such_setting": 1}])
def test_settings_that_peft_refuses_are_clear_errors(settings, make_base):
    model, head = task_model(make_base())
    with pytest.raises(DeltaError, match="PEFT refuses LoRA with r="):
        make_lora(model, head_names=head, **settings)


def test_head_modules_are_the_topmost_that_the_base_does_not_hold(make_base):
    for kind, want in (("bert", ["bert.pooler", "classifier"]), ("roberta", ["classifier"]), ("llama", ["score"]),
                       ("distilbert", ["pre_classifier", "classifier"])):  # fmt: skip
        assert head_modules(*task_model(make_base(kind, kind=kind))) == want
    model, head = task_model(make_base())
    with pytest.raises(DeltaError, match=r"bert.encoder.layer.0.output.dense.bias: in no module of its own"):
        head_modules(model, [*head, "bert.encoder.layer.0.output.dense.bias"])


def test_pickled_missing_and_damaged_files_are_clear_errors(make_base, tmp_path):
    with pytest.raises(DeltaError, match=r"has no adapter_config\.json"):
        AdapterDelta.load(tmp_path)
    (tmp_path / CONFIG_FILE).write_text("{")
    with pytest.raises(DeltaError, match="cannot read"):
        AdapterDelta.load(tmp_path)
    (tmp_path / CONFIG_FILE).write_text("{}")
    with pytest.raises(DeltaError, match="names no peft_type"):
        AdapterDelta.load(tmp_path)
    AdapterDelta.from_model(tuned_lora(make_base())[0]).save(tmp_path)
    file = tmp_path / ADAPTER_FILE
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(DeltaError, match=r"cannot read .*\([\d,]+ bytes\)"):
        AdapterDelta.load(tmp_path)
    file.unlink()
    with pytest.raises(DeltaError, match=r"has no adapter_model\.safetensors"):
        AdapterDelta.load(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(DeltaError, match=r"only as adapter_model\.bin[\s\S]*weights_only=True"):
        AdapterDelta.load(tmp_path)


def test_an_adapter_made_by_peft_alone_loads_and_answers_as_it_did_where_the_base_has_a_pooler(
    make_base, tmp_path, batch
):
    base = make_base(purpose="backbone")
    theirs = made_by_peft_alone(base)
    adapter = AdapterDelta.load(save_with_peft(theirs, tmp_path / "theirs"))
    model, head = task_model(base)
    assert adapter.saved_head_missing(head) == []
    assert torch.equal(logits(adapter.attach(model), batch), logits(theirs, batch))


def test_keys_of_a_newer_peft_in_the_config_are_no_obstacle(make_base, tmp_path, batch):
    base = make_base()
    peft_model, _ = tuned_lora(base)
    adapter = AdapterDelta.from_model(peft_model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        newer = AdapterDelta(adapter.config | {"a_key_of_the_future": 1}, adapter.tensors)
        assert torch.equal(logits(newer.attach(task_model(base)[0]), batch), logits(peft_model, batch))


@pytest.mark.parametrize("peft_type", ["IA3", "LOHA", "VERA", "OFT"])
def test_other_kinds_that_peft_knows_load_and_come_back(peft_type, make_base, tmp_path, batch):
    import peft

    base = make_base(purpose="backbone")
    kinds = {
        "IA3": peft.IA3Config(task_type="SEQ_CLS", target_modules=["key", "output.dense"],
                              feedforward_modules=["output.dense"]),
        "LOHA": peft.LoHaConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], init_weights=False),
        "VERA": peft.VeraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]),
        "OFT": peft.OFTConfig(task_type="SEQ_CLS", oft_block_size=4, target_modules=["query"]),
    }  # fmt: skip
    with compat.quiet_transformers():
        theirs = scatter_trainable(peft.get_peft_model(task_model(base)[0], kinds[peft_type]))
    adapter = AdapterDelta.load(save_with_peft(theirs, tmp_path / "theirs"))
    assert adapter.absolute_copies(base.tensors(), base.anatomy) == {}
    assert adapter.why_not_movable() == ""
    assert torch.allclose(logits(adapter.attach(task_model(base, 5)[0]), batch), logits(theirs, batch), atol=1e-6)


def test_prompts_cannot_be_merged(make_base):
    import peft

    with compat.quiet_transformers():
        prompts = peft.get_peft_model(
            task_model(make_base())[0],
            peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3, num_layers=2, token_dim=16,
                                    num_attention_heads=2),
        )  # fmt: skip
    with pytest.raises(DeltaError, match="PROMPT_TUNING cannot be merged"):
        merge(prompts)


def test_an_adapter_moved_to_an_upgrade_keeps_its_head_and_answers_there(make_base, tmp_path, batch):
    old = make_base("old", purpose="backbone")
    model, _ = old.pretraining_model(seed=0)
    save_base(scatter(model, 2), old, tmp_path / "new", old.held_over())
    new = load_base(tmp_path / "new")
    adapter = AdapterDelta.from_model(tuned_lora(old)[0], old.identity)
    moved = adapter.rebase(old.tensors(), new.tensors(), new.anatomy)
    assert equal_bits(moved.tensors, adapter.tensors)  # no copies in it: the pooler belongs to the base
    on_old, on_new = (adapter.attach(task_model(base)[0]) for base in (old, new))
    assert not torch.equal(logits(on_old, batch), logits(on_new, batch))
    moved.save(tmp_path / "moved", new.identity)
    stored = load_file(tmp_path / "moved" / ADAPTER_FILE)
    assert equal_bits(stored, adapter.tensors)


def attached(base, delta, batch):
    model, _ = task_model(base)
    return logits(delta.attach(model), batch)


def test_a_scaled_lora_is_the_base_at_0_itself_at_1_and_half_the_difference_at_a_half(make_base, batch):
    base = make_base()
    peft_model, _ = tuned_lora(base)
    delta = AdapterDelta.from_model(peft_model, base.identity)
    scaled = {scale: delta.scaled(scale, base.tensors(), base.anatomy) for scale in (0.0, 0.5, 1.0)}
    assert torch.equal(attached(base, scaled[1.0], batch), attached(base, delta, batch))
    merged = {scale: merge(one.attach(task_model(base)[0])).state_dict() for scale, one in scaled.items()}
    name = next(name for name in merged[1.0] if name.endswith("query.weight"))
    before = task_model(base)[0].state_dict()[name]
    assert torch.equal(merged[0.0][name], before)
    half, whole = merged[0.5][name] - before, merged[1.0][name] - before
    torch.testing.assert_close(half, whole / 2, rtol=1e-4, atol=1e-7)
    heads = [{name: tensor for name, tensor in state.items() if "classifier" in name} for state in merged.values()]
    assert heads[0]
    assert all(equal_bits(head, heads[0]) for head in heads)


def test_absolute_copies_in_a_scaled_lora_move_between_base_and_copy(make_base):
    base = make_base()
    name = "embeddings.LayerNorm.weight"
    peft_model = made_by_peft_alone(base, modules_to_save=["classifier", "embeddings.LayerNorm"])
    delta = AdapterDelta.from_model(peft_model, base.identity)
    [stored] = [key for key, bare in delta.absolute_copies(base.tensors(), base.anatomy).items() if bare == name]
    at = {scale: delta.scaled(scale, base.tensors(), base.anatomy).tensors[stored] for scale in (0.0, 1.0)}
    assert same_bits(at[1.0], delta.tensors[stored]).all()
    assert same_bits(at[0.0], base.tensors()[name]).all()


def test_what_cannot_be_scaled_is_refused(make_base):
    base = make_base()
    delta = AdapterDelta.from_model(tuned_lora(base)[0], base.identity)
    with pytest.raises(DeltaError, match="nan"):
        delta.scaled(float("nan"), base.tensors(), base.anatomy)
    with pytest.raises(DeltaError, match="IA3"):
        AdapterDelta({**delta.config, "peft_type": "IA3"}, delta.tensors).scaled(0.5, base.tensors(), base.anatomy)
    with pytest.raises(DeltaError, match="DoRA"):
        AdapterDelta({**delta.config, "use_dora": True}, delta.tensors).scaled(0.5, base.tensors(), base.anatomy)


def test_trained_tokens_are_not_added_whole_at_half_the_scale(make_base):
    base = make_base()
    delta = AdapterDelta.from_model(made_by_peft_alone(base, trainable_token_indices=[3, 7]), base.identity)
    with pytest.raises(DeltaError, match="trained tokens") as caught:
        delta.scaled(0.5, base.tensors(), base.anatomy)
    assert caught.value.fix
    assert equal_bits(delta.scaled(1.0, base.tensors(), base.anatomy).tensors, delta.tensors)
