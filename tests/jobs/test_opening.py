"""Opening bases by name: what is told where there is none of that name."""

from __future__ import annotations

import pytest

from anytune.errors import BaseError
from anytune.jobs.opening import open_base
from anytune.store import Store
from tests.store.conftest import base_manifest


def test_a_base_that_is_none_is_told_beside_those_of_the_store(tmp_path):
    store = Store(tmp_path / "s")
    for name in ("news-2026-11", "law"):
        store.add(base_manifest(name=name, run=name), lambda folder: (folder / "config.json").write_text("{}"))
    with pytest.raises(BaseError) as caught:
        open_base("news-2026-10", store)
    assert caught.value.fix == "news-2026-11"
    assert "Bases of the store:" in caught.value.why
    with pytest.raises(BaseError) as caught:
        open_base("zzz", store)
    assert "a folder, a hub id" in caught.value.fix
    with pytest.raises(BaseError) as caught:
        open_base("owner/zzz", store)
    assert "Bases of the store" not in str(caught.value)
