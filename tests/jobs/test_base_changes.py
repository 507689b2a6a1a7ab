"""Recycling onto bases with other words, positions, shapes and labels: carried exactly, or refused with reasons."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch

import anytune
from anytune.data.tasks import load_task
from anytune.errors import BaseError, DataError, DeltaError, StoreError, WrongBaseError
from anytune.jobs.deltas import load_delta
from anytune.jobs.opening import open_base
from anytune.jobs.recycle import recycling_plans
from anytune.manifests import file_hashes
from anytune.models.peft_models import merge as merge_adapter
from anytune.store import Store
from tests.jobs.upgraded import changed, nudged, other_shape, positions, renumbered

TRAINING = {"steps": 12, "learning_rate": 5e-3, "batch_size": 8, "max_length": 32, "precision": "fp32",
            "keep": "last", "evaluate_every": 12}  # fmt: skip
METHODS = {
    "full": {"name": "full"},
    "lora": {"name": "lora", "r": 2},
    "prompt": {"name": "prompt_tuning", "length": 3, "kind": "input"},
    "bottleneck": {"name": "bottleneck", "width": 3},
}
TEXTS = ["the old oakleaf was near flintrock", "a small owl seen by dogpaw", "we found jadedust and the slate"]
WORDS = "embeddings.word_embeddings.weight"
PLACES = "embeddings.position_embeddings.weight"


class Shelf:
    def __init__(self, folder, base, task):
        self.folder, self.base, self.task, self.store = folder, base, task, folder / "store"
        self._made = {}

    def delta(self, form):
        if form not in self._made:
            [self._made[form]] = anytune.tune(
                self.base, self.task, store=self.store, method=METHODS[form], training=TRAINING, name=f"old-{form}"
            )
        return self._made[form]

    def recycle(self, form, base, method="direct", **options):
        given = {"task": self.task, "old_base": self.base, "store": self.store, **options}
        [entry] = anytune.recycle(self.delta(form), base, method=method, **given)
        return entry

    def answers(self, entry, base):
        rows = anytune.predict(entry, TEXTS, store=self.store, base=base)
        return torch.tensor([[row["probabilities"][label] for label in sorted(row["probabilities"])] for row in rows])


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, tiny_base, tiny_task):
    return Shelf(tmp_path_factory.mktemp("changes"), tiny_base, tiny_task)


# ------------------------------------------------------------------------------------------------ words, positions


def test_the_same_weights_with_another_tokenizer_are_another_old_base(shelf, tmp_path):
    other = shutil.copytree(shelf.base, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    one, two = sorted(words, key=words.get)[-2:]
    words[one], words[two] = words[two], words[one]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    plans = [
        recycling_plans(shelf.delta("full"), shelf.base, store=Store(shelf.store), method="distill", task=shelf.task,
                        old_base=old)[0][0]
        for old in (shelf.base, other)
    ]  # fmt: skip
    assert plans[0].outdated.old.identity.backbone == plans[1].outdated.old.identity.backbone
    keys = [plan.identity(plan.runtime()).key for plan in plans]
    assert keys[0] != keys[1]
    assert "old_vocabulary" not in plans[0].identity(plans[0].runtime()).decides  # earlier runs are found again


@pytest.mark.parametrize("form", METHODS)
def test_invariant_12_a_base_whose_words_were_renumbered_answers_as_the_old_tuned_model(form, shelf, tmp_path):
    new = renumbered(shelf.base, tmp_path / "new")
    entry = shelf.recycle(form, new)
    torch.testing.assert_close(shelf.answers(entry, new), shelf.answers(shelf.delta(form), shelf.base))
    assert any(note.startswith("the vocabulary changed: of 200 words ") and "7 are new" in note
               for note in entry.manifest.notes)  # fmt: skip


def test_invariant_12_new_words_are_untouched_and_each_shared_word_has_its_difference(shelf, tmp_path):
    new = renumbered(shelf.base, tmp_path / "new")
    old, moved = load_delta(shelf.delta("full")), load_delta(shelf.recycle("full", new))
    before, after = (open_base(base).tokenizer().get_vocab() for base in (shelf.base, new))
    assert sum(word not in before for word in after) == 7
    seen = 0
    for word, row in after.items():
        if word in before:
            assert torch.equal(moved.difference[WORDS][row], old.difference[WORDS][before[word]])
            seen += bool(old.difference[WORDS][before[word]].any())
        else:
            assert not moved.difference[WORDS][row].any()
    assert seen > 5
    base = open_base(new)
    tuned = moved.apply(base.tensors(), base.identity)[WORDS]
    fresh = [row for word, row in after.items() if word not in before]
    assert torch.equal(tuned[fresh], base.tensors()[WORDS][fresh])
    assert {
        name: tensor for name, tensor in moved.difference.items() if name != WORDS
    }.keys() == old.difference.keys() - {WORDS}


def test_a_base_that_shares_few_words_is_refused_and_distilling_is_offered(shelf, tmp_path):
    foreign = changed(shelf.base, tmp_path / "foreign", words=lambda words: {
        word if number < 90 else f"x{word}": number for word, number in words.items()
    })  # fmt: skip
    with pytest.raises(WrongBaseError, match=r"of the 200 words of .*, foreign knows 90[\s\S]*--method distill"):
        shelf.recycle("full", foreign)


@pytest.mark.parametrize("count", [48, 80])
def test_a_table_of_positions_that_was_cut_or_made_longer(count, shelf, tmp_path):
    new = positions(shelf.base, tmp_path / "new", count)
    moved, old = load_delta(shelf.recycle("full", new)), load_delta(shelf.delta("full"))
    both = min(count, 64)
    assert moved.difference[PLACES].shape[0] == count
    assert torch.equal(moved.difference[PLACES][:both], old.difference[PLACES][:both])
    assert not moved.difference[PLACES][both:].any()
    base = open_base(new)
    assert torch.equal(moved.apply(base.tensors(), base.identity)[PLACES][64:], base.tensors()[PLACES][64:])
    entry = shelf.recycle("full", new)
    torch.testing.assert_close(shelf.answers(entry, new), shelf.answers(shelf.delta("full"), shelf.base))


# ------------------------------------------------------------------------------------------------ shapes

SHAPES = {
    "deeper": ({"num_hidden_layers": 3}, ["depth: 2 became 3", "encoder.layer.2"]),
    "shallower": ({"num_hidden_layers": 1}, ["depth: 2 became 1", "encoder.layer.1"]),
    "wider": ({"hidden_size": 48}, ["width: 32 became 48", r"\[200, 32\] became \[200, 48\]"]),
    "more heads": ({"num_attention_heads": 4}, ["attention heads: 2 became 4"]),
    "another activation": ({"hidden_act": "relu"}, ["activation: gelu became relu"]),
}


@pytest.mark.parametrize("form", ["full", "lora", "prompt"])
@pytest.mark.parametrize("change", SHAPES)
def test_another_shape_is_refused_with_every_reason_and_what_to_do_instead(form, change, shelf, tmp_path):
    settings, reasons = SHAPES[change]
    new = other_shape(tmp_path / "new", **settings)
    with pytest.raises(DeltaError) as caught:
        shelf.recycle(form, new)
    text = str(caught.value)
    assert re.search(reasons[0], text), text
    if form == "full":
        assert all(re.search(reason, text) for reason in reasons), text
    assert "reasons: " in text
    assert "--method distill" in caught.value.fix
    assert "mapped" in caught.value.fix


def test_a_wider_feed_forward_network_stops_a_full_difference_and_no_adapter_beside_it(shelf, tmp_path):
    new = other_shape(tmp_path / "new", intermediate_size=96)
    with pytest.raises(DeltaError, match=r"6 reasons: encoder.layer.0.intermediate.dense"):
        shelf.recycle("full", new)
    entry = shelf.recycle("lora", new)
    anytune.load(entry, store=shelf.store, base=new)


def test_another_kind_of_model_is_one_reason(shelf, tmp_path):
    from tests.models.kinds import make_kind

    with pytest.raises(DeltaError, match=r"1 reasons: .* is of kind bert, gpt of kind gpt2"):
        shelf.recycle("full", make_kind("gpt2", tmp_path / "gpt"))


def test_a_quantised_base_is_refused_before_anything_is_read(shelf, tmp_path):
    new = changed(shelf.base, tmp_path / "new", config={"quantization_config": {"quant_method": "gptq", "bits": 4}})
    with pytest.raises(BaseError, match=r"holds quantised weights[\s\S]*unquantised"):
        shelf.recycle("full", new)


# ------------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize("form", METHODS)
def test_invariant_5_the_heads_rows_follow_the_labels(form, shelf):
    labels = shelf.delta(form).manifest.label_names
    turned = [*labels[1:], labels[0]]
    task = load_task(shelf.task, label_names=turned)
    entry = shelf.recycle(form, shelf.base, task=task, name="turned")
    assert entry.manifest.label_names == turned
    assert any("head's rows are 1, 2, 0 of before" in note for note in entry.manifest.notes)
    torch.testing.assert_close(shelf.answers(entry, shelf.base), shelf.answers(shelf.delta(form), shelf.base))


def test_some_of_the_labels_keep_their_rows_and_others_are_refused(shelf, tmp_path):
    import csv

    rows = list(csv.reader(shelf.task.open()))
    labels = shelf.delta("full").manifest.label_names
    fewer, more = tmp_path / "fewer.csv", tmp_path / "more.csv"
    with fewer.open("w", newline="") as one, more.open("w", newline="") as other:
        csv.writer(one).writerows([rows[0], *(row for row in rows[1:] if row[1] != labels[0])])
        csv.writer(other).writerows(
            [rows[0], *(row if row[1] != labels[0] else [row[0], "cloud"] for row in rows[1:])]
        )
    entry = shelf.recycle("full", shelf.base, task=load_task(fewer))
    old, new = load_delta(shelf.delta("full")).head, load_delta(entry).head
    assert torch.equal(new["classifier.weight"], old["classifier.weight"][1:])
    with pytest.raises(DataError, match=r"1 label \(cloud\) is new[\s\S]*tune afresh"):
        shelf.recycle("full", shelf.base, task=load_task(more))


# ------------------------------------------------------------------------------------------------ chains


def test_invariant_4_a_chain_of_direct_recycling_ends_where_the_straight_way_ends(shelf, tmp_path):
    first, second = nudged(shelf.base, tmp_path / "first", 1), nudged(shelf.base, tmp_path / "second", 2)
    straight = shelf.recycle("full", second)
    [chained] = anytune.recycle_chain(shelf.delta("full"), second, via=[first], store=shelf.store, method="direct",
                                      task=shelf.task, old_base=shelf.base)  # fmt: skip
    one, other = load_delta(straight), load_delta(chained)
    assert one.difference.keys() == other.difference.keys()
    assert all(torch.equal(one.difference[name], other.difference[name]) for name in one.difference)
    assert all(torch.equal(one.head[name], other.head[name]) for name in one.head)
    assert [parent.role for parent in chained.manifest.parents].count("delta") == 1
    assert file_hashes(straight.folder)["delta.safetensors"] == file_hashes(chained.folder)["delta.safetensors"]


def test_a_chain_is_found_by_the_parents_of_its_bases_and_a_wrong_order_is_refused(shelf, tiny_domain):
    given = {"store": shelf.store, "training": {"steps": 1, "batch_size": 4, "block_size": 32}}
    [first] = anytune.pretrain(shelf.base, [tiny_domain], names=["one"], **given)
    [second] = anytune.pretrain(first, [tiny_domain], names=["two"], seed=1, **given)
    shared = {"store": shelf.store, "method": "direct", "task": shelf.task, "old_base": shelf.base}
    [found] = anytune.recycle_chain(shelf.delta("lora"), second, **shared)
    hops = [entry for entry in anytune.Store(shelf.store).find("delta") if entry.manifest.base.name == "one"]
    assert len(hops) == 1
    assert [parent.id for parent in found.manifest.parents if parent.role == "delta"] == [hops[0].id]
    assert hops[0].id in {parent.id for parent in found.manifest.parents}
    with pytest.raises(WrongBaseError, match="base one comes after two in the chain"):
        anytune.recycle_chain(shelf.delta("lora"), first, via=[second], **shared)
    with pytest.raises(WrongBaseError, match="has base one twice"):
        anytune.recycle_chain(shelf.delta("lora"), first, via=[first], **shared)
    assert len(anytune.recycle_chain(shelf.delta("lora"), second, dry_run=True, **shared)) == 2


def test_a_base_that_was_not_made_from_the_deltas_is_no_chain_by_itself(shelf, other_base):
    with pytest.raises(StoreError, match=r"was not made from .*[\s\S]*--via BASE"):
        anytune.recycle_chain(shelf.delta("lora"), other_base, store=shelf.store, method="direct", task=shelf.task,
                              old_base=shelf.base)  # fmt: skip


# ------------------------------------------------------------------------------------------------ PEFT's own starts


@pytest.fixture(scope="module")
def pooled(tmp_path_factory, shelf):
    """A base with a pooler, so that PEFT alone keeps a whole head."""
    draw = torch.Generator().manual_seed(3)
    pooler = {"bert.pooler.dense.weight": torch.randn(32, 32, generator=draw) * 0.1, "bert.pooler.dense.bias":
              torch.zeros(32)}  # fmt: skip
    return changed(shelf.base, tmp_path_factory.mktemp("pooled") / "old", lambda state: {**state, **pooler})


def made_elsewhere(base, folder, **settings):
    """A PEFT folder as PEFT alone makes it, every trained weight moved."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    from anytune import compat

    with compat.seeded(4), compat.quiet_transformers():
        plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
        model = get_peft_model(plain, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], **settings))
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.add_(torch.randn(weight.shape) * 0.1)
        model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("start", [True, "pissa", "olora"])
def test_whatever_a_lora_was_started_by_the_matrices_get_what_tuning_added(start, shelf, pooled, tmp_path):
    from anytune.store.importing import import_adapter

    store = anytune.Store(tmp_path / "store")
    base, new = open_base(pooled), nudged(pooled, tmp_path / "new")
    folder = made_elsewhere(pooled, tmp_path / "theirs", init_lora_weights=start)
    labels = shelf.delta("full").manifest.label_names
    entry = import_adapter(store, folder, base, label_names=labels, kind="classification")
    [moved] = anytune.recycle(entry, new, store=store, method="direct", task=shelf.task, old_base=pooled)
    assert any("a LoRA of rank 4" in note for note in moved.manifest.notes) == (start is not True)
    name = "bert.encoder.layer.1.attention.self.query.weight"
    tuned = [merge_adapter(anytune.load(one, store=store, base=where)[0]).state_dict()[name]
             for one, where in ((entry, pooled), (moved, new))]  # fmt: skip
    plain = [open_base(where).tensors()[name.removeprefix("bert.")] for where in (pooled, new)]
    torch.testing.assert_close(tuned[1] - plain[1], tuned[0] - plain[0], rtol=1e-3, atol=1e-5)
    assert (tuned[0] - plain[0]).abs().max() > 0.01
    [more] = anytune.recycle(entry, new, store=store, method="initialize", task=shelf.task, old_base=pooled,
                             training={"steps": 2, "batch_size": 8})  # fmt: skip
    anytune.load(more, store=store, base=new)


def test_dora_is_recycled_and_what_was_cut_out_by_chance_is_refused(shelf, pooled, tmp_path):
    from anytune.store.importing import import_adapter

    store, new = anytune.Store(tmp_path / "store"), nudged(pooled, tmp_path / "new")
    labels = shelf.delta("full").manifest.label_names
    found = {}
    for name, settings in (("dora", {"use_dora": True}), ("drawn", {"init_lora_weights": "pissa_niter_2"})):
        folder = made_elsewhere(pooled, tmp_path / name, **settings)
        found[name] = import_adapter(store, folder, open_base(pooled), label_names=labels, kind="classification")
    given = {"store": store, "method": "direct", "task": shelf.task, "old_base": pooled}
    [moved] = anytune.recycle(found["dora"], new, **given)
    names = [name for name in load_delta(moved).tensors if "magnitude" in name]
    assert any(not torch.equal(load_delta(moved).tensors[name], load_delta(found["dora"]).tensors[name])
               for name in names)  # fmt: skip
    anytune.load(moved, store=store, base=new)
    with pytest.raises(DeltaError, match=r"started by 'pissa_niter_2'[\s\S]*merge it into its own base"):
        anytune.recycle(found["drawn"], new, **given)


# ------------------------------------------------------------------------------------------------ on a command line


def test_the_command_goes_hop_by_hop_and_refuses_what_cannot_be_in_one_line(shelf, tmp_path, cli):
    first, second = nudged(shelf.base, tmp_path / "first", 1), nudged(shelf.base, tmp_path / "second", 2)
    words = ("recycle", shelf.delta("lora").reference, "--task", shelf.task, "--old-base", shelf.base, "--store",
             shelf.store, "--method", "direct", "--quiet")  # fmt: skip
    answer = cli(*words, "--base", second, "--via", first, "--json")
    assert answer.code == 0, answer.err
    bases = [entry.manifest.base.name for entry in anytune.Store(shelf.store).find("delta")]
    assert {"first", "second"} <= set(bases)
    deeper = other_shape(tmp_path / "deeper", num_hidden_layers=3)
    for options, said in (
        (("--base", deeper), "depth: 2 became 3"),
        (("--base", second, "--via", second), "has base second twice"),
        (("--base", second, "--via", "parents"), "was not made from"),
        (("--base", second, "--label-names", "animal,plant,cloud"), "cloud"),
    ):
        answer = cli(*words, *options)
        assert answer.code == 2, answer
        assert said in answer.err, answer.err
        assert "Traceback" not in answer.err
