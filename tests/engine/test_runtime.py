from __future__ import annotations

import builtins
import contextlib
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anytune.engine.runtime import bf16_by, choose_precision, derive_seed, make_runtime, native_bf16, seeded


def test_a_derived_seed_has_a_value_that_never_changes():
    """Stored runs depend on it: another value would make every earlier result unrepeatable."""
    # int(sha256(b"0\x1ftrain").hexdigest()[:16], 16) // 2
    assert derive_seed(0, "train") == 2247946608620987588
    assert derive_seed(0, "head") != derive_seed(0, "train") != derive_seed(1, "train")
    assert derive_seed("1", 23) != derive_seed("12", 3)


@given(st.lists(st.one_of(st.integers(), st.text()), max_size=4))
def test_a_derived_seed_is_one_that_torch_takes(parts):
    assert 0 <= derive_seed(*parts) < 2**63
    torch.Generator().manual_seed(derive_seed(*parts))


def test_seeded_draws_the_same_inside_and_leaves_the_global_generator_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with seeded(1):
        first = torch.rand(3)
    with contextlib.suppress(ZeroDivisionError), seeded(1):
        assert torch.equal(torch.rand(3), first)
        raise ZeroDivisionError
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags : sse avx512_bf16", "avx512_bf16"),
        ("flags : avx512_bf16 amx_bf16", "amx_bf16"),
        ("flags : sse avx2", None),
        ("model : x", None),
    ],
)
def test_native_bf16_is_read_from_the_processors_flags(monkeypatch, flags, expected):
    monkeypatch.setattr(builtins, "open", lambda *_args, **_more: io.StringIO(f"processor : 0\n{flags}\n"))
    assert bf16_by.__wrapped__("cpu") == expected


def test_native_bf16_answers_no_where_it_cannot_tell(monkeypatch):
    def missing(*_args, **_more):
        raise FileNotFoundError

    monkeypatch.setattr(builtins, "open", missing)
    assert bf16_by.__wrapped__("cpu") is None
    assert bf16_by.__wrapped__("mps") is None


def test_the_runtime_of_a_test_is_one_cpu_process_in_the_precision_asked_for():
    runtime = make_runtime("fp32")
    assert (runtime.device.type, runtime.rank, runtime.world, runtime.precision) == ("cpu", 0, 1, "fp32")
    assert runtime.autocast() is None
    assert make_runtime("auto").precision == ("bf16" if native_bf16("cpu") else "fp32")


def test_bf16_runs_products_in_half_precision_and_one_run_does_not_change_the_next():
    with make_runtime("bf16").autocast()():
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16
    assert make_runtime("fp32").autocast() is None


def test_what_is_no_tensor_stays_as_it_is_on_the_way_to_the_device():
    assert make_runtime("fp32").to_device({"num_items": 3, "x": torch.ones(1)})["num_items"] == 3


def test_the_environment_names_versions_threads_and_precision():
    environment = make_runtime("fp32").environment()
    assert set(environment.versions) == {"anytune", "torch", "transformers", "peft", "accelerate"}
    assert (environment.threads, environment.precision, environment.device) == (torch.get_num_threads(), "fp32", "cpu")


@pytest.mark.parametrize(
    ("asked", "by", "chosen", "words"),
    [
        ("auto", "amx_bf16", "bf16", "multiplies bf16 in hardware (amx_bf16)"),
        ("auto", None, "fp32", "no bf16 in hardware"),
        ("fp32", "amx_bf16", "fp32", "as asked"),
        ("bf16", None, "bf16", "as asked; this CPU has no bf16 in hardware"),
    ],
)
def test_the_precision_is_chosen_by_the_hardware_and_says_why(monkeypatch, asked, by, chosen, words):
    monkeypatch.setattr("anytune.engine.runtime.bf16_by", lambda device_type: by)
    precision, reason = choose_precision(asked, "cpu")
    assert precision == chosen
    assert words in reason


def test_a_manifest_says_why_the_precision_was_chosen():
    assert make_runtime("fp32").environment().precision_reason == "as asked"
