"""Every registered method on every kind of model it claims.

A few steps on a tiny random base of the kind: it trains. Through the jobs a user calls, what is stored answers as it
did, and the delta lands on an upgraded base of the same kind; for tune methods that differ in training alone and store
what full tuning stores, one kind of each family stands for the others there.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

import anytune
from anytune.data.batches import ExampleBatches, encode_task
from anytune.data.tasks import load_task
from anytune.engine.loop import train
from anytune.engine.runtime import make_runtime, seeded
from anytune.engine.settings import training_settings
from anytune.errors import AnytuneError, MethodError
from anytune.jobs.deltas import delta_of, load_delta
from anytune.methods import Classification, Run, registry
from anytune.models.adapters import AdapterDelta
from anytune.models.base import load_base
from anytune.models.bottleneck import bottleneck_names
from anytune.models.soft_prompt_config import SoftPromptConfig
from anytune.models.soft_prompts import PromptSource, prompt_of, prompt_width
from anytune.store import Entry, Store
from tests.contract.settings import exercise
from tests.models.kinds import KINDS, VARIANTS, make_kind

ALL = (*KINDS, *VARIANTS)
#: an encoder, a decoder with transposed maps, one with gated ones, and an encoder-decoder
FAMILIES = ("bert", "gpt2", "llama", "t5")
#: tune methods that store something of their own, or are the first that anybody uses: through the jobs on every kind
EVERYWHERE = ("tune/full", "tune/lora", "tune/bitfit", "tune/sift", "tune/dps")
ROOMS = {room: registry.names(room) for room in ("pretrain", "tune", "transfer", "recycle")}
COMMON = {"precision": "fp32", "batch_size": 8, "learning_rate": 3e-3, "schedule": "constant", "keep": "last"}
PRETRAIN = {**COMMON, "steps": 4, "block_size": 32}
TUNE = {**COMMON, "steps": 3, "max_length": 24}


class Shelf:
    """A base of a kind, its upgrade, and deltas tuned on it, each made when first asked for."""

    def __init__(self, kind: str, folder: Path, task: Path, domain: Path) -> None:
        self.kind, self.task, self.domain = kind, task, domain
        self.base = make_kind(kind, folder / "base")
        self.store = Store(folder / "store")
        self._made: dict[str, Entry] = {}

    @cached_property
    def opened(self) -> tuple[Any, ExampleBatches, tuple[str, ...]]:
        """The base, its training batches and the label names, read once."""
        base, task = load_base(self.base), load_task(self.task)
        encoded = encode_task(task.train, base.tokenizer(), 24, task.kind, base.anatomy.encoder_decoder)
        return base, ExampleBatches(encoded, 8, 0), task.label_names

    @property
    def model_type(self) -> str:
        return VARIANTS.get(self.kind, self.kind)

    def pretrained(self, method: str = "pretrain/sequential") -> Entry:
        if method not in self._made:
            [self._made[method]] = anytune.pretrain(
                self.base, self.domain, store=self.store, method=spelled(method), training=PRETRAIN,
                names=[method.replace("/", "-")],
            )  # fmt: skip
        return self._made[method]

    def tuned(self, method: str = "tune/full") -> Entry:
        if method not in self._made:
            [self._made[method]] = anytune.tune(
                self.base, self.task, store=self.store, method=spelled(method), training=TUNE,
                name=method.replace("/", "-"),
            )  # fmt: skip
        return self._made[method]


def spelled(method: str) -> dict:
    return {"name": method.split("/")[1], **exercise(method).settings}


def claims(method: str, kind: str) -> bool:
    kinds = registry.get(method).kinds
    return kinds is None or VARIANTS.get(kind, kind) in kinds


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, tiny_task, tiny_domain):
    made: dict[str, Shelf] = {}

    def get(kind: str) -> Shelf:
        if kind not in made:
            made[kind] = Shelf(kind, tmp_path_factory.mktemp(kind), tiny_task, tiny_domain)
        return made[kind]

    return get


def claimed(room: str) -> list:
    return [pytest.param(kind, method, id=f"{kind}-{method.split('/')[1]}")
            for kind in ALL for method in ROOMS[room] if claims(method, kind)]  # fmt: skip


@pytest.mark.parametrize(("kind", "method"), claimed("pretrain"))
def test_it_pretrains_and_the_new_base_is_one_of_the_kind(kind, method, shelf):
    entry = shelf(kind).pretrained(method)
    before, after = entry.manifest.curve[0].loss, entry.manifest.curve[-1].loss
    assert after < before
    old, new = load_base(shelf(kind).base), load_base(entry.folder)
    assert new.identity.backbone == entry.manifest.base.backbone != old.identity.backbone
    assert new.identity.vocabulary == old.identity.vocabulary
    # a hypernetwork that a method has made is part of what the base computes
    assert (new.identity.config == old.identity.config) == (new.hyperprompt is None)
    assert {name: old.tensors()[name].shape for name in old.tensors()} == {
        name: new.tensors()[name].shape for name in new.tensors() if not name.startswith("hyperprompt.")
    }
    assert new.pretraining_model()[1] == []


def through_the_jobs(kind: str, method: str) -> bool:
    return method in EVERYWHERE or kind in FAMILIES


@pytest.mark.parametrize(("kind", "method"), [case for case in claimed("tune") if not through_the_jobs(*case.values)])
def test_it_trains_and_nothing_but_a_difference_is_left(kind, method, shelf):
    place = shelf(kind)
    base, batches, labels = place.opened
    model, head_names = base.task_model("classification", labels, 0)
    made, objective = registry.create(method, exercise(method).settings), Classification()
    run = Run(seed=0, steps=3, anatomy=base.anatomy, head_names=head_names, objective=objective, batches=batches,
              base=base, device=torch.device("cpu"))  # fmt: skip
    with seeded(1):
        model = made.prepare(model, run)
        train(
            model, methods=[made], objective=objective, batches=batches, steps=3, learning_rate=3e-3,
            settings=training_settings({"precision": "fp32", "keep": "last"}), runtime=make_runtime("fp32"),
        )  # fmt: skip
        model = made.finish(model, run)
    moved = delta_of(model, base, list(head_names), base.identity)
    if isinstance(moved, AdapterDelta):
        assert any(name.endswith("lora_B.weight") and tensor.any() for name, tensor in moved.tensors.items())
    else:
        assert moved.difference or moved.bottleneck
        assert set(moved.head) == {*head_names, *bottleneck_names(model)}
        assert all(torch.isfinite(tensor).all() for tensor in moved.difference.values())


@pytest.mark.parametrize(("kind", "method"), claimed("transfer"))
def test_a_prompt_is_tuned_and_a_plain_peft_folder_is_left(kind, method, shelf):
    place = shelf(kind)
    base, batches, labels = place.opened
    model, head_names = base.task_model("classification", labels, 0)
    drawn = torch.Generator().manual_seed(2)
    width, state = prompt_width(model, "deep", base.anatomy), model.state_dict()
    given = [
        PromptSource(
            f"of-{number}", SoftPromptConfig(length=3), torch.randn(3, width, generator=drawn) * 0.1,
            {name: torch.randn(state[name].shape, generator=drawn) * 0.1 for name in head_names}, labels,
        )
        for number in range(2)
    ]  # fmt: skip
    takes = dict.fromkeys(registry.get(method).takes, given)
    made, objective = registry.create(method, exercise(method).settings), Classification()
    run = Run(seed=0, steps=3, anatomy=base.anatomy, head_names=head_names, objective=objective, batches=batches,
              base=base, device=torch.device("cpu"), label_names=labels, **takes)  # fmt: skip
    before = {name: tensor.clone() for name, tensor in state.items()}
    with seeded(1):
        model = made.prepare(model, run)
        start = None if prompt_of(model) is None else prompt_of(model).values().detach().clone()
        train(
            model, methods=[made], objective=objective, batches=batches, steps=3, learning_rate=1e-2,
            settings=training_settings({"precision": "fp32", "keep": "last"}), runtime=make_runtime("fp32"),
        )  # fmt: skip
        model = made.finish(model, run)
    if start is None:  # it leaves the prompt to others
        return
    assert not torch.equal(prompt_of(model).values().detach(), start)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if name not in head_names)
    left = delta_of(model, base, list(head_names), base.identity)
    assert left.config["peft_type"] == "PREFIX_TUNING"
    torch.testing.assert_close(left.tensors["prompt_embeddings"], prompt_of(model).values().detach())
    assert len(left.tensors) == 1 + len(head_names)


@pytest.mark.parametrize(("kind", "method"), [case for case in claimed("tune") if through_the_jobs(*case.values)])
def test_it_tunes_and_what_is_stored_answers_the_same(kind, method, shelf):
    entry = shelf(kind).tuned(method)
    moved = load_delta(entry)
    if isinstance(moved, AdapterDelta):
        assert any(name.endswith("lora_B.weight") and tensor.any() for name, tensor in moved.tensors.items())
    else:
        assert moved.difference or moved.bottleneck
    # load() asks the stored probe again
    assert anytune.score(entry, shelf(kind).task, store=shelf(kind).store) == entry.manifest.scores["test"]
    texts = ["the cat was near", "oakleaf", "old slaterock and some moss under the fern by a bearpaw"]
    together = anytune.predict(entry, texts, store=shelf(kind).store)
    alone = [anytune.predict(entry, [text], store=shelf(kind).store)[0] for text in texts[:1]]
    for one, other in zip(together, alone, strict=False):  # padding changes nothing
        assert one["label"] == other["label"]
        assert abs(one["probability"] - other["probability"]) < 1e-5


@pytest.mark.parametrize(("kind", "method"), claimed("recycle"))
def test_a_delta_lands_on_an_upgrade_of_its_kind(kind, method, shelf):
    place = shelf(kind)
    upgrade = place.pretrained()
    for tuned in ("tune/full", "tune/lora") if exercise(method).outdated == "full" else ("tune/lora",):
        old = place.tuned(tuned)
        [entry] = anytune.recycle(
            old, upgrade, store=place.store, method=spelled(method), task=place.task, training={"steps": 2},
            name=f"{method}-{tuned}".replace("/", "-"),
        )  # fmt: skip
        assert entry.manifest.base.backbone == upgrade.manifest.base.backbone
        model, _ = anytune.load(entry, store=place.store)
        before, _ = anytune.load(old, store=place.store)
        words = load_base(upgrade.folder).anatomy
        table = words.backbone(model).get_parameter(words.word_embeddings)
        outdated = words.backbone(before).get_parameter(words.word_embeddings)
        assert table.shape == outdated.shape
        assert not torch.equal(table, outdated)


REFUSED = [pytest.param(kind, method, id=f"{kind}-{method.split('/')[1]}")
           for kind in ALL for method in ROOMS["tune"] if not claims(method, kind)]  # fmt: skip


@pytest.mark.parametrize(("kind", "method"), REFUSED)
def test_a_kind_that_a_method_does_not_claim_is_refused_before_anything_is_computed(kind, method, shelf):
    place = shelf(kind)
    with pytest.raises(MethodError, match=f"does not work on a base of kind '{place.model_type}'"):
        anytune.tune(place.base, place.task, store=place.store, method=spelled(method), training=TUNE)


def test_a_delta_of_one_kind_is_not_put_onto_another(shelf):
    old = shelf("bert").tuned()
    with pytest.raises(AnytuneError, match=r"word|tensor|shape"):
        anytune.recycle(old, shelf("electra").base, store=shelf("bert").store, task=shelf("bert").task)
