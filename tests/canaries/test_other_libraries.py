"""What we take for granted about safetensors, accelerate, datasets, typer, the hub's client and YAML."""

from __future__ import annotations

import contextlib
import importlib.metadata
import inspect
import re

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from tests.canaries.sentence import assumption


def test_safetensors_refuses_tensors_that_share_memory(tmp_path):
    from safetensors.torch import save_file

    whole = torch.arange(6.0)
    with (
        assumption(
            "safetensors no longer refuses shared memory: models/weights.py and engine/checkpoints.py clone tensors"
        ),
        pytest.raises(RuntimeError, match="share memory"),
    ):
        save_file({"whole": whole, "part": whole[:3]}, tmp_path / "file")


def test_safetensors_says_that_a_file_is_cut(tmp_path):
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    save_file({"whole": torch.arange(6.0)}, tmp_path / "file")
    data = (tmp_path / "file").read_bytes()
    with assumption(
        "safetensors no longer raises SafetensorError for a cut file: engine/checkpoints.py passes over such a "
        "checkpoint by it, and models/weights.py refuses such a base"
    ):
        for length in (0, 4, len(data) - 4):
            (tmp_path / "cut").write_bytes(data[:length])
            with pytest.raises(SafetensorError):
                load_file(tmp_path / "cut")


def test_safetensors_writes_equal_tensors_as_equal_bytes_with_one_metadata_key():
    from safetensors.torch import save

    tensors = {"b": torch.arange(6.0), "a": torch.ones(2)}
    with assumption(
        "safetensors no longer writes equal tensors as equal bytes: models/weights.py writes what is known by its hash"
    ):
        assert (
            len(
                {save(dict(reversed(tensors.items())), {"format": "pt"}) for _ in range(8)}
                | {save(tensors, {"format": "pt"})}
            )
            == 1
        )


def test_safetensors_orders_several_metadata_keys_at_random():
    from safetensors.torch import save

    metadata = {f"key {number}": "" for number in range(8)}
    with assumption(
        "safetensors now writes metadata in a fixed order: models/weights.py allows one key because it did not"
    ):
        assert len({save({"a": torch.ones(2)}, metadata) for _ in range(20)}) > 1


@contextlib.contextmanager
def accelerate_made_anew():
    """Accelerate's process-wide singletons out of the way, and back afterwards."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    kept = [(one, dict(one._shared_state)) for one in (AcceleratorState, GradientState, PartialState)]
    for one, _ in kept:
        one._shared_state.clear()
    try:
        yield
    finally:
        for one, state in kept:
            one._shared_state.clear()
            one._shared_state.update(state)


def test_accelerate_forgets_about_fsdp_on_a_cpu(monkeypatch):
    from accelerate import Accelerator
    from accelerate.utils import DistributedType

    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with (
        assumption(
            "accelerate no longer passes over FSDP on CPUs in silence: engine/runtime.py looks whether it is active"
        ),
        accelerate_made_anew(),
    ):
        assert Accelerator(cpu=True).distributed_type != DistributedType.FSDP


def test_accelerate_keeps_the_precision_of_the_first_run():
    from accelerate import Accelerator

    with (
        assumption(
            "accelerate no longer keeps one mixed precision for a whole process: engine/runtime.py keeps its own "
            "autocast for that reason"
        ),
        accelerate_made_anew(),
    ):
        Accelerator(cpu=True, mixed_precision="bf16")
        assert Accelerator(cpu=True).mixed_precision == "bf16"


def test_accelerate_leaves_a_module_alone_in_one_process():
    from accelerate import Accelerator

    with (
        assumption(
            "accelerate no longer leaves a module as it is in one process: engine/loop.py trains what it gives"
        ),
        accelerate_made_anew(),
    ):
        module = torch.nn.Linear(2, 2)
        accelerator = Accelerator(cpu=True)
        assert accelerator.prepare(module) is module
        with accelerator.no_sync(module):
            assert accelerator.unwrap_model(module) is module


def test_accelerate_reads_streams_in_one_process_for_all():
    from accelerate import Accelerator

    class Stream(IterableDataset):
        def __iter__(self):
            yield from range(4)

    with (
        assumption(
            "accelerate no longer dispatches a stream's batches from one process: engine/hf_trainer.py numbers "
            "batches instead of streaming them"
        ),
        accelerate_made_anew(),
    ):
        accelerator = Accelerator(cpu=True)
        assert type(accelerator.prepare(DataLoader(Stream()))).__name__ == "DataLoaderDispatcher"
        assert type(accelerator.prepare(DataLoader(range(4)))).__name__ == "DataLoaderShard"


def test_datasets_runs_no_script(tmp_path):
    import datasets

    script = tmp_path / "unsafe.py"
    script.write_text("raise SystemExit('it ran')\n")
    with (
        assumption("datasets now runs loading scripts: load_dataset in data/sources.py would run a stranger's code"),
        pytest.raises(RuntimeError, match="no longer supported"),
    ):
        datasets.load_dataset(str(script))


def test_typer_brings_its_own_groups_and_errors():
    with assumption(
        "typer no longer has groups with parse_args, list_commands and invoke, or its own Exit and Abort: "
        "cli/failures.py builds on them"
    ):
        import typer
        from typer.core import TyperGroup

        assert all(hasattr(TyperGroup, name) for name in ("parse_args", "list_commands", "invoke"))
        assert issubclass(typer.Exit, Exception)
        assert issubclass(typer.Abort, Exception)


def test_typer_does_not_bring_click():
    with assumption("typer now brings click again: cli/main.py and cli/failures.py import nothing of it"):
        needs = [re.split(r"[ <>=!~;\[]", need)[0] for need in importlib.metadata.requires("typer") or []]
        assert "click" not in needs


def test_the_hub_gives_chosen_files_only():
    with assumption(
        "huggingface_hub no longer takes allow_patterns and revision: models/finding.py fetches nothing that could "
        "hold code by them"
    ):
        from huggingface_hub import snapshot_download

        assert {"allow_patterns", "revision"} <= set(inspect.signature(snapshot_download).parameters)


def test_yaml_reads_a_small_number_as_text():
    import yaml

    with assumption("PyYAML no longer reads 1e-4 as text and no as false: jobs/recipe_files.py reads values itself"):
        assert yaml.safe_load("a: 1e-4\nb: no") == {"a": "1e-4", "b": False}
