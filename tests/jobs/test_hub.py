"""Pushing to and pulling from a hub, against a small real server: the same bits, the same id, nothing half."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import anytune
from anytune.errors import AnytuneError, HubError, StoreError
from anytune.jobs.hub import public
from anytune.jobs.model_card import front_matter, model_card
from anytune.manifests import MANIFEST_NAME, SAMPLE_NAME, read_manifest
from anytune.store import Store
from tests.hub_server import READER, TOKEN, running

QUICK = {"steps": 2, "batch_size": 8}
NAME = "owner/thing"


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_base, tiny_task, tiny_domain) -> Path:
    """A store with a full and a LoRA delta, scores alone, and an upgraded base; only copied."""
    store = tmp_path_factory.mktemp("made") / "store"
    validation = tiny_task.with_name("held-out-rows.csv")
    shutil.copyfile(tiny_task, validation)
    for method in ("full", "lora"):
        anytune.tune(str(tiny_base), str(tiny_task), store=store, method=method, training=QUICK,
                     validation=str(validation))  # fmt: skip
    anytune.tune(str(tiny_base), str(tiny_task), store=store, training=QUICK, keep="scores", name="numbers")
    anytune.pretrain(str(tiny_base), str(tiny_domain), store=store, training={"steps": 2, "batch_size": 4})
    return store


@pytest.fixture
def store(made, tmp_path) -> Store:
    return Store(shutil.copytree(made, tmp_path / "own"))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub import constants

    with running() as state:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", state.address)
        template = f"{state.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits before it tries again
        huggingface_hub.close_session()
        yield state
        huggingface_hub.close_session()


def one(store: Store, **wanted):
    return next(entry for entry in store.find(**wanted) if entry.manifest.form != "scores")


def weights(folder: Path, leave_out=(MANIFEST_NAME, "metrics.jsonl", SAMPLE_NAME)) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name not in leave_out}


def everything(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


WANTED = {
    "full": {"kind": "delta", "form": "full"},
    "lora": {"kind": "delta", "form": "peft"},
    "base": {"kind": "base"},
}


@pytest.mark.parametrize("what", WANTED)
def test_what_is_pulled_elsewhere_is_what_was_pushed(hub, store, tmp_path, what):
    entry = one(store, **WANTED[what])
    before = everything(store.folder)
    assert anytune.push(entry.reference, NAME, store=store) == f"{hub.address}/{NAME}"
    changed = {name for name, data in everything(store.folder).items() if before[name] != data}
    assert changed == {f"{entry.folder.parent.name}/{entry.reference}/{MANIFEST_NAME}"}  # the tag

    pulled = anytune.pull(NAME, store=tmp_path / "elsewhere")
    assert (pulled.id, pulled.reference) == (entry.id, entry.reference)
    assert weights(pulled.folder) == weights(entry.folder)
    elsewhere = Store(tmp_path / "elsewhere")
    elsewhere.verify(pulled)
    assert elsewhere.problems() == []
    assert pulled.manifest.tags["hub"] == NAME
    assert pulled.manifest.scores == entry.manifest.scores
    assert not (elsewhere.folder / ".work").exists()
    assert anytune.pull(NAME, store=elsewhere).folder == pulled.folder
    assert len(elsewhere.find()) == 1


def test_held_out_rows_are_pushed_and_pulled_only_when_asked_for(hub, store, tmp_path):
    entry = one(store, **WANTED["lora"])
    rows = (entry.folder / SAMPLE_NAME).read_bytes()
    anytune.push(entry.reference, NAME, store=store)
    assert not (anytune.pull(NAME, store=tmp_path / "without").folder / SAMPLE_NAME).exists()
    anytune.push(entry.reference, NAME, store=store, sample=True)
    with_rows = anytune.pull(NAME, store=tmp_path / "with")
    assert (with_rows.folder / SAMPLE_NAME).read_bytes() == rows
    assert with_rows.id == entry.id
    anytune.push(entry.reference, NAME, store=store)  # and taken away again
    assert not (anytune.pull(NAME, store=tmp_path / "again").folder / SAMPLE_NAME).exists()


def test_what_is_pulled_answers_as_what_was_pushed(hub, store, tmp_path, tiny_base):
    import torch

    entry = one(store, **WANTED["lora"])
    anytune.push(entry, NAME)
    pulled = anytune.pull(NAME, store=tmp_path / "elsewhere")
    rows = torch.arange(12).reshape(2, 6)
    answers = [anytune.load(one_, base=str(tiny_base))[0](input_ids=rows).logits for one_ in (entry, pulled)]
    assert torch.equal(*answers)


def test_a_pushed_adapter_is_a_plain_peft_repository(hub, store, tmp_path):
    entry = one(store, **WANTED["lora"])
    anytune.push(entry, NAME)
    files = hub.repositories[NAME].files
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert files[name] == (entry.folder / name).read_bytes()
    assert files["README.artefact.md"] == (entry.folder / "README.md").read_bytes()
    assert "metrics.jsonl" not in files


def test_a_folder_downloaded_by_hand_is_imported_as_the_same_artefact(hub, store, tmp_path, tiny_base):
    entry = one(store, **WANTED["lora"])
    anytune.push(entry, NAME)
    folder = tmp_path / "by-hand"
    folder.mkdir()
    for name, data in hub.repositories[NAME].files.items():
        (folder / name).write_bytes(data)
    from anytune.store.importing import import_adapter

    adopted = import_adapter(Store(tmp_path / "other"), folder, anytune.open_base(str(tiny_base)))
    assert adopted.id == entry.id
    Store(tmp_path / "other").verify(adopted)
    assert weights(adopted.folder) == weights(entry.folder)


def test_no_path_and_no_local_file_name_is_pushed(hub, store, tmp_path, tiny_task):
    for what, wanted in WANTED.items():
        anytune.push(one(store, **wanted), f"owner/{what}")
    assert "held-out-rows.csv" in (one(store, **WANTED["lora"]).folder / MANIFEST_NAME).read_text()
    for repository in hub.repositories.values():
        for name, data in repository.files.items():
            for word in (tiny_task.name, "held-out-rows", str(tmp_path), "/tmp/", str(Path.home())):
                assert word.encode() not in data, (name, word)
    recipe = json.loads(hub.repositories["owner/lora"].files[MANIFEST_NAME])["recipe"]
    assert recipe["validation"] == "VALIDATION-FILE.csv"


def test_a_path_of_this_machine_in_a_config_is_refused(hub, store):
    from anytune.manifests import file_hashes, write_manifest
    from anytune.store.store import artefact_id

    entry = one(store, **WANTED["base"])
    config = json.loads((entry.folder / "config.json").read_text())
    (entry.folder / "config.json").write_text(json.dumps({**config, "trained_in": str(store.folder.resolve())}))
    manifest = entry.manifest
    manifest.files = file_hashes(entry.folder)
    manifest.id = artefact_id("base", manifest.run, manifest.files)
    write_manifest(entry.folder, manifest)
    with pytest.raises(StoreError, match="trained_in"):
        anytune.push(entry.reference, NAME, store=store)
    assert hub.requests == []


def test_the_page_says_what_it_is(hub, store):
    anytune.push(one(store, **WANTED["base"]), "owner/the-base", store=store)
    entry = one(store, **WANTED["lora"])
    anytune.push(entry, NAME, store=store)
    page = hub.repositories[NAME].files["README.md"].decode()
    front = front_matter(page)
    assert front["library_name"] == "peft"
    assert front["pipeline_tag"] == "text-classification"
    assert {"anytune", "delta", "lora"} <= set(front["tags"])
    assert "license" not in front
    manifest = entry.manifest
    for word in (manifest.base.backbone, "r 8", "seed | 0", "accuracy", f'anytune.pull("{NAME}")', "num_labels=3",
                 "AutoModelForSequenceClassification", "animal, plant, stone", manifest.id):  # fmt: skip
        assert word in page, word
    base_page = hub.repositories["owner/the-base"].files["README.md"].decode()
    assert front_matter(base_page)["library_name"] == "transformers"
    assert 'BertForMaskedLM.from_pretrained("owner/the-base")' in base_page


def test_a_delta_names_the_repository_of_its_base(hub, store, tmp_path, tiny_task):
    base = one(store, **WANTED["base"])
    [delta] = anytune.tune(base, str(tiny_task), store=store, method="lora", training=QUICK)
    anytune.push(base, "owner/the-base", store=store)
    anytune.push(delta, NAME, store=store)
    assert front_matter(hub.repositories[NAME].files["README.md"].decode())["base_model"] == "owner/the-base"
    pulled = anytune.pull(NAME, store=tmp_path / "elsewhere")
    assert pulled.manifest.base.ref == "owner/the-base"
    assert pulled.id == delta.id


def test_hostile_words_of_a_manifest_are_only_words_on_the_page():
    from tests.store.conftest import delta_manifest

    evil = "</a><script>alert(1)</script>](javascript:x) | `code` \x1b[31m\n# title\n---\nlicense: mit"
    manifest = delta_manifest(name="n", label_names=[evil])
    manifest.task.name = manifest.base.name = evil
    manifest.methods[0].settings = {evil: evil}
    manifest.scores = {evil: {evil: 0.5}}
    page = model_card(manifest, NAME, kept={"license": "apache-2.0", "tags": ["x"]})
    head, _, body = page.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(head)["license"] == "apache-2.0"
    assert yaml.safe_load(head)["tags"] == ["anytune", "delta", "full"]
    assert "<script" not in page
    assert not re.search(r"(?<!\\)\]\(javascript", body)
    assert "\x1b" not in page
    assert not any(line.startswith(("# title", "---", "license")) for line in body.splitlines())
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") in (3, 4) for line in rows)


def test_pushing_another_artefact_replaces_the_first_and_leaves_what_is_not_ours(hub, store):
    anytune.push(one(store, **WANTED["lora"]), NAME, store=store)
    repository = hub.repositories[NAME]
    page = "---\nlicense: mit\nlibrary_name: other\n---\nwords\n"
    repository.commit({**repository.files, "NOTES.md": b"mine", "README.md": page.encode()})
    anytune.push(one(store, **WANTED["full"]), NAME, store=store, message="the whole difference")
    assert set(repository.files) == {
        ".gitattributes", "NOTES.md", "README.md", MANIFEST_NAME, "delta.safetensors", "predictions.jsonl",
    }  # fmt: skip
    assert repository.messages[-1] == "the whole difference"
    front = front_matter(repository.files["README.md"].decode())
    assert (front["license"], front["library_name"]) == ("mit", "anytune")


def test_private(hub, store, tmp_path, monkeypatch):
    anytune.push(one(store, **WANTED["full"]), NAME, store=store, private=True)
    assert hub.repositories[NAME].private
    monkeypatch.setenv("HF_TOKEN", READER)
    assert anytune.pull(NAME, store=tmp_path / "mine").manifest.form == "full"
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="or you may not see it"):
        anytune.pull(NAME, store=tmp_path / "yours")
    assert not (tmp_path / "yours").exists()


def test_private_does_not_push_to_a_public_repository(hub, store):
    hub.put(NAME, {"x.md": b""})
    with pytest.raises(HubError, match="is public"):
        anytune.push(one(store, **WANTED["full"]), NAME, store=store, private=True)
    assert set(hub.repositories[NAME].files) == {"x.md"}


def test_a_certain_revision_is_pulled(hub, store, tmp_path):
    first, second = one(store, **WANTED["lora"]), one(store, **WANTED["full"])
    anytune.push(first, NAME, store=store)
    sha = hub.repositories[NAME].commits[-1][0]
    anytune.push(second, NAME, store=store)
    assert anytune.pull(f"{NAME}@{sha}", store=tmp_path / "s").id == first.id
    assert anytune.pull(NAME, store=tmp_path / "s").id == second.id
    with pytest.raises(HubError, match="no such revision"):
        anytune.pull(f"{NAME}@v7", store=tmp_path / "s")


# What is refused


def refused(store, reference, match, error=StoreError, repository=NAME, **options):
    with pytest.raises(error, match=match):
        anytune.push(reference, repository, store=store, **options)


def test_pushes_that_are_refused_before_anything_is_sent(hub, store, monkeypatch):
    refused(store, "numbers", "scores and no weights")
    refused(store, "nowhere", "no artefact 'nowhere'")
    entry = one(store, **WANTED["full"])
    for name in ("thing", "a/b/c", "../x", "a/../b", "a b/c", "a/b.git", "", "a/b@main", "https://x/y"):
        refused(store, entry.reference, "repository|revision", HubError, name)
    weights_file = entry.folder / "delta.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-1])
    refused(store, entry.reference, "truncated")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    refused(store, one(store, **WANTED["lora"]).reference, "no token", HubError)
    assert hub.requests == []


def test_offline(store, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    refused(store, one(store, **WANTED["full"]).reference, "HF_HUB_OFFLINE", HubError)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        anytune.pull(NAME, store=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_repository_of_something_else_is_not_pushed_into(hub, store):
    hub.put(NAME, {"pytorch_model.bin": b"x", "config.json": b"{}"})
    refused(store, one(store, **WANTED["full"]).reference, "something else already: pytorch_model.bin", HubError)
    assert len(hub.repositories[NAME].commits) == 1


def test_a_token_that_may_not_write(hub, store, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", READER)
    refused(store, one(store, **WANTED["full"]).reference, "does not let you push", HubError)
    assert hub.repositories == {}


def test_no_such_repository(hub, tmp_path):
    with pytest.raises(HubError, match="there is no repository owner/thing"):
        anytune.pull(NAME, store=tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("step", ["create", "preupload", "commit"])
def test_an_upload_that_breaks_shows_nothing(hub, store, step):
    hub.wrong = lambda request: 500 if step in request else None
    refused(store, one(store, **WANTED["full"]).reference, "cannot push", HubError)
    assert all(set(found.files) == {".gitattributes"} for found in hub.repositories.values())
    assert "hub" not in one(store, **WANTED["full"]).manifest.tags


def test_somebody_who_pushes_at_the_same_time_is_not_overwritten(hub, store):
    def meanwhile(request: str) -> None:
        if "preupload" in request and len(hub.repositories[NAME].commits) == 1:
            hub.put(NAME, {"theirs.md": b""})

    hub.wrong = meanwhile
    refused(store, one(store, **WANTED["full"]).reference, "happened since", HubError)
    assert set(hub.repositories[NAME].files) == {"theirs.md"}


@pytest.mark.parametrize("how", [500, "cut", 403])
def test_a_download_that_breaks_leaves_nothing(hub, store, tmp_path, how):
    anytune.push(one(store, **WANTED["full"]), NAME, store=store)
    hub.wrong = lambda request: how if request.endswith("delta.safetensors") else None
    with pytest.raises(HubError, match="pull owner/thing"):
        anytune.pull(NAME, store=tmp_path / "s")
    assert not (tmp_path / "s").exists()
    hub.wrong = lambda request: None
    assert anytune.pull(NAME, store=tmp_path / "s").manifest.form == "full"


def test_an_interrupted_download_leaves_the_store_as_it_was(hub, store, tmp_path, monkeypatch):
    anytune.push(one(store, **WANTED["full"]), NAME, store=store)
    before = everything(store.folder)
    from anytune.jobs import hub_client

    download = hub_client.download

    def once(target, name, *rest):
        if name.endswith(".safetensors"):
            raise KeyboardInterrupt
        return download(target, name, *rest)

    monkeypatch.setattr(hub_client, "download", once)
    with pytest.raises(KeyboardInterrupt):
        anytune.pull(NAME, store=store)
    assert everything(store.folder) == before
    assert not list(store.folder.rglob(".partial-*"))


def poisoned(hub, store, change, files=()) -> None:
    """The repository of a good delta, its manifest changed as JSON, and further files."""
    anytune.push(one(store, **WANTED["full"]), NAME, store=store)
    good = dict(hub.repositories[NAME].files)
    manifest = json.loads(good[MANIFEST_NAME])
    change(manifest)
    hub.put(NAME, {**good, MANIFEST_NAME: json.dumps(manifest).encode(), **dict(files)})


def with_id(manifest: dict) -> None:
    from anytune.store.store import artefact_id

    manifest["id"] = artefact_id(manifest["kind"], manifest["run"], manifest["files"])


def adding(name: str):
    def change(manifest):
        manifest["files"][name] = "0" * 64
        with_id(manifest)

    return change


def setting(**values):
    def change(manifest):
        manifest.update(values)
        with_id(manifest)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (adding("../../outside.json"), "outside its folder"),
        (adding("/etc/outside.json"), "absolute path"),
        (adding("a\\b.json"), "outside its folder"),
        (adding("pytorch_model.bin"), "no pickles, no code"),
        (adding("weights.pt"), "no pickles, no code"),
        (adding("modeling.py"), "no pickles, no code"),
        (adding(".hidden.json"), "no pickles, no code"),
        (adding("lacking.json"), "lacks lacking.json"),
        (adding("metrics.jsonl"), "as content"),
        (lambda manifest: manifest.update(id="f" * 64), "does not have the id"),
        (lambda manifest: manifest["files"].update({"delta.safetensors": "0" * 64}) or with_id(manifest), "damaged"),
        (lambda manifest: manifest["base"].update(backbone="0" * 64), "their manifest says 0000000000"),
        (lambda manifest: manifest.update(notes=["/home/me/x/y"]), "absolute path"),
        (setting(files={}), "no weights"),
        (setting(form="scores"), "no weights"),
        (setting(form="peft"), "adapter_config.json"),
        (setting(kind="base"), "config.json"),
        (lambda manifest: manifest.update(format_version=99), "format 99"),
        (lambda manifest: manifest.update(kind="thing"), "kind"),
    ],
)  # fmt: skip
def test_what_is_pulled_is_checked_before_it_is_in_the_store(hub, store, tmp_path, change, said):
    poisoned(hub, store, change, {"metrics.jsonl": b"", "pytorch_model.bin": b"x", "modeling.py": b"x"})
    with pytest.raises(AnytuneError, match=said) as problem:
        anytune.pull(NAME, store=tmp_path / "s")
    assert ".partial" not in str(problem.value)
    assert not (tmp_path / "s").exists()
    assert not (tmp_path / "outside.json").exists()


def test_other_files_of_a_repository_are_not_fetched(hub, store, tmp_path):
    poisoned(hub, store, lambda manifest: None, {"pytorch_model.bin": b"x", "setup.py": b"x", "extra.json": b"{}"})
    pulled = anytune.pull(NAME, store=tmp_path / "s")
    assert set(weights(pulled.folder)) == {"delta.safetensors", "predictions.jsonl"}


# Repositories of others


def test_a_plain_adapter_needs_its_base_named(hub, store, tmp_path, tiny_base):
    entry = one(store, **WANTED["lora"])
    files = {name: (entry.folder / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")}
    hub.put(NAME, files)
    with pytest.raises(HubError, match="plain PEFT adapter") as problem:
        anytune.pull(NAME, store=tmp_path / "s")
    assert "--base" in problem.value.fix
    pulled = anytune.pull(NAME, store=tmp_path / "s", base=str(tiny_base), label_names=["a", "b", "c"])
    assert pulled.manifest.label_names == ["a", "b", "c"]
    assert (pulled.name, pulled.manifest.tags["origin"]) == ("thing", "import")
    anytune.load(pulled, base=str(tiny_base))
    hub.put(NAME, {"adapter_config.json": files["adapter_config.json"], "adapter_model.bin": b"x"})
    with pytest.raises(HubError, match=r"only as adapter_model\.bin"):
        anytune.pull(NAME, store=tmp_path / "s", base=str(tiny_base))


def test_a_plain_model_becomes_a_base(hub, tmp_path, tiny_base):
    files = {file.name: file.read_bytes() for file in tiny_base.iterdir()}
    hub.put(NAME, {**files, "modeling_x.py": b"raise SystemExit", "README.md": b"words"})
    pulled = anytune.pull(NAME, store=tmp_path / "s")
    assert pulled.manifest.kind == "base"
    assert weights(pulled.folder) == files
    hub.put(NAME, {"config.json": files["config.json"], "pytorch_model.bin": b"x"})
    with pytest.raises(HubError, match=r"pytorch_model\.bin and no safetensors"):
        anytune.pull(NAME, store=tmp_path / "s")
    hub.put(NAME, {"README.md": b"words"})
    with pytest.raises(HubError, match="holds no"):
        anytune.pull(NAME, store=tmp_path / "s")


# The command line


def test_the_commands_by_themselves(hub, store, tmp_path):
    """Whole processes that know the hub from HF_ENDPOINT alone."""
    entry = one(store, **WANTED["lora"])
    environment = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    environment |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1"}

    def call(*words, **more):
        command = [sys.executable, "-m", "anytune", *map(str, words)]
        return subprocess.run(command, env={**environment, **more}, capture_output=True, text=True, check=False)

    said = call("push", entry.reference, NAME, "--store", store.folder, "--message", "hello", HF_TOKEN=TOKEN)
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines()[0] == f"{hub.address}/{NAME}"
    assert hub.repositories[NAME].messages[-1] == "hello"
    said = call("pull", NAME, "--store", tmp_path / "s", "--json")
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["id"] == entry.id


def test_the_commands_say_what_is_wrong(cli, hub, tmp_path):
    answer = cli("pull", NAME)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("error: there is no repository owner/thing")
    assert answer.err.count("\n") == 3


def test_the_public_manifest_keeps_what_decides_the_id(store):
    for entry in store.find():
        shared = public(entry.manifest)
        for field in ("id", "run", "kind", "files", "scores", "curve", "probe"):
            assert getattr(shared, field) == getattr(entry.manifest, field)
        assert read_manifest(entry.folder).recipe == entry.manifest.recipe
