"""What we take for granted about torch."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader

from tests.canaries.sentence import assumption


def stepped(steps: int = 5, **settings) -> torch.Tensor:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(64, 64))
    optimizer = torch.optim.AdamW([weight], lr=0.01, weight_decay=0.1, **settings)
    for _ in range(steps):
        weight.grad = torch.randn(64, 64)
        optimizer.step()
    return weight.detach()


def test_a_fused_adamw_runs_on_cpus_and_is_adamw():
    with assumption(
        "torch no longer has a fused AdamW on CPUs that is AdamW up to rounding: engine/loop.py and "
        "engine/hf_trainer.py use it"
    ):
        torch.testing.assert_close(stepped(fused=True), stepped(foreach=True), rtol=1e-5, atol=1e-6)


def test_the_step_count_of_a_fused_adamw_is_a_tensor():
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], fused=True)
    weight.grad = torch.ones(2)
    optimizer.step()
    with assumption("torch no longer keeps AdamW's step as a tensor: checkpoints in engine/stages.py save it as one"):
        assert set(optimizer.state[weight]) == {"step", "exp_avg", "exp_avg_sq"}
        assert isinstance(optimizer.state[weight]["step"], torch.Tensor)


def test_a_zeroed_gradient_does_not_freeze_a_weight():
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.0)
    weight.grad = torch.ones(2)
    optimizer.step()
    before = weight.detach().clone()
    with assumption(
        "torch no longer moves a weight whose gradient is zero: methods freeze by requires_grad (methods/step.py) "
        "because AdamW's momentum moves it"
    ):
        weight.grad = torch.zeros(2)
        optimizer.step()
        assert not torch.equal(weight, before)


def test_a_rate_that_a_scheduler_sets_is_the_plain_product():
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([{"params": [weight], "lr": 3e-3, "peak": 3e-3, "names": ["weight"]}])
    shares = [1 / 3, 0.7, 0.1]
    with assumption(
        "torch no longer sets a LambdaLR's rate to peak times share: engine/hf_trainer.py would train at other rates "
        "than engine/loop.py"
    ):
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: shares[step])
        for number, share in enumerate(shares):
            assert optimizer.param_groups[0]["lr"] == 3e-3 * share
            optimizer.step()
            if number < len(shares) - 1:
                schedule.step()


def test_keys_of_our_own_in_parameter_groups_survive_saving(tmp_path):
    weight = nn.Parameter(torch.ones(1))
    groups = [{"params": [weight], "lr": 0.1, "peak": 0.1, "names": ["weight"]}]
    with assumption(
        "torch no longer keeps a parameter group's own keys over saving: engine/stages.py puts names and peak rates "
        "there and the Trainer of engine/hf_trainer.py saves them"
    ):
        torch.save(torch.optim.AdamW(groups).state_dict(), tmp_path / "state")
        again = torch.optim.AdamW([{"params": [weight], "lr": 0.5, "peak": 0.5, "names": ["weight"]}])
        again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
        assert (again.param_groups[0]["peak"], again.param_groups[0]["names"]) == (0.1, ["weight"])


def test_a_loader_draws_from_torchs_generator_unless_it_has_its_own():
    with assumption(
        "torch no longer draws a loader's seed from its own generator: engine/hf_trainer.py gives loaders one"
    ):
        before = torch.get_rng_state()
        list(DataLoader([1, 2], generator=torch.Generator()))
        assert torch.equal(before, torch.get_rng_state())
        list(DataLoader([1, 2]))
        assert not torch.equal(before, torch.get_rng_state())


def test_clipping_to_infinity_and_a_share_of_one_change_no_bit():
    gradient = torch.randn(100)
    weight = nn.Parameter(torch.zeros(100))
    weight.grad = gradient.clone()
    with assumption(
        "torch no longer leaves gradients alone when their norm is only measured: the Trainer under "
        "engine/hf_trainer.py measures it at each step"
    ):
        torch.nn.utils.clip_grad_norm_([weight], float("inf"))
        assert torch.equal(weight.grad, gradient)
        assert torch.equal(gradient * 1.0, gradient)


def test_a_difference_added_back_in_fp32_is_not_what_it_was():
    base, tuned = torch.randn(1000), torch.randn(1000)
    with assumption(
        "torch no longer rounds sums in fp32: models/difference.py works in fp64 and corrects because it does"
    ):
        assert not torch.equal(base + (tuned - base), tuned)
        double = (base.double() + (tuned.double() - base.double())).float()
        assert (double != tuned).sum() <= (base + (tuned - base) != tuned).sum() / 10


def test_seeds_of_63_bits_are_taken():
    with assumption(
        "torch no longer takes seeds of 63 bits (of which a CPU uses the lower 32): derive_seed in engine/runtime.py "
        "makes them"
    ):
        seeds = (2**62 + 1, 2**62 + 2, 2**62 + 2**31 + 1)
        drawn = [torch.rand(4, generator=torch.Generator().manual_seed(seed)).tolist() for seed in seeds]
        assert drawn[0] != drawn[1]
        assert drawn[0] != drawn[2]


def test_a_step_gives_the_same_bits_twice(bert, ids):
    def gradient():
        torch.manual_seed(5)
        bert.zero_grad()
        bert.train()(input_ids=ids, labels=torch.tensor([0, 1])).loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in bert.parameters() if parameter.grad is not None])

    with assumption(
        "torch no longer computes the same bits twice from the same random state: resuming by engine/checkpoints.py "
        "promises the bits of an uncut run"
    ):
        first = gradient()
        assert torch.equal(first, gradient())


def test_the_random_state_is_all_that_dropout_draws_from():
    dropout, values = nn.Dropout(0.5), torch.ones(50)
    with assumption(
        "torch no longer draws dropout from its one random state: engine/checkpoints.py stores nothing else"
    ):
        state = torch.get_rng_state()
        first = dropout(values)
        torch.set_rng_state(state)
        assert torch.equal(first, dropout(values))
        assert not torch.equal(first, dropout(values))


def test_parameters_are_named_in_the_order_they_were_made(bert):
    with assumption("torch no longer names parameters in a fixed order: groups in engine/stages.py follow it"):
        names = [name for name, _ in bert.named_parameters()]
        assert names == [name for name, _ in bert.named_parameters()]
        assert names[0] == "bert.embeddings.word_embeddings.weight"
        assert names[-1] == "classifier.bias"


def test_writing_into_a_weight_counts_up_its_version():
    weight = nn.Parameter(torch.zeros(2))
    module = nn.Linear(2, 2)
    versions = weight._version, module.weight._version
    with torch.no_grad():
        weight.copy_(torch.ones(2))
    module.load_state_dict({"weight": torch.ones(2, 2), "bias": torch.ones(2)})
    with assumption(
        "torch no longer counts up a tensor's version when it is written into: jobs/resident.py puts back what was "
        "written, and finds it by that"
    ):
        assert weight._version > versions[0]
        assert module.weight._version > versions[1]
        assert nn.Parameter(torch.zeros(2))._version == 0
