"""What comes from a stranger is data: no pickle is opened, no code of a folder runs, nothing leads out of it.

Every bomb here would create a canary file; each test ends by looking for it.
"""

from __future__ import annotations

import ast
import html.parser
import io
import json
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import anytune
from anytune.data.samples.archives import read_member, unpack
from anytune.errors import AnytuneError, BaseError, DeltaError, SampleError, SettingsError, StoreError
from anytune.manifests import JSON_DEPTH, MANIFEST_NAME, load_json, read_manifest
from anytune.models.adapter_config import KINDS
from anytune.store import Store
from tests.conftest import tiny_rows, write_rows


@pytest.fixture(autouse=True)
def _cache_apart(_own_cache, monkeypatch, tmp_path_factory):
    """Folders with bombs in them are not to be found by other tests, which look for a base by its hash."""
    monkeypatch.setenv("ANYTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))


SOURCE = Path(anytune.__file__).parent
QUICK = {"steps": 2, "batch_size": 8}
#: every name under which libraries of this field look for something pickled
PICKLED = (
    "pytorch_model.bin", "model.bin", "model.pt", "model.pth", "model.pkl", "model.ckpt", "adapter_model.bin",
    "adapter_model.pt", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scheduler.bin", "scaler.pt", "rng_state.pth",
    "random_states_0.pkl", "training_args.bin", "trainer_state.pt", "state.pkl", "checkpoint.pt", "checkpoint.pth",
    "consolidated.00.pth", "delta.bin", "delta.pt", "prompt.pt", "tokenizer.pkl", "vocab.pkl", "vectorizer.joblib",
    "data.pkl", "train.pkl", "dataset.pt", "predictions.pkl", "fingerprints.pkl", "head.bin", "data.npy", "state.npz",
)  # fmt: skip


class Bomb:
    """Unpickling it creates the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return exec, (f"open({str(self.canary)!r}, 'w').close()",)


@pytest.fixture
def canary(tmp_path) -> Path:
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code of a stranger ran"


def plant(folder: Path, canary: Path) -> None:
    """Bombs under every name; as a bare pickle, and as torch packs them."""
    torch.save(Bomb(canary), folder / PICKLED[0])
    packed = (folder / PICKLED[0]).read_bytes()
    for number, name in enumerate(PICKLED):
        if not (folder / name).exists() or name == PICKLED[0]:
            (folder / name).write_bytes(packed if number % 2 else pickle.dumps(Bomb(canary)))
    for name in (
        "setup.py",
        "conftest.py",
        "__init__.py",
        "sitecustomize.py",
        "modeling_evil.py",
        f"{folder.name}.py",
    ):
        (folder / name).write_text(evil(canary))


def evil(canary: Path) -> str:
    kinds = ("Config", "Model", "Tokenizer")
    return f"open({str(canary)!r}, 'w').close()\n" + "".join(f"class Evil{kind}: pass\n" for kind in kinds)


def test_the_bombs_are_live(tmp_path):
    for data in (pickle.dumps(Bomb(tmp_path / "a")),):
        pickle.loads(data)
    assert (tmp_path / "a").exists()
    torch.save(Bomb(tmp_path / "b"), tmp_path / "b.pt")
    torch.load(tmp_path / "b.pt", weights_only=False)
    assert (tmp_path / "b").exists()


# The source

FORBIDDEN_IMPORTS = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "imp",
    "runpy",
}
FORBIDDEN_CALLS = {
    "torch.load", "numpy.load", "np.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all",
    "eval", "exec", "compile",
    "__import__", "os.system", "os.popen", "pandas.read_pickle", "pd.read_pickle", "tarfile.extractall",
}  # fmt: skip
FORBIDDEN_METHODS = {"extractall", "read_pickle", "load_state"}


def faults(text: str) -> list[str]:
    """What a source file does that could run a stranger's code."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.partition(".")[0] in FORBIDDEN_IMPORTS]
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in FORBIDDEN_IMPORTS:
            found.append(node.module)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in FORBIDDEN_CALLS or called.rpartition(".")[2] in FORBIDDEN_METHODS:
                found.append(called)
            for word in node.keywords:
                said = ast.unparse(word.value)
                if (word.arg, said) in {("allow_pickle", "True"), ("shell", "True"), ("weights_only", "False")}:
                    found.append(f"{word.arg}={said}")
                if word.arg == "trust_remote_code" and said != "False":
                    found.append(f"{word.arg}={said}")
    return found


def test_no_source_file_opens_pickles_or_runs_text():
    assert {path.name: bad for path in SOURCE.rglob("*.py") if (bad := faults(path.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from joblib import load", "torch.load(f)", "np.load(f)", "yaml.load(f)", "eval('1')",
     "f(trust_remote_code=True)", "f(trust_remote_code=asked)", "archive.extractall(p)", "run(c, shell=True)"],
)  # fmt: skip
def test_the_search_finds_what_it_is_for(line):
    assert len(faults(line)) == 1


# Pickles in folders


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, tiny_base, tiny_task) -> Path:
    """A store with a base, a full and a LoRA delta on it; only copied."""
    store = tmp_path_factory.mktemp("tuned") / "store"
    from anytune.jobs.bases import add_base

    base = add_base(str(tiny_base), store=store, name="v0")
    for method in ("full", "lora"):
        anytune.tune(base, str(tiny_task), store=store, method=method, training=QUICK)
    return store


@pytest.fixture
def store(tuned, tmp_path) -> Store:
    return Store(shutil.copytree(tuned, tmp_path / "their-store"))


def one(store: Store, form: str):
    return store.find("delta", form=form)[0]


def test_a_base_with_bombs_beside_its_weights(tiny_base, tiny_task, tmp_path, canary):
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    plant(folder, canary)
    [delta] = anytune.tune(str(folder), str(tiny_task), store=tmp_path / "s", method="lora", training=QUICK)
    anytune.load(delta, base=str(folder))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_a_base_of_pickles_is_refused_with_how_to_convert_it(tiny_base, tmp_path, canary, name):
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    (folder / "model.safetensors").unlink()
    torch.save(Bomb(canary), folder / name)
    with pytest.raises(BaseError, match=name) as problem:
        anytune.open_base(str(folder))
    assert "save_pretrained" in problem.value.fix


def test_an_adapter_of_pickles_is_refused_with_how_to_convert_it(store, tiny_base, tmp_path, canary):
    folder = tmp_path / "adapter"
    folder.mkdir()
    shutil.copyfile(one(store, "peft").folder / "adapter_config.json", folder / "adapter_config.json")
    plant(folder, canary)
    from anytune.store.importing import import_folder

    with pytest.raises(DeltaError, match=r"adapter_model\.bin") as problem:
        import_folder(Store(tmp_path / "s"), folder, anytune.open_base(str(tiny_base)))
    assert "save_file" in problem.value.fix
    assert not (tmp_path / "s" / "deltas").exists()


def test_a_strangers_store_full_of_bombs(cli, store, tiny_task, tmp_path, monkeypatch, canary):
    monkeypatch.setenv("ANYTUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    store.work("0" * 64)
    for folder in [tmp_path / "cache", store.folder, *(path for path in store.folder.rglob("*") if path.is_dir())]:
        plant(folder, canary)
    place = store.folder
    for words in (["store", "list"], ["store", "verify"], ["report", "--out", "page.html"], ["store", "work"]):
        answer = cli(*words, "--store", place)
        assert answer.code == 0, answer
    for form in ("full", "peft"):
        name = one(store, form).reference
        for words in (["store", "show", name], ["predict", name, "the oak"], ["evaluate", name, "--task", tiny_task]):
            answer = cli(*words, "--store", place)
            assert answer.code == 0, answer
        answer = cli("recycle", name, "v0", "--task", tiny_task, "--method", "direct", "--store", place, "--quiet")
        assert answer.code == 0, answer
    anytune.tune("v0", str(tiny_task), store=place, method="bitfit", training=QUICK)


def test_a_folder_of_data_with_scripts_and_bombs(tiny_base, tmp_path, canary):
    folder = tmp_path / "rows"
    folder.mkdir()
    write_rows(folder / "train.csv", tiny_rows(40))
    plant(folder, canary)
    (folder / "rows.py").write_text(evil(canary))
    (folder / "dataset_infos.json").write_text('{"default": {"builder_name": "rows"}}')
    anytune.tune(str(tiny_base), str(folder), store=tmp_path / "s", training=QUICK)


def test_a_checkpoint_folder_with_bombs_is_resumed_from_its_own_files(tiny_base, tiny_task, tmp_path, canary):
    from anytune.engine.progress import Silent

    class Stop(Silent):
        def step(self, step, values) -> None:
            if step >= 4:
                raise KeyboardInterrupt

    options = {"store": tmp_path / "s", "training": {**QUICK, "steps": 6, "checkpoint_every": 2}}
    with pytest.raises(KeyboardInterrupt):
        anytune.tune(str(tiny_base), str(tiny_task), reporter=Stop(), **options)
    assert list((tmp_path / "s" / ".work").rglob("*.safetensors"))
    for folder in [path for path in (tmp_path / "s").rglob("*") if path.is_dir()]:
        plant(folder, canary)
    [resumed] = anytune.tune(str(tiny_base), str(tiny_task), **options)
    [whole] = anytune.tune(str(tiny_base), str(tiny_task), **{**options, "store": tmp_path / "t"})
    assert resumed.id == whole.id


# Code in folders


def test_code_that_a_base_names_is_not_run(tiny_base, tiny_task, tmp_path, canary, monkeypatch):
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    monkeypatch.chdir(folder)
    (folder / "modeling_evil.py").write_text(evil(canary))
    classes = {name: f"modeling_evil.{kind}" for name, kind in (
        ("AutoConfig", "EvilConfig"), ("AutoModel", "EvilModel"), ("AutoModelForMaskedLM", "EvilModel"),
        ("AutoModelForSequenceClassification", "EvilModel"))}  # fmt: skip
    changed(
        folder / "config.json",
        auto_map=classes,
        trust_remote_code=True,
        custom_pipelines={"x": {"impl": "modeling_evil.EvilModel"}},
    )
    changed(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling_evil.EvilTokenizer", None]},
            trust_remote_code=True)  # fmt: skip
    [delta] = anytune.tune(str(folder), str(tiny_task), store=tmp_path / "s", method="lora", training=QUICK)
    anytune.predict(delta, ["the oak"], base=str(folder))


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "evil"},
        {"model_type": None},
        {"architectures": ["modeling_evil.EvilModel"], "model_type": "evil"},
    ],
)
def test_a_kind_of_model_that_only_its_own_code_knows(tiny_base, tmp_path, canary, values):
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    (folder / "modeling_evil.py").write_text(evil(canary))
    changed(folder / "config.json", auto_map={"AutoConfig": "modeling_evil.EvilConfig"}, **values)
    with pytest.raises(BaseError):
        anytune.open_base(str(folder))


@pytest.mark.parametrize("where", ["attn_implementation", "_attn_implementation", "experts_implementation", "inner"])
def test_kernels_of_a_hub_are_not_fetched(tiny_base, tmp_path, where):
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    values = (
        {"text_config": {"attn_implementation": {"": "evil/kernel"}}} if where == "inner" else {where: "evil/kernel"}
    )
    changed(folder / "config.json", **values)
    with pytest.raises(BaseError, match="evil/kernel"):
        anytune.open_base(str(folder))


ADAPTERS = {
    "a class of its own": {"auto_mapping": {"base_model_class": "EvilModel", "parent_library": "modeling_evil"}},
    "a tokenizer with code": {"peft_type": "PROMPT_TUNING", "prompt_tuning_init": "TEXT", "num_virtual_tokens": 2,
                              "prompt_tuning_init_text": "x", "tokenizer_name_or_path": "evil/repository",
                              "tokenizer_kwargs": {"trust_remote_code": True}},
    "a module to import": {"megatron_config": {"x": 1}, "megatron_core": "modeling_evil"},
    "other adapters": {"peft_type": "XLORA", "adapters": {"0": "evil/adapter"}, "hidden_size": 32},
    "another model": {"peft_type": "SHADOW", "shadow_model": "evil/model"},
    "a file of tensors": {"peft_type": "MULTITASK_PROMPT_TUNING", "num_virtual_tokens": 2,
                          "prompt_tuning_init": "AVERAGE_SOURCE_TASKS",
                          "prompt_tuning_init_state_dict_path": "pytorch_model.bin"},
    "a cache of tensors": {"init_lora_weights": "corda", "corda_config": {"cache_file": "pytorch_model.bin"}},
    "all memory": {"r": 10**12},
}  # fmt: skip


@pytest.mark.parametrize("what", ADAPTERS)
@pytest.mark.parametrize("trainable", [True, False])
def test_what_an_adapter_config_names_is_not_loaded(store, tiny_base, tmp_path, canary, monkeypatch, what, trainable):
    from anytune.models.adapters import AdapterDelta

    folder = Path(shutil.copytree(one(store, "peft").folder, tmp_path / "adapter"))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))  # as for somebody who works in it
    plant(folder, canary)
    changed(folder / "adapter_config.json", **ADAPTERS[what])

    def refuse(*words, **_):
        raise AssertionError(f"asked for {words}")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", refuse)
    monkeypatch.setattr("transformers.AutoModel.from_pretrained", refuse)
    monkeypatch.setattr("torch.load", refuse)
    base = anytune.open_base(str(tiny_base))
    model, _ = base.task_model("classification", ["a", "b", "c"], seed=0)
    if what == "a class of its own":
        AdapterDelta.load(folder).attach(model, trainable=trainable)
    else:
        with pytest.raises(DeltaError):
            AdapterDelta.load(folder).attach(model, trainable=trainable)


def test_every_kind_that_can_be_moved_is_used():
    from anytune.models.adapters import MOVABLE

    assert set(MOVABLE) <= set(KINDS)
    assert not {"XLORA", "SHADOW", "CARTRIDGE", "MULTITASK_PROMPT_TUNING"} & set(KINDS)


def changed(path: Path, **values) -> None:
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


# Names and links that lead out


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/passwd", "a/../../outside.bin", "C:\\x", "\\\\host\\x", ""])
@pytest.mark.parametrize("command", [["store", "verify"], ["predict"], ["export"], ["push"]])
def test_a_manifest_that_lists_files_outside(cli, store, tmp_path, name, command):
    entry = one(store, "peft")
    (store.folder / "deltas" / "outside.bin").write_bytes(b"secret")
    changed(entry.folder / MANIFEST_NAME, files={**entry.manifest.files, name: "0" * 64})
    more = {"predict": ["the oak"], "push": ["owner/name"]}.get(command[0], [])
    answer = cli(*command, entry.reference, *more, "--store", store.folder)
    assert answer.code == 2, answer
    assert "Traceback" not in answer.err
    assert "outside its folder" in answer.err + answer.out
    assert not list(tmp_path.glob("*exported*"))


@pytest.mark.parametrize("field", ["name", "id", "run", "created"])
def test_names_and_ids_that_are_paths_lead_nowhere(cli, store, tmp_path, tiny_task, field):
    entry = one(store, "full")
    before = {path for path in tmp_path.rglob("*") if store.folder not in path.parents}
    changed(entry.folder / MANIFEST_NAME, **{field: "../../../outside"})
    folder = entry.folder
    for words in (["store", "list"], ["store", "show", folder], ["predict", folder, "the oak"],
                  ["evaluate", folder, "--task", tiny_task],
                  ["recycle", folder, "v0", "--task", tiny_task, "--method", "direct", "--quiet"]):  # fmt: skip
        answer = cli(*words, "--store", store.folder)
        assert answer.code in (0, 2), answer
        assert "Traceback" not in answer.err
    assert {path for path in tmp_path.rglob("*") if store.folder not in path.parents} == before
    assert all(path.parent == store.folder / "deltas" for path in (store.folder / "deltas").iterdir())


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/outside.safetensors", "a/../../outside.safetensors"])
def test_an_index_that_names_weights_outside(tiny_base, tmp_path, name):
    folder = Path(shutil.copytree(tiny_base, tmp_path / "inner" / "base"))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BaseError, match=r"lacks outside\.safetensors"):
        anytune.open_base(str(folder))


@pytest.mark.parametrize("index", [[], {}, {"weight_map": []}, {"weight_map": {"a": 5}}, {"weight_map": {"a": ["x"]}}])
def test_an_index_of_another_shape(tiny_base, tmp_path, index):
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BaseError):
        anytune.open_base(str(folder))


@pytest.mark.parametrize("target", ["outside", "loop", "nowhere"])
def test_weights_that_are_links(store, tmp_path, target):
    entry = one(store, "full")
    weights = entry.folder / "delta.safetensors"
    outside = tmp_path / "outside.safetensors"
    weights.rename(outside)
    weights.symlink_to({"outside": outside, "loop": weights, "nowhere": tmp_path / "gone"}[target])
    with pytest.raises(StoreError, match=r"link|missing"):
        anytune.load(entry, store=store)
    with pytest.raises(StoreError, match=r"link|missing"):
        anytune.push(entry, "owner/name")
    assert store.find()
    store.problems()


def test_a_folder_that_is_a_loop_of_links(cli, store):
    (store.folder / "deltas" / "loop").symlink_to(store.folder / "deltas")
    (one(store, "full").folder / "loop").symlink_to(store.folder)
    for words in (["store", "list"], ["store", "verify"], ["report", "--out", "page.html"]):
        assert cli(*words, "--store", store.folder).code in (0, 2)


def archive(kind: str, name: str = "data/rows.txt", content: bytes = b"x", link: str = "") -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
            target.writestr(name, content)
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode="w:gz") as target:
        member = tarfile.TarInfo(name)
        member.size = 0 if kind != "tar" else len(content)
        member.type = {"tar": tarfile.REGTYPE, "symlink": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE,
                       "device": tarfile.CHRTYPE, "fifo": tarfile.FIFOTYPE}[kind]  # fmt: skip
        member.linkname = link
        target.addfile(member, io.BytesIO(content) if kind == "tar" else None)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize(
    "name", ["../rows.txt", "/rows.txt", "data/../../rows.txt", "C:/rows.txt", "data\\..\\rows.txt"]
)
def test_members_of_an_archive_that_would_leave_the_folder(tmp_path, kind, name):
    (tmp_path / "a").write_bytes(archive(kind, name))
    (tmp_path / "out").mkdir()
    with pytest.raises(SampleError):
        unpack(tmp_path / "a", tmp_path / "out", ["*"])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "out"]


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "device", "fifo"])
@pytest.mark.parametrize("link", ["/etc/passwd", "rows.txt"])
def test_members_of_an_archive_that_are_no_files(tmp_path, kind, link):
    (tmp_path / "a").write_bytes(archive(kind, link=link))
    (tmp_path / "out").mkdir()
    with pytest.raises(SampleError, match=r"not a regular file|damaged"):
        unpack(tmp_path / "a", tmp_path / "out", ["*"])
    assert not list((tmp_path / "out").rglob("*"))


def test_a_bomb_inside_an_archive_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("anytune.data.samples.archives.MAX_TOTAL_BYTES", 1000)
    for kind in ("zip", "tar"):
        (tmp_path / "a").write_bytes(archive(kind, content=bytes(10_000)))
        with pytest.raises(SampleError, match="larger than"):
            read_member(tmp_path / "a", "data/*")


# Text that is more than text


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize("depth", [JSON_DEPTH + 1, 900, 200_000])
@pytest.mark.parametrize("file", [MANIFEST_NAME, "adapter_config.json"])
def test_json_that_is_nested_without_end(cli, store, tiny_task, depth, file):
    entry = one(store, "peft")
    text = (entry.folder / file).read_text().rstrip().removesuffix("}")
    (entry.folder / file).write_text(f'{text}, "more": {nested(depth)}}}')
    for words in (["store", "list"], ["predict", entry.folder, "the oak"], ["store", "show", entry.folder],
                  ["evaluate", entry.folder, "--task", tiny_task]):  # fmt: skip
        answer = cli(*words, "--store", store.folder)
        assert answer.code == (0 if words == ["store", "list"] else 2), answer
        assert "bug" not in answer.err


def test_depth_and_size_are_limited_just_there(tmp_path, monkeypatch):
    file = tmp_path / "x.json"
    file.write_text(nested(JSON_DEPTH))
    load_json(file)
    file.write_text(nested(JSON_DEPTH + 1))
    with pytest.raises(ValueError, match="nested deeper"):
        load_json(file)
    monkeypatch.setattr("anytune.manifests.JSON_BYTES", 10)
    file.write_text('"' + "x" * 8 + '"')
    load_json(file)
    file.write_text('"' + "x" * 9 + '"')
    with pytest.raises(ValueError, match="11 bytes"):
        load_json(file)


@pytest.mark.parametrize("depth", [JSON_DEPTH + 1, 200_000])
def test_a_config_that_is_nested_without_end(tiny_base, tmp_path, depth):
    for name in ("config.json", "tokenizer.json"):
        folder = Path(shutil.copytree(tiny_base, tmp_path / name))
        text = (folder / name).read_text().rstrip().removesuffix("}")
        (folder / name).write_text(f'{text}, "more": {nested(depth)}}}')
        with pytest.raises(BaseError):
            anytune.open_base(str(folder))


RECIPES = [
    "job: !!python/object/apply:os.system ['touch CANARY']",
    "job: tune\nbase: !!python/name:os.system\ntask: x",
    "job: tune\nbase: ${oc.env:HOME}\ntask: '{{ 7*7 }}'",
    "job: tune\nbase: \"__import__('os').system('touch CANARY')\"\ntask: x",
    "job: tune\nbase: $(touch CANARY)\ntask: '`touch CANARY`'",
    "job: tune\nbase: x\ntask: x\nmethod: \"__import__('os').system('touch CANARY')\"",
    'job: tune\nbase: x\ntask: x\nseeds: "range(3)"',
    "a: &a [x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b]\n"
    "d: &d [*c, *c, *c, *c, *c, *c, *c, *c]\ne: &e [*d, *d, *d, *d, *d, *d, *d, *d]\njob: [*e, *e, *e, *e, *e, *e]",
    nested(200_000),
    "job: " + nested(3000),
]


@pytest.mark.parametrize("text", RECIPES)
def test_recipes_are_never_evaluated(cli, tmp_path, canary, text):
    Path("r.yaml").write_text(text.replace("CANARY", str(canary)))
    answer = cli("run", "r.yaml")
    assert answer.code == 2, answer
    assert "Traceback" not in answer.err
    assert "bug" not in answer.err
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


@pytest.mark.parametrize("more", [{"out": "victim.html"}, {"store": "victim"}, {"jobs": [{"job": "report"}]}])
def test_the_recipe_of_a_strangers_manifest_says_not_where_to_write(cli, store, tmp_path, more):
    entry = one(store, "full")
    changed(entry.folder / MANIFEST_NAME, recipe={"job": "report", **more})
    answer = cli("run", entry.folder)
    assert answer.code == 2, answer
    assert not list(tmp_path.glob("victim*"))
    with pytest.raises(SettingsError, match="the recipe of"):
        anytune.run(entry.folder)


EVIL = (
    "\x1b]0;owned\x07\x1b[31mred\x9b2J\u202edetrevni\r\x08 <script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
)


def hostile(entry) -> None:
    """Every free text of a manifest is hostile."""
    content = json.loads((entry.folder / MANIFEST_NAME).read_text())
    content["name"] = content["base"]["name"] = content["base"]["ref"] = content["task"]["name"] = EVIL
    content["task"]["ref"] = content["task"]["metric"] = "javascript:alert(3)//" + EVIL
    content["notes"], content["tags"] = [EVIL], {"arm": EVIL, EVIL: EVIL}
    content["methods"] = [{"name": EVIL, "settings": {EVIL: EVIL}}]
    content["scores"] = {EVIL: {EVIL: 0.5}, "validation": {content["task"]["metric"]: 0.5}}
    content["parents"] = [{"id": EVIL, "role": "delta", "name": EVIL}]
    content["recipe"], content["created"] = {"job": EVIL, EVIL: EVIL}, EVIL
    content["label_names"] = [EVIL, EVIL + "2", EVIL + "3"]
    (entry.folder / MANIFEST_NAME).write_text(json.dumps(content))


def test_names_do_not_steer_the_terminal(cli, store):
    entry = one(store, "peft")
    hostile(entry)
    entry.folder.rename(entry.folder.with_name("x\x1b[31m; touch owned #"))
    folder = entry.folder.with_name("x\x1b[31m; touch owned #")
    for words in (["store", "list"], ["store", "list", "--json"], ["store", "show", folder], ["store", "verify"],
                  ["store", "show", folder, "--json"], ["predict", folder, "the oak"], ["store", "show", "nowhere"],
                  ["predict", folder, "the oak", "--json"], ["evaluate", folder]):  # fmt: skip
        answer = cli(*words, "--store", store.folder)
        steering = [letter for letter in answer.out + answer.err if not letter.isprintable() and letter not in "\n\t"]
        assert not steering, (words, steering)
        if "--json" in words and answer.code == 0:
            json.loads(answer.out)
        for line in answer.out.splitlines():
            assert not line.startswith("next:") or "'x" in line, line  # what is typed next is quoted


class Page(html.parser.HTMLParser):
    """Tags with the names of their attributes, and where links go."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")], (tag, attrs)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action", "xlink:href")]


def test_the_report_of_a_hostile_store_is_only_text(store):
    parsed = []
    for change in (lambda entry: None, hostile):
        for entry in store.find("delta"):
            change(entry)
        page = Page()
        text = Path(anytune.write_report(store=store.folder, out=store.folder / "page.html")).read_text()
        page.feed(text)
        assert not [link for link in page.links if not link.startswith(("#", "data:"))], page.links
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        parsed.append(page.tags.count("script"))
    assert parsed[0] == parsed[1]


def test_a_cache_of_fingerprints_is_only_a_cache(tiny_base, tmp_path, monkeypatch, canary):
    monkeypatch.setenv("ANYTUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    for text in (
        nested(100_000),
        '{"format": 1, "entries": {"/": {"hashes": {}}}}',
        "\0",
        pickle.dumps(Bomb(canary)).hex(),
    ):
        (tmp_path / "cache" / "fingerprints.json").write_text(text)
        anytune.open_base(str(tiny_base))


def test_safetensors_with_a_header_that_lies(tiny_base, tmp_path):
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    for header in (b'{"a": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4000000000000]}}',
                   b"[" * 5000,
                   b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [8, 0]}}'):  # fmt: skip
        (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(BaseError):
            anytune.open_base(str(folder))
    (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little"))
    with pytest.raises(BaseError):
        anytune.open_base(str(folder))
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(AnytuneError):
        anytune.open_base(str(folder)).task_model("classification", ["a", "b"], seed=0)


def test_a_manifest_read_from_a_stranger_stays_data(store):
    entry = one(store, "full")
    hostile(entry)
    assert read_manifest(entry.folder).name == EVIL
