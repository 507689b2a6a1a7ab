"""What DPS promises of its masks, its clock and its state, and what it does at the edges."""

from __future__ import annotations

import copy
import hashlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from anytune.errors import MethodError, SettingsError
from anytune.methods import Run, create
from anytune.methods.gradient_scores import add_squares, present_gradients
from anytune.methods.mixing import mixed
from anytune.methods.selection import exact_mask, share_count
from anytune.methods.tune.dps import StageClock, selection_score
from anytune.models.states import join_state, split_state
from tests.methods.tune.subnetworks import MATRICES, STEPS, Net, Training, adamw, data, loss_of, same, sgd

LENGTH = 4


def dps(**settings):
    return create("dps", {"keep": 0.7, "stage_steps": LENGTH, **settings})


# ---------------------------------------------------------------------- the clock


def test_stages_take_turns():
    clock = StageClock(3)
    assert [clock.selects(done) for done in range(9)] == [False] * 3 + [True] * 3 + [False] * 3
    assert [clock.begins(done) for done in range(7)] == [True, False, False, True, False, False, True]


@pytest.mark.parametrize(
    ("settings", "steps", "length"),
    [({"stage": 0.05}, 468, 23), ({"stage": 0.05}, 690, 34), ({"stage": 0.05}, 30, 1), ({"stage": 0.05}, 10, 1),
     ({"stage": 0.5}, 9, 4), ({"stage_steps": 7}, 468, 7), ({"preset": "paper_code"}, 1605, 80)],
)  # fmt: skip
def test_a_stage_is_a_share_of_the_run_rounded_down(settings, steps, length):
    method = create("dps", settings)
    Training([method], steps=steps)
    assert method._clock.length == length


@pytest.mark.parametrize(
    ("settings", "steps"), [({"stage_steps": 8}, 8), ({"stage_steps": 9}, 8), ({"preset": "paper_code"}, 19)]
)
def test_a_stage_longer_than_the_run_or_of_no_step_is_refused(settings, steps):
    with pytest.raises(MethodError, match=rf"would last \d+ steps, in a run of {steps}") as caught:
        Training([create("dps", settings)], steps=steps)
    assert caught.value.fix == "--set stage_steps=1"


@pytest.mark.parametrize("keep", [0, -0.1, 1.1, float("nan"), "half"])
def test_a_share_outside_0_to_1_is_refused(keep):
    with pytest.raises(SettingsError, match="method 'dps': keep"):
        create("dps", {"keep": keep})


# ---------------------------------------------------------------------- masks


@pytest.mark.parametrize("keep", [0.001, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("variant", ["dense", "mix"])
def test_exactly_k_entries_are_selected_in_every_matrix(variant, keep):
    method = dps(variant=variant, keep=keep)
    training = Training([method]).go(LENGTH + 1)
    for name in MATRICES:
        weight = dict(training.model.named_parameters())[name]
        count = share_count(weight.numel(), keep)
        assert int((~method._frozen[name]).sum()) == count >= 1
        assert int(weight.grad.count_nonzero()) <= count


def test_exactly_k_in_all_with_global_scope_and_not_the_same_share_of_each():
    method = dps(scope="global", keep=0.25)
    training = Training([method]).go(LENGTH + 1)
    sizes = {name: training.weights[name].numel() for name in MATRICES}
    kept = {name: int((~method._frozen[name]).sum()) for name in MATRICES}
    assert sum(kept.values()) == share_count(sum(sizes.values()), 0.25)
    assert kept != {name: share_count(size, 0.25) for name, size in sizes.items()}


def test_dead_units_leave_the_count_exact_and_the_published_rule_selects_everything():
    def deaf(model, step):
        return loss_of(model, step) + 0 * model.second.weight.sum()

    def only_bias(model, step):  # the head's matrix gets a gradient of zeros
        words, labels = data(step)
        return nn.functional.cross_entropy(model.head.bias + 0 * model(words), labels)

    for ties, selected in (("index", share_count(3 * 8, 0.5)), ("threshold", 3 * 8)):
        method = dps(keep=0.5, ties=ties)
        Training([method], loss=only_bias).go(LENGTH + 1)
        assert int((~method._frozen["head.weight"]).sum()) == selected
    method = dps(keep=0.5)
    Training([method], loss=deaf).go(LENGTH + 1)
    assert int((~method._frozen["second.weight"]).sum()) == share_count(96, 0.5)


def test_sums_add_up_and_a_power_of_two_of_the_loss_selects_the_same():
    generator = torch.Generator().manual_seed(0)
    first, second = ({"w": torch.rand(5, 4, generator=generator)} for _ in range(2))
    sums: dict = {}
    for gradients in (first, second):
        add_squares(sums, gradients)
    torch.testing.assert_close(sums["w"], first["w"].square() + second["w"].square())
    scaled: dict = {}
    for gradients in (first, second):
        add_squares(scaled, {"w": 8 * gradients["w"]})
    assert torch.equal(exact_mask(scaled["w"], 7), exact_mask(sums["w"], 7))


def test_the_score_divides_by_how_often_a_column_was_active():
    gam, fam = torch.tensor([[6.0, 6.0, 6.0]]), torch.tensor([[0.0, 2.0, 3.0]])
    assert torch.equal(selection_score(gam, None, 4, False), gam)
    assert selection_score(gam, fam, 4, False).tolist() == [[6.0, 3.0, 2.0]]
    penalty = torch.exp(-torch.tensor([[1.0, 2.0, 3.0]]) / 60)
    assert torch.equal(selection_score(gam, fam, 60, True), torch.tensor([[6.0, 3.0, 2.0]]) * penalty)


def test_masks_in_bits_are_the_masks_in_bytes_in_an_eighth_of_the_memory():
    ends = {}
    for masks in ("bytes", "bits"):
        method = dps(masks=masks, variant="mix")
        ends[masks] = Training([method]).go(LENGTH + 2).weights
        kept = sum(mask.nbytes for mask in method._frozen.values())
        assert kept == {"bytes": 216, "bits": 27}[masks]
    assert same(ends["bytes"], ends["bits"])


# ---------------------------------------------------------------------- freezing


@pytest.mark.parametrize("variant", ["dense", "mix"])
def test_hard_freezing_holds_entries_moments_and_decay_through_the_stage(variant):
    method = dps(variant=variant)
    training = Training([method], weight_decay=0.5).go(LENGTH)
    before, moments = training.weights, training.moments()
    training.go(LENGTH)
    for name in MATRICES:
        frozen, after = method._frozen[name], training.weights[name]
        assert torch.equal(after[frozen], before[name][frozen])
        assert int((after != before[name]).sum()) == int((~frozen).sum()) == share_count(after.numel(), 0.7)
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(training.moments()[name][key][frozen], moments[name][key][frozen])
            assert not torch.equal(training.moments()[name][key][~frozen], moments[name][key][~frozen])
    for name in ("first.bias", "embedding.weight", "norm.weight"):
        assert not torch.equal(training.weights[name], before[name])


def test_zeroed_gradients_alone_do_not_hold_what_adamw_moves():
    method = dps(freeze="grad")
    training = Training([method], weight_decay=0.0).go(LENGTH)
    before = training.weights
    training.go(LENGTH)
    for name in MATRICES:
        frozen = method._frozen[name]
        assert (training.weights[name][frozen] != before[name][frozen]).all()


@pytest.mark.parametrize("freeze", ["hard", "grad"])
def test_without_momentum_and_decay_both_ways_hold(freeze):
    method = dps(freeze=freeze)
    training = Training([method], optimizer=sgd).go(LENGTH)
    before = training.weights
    training.go(LENGTH)
    for name in MATRICES:
        frozen = method._frozen[name]
        assert torch.equal(training.weights[name][frozen], before[name][frozen])


# ---------------------------------------------------------------------- mix


def test_mixed_weights_are_the_weights_on_average_and_the_anchor_where_the_mask_is_zero():
    generator = torch.Generator().manual_seed(0)
    weight, anchor = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    drawn = [(torch.rand(1, 5, generator=generator) < 0.7).double() for _ in range(20_000)]
    mean = torch.stack([mixed(weight, anchor, mask, 0.3) for mask in drawn]).mean(0)
    torch.testing.assert_close(mean, weight, rtol=0, atol=0.03)
    for mask in drawn[:20]:
        off = (mask == 0).expand(3, 5)
        assert torch.equal(mixed(weight, anchor, mask, 0.3)[off], anchor[off])


def test_whole_columns_are_drawn_and_counted_and_evaluation_sees_plain_weights():
    method = dps(variant="mix", keep=0.5)
    training = Training([method])
    start = {name: training.weights[name] for name in MATRICES}
    keys, counted = list(training.weights), dict.fromkeys(MATRICES, 0)
    for _ in range(LENGTH):
        true = training.weights
        method.before_step(training.model)
        for name in MATRICES:
            shown = training.weights[name]
            columns = method._columns[name]
            assert columns.shape == (1, shown.shape[1])
            off = (columns == 0).expand(shown.shape)
            assert torch.equal(shown[off], start[name][off])
            counted[name] = counted[name] + columns
        method._swap.restore()
        assert same(training.weights, true)
        training.step()
    assert any(((columns > 0) & (columns < LENGTH)).any() for columns in counted.values())
    for name in MATRICES:
        assert torch.equal(method._fam[name], counted[name])
    assert list(training.weights) == keys
    training.step()
    plain = Net()
    plain.load_state_dict(training.weights)
    words, _ = data(0)
    assert torch.equal(plain.eval()(words), training.model.eval()(words))
    assert [type(module) for module in training.model.modules()] == [type(module) for module in plain.modules()]


def test_in_stage_two_unselected_entries_run_at_the_snapshot_and_selected_ones_are_amplified():
    for rescale, factor in ((True, 1 / 0.7), (False, 1.0)):
        method = dps(variant="mix", freeze="grad", rescale=rescale)
        training = Training([method]).go(LENGTH)
        snapshot = training.weights
        training.go(2)
        true = training.weights
        method.before_step(training.model)
        for name in MATRICES:
            shown, frozen = training.weights[name], method._frozen[name]
            assert torch.equal(shown[frozen], snapshot[name][frozen])
            wanted = snapshot[name] + (true[name] - snapshot[name]) * factor
            torch.testing.assert_close(shown[~frozen], wanted[~frozen], rtol=0, atol=1e-6)


def test_the_true_derivative_is_the_published_gradient_divided_by_keep():
    grads = []
    for scaled in (False, True):
        training = Training([dps(variant="mix", gradient_scale=scaled)], clip=None)
        training.step()
        grads.append(training.model.first.weight.grad.clone())
    torch.testing.assert_close(grads[1], grads[0] / 0.7)
    assert grads[0].count_nonzero()


@pytest.mark.parametrize("anchor", ["cpu", "bf16"])
def test_anchors_elsewhere_are_the_same_and_rounded_ones_nearly(anchor):
    ends = [Training([dps(variant="mix", anchor=place)]).go(10).weights for place in ("device", anchor)]
    assert same(*ends) == (anchor == "cpu")
    torch.testing.assert_close(ends[1]["first.weight"], ends[0]["first.weight"], rtol=0, atol=0.05)


# ---------------------------------------------------------------------- going on


SETTINGS = [
    {}, {"freeze": "grad"}, {"scope": "global"}, {"masks": "bits"}, {"score_on": "clipped", "apply": "post_clip"},
    {"variant": "mix"}, {"variant": "mix", "freeze": "grad", "anchor": "cpu"},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_run_that_goes_on_at_any_step_ends_in_the_same_bits(settings):
    whole = Training([dps(**settings)]).go(STEPS).weights
    running = Training([dps(**settings)])
    for cut in range(2 * LENGTH + 2):  # within and between the stages of a cycle, and into the next
        method = dps(**settings)
        again = Training([method])  # prepared anew, from the model as it was at the beginning
        tensors, values = split_state("m", running.methods[0].state_dict())
        method.load_state_dict(join_state("m", {name: tensor.clone() for name, tensor in tensors.items()}, values))
        again.model.load_state_dict(running.model.state_dict())
        again.optimizer.load_state_dict(copy.deepcopy(running.optimizer.state_dict()))
        again.done = cut
        assert same(again.go(STEPS - cut).weights, whole), f"cut after {cut} steps"
        running.step()


def test_a_state_of_another_share_or_stage_is_refused():
    state = Training([dps()]).go(LENGTH + 1).methods[0].state_dict()
    for settings, what in (({"keep": 0.5}, "keep 0.7, this run has 0.5"), ({"stage_steps": 3}, "length 4")):
        other = dps(**settings)
        Training([other])
        with pytest.raises(MethodError, match=what):
            other.load_state_dict(state)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("variant", ["dense", "mix"])
def test_a_step_that_a_gradient_scaler_skips_changes_neither_clock_nor_sums_nor_masks(variant, fused):
    def scaled(overflows: set[int]) -> Training:
        training = Training([dps(variant=variant)], fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=10**6, backoff_factor=0.5)
        [method], calls = training.methods, 0
        while training.done < 2 * LENGTH + 1:
            training.optimizer.zero_grad()
            method.before_step(training.model)
            loss = loss_of(training.model, training.done) * (float("inf") if calls in overflows else 1.0)
            scaler.scale(loss).backward()
            scaler.unscale_(training.optimizer)
            method.after_backward(training.model)
            nn.utils.clip_grad_norm_(training.model.parameters(), 0.5)
            scaler.step(training.optimizer)
            scaler.update()
            calls += 1
            training.done = method._done
        return training

    # overflows in the first step, in both stages, and as a stage begins
    bumpy, smooth = scaled({0, 2, LENGTH + 2, LENGTH + 4}), scaled(set())
    assert same(bumpy.weights, smooth.weights)
    states = [split_state("m", training.methods[0].state_dict())[0] for training in (bumpy, smooth)]
    assert same(*states)


# ---------------------------------------------------------------------- with others, and at the edges


class Checkpointed(Net):
    """The net with activations computed again in the backward pass."""

    def forward(self, words):
        return checkpoint(super().forward, words, use_reentrant=False)


@pytest.mark.parametrize("variant", ["dense", "mix"])
def test_gradient_checkpointing_changes_nothing(variant):
    plain = Training([dps(variant=variant)]).go(10).weights
    assert same(Training([dps(variant=variant)], model=Checkpointed()).go(10).weights, plain)


def test_two_forward_passes_before_a_backward_and_two_models_in_one_process():
    def twice(model, step):
        return (loss_of(model, step) + loss_of(model, step)) / 2

    once = Training([dps(variant="mix")]).go(10).weights
    assert same(Training([dps(variant="mix")], loss=twice).go(10).weights, once)
    one, other = Training([dps()]), Training([dps(keep=0.2)], model=Net(width=6))
    for _ in range(10):
        one.step()
        other.step()
    assert same(one.weights, Training([dps()]).go(10).weights)


def test_a_run_that_masked_nothing_is_an_error():
    method = dps()
    training = Training([method]).go(LENGTH)
    with pytest.raises(MethodError, match=f"masked no tensor in {LENGTH} of {STEPS} steps"):
        training.finish()
    unattached = dps()
    model = unattached.prepare(Net(), Run(seed=0, steps=STEPS, anatomy=SimpleNamespace(model_type="net")))
    for step in range(STEPS):
        unattached.before_step(model)
        loss_of(model, step).backward()
        unattached.after_backward(model)
    with pytest.raises(MethodError, match="masked no tensor in 0 of") as caught:
        unattached.finish(model, Run(seed=0, steps=STEPS, anatomy=SimpleNamespace(model_type="net")))
    assert "attach" in caught.value.fix


def test_a_model_with_everything_frozen_or_quantised_is_refused():
    with pytest.raises(MethodError, match="no matrix to select from"):
        Training([dps()], model=Net().requires_grad_(False), optimizer=lambda groups: None)
    quantised = Net().requires_grad_(False)
    quantised.head.weight = nn.Parameter(torch.zeros(3, 8, dtype=torch.int8), requires_grad=False)
    quantised.norm.requires_grad_(True)
    with pytest.raises(MethodError, match="no matrix to select from") as caught:
        Training([dps()], model=quantised, optimizer=lambda groups: None)
    assert "quantised" in caught.value.why


def test_a_method_that_freezes_after_it_is_named_as_the_reason():
    class Freezes:
        def prepare(self, model, run):
            model.first.requires_grad_(False)
            return model

    with pytest.raises(MethodError, match=r"dps was to select from first.weight \(1 of 3 matrices\)"):
        Training([dps(), Freezes()])


def test_bf16_weights_have_sums_in_fp32():
    method = dps()
    training = Training([method], model=Net().bfloat16()).go(3)
    assert {tensor.dtype for tensor in method._gam.values()} == {torch.float32}
    assert {g.dtype for g in present_gradients(method._weights).values()} == {torch.float32}
    training.go(LENGTH)
    sums = {"w": torch.zeros(())}
    for _ in range(1000):
        add_squares(sums, {"w": torch.ones(())})
    assert sums["w"] == 1000


def test_a_matrix_without_a_gradient_is_neither_summed_nor_masked():
    def head_alone(model, step):
        words, labels = data(step)
        return nn.functional.cross_entropy(model.head(model.embedding(words).mean(1)), labels)

    method = dps()
    training = Training([method], loss=head_alone).go(LENGTH)
    assert set(method._gam) == {"head.weight"}
    training.go(1)
    assert set(method._frozen) == {"head.weight"}
    late = dps()
    training = Training([late], loss=head_alone).go(LENGTH)
    training.loss = loss_of  # reached in stage II for the first time: trained whole until the next selection
    before = training.weights["first.weight"]
    training.step()
    assert (training.weights["first.weight"] != before).all()
    training.go(2 * LENGTH)
    assert set(late._frozen) == set(MATRICES)


def test_embeddings_and_what_they_share_are_never_selected_from_and_a_shared_matrix_once():
    model = Net()
    model.out = nn.Linear(8, 10, bias=False)
    model.out.weight = model.embedding.weight
    model.again = nn.Linear(8, 12, bias=False)
    model.again.weight = model.first.weight
    method = dps()
    Training([method], model=model)
    assert method._names == list(MATRICES)


def test_a_gradient_that_is_not_finite_enters_no_sum():
    method = dps()
    training = Training([method]).go(2)
    before = {name: tensor.clone() for name, tensor in method._gam.items()}
    training.model.first.weight.grad[0, 0] = float("nan")
    method.after_backward(training.model)
    assert same(method._gam, before)


def test_the_last_cycle_is_cut_by_the_end_of_the_run_and_a_longer_run_does_not_change_the_clock():
    short = Training([dps()], steps=LENGTH + 2).go(LENGTH + 2)
    longer = Training([dps()], steps=100).go(LENGTH + 2)
    assert same(short.weights, longer.weights)
    short.finish()


def test_masks_follow_the_clipped_gradient_where_asked():
    norms = {}
    for apply in ("pre_clip", "post_clip"):
        training = Training([dps(apply=apply, keep=0.1)], clip=0.01).go(LENGTH + 1)
        norms[apply] = torch.stack([p.grad.norm() for p in training.model.parameters()]).norm().item()
    assert norms["pre_clip"] == pytest.approx(0.01, rel=1e-3)
    assert norms["post_clip"] < 0.009


def test_the_state_on_two_ranks_can_be_told_apart_by_a_hash():
    states = []
    for _ in range(2):
        tensors, _ = split_state("m", Training([dps(variant="mix")]).go(LENGTH + 1).methods[0].state_dict())
        states.append(hashlib.sha256(b"".join(t.numpy().tobytes() for _, t in sorted(tensors.items()))).hexdigest())
    assert states[0] == states[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("variant", ["dense", "mix"])
def test_no_step_waits_for_the_device(variant):
    torch.cuda.set_sync_debug_mode("default")
    method = dps(variant=variant)
    training = Training([method], model=Net().cuda(), clip=None, optimizer=lambda groups: adamw(groups, fused=True),
                        loss=lambda model, step: model(data_on_device[step]).logsumexp(-1).mean())  # fmt: skip
    data_on_device = [data(step)[0].cuda() for step in range(3 * LENGTH)]
    training.step()  # anchors move
    torch.cuda.set_sync_debug_mode("error")
    try:
        training.go(3 * LENGTH - 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
