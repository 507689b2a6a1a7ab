"""The main job end to end on a tiny random base: tune, pre-train, recycle, load, predict, merge, export."""

from __future__ import annotations

import json

import pytest
import torch

import anytune
from anytune.errors import AnytuneError, DataError, DeltaError, SettingsError, StoreError, WrongBaseError
from anytune.jobs.deltas import load_delta
from anytune.jobs.opening import base_of_delta, open_base
from anytune.store import Store

TRAINING = {
    "steps": 12,
    "learning_rate": 5e-3,
    "batch_size": 8,
    "precision": "fp32",
    "evaluate_every": 4,
    "max_length": 32,
}
PRETRAINING = {"steps": 6, "learning_rate": 1e-3, "batch_size": 4, "block_size": 32, "precision": "fp32"}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def upgraded(tiny_base, tiny_domain, store):
    [entry] = anytune.pretrain(tiny_base, [tiny_domain], store=store, names=["v1"], training=PRETRAINING)
    return entry


def state_of(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(left, right) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("method", ["full", "lora", "bitfit"])
def test_a_tuned_delta_loads_with_the_weights_that_were_scored(method, tiny_base, tiny_task, store):
    [entry] = anytune.tune(tiny_base, tiny_task, store=store, method=method, training=TRAINING)
    again = Store(store.folder).get(entry.reference)
    assert anytune.score(again, tiny_task, store=store, split="test") == pytest.approx(entry.manifest.scores["test"])
    assert entry.manifest.steps == 12
    assert [point.step for point in entry.manifest.curve] == [0, 4, 8, 12]


def test_the_same_command_finds_its_finished_run_and_another_setting_does_not(tiny_base, tiny_task, store):
    [first] = anytune.tune(tiny_base, tiny_task, store=store, training=TRAINING)
    [again] = anytune.tune(tiny_base, tiny_task, store=store, training=TRAINING)
    [other] = anytune.tune(tiny_base, tiny_task, store=store, training={**TRAINING, "learning_rate": 4e-3})
    assert first.folder == again.folder
    assert other.folder != first.folder


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tiny_base, tiny_task, tmp_path):
    def weights(folder, seed):
        [entry] = anytune.tune(tiny_base, tiny_task, store=tmp_path / folder, training=TRAINING, seeds=[seed])
        return entry.manifest.files["delta.safetensors"]

    assert weights("a", 0) == weights("b", 0)
    assert weights("c", 1) != weights("a", 0)


def test_pretraining_makes_a_plain_transformers_folder_with_lineage(upgraded, tiny_base, store):
    from transformers import AutoModelForMaskedLM

    _, info = AutoModelForMaskedLM.from_pretrained(upgraded.folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    base = open_base("v1", store)
    assert base.identity.backbone == upgraded.manifest.base.backbone != open_base(tiny_base).identity.backbone
    losses = upgraded.manifest.scores
    assert losses["heldout:walks"]["loss"] < losses["before:heldout:walks"]["loss"]
    assert upgraded.manifest.domains[0].tokens > 0


@pytest.mark.parametrize("method", ["full", "lora"])
def test_onto_the_same_base_direct_reuse_gives_the_old_model_bit_for_bit(method, tiny_base, tiny_task, store):
    [entry] = anytune.tune(tiny_base, tiny_task, store=store, method=method, training=TRAINING)
    [moved] = anytune.recycle(entry, tiny_base, store=store, method="direct", task=tiny_task)
    old, _ = anytune.load(entry, store=store)
    new, _ = anytune.load(moved, store=store)
    assert same(state_of(old), state_of(new))
    assert moved.manifest.steps == 0
    assert moved.manifest.scores["test"] == entry.manifest.scores["test"]


@pytest.mark.parametrize("method", ["full", "lora", "bitfit"])
def test_the_head_is_carried_exactly_and_training_goes_on_from_it(method, tiny_base, tiny_task, store, upgraded):
    [entry] = anytune.tune(tiny_base, tiny_task, store=store, method=method, training=TRAINING)
    [direct] = anytune.recycle(entry, "v1", store=store, method="direct", task=tiny_task)
    [tuned] = anytune.recycle(entry, "v1", store=store, method="initialize", task=tiny_task)
    old, _ = anytune.load(entry, store=store)
    moved, _ = anytune.load(direct, store=store)
    trained, _ = anytune.load(tuned, store=store)
    heads = [{name: tensor for name, tensor in state_of(model).items() if "classifier" in name or "pooler" in name}
             for model in (old, moved, trained)]  # fmt: skip
    assert heads[0]
    assert same(heads[0], heads[1])
    assert tuned.manifest.curve[0].scores == direct.manifest.scores["validation"]
    if tuned.manifest.best_step:
        assert not same(heads[0], heads[2])
    body = next(name for name in state_of(old) if "layer.0" in name and "query" in name and name.endswith("weight"))
    assert not torch.equal(state_of(old)[body], state_of(moved)[body])


@pytest.mark.parametrize("method", ["full", "lora", "bitfit"])
def test_fresh_and_recycled_runs_train_the_same_names(method, tiny_base, tiny_task, store, upgraded, monkeypatch):
    from anytune.jobs import tuning
    from anytune.methods.step import trainable

    seen = []
    real = tuning.train
    monkeypatch.setattr(
        tuning, "train", lambda model, **rest: seen.append(set(trainable(model))) or real(model, **rest)
    )
    [entry] = anytune.tune(tiny_base, tiny_task, store=store, method=method, training=TRAINING)
    anytune.recycle(entry, "v1", store=store, method="initialize", task=tiny_task)
    assert seen[0] == seen[1]
    assert any("classifier" in name for name in seen[1])
    assert any("pooler" in name for name in seen[1]), "the freshly made pooler is part of the head"


def test_a_chain_of_direct_moves_ends_where_the_single_move_ends(tiny_base, tiny_domain, tiny_task, store, upgraded):
    [second] = anytune.pretrain("v1", [tiny_domain], store=store, names=["v2"], training={**PRETRAINING, "steps": 3})
    [entry] = anytune.tune(tiny_base, tiny_task, store=store, training=TRAINING)
    [hop] = anytune.recycle(entry, "v1", store=store, method="direct", task=tiny_task)
    [two_hops] = anytune.recycle(hop, "v2", store=store, method="direct", task=tiny_task)
    [one_hop] = anytune.recycle(entry, "v2", store=store, method="direct", task=tiny_task)
    assert two_hops.manifest.files["delta.safetensors"] == one_hop.manifest.files["delta.safetensors"]
    assert second.manifest.parents[0].id == upgraded.id


def test_the_frozen_backbone_of_an_adapter_keeps_its_hash_through_tune_and_reload(tiny_base, tiny_task, store):
    from anytune.models.fingerprint import fingerprint_state

    [entry] = anytune.tune(tiny_base, tiny_task, store=store, method="lora", training=TRAINING)
    base = open_base(tiny_base)
    model, _ = anytune.load(entry, store=store)
    plain = {name.replace("base_layer.", ""): tensor for name, tensor in model.get_base_model().state_dict().items()
             if "lora_" not in name and "modules_to_save" not in name and "original_module" not in name}  # fmt: skip
    assert fingerprint_state(plain, base.anatomy) == base.identity.backbone
    assert {name.split(".")[0] for name in load_delta(entry).tensors} == {"base_model"}


def test_a_delta_on_the_wrong_base_is_refused_with_both_names_and_the_command(tiny_base, other_base, tiny_task, store):
    [entry] = anytune.tune(tiny_base, tiny_task, store=store, training=TRAINING)
    with pytest.raises(WrongBaseError) as caught:
        anytune.load(entry, store=store, base=other_base)
    text = str(caught.value)
    assert open_base(tiny_base).identity.backbone[:10] in text
    assert open_base(other_base).identity.backbone[:10] in text
    assert "anytune recycle" in text


def test_the_base_of_a_delta_is_found_without_any_path_in_the_manifest(
    tiny_base, tiny_task, store, tmp_path, monkeypatch
):
    monkeypatch.setenv("ANYTUNE_CACHE", str(tmp_path / "cache"))  # which has seen no other copy of this base
    [entry] = anytune.tune(tiny_base, tiny_task, store=store, training=TRAINING)
    assert str(tiny_base) not in (entry.folder / "anytune.json").read_text()
    assert base_of_delta(entry, store).folder == tiny_base


def test_damaged_weights_are_noticed_on_load(tiny_base, tiny_task, store):
    [entry] = anytune.tune(tiny_base, tiny_task, store=store, training=TRAINING)
    path = entry.folder / "delta.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(StoreError, match=r"delta\.safetensors"):
        anytune.load(entry, store=store)


def test_predictions_name_labels_and_agree_with_the_stored_ones(tiny_base, tiny_task, store):
    [entry] = anytune.tune(tiny_base, tiny_task, store=store, training=TRAINING)
    task = anytune.load_task(tiny_task)
    answers = anytune.predict(entry, [row.text for row in task.test], store=store)
    stored = [json.loads(line) for line in (entry.folder / "predictions.jsonl").read_text().splitlines()]
    assert [answer["label"] for answer in answers] == [line["predicted"] for line in stored]
    assert all(abs(sum(answer["probabilities"].values()) - 1) < 1e-5 for answer in answers)
    with pytest.raises(DataError, match="empty"):
        anytune.predict(entry, ["fine", "  "], store=store)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_merged_model_is_plain_transformers_and_answers_the_same(method, tiny_base, tiny_task, store, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    [entry] = anytune.tune(tiny_base, tiny_task, store=store, method=method, training=TRAINING)
    folder = anytune.merge(entry, tmp_path / "merged", store=store)
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    model, _ = anytune.load(entry, store=store)
    inputs = AutoTokenizer.from_pretrained(folder)("the old oakleaf near a fox", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(plain(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=1e-5)
    assert plain.config.id2label == {0: "animal", 1: "plant", 2: "stone"}
    with pytest.raises(StoreError, match="exists"):
        anytune.merge(entry, tmp_path / "merged", store=store)


def test_a_lora_delta_is_a_plain_peft_folder_with_equal_logits(tiny_base, tiny_task, store, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    [entry] = anytune.tune(tiny_base, tiny_task, store=store, method="lora", training=TRAINING)
    folder = anytune.export(entry, tmp_path / "adapter", store=store)
    torch.manual_seed(99)  # a pooler of its own: it must be replaced by the saved one
    plain = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=3), folder
    )
    model, tokenizer = anytune.load(entry, store=store)
    inputs = tokenizer("some moss by the jade", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(plain.eval()(**inputs).logits, model(**inputs).logits)


def test_an_adapter_made_by_peft_alone_is_imported_and_recycled(tiny_base, tiny_task, store, upgraded, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    from anytune.store.importing import import_adapter

    model = get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=3),
        LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(tmp_path / "shelf" / "things")
    entry = import_adapter(
        store,
        tmp_path / "shelf" / "things",
        open_base(tiny_base),
        task="things",
        label_names=["animal", "plant", "stone"],
    )
    assert any("pooler" in note for note in entry.manifest.notes), "PEFT alone lost the fresh pooler: it must say so"
    [moved] = anytune.recycle(entry, "v1", store=store, method="initialize", task=tiny_task, training=TRAINING)
    assert moved.manifest.form == "peft"
    assert moved.manifest.base.backbone == upgraded.manifest.base.backbone
    anytune.load(moved, store=store)


def test_labels_in_another_order_are_refused_by_recycling(tiny_base, tiny_task, store, upgraded, tmp_path):
    [entry] = anytune.tune(tiny_base, tiny_task, store=store, training=TRAINING)
    renamed = tmp_path / "renamed.csv"
    renamed.write_text(tiny_task.read_text().replace(",stone", ",zinc"))
    with pytest.raises(DataError):
        anytune.recycle(entry, "v1", store=store, method="direct", task=renamed)


def test_an_error_metric_selects_the_smallest_error(tiny_base, store, tmp_path):
    rows = [(f"oak fern {'cat ' * (number % 7)}{number}", number % 7 + 0.5) for number in range(80)]
    path = tmp_path / "lengths.csv"
    path.write_text("text,score\n" + "\n".join(f"{text},{value}" for text, value in rows))
    [entry] = anytune.tune(tiny_base, path, store=store, training=TRAINING, metric="mse", kind="regression")
    errors = {point.step: point.scores["mse"] for point in entry.manifest.curve}
    assert errors[entry.manifest.best_step] == min(errors.values())
    assert errors[0] > min(errors.values())


def test_a_length_beyond_the_position_table_is_refused_and_a_default_is_cut_to_it(tiny_base, tiny_task, store):
    short = {key: value for key, value in TRAINING.items() if key != "max_length"}
    [entry] = anytune.tune(tiny_base, tiny_task, store=store, training=short)
    assert entry.manifest.training["max_length"] == 64
    with pytest.raises(SettingsError, match="at most 64"):
        anytune.tune(tiny_base, tiny_task, store=store, training={**TRAINING, "max_length": 128})


def test_pairs_are_refused_by_a_delta_of_single_texts(tiny_base, tiny_task, store):
    [entry] = anytune.tune(tiny_base, tiny_task, store=store, training=TRAINING)
    with pytest.raises(DataError, match="single texts"):
        anytune.predict(entry, [("an old oak", "a small fox")], store=store)


def test_the_recipe_of_a_stage_in_the_middle_of_a_stream_finds_that_stage(tiny_base, tiny_domain, store, tmp_path):
    second = tmp_path / "second.txt"
    second.write_text("\n".join(f"{line} jade" for line in tiny_domain.read_text().splitlines()))
    settings = {**PRETRAINING, "steps": 2}
    stages = anytune.pretrain(tiny_base, [tiny_domain, second], store=store, names=["v1", "v2"], training=settings)
    recipe = stages[1].manifest.recipe
    assert recipe["domains"] == ["second"]
    assert recipe["watch"] == ["walks"]
    [again] = anytune.pretrain("v1", [second], store=store, names=["v2"], training=settings, watch=[tiny_domain])
    assert again.folder == stages[1].folder


def test_a_stream_has_domains_and_each_a_name_of_its_own(tiny_base, tiny_domain, store):
    with pytest.raises(DataError, match="are called 'walks'"):
        anytune.pretrain(tiny_base, [tiny_domain, tiny_domain], store=store, training=PRETRAINING)
    with pytest.raises(DataError, match="without domains"):
        anytune.pretrain(tiny_base, [], store=store, training=PRETRAINING)
    assert store.find() == []


def test_scores_only_runs_keep_no_weights_and_say_so_when_loaded(tiny_base, tiny_task, store):
    [entry] = anytune.tune(tiny_base, tiny_task, store=store, training=TRAINING, keep="scores")
    assert entry.manifest.form == "scores"
    assert not list(entry.folder.glob("*.safetensors"))
    with pytest.raises(DeltaError, match="scores"):
        anytune.load(entry, store=store)


def test_a_method_that_does_not_train_is_refused_by_tune(tiny_base, tiny_task, store):
    with pytest.raises(AnytuneError, match="unknown tune method 'direct'"):
        anytune.tune(tiny_base, tiny_task, store=store, method="direct")


def test_pretraining_refuses_text_of_a_tasks_held_out_part(tiny_base, tiny_task, store, tmp_path):
    task = anytune.load_task(tiny_task)
    leak = tmp_path / "leak.txt"
    leak.write_text("\n".join([row.text for row in task.test] * 3 + [f"oak fern {number}" for number in range(50)]))
    with pytest.raises(DataError, match="held-out part of task"):
        anytune.pretrain(tiny_base, [leak], store=store, apart_from=[tiny_task], training=PRETRAINING)
    assert store.find("base") == []
