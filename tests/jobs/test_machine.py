from __future__ import annotations

import pytest

from anytune.jobs.machine import Cores, folder_sizes, free_disk, free_memory, granted_cores, speed


@pytest.mark.parametrize(("text", "expected"), [("150000 100000\n", 1.5), ("max 100000\n", None), ("nonsense", None)])
def test_the_cores_of_a_container_are_its_quota_over_its_period(tmp_path, text, expected):
    (tmp_path / "cpu.max").write_text(text)
    assert granted_cores(tmp_path) == expected


def test_the_cores_of_an_older_container(tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("400000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert granted_cores(tmp_path) == 4.0
    assert granted_cores(tmp_path / "nowhere") is None


def test_usable_cores_are_the_fewest_of_all_limits():
    assert Cores(8, 6, 2.5, 8, None).usable == 2
    assert Cores(8, 6, None, 8, None).usable == 6
    assert Cores(8, 6, 0.5, 8, None).usable == 1


def test_a_container_may_have_less_memory_than_the_machine(tmp_path):
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert free_memory(tmp_path) == 600000
    (tmp_path / "memory.max").write_text("max\n")
    assert (free_memory(tmp_path) or 0) > 600000


def test_free_disk_is_that_of_the_nearest_folder_there_is(tmp_path):
    assert free_disk(tmp_path / "not" / "yet") == pytest.approx(free_disk(tmp_path), rel=0.01)


def test_sizes_are_counted_for_each_thing_in_a_folder(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x").write_bytes(bytes(30))
    (tmp_path / "y").write_bytes(bytes(7))
    (tmp_path / ".lock").write_bytes(bytes(7))
    assert folder_sizes(tmp_path) == {"a": 30, "y": 7}
    assert folder_sizes(tmp_path / "nowhere") == {}


def test_products_in_bf16_are_right_to_its_precision():
    found = speed(size=64, repeats=2)
    assert found.fp32 > 0 < found.bf16
    assert 0 < found.error < 2 / 256
