"""Texts that a base makes up: which words change, that seeds decide, and that no label is read."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Generator

from anytune.data.packing import TokenizerFacts
from anytune.errors import MethodError
from anytune.methods import registry
from anytune.methods.made_texts import Drawing, continued, draw, look_real, refilled
from anytune.models.base import load_base
from tests.models.kinds import make_model

FACTS = TokenizerFacts(2, 3, 3, 0, 4, (0, 1, 2, 3, 4), 200)
ROWS = [[2, 30, 41, 9, 77, 3], [2, 50, 33, 44, 45, 46, 47, 60, 3], [2, 3]]


def made_of(base, seed=0, **settings):
    model, _ = base.pretraining_model(0)
    given = {"share": 0.5, "rounds": 1, "how": Drawing(), "device": "cpu", **settings}
    return refilled(model, base.anatomy, ROWS, FACTS, Generator().manual_seed(seed), **given)


def test_a_masked_word_model_draws_a_share_of_the_words_anew_and_no_special_token(tiny_base):
    base = load_base(tiny_base)
    made = made_of(base)
    assert [len(row) for row in made] == [len(row) for row in ROWS]
    for row, given in zip(made, ROWS, strict=True):
        assert (row[0], row[-1]) == (given[0], given[-1])
        assert not set(row[1:-1]) & set(FACTS.special_ids)
        assert sum(one != other for one, other in zip(row, given, strict=True)) <= -(-(len(given) - 2) // 2)
    assert made[0] != ROWS[0]
    assert made == made_of(base)
    assert made != made_of(base, seed=1)
    # the more rounds, the less is left of the text
    left = [
        sum(one == other for one, other in zip(made_of(base, rounds=rounds)[1], ROWS[1], strict=True))
        for rounds in (1, 20)
    ]
    assert left[1] < left[0]


def test_padding_and_other_rows_change_nothing_a_model_is_asked(tiny_base):
    """With one word to choose from, what is drawn does not depend on the rows beside it."""
    base = load_base(tiny_base)
    model, _ = base.pretraining_model(0)
    given = {"share": 1.0, "rounds": 1, "how": Drawing(among=1), "device": "cpu"}
    alone = [refilled(model, base.anatomy, [row], FACTS, Generator().manual_seed(0), **given)[0] for row in ROWS]
    assert refilled(model, base.anatomy, ROWS, FACTS, Generator().manual_seed(0), **given) == alone


def test_a_decoder_goes_on_from_the_beginning_as_without_a_cache():
    model = make_model("gpt2", 200).eval()
    rows = [[30, 41, 9, 77, 60, 61, 62], [50, 33, 44, 45], [7, 8]]
    facts = TokenizerFacts(None, 3, 3, 0, None, (0, 1, 2, 3, 4), 200)
    made = continued(model, rows, facts, Generator().manual_seed(1), beginning=2, how=Drawing(among=1), device="cpu")
    assert made[2] == rows[2]
    for row, given in zip(made[:2], rows[:2], strict=True):
        expected = given[:2]
        while len(expected) < len(given):
            logits = model(input_ids=torch.tensor([expected])).logits[0, -1].clone()
            logits[[0, 1, 2, 4]] = -torch.inf
            best = int(logits.argmax())
            if best == 3:
                break
            expected.append(best)
        assert row == expected


def test_words_are_drawn_by_their_likelihood_among_the_likeliest():
    logits = torch.tensor([[9.0, 2.0, 1.0, 0.0, 0.5]]).repeat(4000, 1)
    drawn = draw(logits, Drawing(temperature=2.0, among=2), [0], Generator().manual_seed(0))
    assert set(drawn.tolist()) == {1, 2}
    share = float((drawn == 1).float().mean())
    assert share == pytest.approx(float(torch.softmax(torch.tensor([1.0, 0.5]), 0)[0]), abs=0.03)


def test_the_probe_tells_what_looks_real():
    generator = Generator().manual_seed(0)
    real = torch.randn(40, 5, generator=generator) + 2
    alike, unlike = torch.randn(10, 5, generator=generator) + 2, torch.randn(30, 5, generator=generator) - 2
    found = look_real(real, torch.cat([unlike, alike]))
    assert found[30:].min() > found[:30].max()
    with pytest.raises(MethodError) as caught:
        look_real(real, unlike[:1])
    # what is said to be typed is a setting of the method
    assert registry.create("recycle/synthetic", {"keep": 1}).keep == 1
    assert "--set keep=1" in caught.value.fix


@pytest.fixture
def settings():
    return {"texts": 12, "keep": 0.75, "rounds": 2, "beta": 0.0}


def texts_of(case, **settings):
    run = case.run()
    registry.create("recycle/synthetic", settings).prepare(case.model()[0], run)
    return run.batches


def test_so_many_texts_take_the_place_of_the_training_rows(full_case, settings):
    batches = texts_of(full_case, **settings)
    assert len(batches.encoded) == 12
    own = {tuple(row) for row in full_case.encoded.input_ids}
    assert len({tuple(row) for row in batches.encoded.input_ids} - own) >= 10
    assert batches.encoded.input_ids == texts_of(full_case, **settings).encoded.input_ids
    assert set(batches.encoded.labels.tolist()) == {0}


def test_pairs_stay_pairs_and_words_stay_words(full_case, settings, monkeypatch):
    pair = [SimpleNamespace(text="the cat", text_pair="an old oak", words=None)]
    method = registry.create("recycle/synthetic", {**settings, "texts": 3, "keep": 1.0})
    monkeypatch.setattr("anytune.methods.recycle.synthetic._like", lambda one, first, second: (first, second))
    made = method._made(SimpleNamespace(examples=pair), full_case.run())
    assert len(made) == 3
    assert all(first and second for first, second in made)


def test_a_base_without_its_pretraining_head_cannot_write(full_case, settings, monkeypatch):
    base = full_case.new
    monkeypatch.setattr(type(base), "pretraining_model", lambda self, seed=0: (None, ["cls.predictions.bias"]))
    with pytest.raises(MethodError, match="has no pre-training head"):
        texts_of(full_case, **settings)
