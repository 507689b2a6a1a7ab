"""Soft prompts as deltas through their whole life: tuned, stored, loaded here and by PEFT, moved, imported."""

from __future__ import annotations

import json

import peft
import pytest
import torch

import anytune
from anytune import compat
from anytune.engine.hf_trainer import hf_trainer
from anytune.errors import DeltaError
from anytune.jobs.deltas import load_delta
from anytune.models.adapters import ADAPTER_FILE, CONFIG_FILE, AdapterDelta
from anytune.models.base import load_base
from anytune.models.prompt_files import export_ptuning, import_ptuning
from anytune.models.soft_prompts import prompt_of
from anytune.store import Store
from anytune.store.importing import import_adapter
from tests.models.kinds import make_kind

TRAINING = {"steps": 6, "learning_rate": 2e-2, "batch_size": 8, "precision": "fp32", "evaluate_every": 3,
            "max_length": 32}  # fmt: skip
METHODS = [{"name": "prompt_tuning", "length": 3}, {"name": "prompt_tuning", "length": 3, "kind": "input"},
           {"name": "prompt_tuning", "length": 3, "projection": 5}]  # fmt: skip


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def logits(model, tokenizer, texts):
    with torch.no_grad(), compat.quiet_transformers():
        return model(**tokenizer(texts, return_tensors="pt", padding=True)).logits


@pytest.mark.parametrize("method", METHODS)
def test_a_tuned_prompt_is_a_plain_peft_folder_beside_an_untouched_base(method, tiny_base, tiny_task, store):
    [entry] = anytune.tune(tiny_base, tiny_task, store=store, method=method, training=TRAINING)
    assert entry.manifest.form == "peft"
    assert {CONFIG_FILE, ADAPTER_FILE} <= {path.name for path in entry.folder.iterdir()}
    assert str(tiny_base.parent) not in (entry.folder / CONFIG_FILE).read_text()
    model, tokenizer = anytune.load(entry, store=store)
    base = load_base(tiny_base)
    for name, tensor in base.tensors().items():
        assert torch.equal(model.state_dict()[base.anatomy.in_model(name)], tensor), name
    texts = ["the old owl", "moss near a slate and some fern", "chalk"]
    plain, _ = base.task_model("classification", entry.manifest.label_names, seed=5)
    with compat.quiet_transformers():
        theirs = peft.PeftModel.from_pretrained(plain, entry.folder).eval()
    torch.testing.assert_close(logits(theirs, tokenizer, texts), logits(model, tokenizer, texts), rtol=1e-5, atol=1e-6)
    answers = [answer["label"] for answer in anytune.predict(entry, texts, store=store)]
    chosen = logits(model, tokenizer, texts).argmax(-1).tolist()
    assert answers == [entry.manifest.label_names[one] for one in chosen]
    assert anytune.score(entry, tiny_task, store=store) == pytest.approx(
        {name: score for name, score in entry.manifest.scores["test"].items() if score is not None}
    )


def test_a_prompt_is_not_merged_and_not_asked_by_lm_eval(tiny_base, tiny_task, store, tmp_path):
    [entry] = anytune.tune(tiny_base, tiny_task, store=store, method=METHODS[0], training=TRAINING)
    with pytest.raises(DeltaError, match="a soft prompt cannot be merged"):
        anytune.merge(entry, tmp_path / "merged", store=store)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("method", METHODS[:2])
def test_a_prompt_moves_to_an_upgrade_bit_for_bit_and_is_tuned_on_there(
    method, tiny_base, other_base, tiny_task, store
):
    [old] = anytune.tune(tiny_base, tiny_task, store=store, method=method, training=TRAINING)
    [moved] = anytune.recycle(old, other_base, store=store, method="direct", task=tiny_task)
    before, after = load_delta(old).tensors, load_delta(moved).tensors
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    [tuned] = anytune.recycle(old, other_base, store=store, method="initialize", task=tiny_task,
                             training={"steps": 4, "keep": "last"})  # fmt: skip
    further = load_delta(tuned).tensors
    assert not torch.equal(further["prompt_embeddings"], before["prompt_embeddings"])
    model, _ = anytune.load(tuned, store=store)
    assert torch.equal(prompt_of(model).table.detach(), further["prompt_embeddings"])


def test_an_exported_prompt_is_imported_again(tiny_base, tiny_task, store, tmp_path):
    [entry] = anytune.tune(tiny_base, tiny_task, store=store, method=METHODS[1], training=TRAINING)
    folder = anytune.export(entry, tmp_path / "out", store=store)
    (folder / "anytune.json").unlink()  # as one made elsewhere
    again = import_adapter(Store(tmp_path / "other"), folder, load_base(tiny_base))
    assert load_delta(again).config["peft_type"] == "PROMPT_TUNING"
    assert all(torch.equal(one, load_delta(entry).tensors[name]) for name, one in load_delta(again).tensors.items())


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("which", ["PrefixTuningConfig", "PromptTuningConfig"])
def test_a_prompt_that_peft_trained_to_write_writes_the_same_from_the_store(kind, which, tmp_path):
    folder = make_kind(kind, tmp_path / "base")
    base = load_base(folder)
    task_type = "CAUSAL_LM" if kind == "llama" else "SEQ_2_SEQ_LM"
    model, _ = base.pretraining_model()
    model.generation_config.eos_token_id = None
    with compat.quiet_transformers(), compat.seeded(1):
        theirs = peft.get_peft_model(model, getattr(peft, which)(task_type=task_type, num_virtual_tokens=4)).eval()
        theirs.save_pretrained(tmp_path / "theirs")
    store = Store(tmp_path / "store")
    entry = import_adapter(store, tmp_path / "theirs", base)
    assert entry.manifest.task.kind == "generation"
    ours, tokenizer = anytune.load(entry, store=store, base=base)
    ours.generation_config.eos_token_id = None
    asked = tokenizer("the old owl", return_tensors="pt")
    asked = {name: asked[name] for name in ("input_ids", "attention_mask")}
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with compat.quiet_transformers():
        assert torch.equal(ours.generate(**asked, **how), theirs.generate(**asked, **how))
    assert len(anytune.predict(entry, ["the old owl", "a"], store=store, base=base, max_new_tokens=4)) == 2


def test_a_checkpoint_of_p_tuning_goes_through_the_store_and_back(tiny_base, tiny_task, store, tmp_path):
    [entry] = anytune.tune(tiny_base, tiny_task, store=store, method=METHODS[0], training=TRAINING)
    delta = load_delta(entry)
    export_ptuning(delta, tmp_path / "model.safetensors")
    found = import_ptuning(tmp_path, load_base(tiny_base))
    assert all(torch.equal(one, delta.tensors[name]) for name, one in found.tensors.items())
    found.save(tmp_path / "peft", load_base(tiny_base).identity)
    other = Store(tmp_path / "other")
    again = import_adapter(other, tmp_path / "peft", load_base(tiny_base), label_names=entry.manifest.label_names)
    own, theirs = (
        anytune.predict(one, ["the old owl"], store=where) for one, where in ((entry, store), (again, other))
    )
    assert own[0]["label"] == theirs[0]["label"]


def test_the_trainer_saves_a_prompt_as_peft_would(tiny_base, tiny_task, tmp_path):
    from transformers import TrainingArguments

    from anytune.data.batches import ExampleBatches
    from anytune.data.tasks import load_task
    from anytune.jobs.scoring import EncodedTask
    from anytune.methods.transfer.prompt_tuning import PromptTuning

    base, task = load_base(tiny_base), load_task(tiny_task)
    model, head = base.task_model("classification", task.label_names, seed=0)
    encoded = EncodedTask.of(task, base, 32).train
    rows = ExampleBatches(encoded, 4, seed=0)
    arguments = TrainingArguments(output_dir=str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=4,
                                  report_to=[], use_cpu=True, learning_rate=1e-2)  # fmt: skip
    with compat.quiet_transformers():
        trainer = hf_trainer(
            model, [PromptTuning(length=3)], args=arguments, head_names=head, base=base, train_dataset=rows
        )
        trainer.train()
        trainer.save_model(str(tmp_path / "saved"))
    saved = AdapterDelta.load(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / CONFIG_FILE).read_text())["peft_type"] == "PREFIX_TUNING"
    assert torch.equal(saved.tensors["prompt_embeddings"], prompt_of(trainer.inner).table.detach())
    assert {name for name in saved.tensors if "classifier" in name}
