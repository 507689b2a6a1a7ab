"""The catalogue as data: complete, findable, light to import."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys

import pytest

from anytune import metrics
from anytune.data.samples import get_sample, list_samples
from anytune.data.samples.package_lists import SEEN
from anytune.data.tasks import KINDS
from anytune.errors import SampleError


def test_it_holds_what_was_promised():
    assert {sample.name for sample in list_samples("model")} >= {"bert-tiny", "minilm-l6", "smollm2-135m"}
    texts = list_samples("text")
    assert len(texts) >= 8
    assert any(sample.text_columns == ("text", "text_pair") for sample in texts)
    assert {sample.task for sample in texts} == {None, *KINDS}
    assert any(sample.dated for sample in texts)
    assert len({sample.name for sample in list_samples()}) == len(list_samples())


@pytest.mark.parametrize("sample", list_samples(), ids=lambda sample: sample.name)
def test_every_entry_is_complete(sample):
    assert sample.title
    assert sample.licence
    if sample.source.client != "bundled":
        assert re.fullmatch(r"[0-9a-f]{64}", sample.sha256)
        assert sample.size_bytes > 1_000_000
        assert sample.source.members
        assert sample.source.version
    if sample.source.client == "apt-get":  # Debian's builds move, so the data themselves carry hashes
        assert [name for name, _ in sample.source.member_sha256] == list(sample.source.members)
    if sample.source.client == "apt-lists":  # so do its lists; what was seen of them is a record, not data
        assert [*(name for name, _ in sample.source.member_sha256), SEEN] == list(sample.source.members)
    assert set(sample.shares_text_with) <= {other.name for other in list_samples("text")}


@pytest.mark.parametrize("sample", list_samples("text"), ids=lambda sample: sample.name)
def test_every_text_names_a_loader_and_a_metric_that_exist(sample):
    module, function = sample.loader.split(":")
    assert callable(getattr(importlib.import_module(f"anytune.data.samples.loaders.{module}"), function))
    if sample.task is not None:
        assert metrics.METRICS[sample.metric].kind == sample.task


def test_an_unknown_name_suggests_the_near_one():
    with pytest.raises(SampleError, match="unknown sample 'minilm'") as caught:
        get_sample("sample:minilm")
    assert caught.value.fix == "minilm-l6"


def test_importing_the_room_imports_nothing_heavy():
    heavy = "('torch', 'pandas', 'numpy', 'pyarrow', 'transformers', 'datasets', 'filelock')"
    script = f"import sys, anytune.data.samples; print([name for name in {heavy} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
