"""GGUF conversion: what happens before any weight is read. The real conversion is in test_real.py."""

from __future__ import annotations

import importlib.util

import pytest

from anytune.data.samples.converting import FILES, convert
from anytune.errors import SampleError


def test_a_missing_gguf_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SampleError, match="gguf") as caught:
        convert(tmp_path, tmp_path / "model")
    assert caught.value.fix == 'pip install "anytune[gguf]"'


def test_a_finished_folder_is_not_made_again(tmp_path):
    for name in FILES:
        (tmp_path / name).write_text("{}")
    assert convert(tmp_path / "no-source", tmp_path) == tmp_path


def test_a_file_that_is_no_gguf_is_a_clear_error_and_leaves_nothing(tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "source").mkdir()
    with pytest.raises(SampleError, match=r"expected one \.gguf file, found 0"):
        convert(tmp_path / "source", tmp_path / "model")
    (tmp_path / "source/a.gguf").write_bytes(b"rubbish")
    with pytest.raises(SampleError, match=r"cannot read a\.gguf"):
        convert(tmp_path / "source", tmp_path / "model")
    assert not (tmp_path / "model").exists()
