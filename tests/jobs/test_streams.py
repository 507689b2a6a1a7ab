"""Streams of domains through the job: chains, restarts, mixtures, and what a stage leaves for the next one."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

import anytune
from anytune.data.domains import joined, load_stream
from anytune.errors import BaseError, MethodError, SettingsError
from anytune.jobs.opening import open_base
from anytune.models.carried import CARRIED_TENSORS, CARRIED_VALUES, carried_digest, load_carried
from anytune.models.probe import check_probe
from anytune.store import Store
from tests.conftest import tiny_rows
from tests.models.kinds import make_kind

TRAINING = {"steps": 3, "learning_rate": 3e-3, "batch_size": 4, "block_size": 32, "precision": "fp32"}


@pytest.fixture(scope="module")
def domains(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("stream"), []
    for number, name in enumerate(("first", "second", "third")):
        path = folder / f"{name}.txt"
        path.write_text("\n".join(f"{text} {name}" for text, _ in tiny_rows(160, 30 + number)))
        found.append(path)
    return found


@pytest.fixture
def run(tiny_base, tmp_path):
    store = Store(tmp_path / "store")

    def run(domains, method, base=tiny_base, **more):
        more = {"store": store, "training": TRAINING, **more}
        return anytune.pretrain(base, domains, method=method, **more)

    return run


def weights(entry):
    return load_file(entry.folder / "model.safetensors")


def same(left, right) -> bool:
    left, right = weights(left), weights(right)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# ---------------------------------------------------------------------- restart


def test_separate_stages_are_those_of_a_stream_of_one_domain(run, domains, tmp_path):
    first, second, third = run(domains, "separate")
    other = Store(tmp_path / "other")
    alone = {name: run([domain], "sequential", store=other, names=[name])[0]
             for name, domain in zip(("b", "c"), domains[1:], strict=True)}  # fmt: skip
    assert same(second, alone["b"])
    assert same(third, alone["c"])
    chain = run(domains, "sequential", names=["x", "y", "z"])
    assert same(chain[0], first)
    assert not same(chain[1], second)


def test_separate_bases_are_named_after_the_first_base_and_their_own_domain(run, domains, tiny_base):
    entries = run(domains, "separate")
    assert [entry.manifest.name for entry in entries] == ["tiny-first", "tiny-second", "tiny-third"]
    assert len({entry.manifest.scores["before:heldout:third"]["loss"] for entry in entries}) == 1
    chain = run(domains, "sequential")
    assert [entry.manifest.name for entry in chain][-1] == "tiny-first-second-third"
    planned = run(domains, "separate", dry_run=True)
    assert [forecast.state for forecast in planned] == ["stored"] * 3


def test_a_forecast_of_separate_stages_waits_for_none(run, domains):
    planned = run(domains, "separate", dry_run=True)
    waiting = run(domains, "sequential", dry_run=True)
    assert [forecast.state for forecast in (*planned, *waiting)] == ["new"] * 6
    assert [bool(forecast.notes) for forecast in planned] == [False] * 3
    assert [bool(forecast.notes) for forecast in waiting] == [False, True, True], "measured on a stand-in"


# ---------------------------------------------------------------------- joint


def test_a_joint_stage_is_plain_training_on_all_text_for_all_steps(run, domains, tmp_path):
    [mixed] = run(domains, "joint", names=["mixed"])
    [plain] = run(
        [joined(load_stream(domains))], "sequential", names=["mixed"], store=Store(tmp_path / "other"),
        training={**TRAINING, "steps": 9},
    )  # fmt: skip
    assert same(mixed, plain)
    assert mixed.manifest.steps == 9
    assert [record.name for record in mixed.manifest.domains] == ["first", "second", "third"]
    assert all(record.tokens > 0 for record in mixed.manifest.domains)
    assert {f"heldout:{name}" for name in ("first", "second", "third")} <= mixed.manifest.scores.keys()
    assert "heldout:first+second+third" not in mixed.manifest.scores


def test_a_joint_stage_has_one_name_and_its_recipe_makes_it_again(run, domains):
    [mixed] = run(domains, "joint")
    assert mixed.manifest.name == "tiny-first-second-third"
    assert mixed.manifest.recipe["domains"] == ["first", "second", "third"]
    [again] = run(domains, "joint")
    assert again.folder == mixed.folder
    with pytest.raises(SettingsError, match="3 names for 1 domains"):
        run(domains, "joint", names=["a", "b", "c"])


def test_two_orders_of_a_stream_are_refused(run, domains):
    with pytest.raises(SettingsError, match="'separate' and 'joint' cannot be combined") as caught:
        run(domains, ["separate", "joint"])
    assert caught.value.fix == "--method separate   or   --method joint"


# ---------------------------------------------------------------------- what is carried


@pytest.mark.parametrize("method", ["replay", "derpp", {"name": "averaging", "form": "stages"}])
def test_a_stream_in_one_command_and_one_command_a_stage_give_the_same_bits(method, run, domains, tmp_path):
    together = run(domains, method, watch=domains)
    base, other = None, Store(tmp_path / "other")
    for number, domain in enumerate(domains):
        more = {} if base is None else {"base": base}
        [base] = run([domain], method, watch=domains, store=other, **more)
        assert same(base, together[number])
        assert (base.folder / CARRIED_VALUES).read_bytes() == (together[number].folder / CARRIED_VALUES).read_bytes()
        assert carried_digest(base.folder) == carried_digest(together[number].folder)


def test_what_is_carried_decides_the_next_stage_and_is_part_of_its_run_key(run, domains, tmp_path):
    [first] = run(domains[:1], "replay")
    bare = tmp_path / "bare"
    shutil.copytree(first.folder, bare, ignore=shutil.ignore_patterns("carried*", "manifest*"))
    [second] = run(domains[1:2], "replay", base=first, names=["next"])
    [without] = run(domains[1:2], "replay", base=bare, names=["next"])
    assert second.manifest.base.backbone != first.manifest.base.backbone
    assert second.manifest.run != without.manifest.run
    assert not same(second, without)
    [plain] = run(domains[1:2], "sequential", base=bare, names=["next"])
    assert same(plain, without), "with nothing carried, replay is plain training"


def test_the_buffer_grows_from_stage_to_stage_and_holds_text_of_each(run, domains):
    entries = run(domains, {"name": "replay", "size": 20})
    seen = []
    for entry in entries:
        state = load_carried(entry.folder)["replay"]
        seen.append((state["seen"], len(state["blocks"])))
    assert seen == [(12, 12), (24, 20), (36, 20)]
    assert (entries[0].folder / CARRIED_TENSORS).exists()
    again = run(domains, {"name": "replay", "size": 20})
    assert [entry.id for entry in again] == [entry.id for entry in entries]


def test_methods_that_carry_nothing_leave_nothing(run, domains):
    for entry in run(domains[:2], "lwf"):
        assert not (entry.folder / CARRIED_VALUES).exists()


def test_a_method_that_does_not_take_part_in_a_stage_loses_what_was_carried(run, domains):
    [first] = run(domains[:1], "replay")
    [second] = run(domains[1:2], "sequential", base=first)
    assert load_carried(second.folder) == {}


def test_a_base_that_carries_something_damaged_is_refused_before_anything_is_trained(run, domains, tmp_path):
    [first] = run(domains[:1], "replay")
    copy = tmp_path / "copy"
    shutil.copytree(first.folder, copy, ignore=shutil.ignore_patterns("manifest*"))
    (copy / CARRIED_VALUES).write_text("{")
    with pytest.raises(BaseError, match="carries for its next stage"):
        run(domains[1:2], "replay", base=copy)


def test_blocks_of_another_length_are_refused_with_what_to_type(run, domains):
    [first] = run(domains[:1], "replay")
    with pytest.raises(MethodError, match="stored blocks of 32 tokens, and this stage has blocks of 24"):
        run(domains[1:2], "replay", base=first, training={**TRAINING, "block_size": 24})


# ---------------------------------------------------------------------- what is stored


def test_what_is_scored_and_stored_is_the_mean_of_the_weights(run, domains, tiny_base):
    [mean] = run(domains[:1], {"name": "averaging", "share": 0.25}, names=["mean"])
    [last] = run(domains[:1], "sequential", names=["last"])
    begin, end, left = load_file(tiny_base / "model.safetensors"), weights(last), weights(mean)
    for name, value in left.items():
        torch.testing.assert_close(value, begin[name].lerp(end[name], 0.25), rtol=0, atol=1e-7)
    model, _ = open_base(mean).pretraining_model()
    assert check_probe(model, mean.manifest.probe) <= 1e-6
    before, after = (mean.manifest.scores[f"{prefix}heldout:first"]["loss"] for prefix in ("before:", ""))
    assert mean.manifest.curve[-1].scores["first"] == last.manifest.scores["heldout:first"]["loss"] < after < before
    [none] = run(domains[1:2], "sequential", base=mean, training={**TRAINING, "steps": 1}, watch=domains[:1])
    assert none.manifest.scores["before:heldout:first"]["loss"] == pytest.approx(after, abs=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "t5", "deberta-v2"])
@pytest.mark.parametrize("method", ["replay", "derpp", "lwf"])
def test_every_kind_goes_through_a_second_stage(kind, method, domains, tmp_path):
    base = make_kind(kind, tmp_path / "base")
    training = {**TRAINING, "steps": 4, "learning_rate": 1e-2}
    stages = {name: anytune.pretrain(base, domains[:2], store=tmp_path / name, method=name, training=training)
              for name in (method, "sequential")}  # fmt: skip
    losses = [stages[method][1].manifest.scores[f"{prefix}heldout:second"]["loss"] for prefix in ("before:", "")]
    assert losses[1] < losses[0]
    assert same(stages[method][0], stages["sequential"][0]) == (method != "lwf")
    assert not same(stages[method][1], stages["sequential"][1])
