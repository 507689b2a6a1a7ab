"""Permutations of neurons and heads: they leave every kind of model as it is, and are found again."""

from __future__ import annotations

import pytest
import torch

from anytune.models.anatomy import anatomy_of
from anytune.models.matching import circuits, head_similarity, match
from anytune.models.permutation import inverse, moved_share, permute, permute_adapter, symmetries
from tests.models.kinds import KINDS, make_model

FOUR_HEADS = {
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "d_kv": 4,
}


def model_of(kind: str, seed: int = 0):
    """A backbone with four heads, two of keys where heads share them."""
    own = {
        "gpt2": ("n_head",), "distilbert": ("n_heads",), "t5": ("num_heads", "d_kv"),
        "t5-gated": ("num_heads", "d_kv"),
        "llama": ("num_attention_heads", "num_key_value_heads"),
        "qwen2": ("num_attention_heads", "num_key_value_heads"),
        "qwen3": ("num_attention_heads", "num_key_value_heads", "head_dim"),
    }.get(kind, ("num_attention_heads",))  # fmt: skip
    model = make_model(kind, 60, seed, "backbone", **{name: FOUR_HEADS[name] for name in own}).double()
    with torch.no_grad():  # as drawn, where a head looks hardly shows in the answers
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.ndim == 2 else 1.0)
    return model


def tensors_of(model) -> dict[str, torch.Tensor]:
    anatomy = anatomy_of(model)
    return {anatomy.canonical(name): tensor.clone() for name, tensor in model.state_dict().items()}


def answers(model, tensors) -> torch.Tensor:
    anatomy = anatomy_of(model)
    model.load_state_dict({name: tensors[anatomy.canonical(name)] for name in model.state_dict()})
    ids = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(1))
    more = {"decoder_input_ids": ids[:, :4]} if anatomy.encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **more).last_hidden_state


def shuffled(units, anatomy, seed: int = 5):
    """Orders that a kind may be brought into, drawn at random."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> torch.Tensor:
        return torch.randperm(count, generator=generator)

    rotary = anatomy.position_table is None and not anatomy.encoder_decoder
    orders = {}
    for one in units:
        if one.kind == "neurons":
            order = draw(one.count)
            orders[one.key] = {"up": order, "down": order}
            continue
        size = one.having("key")[0].length // one.count
        groups = torch.arange(one.count) if anatomy.encoder_decoder else draw(one.count)
        queries, inner = [], {}
        for group in groups.tolist():
            mine = draw(one.sharing) if not anatomy.encoder_decoder else torch.arange(one.sharing)
            queries += [group * one.sharing + head for head in mine.tolist()]
            looks = torch.arange(size) if rotary else draw(size)
            inner[group] = looks, draw(size)
        shared = groups.tolist()
        orders[one.key] = {
            "key": torch.cat([group * size + inner[group][0] for group in shared]),
            "value": torch.cat([group * size + inner[group][1] for group in shared]),
            "query": torch.cat([head * size + inner[head // one.sharing][0] for head in queries]),
            "out": torch.cat([head * size + inner[head // one.sharing][1] for head in queries]),
        }
    return orders


def settings(anatomy) -> dict[str, bool]:
    return {"rotary": anatomy.position_table is None and not anatomy.encoder_decoder,
            "fixed_heads": anatomy.encoder_decoder}  # fmt: skip


@pytest.mark.parametrize("kind", [*KINDS, "t5-gated"])
def test_permuting_heads_and_neurons_of_a_base_gives_equal_answers_and_is_found_again(kind):
    model = model_of(kind)
    anatomy, tensors = anatomy_of(model), tensors_of(model)
    units = symmetries({name: tensor.shape for name, tensor in tensors.items()}, anatomy, model.config)
    parts = 5 if anatomy.encoder_decoder else 2
    assert len(units) == 2 * parts
    orders = shuffled(units, anatomy)
    turned = permute(tensors, units, orders)
    assert sum(not torch.equal(turned[name], tensors[name]) for name in tensors) >= 4 * parts
    torch.testing.assert_close(answers(model, turned), answers(model, tensors), rtol=0, atol=1e-9)
    found = match(tensors, turned, units, **settings(anatomy))
    back = permute(tensors, units, found)
    assert all(torch.equal(back[name], turned[name]) for name in tensors)
    assert all(torch.equal(found[key][role], order) for key in orders for role, order in orders[key].items())


def test_a_permutation_that_leaves_out_one_tensor_would_be_seen():
    """The test above can fail: without one member the answers differ."""
    model = model_of("bert")
    anatomy, tensors = anatomy_of(model), tensors_of(model)
    units = symmetries({name: tensor.shape for name, tensor in tensors.items()}, anatomy, model.config)
    turned = permute(tensors, units, shuffled(units, anatomy))
    for name in ("encoder.layer.0.output.dense.weight", "encoder.layer.1.attention.self.key.weight"):
        broken = {**turned, name: tensors[name]}
        assert not torch.allclose(answers(model, broken), answers(model, tensors), atol=1e-9)


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_the_same_base_keeps_its_order(kind):
    model = model_of(kind)
    anatomy, tensors = anatomy_of(model), tensors_of(model)
    units = symmetries({name: tensor.shape for name, tensor in tensors.items()}, anatomy, model.config)
    found = match(tensors, tensors, units, **settings(anatomy))
    assert moved_share(found) == 0
    assert moved_share(shuffled(units, anatomy)) > 0.5
    generator = torch.Generator().manual_seed(2)
    near = {
        name: tensor + 0.001 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }  # fmt: skip
    assert moved_share(match(tensors, near, units, **settings(anatomy))) == 0


def test_the_permuted_difference_on_the_permuted_base_answers_as_the_tuned_model():
    model = model_of("bert")
    anatomy, tensors = anatomy_of(model), tensors_of(model)
    units = symmetries({name: tensor.shape for name, tensor in tensors.items()}, anatomy, model.config)
    generator = torch.Generator().manual_seed(8)
    difference = {
        name: 0.1 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        for name, tensor in tensors.items() if tensor.is_floating_point()
    }  # fmt: skip
    tuned = {name: tensors[name] + difference[name] if name in difference else tensors[name] for name in tensors}
    turned = permute(tensors, units, shuffled(units, anatomy))
    moved = permute(difference, units, match(tensors, turned, units))
    recycled = {name: turned[name] + moved[name] if name in moved else turned[name] for name in tensors}
    torch.testing.assert_close(answers(model, recycled), answers(model, tuned), rtol=0, atol=1e-9)
    plain = {name: turned[name] + difference[name] if name in difference else turned[name] for name in tensors}
    assert not torch.allclose(answers(model, plain), answers(model, tuned), atol=1e-2)


def in_another_order(kind: str):
    """What a test of orders needs: anatomy, tensors, symmetries and drawn orders of a model."""
    model = model_of(kind)
    anatomy, tensors = anatomy_of(model), tensors_of(model)
    units = symmetries({name: tensor.shape for name, tensor in tensors.items()}, anatomy, model.config)
    orders = shuffled(units, anatomy)
    return anatomy, tensors, units, orders


@pytest.mark.parametrize("kind", ["bert", "gpt2", "modernbert", "llama"])
def test_the_factors_of_a_lora_go_the_way_their_product_goes(kind):
    anatomy, tensors, units, orders = in_another_order(kind)
    generator = torch.Generator().manual_seed(8)
    matrices = {member.name for one in units for member in one.members if member.name.endswith("weight")}
    factors, products = {}, {}
    for name in sorted(matrices):
        outs, ins = tensors[name].shape[::-1] if anatomy.transposed else tensors[name].shape
        a, b = torch.randn(3, ins, generator=generator), torch.randn(outs, 3, generator=generator)
        stem = f"base_model.model.{anatomy.in_model(name.removesuffix('.weight'))}"
        factors[f"{stem}.lora_A.weight"], factors[f"{stem}.lora_B.weight"] = a, b
        products[name] = (b @ a).T if anatomy.transposed else b @ a
    factors["base_model.model.score.weight"] = torch.ones(2, 16)
    moved, wanted = permute_adapter(factors, units, orders, anatomy), permute(products, units, orders)
    assert torch.equal(moved["base_model.model.score.weight"], torch.ones(2, 16))
    assert sum(torch.equal(wanted[name], products[name]) for name in matrices) <= 2  # two heads of keys, by chance
    for name in matrices:
        stem = f"base_model.model.{anatomy.in_model(name.removesuffix('.weight'))}"
        product = moved[f"{stem}.lora_B.weight"] @ moved[f"{stem}.lora_A.weight"]
        torch.testing.assert_close(product.T if anatomy.transposed else product, wanted[name])


@pytest.mark.parametrize("kind", ["bert", "gpt2", "modernbert", "llama"])
def test_biases_and_modules_trained_beside_the_factors_go_the_way_those_of_the_base_go(kind):
    anatomy, tensors, units, orders = in_another_order(kind)
    stems = {name: f"base_model.model.{anatomy.in_model(name)}" for name in tensors}
    moved = permute_adapter({stems[name]: tensor for name, tensor in tensors.items()}, units, orders, anatomy)
    wanted = permute(tensors, units, orders)
    assert all(torch.equal(moved[stems[name]], wanted[name]) for name in tensors)
    changed = {name.rpartition(".")[2] for name in tensors if not torch.equal(wanted[name], tensors[name])}
    assert changed == ({"weight", "bias"} if kind in ("bert", "gpt2") else {"weight"})


def test_an_order_and_its_inverse_are_none():
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    assert torch.equal(order[inverse(order)], torch.arange(9))


def test_head_similarity_against_products_made_in_full():
    one = model_of("bert", 1)
    anatomy, first, second = anatomy_of(one), tensors_of(one), tensors_of(model_of("bert", 2))
    [heads, *_] = symmetries({name: tensor.shape for name, tensor in first.items()}, anatomy, one.config)

    def products(tensors, head):
        def part(path):
            rows = slice(4 * head, 4 * head + 4)
            weight = tensors[f"encoder.layer.0.attention.self.{path}.weight"][rows].double()
            return torch.cat([weight, tensors[f"encoder.layer.0.attention.self.{path}.bias"][rows, None].double()], 1)

        out = tensors["encoder.layer.0.attention.output.dense.weight"][:, 4 * head : 4 * head + 4].double()
        return part("query").T @ part("key"), out @ part("value")

    found = head_similarity(circuits(first, heads), circuits(second, heads))
    for i in range(4):
        for j in range(4):
            cosines = [torch.cosine_similarity(a.flatten(), b.flatten(), dim=0)
                       for a, b in zip(products(first, i), products(second, j), strict=True)]  # fmt: skip
            assert float(found[i, j]) == pytest.approx(float(sum(cosines)) / 2, abs=1e-10)
