"""Tables of anytime matrices as Markdown, from their lines alone (:mod:`anytune.evaluate.anytime`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from anytune.evaluate.anytime import (
    METRICS,
    AccuracyMatrix,
    Column,
    Line,
    RunName,
    columns,
    cost,
    matrices,
    mean_matrix,
)
from anytune.evaluate.anytime_losses import LOSS_METRICS, loss_matrices, loss_table
from anytune.evaluate.arms import task_means
from anytune.report.arm_tables import difference_text, markdown_table, number_text, power_text

Matrices = Mapping[str, Mapping[RunName, AccuracyMatrix]]


def arm_order(lines: Sequence[Line]) -> list[str]:
    """The arms as the recipe had them, the control first."""
    return list(dict.fromkeys(line["arm"] for line in lines if line["arm"] is not None))


def lines_domains(lines: Sequence[Line]) -> list[str]:
    """The domains of the streams."""
    return list(next(line["stream"] for line in lines if line["arm"] is not None))


def plural(number: int, word: str) -> str:
    """``"1 arm"``, ``"2 arms"``."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def metric_columns(lines: Sequence[Line]) -> list[Column]:
    """The metrics that were asked for, over the runs of all arms."""
    return columns(matrices(lines), lines[0]["control"], lines[0]["metrics"])


def anytime_tables(lines: Sequence[Line], stages: Sequence[Line]) -> str:
    """The whole document.

    Args:
        lines: at least one line of an arm.
        stages: a line for each stage.
    """
    arms, control = arm_order(lines), lines[0]["control"]
    found, tables = matrices(lines), metric_columns(lines)
    orders = {run[0] for one in found.values() for run in one}
    domains, metrics = lines_domains(lines), ", ".join(sorted({line["metric"] for line in lines}))
    text = [
        f"# Anytime matrices of {plural(len(arms), 'arm')} over {plural(len(orders), 'order')} of "
        f"{plural(len(domains), 'domain')}\n",
        f"a(i, j): test score ({metrics}, in points) after tuning on the task of domain j, from the base after stage "
        "i; row 0 is the base before the stream. Every cell is a tuning run of its own. The unit is the stream (an "
        "order with a seed): mean +/- sample standard deviation over streams. Differences are arm minus "
        f"'{control}', paired by stream and signed so that above 0 is better, with a 95 % bootstrap interval that "
        "resamples tasks and streams. A word (higher, lower, undecided) needs an interval without 0 and a sign-flip p "
        "over streams below 0.05 after Holm's correction over the arms. 'No worse': the interval's lower end is above "
        "-0.5. 'Could show': the smallest true difference with an 80 % chance to be shown. A run that diverged counts "
        "as always giving one answer. Cost: seconds of pre-training as a multiple of the control's.\n",
        *(f"* **{METRICS[column.metric].title}**: {METRICS[column.metric].meaning}" for column in tables),
        "",
        "## Metrics\n",
        _metrics(arms, tables, cost(stages, control)),
        "## Differences to the control\n",
        _differences(arms, tables, control),
        *_loss_gains(arms, stages, control),
        "## Matrices\n",
        "Mean over seeds. The diagonal is the domain just trained on; right of it stands what has not come yet.\n",
    ]
    for arm in arms:
        text += _matrices(arm, found[arm])
    text += [*_floors(lines), *_losses(arms, stages)]
    failed = failures([*stages, *lines])
    if failed:
        text += ["## Runs that diverged\n", *(f"* {what}" for what in failed), ""]
    return "\n".join(text)


def _floors(lines: Sequence[Line]) -> list[str]:
    """What needs no pre-training, by task: one answer, words alone, a probe over the base, the base tuned (row 0)."""
    first = [line for line in lines if line["arm"] is None]
    rows = [
        [what, *(number_text(found.get(name)) for name in lines_domains(lines))]
        for what, found in (
            ("one answer", task_means(lines, "floor")), ("words alone", task_means(lines, "words")),
            ("frozen base", task_means(first, "frozen_base")), ("row 0", task_means(first, "test")),
        )
        if found
    ]  # fmt: skip
    if not rows:
        return []
    note = (
        "'Words alone' is a ridge classifier on TF-IDF of the same training texts; 'frozen base' the same classifier "
        "on the features of the base before the stream, which no task has tuned."
    )
    return ["## Floors\n", note + "\n", markdown_table(["", *lines_domains(lines)], rows)]


def summary(lines: Sequence[Line], stages: Sequence[Line]) -> str:
    """A few lines for a terminal: each arm's metrics, and its difference to the control."""
    arms, tables = arm_order(lines), metric_columns(lines)
    spent, losses = cost(stages, lines[0]["control"]), loss_columns(stages, lines[0]["control"])
    said = [f"{'':14}" + "".join(f"{METRICS[column.metric].title:>14}" for column in tables) + f"{'cost':>8}"]
    for arm in arms:
        means = [None if (one := column.summary(arm)) is None else one.mean for column in tables]
        times = f"{spent[arm]:.2f}" if arm in spent else ""
        said.append(f"{arm:14}" + "".join(f"{number_text(mean):>14}" for mean in means) + f"{times:>8}")
    for arm in arms[1:]:
        parts = [
            f"{METRICS[column.metric].title} {difference_text(column.against.get(arm))}"
            for column in tables
            if column.metric in ("a_acc", "o_acc", "f_acc") and arm in column.against
        ]
        parts += [
            f"loss {METRICS[column.metric].title} {difference_text(column.against[arm])}"
            for column in losses
            if column.metric != "forgetting" and arm in column.against
        ]
        if parts:
            said.append(f"{arm} against {arms[0]}: {'; '.join(parts)}")
    return "\n".join([*said, *(f"failed: {what}" for what in failures([*stages, *lines]))])


def failures(lines: Sequence[Line]) -> list[str]:
    """What happened to the stages and cells that diverged; of a stream that did, its first line."""
    said: dict[str, None] = {}
    for line in lines:
        if line["failed"]:
            who = line["arm"] if line["arm"] is not None else "row 0"
            order = "" if line["order"] is None else f", order {line['order']}"
            whole = str(line["failed"]).startswith("pre-training diverged")
            where = "" if whole or "task" not in line else f", stage {line['stage']}, {line['task']}"
            said[f"{who}{order}, seed {line['seed']}{where}: {line['failed']}"] = None
    return list(said)


def _metrics(arms: Sequence[str], tables: Sequence[Column], spent: Mapping[str, float]) -> str:
    rows = []
    for arm in arms:
        cells = []
        for column in tables:
            one = column.summary(arm)
            spread = "" if one is None or one.sd is None else f" +/- {number_text(one.sd)}"
            cells.append("-" if one is None else f"{number_text(one.mean)}{spread} ({one.n})")
        rows.append([arm, *cells, *([f"{spent[arm]:.2f}" if arm in spent else ""] if spent else [])])
    head = ["arm", *(METRICS[column.metric].title for column in tables), *(["cost"] if spent else [])]
    return markdown_table(head, rows)


def _differences(arms: Sequence[str], tables: Sequence[Column], control: str) -> str:
    others = [arm for arm in arms if arm != control]
    if not others:
        return f"'{control}' is the only arm.\n"
    rows = []
    for column in tables:
        for arm in others:
            found = column.against.get(arm)
            if found is not None:
                rows.append([METRICS[column.metric].title, arm, difference_text(found), power_text(found)])
    return markdown_table(["metric", "arm", "difference", "could show"], rows)


def of_orders(runs: Mapping[RunName, AccuracyMatrix]) -> dict[int, list[AccuracyMatrix]]:
    """Number of an order -> the matrices of its seeds."""
    made: dict[int, list[AccuracyMatrix]] = {}
    for (order, _), matrix in sorted(runs.items()):
        made.setdefault(order, []).append(matrix)
    return made


def _matrices(arm: str, runs: Mapping[RunName, AccuracyMatrix]) -> list[str]:
    text = []
    for order, group in of_orders(runs).items():
        mean = mean_matrix(group)
        text.append(f"### {arm}, order {order} ({len(group)} seed{'s' if len(group) > 1 else ''})\n")
        rows = []
        for stage, row in enumerate(mean.rows):
            head = "0: before" if not stage else f"{stage}: {mean.domains[stage - 1]}"
            if any(value is not None for value in row):
                rows.append([head, *("" if value is None else number_text(value) for value in row)])
        text.append(markdown_table(["after stage", *mean.domains], rows))
    return text


def loss_columns(stages: Sequence[Line], control: str) -> list[Column]:
    """The metrics of held-out losses over the runs of all arms; none without held-out text."""
    found = loss_matrices(stages)
    return [column for column in columns(found, control, LOSS_METRICS) if column.values]


def _loss_gains(arms: Sequence[str], stages: Sequence[Line], control: str) -> list[str]:
    """What became of the held-out losses, as metrics and differences."""
    tables = loss_columns(stages, control)
    if not tables:
        return []
    note = (
        "The same metrics of the loss on held-out text of the domains, in hundredths of a nat (one is about one per "
        "cent of perplexity): how far it fell below the base before the stream, on each domain right after its own "
        "stage (A), on those that have not come yet (O), on all in the end (F). Above 0 is better, except forgetting."
    )
    return [
        "## Held-out losses: gains\n", note + "\n", _metrics(arms, tables, {}), _differences(arms, tables, control),
    ]  # fmt: skip


def _losses(arms: Sequence[str], stages: Sequence[Line]) -> list[str]:
    """Held-out loss and perplexity of every domain after every stage."""
    found = loss_table(stages)
    if not found:
        return []
    text = ["## Held-out losses\n",
            "Nats per predicted token, mean over seeds, and in brackets exp of it (perplexity).\n"]  # fmt: skip
    streams = {line["order"]: line["stream"] for line in stages}
    flows = {line["arm"]: line.get("flow") for line in stages}
    for arm in arms:
        for order, domains in found.get(arm, {}).items():
            text.append(f"### {arm}, order {order}\n")
            names = [name for name in streams[order] if name in domains]
            rows = []
            for stage in sorted({stage for losses in domains.values() for stage in losses}):
                after = "all of them" if flows[arm] == "joint" else streams[order][stage - 1] if stage else "before"
                rows.append([f"{stage}: {after}", *(_loss(domains[name].get(stage)) for name in names)])
            text.append(markdown_table(["after stage", *names], rows))
    return text


def _loss(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f} ({math.exp(value):.1f})" if value < 700 else f"{value:.3f}"
