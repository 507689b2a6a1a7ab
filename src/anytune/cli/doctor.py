"""``anytune doctor``: what this machine can do (:func:`anytune.jobs.doctor.diagnose`)."""

from __future__ import annotations

from dataclasses import asdict

import typer

from anytune.cli import options, show


def doctor(store: options.Store = None, json: options.Json = False) -> None:
    """Say what this machine can do.

    Versions, cores, bf16, GPU, memory, disk, and a run of two steps. Ends with 0 if nothing stands in the way.

    Example: anytune doctor
    """
    from anytune.jobs.doctor import diagnose, usable

    findings = diagnose(store)
    if json:
        show.print_json({"usable": usable(findings), "findings": [asdict(finding) for finding in findings]})
    else:
        topic = ""
        for finding in findings:
            shown = "" if finding.topic == topic else finding.topic
            topic = finding.topic
            print(f"{shown:<12}{finding.level:<9}{finding.text}")
            if finding.fix:
                print(f"{'':<12}{'':<9}try: {finding.fix}")
        problems = sum(finding.level == "problem" for finding in findings)
        print(f"\n{problems} problem{'' if problems == 1 else 's'}" if problems else "\nready")
    if not usable(findings):
        raise typer.Exit(2)
