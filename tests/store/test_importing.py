"""importing.py: adapters made by PEFT alone, adopted or refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

from anytune.errors import AnytuneError, DeltaError, StoreError, WrongBaseError
from anytune.manifests import TaskRecord, write_manifest
from anytune.models.adapters import AdapterDelta
from anytune.models.base import Base, load_base
from anytune.models.probe import check_probe
from anytune.store import Entry, Store
from anytune.store.importing import import_adapter, import_folder

FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors", "anytune.json"]


def tiny(width: int = 16) -> BertConfig:
    return BertConfig(
        vocab_size=50, hidden_size=width, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=40,
    )  # fmt: skip


def save_model(kind: type, folder: Path, width: int = 16) -> Path:
    torch.manual_seed(0)
    kind(tiny(width)).save_pretrained(folder)
    return folder


def train_adapter(base: Path, folder: Path, labels: int = 3, config=None) -> torch.Tensor:
    """What a PEFT user does: wrap, train, save. Returns the trained model's answers to ``ids()``."""
    torch.manual_seed(1)
    model = BertForSequenceClassification.from_pretrained(base, num_labels=labels)
    model = get_peft_model(model, config or LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    model.eval()
    with torch.no_grad():
        return model(input_ids=ids()).logits


def ids() -> torch.Tensor:
    return torch.arange(20).reshape(2, 10) + 5


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """One base with a pooler (``model``), and adapters trained on it by PEFT alone."""
    root = tmp_path_factory.mktemp("made")
    save_model(BertModel, root / "model")
    answers = train_adapter(root / "model", root / "adapters" / "hpo run")
    save_file({"answers": answers}, root / "answers.safetensors")
    return root


@pytest.fixture(scope="module")
def base(made) -> Base:
    return load_base(made / "model", name="v0", ref="owner/v0")


@pytest.fixture
def adapter(made, tmp_path) -> Path:
    return Path(shutil.copytree(made / "adapters" / "hpo run", tmp_path / "hpo run"))


def edit(folder: Path, **changes) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensors(folder: Path, change) -> None:
    path = folder / "adapter_model.safetensors"
    save_file(change({name: tensor.clone() for name, tensor in load_file(path).items()}), path)


def answers_of(entry: Entry, base: Base) -> torch.Tensor:
    manifest = entry.manifest
    model, _ = base.task_model(manifest.task.kind, manifest.label_names, seed=0)
    model = AdapterDelta.load(entry.folder).attach(model, trainable=False)
    check_probe(model, manifest.probe)
    with torch.no_grad():
        return model(input_ids=ids()).logits


def test_an_adapter_made_by_peft_is_adopted_and_answers_the_same(store, adapter, base, made):
    entry = import_adapter(store, adapter, base)
    manifest = entry.manifest
    assert (manifest.kind, manifest.form, manifest.name) == ("delta", "peft", "hpo-run")
    assert manifest.base == base.identity
    assert manifest.label_names == ["label_0", "label_1", "label_2"]
    assert (manifest.task.name, manifest.task.kind, manifest.task.metric) == ("hpo run", "classification", "accuracy")
    assert manifest.methods[0].name == "tune/lora"
    assert manifest.methods[0].settings["r"] == 4
    assert manifest.tags == {"origin": "import"}
    assert sorted(file.name for file in entry.folder.iterdir()) == FILES
    store.verify(entry)
    expected = load_file(made / "answers.safetensors")["answers"]
    assert torch.allclose(answers_of(entry, base), expected, atol=1e-6)


def test_peft_itself_still_loads_the_adopted_folder(store, adapter, base, made):
    entry = import_adapter(store, adapter, base)
    model = BertForSequenceClassification.from_pretrained(made / "model", num_labels=3)
    model = PeftModel.from_pretrained(model, entry.folder).eval()
    with torch.no_grad():
        assert torch.allclose(
            model(input_ids=ids()).logits, load_file(made / "answers.safetensors")["answers"], atol=1e-6
        )


def test_no_path_of_the_machine_it_was_made_on_is_kept(store, adapter, base, made):
    assert str(made) in (adapter / "adapter_config.json").read_text(), "the case under test: PEFT wrote a path"
    entry = import_adapter(store, adapter, base)
    assert json.loads((entry.folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "owner/v0"
    assert any("is now owner/v0" in note for note in entry.manifest.notes)
    for file in ("adapter_config.json", "README.md", "anytune.json"):
        assert str(made) not in (entry.folder / file).read_text(), file


def test_a_hub_id_of_the_base_is_kept(store, adapter, base):
    edit(adapter, base_model_name_or_path="owner/other-name")
    entry = import_adapter(store, adapter, base)
    assert (
        json.loads((entry.folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "owner/other-name"
    )


def test_another_path_in_the_config_is_refused_naming_its_key(store, adapter, base):
    edit(adapter, layer_replication=None, revision="/home/me/x")
    with pytest.raises(DeltaError, match="revision = '/home/me/x'"):
        import_adapter(store, adapter, base)


def test_what_training_left_beside_the_adapter_is_not_taken(store, adapter, base):
    for name in ("optimizer.pt", "training_args.bin", "tokenizer.json"):
        (adapter / name).write_bytes(b"x")
    entry = import_adapter(store, adapter, base)
    assert sorted(file.name for file in entry.folder.iterdir()) == FILES
    assert (adapter / "optimizer.pt").exists()


def test_names_labels_scores_and_notes_can_be_given(store, adapter, base):
    entry = import_adapter(
        store,
        adapter,
        base,
        name="mine",
        task=TaskRecord(name="hpo", content="c" * 64, metric="macro_f1"),
        label_names=["a", "b", "c"],
        scores={"test": {"macro_f1": 0.5}},
        tags={"arm": "old"},
        notes=["from the old cluster"],
    )
    assert (entry.name, entry.manifest.label_names, entry.score("test")) == ("mine", ["a", "b", "c"], 0.5)
    assert entry.manifest.tags == {"origin": "import", "arm": "old"}
    assert entry.manifest.notes[-1] == "from the old cluster"


def test_adopting_twice_gives_one_entry_and_other_labels_another(store, adapter, base):
    first = import_adapter(store, adapter, base)
    assert import_adapter(store, adapter, base).folder == first.folder
    assert import_adapter(store, adapter, base, label_names=["a", "b", "c"]).folder != first.folder


@pytest.mark.parametrize("labels", [["a", "b"], ["a", "b", "c", "d"], ["a", "a", "b"]])
def test_label_names_must_match_the_head(store, adapter, base, labels):
    with pytest.raises(StoreError, match="for the 3 outputs of hpo run"):
        import_adapter(store, adapter, base, label_names=labels)


def test_a_metric_must_suit_the_head(store, adapter, base):
    with pytest.raises(StoreError, match="'pearson' is no metric for classification"):
        import_adapter(store, adapter, base, metric="pearson")


def test_a_head_of_one_output_is_a_regression(store, tmp_path, base, made):
    expected = train_adapter(made / "model", tmp_path / "sts", labels=1)
    entry = import_adapter(store, tmp_path / "sts", base)
    assert (entry.manifest.task.kind, entry.manifest.task.metric) == ("regression", "pearson")
    assert entry.manifest.label_names == []
    assert torch.allclose(answers_of(entry, base), expected, atol=1e-6)


def test_another_kind_of_peft_that_fits_is_adopted(store, tmp_path, base, made):
    config = IA3Config(
        task_type="SEQ_CLS", target_modules=["query", "output.dense"], feedforward_modules=["output.dense"]
    )
    expected = train_adapter(made / "model", tmp_path / "ia3", config=config)
    entry = import_adapter(store, tmp_path / "ia3", base)
    assert entry.manifest.methods[0].name == "ia3"
    assert torch.allclose(answers_of(entry, base), expected, atol=1e-6)


def test_a_pooler_that_peft_lost_is_noted_and_answers_stay_the_same_from_then_on(store, tmp_path):
    folder = save_model(BertForMaskedLM, tmp_path / "model")  # has no pooler: task models draw one
    train_adapter(folder, tmp_path / "lossy")
    base = load_base(folder)
    entry = import_adapter(store, tmp_path / "lossy", base)
    assert any("pooler" in note and "PEFT did not save it" in note for note in entry.manifest.notes)
    torch.manual_seed(99)
    first = answers_of(entry, base)
    torch.manual_seed(100)
    assert torch.equal(answers_of(entry, base), first)


def test_an_adapter_with_its_whole_head_has_no_such_note(store, adapter, base):
    assert not any("PEFT did not save it" in note for note in import_adapter(store, adapter, base).manifest.notes)


def test_an_adapter_that_starts_by_changing_its_base_is_noted_as_bound_to_it(store, tmp_path, made, base):
    train_adapter(made / "model", tmp_path / "cut", config=LoraConfig(
        task_type="SEQ_CLS", r=2, target_modules=["query"], init_lora_weights="pissa_niter_2"))  # fmt: skip
    entry = import_adapter(store, tmp_path / "cut", base)
    assert any("cannot be moved" in note and "pissa_niter_2" in note for note in entry.manifest.notes)


def test_an_adapter_of_another_width_names_the_base_and_the_shapes(store, adapter, tmp_path):
    other = load_base(save_model(BertModel, tmp_path / "wide", width=32), name="wide")
    with pytest.raises(WrongBaseError, match=r"does not fit base wide \(.*16.*32"):
        import_adapter(store, adapter, other)
    assert store.find() == []


def cut(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:200])


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def without_head(folder: Path) -> None:
    change_tensors(folder, lambda tensors: {name: t for name, t in tensors.items() if "classifier" not in name})


def with_other_keys(folder: Path) -> None:
    change_tensors(folder, lambda tensors: {name.replace("encoder", "decoder"): t for name, t in tensors.items()})


def with_nan(folder: Path) -> None:
    change_tensors(folder, lambda tensors: {name: t * float("nan") for name, t in tensors.items()})


BAD = {
    "no such folder": (lambda folder: shutil.rmtree(folder), "is not there"),
    "pickle": (pickled, "adapter_model.bin"),
    "truncated": (cut, "cannot read"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no adapter_model"),
    "no config": (lambda folder: (folder / "adapter_config.json").unlink(), "has no adapter_config"),
    "config no JSON": (lambda folder: (folder / "adapter_config.json").write_text("{"), "adapter_config.json"),
    "config a list": (lambda folder: (folder / "adapter_config.json").write_text("[]"), "peft_type"),
    "no type": (lambda folder: edit(folder, peft_type=None), "peft_type"),
    "unknown type": (lambda folder: edit(folder, peft_type="MAGIC"), "MAGIC"),
    "language model": (lambda folder: edit(folder, task_type="CAUSAL_LM"), "CAUSAL_LM"),
    "no kind of task": (lambda folder: edit(folder, task_type="QUESTION_ANS"), "QUESTION_ANS"),
    "unknown setting": (lambda folder: edit(folder, r="four"), "hpo run"),
    "no head": (without_head, "no head"),
    "other keys": (with_other_keys, "not in the adapter"),
    "not finite": (with_nan, "NaN"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_is_one_clear_error_and_nothing_is_stored(store, adapter, base, case):
    spoil, shown = BAD[case]
    spoil(adapter)
    with pytest.raises(AnytuneError) as caught:
        import_adapter(store, adapter, base)
    assert shown in str(caught.value)
    assert caught.value.why
    assert not store.folder.exists()


def test_a_pickle_comes_with_the_command_that_converts_it(store, adapter, base):
    pickled(adapter)
    with pytest.raises(DeltaError) as caught:
        import_adapter(store, adapter, base)
    assert "save_file" in caught.value.fix


def test_an_exported_delta_comes_back_with_all_its_manifest_says(store, adapter, base, tmp_path):
    entry = import_adapter(
        store, adapter, base, task="hpo", label_names=["a", "b", "c"], scores={"test": {"accuracy": 1}}
    )
    exported = Path(shutil.copytree(entry.folder, tmp_path / "exported"))
    assert import_adapter(store, exported, base).folder == entry.folder, "it is the same artefact"
    other = Store(tmp_path / "other")
    again = import_adapter(other, exported, base, notes=["came from elsewhere"])
    assert (again.id, again.manifest.label_names, again.score("test")) == (entry.id, ["a", "b", "c"], 1)
    assert again.manifest.notes == [*entry.manifest.notes, "came from elsewhere"]
    other.verify(again)


def test_an_exported_delta_keeps_its_own_task_base_and_files(store, adapter, base, tmp_path):
    entry = import_adapter(store, adapter, base)
    exported = Path(shutil.copytree(entry.folder, tmp_path / "exported"))
    with pytest.raises(StoreError, match="brings its own"):
        import_adapter(store, exported, base, label_names=["x", "y", "z"])
    with pytest.raises(WrongBaseError, match=r"belongs to base v0 \(.*, not to wide \("):
        import_adapter(store, exported, load_base(save_model(BertModel, tmp_path / "wide", width=32), name="wide"))
    cut(exported)
    with pytest.raises(StoreError, match="truncated"):
        import_adapter(store, exported, base)
    write_manifest(exported, entry.manifest.model_copy(update={"files": {}}))
    with pytest.raises(StoreError, match="lists no files"):
        import_adapter(store, exported, base)
    write_manifest(exported, entry.manifest.model_copy(update={"kind": "base"}))
    with pytest.raises(StoreError, match="not a delta"):
        import_adapter(store, exported, base)


def test_of_many_folders_the_good_ones_are_adopted_and_the_bad_ones_reported(store, adapter, base, tmp_path):
    many = tmp_path / "many"
    for name in ("a", "b", "broken", "d"):
        shutil.copytree(adapter, many / name)
    cut(many / "broken")
    change_tensors(many / "d", lambda tensors: {name: tensor * 2 for name, tensor in tensors.items()})
    (many / "notes.txt").write_text("not an adapter")
    (many / "logs").mkdir()
    heard = []
    with pytest.raises(StoreError, match="1 of 4 adapters were not adopted") as caught:
        import_folder(store, many, base, task="hpo", on_result=lambda path, result: heard.append((path.name, result)))
    assert "broken" in caught.value.what
    assert [name for name, _ in heard] == ["a", "b", "broken", "d"]
    assert [isinstance(result, Entry) for _, result in heard] == [True, True, False, True]
    assert sorted(entry.name for entry in store.find(task="hpo")) == ["a", "d"], "a and b are the same adapter"


def test_one_folder_is_adopted_as_itself_and_an_empty_one_is_an_error(store, adapter, base, tmp_path):
    assert [entry.name for entry in import_folder(store, adapter, base)] == ["hpo-run"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DeltaError, match=r"no adapter_config\.json"):
        import_folder(store, tmp_path / "empty", base)
    with pytest.raises(DeltaError, match="is not there"):
        import_folder(store, tmp_path / "nowhere", base)


def test_one_name_for_many_adapters_is_refused(store, adapter, base, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(adapter, tmp_path / "many" / name)
    with pytest.raises(StoreError, match="one name"):
        import_folder(store, tmp_path / "many", base, name="x")
