"""Turn GGUF weights into a plain transformers folder, once."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from anytune.data.samples.cache import Progress, appearing, locked, say_nothing
from anytune.errors import SampleError

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def convert(source: Path, target: Path, progress: Progress | None = None) -> Path:
    """Write the one ``.gguf`` file in ``source`` as bf16 safetensors with config and tokenizer into ``target``.

    The 4-bit blocks are multiplied out; rounding to bf16 changes each weight by at most one part in 256. A finished
    ``target`` is returned as it is. Takes about 20 s and 1 GB of memory for SmolLM2-135M.

    Raises:
        SampleError: the ``gguf`` package is missing, the file is damaged, or the cache cannot be written.
    """
    tell = progress or say_nothing
    if _is_whole(target):
        return target
    if importlib.util.find_spec("gguf") is None:
        raise SampleError(
            f"{target.name} comes as GGUF, and the package that reads it (gguf) is not installed",
            why="It is converted once into a plain transformers folder.",
            fix='pip install "anytune[gguf]"',
        )
    with locked(target, tell):
        if not _is_whole(target):
            tell(f"converting {target.name} from GGUF (once, about 20 s)")
            with appearing(target) as partial:
                _write(source, partial)
    return target


def _write(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from anytune.compat import dequantized

    found = sorted(source.glob("*.gguf"))
    if len(found) != 1:
        raise SampleError(f"expected one .gguf file, found {len(found)}", why="The package is not the expected one.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=found[0].name)
        model = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=found[0].name, dtype=torch.bfloat16, **dequantized()
        )
    except (OSError, ValueError, KeyError) as problem:
        raise SampleError(f"cannot read {found[0].name}: {problem}", fix="delete its folder in the cache") from problem
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _is_whole(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)
