from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from anytune.errors import MethodError
from anytune.methods import registry
from anytune.methods.objective import Generation
from anytune.methods.transfer.attempt import PromptMixture, attention, largest_of_words, mixed_prompts
from anytune.models.soft_prompts import attach_prompt, given_prompt_values, make_prompt, prompt_of
from tests.methods.transfer.given_prompts import drawn, with_sources
from tests.methods.tune.by_hand import same

SMALL = {"width": 4, "dropout": 0.0}


def attempt(**settings):
    return registry.create("transfer/attempt", {**SMALL, **settings})


def prepared(tiny_base, tiny_task, count=2, **settings):
    small, method = with_sources(tiny_base, tiny_task, count), attempt(**settings)
    small.model = method.prepare(small.model, small.run).double()
    return small, method, prompt_of(small.model)


# ---------------------------------------------------------------------- the formula


def test_the_largest_of_the_words_that_are_read():
    words = torch.tensor([[[1.0, -5.0], [3.0, -7.0], [9.0, 9.0]], [[4.0, 4.0], [5.0, 5.0], [6.0, 6.0]]])
    read = torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert largest_of_words(words, read).tolist() == [[3.0, -5.0], [0.0, 0.0]]


def naive_prompt(query, target, sources, temperature):
    """One text's prompt, sum by sum."""
    every = [*sources, target]
    scores = []
    for prompt in every:
        key = [max(prompt[place, value].item() for place in range(len(prompt))) for value in range(prompt.shape[1])]
        scores.append(sum(q * k for q, k in zip(query.tolist(), key, strict=True)))
    scores = [math.exp(score / (temperature * math.sqrt(len(query)))) for score in scores]
    return target + sum(score / sum(scores) * prompt for score, prompt in zip(scores, every, strict=True))


def test_prompts_are_those_of_sums_written_out():
    drawn = torch.Generator().manual_seed(1)
    target, sources, queries = (torch.randn(*shape, dtype=torch.float64, generator=drawn)
                                for shape in ((3, 5), (2, 3, 5), (4, 5)))  # fmt: skip
    weights = attention(queries, torch.cat([sources, target[None]]), 0.7)
    found = mixed_prompts(target, sources, weights)
    for query, prompt in zip(queries, found, strict=True):
        torch.testing.assert_close(prompt, naive_prompt(query, target, sources, 0.7))
    torch.testing.assert_close(mixed_prompts(target, sources, weights.mean(0)), found.mean(0))


def test_a_high_temperature_asks_all_prompts_alike_and_a_low_one_the_nearest():
    drawn = torch.Generator().manual_seed(2)
    prompts, queries = torch.randn(3, 2, 4, generator=drawn), torch.randn(5, 4, generator=drawn)
    torch.testing.assert_close(attention(queries, prompts, 1e6), torch.full((5, 3), 1 / 3), atol=1e-5, rtol=0)
    sharp = attention(queries, prompts, 1e-4)
    assert torch.equal(sharp.argmax(1), (queries @ prompts.amax(1).T).argmax(1))
    assert (sharp.amax(1) > 0.99).all()


def test_the_loss_of_a_batch_is_that_of_each_text_alone_with_the_prompt_of_the_formula(tiny_base, tiny_task):
    small, method, mixture = prepared(tiny_base, tiny_task, init_std=0.5, temperature=0.1)
    batch = small.batches.batch(0)
    found = small.objective.terms(method.forward(small.model, batch), batch)["loss"]
    words, losses = small.model.bert.embeddings.word_embeddings.weight, []
    for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        text = torch.stack([words[one] for one in ids[mask.bool()].tolist()]).amax(0)
        hidden = functional.silu(mixture.query.down.weight @ text)
        query = functional.layer_norm(mixture.query.up.weight @ hidden, (mixture.sources.shape[2],))
        own = naive_prompt(query, mixture.table, mixture.sources, 0.1)
        size = int(mask.sum())
        with given_prompt_values(small.model, own):
            logits = small.model(input_ids=ids[None, :size], attention_mask=mask[None, :size]).logits
        losses.append(functional.cross_entropy(logits, label[None]))
    torch.testing.assert_close(found, torch.stack(losses).mean(), rtol=1e-9, atol=0)
    shares = method.figures()
    assert set(shares) == {"own", "source_1", "source_2"}
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares.values()) - min(shares.values()) > 0.01, "attention that does not tell prompts apart"


def test_texts_of_one_batch_get_different_prompts_whatever_their_padding(tiny_base, tiny_task):
    small, method, mixture = prepared(tiny_base, tiny_task)
    batch = small.batches.batch(0)
    prompts = mixture.values_of(method._read(small.model, batch))
    assert len({tuple(one.flatten().tolist()) for one in prompts}) == len(prompts) == 8
    wide = {key: functional.pad(batch[key], (0, 5)) for key in ("input_ids", "attention_mask")}
    assert torch.equal(mixture.values_of(method._read(small.model, wide)), prompts)


# ---------------------------------------------------------------------- what is trained, scored and kept


def test_the_models_own_prompt_is_the_mean_of_those_of_the_texts(tiny_base, tiny_task):
    small, method, mixture = prepared(tiny_base, tiny_task, texts=11)
    read = mixture.texts
    encoded = small.batches.encoded
    every = torch.cat([method._read(small.model, encoded.batch([row])) for row in range(len(encoded))])
    drawn_rows = [(every == one).all(dim=1).nonzero()[0].item() for one in read]
    assert len(set(drawn_rows)) == 11
    assert drawn_rows != list(range(11))
    torch.testing.assert_close(mixture.values(), mixture.values_of(read).mean(0))
    plain = copy.deepcopy(small.base.task_model("classification", ("a", "b", "c"), 7)[0]).double()
    plain.load_state_dict(small.model.state_dict(), strict=False)
    values = mixture.values().detach()
    attach_prompt(
        plain, make_prompt(plain, mixture.config, small.base.anatomy, 0, values).double(), small.base.anatomy
    )
    plain.soft_prompt.table.data = values
    batch = small.batches.batch(3)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "token_type_ids")}
    assert torch.equal(small.model.eval()(**inputs).logits, plain.eval()(**inputs).logits)


def test_per_task_trains_the_very_prompt_that_is_kept(tiny_base, tiny_task):
    small, method, _ = prepared(tiny_base, tiny_task, per="task")
    batch = small.batches.batch(0)
    assert torch.equal(method.forward(small.model, batch).logits, small.objective.forward(small.model, batch).logits)
    other, own, _ = prepared(tiny_base, tiny_task)
    assert not torch.allclose(
        own.forward(other.model, batch).logits, small.objective.forward(other.model, batch).logits
    )


@pytest.mark.parametrize("per", ["text", "task"])
def test_a_step_moves_attention_prompt_and_head_and_leaves_sources_and_base(tiny_base, tiny_task, per):
    small = with_sources(tiny_base, tiny_task, double=False)
    before = {name: weight.clone() for name, weight in small.model.state_dict().items()}
    given = [source.values.clone() for source in small.run.sources]
    method = attempt(per=per)
    small.model = method.prepare(small.model, small.run)
    started = {name: weight.detach().clone() for name, weight in small.model.named_parameters()}
    after = small.train([method], prepared=True)
    trained = {name for name, weight in small.model.named_parameters() if weight.requires_grad}
    assert {name for name in after if not torch.equal(after[name], started[name])} == trained
    assert trained == {"soft_prompt.table", "soft_prompt.query.down.weight", "soft_prompt.query.up.weight",
                       "soft_prompt.query.norm.weight", "soft_prompt.query.norm.bias", *small.head_names}  # fmt: skip
    assert all(torch.equal(small.model.state_dict()[name], before[name]) for name in before
               if name not in small.head_names)  # fmt: skip
    for number, values in enumerate(given):
        assert torch.equal(small.run.sources[number].values, values)
        assert torch.equal(prompt_of(small.model).sources[number], values)


def test_a_run_is_the_same_again_and_draws_nothing_from_torch(tiny_base, tiny_task):
    found = []
    for stir in (0, 5):
        torch.manual_seed(stir)
        small, before = with_sources(tiny_base, tiny_task, double=False), torch.get_rng_state()
        found.append(small.train([attempt()]))
        assert torch.equal(torch.get_rng_state(), before)
    assert same(*found)


def test_copies_of_the_model_and_input_prompts_work_too(tiny_base, tiny_task):
    small = with_sources(tiny_base, tiny_task, kind="input")
    method = attempt()
    small.model = method.prepare(small.model, small.run).double().eval()
    batch, copied = small.batches.batch(0), copy.deepcopy(small.model)
    expected = method.forward(small.model, batch).logits
    assert isinstance(prompt_of(copied), PromptMixture)
    assert torch.equal(method.forward(copied, batch).logits, expected)
    prompt_of(copied).table.data += 1
    assert not torch.equal(method.forward(copied, batch).logits, expected)
    assert torch.equal(method.forward(small.model, batch).logits, expected)


def test_what_is_to_be_written_says_nothing_about_the_prompt(tiny_base, tiny_task):
    small, method, _ = prepared(tiny_base, tiny_task)
    batch = small.batches.batch(0)
    ids = batch["input_ids"]
    labels = ids.clone()
    labels[:, :4] = -100
    changed = torch.where(labels == -100, ids, ids.flip(0))
    both = [{"input_ids": one, "attention_mask": batch["attention_mask"], "labels": labels} for one in (ids, changed)]
    assert not torch.equal(*(method._read(small.model, one) for one in both))
    method._anatomy = replace(small.base.anatomy, objective="clm")
    method._plain = Generation(method._anatomy)
    assert torch.equal(*(method._read(small.model, one) for one in both))


# ---------------------------------------------------------------------- what cannot be


def test_sources_that_cannot_be_joined_are_refused_by_name(tiny_base, tiny_task):
    small = with_sources(tiny_base, tiny_task)
    first = small.run.sources[0]
    nan = replace(first, name="broken", values=first.values * math.nan)
    narrow = replace(first, name="narrow", values=first.values[:, :-2])
    for given, text in (
        ([], "needs source prompts, and none is given"),
        ([first, drawn(small, 5, length=4)], "'of-0' has length 3, source 'of-5' has length 4"),
        ([first, drawn(small, 5, kind="input")], "'of-0' has kind deep, source 'of-5' has kind input"),
        ([first, nan], "source 'broken': the prompt holds NaN"),
        ([first, narrow], "source 'narrow': values of shape"),
    ):
        small.run.sources = given
        for name in ("attempt", "mpt"):
            with pytest.raises(MethodError, match=text) as caught:
                registry.create(f"transfer/{name}").prepare(small.model, small.run)
            assert caught.value.fix
            assert prompt_of(small.model) is None
