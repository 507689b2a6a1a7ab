from __future__ import annotations

from anytune.evaluate.past_reuses import reuses_of_grid


def line(arm, upgrade, test, predictions, **more):
    return {"arm": arm, "method": "direct" if arm == "direct" else None, "weights": "own", "hop": False, "steps": 0,
            "failed": None, "upgrade": upgrade, "form": "full", "task": "a", "old": "full data", "seed": 0,
            "metric": "accuracy", "test": test, "predictions": predictions, **more}  # fmt: skip


UPGRADES = [{"upgrade": "near", "distance": {"relative": 0.1}}, {"upgrade": "none", "distance": {"relative": 0.0}}]


def test_each_direct_run_is_set_against_the_same_delta_at_home():
    lines = [
        line("old", None, 0.9, [0, 1, 2, 1], size=0.05),
        line("old", None, 0.5, [0, 0, 0, 0], seed=1),
        line("direct", "near", 0.8, [0, 1, 1, 1]),
        line("direct", "near", 0.5, [0, 0, 1, 1], seed=1),
        line("direct", "none", 0.9, [0, 1, 2, 1]),
    ]
    lines += [{**one, "new": "8"} for one in lines[2:]]  # the same direct runs beside another size of new data
    first, second = reuses_of_grid(lines, UPGRADES, "grid")
    assert (first.upgrade, first.moved, first.size, first.disagreement) == ("grid/near", 0.1, 0.05, 0.25)
    assert abs(first.drop - 0.1) < 1e-12
    assert (second.size, second.disagreement, second.drop) == (None, 0.5, 0.0)


def test_other_arms_trained_runs_hops_foreign_weights_and_failures_are_left_out():
    home = line("old", None, 0.9, [0, 1])
    others = [
        line("direct", "near", 0.8, [0, 1], steps=10),
        line("direct", "near", 0.8, [0, 1], hop=True),
        line("direct", "near", 0.8, [0, 1], weights="random"),
        line("direct", "near", None, [], failed="the loss is nan"),
        line("initialize", "near", 0.8, [0, 1], method="initialize"),
        line("direct", "near", 0.8, [0, 1], metric="perplexity"),
        line("direct", "near", 0.8, [0, 1], old="64 a class"),
    ]
    assert reuses_of_grid([home, *others], UPGRADES) == []
    assert reuses_of_grid([home, line("direct", "near", 0.8, [0.5, 1.5])], UPGRADES)[0].disagreement is None
