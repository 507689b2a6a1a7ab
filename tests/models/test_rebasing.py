"""What the kinds of adapter that hold values of their base become on another one."""

from __future__ import annotations

import pytest
import torch

from anytune import compat
from anytune.errors import DeltaError
from anytune.jobs.outdated import adapter_difference
from anytune.models.adapters import AdapterDelta
from anytune.models.difference import same_bits
from anytune.models.peft_models import merge
from anytune.models.plain_lora import as_plain_lora, is_convertible
from anytune.models.rebasing import move_copy, rescaled
from anytune.models.vocabulary import Rows, align
from tests.models.conftest import LABELS, VOCABULARY, equal_bits, logits
from tests.models.test_adapters import made_by_peft_alone, scatter_trainable, task_model

WORDS = "embeddings.word_embeddings.weight"
QUERY = "encoder.layer.0.attention.self.query"


def fresh(rows):
    """Which rows of the new table the old one did not have."""
    found = torch.ones(rows.size, dtype=torch.bool)
    found[rows.target] = False
    return found


def adapter(base, **settings):
    return AdapterDelta.from_model(made_by_peft_alone(base, **settings))


# ------------------------------------------------------------------------------------------------ DoRA


def test_magnitudes_keep_their_ratio_to_the_length_of_each_row():
    draw = torch.Generator().manual_seed(0)
    old, new = (torch.randn(3, 5, generator=draw) for _ in range(2))
    old[2], new[1] = 0.0, old[1]
    magnitude = torch.tensor([2.0, 3.0, 4.0])
    found = rescaled(magnitude, old, new)
    assert found[0].item() == pytest.approx(2 * (new[0].norm() / old[0].norm()).item(), rel=1e-6)
    assert found[1:].tolist() == [3.0, 4.0]  # an equal row, and one without a length
    torch.testing.assert_close(rescaled(magnitude, old.T, new.T, transposed=True), found)
    assert torch.equal(rescaled(magnitude, old, old), magnitude)


def test_dora_moves_with_its_magnitudes_rescaled(make_base, batch):
    old, new = make_base("old", seed=0, purpose="backbone"), make_base("new", seed=5, purpose="backbone")
    dora = adapter(old, use_dora=True)
    assert dora.why_not_movable() == ""
    names = [name for name in dora.tensors if "lora_magnitude_vector" in name]
    assert len(names) == 2
    assert equal_bits(dora.rebase(old.tensors(), old.tensors(), old.anatomy).tensors, dora.tensors)
    moved = dora.rebase(old.tensors(), new.tensors(), new.anatomy)
    [name] = [name for name in names if "layer.0." in name]
    before, after = (base.tensors()[f"{QUERY}.weight"].double() for base in (old, new))
    ratio = dora.tensors[name].double() / before.norm(dim=1)
    torch.testing.assert_close(moved.tensors[name].double() / after.norm(dim=1), ratio)
    answers = logits(moved.attach(task_model(new)[0]), batch)
    assert not torch.equal(answers, logits(AdapterDelta(dora.config, dora.tensors).attach(task_model(new)[0]), batch))


def test_an_untrained_dora_leaves_the_new_bases_answers(make_base, batch):
    import peft

    old, new = make_base("old", seed=0, purpose="backbone"), make_base("new", seed=5, purpose="backbone")
    with compat.quiet_transformers():
        untrained = peft.get_peft_model(
            task_model(old)[0], peft.LoraConfig(task_type="SEQ_CLS", r=2, use_dora=True, target_modules=["query"])
        )
    moved = AdapterDelta.from_model(untrained).rebase(old.tensors(), new.tensors(), new.anatomy)
    assert torch.allclose(
        logits(moved.attach(task_model(new)[0]), batch), logits(task_model(new)[0], batch), atol=1e-6
    )


def test_dora_on_a_table_of_words_is_refused(make_base):
    base = make_base(purpose="backbone")
    dora = adapter(base, use_dora=True, target_modules=["word_embeddings"])
    with pytest.raises(DeltaError, match="DoRA's magnitudes"):
        dora.rebase(base.tensors(), base.tensors(), base.anatomy)


# ------------------------------------------------------------------------------------------------ PiSSA, OLoRA


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize("rslora", [False, True])
def test_what_was_cut_out_of_the_base_becomes_plain_lora_with_the_same_answers(start, rslora, make_base, batch):
    old = make_base("old", seed=0, purpose="backbone")
    theirs = made_by_peft_alone(old, init_lora_weights=start, use_rslora=rslora, lora_alpha=6)
    held = AdapterDelta.from_model(theirs)
    assert is_convertible(held)
    with pytest.raises(DeltaError, match="is no plain LoRA yet"):
        held.rebase(old.tensors(), old.tensors(), old.anatomy)
    plain = as_plain_lora(held, old, "classification", LABELS)
    assert (plain.config["r"], plain.config["init_lora_weights"]) == (8, True)
    attached = plain.attach(task_model(old)[0])
    torch.testing.assert_close(logits(attached, batch), logits(theirs, batch), rtol=1e-4, atol=1e-5)
    weight = merge(attached).state_dict()[f"bert.{QUERY}.weight"]
    torch.testing.assert_close(weight, merge(theirs).state_dict()[f"bert.{QUERY}.weight"], rtol=1e-4, atol=1e-5)
    assert plain.rebase(old.tensors(), old.tensors(), old.anatomy).tensors.keys() == held.tensors.keys()


def test_a_pissa_that_also_acts_on_words_keeps_its_answers(make_base, batch):
    """PEFT starts factors of a table of words at nothing, whatever is asked of the matrices."""
    old = make_base("old", seed=0, purpose="backbone")
    theirs = made_by_peft_alone(old, init_lora_weights="pissa", target_modules=["query", "word_embeddings"])
    plain = as_plain_lora(AdapterDelta.from_model(theirs), old, "classification", LABELS)
    assert any("lora_embedding_A" in name for name in plain.tensors)
    answers = logits(plain.attach(task_model(old)[0]), batch)
    torch.testing.assert_close(answers, logits(theirs, batch), rtol=1e-4, atol=1e-5)


def test_an_untrained_pissa_adds_nothing(make_base, batch):
    import peft

    old, new = make_base("old", seed=0, purpose="backbone"), make_base("new", seed=5, purpose="backbone")
    with compat.quiet_transformers():
        untrained = peft.get_peft_model(
            task_model(old)[0],
            peft.LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights="pissa", target_modules=["query"]),
        )
    plain = as_plain_lora(AdapterDelta.from_model(untrained), old, "classification", LABELS)
    moved = plain.rebase(old.tensors(), new.tensors(), new.anatomy)
    assert torch.allclose(
        logits(moved.attach(task_model(new)[0]), batch), logits(task_model(new)[0], batch), atol=1e-6
    )


def test_starts_that_were_drawn_cannot_be_worked_out_again(make_base):
    base = make_base()
    drawn = adapter(base)
    drawn.config["init_lora_weights"] = "pissa_niter_4"
    assert not is_convertible(drawn)
    with pytest.raises(DeltaError, match="cannot be turned into plain LoRA"):
        as_plain_lora(drawn, base, "classification", LABELS)


# ------------------------------------------------------------------------------------------------ words


@pytest.fixture
def renumbered(make_base):
    """(old tensors, new tensors, anatomy, rows): words in reverse order, two gone, five new."""
    base, other = make_base("old", seed=0), make_base("new", seed=5)
    names = [f"w{index}" for index in range(VOCABULARY)]
    kept = names[:-2]
    after = {word: index for index, word in enumerate([*reversed(kept), *(f"n{index}" for index in range(5))])}
    words = align({word: index for index, word in enumerate(names)}, after, VOCABULARY, len(after))
    new = dict(other.tensors())
    new[WORDS] = torch.randn(len(after), 16, generator=torch.Generator().manual_seed(1))
    return dict(base.tensors()), new, base, words.rows


def test_a_copied_table_of_words_goes_word_by_word_and_new_words_are_the_new_bases(renumbered):
    old, new, base, rows = renumbered
    held = adapter(base, modules_to_save=["classifier", "word_embeddings"])
    [name] = [name for name, bare in held.absolute_copies(old, base.anatomy).items() if bare == WORDS]
    moved = held.rebase(old, new, base.anatomy, {WORDS: rows}).tensors[name]
    expected = new[WORDS].double()
    for was, now in zip(rows.source.tolist(), rows.target.tolist(), strict=True):
        expected[now] += held.tensors[name][was].double() - old[WORDS][was].double()
    assert torch.equal(moved, expected.float())
    assert same_bits(moved[fresh(rows)], new[WORDS][fresh(rows)]).all()
    assert (fresh(rows)).sum() == 5


def test_rows_that_both_bases_share_keep_the_copys_bits():
    draw = torch.Generator().manual_seed(0)
    old, copy = (torch.randn(4, 3, generator=draw) for _ in range(2))
    rows = Rows(torch.tensor([0, 1, 3]), torch.tensor([2, 0, 1]), 4)
    new = rows.carry(old)
    new[3] = 9.0
    moved = move_copy(copy, old, new, rows)
    assert torch.equal(moved[[2, 0, 1]], copy[[0, 1, 3]])
    assert torch.equal(moved[3], new[3])


def test_lora_on_words_goes_word_by_word(renumbered):
    old, new, base, rows = renumbered
    held = adapter(base, target_modules=["word_embeddings", "query"])
    moved = held.rebase(old, new, base.anatomy, {WORDS: rows})
    [first] = [name for name in held.tensors if "lora_embedding_A" in name]
    assert moved.tensors[first].shape == (4, len(new[WORDS]))
    second = first.replace("lora_embedding_A", "lora_embedding_B")
    before, after = ((one.tensors[second] @ one.tensors[first]).T for one in (held, moved))
    assert torch.equal(after[rows.target], before[rows.source])
    assert not after[fresh(rows)].any()
    rest = {name for name in held.tensors if name != first}
    assert all(torch.equal(moved.tensors[name], held.tensors[name]) for name in rest)


def test_another_kind_on_words_is_refused_where_the_words_changed(renumbered):
    import peft

    old, new, base, rows = renumbered
    with compat.quiet_transformers():
        loha = peft.get_peft_model(
            task_model(base)[0], peft.LoHaConfig(task_type="SEQ_CLS", r=2, target_modules=["query"])
        )
    held = AdapterDelta.from_model(scatter_trainable(loha))
    held.rebase(old, new, base.anatomy, {WORDS: rows})  # not about words
    with pytest.raises(DeltaError, match="whose rows are others"):
        held.rebase(old, new, base.anatomy, {f"{QUERY}.weight": Rows.first(16, 16)})


@pytest.mark.parametrize("stated", [[3, 90, 95], {"word_embeddings": [3, 90, 95]}])
def test_trained_tokens_move_as_differences_and_lost_ones_are_left_out(stated, renumbered):
    old, new, base, rows = renumbered
    held = adapter(base, trainable_token_indices=stated)
    [name] = [name for name in held.tensors if "trainable_tokens_delta" in name]
    same = held.rebase(old, old, base.anatomy)
    assert equal_bits(same.tensors, held.tensors)
    assert same.config == held.config
    moved = held.rebase(old, new, base.anatomy, {WORDS: rows})
    there = [dict(zip(rows.source.tolist(), rows.target.tolist(), strict=True))[token] for token in (3, 90)]
    kept = moved.config["trainable_token_indices"]
    assert (kept if isinstance(kept, list) else kept["word_embeddings"]) == there  # word 95 is gone
    expected = new[WORDS][there].double() + held.tensors[name][:2].double() - old[WORDS][[3, 90]].double()
    assert torch.equal(moved.tensors[name], expected.float())


def test_trained_tokens_are_a_part_of_what_a_lora_adds(renumbered):
    old, _, base, _ = renumbered
    held = adapter(base, trainable_token_indices=[3, 90])
    [name] = [name for name in held.tensors if "trainable_tokens_delta" in name]
    added = adapter_difference(held, task_model(base)[0], base)
    places = added[WORDS].any(dim=1).nonzero().flatten().tolist()
    assert places == [3, 90]
    torch.testing.assert_close(added[WORDS][[3, 90]], held.tensors[name] - old[WORDS][[3, 90]])
    assert added[f"{QUERY}.weight"].any()


def test_trained_tokens_that_the_config_does_not_name_are_refused(renumbered):
    old, new, base, rows = renumbered
    held = adapter(base, trainable_token_indices=[3, 90])
    for stated in (None, [3], [3, 900], "all", {"elsewhere": [3, 90]}):
        bad = AdapterDelta({**held.config, "trainable_token_indices": stated}, held.tensors)
        with pytest.raises(DeltaError, match="config"):
            bad.rebase(old, new, base.anatomy, {WORDS: rows})
