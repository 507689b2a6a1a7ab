"""The hypernetwork by itself: its arithmetic, what it may read, its settings, and that its encoder never changes."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from anytune.errors import BaseError, SettingsError
from anytune.models.anatomy import anatomy_of
from anytune.models.hyperprompt import (
    hyperprompt_from,
    make_hyperprompt,
    mixing_weights,
    mixture,
    pooled,
    readable_tokens,
    reading_module,
    unscored_beginning,
    word_table,
)
from anytune.models.hyperprompt_config import HyperPromptConfig, read_settings
from tests.models.kinds import make_config, make_model

VOCABULARY = 96
SMALL = HyperPromptConfig(components=3, length=4)


def hyperprompt(kind: str = "bert", seed: int = 1, **settings):
    return make_hyperprompt(
        make_model(kind, VOCABULARY), HyperPromptConfig(**{"components": 3, "length": 4, **settings}), seed
    )


def texts(rows: int = 3, length: int = 10, seed: int = 7):
    return torch.randint(5, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------- arithmetic


def test_one_weight_gives_a_component_and_equal_weights_their_mean():
    components = drawn(4, 5, 6)
    assert torch.equal(mixture(torch.eye(4), components), components)
    mean = mixture(torch.full((1, 4), 0.25), components)[0]
    assert torch.allclose(mean, components.mean(dim=0), atol=1e-6)
    loops = sum(weight * part for weight, part in zip(drawn(4, seed=1), components, strict=True))
    assert torch.allclose(mixture(drawn(4, seed=1)[None], components)[0], loops, atol=1e-6)


def test_softmax_mixtures_lie_between_the_components_and_know_nothing_of_their_order():
    components, scores = drawn(4, 5, 6), drawn(7, 4, seed=1)
    prompts = mixture(mixing_weights(scores, "softmax", 0.5), components)
    assert bool((prompts >= components.amin(dim=0) - 1e-6).all())
    assert bool((prompts <= components.amax(dim=0) + 1e-6).all())
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(mixture(mixing_weights(scores[:, order], "softmax", 0.5), components[order]), prompts,
                          atol=1e-6)  # fmt: skip
    assert torch.equal(mixing_weights(scores, "linear"), scores)
    assert not torch.allclose(mixing_weights(scores, "softmax", 2.0), mixing_weights(scores, "softmax", 1.0))


def test_one_component_with_softmax_gives_every_text_the_same_prompt():
    made = hyperprompt(components=1, mix="softmax")
    prompts = made(texts())
    assert torch.equal(prompts, made.components.expand(3, -1, -1))
    assert not torch.equal(hyperprompt(components=1)(texts())[0], hyperprompt(components=1)(texts())[1])


def test_pooling_takes_tokens_alone():
    hidden, mask = drawn(3, 4, 2), torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]]).bool()
    mean, first = pooled(hidden, mask, "mean"), pooled(hidden, mask, "first")
    for row in range(3):
        own = hidden[row][mask[row]]
        assert torch.allclose(mean[row], own.mean(dim=0) if len(own) else torch.zeros(2))
        assert torch.equal(first[row], own[0] if len(own) else torch.zeros(2))


def test_what_is_read_of_a_row_is_what_a_loop_would_read():
    generator = torch.Generator().manual_seed(3)
    mask = torch.randint(0, 2, (40, 6), generator=generator)
    allowed = torch.randint(0, 2, (40, 6), generator=generator)
    mask[0] = 0
    for reads in (None, 1, 2):
        for may in (None, allowed):
            found = readable_tokens(mask, may, reads)
            for row in range(40):
                places = [i for i in range(6) if mask[row, i] and (may is None or may[row, i])][:reads]
                places = places or [i for i in range(6) if mask[row, i]][:1] or [0]
                assert found[row].nonzero().flatten().tolist() == places


def test_the_unscored_beginning_ends_at_the_first_label():
    labels = torch.tensor([[-100, -100, 5, -100], [1, 2, 3, 4], [-100, -100, -100, -100]])
    assert unscored_beginning(labels).tolist() == [[True, True, False, False], [False] * 4, [True] * 4]


# ---------------------------------------------------------------------- what it reads


@pytest.mark.parametrize("settings", [{}, {"encoder": "embeddings"}, {"pooling": "first", "layers": 0}])
@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "gpt2", "llama", "t5"])
def test_a_prompt_is_made_of_its_own_text_alone(kind, settings):
    made, ids = hyperprompt(kind, **settings), texts()
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    if kind == "roberta":
        ids = ids.masked_fill(mask == 0, 1)
    weights = made.weights(ids, mask)
    assert weights.shape == (3, 3)
    assert torch.allclose(made.weights(ids[1:2, :6]), weights[1:2], atol=1e-5)
    wide = nn.functional.pad(ids, (0, 5), value=1), nn.functional.pad(mask, (0, 5))
    assert torch.allclose(made.weights(*wide), weights, atol=1e-5)
    other = ids.clone()
    other[0] = texts(1, seed=8)[0]
    moved = made.weights(other, mask)
    assert torch.allclose(moved[1:], weights[1:], atol=1e-6)
    assert not torch.allclose(moved[0], weights[0], atol=1e-3)


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "gpt2", "llama", "t5"])
def test_tokens_that_may_not_be_read_change_no_bit(kind):
    made, ids = hyperprompt(kind), texts()
    allowed = torch.zeros_like(ids).bool()
    allowed[0, :4], allowed[1, :7] = True, True
    other = torch.where(allowed, ids, texts(seed=8))
    other[2, 0] = ids[2, 0]  # nothing may be read of the third: its first token is
    assert not torch.equal(other, ids)
    assert torch.equal(made.weights(ids, None, allowed), made.weights(other, None, allowed))
    other[0, 3] = ids[0, 3] % 50 + 6
    assert not torch.equal(made.weights(ids, None, allowed)[0], made.weights(other, None, allowed)[0])


def test_reads_bounds_what_is_read():
    made, ids = hyperprompt(reads=3), texts()
    other = ids.clone()
    other[:, 3:] = texts(seed=8)[:, 3:]
    assert torch.equal(made.weights(ids), made.weights(other))
    assert torch.allclose(made.weights(ids), hyperprompt().weights(ids[:, :3]), atol=1e-6)


def test_rows_of_padding_get_a_finite_prompt_and_gradient():
    for kind in ("bert", "gpt2", "t5", "deberta-v2"):
        made, ids = hyperprompt(kind), texts()
        mask = torch.ones_like(ids)
        mask[1] = 0
        prompts = made(ids, mask)
        prompts.sum().backward()
        assert bool(prompts.isfinite().all())
        assert all(bool(weight.grad.isfinite().all()) for weight in made.parameters())


def test_word_order_counts_for_the_frozen_base_and_not_for_its_embeddings_alone():
    ids = texts(1)
    turned = ids.flip(1)
    assert not torch.allclose(hyperprompt().weights(ids), hyperprompt().weights(turned), atol=1e-4)
    bag = hyperprompt(encoder="embeddings")
    assert torch.allclose(bag.weights(ids), bag.weights(turned), atol=1e-5)


def test_embeddings_are_read_where_no_words_are_known():
    model = make_model("bert", VOCABULARY)
    for encoder in ("frozen_base", "embeddings"):
        made = make_hyperprompt(model, HyperPromptConfig(components=3, length=4, encoder=encoder), 1)
        embedded = word_table(model.bert)(texts())
        assert torch.allclose(made.weights(embedded), made.weights(texts()), atol=1e-6)


# ---------------------------------------------------------------------- weights


def test_the_encoder_is_no_parameter_and_never_in_train_mode():
    made = hyperprompt()
    inside = {id(weight) for weight in made.encoder.parameters()}
    assert inside
    assert not inside & {id(weight) for weight in made.parameters()}
    assert made.encoder not in set(made.modules())
    made.train()
    made.requires_grad_(True)
    assert made.net.training
    assert not any(module.training for module in made.encoder.modules())
    assert not any(weight.requires_grad for weight in made.encoder.parameters())
    names = {name.split(".")[0] for name in made.state_dict()}
    assert names == {"components", "net", "weigh", "encoder"}


def test_training_moves_everything_but_the_encoder():
    made = hyperprompt(dropout=0.1).train()
    before = copy.deepcopy(made.state_dict())
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.1, weight_decay=0.1)
    for step in range(2):
        made(texts(seed=step)).square().sum().backward()
        optimizer.step()
    after = made.state_dict()
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved == {name for name in after if not name.startswith("encoder.")}


def test_the_count_of_trained_weights_follows_from_the_settings():
    made = hyperprompt(layers=2, width=24, heads=3, components=5, length=7)
    d, w, layers, m, length = 16, 24, 2, 5, 7
    block = (3 * w * w + 3 * w) + (w * w + w) + (4 * w * w + 4 * w) + (4 * w * w + w) + 4 * w
    expected = (d * w + w) + layers * block + 2 * w + (w * m + m) + m * length * d
    assert sum(weight.numel() for weight in made.parameters()) == expected


def test_equal_seeds_give_equal_bits_and_torch_is_left_as_it_was():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second, other = hyperprompt(seed=1), hyperprompt(seed=1), hyperprompt(seed=2)
    assert torch.equal(state, torch.get_rng_state())
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    assert not torch.equal(first.components, other.components)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_fresh_prompts_are_about_as_large_as_words():
    model = make_model("bert", VOCABULARY)
    words = word_table(model.bert).weight.detach().std()
    for settings in ({}, {"init": "vocabulary"}):
        made = make_hyperprompt(model, HyperPromptConfig(components=32, length=10, **settings), 1).requires_grad_(
            False
        )
        assert 0.5 < float(made(texts(20)).std() / words) < 2
        assert float(made.components.std() * 32**0.5 / words) == pytest.approx(1, abs=0.1)


def test_components_from_the_vocabulary_are_embeddings_of_words():
    model = make_model("electra", VOCABULARY)
    made = make_hyperprompt(model, HyperPromptConfig(components=3, length=4, init="vocabulary", mix="softmax"), 1)
    rows = made.components.detach().flatten(0, 1)
    table = word_table(model.electra).weight.detach()
    assert rows.shape == (12, 8)
    assert bool((rows[:, None] == table[None]).all(dim=-1).any(dim=1).all())


def test_random_prompts_have_the_moments_of_mixtures_and_draw_from_their_own_generator():
    made = hyperprompt(components=6)
    state = torch.get_rng_state()
    for kind in ("gaussian", "mixture"):
        prompts = made.random(20_000, torch.Generator().manual_seed(1), kind)
        again = made.random(20_000, torch.Generator().manual_seed(1), kind)
        assert torch.equal(prompts, again)
        assert not prompts.requires_grad
        expected = made.components.detach().square().sum(dim=0).sqrt()
        assert torch.allclose(prompts.std(dim=0), expected, rtol=0.05)
        assert bool((prompts.mean(dim=0).abs() < 0.05 * expected).all())
    assert torch.equal(state, torch.get_rng_state())
    inside = hyperprompt(components=6, mix="softmax")
    drawn_inside = inside.random(20_000, torch.Generator().manual_seed(1))
    parts = inside.components.detach()
    assert torch.allclose(drawn_inside.std(dim=0), parts.std(dim=0, unbiased=False), rtol=0.05)
    between = inside.random(50, torch.Generator().manual_seed(1), "mixture")
    assert bool((between <= parts.amax(dim=0) + 1e-6).all())
    mixed = made.random(50, torch.Generator().manual_seed(1), "mixture").flatten(1)
    assert torch.linalg.matrix_rank(mixed) == 6


def test_copies_share_the_encoder_until_one_is_given_another():
    made = hyperprompt()
    copied = copy.deepcopy(made)
    assert copied.encoder is made.encoder
    assert copied.components is not made.components
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    moved = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in before.items()}
    copied.load_state_dict(moved)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())
    assert all(torch.equal(tensor, moved[name]) for name, tensor in copied.state_dict().items())
    assert not any(weight.requires_grad for weight in copied.encoder.parameters())


def test_a_state_that_lacks_encoder_tensors_or_has_foreign_ones_is_refused():
    made = hyperprompt()
    state = made.state_dict()
    lost = next(name for name in state if name.startswith("encoder."))
    with pytest.raises(RuntimeError, match=lost):
        made.load_state_dict({name: tensor for name, tensor in state.items() if name != lost})
    with pytest.raises(RuntimeError, match=r"encoder\.foreign"):
        made.load_state_dict({**state, "encoder.foreign": torch.zeros(1)})


def test_a_precision_reaches_the_encoder_too():
    made = hyperprompt().to(torch.bfloat16)
    assert {tensor.dtype for tensor in made.state_dict().values()} == {torch.bfloat16}
    assert made(texts()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_a_stored_one_is_made_again_bit_for_bit(kind):
    model = make_model(kind, VOCABULARY)
    made = make_hyperprompt(model, HyperPromptConfig(components=3, length=4), 1)
    other = make_model(kind, VOCABULARY, seed=1)  # an upgraded base: the encoder stays that of the first
    anatomy = anatomy_of(model)
    again = hyperprompt_from(reading_module(other, anatomy), made.config, made.state_dict(), anatomy)
    assert torch.equal(again(texts()), made(texts()))
    assert again.config == made.config
    lacking = {name: tensor for name, tensor in made.state_dict().items() if name != "components"}
    with pytest.raises(BaseError, match="components: missing"):
        hyperprompt_from(reading_module(other, anatomy), made.config, lacking, anatomy)
    with pytest.raises(BaseError, match="not of such"):
        hyperprompt_from(reading_module(other, anatomy), made.config, {**made.state_dict(), "x": lacking}, anatomy)
    wrong = {**made.state_dict(), "components": torch.zeros(3, 5, 16)}
    with pytest.raises(BaseError, match=r"\[3, 5, 16\] in the file, \[3, 4, 16\]"):
        hyperprompt_from(reading_module(other, anatomy), made.config, wrong, anatomy)


# ---------------------------------------------------------------------- settings


def test_settings_survive_json_and_unknown_or_missing_ones_are_named(tmp_path):
    config = HyperPromptConfig(components=3, layers=0, mix="softmax", temperature=0.5, reads=9, position="append")
    assert HyperPromptConfig.from_json(config.to_json()) == config
    values = json.loads(config.to_json())
    for wrong, text in (({**values, "componets": 1}, "componets"), ({**values, "format": 2}, "another format"),
                        ({**values, "components": 0}, "components is 0"), ([], "no object")):  # fmt: skip
        with pytest.raises(SettingsError, match=text):
            HyperPromptConfig.from_json(json.dumps(wrong))
    del values["mix"]
    with pytest.raises(SettingsError, match="lack mix"):
        HyperPromptConfig.from_json(json.dumps(values))
    assert read_settings(tmp_path) is None
    (tmp_path / "hyperprompt.json").write_text("{")
    with pytest.raises(BaseError, match="no JSON"):
        read_settings(tmp_path)
    (tmp_path / "hyperprompt.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(BaseError, match=r"hyperprompt\.json"):
        read_settings(tmp_path)


@pytest.mark.parametrize("settings", [
    {"components": 0}, {"length": 2.5}, {"layers": -1}, {"heads": 0}, {"width": True}, {"encoder": "bert"},
    {"pooling": "max"}, {"mix": "sum"}, {"temperature": 0}, {"temperature": float("nan"), "mix": "softmax"},
    {"temperature": 2.0}, {"position": "middle"}, {"init": "zeros"}, {"dropout": 1.0}, {"dropout": "a"}, {"reads": 0},
    {"width": 10, "heads": 3}, {"components": None},
])  # fmt: skip
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(SettingsError, match=r"hyperprompt: .*\n.*"):
        HyperPromptConfig(**settings)


def test_what_the_settings_leave_open_is_chosen_by_the_base():
    deep = make_config("bert", VOCABULARY, num_hidden_layers=9)
    assert SMALL.resolved(deep).layers == 6
    assert SMALL.resolved(make_config("bert", VOCABULARY)).layers == 2
    chosen = SMALL.resolved(make_config("t5", VOCABULARY))
    assert (chosen.width, chosen.heads, chosen.position) == (16, 2, "after_first")
    assert SMALL.resolved(make_config("gpt2", VOCABULARY)).position == "prepend"
    odd = HyperPromptConfig(width=9).resolved(make_config("bert", VOCABULARY))
    assert (odd.width, odd.heads) == (9, 1)
    with pytest.raises(SettingsError, match="heads is 3"):
        HyperPromptConfig(heads=3).resolved(make_config("bert", VOCABULARY))
    made = hyperprompt(layers=0)
    assert not made.net.blocks
    assert HyperPromptConfig.from_json(made.config.to_json()) == made.config
