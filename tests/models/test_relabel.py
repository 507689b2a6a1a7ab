"""Heads whose labels stand in another order or whose last layer has another name."""

from __future__ import annotations

import pytest
import torch

from anytune.errors import DataError, DeltaError
from anytune.models.adapters import AdapterDelta
from anytune.models.base import load_base
from anytune.models.delta import FullDelta
from anytune.models.peft_models import make_lora
from anytune.models.relabel import label_order, output_names, relabelled, renamed_head, with_renamed_head
from tests.models.conftest import LABELS, scatter
from tests.models.kinds import KINDS, make_kind
from tests.models.test_anatomy import ALL

OTHER = ("blue", "red", "green")


def test_the_order_of_labels_is_told_and_unknown_ones_are_refused():
    assert label_order(LABELS, LABELS, "t") is None
    assert label_order(LABELS, (), "t") is None
    assert label_order(LABELS, OTHER, "t") == [2, 0, 1]
    assert label_order(LABELS, ("green", "red"), "t") == [1, 0]
    with pytest.raises(DataError, match=r"1 label \(pink\) is new[\s\S]*tune afresh"):
        label_order(LABELS, ("red", "pink"), "t")


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("task", ["classification", "token-classification"])
def test_the_layer_with_a_row_for_each_label_is_found_in_every_kind(kind, task, tmp_path):
    base = load_base(make_kind(kind, tmp_path / kind))
    names = output_names(base, task)
    model, head = base.task_model(task, LABELS, 0)
    state = model.state_dict()
    assert set(names) == {name for name in head if len(state[name]) == len(LABELS)}
    assert names
    assert kind in KINDS or kind == "t5-gated"


def permuted(base, order, delta_of):
    """Logits before, and after the head's rows were reordered."""
    model, head = base.task_model("classification", LABELS, 1)
    delta = delta_of(scatter(model, 7), head)
    batch = {"input_ids": torch.randint(5, 90, (3, 10), generator=torch.Generator().manual_seed(7))}
    names = [LABELS[place] for place in order]
    changed = relabelled(delta, order, output_names(base, "classification"))
    answers = []
    for one, labels in ((delta, LABELS), (changed, names)):
        fresh, _ = base.task_model("classification", labels, 4)
        if isinstance(one, AdapterDelta):
            fresh = one.attach(fresh)
        else:
            one.install(fresh, base.tensors(), base.identity)
        with torch.no_grad():
            answers.append(fresh.eval()(**batch).logits)
    return answers


@pytest.mark.parametrize("order", [[2, 0, 1], [1, 0]])
@pytest.mark.parametrize("form", ["full", "lora"])
def test_a_reordered_head_answers_the_same_under_the_new_order(form, order, make_base):
    base = make_base()

    def delta_of(model, head):
        if form == "full":
            return FullDelta.extract(base.tensors(), model.state_dict(), head, base.anatomy, base.identity)
        return AdapterDelta.from_model(scatter(make_lora(base.task_model("classification", LABELS, 1)[0],
                                                         head_names=head, r=2), 3))  # fmt: skip

    before, after = permuted(base, order, delta_of)
    torch.testing.assert_close(after, before[:, order])


def test_an_adapter_without_its_head_cannot_be_reordered(make_base):
    base = make_base()
    _, head = base.task_model("classification", LABELS, 1)
    lora = AdapterDelta.from_model(make_lora(base.task_model("classification", LABELS, 1)[0], head_names=head, r=2))
    bare = AdapterDelta(lora.config, {name: one for name, one in lora.tensors.items() if "classifier" not in name})
    with pytest.raises(DeltaError, match="head whose rows are to be reordered"):
        relabelled(bare, [1, 0, 2], output_names(base, "classification"))


def test_a_head_of_another_name_is_recognised_only_where_nothing_has_to_be_guessed():
    held = {"score.weight": (3, 16), "score.bias": (3,)}
    wanted = {"classifier.weight": (3, 16), "classifier.bias": (3,)}
    assert renamed_head(held, wanted) == {"score.weight": "classifier.weight", "score.bias": "classifier.bias"}
    assert renamed_head({"score.weight": (3, 16)}, wanted) == {"score.weight": "classifier.weight"}
    assert renamed_head({"score.weight": (4, 16)}, wanted) == {}
    assert renamed_head(held, {**wanted, "other.weight": (3, 16)}) == {}
    assert renamed_head({**held, "more.weight": (9, 9)}, wanted) == {}


def test_a_renamed_head_is_saved_under_its_new_name_by_an_adapter(make_base):
    base = make_base()
    model, head = base.task_model("classification", LABELS, 1)
    lora = AdapterDelta.from_model(scatter(make_lora(model, head_names=head, r=2), 3))
    away = with_renamed_head(lora, {"classifier.weight": "score.weight", "classifier.bias": "score.bias"})
    assert "score" in away.config["modules_to_save"]
    with pytest.raises(DeltaError):
        away.attach(base.task_model("classification", LABELS, 1)[0])
    back = with_renamed_head(away, {"score.weight": "classifier.weight", "score.bias": "classifier.bias"})
    assert back.tensors.keys() == lora.tensors.keys()
    back.attach(base.task_model("classification", LABELS, 1)[0])
