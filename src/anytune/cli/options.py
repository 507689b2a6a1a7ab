"""Options that several commands share, each worded once."""

from __future__ import annotations

from typing import Annotated

import typer

TRAINING, DATA, OUTPUT = "Training", "Data", "Output"

Store = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="Folder of bases and deltas (default: anytune-store).")
]
Base = Annotated[
    str | None, typer.Option(help="The base: sample:NAME, a folder, the name of a base in the store, or a hub id.")
]
Task = Annotated[
    str | None,
    typer.Option(help="The task: a CSV, JSONL or Parquet file, a folder of splits, sample:NAME, or a datasets id."),
]
Method = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Method; may be repeated (see 'anytune methods').")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method: r=4; of several methods: lora.r=4."),
]
Seeds = Annotated[
    str | None,
    typer.Option(
        metavar="LIST|COUNT", help="'0,1,2' are these seeds, '3' is that many (0 to 2), '7,' is seed 7 alone."
    ),
]
Name = Annotated[str | None, typer.Option(metavar="NAME", help="Name of what is stored.")]
Keep = Annotated[str, typer.Option(help="'weights', or 'scores' to store the numbers alone.")]
KeepSample = Annotated[
    bool,
    typer.Option(
        "--keep-sample/--no-keep-sample",
        help="Keep some validation rows beside the weights, by which an upgrade of the base scores them.",
    ),
]
Tag = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A free label for reports, as arm=fresh.")]
TrainSize = Annotated[int | None, typer.Option(help="Use so many training examples.", rich_help_panel=DATA)]
TrainSizes = Annotated[
    str | None,
    typer.Option(metavar="N,N,...", help="Several training sizes; each seed is run at each.", rich_help_panel=DATA),
]
SubsetSeed = Annotated[
    str | None,
    typer.Option(
        metavar="run|N", help="Who draws the rows of a size: 'run', each by its seed, or one seed for all (0).",
        rich_help_panel=DATA,
    ),
]  # fmt: skip
ScoreOn = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TASK", help="Score on the test split of another task with the same labels; may be repeated.",
        rich_help_panel=DATA,
    ),
]  # fmt: skip
ProbeOn = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TASK", help="Probe the frozen tuned body on another task; may be repeated.", rich_help_panel=DATA
    ),
]
Against = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Run this method beside it, as control: 'full' is plain training."),
]
PerClass = Annotated[
    int | None, typer.Option(help="Use so many training examples of each class.", rich_help_panel=DATA)
]

Text = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="Text column, or two: FIRST,SECOND.", rich_help_panel=DATA)
]
Label = Annotated[str | None, typer.Option(metavar="COLUMN", help="Label column.", rich_help_panel=DATA)]
Metric = Annotated[str | None, typer.Option(help="Metric that selects and reports.", rich_help_panel=DATA)]
Kind = Annotated[
    str | None,
    typer.Option(
        help="'classification', 'regression', 'token-classification' or 'generation'; guessed from the data.",
        rich_help_panel=DATA,
    ),
]
Validation = Annotated[str | None, typer.Option(metavar="FILE", help="Rows for validation.", rich_help_panel=DATA)]
Test = Annotated[str | None, typer.Option(metavar="FILE", help="Rows for the test.", rich_help_panel=DATA)]
Limit = Annotated[int | None, typer.Option(help="Keep at most so many rows (or documents).", rich_help_panel=DATA)]
LabelNames = Annotated[
    str | None, typer.Option(metavar="A,B,C", help="Names of the classes, in the order wanted.", rich_help_panel=DATA)
]

Steps = Annotated[int | None, typer.Option(help="Optimizer steps; wins over epochs.", rich_help_panel=TRAINING)]
Epochs = Annotated[float | None, typer.Option(help="Passes over the training data.", rich_help_panel=TRAINING)]
BatchSize = Annotated[int | None, typer.Option(help="Examples (or blocks) per step.", rich_help_panel=TRAINING)]
LearningRate = Annotated[
    float | None, typer.Option(help="Peak rate (default: what the method suggests).", rich_help_panel=TRAINING)
]
MaxLength = Annotated[int | None, typer.Option(help="Tokens per example.", rich_help_panel=TRAINING)]
BlockSize = Annotated[int | None, typer.Option(help="Tokens per block.", rich_help_panel=TRAINING)]
Precision = Annotated[str | None, typer.Option(help="'auto', 'fp32' or 'bf16'.", rich_help_panel=TRAINING)]
EvaluateEvery = Annotated[int | None, typer.Option(help="Steps between evaluations.", rich_help_panel=TRAINING)]
Training = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE", help="Any other training setting, as weight_decay=0.01.", rich_help_panel=TRAINING
    ),
]

Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Insist on going on with an interrupted run; an error says what differs.",
        rich_help_panel=TRAINING,
    ),
]  # fmt: skip
Restart = Annotated[
    bool,
    typer.Option(
        "--restart", help="Throw away an interrupted run's checkpoints; begin at step 0.", rich_help_panel=TRAINING
    ),
]
StartFrom = Annotated[
    str | None,
    typer.Option(
        metavar="DELTA", help="A new run from the weights of this stored delta of the same base.",
        rich_help_panel=TRAINING,
    ),
]  # fmt: skip

Source = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DELTA", help="Start from this stored soft prompt of another task; may be repeated, best first.",
        rich_help_panel=TRAINING,
    ),
]  # fmt: skip
Teacher = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DELTA", help="Learn from this stored soft prompt tuned on this task; may be repeated.",
        rich_help_panel=TRAINING,
    ),
]  # fmt: skip

LogWith = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TRACKER", help="Follow the run in tensorboard, trackio, wandb ...; may be repeated.",
        rich_help_panel=OUTPUT,
    ),
]  # fmt: skip
LogDir = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER", help="Where trackers write their files (default: anytune-logs).", rich_help_panel=OUTPUT
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Say what would be done, and its steps, memory and time; write nothing.",
        rich_help_panel=OUTPUT,
    ),
]  # fmt: skip

Workers = Annotated[
    int | None,
    typer.Option(
        min=1, help="Processes to spread the runs over (default: as many as pay off; 1: one run after another).",
        rich_help_panel=TRAINING,
    ),
]  # fmt: skip
FanOut = Annotated[
    str, typer.Option(help="'processes' of this machine, or 'ray' (anytune[ray]).", rich_help_panel=TRAINING)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.", rich_help_panel=OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.", rich_help_panel=OUTPUT)]
