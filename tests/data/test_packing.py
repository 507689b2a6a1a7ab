from __future__ import annotations

import json
import os
from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anytune.data import packing
from anytune.data.packing import TokenizerFacts, pack, tokenizer_identity
from anytune.errors import DataError, SettingsError
from anytune.manifests import caches_unwritten
from tests.data.conftest import WORDS, causal, wordpiece

CLS, SEP = 2, 3
DOCUMENTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join), min_size=1, max_size=40).filter(
    lambda texts: sum(len(text.split()) for text in texts) >= 16
)


def tokens_of(texts, tokenizer, separator):
    """The naive token row: every document, a separator between two that are not empty."""
    ids = [tokenizer(text, add_special_tokens=False, truncation=False, padding=False)["input_ids"] for text in texts]
    parts = [part for part in ids if part]
    return list(chain.from_iterable([separator, *part] for part in parts))[1:]


@given(DOCUMENTS, st.integers(8, 14))
@settings(max_examples=60, deadline=None)
def test_mlm_blocks_hold_every_token_but_the_tail(texts, block_size):
    tokenizer = wordpiece()
    expected = tokens_of(texts, tokenizer, SEP)
    blocks = pack(texts, tokenizer, block_size, objective="mlm")
    rows = blocks[:]
    assert rows.shape == (len(blocks), block_size)
    assert (rows[:, 0] == CLS).all()
    assert (rows[:, -1] == SEP).all()
    content = rows[:, 1:-1].flatten().tolist()
    assert content == expected[: len(content)]
    assert len(expected) - len(content) == blocks.dropped_tokens < block_size - 2
    assert blocks.token_count == len(blocks) * block_size


@given(DOCUMENTS, st.integers(8, 14))
@settings(max_examples=40, deadline=None)
def test_clm_blocks_hold_every_token_but_the_tail(texts, block_size):
    tokenizer = causal()
    expected = tokens_of(texts, tokenizer, tokenizer.eos_token_id)
    blocks = pack(texts, tokenizer, block_size, objective="clm")
    content = blocks[:].flatten().tolist()
    assert content == expected[: len(content)]
    assert len(expected) - len(content) == blocks.dropped_tokens < block_size


def texts(count: int = 60) -> list[str]:
    return [" ".join(WORDS[(place * 7 + step) % len(WORDS)] for step in range(place % 11)) for place in range(count)]


def test_chunks_of_texts_change_nothing(monkeypatch, bert_tokenizer):
    whole = pack(texts(), bert_tokenizer, 16)
    monkeypatch.setattr(packing, "TEXTS_AT_ONCE", 3)
    assert torch.equal(pack(texts(), bert_tokenizer, 16)[:], whole[:])


def test_blocks_are_read_by_row_number_in_the_order_asked(bert_tokenizer):
    blocks = pack(texts(), bert_tokenizer, 16)
    every = blocks[:]
    assert blocks[[3, 0, 3]].dtype == torch.int64
    assert torch.equal(blocks[[3, 0, 3]], every[[3, 0, 3]])


def test_packed_text_is_tokenised_once_and_read_back(tmp_path, bert_tokenizer, monkeypatch):
    first = pack(texts(), bert_tokenizer, 17, cache=tmp_path)
    assert first.dropped_tokens > 0
    assert [entry.name for entry in tmp_path.iterdir()] == [first.key]
    monkeypatch.setattr(packing, "_tokens", lambda *_: pytest.fail("tokenised twice"))
    second = pack(texts(), bert_tokenizer, 17, cache=tmp_path)
    assert torch.equal(first[:], second[:])
    assert (first.dropped_tokens, first.key) == (second.dropped_tokens, second.key)
    monkeypatch.undo()
    assert torch.equal(first[:], pack(texts(), bert_tokenizer, 17)[:])


def test_a_dry_run_reads_packed_text_and_keeps_none(tmp_path, bert_tokenizer):
    texts = ["the cat sat on the mat " * 20]
    with caches_unwritten():
        dry = pack(texts, bert_tokenizer, 16, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []
    kept = pack(texts, bert_tokenizer, 16, cache=tmp_path)
    assert (dry.key, len(dry)) == (kept.key, len(kept))
    listed = sorted(tmp_path.rglob("*"))
    assert listed
    with caches_unwritten():
        pack(texts, bert_tokenizer, 16, cache=tmp_path)
    assert sorted(tmp_path.rglob("*")) == listed


def test_the_key_follows_everything_that_decides_the_blocks(bert_tokenizer):
    def key(chosen, block_size=16, objective="mlm", tokenizer=bert_tokenizer):
        return pack(chosen, tokenizer, block_size, objective=objective).key

    keys = [
        key(texts()),
        key(texts()[::-1]),
        key(texts(), 17),
        key(texts(), objective="clm"),
        key(texts(), objective="clm", tokenizer=causal()),
        key([*texts()[:-2], texts()[-2] + " " + texts()[-1]]),
    ]
    assert len(set(keys)) == len(keys)
    assert key(texts()) == keys[0]


def test_the_identity_of_a_tokenizer_leaves_out_truncation_and_padding():
    tokenizer = wordpiece()
    before = tokenizer_identity(tokenizer)
    tokenizer(["ba be"], truncation=True, max_length=4, padding="max_length")
    assert tokenizer_identity(tokenizer) == before
    assert tokenizer_identity(causal()) != before


@pytest.mark.parametrize("damage", ["no facts", "cut arrow", "other count"])
def test_a_damaged_cache_is_made_again(tmp_path, bert_tokenizer, damage):
    first = pack(texts(), bert_tokenizer, 16, cache=tmp_path)[:]
    (folder,) = tmp_path.iterdir()
    if damage == "no facts":
        (folder / "blocks.json").unlink()
    elif damage == "cut arrow":
        data = (folder / "blocks.arrow").read_bytes()
        (folder / "blocks.arrow").write_bytes(data[: len(data) // 2])
    else:
        facts = json.loads((folder / "blocks.json").read_text())
        (folder / "blocks.json").write_text(json.dumps(facts | {"blocks": facts["blocks"] + 1}))
    assert torch.equal(pack(texts(), bert_tokenizer, 16, cache=tmp_path)[:], first)
    assert [entry.name for entry in tmp_path.iterdir()] == [folder.name]


def test_a_run_that_breaks_leaves_nothing_behind(tmp_path, bert_tokenizer, monkeypatch):
    def broken(*_):
        yield from [torch.zeros(16, dtype=torch.int32).numpy()] * 3
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing, "_blocks", broken)
    with pytest.raises(DataError, match="No space left"):
        pack(texts(), bert_tokenizer, 16, cache=tmp_path / "deep" / "cache")
    assert list((tmp_path / "deep" / "cache").iterdir()) == []


def test_what_killed_runs_left_is_swept_and_what_runs_now_is_kept(tmp_path, bert_tokenizer):
    old, young = tmp_path / ".partial-old", tmp_path / ".partial-young"
    old.mkdir()
    young.mkdir()
    os.utime(old, (0, 0))
    pack(texts(), bert_tokenizer, 16, cache=tmp_path)
    assert not old.exists()
    assert young.exists()


@pytest.mark.parametrize("cached", [True, False])
def test_too_little_text_is_refused_with_the_count(tmp_path, bert_tokenizer, cached):
    with pytest.raises(DataError, match="1 texts give 3 tokens: less than one block of 128"):
        pack(["ba be bi"], bert_tokenizer, 128, cache=tmp_path if cached else None)
    assert list(tmp_path.iterdir()) == []


def test_begin_and_end_of_text_tokens_serve_where_cls_and_sep_are_missing():
    tokenizer = causal(bos_token="<s>", eos_token="</s>", mask_token="<mask>")
    rows = pack(texts(), tokenizer, 16)[:]
    assert (rows[:, 0] == tokenizer.bos_token_id).all()
    assert (rows[:, -1] == tokenizer.eos_token_id).all()


@pytest.mark.parametrize(
    ("specials", "objective", "words"),
    [
        ({"eos_token": "</s>"}, "mlm", "lacks a mask token"),
        ({"mask_token": "<mask>"}, "mlm", r"lacks \[CLS\] and \[SEP\]"),
        ({"mask_token": "<mask>"}, "clm", "lacks an end-of-text token"),
    ],
)
def test_a_missing_special_token_is_named(specials, objective, words):
    with pytest.raises(DataError, match=words):
        pack(texts(), causal(**specials), 16, objective=objective)


def test_wrong_settings_are_named(bert_tokenizer):
    with pytest.raises(SettingsError, match="block_size is 4"):
        pack(texts(), bert_tokenizer, 4)
    with pytest.raises(SettingsError, match="unknown objective 'mln'"):
        pack(texts(), bert_tokenizer, 16, objective="mln")


def test_facts_of_a_tokenizer():
    facts = TokenizerFacts.of(wordpiece())
    assert (facts.pad_id, facts.begin_id, facts.separator_id, facts.mask_id) == (0, 2, 3, 4)
    assert facts.special_ids == (0, 1, 2, 3, 4)
    causal_facts = TokenizerFacts.of(causal())
    assert causal_facts.padding() == causal_facts.end_id == 1
    assert causal_facts.mask_id is None
    with pytest.raises(DataError, match="neither a padding token nor an end-of-text token"):
        TokenizerFacts.of(causal(mask_token="<mask>")).padding()
