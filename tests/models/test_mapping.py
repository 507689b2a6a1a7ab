"""Maps between bases of different shape: pieces against naive oracles, the whole on a base that was turned."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from anytune.errors import DeltaError
from anytune.models.anatomy import anatomy_of
from anytune.models.mapping import (
    Factors,
    HiddenMap,
    align,
    hidden_map,
    least_squares,
    linear_cka,
    map_lora,
    resemblance,
    shared_words,
)
from anytune.models.permutation import permute, symmetries
from tests.models.test_permutation import model_of, shuffled, tensors_of


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_shared_words_stand_at_their_numbers():
    old, new = shared_words({"a": 0, "b": 1, "c": 2}, {"c": 0, "d": 1, "a": 5})
    assert old.tolist() == [0, 2]
    assert new.tolist() == [5, 0]


def test_least_squares_finds_a_map_that_was_planted_and_the_nearest_otherwise():
    source, planted = drawn(1, 40, 6), drawn(2, 6, 9)
    torch.testing.assert_close(least_squares(source, source @ planted), planted, rtol=0, atol=1e-6)
    noisy = source @ planted + drawn(3, 40, 9)
    wanted = torch.linalg.lstsq(source, noisy).solution
    torch.testing.assert_close(least_squares(source, noisy), wanted, rtol=0, atol=1e-6)
    with pytest.raises(DeltaError, match="cannot be fitted"):
        least_squares(source * float("nan"), noisy)


def test_linear_cka_is_one_for_turned_states_and_small_for_others():
    states = drawn(1, 200, 5)
    turn = torch.linalg.qr(drawn(2, 5, 5)).Q
    assert linear_cka(states, 3.0 * states @ turn + 7.0) == pytest.approx(1.0, abs=1e-12)
    assert linear_cka(states, drawn(3, 200, 5)) < 0.1

    def gram(rows):
        centred = rows - rows.mean(dim=0)
        return centred @ centred.T

    other = drawn(4, 200, 3) + states[:, :3]
    left, right = gram(states), gram(other)
    wanted = (left * right).sum() / (left.norm() * right.norm())
    assert linear_cka(states, other) == pytest.approx(float(wanted), abs=1e-12)
    assert resemblance([states], [other, states])[0, 1] == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4), (1, 3), (2, 6)])
@pytest.mark.parametrize("seed", range(5))
def test_no_other_alignment_in_order_has_a_larger_sum(shape, seed):
    scores = drawn(seed, *shape)
    rows, columns = shape
    pairs = min(shape)
    best = max(
        sum(float(scores[i, j]) for i, j in zip(old, new, strict=True))
        for old in combinations(range(rows), pairs)
        for new in combinations(range(columns), pairs)
    )
    found = align(scores)
    given = [(old, new) for new, old in enumerate(found) if old >= 0]
    assert [old for old, _ in given] == sorted({old for old, _ in given})
    assert sum(float(scores[i, j]) for i, j in given) == pytest.approx(best)
    assert len(given) == pairs


def factors_for(tensors, units, transposed: bool) -> dict[str, Factors]:
    made = {}
    for number, name in enumerate(sorted({m.name for one in units for m in one.members if m.name.endswith("weight")})):
        outs, ins = tensors[name].shape[::-1] if transposed else tensors[name].shape
        made[name.removesuffix(".weight")] = Factors(drawn(number, 3, ins), drawn(100 + number, outs, 3))
    return made


def lora_of(kind: str):
    model = model_of(kind)
    anatomy, tensors = anatomy_of(model), tensors_of(model)
    units = symmetries({name: tensor.shape for name, tensor in tensors.items()}, anatomy, model.config)
    return anatomy, tensors, units, factors_for(tensors, units, anatomy.transposed)


@pytest.mark.parametrize("neurons", ["paired", "mixed"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "modernbert", "llama"])
def test_onto_the_same_base_the_differences_come_out_as_they_went_in(kind, neurons):
    anatomy, tensors, units, factors = lora_of(kind)
    rows = tensors[anatomy.word_embeddings]
    hidden = hidden_map(rows, rows)
    made = map_lora(factors, tensors, tensors, units, units, anatomy.blocks, [0, 1], hidden, neurons)
    assert made.keys() == factors.keys()
    for name, one in made.items():
        feeds = any(part in name for part in ("intermediate", "c_fc", "up_proj", "gate_proj", "Wi", "mlp", "output"))
        if neurons == "mixed" and feeds and ".attention." not in name:
            continue  # more neurons than hidden entries: least squares gives a projection of them
        torch.testing.assert_close(one.b @ one.a, factors[name].b @ factors[name].a, rtol=0, atol=1e-4)


def test_onto_a_turned_and_permuted_base_the_differences_turn_and_permute_along():
    """Hidden states through an invertible map, heads and neurons in another order: the exact answer is known."""
    anatomy, tensors, units, factors = lora_of("bert")
    there = torch.eye(16, dtype=torch.float64) + 0.15 * drawn(5, 16, 16)  # x_new = there^T x_old
    back = torch.linalg.inv(there).T  # x_old = back x_new

    def turned(matrices):
        """Maps that read hidden states read them through ``back``, those that write them write through ``there``."""
        return {
            member.name: there.T @ matrices[member.name] if member.role in ("out", "down")
            else matrices[member.name] @ back
            for one in units for member in one.members if member.name.endswith("weight")
        }  # fmt: skip

    orders, words = shuffled(units, anatomy), anatomy.word_embeddings
    new = permute({**tensors, **turned(tensors), words: tensors[words] @ there}, units, orders)
    hidden = hidden_map(tensors[words], new[words])
    torch.testing.assert_close(hidden.writing, there, rtol=0, atol=1e-5)
    torch.testing.assert_close(hidden.reading, back, rtol=0, atol=1e-5)
    made = map_lora(factors, tensors, new, units, units, anatomy.blocks, [0, 1], hidden)
    products = {f"{name}.weight": one.b @ one.a for name, one in factors.items()}
    wanted = permute(turned(products), units, orders)
    for name, one in made.items():
        torch.testing.assert_close(one.b @ one.a, wanted[f"{name}.weight"], rtol=0, atol=1e-4)


def test_a_block_without_a_partner_gets_nothing_and_others_their_partners_factors():
    anatomy, tensors, units, factors = lora_of("bert")
    rows = tensors[anatomy.word_embeddings]
    made = map_lora(factors, tensors, tensors, units, units, anatomy.blocks, [-1, 1], hidden_map(rows, rows))
    assert made.keys() == {name for name in factors if name.startswith("encoder.layer.1.")}


def test_more_heads_and_neurons_than_before_get_zeros():
    """The new base has the old one's units and as many again, far from all old ones."""
    anatomy, tensors, units, factors = lora_of("bert")
    wide, grown = dict(tensors), []
    for number, one in enumerate(units):
        members = []
        for member in one.members:
            own = tensors[member.name]
            more = 1e-3 * drawn(number, *own.shape)
            wide[member.name] = torch.cat([own, more], dim=member.dim)
            members.append(type(member)(member.name, member.role, member.dim, 0, 2 * member.length))
        grown.append(type(one)(one.key, one.kind, 2 * one.count, one.sharing, tuple(members)))
    eye = torch.eye(16, dtype=torch.float64)
    made = map_lora(factors, tensors, wide, units, grown, anatomy.blocks, [0, 1], HiddenMap(eye, eye))
    for one in units:
        for member in one.members:
            if not member.name.endswith("weight"):
                continue
            product = made[member.module].b @ made[member.module].a
            first, rest = product.split(member.length, dim=member.dim)
            wanted = factors[member.module].b @ factors[member.module].a
            torch.testing.assert_close(first, wanted, rtol=0, atol=1e-4)
            assert rest.abs().max() < 1e-6
