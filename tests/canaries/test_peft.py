"""What we take for granted about PEFT."""

from __future__ import annotations

import json

import pytest
import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from transformers import BertForSequenceClassification

from tests.canaries.sentence import assumption


def lora(**settings) -> LoraConfig:
    return LoraConfig(**{"task_type": "SEQ_CLS", "r": 2, "target_modules": ["query"], **settings})


def adapter(model) -> dict[str, torch.Tensor]:
    return get_peft_model_state_dict(model, save_embedding_layers=False)


def test_an_adapter_loads_onto_another_base_without_a_word(config, bert, tmp_path, recwarn):
    get_peft_model(bert, lora()).save_pretrained(tmp_path)
    torch.manual_seed(9)
    other = BertForSequenceClassification(config)
    with assumption(
        "PEFT no longer loads an adapter onto another base silently: fingerprints in models/fingerprint.py exist "
        "because it does"
    ):
        recwarn.clear()
        PeftModel.from_pretrained(other, tmp_path)
        assert not [one for one in recwarn if "base" in str(one.message).lower()]


def test_a_freshly_made_pooler_is_lost(bert, tmp_path):
    with assumption(
        "PEFT no longer loses a fresh pooler: models/adapters.py saves the whole head by hand because it does"
    ):
        names = adapter(get_peft_model(bert, lora()))
        assert any("classifier" in name for name in names)
        assert not any("pooler" in name for name in names)


def test_modules_to_save_are_saved_under_the_models_own_names(bert):
    with assumption(
        "PEFT no longer saves modules_to_save under base_model.model and their own names: models/adapters.py reads "
        "heads by them"
    ):
        names = adapter(get_peft_model(bert, lora(modules_to_save=["bert.pooler", "classifier"])))
        assert "base_model.model.bert.pooler.dense.weight" in names
        assert "base_model.model.classifier.weight" in names
        assert all("lora_" in name or "pooler" in name or "classifier" in name for name in names)


def test_inside_a_model_copies_and_originals_have_names_of_their_own(bert):
    with assumption(
        "PEFT no longer wraps as base_layer, original_module and modules_to_save: models/adapters.py strips them "
        "from names"
    ):
        names = get_peft_model(bert, lora(modules_to_save=["classifier"])).state_dict()
        query = "base_model.model.bert.encoder.layer.0.attention.self.query"
        assert f"{query}.base_layer.weight" in names
        assert f"{query}.lora_A.default.weight" in names
        assert "base_model.model.classifier.original_module.weight" in names
        assert "base_model.model.classifier.modules_to_save.default.weight" in names


@torch.no_grad()
def test_a_fresh_lora_changes_no_answer_and_draws_from_torchs_generator(config, bert, ids):
    before = bert(input_ids=ids).logits
    torch.manual_seed(9)
    other = BertForSequenceClassification(config)

    def a(model, seed):
        torch.manual_seed(seed)
        return next(tensor for name, tensor in adapter(get_peft_model(model, lora())).items() if "lora_A" in name)

    with assumption(
        "PEFT no longer starts a LoRA at zero from torch's generator: make_lora in models/adapters.py seeds it"
    ):
        first = a(bert, 1)
        assert torch.equal(bert(input_ids=ids).logits, before)
        assert torch.equal(first, a(other, 1))
        assert not torch.equal(first, a(BertForSequenceClassification(config), 2))


def test_adapter_tensors_come_back_bit_for_bit(config, bert):
    one = get_peft_model(bert, lora(modules_to_save=["classifier"]))
    other = get_peft_model(BertForSequenceClassification(config), lora(modules_to_save=["classifier"]))
    given = {name: torch.randn_like(tensor) for name, tensor in adapter(one).items()}
    with assumption(
        "PEFT no longer sets adapter tensors bit for bit by the names it gives: set_adapter_state in compat.py and "
        "models/adapters.py put weights in that way"
    ):
        set_peft_model_state_dict(other, dict(given))
        found = adapter(other)
        assert found.keys() == given.keys()
        assert all(torch.equal(found[name], given[name]) for name in given)


def test_only_a_config_out_of_inference_mode_is_trainable(config, bert):
    with assumption(
        "PEFT no longer takes trainability from inference_mode: attach in models/adapters.py sets it before wrapping"
    ):

        def trainable(model, inference_mode):
            wrapped = get_peft_model(model, lora(inference_mode=inference_mode))
            return [name for name, one in wrapped.named_parameters() if one.requires_grad and "lora_" in name]

        assert trainable(bert, False)
        assert not trainable(BertForSequenceClassification(config), True)


def test_wrapping_again_repeats_modules_to_save(bert):
    with assumption(
        "PEFT no longer adds to modules_to_save as it wraps: models/adapters.py takes each module once because it does"
    ):
        wrapped = get_peft_model(bert, lora(modules_to_save=["classifier"]))
        assert len(wrapped.peft_config["default"].modules_to_save) > 1


def test_a_config_is_made_from_its_own_dictionary(bert):
    with assumption("PEFT no longer makes a config from its to_dict: attach in models/adapters.py does"):
        stored = json.loads(json.dumps(lora().to_dict(), default=list))
        assert PeftConfig.from_peft_type(**stored).r == 2


def test_a_key_from_the_future_is_no_reason_to_fail(tmp_path, bert):
    get_peft_model(bert, lora()).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "from_the_future": 1}))
    with (
        assumption(
            "PEFT no longer passes over unknown keys of adapter_config.json: anytune.json stays a file of its own in "
            "manifests.py, and models/adapters.py hands configs over as they are"
        ),
        pytest.warns(UserWarning, match="from_the_future"),
    ):
        PeftConfig.from_pretrained(tmp_path)


def test_prompts_cannot_be_loaded_for_training(config, bert, tmp_path):
    get_peft_model(bert, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)).save_pretrained(tmp_path)
    with (
        assumption(
            "PEFT no longer refuses to load a prompt for training: attach in models/adapters.py wraps and sets "
            "tensors instead of from_pretrained"
        ),
        pytest.raises(ValueError, match="prompt"),
    ):
        PeftModel.from_pretrained(BertForSequenceClassification(config), tmp_path, is_trainable=True)


@torch.no_grad()
def test_rows_are_not_given_prompts_of_their_own(bert, ids):
    with assumption(
        "PEFT no longer passes over adapter_names for prompts: models/prompt_bank.py exists because it does"
    ):
        model = get_peft_model(bert, PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)).eval()
        model.add_adapter("other", PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))
        first = model(input_ids=ids).logits
        mixed = model(input_ids=ids, adapter_names=["other"] * len(ids)).logits
        assert torch.equal(mixed, first)
        model.set_adapter("other")
        assert not torch.equal(model(input_ids=ids).logits, first)


def test_prefixes_start_fifty_times_as_large_as_words(bert):
    with assumption(
        "PEFT no longer starts prefixes at N(0, 1): make_prompt in models/soft_prompts.py draws its own at 0.02"
    ):
        model = get_peft_model(bert, PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=50))
        assert 0.9 < float(model.prompt_encoder["default"].embedding.weight.std()) < 1.1


@torch.no_grad()
def test_half_of_an_encoder_decoders_prefix_is_never_read(ids):
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=100, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
                                             decoder_start_token_id=0))  # fmt: skip
    model = get_peft_model(t5, PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3)).eval()
    weight = model.prompt_encoder["default"].embedding.weight
    with assumption(
        "PEFT no longer reads the first key and value for both layers of a two-layer decoder: PromptLayout.slots in "
        "models/soft_prompt_config.py follows it"
    ):
        before = model(input_ids=ids, decoder_input_ids=ids).logits
        weight[:, 32:] = 7.0
        assert torch.equal(model(input_ids=ids, decoder_input_ids=ids).logits, before)
        weight[:, :32] = 7.0
        assert not torch.equal(model(input_ids=ids, decoder_input_ids=ids).logits, before)


@torch.no_grad()
def test_merging_gives_the_plain_names_back(bert, ids):
    names = set(bert.state_dict())
    with assumption("PEFT no longer merges into the plain model: merge in models/adapters.py gives it to users"):
        wrapped = get_peft_model(bert, lora(modules_to_save=["classifier"])).eval()
        before = wrapped(input_ids=ids).logits
        merged = wrapped.merge_and_unload(safe_merge=True)
        assert set(merged.state_dict()) == names
        torch.testing.assert_close(merged(input_ids=ids).logits, before)


def test_pickles_are_not_what_it_writes(bert, tmp_path):
    with assumption("PEFT no longer writes adapter_model.safetensors: models/adapters.py reads no other file"):
        get_peft_model(bert, lora()).save_pretrained(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
        assert not list(tmp_path.glob("*.bin"))


def test_a_lora_on_words_has_a_column_for_each_word(bert, config):
    model = get_peft_model(bert, lora(target_modules=["word_embeddings"]))
    with assumption(
        "PEFT now keeps a LoRA on word embeddings otherwise: models/rebasing.py moves the columns of lora_embedding_A "
        "with their words"
    ):
        [first] = [one for name, one in adapter(model).items() if "lora_embedding_A" in name]
        [second] = [one for name, one in adapter(model).items() if "lora_embedding_B" in name]
        assert first.shape == (2, config.vocab_size)
        assert second.shape == (config.hidden_size, 2)


def test_trained_tokens_are_stored_as_absolute_values(bert):
    table = bert.bert.embeddings.word_embeddings.weight.detach().clone()
    model = get_peft_model(bert, lora(trainable_token_indices=[3, 5]))
    with assumption(
        "PEFT no longer stores trained tokens as absolute rows: models/rebasing.py makes differences of them"
    ):
        [rows] = [one for name, one in adapter(model).items() if "trainable_tokens_delta" in name]
        assert torch.equal(rows, table[[3, 5]])


def test_a_dora_starts_with_the_lengths_of_the_rows(bert):
    weight = bert.bert.encoder.layer[0].attention.self.query.weight.detach().clone()
    model = get_peft_model(bert, lora(use_dora=True))
    with assumption(
        "DoRA's magnitudes are no longer lengths of rows under 'lora_magnitude_vector': models/rebasing.py rescales "
        "them"
    ):
        first = next(one for name, one in adapter(model).items() if name.endswith("lora_magnitude_vector"))
        torch.testing.assert_close(first, weight.norm(dim=1))


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_from_the_weights_draws_nothing(start, config, bert):
    import copy

    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = adapter(get_peft_model(copy.deepcopy(bert), lora(init_lora_weights=start)))
        pairs = [(one, state[name.replace("lora_A", "lora_B")]) for name, one in state.items() if "lora_A" in name]
        found.append([second @ first for first, second in pairs])
    with assumption(
        "PiSSA or OLoRA no longer follow from the base's weights alone: models/plain_lora.py works them out again"
    ):
        assert found[0]
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
