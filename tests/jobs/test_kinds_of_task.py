"""Tags and responses end to end on tiny random bases: tune, predict, merge, export, import, recycle."""

from __future__ import annotations

import json
import random

import pytest
import torch

import anytune
from anytune import compat
from anytune.errors import AnytuneError, DataError
from anytune.jobs.opening import open_base
from anytune.models.base import Base, load_base
from anytune.store import Store
from anytune.store.importing import import_adapter, import_folder
from tests.conftest import COMMON, TOPICS
from tests.models.kinds import make_kind

TRAINING = {"steps": 6, "learning_rate": 1e-2, "batch_size": 8, "precision": "fp32", "evaluate_every": 3,
            "max_length": 48}  # fmt: skip
PRETRAINING = {"steps": 4, "learning_rate": 1e-3, "batch_size": 4, "block_size": 32, "precision": "fp32"}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """What group a word belongs to, asked and answered."""
    rows = [(f"{COMMON[number % 9]} {word}", topic) for topic, words in TOPICS.items()
            for number, word in enumerate(words)]  # fmt: skip
    random.Random(0).shuffle(rows)
    path = tmp_path_factory.mktemp("tasks") / "questions.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": ask, "response": say}) for ask, say in rows))
    return path


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """Sentences in which the names of animals are tagged."""
    draw, rows = random.Random(0), []
    for _ in range(60):
        words = draw.choices(COMMON, k=4) + draw.choices(TOPICS["animal"], k=2) + draw.choices(TOPICS["stone"], k=1)
        draw.shuffle(words)
        rows.append({"tokens": words, "tags": ["B-ANIMAL" if word in TOPICS["animal"] else "O" for word in words]})
    path = tmp_path_factory.mktemp("tasks") / "sentences.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """``bases(kind)`` -> folder of a tiny base, made once."""
    root, made = tmp_path_factory.mktemp("kinds"), {}

    def get(kind: str):
        if kind not in made:
            made[kind] = make_kind(kind, root / kind)
        return made[kind]

    return get


def prompts_of(path) -> list[str]:
    return [row.text for row in anytune.load_task(path).test]


def plain_response(model, tokenizer, prompt: str, encoder_decoder: bool) -> str:
    """What transformers itself answers to one prompt, greedily."""
    ids = tokenizer(prompt if encoder_decoder else f"{prompt}\n", return_tensors="pt")["input_ids"]
    settings = {"pad_token_id": tokenizer.pad_token_id or 0, "eos_token_id": tokenizer.eos_token_id}
    with torch.no_grad():
        said = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8, **settings
        )
    return tokenizer.decode(said[0, 0 if encoder_decoder else ids.shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5"])
def test_a_generating_delta_answers_the_same_after_merging_in_plain_transformers(
    kind, method, bases, questions, store, tmp_path
):
    import transformers

    [entry] = anytune.tune(bases(kind), questions, store=store, method=method, training=TRAINING)
    manifest = entry.manifest
    assert manifest.task.kind == "generation"
    assert list(manifest.scores["test"]) == ["exact_match", "perplexity"]
    assert manifest.curve[-1].loss < manifest.curve[0].loss
    prompts = prompts_of(questions)
    answers = [answer["response"] for answer in anytune.predict(entry, prompts, store=store, max_new_tokens=8)]
    folder = anytune.merge(entry, tmp_path / "merged", store=store)
    cls = transformers.AutoModelForSeq2SeqLM if kind == "t5" else transformers.AutoModelForCausalLM
    plain, tokenizer = cls.from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(folder)
    assert answers == [plain_response(plain, tokenizer, prompt, kind == "t5") for prompt in prompts]
    again = anytune.score(entry, questions, store=store)
    assert again == pytest.approx(manifest.scores["test"], rel=1e-5)
    lines = [json.loads(line) for line in (entry.folder / "predictions.jsonl").read_text().splitlines()]
    assert list(lines[0]) == ["row", "gold", "predicted", "loss"]
    assert [line["gold"] for line in lines] == [row.label for row in anytune.load_task(questions).test]


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_peft_itself_loads_an_exported_generating_lora_with_equal_logits(kind, bases, questions, store, tmp_path):
    import transformers
    from peft import PeftModel

    [entry] = anytune.tune(bases(kind), questions, store=store, method="lora", training=TRAINING)
    folder = anytune.export(entry, tmp_path / "adapter", store=store)
    stated = "SEQ_2_SEQ_LM" if kind == "t5" else "CAUSAL_LM"
    assert json.loads((folder / "adapter_config.json").read_text())["task_type"] == stated
    cls = transformers.AutoModelForSeq2SeqLM if kind == "t5" else transformers.AutoModelForCausalLM
    assert cls.__name__ in (folder / "README.md").read_text()
    plain = PeftModel.from_pretrained(cls.from_pretrained(bases(kind)), folder).eval()
    model, _ = anytune.load(entry, store=store)
    ids = torch.arange(12).reshape(2, 6) + 5
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if kind == "t5" else {})}
    with torch.no_grad():
        assert torch.equal(plain(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_a_tagging_delta_tags_words_and_merges_into_plain_transformers(
    kind, method, bases, sentences, store, tmp_path
):
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    [entry] = anytune.tune(bases(kind), sentences, store=store, method=method, training={**TRAINING, "steps": 12})
    manifest = entry.manifest
    assert (manifest.task.kind, manifest.task.metric) == ("token-classification", "f1_entities")
    assert manifest.curve[-1].loss < manifest.curve[0].loss
    assert manifest.best_step == min(manifest.curve, key=lambda point: (-point.scores["f1_entities"], point.loss)).step
    words = ["the", "catling", "near", "oldfox", "jade"]
    one, two = anytune.predict(entry, [" ".join(words), json.dumps(words[1:3])], store=store)
    assert one["words"] == words
    assert len(one["tags"]) == len(one["probabilities"]) == 5
    assert two["words"] == ["catling", "near"]
    folder = anytune.merge(entry, tmp_path / "merged", store=store)
    plain, tokenizer = (
        AutoModelForTokenClassification.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    model, _ = anytune.load(entry, store=store)
    inputs = tokenizer(" ".join(words), return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        torch.testing.assert_close(plain(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=1e-5)
    assert plain.config.id2label == dict(enumerate(manifest.label_names))
    line = json.loads((entry.folder / "predictions.jsonl").read_text().splitlines()[0])
    assert list(line) == ["row", "words", "gold", "predicted", "probabilities"]
    assert len(line["words"]) == len(line["gold"]) == len(line["predicted"])
    assert anytune.score(entry, sentences, store=store) == pytest.approx(manifest.scores["test"])
    told = anytune.predict(entry, [row.words for row in anytune.load_task(sentences).test], store=store)
    stored = [json.loads(line)["predicted"] for line in (entry.folder / "predictions.jsonl").read_text().splitlines()]
    assert [answer["tags"] for answer in told] == stored
    with pytest.raises(DataError, match="list of words"):
        anytune.predict(entry, [["fine", 3]], store=store)


def adapter_by_hand(base, folder, scale: float = 0.1, **settings):
    """What a PEFT user has: a LoRA of a causal model, scattered as if trained. Returns its logits."""
    import transformers
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    chosen = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj", "v_proj"], **settings}
    with compat.quiet_transformers():
        model = get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), LoraConfig(**chosen))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.randn_like(parameter) * scale)
        model.save_pretrained(folder)
    with torch.no_grad():
        return model.eval()(torch.arange(10)[None] + 5).logits


@pytest.mark.parametrize("stated", ["CAUSAL_LM", None])
def test_a_causal_lora_made_elsewhere_is_adopted_and_recycled_onto_an_upgrade(
    stated, bases, questions, tiny_domain, store, tmp_path
):
    expected = adapter_by_hand(bases("llama"), tmp_path / "shelf" / "helper", task_type=stated)
    entry = import_adapter(store, tmp_path / "shelf" / "helper", open_base(bases("llama")))
    assert (entry.manifest.task.kind, entry.manifest.task.metric) == ("generation", "exact_match")
    assert any("--kind" in note for note in entry.manifest.notes) is (stated is None)
    model, _ = anytune.load(entry, store=store)
    with torch.no_grad():
        torch.testing.assert_close(model(torch.arange(10)[None] + 5).logits, expected, atol=1e-6, rtol=0)
    anytune.pretrain(bases("llama"), [tiny_domain], store=store, names=["v1"], training=PRETRAINING)
    [direct] = anytune.recycle(
        entry, "v1", store=store, method="direct", task=questions, training={"precision": "fp32"}
    )
    [tuned] = anytune.recycle(entry, "v1", store=store, method="initialize", task=questions, training=TRAINING)
    for moved in (direct, tuned):
        assert moved.manifest.form == "peft"
        assert moved.manifest.scores["test"]["perplexity"] > 1
        assert anytune.predict(moved, ["the fox"], store=store, max_new_tokens=3)[0].keys() == {"response"}
    assert direct.manifest.steps == 0
    assert tuned.manifest.curve[0].loss == pytest.approx(
        torch.tensor(direct.manifest.scores["validation"]["perplexity"]).log().item(), rel=1e-5
    )
    assert tuned.manifest.curve[-1].loss < tuned.manifest.curve[0].loss


def test_a_trained_vocabulary_head_moves_as_a_difference_and_survives_merging(
    bases, questions, tiny_domain, store, tmp_path
):
    import transformers

    adapter_by_hand(bases("llama"), tmp_path / "headed", modules_to_save=["lm_head"])
    entry = import_adapter(store, tmp_path / "headed", open_base(bases("llama")))
    folder = anytune.merge(entry, tmp_path / "merged", store=store)
    model, _ = anytune.load(entry, store=store)
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.arange(10)[None] + 5
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
    anytune.pretrain(bases("llama"), [tiny_domain], store=store, names=["v1"], training=PRETRAINING)
    [direct] = anytune.recycle(
        entry, "v1", store=store, method="direct", task=questions, training={"precision": "fp32"}
    )
    name = "base_model.model.lm_head.weight"
    from safetensors.torch import load_file

    before, after = (load_file(one.folder / "adapter_model.safetensors")[name] for one in (entry, direct))
    old, new = (load_base(folder).tensors(pretraining_head=True)["lm_head.weight"]
                for folder in (bases("llama"), open_base("v1", store).folder))  # fmt: skip
    assert not torch.equal(old, new)
    assert torch.equal(after, (new.double() + (before.double() - old.double())).float())


def test_copies_of_the_bases_embeddings_are_left_out_and_other_embeddings_are_refused(bases, store, tmp_path):
    from safetensors.torch import load_file, save_file

    expected = adapter_by_hand(bases("llama"), tmp_path / "shelf", target_modules=["q_proj", "embed_tokens"])
    file = tmp_path / "shelf" / "adapter_model.safetensors"
    names = list(load_file(file))
    assert any("embed_tokens" in name and name.endswith("weight") and "lora" not in name for name in names), names
    entry = import_adapter(store, tmp_path / "shelf", open_base(bases("llama")))
    assert any("embed_tokens" in note for note in entry.manifest.notes)
    model, _ = anytune.load(entry, store=store)
    with torch.no_grad():
        torch.testing.assert_close(model(torch.arange(10)[None] + 5).logits, expected, atol=1e-6, rtol=0)
    copies = [name for name in names if "embed_tokens" in name and "lora" not in name]
    save_file({name: tensor + (name in copies) for name, tensor in load_file(file).items()}, file)
    with pytest.raises(AnytuneError, match="brings its own embed_tokens"):
        import_adapter(store, tmp_path / "shelf", open_base(bases("llama")))


def test_a_shelf_of_causal_loras_is_adopted_as_a_whole_and_the_kind_can_be_said(bases, store, tmp_path, monkeypatch):
    for number in range(3):
        adapter_by_hand(bases("llama"), tmp_path / "shelf" / f"a{number}", scale=0.1 * (number + 1))
    base, read, make = open_base(bases("llama")), [], Base.task_model
    monkeypatch.setattr(Base, "task_model", lambda *given, **named: read.append(given) or make(*given, **named))
    entries = import_folder(store, tmp_path / "shelf", base, metric="perplexity")
    assert [entry.manifest.task.metric for entry in entries] == ["perplexity"] * 3
    assert len(read) == 1, "a base is read once for a whole shelf"
    shelf = sorted((tmp_path / "shelf").iterdir())
    alone = [import_adapter(Store(tmp_path / f"store of {one.name}"), one, base) for one in shelf]
    assert [entry.manifest.probe for entry in entries] == [entry.manifest.probe for entry in alone]
    assert len({str(entry.manifest.probe.outputs) for entry in entries}) == 3
    with pytest.raises(AnytuneError, match="task type CAUSAL_LM"):
        import_adapter(store, tmp_path / "shelf" / "a0", base, kind="classification")
    with pytest.raises(AnytuneError, match="generates text"):
        import_adapter(store, tmp_path / "shelf" / "a0", base, label_names=["a", "b"])


def test_an_encoder_does_not_generate_and_says_so(bases, questions, store):
    with pytest.raises(AnytuneError, match="cannot generate"):
        anytune.tune(bases("bert"), questions, store=store, training=TRAINING)
    assert store.find() == []


def test_a_comparison_by_perplexity_counts_less_as_better_and_the_page_shows_both_kinds(
    bases, questions, sentences, tiny_domain, store, tmp_path
):
    from anytune.evaluate import compare, runs_of, verdicts
    from anytune.report.reading import read_store

    options = {"store": store, "training": TRAINING, "method": "lora"}
    [old] = anytune.tune(bases("llama"), questions, metric="perplexity", **options)
    anytune.tune(bases("llama"), sentences, **options)
    anytune.pretrain(bases("llama"), [tiny_domain], store=store, names=["v1"], training=PRETRAINING)
    [fresh] = anytune.tune("v1", questions, metric="perplexity", **options)
    [tuned] = anytune.recycle(old, "v1", store=store, task=questions, training=TRAINING, metric="perplexity")
    better, worse = (one.manifest.scores["test"]["perplexity"] for one in (tuned, fresh))
    assert better < worse, "the case under test: it starts where the old one ended"
    points = {point.step: point.scores["perplexity"] for point in tuned.manifest.curve}
    assert points[tuned.manifest.best_step] == min(points.values())
    lines = (tuned.folder / "predictions.jsonl").read_text().splitlines()
    assert all("predicted" not in json.loads(line) for line in lines), "nothing decodes where no metric needs it"
    rows = {(row.task, row.arm): row for row in compare(runs_of(read_store(store.folder)[0])) if row.base == "v1"}
    row = rows["questions", "initialize"]
    assert row.over_fresh.mean == pytest.approx(worse - better)
    assert "perplexity above fresh tuning's" in " ".join(verdicts([row]))
    page = anytune.write_report(store, tmp_path / "report.html").read_text()
    assert "perplexity" in page
    assert "f1_entities" in page


def test_the_command_line_tags_words_and_answers_prompts(bases, questions, sentences, cli, tmp_path):
    quick = ("--steps", 2, "--batch-size", 8, "--max-length", 48, "--precision", "fp32", "--quiet")
    answer = cli("tune", "--base", bases("llama"), "--task", questions, "--name", "helper", *quick)
    assert (answer.code, "test perplexity" in answer.out, '"a prompt"' in answer.out) == (0, True, True)
    answer = cli("predict", "helper", "the fox", "an oak", "--max-new-tokens", 3)
    assert [line for line in answer.out.splitlines() if line.startswith(">")] == ["> the fox", "> an oak"]
    answer = cli("predict", "helper", "--file", questions, "--max-new-tokens", 2, "--json")
    assert {"text", "response"} == set(json.loads(answer.out.splitlines()[0]))
    assert cli("tune", "--base", bases("bert"), "--task", sentences, "--name", "tagger", *quick).code == 0
    answer = cli("predict", "tagger", '["the", "catling"]')
    assert [line.split()[0] for line in answer.out.splitlines()] == ["word", "the", "catling"]
    answer = cli("predict", "tagger", "--file", sentences, "--json")
    assert (
        json.loads(answer.out.splitlines()[0])["words"] == json.loads(sentences.read_text().splitlines()[0])["tokens"]
    )
    assert "f1_entities" in cli("evaluate", "tagger", "--task", sentences).out
    assert cli("predict", "tagger", "[1, 2]").code == 2


@pytest.mark.parametrize(
    ("model_kind", "stated"), [("bert", "TOKEN_CLS"), ("llama", "TOKEN_CLS"), ("t5", "SEQ_2_SEQ_LM")]
)
def test_adapters_of_the_other_task_types_are_adopted_and_answer_the_same(model_kind, stated, bases, store, tmp_path):
    import transformers
    from peft import LoraConfig, get_peft_model

    cls = transformers.AutoModelForSeq2SeqLM if model_kind == "t5" else transformers.AutoModelForTokenClassification
    extra = {} if model_kind == "t5" else {"num_labels": 3}
    targets = {"bert": "query", "llama": "q_proj", "t5": "q"}[model_kind]
    torch.manual_seed(2)
    with compat.quiet_transformers():
        model = get_peft_model(
            cls.from_pretrained(bases(model_kind), **extra),
            LoraConfig(task_type=stated, r=2, target_modules=[targets]),
        )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "mine")
    names = None if model_kind == "t5" else ["O", "B-X", "I-X"]
    entry = import_adapter(store, tmp_path / "mine", open_base(bases(model_kind)), label_names=names)
    kind, metric = ("generation", "exact_match") if model_kind == "t5" else ("token-classification", "f1_entities")
    assert (entry.manifest.task.kind, entry.manifest.task.metric) == (kind, metric)
    loaded, _ = anytune.load(entry, store=store)
    ids = torch.arange(10)[None] + 5
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if model_kind == "t5" else {})}
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model.eval()(**inputs).logits, atol=1e-6, rtol=0)
