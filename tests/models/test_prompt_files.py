"""Soft prompts and PEFT: each loads what the other saved, with equal answers; and P-tuning v2, by renaming."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from anytune import compat
from anytune.errors import DeltaError, StoreError
from anytune.models.adapters import AdapterDelta
from anytune.models.anatomy import anatomy_of
from anytune.models.base import load_base
from anytune.models.peft_models import merge
from anytune.models.prompt_files import PTUNING_VALUES, export_ptuning, import_ptuning, prompt_of_adapter
from anytune.models.soft_prompt_config import SoftPromptConfig, config_from_peft, peft_settings
from anytune.models.soft_prompts import attach_prompt, layout_of, make_prompt, prompt_of
from tests.models.conftest import save, tiny_model
from tests.models.kinds import DECODERS
from tests.models.test_soft_prompts import SEQUENCE, TOKENS, answers, batch_of, task_model

SEQ2SEQ = "t5"
TASK_TYPES = {SEQUENCE: "SEQ_CLS", TOKENS: "TOKEN_CLS"}
#: what PEFT can do, and does rightly: it has no deep prompts for kinds without a cache
PAIRS = [
    ("bert", SEQUENCE), ("bert", TOKENS), ("roberta", SEQUENCE), ("electra", SEQUENCE), ("modernbert", SEQUENCE),
    ("llama", SEQUENCE), *((kind, "pretraining") for kind in DECODERS), ("t5", "pretraining"),
    ("t5-gated", "pretraining"),
]  # fmt: skip
NO_CACHE, NARROW_WORDS = ("modernbert",), ("electra",)


def task_type(kind: str, purpose: str) -> str:
    return TASK_TYPES.get(purpose) or ("CAUSAL_LM" if kind in DECODERS else "SEQ_2_SEQ_LM")


def peft_config(which: str, kind: str, purpose: str):
    settings = {"task_type": task_type(kind, purpose), "num_virtual_tokens": 4}
    return {
        "prefix": lambda: peft.PrefixTuningConfig(**settings),
        "projected prefix": lambda: peft.PrefixTuningConfig(**settings, prefix_projection=True, encoder_hidden_size=6),
        "prompt": lambda: peft.PromptTuningConfig(**settings),
        "p-tuning": lambda: peft.PromptEncoderConfig(**settings, encoder_hidden_size=6),
    }[which]()


def wrapped(model, config, seed: int = 1):
    with compat.quiet_transformers(), compat.seeded(seed):
        return peft.get_peft_model(model, config).eval()


def theirs_of(model, batch):
    with torch.no_grad(), compat.quiet_transformers():
        return model(**batch).logits


def full_batch(kind: str, purpose: str):
    """A batch that PEFT answers rightly: decoders that classify after an input prompt forget about padding."""
    batch = batch_of(kind, writes=purpose == "pretraining", pad=0 if purpose == SEQUENCE and kind in DECODERS else 4)
    if kind == "bert":
        batch["token_type_ids"] = (torch.arange(10) > 4).long().expand(3, -1).clone()
    return batch


@pytest.mark.parametrize("which", ["prefix", "projected prefix", "prompt", "p-tuning"])
@pytest.mark.parametrize(("kind", "purpose"), PAIRS)
def test_what_peft_saved_answers_as_it_did_and_peft_loads_it_back(kind, purpose, which, tmp_path):
    deep = "prefix" in which
    if kind in (NO_CACHE if deep else NARROW_WORDS):
        pytest.skip("PEFT cannot do this")
    base, batch = task_model(kind, purpose), full_batch(kind, purpose)
    theirs = wrapped(copy.deepcopy(base), peft_config(which, kind, purpose))
    expected = theirs_of(theirs, batch)
    with compat.quiet_transformers():
        theirs.save_pretrained(tmp_path / "theirs")
    stored = AdapterDelta.load(tmp_path / "theirs")
    ours = stored.attach(copy.deepcopy(base), trainable=False)
    found = theirs_of(ours, batch)
    beyond = expected.shape[1] - found.shape[1] if found.dim() == 3 else 0  # PEFT answers at the prompt's places, too
    assert beyond in (0, 4)
    real = batch["attention_mask"].bool() if found.dim() == 3 and kind not in ("t5", "t5-gated") else slice(None)
    torch.testing.assert_close(found[real], expected[:, beyond:][real], rtol=1e-5, atol=1e-6)
    again = AdapterDelta.from_model(ours)
    for name, tensor in again.tensors.items():
        assert torch.equal(tensor, stored.tensors[name][: len(tensor)])
    again.save(tmp_path / "ours")
    with compat.quiet_transformers():
        loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours").eval()
    torch.testing.assert_close(theirs_of(loaded, batch), expected, rtol=1e-5, atol=1e-6)
    if purpose == "pretraining":
        asked = {"input_ids": batch["input_ids"][:2], "attention_mask": batch["attention_mask"][:2]}
        how = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
        with compat.quiet_transformers():
            assert torch.equal(ours.generate(**asked, **how), theirs.generate(**asked, **how))


@pytest.mark.parametrize("settings", [{}, {"kind": "input"}, {"projection": 5}, {"kind": "input", "projection": 5}])
@pytest.mark.parametrize(("kind", "purpose"), [("bert", SEQUENCE), ("llama", "pretraining"), ("t5", "pretraining")])
def test_peft_loads_what_was_tuned_here(kind, purpose, settings, tmp_path):
    model, batch = task_model(kind, purpose), full_batch(kind, purpose)
    bare, anatomy = copy.deepcopy(model), anatomy_of(model)
    prompt = make_prompt(model, SoftPromptConfig(length=4, dropout=0.1, **settings), anatomy, seed=2, std=1.0)
    attach_prompt(model, prompt, anatomy)
    with pytest.raises(DeltaError, match="train beside the soft prompt"):
        AdapterDelta.from_model(model)
    model.requires_grad_(False)
    AdapterDelta.from_model(model).save(tmp_path)
    with compat.quiet_transformers():
        loaded = peft.PeftModel.from_pretrained(bare, tmp_path).eval()
    expected, found = answers(model, batch), theirs_of(loaded, batch)
    beyond = found.shape[1] - expected.shape[1] if found.dim() == 3 else 0
    real = batch["attention_mask"].bool() if found.dim() == 3 and kind != "t5" else slice(None)
    torch.testing.assert_close(found[:, beyond:][real], expected[real], rtol=1e-5, atol=1e-6)
    config, values, head = prompt_of_adapter(AdapterDelta.load(tmp_path))
    assert config == SoftPromptConfig(kind=settings.get("kind", "deep"), length=4)  # dropout and maps are of training
    assert torch.equal(values, prompt.values().detach())
    assert set(head) == set(anatomy.split(task_model(kind, purpose).state_dict()).task_head)


def test_a_pooler_made_afresh_is_stored_with_the_head(tmp_path, batch):
    base = load_base(save(tiny_model(), tmp_path / "base"))  # a masked-word model: no pooler
    model, head_names = base.task_model("classification", ("a", "b", "c"), seed=4)
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in head_names)
    attach_prompt(model, make_prompt(model, SoftPromptConfig(length=3), base.anatomy, 1, std=1.0), base.anatomy)
    assert set(AdapterDelta.from_model(model).tensors) == {
        "prompt_embeddings", *(f"base_model.{name}" for name in head_names)}  # fmt: skip
    AdapterDelta.from_model(model, base.identity, head_names).save(tmp_path / "prompt", base.identity)
    adapter = AdapterDelta.load(tmp_path / "prompt")
    assert adapter.config["modules_to_save"] == ["bert.pooler", "classifier"]
    assert adapter.saved_head_missing(head_names) == []
    expected = answers(model, batch)
    for trainable in (False, True):
        again, _ = base.task_model("classification", ("a", "b", "c"), seed=9)
        again = adapter.attach(again, trainable=trainable)
        assert torch.equal(answers(again, batch), expected)
        trains = {name for name, weight in again.named_parameters() if weight.requires_grad}
        assert trains == ({"soft_prompt.table", *head_names} if trainable else set())
    plain, _ = base.task_model("classification", ("a", "b", "c"), seed=9)
    with compat.quiet_transformers():
        theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "prompt").eval()
    assert torch.equal(theirs_of(theirs, batch), expected)


def test_half_precision_values_come_back_in_their_bits(tmp_path):
    model = task_model("bert")
    adapter = AdapterDelta.from_model(wrapped(model, peft_config("prefix", "bert", SEQUENCE)))
    half = {name: tensor.to(torch.bfloat16) for name, tensor in adapter.tensors.items()}
    found = AdapterDelta(adapter.config, half).attach(task_model("bert"))
    assert torch.equal(prompt_of(found).table.detach(), half["prompt_embeddings"].float())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": {"num_virtual_tokens": 3}}, r"prompt_embeddings: adapter \[4, 64\], model \[3, 64\]"),
        ({"config": {"num_attention_heads": 4}}, "2 layers of 4 heads, model 2 of 2"),
        ({"config": {"num_virtual_tokens": None}}, "num_virtual_tokens"),
        ({"tensors": {"strange": torch.zeros(2)}}, "strange"),
        ({"tensors": {"base_model.classifier.weight": torch.zeros(5, 16)}}, r"adapter \[5, 16\], model \[3, 16\]"),
        ({"tensors": {"base_model.cls.weight": torch.zeros(5, 16)}}, r"cls\.weight: not in the model"),
        ({"without": "base_model.classifier.bias"}, r"classifier\.bias: not in the adapter"),
        ({"without": "prompt_embeddings"}, "holds no prompt_embeddings"),
        ({"tensors": {"prompt_embeddings": torch.full((4, 64), torch.nan)}}, "NaN"),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused_and_the_model_left_alone(change, said):
    adapter = AdapterDelta.from_model(wrapped(task_model("bert"), peft_config("prefix", "bert", SEQUENCE)))
    tensors = {**adapter.tensors, **change.get("tensors", {})}
    tensors.pop(change.get("without"), None)
    model = task_model("bert")
    with pytest.raises(DeltaError, match=said):
        AdapterDelta({**adapter.config, **change.get("config", {})}, tensors).attach(model)
    assert prompt_of(model) is None


def test_prompts_are_not_merged_and_not_stored_beside_an_adapter(batch):
    model = task_model("bert")
    attach_prompt(model, make_prompt(model, SoftPromptConfig(), anatomy_of(model), 0), anatomy_of(model))
    with pytest.raises(DeltaError, match="cannot be merged"):
        merge(model)
    both = wrapped(model, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    with pytest.raises(DeltaError, match="an adapter beside"):
        AdapterDelta.from_model(both)


def test_settings_are_what_peft_writes():
    for kind, purpose in (("bert", SEQUENCE), ("llama", "pretraining"), ("t5", "pretraining")):
        model = task_model(kind, purpose)
        layout = layout_of(model, anatomy_of(model))
        for which in ("prefix", "prompt"):
            theirs = AdapterDelta.from_model(wrapped(copy.deepcopy(model), peft_config(which, kind, purpose))).config
            config = SoftPromptConfig(kind="deep" if which == "prefix" else "input", length=4)
            own = peft_settings(config, layout, task_type(kind, purpose))
            for key in ("peft_type", "task_type", "num_virtual_tokens", "num_layers"):
                assert own[key] == theirs[key], key
            if which == "prefix":
                for key in ("token_dim", "num_attention_heads", "num_transformer_submodules"):
                    assert own[key] == theirs[key], key
            assert config_from_peft(own) == config_from_peft(theirs) == config
    with pytest.raises(DeltaError, match="LORA adapter is no soft prompt"):
        config_from_peft({"peft_type": "LORA"})


# ---------------------------------------------------------------------- P-tuning v2


@pytest.fixture
def checkpoint(tmp_path):
    """A base, and a checkpoint as P-tuning v2's trainer leaves one: all of the model, the prefix, the head."""
    base = load_base(save(tiny_model(purpose="backbone"), tmp_path / "base"))
    model, _ = base.task_model("classification", ("a", "b", "c"), seed=1)
    values = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file({**state, PTUNING_VALUES: values}, tmp_path / "model.safetensors")
    return base, values, tmp_path


def test_a_p_tuning_checkpoint_becomes_a_peft_folder_and_comes_back(checkpoint, batch):
    base, values, folder = checkpoint
    adapter = import_ptuning(folder, base)
    assert set(adapter.tensors) == {"prompt_embeddings", "base_model.classifier.weight", "base_model.classifier.bias"}
    assert torch.equal(adapter.tensors["prompt_embeddings"], values)
    adapter.save(folder / "peft", base.identity)
    export_ptuning(AdapterDelta.load(folder / "peft"), folder / "back.safetensors")
    back, before = load_file(folder / "back.safetensors"), load_file(folder / "model.safetensors")
    assert set(back) == {PTUNING_VALUES, "classifier.weight", "classifier.bias"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in back.items())
    again = import_ptuning(folder / "back.safetensors", base)
    assert again.config == adapter.config
    assert all(torch.equal(tensor, adapter.tensors[name]) for name, tensor in again.tensors.items())
    with compat.quiet_transformers():
        plain, _ = base.task_model("classification", ("a", "b", "c"), seed=7)
        theirs = peft.PeftModel.from_pretrained(plain, folder / "peft").eval()
    ours = adapter.attach(base.task_model("classification", ("a", "b", "c"), seed=8)[0])
    torch.testing.assert_close(answers(ours, batch), theirs_of(theirs, batch))


def test_a_reparametrised_checkpoint_is_imported_as_the_values_it_gives(checkpoint):
    base, _, folder = checkpoint
    tensors = load_file(folder / "model.safetensors")
    draw = torch.Generator().manual_seed(3)
    table = torch.randn(5, 16, generator=draw)
    maps = [torch.randn(size, generator=draw) for size in ((6, 16), (6,), (64, 6), (64,))]
    names = ("trans.0.weight", "trans.0.bias", "trans.2.weight", "trans.2.bias")
    tensors |= {
        PTUNING_VALUES: table,
        **{f"prefix_encoder.{name}": one for name, one in zip(names, maps, strict=True)},
    }
    save_file(tensors, folder / "projected.safetensors")
    found = import_ptuning(folder / "projected.safetensors", base).tensors["prompt_embeddings"]
    torch.testing.assert_close(found, torch.tanh(table @ maps[0].T + maps[1]) @ maps[2].T + maps[3])


def test_checkpoints_that_cannot_be_taken_are_refused(checkpoint):
    base, _, folder = checkpoint
    tensors = load_file(folder / "model.safetensors")

    def tried(changed, name="changed.safetensors"):
        save_file(changed, folder / name)
        return import_ptuning(folder / name, base)

    with pytest.raises(DeltaError, match="no P-tuning v2 checkpoint"):
        tried({name: one for name, one in tensors.items() if name != PTUNING_VALUES})
    with pytest.raises(DeltaError, match="no head"):
        tried({name: one for name, one in tensors.items() if not name.startswith("classifier")})
    with pytest.raises(DeltaError, match="is not that of base"):
        tried({**tensors, "bert.embeddings.LayerNorm.bias": tensors["bert.embeddings.LayerNorm.bias"] + 1})
    with pytest.raises(DeltaError, match="48 wide, base base needs 64"):
        tried({**tensors, PTUNING_VALUES: torch.zeros(5, 48)})
    (folder / "cut.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500])
    with pytest.raises(DeltaError, match="truncated"):
        import_ptuning(folder / "cut.safetensors", base)
    (folder / "old").mkdir()
    (folder / "old" / "pytorch_model.bin").write_bytes(b"pickle")
    for path in (folder / "old", folder / "old" / "pytorch_model.bin"):
        with pytest.raises(DeltaError, match=r"pickle[\s\S]*weights_only=True"):
            import_ptuning(path, base)
    with pytest.raises(DeltaError, match=r"no model\.safetensors"):
        import_ptuning(folder / "nowhere", base)
    llama = AdapterDelta.from_model(
        wrapped(task_model("llama", "pretraining"), peft_config("prefix", "llama", "pretraining"))
    )
    with pytest.raises(DeltaError, match="CAUSAL_LM is none of P-tuning v2"):
        export_ptuning(llama, folder / "x.safetensors")
    adapter = import_ptuning(folder, base)
    (folder / "blocked").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        export_ptuning(adapter, folder / "blocked" / "x.safetensors")
