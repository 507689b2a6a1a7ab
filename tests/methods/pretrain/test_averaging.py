from __future__ import annotations

import pytest
import torch

from anytune.methods.pretrain.averaging import Averaging
from tests.methods.pretrain.little_stream import Little, close, same, sgd, weights


def stage(base, domain, method, begin=None, carried=None, head=()):
    """What a stage begins with, ends in and leaves, and what the next one is given."""
    little = Little(base, domain, carried=carried)
    little.run.head_names = head
    if begin is not None:
        little.model.load_state_dict(begin, strict=False)
    before = weights(little.model)
    trained = little.train([method])
    carried = little.finish(method)
    return before, trained, weights(little.model), carried


def test_the_base_that_is_left_lies_between_both_ends(tiny_base, tiny_domain):
    before, trained, left, _ = stage(tiny_base, tiny_domain, Averaging(share=0.3))
    assert not same(before, trained)
    close(left, {name: 0.7 * before[name] + 0.3 * trained[name] for name in before})
    assert not same(left, trained)


def test_equal_parts_make_it_the_mean_of_the_first_base_and_all_ends(tiny_base, tiny_domain):
    carried, left, ends = None, None, []
    for _ in range(3):
        before, trained, left, carried = stage(tiny_base, tiny_domain, Averaging(form="stages"), left, carried)
        ends += [trained] if ends else [before, trained]
    assert carried == {"averaging": {"stages": 3}}
    close(left, {name: sum(end[name] for end in ends) / 4 for name in left})


def test_the_moving_average_is_that_of_a_naive_loop(tiny_base, tiny_domain):
    little, method = Little(tiny_base, tiny_domain), Averaging(form="steps", decay=0.6)
    naive = weights(little.model)

    def follow(step):
        for name, weight in little.named().items():
            naive[name] = 0.6 * naive[name] + 0.4 * weight.detach()

    trained = little.train([method], seen=follow)
    little.finish(method)
    close(weights(little.model), naive)
    assert not same(weights(little.model), trained)


def test_in_training_the_model_has_its_own_weights(tiny_base, tiny_domain):
    plain = Little(tiny_base, tiny_domain).train([])
    for settings in ({"share": 0.3}, {"form": "stages"}, {"form": "steps"}):
        assert same(Little(tiny_base, tiny_domain).train([Averaging(**settings)]), plain)


@pytest.mark.parametrize("settings", [{"share": 0.3}, {"form": "stages"}, {"form": "steps"}])
def test_a_head_that_was_drawn_at_random_keeps_what_it_learned(settings, tiny_base, tiny_domain):
    head = [name for name in Little(tiny_base, tiny_domain).named() if name.startswith("cls.")]
    _, trained, left, _ = stage(tiny_base, tiny_domain, Averaging(**settings), head=head)
    assert head
    for name in left:
        assert torch.equal(left[name], trained[name]) == (name in head), name


def test_all_of_the_trained_weights_is_plain_training_and_copies_nothing(tiny_base, tiny_domain):
    method = Averaging(share=1.0)
    _, trained, left, _ = stage(tiny_base, tiny_domain, method)
    assert same(trained, left)
    assert method._anchors is None
    assert method._moving is None
    assert method.state_dict() == {}


def test_a_run_that_goes_on_has_its_moving_average_back(tiny_base, tiny_domain):
    settings = {"form": "steps", "decay": 0.6}
    whole, method = Little(tiny_base, tiny_domain), Averaging(**settings)
    state, at_two = {}, {}

    def keep(step):
        if step == 1:
            kept = method.state_dict()["moving"]
            state["moving"] = {name: tensor.clone() for name, tensor in kept.items()}
            at_two.update(weights(whole.model))

    whole.train([method], optimizer=sgd(whole), seen=keep)
    whole.finish(method)
    rest, again = Little(tiny_base, tiny_domain), Averaging(**settings)
    rest.prepared(again)
    rest.model.load_state_dict(at_two, strict=False)
    again.load_state_dict(state)
    rest.train([again], optimizer=sgd(rest), prepared=True, first=2)
    rest.finish(again)
    assert same(weights(rest.model), weights(whole.model))
