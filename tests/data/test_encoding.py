"""Labels of tokens, with a tokenizer of every family, against naive loops and against what decoding gives back."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from anytune.data.batches import ExampleBatches, encode_prompts, encode_task, evaluation_batches
from anytune.data.encoding import encode_words, first_pieces, frame
from anytune.data.masking import IGNORED
from anytune.data.tasks import Example
from anytune.errors import DataError, SettingsError
from tests.data.conftest import causal, wordpiece
from tests.models.kinds import DECODERS, KINDS, make_tokenizer
from tests.models.kinds import WORDS as KNOWN

WHOLE = 4096


@cache
def tokenizer_of(kind):
    return make_tokenizer(kind)


def sentence(words, tags=None):
    return Example(" ".join(words), None, tuple(tags or range(len(words))), tuple(words))


# words a tokenizer knows, words of pieces it knows, and whatever stands in a text
ANY_WORD = st.one_of(
    st.sampled_from(KNOWN),
    st.text("abcxyz.,'-é", min_size=1, max_size=6),
    st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Z")), min_size=1, max_size=4),
)


def naive_first_pieces(words, offsets):
    found, begin = [], 0
    taken: set[int] = set()
    for word in words:
        end = begin + len(word)
        touching = [place for place, (first, last) in enumerate(offsets) if max(first, begin) < min(last, end)]
        free = [place for place in touching if place not in taken]
        found.append(free[0] if free else -1)
        taken |= set(touching)
        begin = end + 1
    return found


@pytest.mark.parametrize("kind", KINDS)
@given(st.lists(st.lists(ANY_WORD, min_size=1, max_size=6), min_size=1, max_size=3))
@settings(max_examples=30, deadline=None)
def test_labels_stand_exactly_on_first_pieces_of_the_text_as_it_is(kind, sentences):
    tokenizer = tokenizer_of(kind)
    examples = [sentence(words) for words in sentences]
    plain = [tokenizer(example.text, return_offsets_mapping=True) for example in examples]
    expected = [naive_first_pieces(words, row["offset_mapping"]) for words, row in zip(sentences, plain, strict=True)]
    if any(max(places) < 0 for places in expected):
        with pytest.raises(DataError, match="makes no token of sentence"):
            encode_task(examples, tokenizer, WHOLE, "token-classification")
        return
    encoded = encode_task(examples, tokenizer, WHOLE, "token-classification")
    assert encoded.input_ids == [row["input_ids"] for row in plain]
    assert encoded.first_pieces == expected
    for labels, places, ids in zip(encoded.labels, expected, encoded.input_ids, strict=True):
        wanted = [IGNORED] * len(ids)
        for tag, place in enumerate(places):
            if place >= 0:
                wanted[place] = tag
        assert labels == wanted
    assert encode_task(examples, tokenizer, WHOLE, None).labels is None
    assert encode_task(examples, tokenizer, WHOLE, None).first_pieces == expected


@pytest.mark.parametrize("kind", KINDS)
@given(words=st.lists(st.sampled_from(KNOWN), min_size=1, max_size=8))
@settings(max_examples=15, deadline=None)
def test_a_word_is_what_decoding_from_its_label_to_the_next_gives(kind, words):
    tokenizer = tokenizer_of(kind)
    encoded = encode_task([sentence(words)], tokenizer, WHOLE, "token-classification")
    (ids,), (places,) = encoded.input_ids, encoded.first_pieces
    bounds = [*places, len(ids)]
    for word, begin, end in zip(words, bounds, bounds[1:], strict=False):
        assert tokenizer.decode(ids[begin:end], skip_special_tokens=True).strip() == word


@given(st.lists(st.sampled_from(["bas", "daed", "BAING", "quux", "ba,be", "(", "gorx."]), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_word_pieces_are_the_same_as_of_words_given_apart(words):
    tokenizer = wordpiece()
    apart = tokenizer([words], is_split_into_words=True, truncation=False, padding=False)
    numbers = apart.word_ids(0)
    encoded = encode_task([sentence(words)], tokenizer, WHOLE, "token-classification")
    assert encoded.input_ids[0] == apart["input_ids"][0]
    assert encoded.first_pieces[0] == [numbers.index(word) for word in range(len(words))]


def test_words_with_spaces_inside_and_pieces_over_two_words():
    assert first_pieces(["1 000", "x"], [(0, 1), (2, 5), (6, 7)]) == [0, 2]
    assert first_pieces(["in", "the", "end"], [(0, 6), (6, 10)]) == [0, -1, 1]
    assert first_pieces(["a", "b"], [(0, 0), (0, 1), (1, 2), (2, 3), (0, 0)]) == [1, 3]
    assert first_pieces(["a", "b"], [(0, 1), (1, 3)]) == [0, 1]
    assert first_pieces(["a"], []) == [-1]


def test_words_that_are_cut_off_carry_no_label(bert_tokenizer):
    encoded = encode_task(
        [sentence(["ba"] * 3), sentence(["bas", "be", "daed", "du"])], bert_tokenizer, 6, "token-classification"
    )
    assert encoded.truncated == 1
    assert encoded.lengths.tolist() == [5, 6]
    assert encoded.first_pieces == [[1, 2, 3], [1, 3, 4, -1]]
    assert encoded.labels == [[-100, 0, 1, 2, -100], [-100, 0, -100, 1, 2, -100]]
    batch = encoded.batch([0, 1])
    assert batch["labels"].tolist() == [[-100, 0, 1, 2, -100, -100], [-100, 0, -100, 1, 2, -100]]
    assert batch["num_items"] == 6
    assert type(batch["num_items"]) is int
    assert batch["token_type_ids"].shape == batch["input_ids"].shape == (2, 6)


def test_sentences_that_leave_no_token_are_refused_by_number():
    raw = Tokenizer(models.WordLevel({"<unk>": 0, "<|end|>": 1, "ba": 2}, unk_token="<unk>"))
    raw.normalizer = normalizers.Replace("x", "")
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = type(causal())(tokenizer_object=raw, eos_token="<|end|>")
    with pytest.raises(DataError, match="no token of sentence 2: 'x xx'"):
        encode_task([sentence(["ba"]), sentence(["x", "xx"])], tokenizer, 16, "token-classification")
    assert encode_task([sentence(["x", "ba"])], tokenizer, 16, "token-classification").first_pieces == [[-1, 0]]
    for kind, example in (("prompt", ("xx", "ba")), ("response", ("ba", "xx"))):
        with pytest.raises(DataError, match=f"no token of {kind} 1: 'xx"):
            encode_task([Example(example[0], None, example[1])], tokenizer, 16, "generation")


def test_a_tokenizer_without_offsets_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(DataError, match="Slow does not say which characters"):
        encode_words([sentence(["ba"])], Slow(), 16, with_types=False, with_labels=True)


TEXT = st.lists(st.sampled_from(KNOWN), min_size=1, max_size=7).map(" ".join)
PROMPTED = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4)


def prompted(pairs):
    return [Example(prompt, None, response) for prompt, response in pairs]


def labelled(batch, row):
    return batch["labels"][row][batch["labels"][row] != IGNORED].tolist()


@pytest.mark.parametrize("kind", DECODERS)
@given(pairs=PROMPTED)
@settings(max_examples=20, deadline=None)
def test_a_decoder_reads_the_prompt_and_writes_the_response(kind, pairs):
    tokenizer = tokenizer_of(kind)
    encoded = encode_task(prompted(pairs), tokenizer, WHOLE, "generation")
    asked = encode_prompts([prompt for prompt, _ in pairs], tokenizer, WHOLE)
    batch = encoded.batch(range(len(pairs)))
    assert batch["labels"].shape == batch["input_ids"].shape
    at = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][at], batch["input_ids"][at])
    assert batch["num_items"] == int(at[:, 1:].sum()) == int(at.sum())
    assert encoded.truncated == 0
    begin = [tokenizer.bos_token_id] if kind == "llama" else []
    for row, (prompt, response) in enumerate(pairs):
        length = int(batch["attention_mask"][row].sum())
        ids = batch["input_ids"][row, :length].tolist()
        written = labelled(batch, row)
        assert ids == asked.input_ids[row] + written
        assert ids[: len(begin)] == begin
        assert written[-1] == tokenizer.eos_token_id
        assert not set(written[:-1]) & set(tokenizer.all_special_ids)
        assert tokenizer.decode(written[:-1]).strip() == response
        assert tokenizer.decode(ids, skip_special_tokens=True).split() == f"{prompt} {response}".split()
        assert (batch["input_ids"][row, length:] == encoded.pad_id).all()
        assert (batch["labels"][row, length:] == IGNORED).all()


@given(pairs=PROMPTED)
@settings(max_examples=20, deadline=None)
def test_an_encoder_decoder_has_targets_of_their_own(pairs):
    tokenizer = tokenizer_of("t5")
    encoded = encode_task(prompted(pairs), tokenizer, WHOLE, "generation", encoder_decoder=True)
    batch = encoded.batch(range(len(pairs)))
    longest = max(len(tokenizer(response)["input_ids"]) for _, response in pairs)
    assert batch["labels"].shape == (len(pairs), -(-longest // 8) * 8)
    assert batch["num_items"] == int((batch["labels"] != IGNORED).sum())
    for row, (prompt, response) in enumerate(pairs):
        assert encoded.input_ids[row] == tokenizer(prompt)["input_ids"]
        assert labelled(batch, row) == tokenizer(response)["input_ids"]
        assert tokenizer.decode(labelled(batch, row), skip_special_tokens=True) == response
    asked = encode_prompts([prompt for prompt, _ in pairs], tokenizer, WHOLE, encoder_decoder=True)
    assert (asked.input_ids, asked.padding_side) == (encoded.input_ids, "right")


@given(st.integers(1, 12), st.integers(1, 12), st.integers(4, 16))
def test_the_prompt_loses_its_beginning_and_the_response_stays_whole_where_it_fits(prompt, response, max_length):
    tokenizer = causal(eos_token="<|end|>")
    words = [f"{first}{second}" for first in "bdfgklmn" for second in "aeiou"]
    example = Example(" ".join(words[:prompt]), None, " ".join(words[20 : 20 + response]))
    encoded = encode_task([example], tokenizer, max_length, "generation")
    (ids,), (labels,) = encoded.input_ids, encoded.labels
    written = [*tokenizer(example.label)["input_ids"], tokenizer.eos_token_id]
    read = tokenizer(example.text)["input_ids"]
    kept = written[:max_length]
    room = max_length - len(kept)
    expected = read[max(0, len(read) - room) :] if room else []
    assert ids == expected + kept
    assert labels == [IGNORED] * len(expected) + kept
    assert encoded.truncated == (len(read) + len(written) > max_length)


def test_the_first_token_stays_in_front_of_a_cut_prompt_and_each_side_of_an_encoder_decoder_is_cut_alone():
    llama, t5 = tokenizer_of("llama"), tokenizer_of("t5")
    long = " ".join(KNOWN[:20])
    (ids,) = encode_task(prompted([(long, KNOWN[0])]), llama, 10, "generation").input_ids
    whole = llama(f"{long}\n")["input_ids"]
    response = llama(KNOWN[0], add_special_tokens=False)["input_ids"]
    assert ids[0] == llama.bos_token_id
    assert ids[1:] == whole[len(whole) - (9 - len(response) - 1) :] + response + [llama.eos_token_id]
    assert len(ids) == 10
    (asked,) = encode_prompts([long], llama, 6).input_ids
    assert asked == [llama.bos_token_id, *whole[-5:]]
    both = encode_task(prompted([(long, long), ("a", "a")]), t5, 12, "generation", encoder_decoder=True)
    full = t5(long)["input_ids"]
    assert both.input_ids[0] == full[-12:]
    assert both.labels[0] == full[:12]
    assert both.truncated == 1


def test_a_prompt_ends_in_white_space_of_its_own_or_a_new_line():
    tokenizer = tokenizer_of("gpt2")
    found = encode_prompts(["the end", "the end ", "the end\n"], tokenizer, WHOLE).input_ids
    assert [tokenizer.decode(ids) for ids in found] == ["the end\n", "the end ", "the end\n"]


def test_tokenizers_without_end_of_text_or_padding():
    only_pad = causal(pad_token="<pad>")
    encoded = encode_task(prompted([("ba be", "da")]), only_pad, 16, "generation")
    assert encoded.labels == [[IGNORED, IGNORED, *only_pad("da")["input_ids"]]]
    only_end = causal()
    batch = encode_task(prompted([("ba be", "da"), ("ba", "da de di")]), only_end, 16, "generation").batch([0, 1])
    end = only_end.eos_token_id
    assert batch["input_ids"][0, 3:].tolist() == [end] * 5
    assert batch["labels"][0, 3:].tolist() == [end, *[IGNORED] * 4]
    assert batch["attention_mask"].sum(dim=1).tolist() == [4, 5]
    assert batch["num_items"] == 2 + 4
    with pytest.raises(DataError, match="neither a padding token"):
        encode_task(prompted([("ba", "da")]), causal(mask_token="<mask>"), 16, "generation")


def test_a_token_that_no_position_predicts_is_not_counted():
    batch = encode_task(prompted([("ba", "da de di do du")]), causal(), 4, "generation").batch([0])
    assert batch["labels"].tolist() == batch["input_ids"].tolist()
    assert batch["num_items"] == 3


def test_segments_are_given_to_no_decoder():
    tokenizer = causal()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    assert "token_type_ids" not in encode_task(prompted([("ba", "da")]), tokenizer, 16, "generation").batch([0])


def test_prompts_to_answer_are_padded_on_the_side_that_lets_a_decoder_go_on(gpt_tokenizer):
    encoded = encode_prompts(["ba be bi", "da"], gpt_tokenizer, 16)
    assert "labels" not in encoded.batch([0])
    batch = encoded.batch([0, 1])
    end = gpt_tokenizer.eos_token_id
    ids = gpt_tokenizer("ba be bi da")["input_ids"]
    assert batch["input_ids"].tolist() == [[end] * 5 + ids[:3], [end] * 7 + ids[3:]]
    assert batch["attention_mask"].tolist() == [[0] * 5 + [1] * 3, [0] * 7 + [1]]
    with pytest.raises(DataError, match="no prompts"):
        encode_prompts([], gpt_tokenizer, 16)


@pytest.mark.parametrize("kind", ["bert", *DECODERS, "t5"])
def test_special_tokens_around_a_prompt(kind):
    tokenizer = tokenizer_of(kind)
    expected = {
        "bert": ([tokenizer.cls_token_id], []),
        "llama": ([tokenizer.bos_token_id], []),
    }.get(kind, ([], []))
    assert frame(tokenizer, encoder_decoder=False) == expected
    end = tokenizer.sep_token_id if kind == "bert" else tokenizer.eos_token_id
    assert frame(tokenizer, encoder_decoder=True) == (expected[0], [end])


def test_no_room_is_refused(gpt_tokenizer):
    llama = tokenizer_of("llama")
    with pytest.raises(SettingsError, match="max_length is 3"):
        encode_task(prompted([("a", "a")]), llama, 3, "generation")
    with pytest.raises(SettingsError, match="max_length is 1"):
        encode_prompts(["a"], llama, 1)
    with pytest.raises(SettingsError, match="max_length is 2"):
        encode_task([sentence(["a"])], tokenizer_of("bert"), 2, "token-classification")


@pytest.mark.parametrize("layout", ["position", "next", "target"])
def test_batches_of_labelled_tokens_are_functions_of_seed_and_step_and_grouped_by_length(layout):
    tokenizer = tokenizer_of("t5")
    words = [KNOWN[place % len(KNOWN)] for place in range(60)]
    counts = [1 + (place * 7) % 40 for place in range(60)]
    if layout == "position":
        encoded = encode_task([sentence(words[:count]) for count in counts], tokenizer, WHOLE, "token-classification")
    else:
        pairs = [(words[0], " ".join(words[:count])) for count in counts]
        encoded = encode_task(prompted(pairs), tokenizer, WHOLE, "generation", encoder_decoder=layout == "target")
    assert encoded.layout == layout
    batches, again = ExampleBatches(encoded, 4, 3), ExampleBatches(encoded, 4, 3)
    steps = list(range(2 * batches.batches_per_epoch))
    found = {step: batches.batch(step) for step in steps}
    for step in reversed(steps):
        other = again.batch(step)
        assert all(torch.equal(found[step][name], other[name]) for name in ("input_ids", "labels", "attention_mask"))
        assert found[step]["num_items"] == other["num_items"] == int((other["labels"] != IGNORED).sum())
    items = sum(found[step]["num_items"] for step in steps[: len(steps) // 2])
    assert items == sum(sum(label != IGNORED for label in labels) for labels in encoded.labels)
    alone = ExampleBatches(encoded, 4, 3, group_by_length=False)
    labels = [sum(each.batch(step)["labels"].numel() for step in steps) for each in (batches, alone)]
    assert labels[0] < 0.8 * labels[1]
    rows = torch.cat([row for row, _ in evaluation_batches(encoded, 7)])
    assert sorted(rows.tolist()) == list(range(60))
