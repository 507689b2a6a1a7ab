"""Direct reuses on real samples: what `anytune diagnose` learns its forecast from.

    python benchmarks/direct_reuses.py --store FOLDER --out evidence/direct-reuse/reuses.jsonl
    python -m anytune.jobs.direct_coefficients evidence/direct-reuse/reuses.jsonl \
        --out src/anytune/evaluate/direct_forecast.json

BERT-tiny is tuned on six tasks as full difference, LoRA and soft prompt. It is upgraded in 18 ways: six domains, each
with few steps at a low rate, more steps at a high one, and many. Every delta is then put onto every upgrade as it is.
A line is one reuse: distance of the bases, size of the delta, share of answers that change, and the score that was
lost, the last two over the task's held-out rows (validation and test; nothing is chosen by them). About half an hour
of two cores; lines that are there already are kept, so a run that was cut goes on. The lines in evidence/ are those of
the first ten upgrades, two of which are there in part.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import anytune
from anytune.data.tasks import Task
from anytune.jobs.diagnose import diagnose

BASE = "sample:bert-tiny"
DOMAINS = ("rotten_tomatoes", "hpo", "foldoc", "debian", "licence_notice", "bbc")
TASKS = ("rotten_tomatoes", "hpo", "foldoc", "debian", "licence_notice", "r52")
#: (steps of 16 blocks of 64 tokens, learning rate)
UPGRADES = ((30, 1e-4), (100, 5e-4), (300, 5e-4))
#: steps of tuning and the rate, by form
FORMS = {"full": (150, 5e-4), "lora": (150, 3e-3), "prompt_tuning": (150, 1e-2)}
TRAIN, LIMIT = 600, 1500
#: held-out rows that are read: a drop of which a tenth of the answers is part is known to a point
ROWS = 800


def held_out(task: Task) -> Task:
    """The task whose validation rows are all that were not trained on."""
    return task.with_rows(validation=(*task.validation, *task.test))


def main() -> None:
    """Make what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True, help="folder for bases and deltas")
    parser.add_argument("--out", required=True, help="JSON lines")
    given = parser.parse_args()
    out = Path(given.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    done = {(line["reuse"]["upgrade"], line["task"], line["form"]) for line in _lines(out)}
    tasks = {name: anytune.load_task(f"sample:{name}", limit=LIMIT, metric="accuracy") for name in TASKS}
    deltas = {}
    for name, task in tasks.items():
        for form, (steps, rate) in FORMS.items():
            training = {"steps": steps, "batch_size": 16, "max_length": 32, "learning_rate": rate,
                        "evaluate_every": steps, "keep": "last", "precision": "fp32"}  # fmt: skip
            [deltas[name, form]] = anytune.tune(
                BASE, task, method=form, store=given.store, training=training, train_size=TRAIN, keep_sample=False,
                name=f"{name}-{form}",
            )  # fmt: skip
            print(name, form, deltas[name, form].manifest.scores["test"], flush=True)
    for turn in range(len(UPGRADES)):
        for place, domain in enumerate(DOMAINS):
            steps, rate = UPGRADES[
                (place + turn) % len(UPGRADES)
            ]  # short and long ones in turn: a part says something
            upgrade = f"{domain}, {steps} steps at {rate:g}"
            left = [(name, form) for name, form in deltas if (upgrade, name, form) not in done]
            if not left:
                continue
            training = {"steps": steps, "batch_size": 16, "block_size": 64, "learning_rate": rate, "precision": "fp32"}
            [new] = anytune.pretrain(BASE, f"sample:{domain}", store=given.store, training=training,
                                     names=[f"{domain}-{steps}"])  # fmt: skip
            for name in dict.fromkeys(name for name, _ in left):
                forms = [form for task, form in left if task == name]
                found = diagnose(
                    BASE, new, delta=[deltas[name, form] for form in forms], task=held_out(tasks[name]),
                    store=given.store, points=0, attention_texts=0, rows=ROWS,
                )  # fmt: skip
                with out.open("a", encoding="utf-8") as handle:
                    for form, one in zip(forms, found.deltas, strict=True):
                        reuse = one.reuse(upgrade, found.distance.whole.relative).record()
                        line = {"reuse": reuse, "task": name, "form": form, "metric": one.metric, "rows": one.rows,
                                "before": one.before, "after": one.after}  # fmt: skip
                        handle.write(json.dumps(line) + "\n")
            print(upgrade, f"moved {found.distance.whole.relative:.3f}", flush=True)


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
