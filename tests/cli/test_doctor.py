from __future__ import annotations

import json

from anytune.jobs.doctor import Finding


def test_doctor_prints_a_line_for_each_finding_and_ends_with_0_if_it_is_usable(cli, monkeypatch):
    found = [Finding("cores", "ok", "two"), Finding("cores", "note", "many threads", "OMP_NUM_THREADS=2")]
    monkeypatch.setattr("anytune.jobs.doctor.diagnose", lambda store: found)
    answer = cli("doctor")
    assert answer.code == 0
    assert "many threads" in answer.out
    assert "try: OMP_NUM_THREADS=2" in answer.out
    assert answer.out.endswith("ready\n")


def test_doctor_ends_with_2_if_something_stands_in_the_way(cli, monkeypatch):
    monkeypatch.setattr("anytune.jobs.doctor.diagnose", lambda store: [Finding("disk", "problem", "full", "free it")])
    answer = cli("doctor")
    assert answer.code == 2
    assert answer.out.endswith("1 problem\n")
    answer = cli("doctor", "--json")
    assert answer.code == 2
    assert json.loads(answer.out) == {
        "usable": False, "findings": [{"topic": "disk", "level": "problem", "text": "full", "fix": "free it"}]
    }  # fmt: skip
