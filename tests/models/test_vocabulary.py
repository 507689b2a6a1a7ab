"""Tables of words and positions across an upgrade, held against a loop over the words."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from anytune.models.base import load_base
from anytune.models.delta import FullDelta
from anytune.models.vocabulary import Rows, Words, align, changed_tables, changed_words
from tests.models.conftest import scatter
from tests.models.kinds import make_kind

WORDS = st.lists(st.sampled_from([f"w{index}" for index in range(12)]), unique=True, min_size=1, max_size=12)


def numbered(words, rows):
    return dict(zip(words, rows, strict=False))


@settings(max_examples=150, deadline=None)
@given(WORDS, WORDS, st.integers(0, 3), st.integers(0, 3), st.randoms(use_true_random=False))
def test_every_shared_word_gets_its_row_and_no_new_word_gets_any(before, after, spare, more, draw):
    sizes = len(before) + spare, len(after) + more
    old, new = (
        numbered(words, draw.sample(range(size), len(words)))
        for words, size in zip((before, after), sizes, strict=True)
    )
    values = torch.arange(1.0, sizes[0] * 2 + 1).view(-1, 2)
    words = align(old, new, *sizes)
    moved = words.rows.carry(values)
    expected = torch.zeros(sizes[1], 2)  # the same by hand
    for word, row in new.items():
        if word in old:
            expected[row] = values[old[word]]
    for row in range(min(sizes)):
        if row not in old.values() and row not in new.values():
            expected[row] = values[row]
    assert torch.equal(moved, expected)
    assert torch.equal(words.rows.carry(values.T, dim=1), expected.T)
    assert (words.known, words.shared, words.added) == (
        len(before), len(set(before) & set(after)), len(set(after) - set(before)),
    )  # fmt: skip
    assert words.renumbered == sum(old[word] != new[word] for word in set(before) & set(after))


def test_an_unchanged_vocabulary_moves_nothing_and_a_swap_of_two_words_does():
    old = {"a": 0, "b": 1, "c": 2}
    assert align(old, dict(old), 5, 5).rows.moves_nothing(5)
    assert not align(old, dict(old), 5, 6).rows.moves_nothing(5)
    assert not align(old, {"a": 1, "b": 0, "c": 2}, 5, 5).rows.moves_nothing(5)
    assert not align(old, {"a": 0, "b": 1}, 5, 5).rows.moves_nothing(5)


def test_a_special_token_of_another_spelling_is_the_same_word():
    old, new = {"[CLS]": 0, "a": 1}, {"a": 0, "<s>": 1}
    values = torch.tensor([[5.0], [7.0]])
    assert align(old, new, 2, 2).rows.carry(values).flatten().tolist() == [7.0, 0.0]
    words = align(old, new, 2, 2, {"[CLS]": "<s>"})
    assert words.rows.carry(values).flatten().tolist() == [7.0, 5.0]
    assert (words.shared, words.added) == (2, 0)


def test_words_that_a_table_has_no_row_for_go_nowhere():
    values = torch.tensor([[5.0], [7.0]])
    for old, new in (({"a": 0, "b": 5}, {"a": 1, "b": 0}), ({"a": 0, "b": 1}, {"a": 1, "b": 9})):
        assert align(old, new, 2, 2).rows.carry(values).flatten().tolist() == [0.0, 5.0]


def test_a_word_of_two_roles_goes_to_one_place_and_no_place_gets_two():
    def base(vocabulary, **roles):
        tokenizer = SimpleNamespace(get_vocab=lambda: vocabulary, **roles)
        tensors = SimpleNamespace(shape=lambda _: (len(vocabulary), 1))
        return SimpleNamespace(
            anatomy=SimpleNamespace(word_embeddings="words"), identity=SimpleNamespace(vocabulary=repr(vocabulary)),
            tensors=lambda: tensors, tokenizer=lambda: tokenizer, name="one",
        )  # fmt: skip

    bert = base({"[CLS]": 0, "[SEP]": 1, "a": 2, "b": 3}, cls_token="[CLS]", sep_token="[SEP]")
    gpt = base({"a": 0, "b": 1, "<end>": 2}, cls_token="<end>", sep_token="<end>", bos_token="<end>")
    words = changed_words(bert, gpt)
    assert len(set(words.rows.target.tolist())) == len(words.rows.target)
    assert words.shared == 3
    values = torch.tensor([[5.0], [7.0], [1.0], [2.0]])
    assert words.rows.carry(values).flatten().tolist() == [1.0, 2.0, 5.0], "the first role's"


def test_a_longer_and_a_shorter_table_of_positions():
    values = torch.tensor([[1.0], [2.0], [3.0]])
    assert Rows.first(3, 5).carry(values).flatten().tolist() == [1, 2, 3, 0, 0]
    assert Rows.first(3, 2).carry(values).flatten().tolist() == [1, 2]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "t5", "t5-gated"])
def test_a_generating_model_with_other_numbers_for_its_words_writes_the_same_words(kind, tmp_path):
    """Tied heads get what the word embeddings get, once; a head of its own gets its own, word by word."""
    old = load_base(make_kind(kind, tmp_path / "old"))
    rows = old.tensors().shape(old.anatomy.word_embeddings)[0]
    went = torch.randperm(rows, generator=torch.Generator().manual_seed(2))  # word i becomes word went[i]

    def turned(tensor):
        return torch.empty_like(tensor).index_copy_(0, went, tensor) if len(tensor) == rows else tensor

    shutil.copytree(tmp_path / "old", tmp_path / "new")
    state = {name: turned(tensor) for name, tensor in load_file(tmp_path / "old" / "model.safetensors").items()}
    save_file(state, tmp_path / "new" / "model.safetensors", {"format": "pt"})
    new = load_base(tmp_path / "new")
    tuned, _ = old.pretraining_model(0)
    scatter(tuned, 5)
    delta = FullDelta.extract(old.tensors(pretraining_head=True), tuned.state_dict(), [], old.anatomy, old.identity)
    words = Words(Rows(torch.arange(rows), went, rows), rows, rows, 0, rows)
    tables = changed_tables(old, new, words)
    assert old.anatomy.word_embeddings in tables
    assert ("lm_head.weight" in tables) == ("lm_head.weight" in old.tensors(pretraining_head=True))
    assert ("lm_head.weight" in delta.difference) == (kind == "t5-gated")  # tied elsewhere: kept once
    moved = delta.rebased(new.identity.model_copy(update={"backbone": "other"}), tables)
    model, _ = new.pretraining_model(0)
    moved.install(model, new.tensors(pretraining_head=True), new.identity, another_base=True)
    ids = torch.randint(3, rows, (2, 7), generator=torch.Generator().manual_seed(1))
    more = {"decoder_input_ids": ids} if kind.startswith("t5") else {}
    with torch.no_grad():
        before = tuned.eval()(input_ids=ids, **more).logits
        more = {"decoder_input_ids": went[ids]} if more else {}
        after = model.eval()(input_ids=went[ids], **more).logits
    torch.testing.assert_close(after[..., went], before, rtol=1e-4, atol=1e-5)
