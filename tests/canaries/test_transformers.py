"""What we take for granted about transformers' models."""

from __future__ import annotations

import torch
import transformers
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from tests.canaries.sentence import assumption


def test_a_model_is_made_from_a_config_and_a_state_dict(config, bert):
    state = {name: tensor.clone() for name, tensor in bert.state_dict().items()}
    with assumption(
        "transformers no longer makes a model from a state dict without a folder: model_from_state in compat.py "
        "loads every base that way"
    ):
        made, info = BertForSequenceClassification.from_pretrained(
            None, config=config, state_dict=dict(state), dtype=torch.float32, output_loading_info=True
        )
        assert not info["missing_keys"]
        assert all(torch.equal(state[name], tensor) for name, tensor in made.state_dict().items())


def test_missing_weights_are_named_and_drawn_from_torchs_generator(config, bert):
    state = {name: tensor for name, tensor in bert.state_dict().items() if not name.startswith("classifier")}

    def make(seed):
        torch.manual_seed(seed)
        given = {name: tensor.clone() for name, tensor in state.items()}
        return BertForSequenceClassification.from_pretrained(
            None, config=config, state_dict=given, dtype=torch.float32, output_loading_info=True
        )

    with assumption(
        "transformers no longer draws missing weights from torch's generator, or no longer names them: heads in "
        "models/base.py would not depend on their seed"
    ):
        (one, info), (same, _), (other, _) = make(1), make(1), make(2)
        assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
        assert torch.equal(one.classifier.weight, same.classifier.weight)
        assert not torch.equal(one.classifier.weight, other.classifier.weight)


def test_a_state_dict_becomes_the_parameters_without_a_copy(config, bert):
    state = {name: tensor.clone() for name, tensor in bert.state_dict().items()}
    with assumption(
        "transformers now copies a given state dict: models/base.py need not give each model tensors of its own"
    ):
        made = BertForSequenceClassification.from_pretrained(None, config=config, state_dict=state)
        assert made.classifier.weight.data_ptr() == state["classifier.weight"].data_ptr()


def test_the_class_for_a_config_is_found_in_the_mappings(config):
    with assumption("transformers no longer maps configs to classes at its top level: model_class in compat.py does"):
        assert transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)] is BertForSequenceClassification
        assert transformers.MODEL_FOR_MASKED_LM_MAPPING[type(config)] is BertForMaskedLM
        assert transformers.MODEL_FOR_CAUSAL_LM_MAPPING[LlamaConfig] is LlamaForCausalLM
        assert transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING.get(type(config), None) is not None
        assert transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING.get(transformers.T5Config, None) is not None
        assert transformers.MODEL_FOR_MASKED_LM_MAPPING.get(LlamaConfig, None) is None


@torch.no_grad()
def test_a_head_mask_is_swallowed_without_a_word(bert, ids):
    with assumption(
        "transformers no longer swallows unknown inputs: methods/objective.py hands over named inputs only because "
        "a mask that silently did nothing would be taken for a method"
    ):
        masked = bert(input_ids=ids, head_mask=torch.zeros(1, 2), nonsense=1)
        assert torch.equal(bert(input_ids=ids).logits, masked.logits)


def test_the_masked_word_class_drops_the_pooler(config, bert):
    with assumption(
        "transformers no longer drops the pooler in its masked-word classes: models/base.py carries it over by hand"
    ):
        assert any("pooler" in name for name in bert.state_dict())
        assert not any("pooler" in name for name in BertForMaskedLM(config).state_dict())


@torch.no_grad()
def test_a_decoder_classifies_at_its_last_token_that_is_no_padding():
    config = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16, num_labels=2, pad_token_id=0)
    model = GPT2ForSequenceClassification(config).eval()
    text = torch.tensor([[5, 6, 7]])
    with assumption(
        "transformers no longer classifies at the last token that is no padding: models/base.py sets pad_token_id "
        "for it and data/batches.py pads on the right"
    ):
        padded = torch.nn.functional.pad(text, (0, 3))
        found = model(input_ids=padded, attention_mask=(padded != 0).long()).logits
        torch.testing.assert_close(found, model(input_ids=text).logits)


def test_a_saved_model_is_config_and_safetensors_with_tied_weights_once(tmp_path):
    config = LlamaConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        tie_word_embeddings=True,
    )  # fmt: skip
    with assumption(
        "transformers no longer saves a model as config.json and model.safetensors, tied weights once: "
        "engine/hf_trainer.py and models/weights.py expect a folder of that kind"
    ):
        from safetensors import safe_open

        LlamaForCausalLM(config).save_pretrained(tmp_path)
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"config.json", "generation_config.json", "model.safetensors"}
        with safe_open(tmp_path / "model.safetensors", "pt") as file:
            assert "lm_head.weight" not in file.keys()  # noqa: SIM118


def test_progress_bars_and_reports_can_be_silenced():
    with assumption("transformers no longer lets its reports be silenced and put back: compat.py does both"):
        from transformers.utils import logging

        before = logging.get_verbosity()
        logging.set_verbosity_error()
        logging.set_verbosity(before)
        assert logging.get_verbosity() == before
        assert logging.is_progress_bar_enabled() is False  # the fixture above switched it off


def test_the_linear_map_of_gpt2_is_stored_as_in_by_out():
    with assumption("transformers no longer has Conv1D for GPT-2: linear_types in compat.py counts it as linear"):
        from transformers.pytorch_utils import Conv1D

        assert Conv1D(5, 3).weight.shape == (3, 5)


def test_what_a_config_calls_its_lengths_and_labels(config):
    with assumption("transformers has now other names for lengths and labels in a config: models/base.py sets them"):
        config.num_labels, config.problem_type = 3, "single_label_classification"
        config.id2label = {0: "no", 1: "yes", 2: "so"}
        model = BertForSequenceClassification(config)
        assert model.bert.embeddings.position_embeddings.num_embeddings == config.max_position_embeddings == 16
        assert model.classifier.out_features == 3
        assert model(input_ids=torch.tensor([[2, 3]]), labels=torch.tensor([2])).loss.ndim == 0
        config.num_labels, config.problem_type = 1, "regression"
        assert BertForSequenceClassification(config)(
            input_ids=torch.tensor([[2, 3]]), labels=torch.tensor([0.5])
        ).loss.isfinite()


def test_a_causal_loss_skips_minus_100_and_shifts():
    config = LlamaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    model = LlamaForCausalLM(config).eval()
    ids = torch.tensor([[4, 5, 6, 7]])
    labels = torch.tensor([[4, -100, 6, 7]])
    with assumption(
        "transformers no longer shifts causal labels or skips -100: models/language_modelling.py promises its loss"
    ):
        logits = model(input_ids=ids).logits[:, :-1]
        by_hand = torch.nn.functional.cross_entropy(logits[:, 1:].flatten(0, 1), labels[:, 2:].flatten())
        torch.testing.assert_close(model(input_ids=ids, labels=labels).loss, by_hand)


@torch.no_grad()
def test_attention_is_looked_up_by_name_and_is_handed_what_the_model_was(bert, ids):
    import copy

    seen = []

    def attend(module, query, key, value, attention_mask, **named):
        seen.append(named.get("soft_prompt"))
        return torch.zeros_like(query).transpose(1, 2), None

    with assumption(
        "transformers no longer looks attention up by its config's name, or no longer hands a model's further inputs "
        "down to it: models/prompt_attention.py puts deep prompts in that way"
    ):
        transformers.AttentionInterface.register("anytune_canary", attend)
        module = bert.bert.encoder.layer[0].attention.self
        module.config = copy.copy(module.config)
        module.config._attn_implementation = "anytune_canary"
        bert.bert(input_ids=ids, soft_prompt="here")
        assert seen == ["here"]


def test_a_model_can_be_told_to_attend_by_the_plain_function_which_gives_its_weights(bert):
    ids = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]])
    mask = (ids > 0).long()
    with assumption(
        "set_attn_implementation no longer changes how a made model attends, or eager attention no longer gives its "
        "weights: eager_attention in compat.py, and with it evaluate/functional_similarity.py, sees no heads"
    ):
        before = bert.config._attn_implementation
        assert before == "sdpa"
        with torch.no_grad():
            own = bert(ids, attention_mask=mask).logits
            bert.set_attn_implementation("eager")
            output = bert.bert(ids, attention_mask=mask, output_attentions=True, output_hidden_states=True)
            bert.set_attn_implementation(before)
            again = bert(ids, attention_mask=mask).logits
        assert len(output.attentions) == bert.config.num_hidden_layers == len(output.hidden_states) - 1
        assert torch.allclose(output.attentions[0].sum(dim=-1), torch.ones(()))
        assert output.attentions[0].shape[1:] == (bert.config.num_attention_heads, 4, 4)
        assert torch.equal(own, again)
