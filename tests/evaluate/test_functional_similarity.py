from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from anytune.data.batches import encode_task, evaluation_batches
from anytune.data.tasks import Example
from anytune.engine.runtime import make_runtime
from anytune.errors import DataError, DeltaError
from anytune.evaluate.functional_similarity import functional_similarity, head_similarity, linear_cka
from anytune.models.anatomy import anatomy_of
from anytune.models.base import load_base
from tests.models.kinds import KINDS, make_kind

TEXTS = ("the old owl is near the oak", "a fox", "slate and chalk and flint with some moss under the rose", "dog bear")


@pytest.fixture(scope="module")
def runtime():
    return make_runtime("fp32")


def batches_of(base, size: int = 2):
    rows = [Example(text, None, 0) for text in TEXTS]
    return list(evaluation_batches(encode_task(rows, base.tokenizer(), 32, None), size))


def two(make, *seeds):
    return [make.task_model("classification", ["a", "b"], seed=seed)[0] for seed in seeds]


def test_heads_by_hand():
    """The sums written out: one head, two texts, the second with a padded place."""
    draw = torch.Generator().manual_seed(0)
    first, second = (torch.rand(2, 1, 3, 3, generator=draw) for _ in range(2))
    mask = torch.tensor([[True, True, True], [True, True, False]])
    js = cosine = 0.0
    for text in range(2):
        real = mask[text].nonzero().reshape(-1)
        for query in real:
            p, q = (one[text, 0, query][real].double() for one in (first, second))
            p, q = p / p.sum(), q / q.sum()
            m = (p + q) / 2
            js += 1 - float((p * (p / m).log() + q * (q / m).log()).sum() / 2) / np.log(2)
            cosine += float(p @ q / p.norm() / q.norm())
    # whatever a padded place holds must not count
    for one in (first, second):
        one[1, :, :, 2] = 0.7
    found = head_similarity(first, second, mask, mask)
    assert found[0].item() == pytest.approx(js, rel=1e-5)
    assert found[1].item() == pytest.approx(cosine, rel=1e-5)


def test_equal_attention_is_exactly_one_and_disjoint_attention_exactly_zero():
    there = torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])
    other = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]]])
    every = torch.ones(1, 2, dtype=torch.bool)
    assert head_similarity(there, there, every, every)[0].item() == 2
    first = torch.tensor([[True, False]])
    js, cosine = head_similarity(there, other, first, every)
    assert js.item() == pytest.approx(0, abs=1e-6)
    assert cosine.item() == 0


def test_cka_is_that_of_gram_matrices_and_blind_to_rotation():
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 5, generator=draw), torch.randn(20, 7, generator=draw) + 3
    centring = torch.eye(20, dtype=torch.float64) - 1 / 20
    k, l = (centring @ one.double() @ one.double().T @ centring for one in (x, y))  # noqa: E741
    assert linear_cka(x, y) == pytest.approx(float((k * l).sum() / k.norm() / l.norm()))
    turned, _ = torch.linalg.qr(torch.randn(5, 5, generator=draw, dtype=torch.float64))
    assert linear_cka(x, 3 * x.double() @ turned + 1) == pytest.approx(1)
    assert np.isnan(linear_cka(torch.ones(4, 2), y[:4]))


def test_a_model_is_like_itself_in_every_head_and_layer(tiny_base, runtime):
    base = load_base(tiny_base)
    model = two(base, 0)[0]
    found = functional_similarity(model, copy.deepcopy(model), batches_of(base), base.anatomy, runtime)
    assert found.js.shape == (2, 2)
    assert (found.js == 1).all()
    assert np.allclose(found.cosine, 1)
    assert found.cka.shape == (3,)
    assert np.allclose(found.cka, 1)
    assert (found.null_js < 1).all()
    assert found.above_null == 1.0
    assert found.texts == 4
    assert found.record()["mean_js"] == 1.0


def test_the_null_is_what_heads_that_do_not_belong_together_give(tiny_base, other_base, runtime):
    """With two heads the only shuffle exchanges them: the null of a model with itself can be made by hand."""
    base = load_base(tiny_base)
    model = two(base, 0)[0]
    swapped = copy.deepcopy(model)
    with torch.no_grad():
        for block in base.anatomy.block_modules(swapped):
            for linear in (block.attention.self.query, block.attention.self.key):
                for tensor in (linear.weight, linear.bias):
                    tensor.copy_(tensor.roll(16, dims=0))
    # values and output are left alone, so only the first layer reads the same hidden states
    found = functional_similarity(model, model, batches_of(base), base.anatomy, runtime)
    exchanged = functional_similarity(model, swapped, batches_of(base), base.anatomy, runtime)
    assert np.allclose(exchanged.js[0], found.null_js[0])
    assert np.allclose(exchanged.null_js[0], found.js[0])


def test_batches_do_not_matter(tiny_base, other_base, runtime):
    bases = [load_base(folder) for folder in (tiny_base, other_base)]
    models = [two(base, 0)[0] for base in bases]
    found = [functional_similarity(*models, batches_of(bases[0], size), bases[0].anatomy, runtime) for size in (1, 4)]
    assert np.allclose(found[0].js, found[1].js, atol=1e-6)
    assert np.allclose(found[0].cka, found[1].cka, atol=1e-6)
    assert (found[0].js < 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_shows_its_attention_and_attends_as_before_afterwards(kind, tmp_path, runtime):
    bases = [load_base(make_kind(kind, tmp_path / str(seed), seed=seed)) for seed in (0, 1)]
    models = [two(base, 0)[0] for base in bases]
    before = [model.config._attn_implementation for model in models]
    models[0].train()
    found = functional_similarity(*models, batches_of(bases[0]), bases[0].anatomy, runtime)
    assert found.js.shape == found.cosine.shape == (2, 2)
    assert found.cka.shape == (3,)
    assert (found.js > 0).all()
    assert (found.js <= 1).all()
    assert [model.config._attn_implementation for model in models] == before
    assert models[0].training
    assert not models[1].training
    assert np.allclose(
        functional_similarity(models[0], models[0], batches_of(bases[0]), bases[0].anatomy, runtime).js, 1
    )


def test_adapters_and_deep_prompts_are_read_too(tiny_base, runtime):
    from anytune.models.peft_models import make_lora
    from anytune.models.soft_prompt_config import SoftPromptConfig
    from anytune.models.soft_prompts import attach_prompt, make_prompt

    base = load_base(tiny_base)
    model, head = base.task_model("classification", ["a", "b"], seed=0)
    plain = copy.deepcopy(model)
    wrapped = make_lora(copy.deepcopy(model), head_names=head, r=2, seed=0)  # B is zero: the same answers
    assert (functional_similarity(plain, wrapped, batches_of(base), base.anatomy, runtime).js == 1).all()
    for kind in ("deep", "input"):
        prompted = copy.deepcopy(model)
        config = SoftPromptConfig(kind=kind, length=3)
        attach_prompt(prompted, make_prompt(prompted, config, base.anatomy, 0), base.anatomy)
        found = functional_similarity(prompted, prompted, batches_of(base), base.anatomy, runtime)
        assert (found.js == 1).all()
        assert np.allclose(found.cka, 1)
        if kind == "deep":
            with pytest.raises(DeltaError, match="more places than the other"):
                functional_similarity(plain, prompted, batches_of(base), base.anatomy, runtime)


def test_other_depths_and_no_texts_are_refused(tiny_base, tmp_path, runtime):
    base = load_base(tiny_base)
    deeper = load_base(make_kind("bert", tmp_path / "deeper", num_hidden_layers=3))
    models = [two(one, 0)[0] for one in (base, deeper)]
    with pytest.raises(DeltaError, match="2 layers of 2 heads, the other 3 layers of 2 heads"):
        functional_similarity(*models, batches_of(base), anatomy_of("bert"), runtime)
    with pytest.raises(DataError, match="no text"):
        functional_similarity(models[0], models[0], [], anatomy_of("bert"), runtime)
