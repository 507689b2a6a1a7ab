from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from anytune.errors import MethodError
from anytune.methods.of_stream import measuring_batches
from anytune.methods.pretrain.das import DAS, contrastive_loss, fallen, importance, mean_token
from anytune.methods.units import gated
from tests.methods.pretrain.little_stream import Little, close, same, sgd, weights

QUICK = {"examples": 6, "rows": 2}
HEADS = "bert.encoder.layer.0.attention.heads"
NEURONS = "bert.encoder.layer.1.output.neurons"
OUTPUTS = "bert.encoder.layer.1.output.outputs"


@pytest.fixture
def little(tiny_base, tiny_domain):
    return lambda **given: Little(tiny_base, tiny_domain, **given)


@pytest.fixture(scope="module")
def first_stage(tiny_base, tiny_domain):
    """A stage on a base that carries nothing: the run, what the proxy gave, and what it left."""
    made, method = Little(tiny_base, tiny_domain, steps=2, dropout=0.2), DAS(**QUICK, contrast=0.0)
    made.model.train()
    made.prepared(method)
    proxy = dict(method._importance)
    made.train([method], prepared=True)
    return made, proxy, made.finish(method)


# ---------------------------------------------------------------------- pure functions


def test_importance_is_tanh_of_the_z_score_by_hand():
    values = [3.0, -1.0, 0.5, 0.5]
    mean = sum(values) / 4
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 4)
    expected = [abs(math.tanh((value - mean) / deviation)) for value in values]
    assert importance(torch.tensor(values)).tolist() == pytest.approx(expected, abs=1e-6)
    assert importance(1e-20 * torch.tensor(values)).tolist() == pytest.approx(expected, abs=1e-6), "of any scale"


@pytest.mark.parametrize("value", [0.0, 0.1, -1e-30, 1e20])
def test_a_part_whose_gradients_are_all_alike_has_importance_0(value):
    rounded = torch.full((7,), value) * torch.tensor([1, 1, 1 + 1e-7, 1, 1, 1 - 1e-7, 1])
    assert importance(rounded).tolist() == [0] * 7
    assert importance(torch.tensor([value])).tolist() == [0]


def test_the_contrast_is_the_written_out_sum():
    one, other, known = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def similar(left, right):
        return math.exp(functional.cosine_similarity(left, right, dim=0).item() / 0.3)

    terms = []
    for b in range(4):
        total = sum(similar(one[b], other[c]) + similar(one[b], known[c]) for c in range(4))
        terms.append(-math.log(similar(one[b], other[b]) / total))
    assert contrastive_loss(one, other, known, 0.3).item() == pytest.approx(sum(terms) / 4, abs=1e-12)


def test_a_texts_representation_leaves_out_its_padding():
    hidden = torch.tensor([[[1.0], [3.0], [100.0]], [[5.0], [6.0], [7.0]]])
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert mean_token(hidden, mask).tolist() == [[2.0], [0.0]]


def test_units_fall_out_with_their_share_and_the_mean_stays():
    drawn = torch.stack([fallen(100, 0.25, torch.Generator().manual_seed(seed)) for seed in range(200)])
    assert drawn.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert drawn.mean().item() == pytest.approx(1.0, abs=0.02)


# ---------------------------------------------------------------------- importances


def test_importances_after_a_stage_are_the_larger_of_the_proxys_and_the_texts(first_stage):
    made, proxy, carried = first_stage
    found = carried["das"]["importance"]
    assert found.keys() == proxy.keys()
    assert len(found) == 6
    made.model.eval()
    for key, module, side in (
        (HEADS, made.model.bert.encoder.layer[0].attention.output.dense, "in"),
        (NEURONS, made.model.bert.encoder.layer[1].output.dense, "in"),
        (OUTPUTS, made.model.bert.encoder.layer[1].output.dense, "out"),
    ):
        count = len(found[key])
        gates = torch.ones(count, dtype=torch.float64, requires_grad=True)
        size = (module.in_features if side == "in" else module.out_features) // count
        wide = gates.repeat_interleave(size)
        handle = (
            module.register_forward_pre_hook(lambda _, given, wide=wide: (given[0] * wide,))
            if side == "in"
            else module.register_forward_hook(lambda _, given, out, wide=wide: out * wide)
        )
        summed, items = 0, 0
        for batch in measuring_batches(made.run, DAS(), "units", 6, 2):
            loss = made.model(**{key: batch[key] for key in ("input_ids", "attention_mask", "labels")}).loss
            summed = summed + loss * batch["num_items"]
            items += batch["num_items"]
        (gradient,) = torch.autograd.grad(summed / items, [gates])
        handle.remove()
        expected = torch.maximum(importance(gradient).float(), proxy[key])
        torch.testing.assert_close(found[key], expected, rtol=0, atol=1e-6)
        assert (key == HEADS) == torch.equal(found[key], proxy[key]), "of two heads both are always equally far out"


def test_the_proxy_is_not_zero_although_nothing_was_trained_and_draws_nothing_from_torch(first_stage, little):
    proxy = first_stage[1]
    assert all(0 < values.max() < 1 for values in proxy.values())
    made, method = little(steps=2), DAS(**QUICK)
    before, state = weights(made.model), torch.get_rng_state()
    made.prepared(method)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(weights(made.model), before)
    assert same(method._importance, proxy), "equal for equal seeds"
    assert not same(little(seed=5).prepared(DAS(**QUICK))._importance, proxy)


def test_a_later_stage_takes_over_what_is_carried_and_measures_no_proxy(first_stage, little):
    carried = first_stage[2]
    made, method = little(carried=carried), DAS(**QUICK)
    made.prepared(method)
    assert same(method._importance, carried["das"]["importance"])
    made.train([method], prepared=True)
    left = made.finish(method)["das"]["importance"]
    assert all((left[key] >= values).all() for key, values in carried["das"]["importance"].items())
    assert not same(left, carried["das"]["importance"])


def test_importances_of_other_units_are_an_error_and_so_is_no_unit_at_all(little):
    for left, match in (
        ({"elsewhere": torch.ones(2)}, "left with this base is for other weights"),
        ({HEADS: torch.ones(3)}, r"has the shape \[3\], the weight \[2\]"),
    ):
        with pytest.raises(MethodError, match=match):
            little(carried={"das": {"importance": left}}).prepared(DAS())
    with pytest.raises(MethodError, match="no units to measure"):
        little().prepared(DAS(heads=False, neurons=False, outputs=False))


def test_units_that_are_switched_off_are_neither_measured_nor_protected(little):
    method = little().prepared(DAS(heads=False, outputs=False, **QUICK))
    assert sorted(method._importance) == [f"bert.encoder.layer.{block}.output.neurons" for block in (0, 1)]
    assert not any("attention" in name for name in method._factors)


# ---------------------------------------------------------------------- the soft mask


def carrying(key, values):
    return {"das": {"importance": {key: torch.tensor(values)}}}


def test_gradients_of_a_units_weights_are_multiplied(little):
    """One head of importance 0.75, the other of 0: rows of queries, keys, values, and columns of the output map."""
    made, plain = little(carried=carrying(HEADS, [0.75, 0.0]), steps=1), little(steps=1)
    method = DAS(contrast=0.0, protect=0.5)
    kept = {}
    made.prepared(method)
    made.train([method], prepared=True, seen=lambda step: kept.update(grads(made)))
    plain.train([], seen=lambda step: kept.update({f"plain {name}": g for name, g in grads(plain).items()}))
    front = "bert.encoder.layer.0.attention"
    factors = torch.ones(32, dtype=torch.float64)
    factors[:16] = 1 - 0.5 * 0.75
    for name in [name for name in kept if not name.startswith("plain")]:
        expected = kept[f"plain {name}"]
        if name.startswith(f"{front}.self."):
            expected = expected * (factors[:, None] if expected.ndim == 2 else factors)
        elif name == f"{front}.output.dense.weight":
            expected = expected * factors
        torch.testing.assert_close(
            kept[name], expected, rtol=1e-12, atol=1e-15, msg=lambda text, n=name: f"{n} {text}"
        )


def grads(made):
    return {name: parameter.grad.clone() for name, parameter in made.named().items() if parameter.grad is not None}


def test_a_neuron_of_importance_1_never_moves_and_a_map_between_two_kinds_gets_both_factors(little):
    neurons = torch.zeros(64)
    neurons[5] = 1.0
    outputs = torch.zeros(32)
    outputs[7] = 1.0
    carried = {"das": {"importance": {NEURONS: neurons, OUTPUTS: outputs}}}
    made = little(carried=carried)
    start = weights(made.model)
    after = made.train([DAS(contrast=0.0)], optimizer=sgd(made))
    front = "bert.encoder.layer.1"
    held = {
        f"{front}.intermediate.dense.weight": lambda w: w[5], f"{front}.intermediate.dense.bias": lambda w: w[5],
        f"{front}.output.dense.weight": lambda w: torch.cat([w[:, 5], w[7]]),
        f"{front}.output.dense.bias": lambda w: w[7],
    }  # fmt: skip
    for name, part in held.items():
        assert torch.equal(part(after[name]), part(start[name])), name
        assert not torch.equal(after[name], start[name]), name


def test_under_adamw_a_factor_on_the_gradient_hardly_acts_and_one_on_the_update_does(little):
    """Why there are two forms: AdamW divides every entry by its own size."""
    carried = carrying(OUTPUTS, [0.9] * 32)
    name = "bert.encoder.layer.1.output.dense.weight"
    start = weights(little().model)[name]
    far = {}
    for form, protect in (("gradient", 0.0), ("gradient", 1.0), ("update", 1.0)):
        made = little(carried=carried)
        after = made.train([DAS(contrast=0.0 if protect else 1e-9, protect=protect, form=form)])
        far[form, protect] = (after[name] - start).norm().item()
    plain = far["gradient", 0.0]
    assert far["gradient", 1.0] == pytest.approx(plain, rel=0.02)
    assert far["update", 1.0] == pytest.approx(0.1 * plain, rel=0.1)


def test_the_update_form_shortens_the_optimizers_step_once_also_where_it_is_made_in_parts(little):
    from tests.methods.tune.by_hand import InParts

    carried = carrying(OUTPUTS, [0.5] * 16 + [1.0] * 16)
    made, plain = little(carried=carried, steps=1), little(steps=1)
    start = weights(plain.model)
    free = plain.train([])
    after = made.train([DAS(contrast=0.0, form="update")])
    name = "bert.encoder.layer.1.output.dense.weight"
    expected = start[name] + torch.tensor([0.5] * 16 + [0.0] * 16)[:, None] * (free[name] - start[name])
    torch.testing.assert_close(after[name], expected, rtol=0, atol=1e-15)
    assert same({n: w for n, w in after.items() if "layer.1.output.dense" not in n},
                {n: w for n, w in free.items() if "layer.1.output.dense" not in n})  # fmt: skip
    for methods in ([DAS(contrast=0.0, form="update"), InParts()], [InParts(), DAS(contrast=0.0, form="update")]):
        close(little(carried=carried, steps=1).train(methods), after)


def test_without_protection_nothing_is_multiplied_or_measured(little):
    made, method = little(), DAS(protect=0.0, contrast=0.0)
    assert same(made.train([method]), little().train([]))
    assert made.finish(method) == {"das": {}}


# ---------------------------------------------------------------------- the contrast


def test_the_contrast_in_a_step_is_that_of_three_passes_by_hand(first_stage, little):
    carried = first_stage[2]
    made = little(carried=carried, dropout=0.3)
    method = made.prepared(DAS(contrast=0.7))
    made.model.train()
    batch = made.batches.batch(0)
    batch["attention_mask"][0, -4:] = 0
    torch.manual_seed(3)
    method.before_step(made.model)
    batch = method.prepare_batch(batch)
    output = made.objective.forward(made.model, batch)
    terms = method.objective(made.model, batch, output, {"loss": output.loss})
    torch.manual_seed(3)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    passes = [made.model.bert(**inputs).last_hidden_state, made.model.bert(**inputs).last_hidden_state]
    with torch.no_grad(), gated(made.model, method._units, method._importance):
        passes.append(made.model.bert(**inputs).last_hidden_state)
    one, other, known = (mean_token(hidden, batch["attention_mask"]) for hidden in passes)
    assert not torch.equal(one, other)
    assert terms["contrast"].item() == pytest.approx(0.7 * contrastive_loss(one, other, known, 0.05).item(), rel=1e-9)
    assert torch.equal(terms["loss"], output.loss)
    parameters = [made.model.bert.embeddings.word_embeddings.weight]
    (got,) = torch.autograd.grad(terms["contrast"], parameters)
    (expected,) = torch.autograd.grad(0.7 * contrastive_loss(one, other, known, 0.05), parameters)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-12)


def test_no_hook_is_left_after_a_run_or_a_step_that_was_broken_off(first_stage, little):
    made, method = little(carried=first_stage[2], steps=2), DAS(**QUICK)
    made.train([method])
    assert not hooks(made)
    method.before_step(made.model)
    method.prepare_batch(made.batches.batch(0))
    assert hooks(made)
    made.finish(method)
    assert not hooks(made)


def hooks(made):
    return [name for name, module in made.model.named_modules() if module._forward_hooks or module._forward_pre_hooks]
