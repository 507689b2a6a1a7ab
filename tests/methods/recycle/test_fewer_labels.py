"""A task that names some of a delta's labels, or all of them in another order: whoever asks the old model is answered
in the task's labels.
"""

from __future__ import annotations

import pytest
import torch

import anytune
from anytune.data.tasks import load_task
from anytune.models.relabel import label_order
from tests.conftest import tiny_rows, write_rows
from tests.methods.recycle.outdated import SETTINGS, Case, store_of

SHORT = {**SETTINGS, "steps": 2, "evaluate_every": 2}


@pytest.fixture(scope="module")
def fewer(old_full, tmp_path_factory):
    """Rows of all labels of the delta but its first."""
    left_out = old_full.manifest.label_names[0]
    rows = [row for row in tiny_rows() if row[1] != left_out]
    return write_rows(tmp_path_factory.mktemp("fewer") / "fewer.csv", rows)


@pytest.mark.parametrize("form", ["old_full", "old_lora"])
def test_the_teacher_has_the_rows_of_the_labels_that_are_left(request, form, moving_bases, tiny_task, fewer):
    entry = request.getfixturevalue(form)
    whole, part = Case(entry, *moving_bases, tiny_task), Case(entry, *moving_bases, fewer)
    names = entry.manifest.label_names
    part.moving.order = label_order(names, load_task(fewer).label_names, "fewer")
    assert part.moving.order == [1, 2]
    batch = part.encoded.batch(range(6))
    with torch.no_grad():
        all_of_them = whole.objective.forward(whole.outdated.make_teacher(), batch).logits
        left = part.objective.forward(part.outdated.make_teacher(), batch).logits
    assert torch.equal(left, all_of_them[:, 1:])
    assert part.outdated.difference().keys() == whole.outdated.difference().keys()


@pytest.mark.parametrize("method", ["distill", "combined", "interpolation_distillation"])
def test_it_is_learned_from_on_such_a_task(old_lora, moving_bases, fewer, method):
    [made] = anytune.recycle(
        old_lora, moving_bases[1], store=store_of(old_lora), method=method, task=load_task(fewer),
        old_base=moving_bases[0], training=SHORT,
    )  # fmt: skip
    assert made.manifest.label_names == old_lora.manifest.label_names[1:]
