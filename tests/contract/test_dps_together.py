"""DPS with other methods: each does what it does alone, in the loop, in the Trainer and by hand."""

from __future__ import annotations

import pytest
import torch

from anytune.errors import MethodError
from anytune.methods import create, registry
from tests.contract.bench import Bench, equal
from tests.contract.places import Places


def dps(**settings):
    return create("dps", {"keep": 0.5, "stage_steps": 1, **settings})


TOGETHER = {
    "dps, rdrop, llrd": lambda: [dps(), create("rdrop", {"alpha": 2.0}), create("llrd", {"decay": 0.8})],
    "mix, l2sp": lambda: [dps(variant="mix"), create("l2sp", {"strength": 5.0})],
    "lora, dps": lambda: [create("lora", {"r": 4}), dps()],
    "dps, slca": lambda: [dps(freeze="grad"), create("slca")],
}


@pytest.mark.parametrize("which", TOGETHER)
def test_together_they_give_the_same_bits_in_three_places(which, bench: Bench, tmp_path, monkeypatch):
    monkeypatch.setattr(Places, "methods", lambda self: TOGETHER[which]())
    places = Places(bench, "tune/full", accumulation=2)
    looped = places.loop()
    assert equal(looped, places.by_hand())
    assert equal(looped, places.in_trainer(tmp_path))


@pytest.mark.parametrize("which", TOGETHER)
def test_each_of_them_changes_what_the_others_do(which, bench: Bench):
    both = bench.loop("tune/full", methods=TOGETHER[which]()).after
    for left_out in range(len(TOGETHER[which]())):
        others = [method for place, method in enumerate(TOGETHER[which]()) if place != left_out]
        assert not equal(both, bench.loop("tune/full", methods=others).after)


def test_a_doubled_batch_without_dropout_selects_and_trains_as_the_batch(bench: Bench):
    """The two passes of R-Drop then agree: nothing but rounding may differ."""
    alone = bench.loop("tune/full", methods=[dps()], precise=True, learning_rate=1e-3)
    doubled = bench.loop(
        "tune/full", methods=[dps(), create("rdrop", {"alpha": 2.0})], precise=True, learning_rate=1e-3
    )
    for name, tensor in alone.after.items():
        torch.testing.assert_close(doubled.after[name], tensor, rtol=0, atol=1e-10)


OTHERS = [{"name": "l2sp", "strength": 5.0}, {"name": "recadam", "form": "gradient"}, "recadam"]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_what_others_do_inside_the_optimizers_step_comes_first_in_either_order(other, bench: Bench):
    def method():
        return registry.parse(other, "tune")[0]

    one = bench.loop("tune/full", methods=[dps(variant="mix"), method()])
    assert equal(one.after, bench.loop("tune/full", methods=[method(), dps(variant="mix")]).after)
    assert not equal(one.after, bench.loop("tune/full", methods=[dps(variant="mix")]).after)


def test_two_that_put_other_weights_into_the_model_are_refused_and_dense_is_not_one_of_them():
    with pytest.raises(MethodError, match="'dps' and 'mixout' cannot be combined: both put other weights"):
        registry.parse([{"name": "dps", "variant": "mix"}, "mixout"], "tune")
    registry.parse([{"name": "dps"}, "mixout"], "tune")
    registry.parse([{"name": "dps", "variant": "mix", "keep": 1.0}, "mixout"], "tune")


def test_dps_before_the_adapter_is_refused_with_the_order_to_type(bench: Bench):
    with pytest.raises(MethodError, match="dps was to select from") as caught:
        bench.loop("tune/full", methods=[dps(), create("lora")])
    assert caught.value.fix == "dps last: --method lora --method dps"
