"""The doctor: each kind of trouble is found, named, and answered with something to type."""

from __future__ import annotations

import pytest
import torch

from anytune.errors import SettingsError
from anytune.jobs import doctor, machine, packages
from anytune.jobs.doctor import Finding, usable
from anytune.jobs.machine import Cores, Speed


def levels(findings) -> list[str]:
    return [finding.level for finding in findings]


def test_a_machine_that_runs_the_tests_is_usable(tmp_path):
    findings = doctor.diagnose(tmp_path / "store")
    assert usable(findings), [finding for finding in findings if finding.level == "problem"]
    assert {finding.topic for finding in findings} >= {"versions", "cores", "bf16", "disk", "hub", "launcher", "run"}
    assert any("same bits" in finding.text for finding in findings)
    assert not (tmp_path / "store").exists()


def test_a_version_outside_its_range_and_a_missing_package_are_problems(monkeypatch):
    versions = {name: "99.0" if name == "peft" else None if name == "datasets" else "2.7" for name in packages.CORE}
    monkeypatch.setattr(packages, "installed", versions.get)
    found = {finding.text: finding for finding in doctor.versions() if finding.level == "problem"}
    assert any(text.startswith("peft 99.0 is outside") for text in found)
    assert found["datasets is not installed"].fix.startswith("pip install 'datasets")


@pytest.mark.parametrize(
    ("cores", "level", "fix"),
    [
        (Cores(8, 8, None, 8, None), "ok", ""),
        (Cores(8, 8, 2.0, 8, None), "note", "OMP_NUM_THREADS=2"),
        (Cores(8, 4, None, 8, "8"), "note", "OMP_NUM_THREADS=4"),
        (Cores(8, 8, None, 1, "1"), "note", "unset OMP_NUM_THREADS   (or OMP_NUM_THREADS=8)"),
    ],
)
def test_threads_are_held_against_the_cores_that_can_be_used(monkeypatch, cores, level, fix):
    monkeypatch.setattr(machine, "cores", lambda: cores)
    [finding] = doctor.core_findings()
    assert (finding.level, finding.fix) == (level, fix)


@pytest.mark.parametrize(
    ("by", "speed", "level", "words"),
    [
        ("amx_bf16", Speed(100, 400, 0.002), "ok", "precision=auto takes it"),
        ("avx512_bf16", Speed(100, 50, 0.002), "note", "slower just now"),
        (None, Speed(100, 50, 0.002), "note", "takes fp32"),
        ("amx_bf16", Speed(100, 400, 0.75), "problem", "wrong here (by 75%"),
    ],
)
def test_bf16_is_judged_by_hardware_speed_and_whether_it_is_right(monkeypatch, by, speed, level, words):
    monkeypatch.setattr(machine, "speed", lambda device: speed)
    monkeypatch.setattr(doctor, "bf16_by", lambda device: by)
    [finding] = doctor.bf16_findings()
    assert finding.level == level
    assert words in finding.text


def test_a_full_disk_is_a_problem(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "free_disk", lambda folder: 50_000_000)
    assert levels(doctor.disk(tmp_path)) == ["problem", "problem"]
    monkeypatch.setattr(machine, "free_disk", lambda folder: 10**12)
    assert levels(doctor.disk(tmp_path)) == ["ok", "ok"]


def test_offline_is_told_and_a_token_is_not(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    [finding] = doctor.hub()
    assert finding.level == "note"
    assert "HF_TOKEN is set" in finding.text
    assert "secret" not in finding.text


def test_sharding_asked_for_without_a_gpu_is_a_problem(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError):
        list(doctor.launcher())
    monkeypatch.setattr(doctor, "two_steps", lambda: iter(()))
    [problem] = [finding for finding in doctor.diagnose(tmp_path) if finding.level == "problem"]
    assert (problem.topic, "no GPU" in problem.text) == ("launcher", True)


def test_a_run_that_resumes_to_other_bits_is_a_problem(monkeypatch):
    weights = iter([torch.ones(2), torch.ones(2), torch.ones(2), torch.zeros(2)])
    monkeypatch.setattr(doctor, "_two_steps", lambda precision, work: {"w": next(weights)})
    assert levels(doctor.two_steps()) == ["ok", "problem"]


def test_a_look_that_breaks_is_a_finding(monkeypatch, tmp_path):
    def broken():
        raise RuntimeError("no such thing")
        yield

    monkeypatch.setattr(doctor, "two_steps", broken)
    found = doctor.diagnose(tmp_path)[-1]
    assert found == Finding("run", "problem", "RuntimeError: no such thing")
