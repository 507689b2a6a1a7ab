"""Lines of anytime matrices made up for tests: what a job would write."""

from __future__ import annotations

import numpy as np

DOMAINS = ("reviews", "law", "computing", "biomedical")


def made_up(arms=("sequential", "anchored"), orders=2, seeds=3, cells="needed", domains=DOMAINS, row0=True):
    """(lines, stages) of a stream of four domains; later arms are better by half a point each."""
    draw = np.random.default_rng(0)
    n = len(domains)
    common = {"control": arms[0], "metric": "accuracy", "metrics": ["a_acc", "o_acc", "f_acc", "o_gain", "forgetting"],
              "validation": 0.6, "floor": 0.3, "steps": 10, "seconds": 1.0, "failed": None,
              "predictions": []}  # fmt: skip
    base = {name: 0.5 + 0.05 * place for place, name in enumerate(domains)}
    lines = [
        {**common, "arm": None, "order": None, "stream": None, "seed": seed, "stage": 0, "after": None, "task": name,
         "test": base[name] + 0.001 * seed}
        for seed in range(seeds) for name in domains if row0
    ]  # fmt: skip
    stages = []
    for better, arm in enumerate(arms):
        for order in range(orders):
            stream = [*domains[order:], *domains[:order]]
            for seed in range(seeds):
                for stage, after in enumerate(stream, 1):
                    own = {**common, "arm": arm, "order": order, "stream": stream, "seed": seed, "stage": stage,
                           "after": after, "flow": "chain"}  # fmt: skip
                    losses = {name: {"before": 3.0, "after": 3.0 - 0.1 * stage, "perplexity": 18.0} for name in stream}
                    stages.append({**own, "first": stage == 1, "losses": losses, "seconds": 2.0 + better})
                    for place, name in enumerate(stream, 1):
                        if cells == "all" or place >= stage or stage == n:
                            gain = 0.06 if place == stage else -0.02 if place > stage else 0.02
                            score = base[name] + gain + 0.005 * better + draw.normal(0, 0.004)
                            lines.append({**own, "task": name, "test": score})
    return lines, stages
