"""Tasks: labelled text with label names, a metric, and train / validation / test splits.

A task comes from a file or a folder of files, a named sample, or a data set of the Hugging Face hub (plain Parquet or
JSON; no code is ever run). Whatever the source, labels become indices into ``label_names``, whose order depends on
the training labels alone, and everything that decides results goes into ``content``, a hash.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from anytune import manifests
from anytune.data import columns, labels, responses, sources, splits, words
from anytune.data.periods import SplitBy, periods
from anytune.data.tables import listed
from anytune.errors import DataError, SettingsError, unknown
from anytune.metrics import METRICS, Kind, are_entity_tags, default_metric

KINDS: tuple[str, ...] = get_args(Kind)
_NO_CLASSES = {
    "regression": "Its labels are numbers.",
    "token-classification": "Each word has a tag, and a row has many words.",
    "generation": "Its labels are texts.",
}


@dataclass(frozen=True)
class Example:
    """One labelled text.

    Attributes:
        text: the text, or the first of a pair; for generation the prompt; for token-classification the words joined
            by one space.
        text_pair: the second of a pair, else None.
        label: an index into the task's label names; for regression a finite number; for token-classification an
            index a word; for generation the response.
        words: the words that carry tags (token-classification), else None.
    """

    text: str
    text_pair: str | None
    label: int | float | str | tuple[int, ...]
    words: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Task:
    """Labelled text in three splits.

    Attributes:
        name: what tables call it.
        kind: one of ``KINDS``.
        metric: a name of ``anytune.metrics.METRICS``; the validation score that selects.
        train: examples to tune on.
        validation: examples to select on.
        test: examples to report on.
        label_names: names of the classes or tags, in a stable order; empty for regression and generation.
        text_columns: the columns the texts came from, one or two.
        label_column: the column the labels came from.
        ref: "sample:NAME" or a data set id, where the task can be had again; None for local files.
        content: SHA-256 over texts, labels, splits and names.
        notes: what a careful reader should know: duplicates between splits, choices made.
    """

    name: str
    kind: Kind
    metric: str
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    label_names: tuple[str, ...]
    text_columns: tuple[str, ...]
    label_column: str
    ref: str | None
    content: str
    notes: tuple[str, ...] = ()

    def subset(self, train_size: int | None = None, per_class: int | None = None, seed: int = 0) -> Task:
        """A few-shot version: fewer training rows, no more validation rows than training rows, the whole test split.

        Subsets are stratified and decided by ``seed``; with one seed, a larger ``train_size`` contains a smaller one.

        Args:
            train_size: rows to keep; each class keeps at least one where the size allows.
            per_class: rows to keep of each class (classification alone).
            seed: decides which rows.

        Raises:
            SettingsError: both sizes are given, a size is below 1, or ``per_class`` where rows have no classes.
        """
        if train_size is None and per_class is None:
            return self
        if train_size is not None and per_class is not None:
            raise SettingsError(
                f"both train_size={train_size} and per_class={per_class}", why="They ask for two sizes.", fix="one"
            )
        if min(size for size in (train_size, per_class) if size is not None) < 1:
            raise SettingsError(
                f"a training subset of train_size={train_size}, per_class={per_class}", why="It needs a row."
            )
        strata = splits.strata_of([example.label for example in self.train], self.kind)
        if per_class is not None:
            if self.kind != "classification":
                raise SettingsError(
                    f"per_class={per_class} on a {self.kind} task",
                    why=_NO_CLASSES[self.kind],
                    fix=f"train_size={per_class}",
                )
            rows = splits.choose_per_class(strata, per_class, "few-shot", seed)
        else:
            rows = splits.choose(strata, train_size or 1, "few-shot", seed)
        train = tuple(self.train[row] for row in rows)
        validation = _at_most(self.validation, len(train), self.kind, "few-shot validation", seed)
        wanted = f"{per_class} rows a class" if per_class is not None else f"{train_size} rows"
        note = f"few-shot: {wanted} asked for, {len(train)} taken, seed {seed}"
        return _finished(replace(self, train=train, validation=validation, notes=(*self.notes, note)))

    def with_rows(
        self,
        *,
        train: Sequence[Example] | None = None,
        validation: Sequence[Example] | None = None,
        test: Sequence[Example] | None = None,
    ) -> Task:
        """The task with other rows in some of its splits, and the ``content`` that goes with them.

        Labels are indices into the same label names; a split that is None stays as it is.
        """
        return _finished(replace(
            self,
            train=self.train if train is None else tuple(train),
            validation=self.validation if validation is None else tuple(validation),
            test=self.test if test is None else tuple(test),
        ))  # fmt: skip

    def record(self) -> manifests.TaskRecord:
        """What a manifest keeps of the task."""
        return manifests.TaskRecord(
            name=self.name,
            content=self.content,
            kind=self.kind,
            metric=self.metric,
            text_columns=list(self.text_columns),
            label_column=self.label_column,
            counts={split: len(getattr(self, split)) for split in splits.SPLITS},
            ref=self.ref,
        )


def _finished(task: Task) -> Task:
    """The task with its content hash set."""
    state = hashlib.sha256()
    facts = [task.kind, task.metric, list(task.label_names), len(task.text_columns)]
    state.update(manifests.canonical_json(facts).encode())
    for split in splits.SPLITS:
        state.update(f"\n{split}\n".encode())
        for example in getattr(task, split):
            words_or_none = [list(example.words)] if example.words is not None else []
            row = manifests.canonical_json([example.text, example.text_pair, example.label, *words_or_none])
            state.update(row.encode("utf-8", "surrogatepass") + b"\n")
    return replace(task, content=state.hexdigest())


def _at_most(examples: tuple[Example, ...], size: int, kind: str, *parts: str | int) -> tuple[Example, ...]:
    if len(examples) <= size:
        return examples
    strata = splits.strata_of([example.label for example in examples], kind)
    return tuple(examples[row] for row in splits.choose(strata, size, *parts))


def load_task(
    source: str | Path | Mapping[str, Any],
    *,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    metric: str | None = None,
    kind: str | None = None,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    split_seed: int = 0,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    name: str | None = None,
    limit: int | None = None,
    label_names: Sequence[str] | None = None,
) -> Task:
    """Make a task of labelled data.

    Splits that the source does not bring are cut from its training rows, stratified and seeded. Label names are the
    given ones, else those the source names, else the training labels in their natural order (numbers by value, words
    alphabetically; of tags "O" first).

    Args:
        source: a .csv, .tsv, .jsonl, .json, .parquet or .conll file, a folder with train / validation / test files,
            "sample:NAME", a hub data set "owner/name[:config]", or a mapping of these arguments (key "source").
        text: the text column, or two for pairs (a list, or "first,second"); of token-classification the column of
            lists of words, of generation the prompts. Guessed where names make it clear.
        label: the label column; of token-classification the lists of tags, of generation the responses. Guessed where
            names make it clear.
        metric: a name of ``anytune.metrics.METRICS``; by default that of ``metrics.default_metric``.
        kind: one of ``KINDS``. By default columns of lists are words and their tags, two columns called prompt and
            response (or alike) are generation, numbers with a fraction and more than 20 distinct values are a
            regression target, and everything else is classes.
        validation: file of validation rows.
        test: file of test rows.
        split_seed: decides which rows go where.
        validation_fraction: share of the rows set aside for validation, where the source brings none.
        test_fraction: share of the rows set aside for test, where the source brings none.
        name: what tables call the task; by default the name of the file, sample or data set.
        limit: keep at most so many rows of each split, stratified.
        label_names: names of the classes in the order wanted; training labels must be among them.

    Raises:
        DataError: the data cannot be used as it is; the message names the file, the row and the value.
        SettingsError: an argument is unknown or out of range, or arguments contradict each other.
        SampleError: the sample is unknown or cannot be fetched.
    """
    given = {key: value for key, value in locals().items() if key != "source"}
    if isinstance(source, Mapping):
        return load_task(**sources.unfolded(source, given, "task"))
    _check_settings(metric, kind, limit)
    splits.check_fractions(validation_fraction, test_fraction)
    found = sources.find(source, validation=validation, test=test)
    return _task(
        found, text=text, label=label, metric=metric, kind=kind, split_seed=split_seed,
        validation_fraction=validation_fraction, test_fraction=test_fraction, name=name, limit=limit,
        label_names=label_names,
    )  # fmt: skip


def load_task_periods(
    source: str | Path | Mapping[str, Any], *, split_by: SplitBy | None = None, date: str | None = None, **options: Any
) -> dict[str, Task]:
    """Dated labelled data as a task for each period, in the order of time; each has its own splits and labels.

    Args:
        source: as for :func:`load_task`, or a mapping of these arguments (key "source").
        split_by: "year", "month", or a list of dates at which a period begins (:mod:`anytune.data.periods`).
        date: the column of dates, ISO 8601; by default "date".
        options: further arguments of :func:`load_task`; ``limit`` counts in each period.

    Raises:
        DataError: as there; no dates, or a period in which a split of the source has no row.
        SettingsError: an argument is unknown or out of range.
    """
    if isinstance(source, Mapping):
        known = dict.fromkeys(inspect.signature(load_task).parameters)
        given = sources.unfolded(source, {**known, "split_by": None, "date": None}, "task")
        chosen = {key: value for key, value in given.items() if value is not None}
        return load_task_periods(**{**options, **chosen})
    if split_by is None:
        raise SettingsError("split_by is missing", why="It says where one period ends.", fix="split_by: year")
    _check_settings(options.get("metric"), options.get("kind"), options.get("limit"))
    paths = {key: options.pop(key) for key in ("validation", "test") if key in options}
    fractions = {"validation_fraction": 0.1, "test_fraction": 0.2}
    given = {**dict.fromkeys(("text", "label", "metric", "kind", "name", "limit", "label_names")), "split_seed": 0,
             **fractions, **options}  # fmt: skip
    splits.check_fractions(given["validation_fraction"], given["test_fraction"])
    found = sources.find(source, **paths)
    column = date or "date"
    rows: dict[str, dict[str, list[int]]] = {}
    for split, table in found.tables.items():
        values = [str(value) for value in table.columns[columns.require_column(table, column, "date")]]
        rows[split] = periods(values, split_by, table.source)
    made = {}
    for period in sorted(set().union(*rows.values())):  # of all three kinds of name, time goes with the alphabet
        lacking = [split for split in rows if period not in rows[split]]
        if lacking:
            raise DataError(
                f"{found.name} has no {lacking[0]} row in the period '{period}'",
                why="Every period is a task of its own.", fix="other borders, or rows of that time",
            )  # fmt: skip
        tables = {split: table.rows(rows[split][period]) for split, table in found.tables.items()}
        part = replace(found, name=f"{found.name}-{period}", tables=tables, ref=None)
        name = f"{given['name']}-{period}" if given["name"] else None
        made[period] = _task(part, **{**given, "name": name})
    return made


def _task(
    found: sources.Source, *, text: str | Sequence[str] | None, label: str | None, metric: str | None,
    kind: str | None, split_seed: int, validation_fraction: float, test_fraction: float, name: str | None,
    limit: int | None, label_names: Sequence[str] | None,
) -> Task:  # fmt: skip
    """The task of rows that were found; arguments of :func:`load_task`."""
    if kind is None:
        kind = METRICS[metric].kind if metric else found.kind or columns.guess_kind(found.tables["train"], text, label)
    read = _READERS.get(kind or "", _read_labelled)(found, text, label, kind, label_names)
    kind, metric = read.kind, _metric(metric, found, read)
    examples, cut_notes = _split(read.examples, kind, split_seed, validation_fraction, test_fraction)
    if limit is not None:
        examples = {split: _at_most(part, limit, kind, "limit", split, split_seed) for split, part in examples.items()}
    task = Task(
        name=name or found.name,
        kind=kind,
        metric=metric,
        **examples,
        label_names=read.names,
        text_columns=found.text_columns or read.text_columns,
        label_column=read.label_column,
        ref=found.ref,
        content="",
        notes=(*found.notes, *cut_notes, *_duplicate_notes(examples), *_tag_notes(examples["train"], read)),
    )
    return _finished(task)


def _check_settings(metric: str | None, kind: str | None, limit: int | None) -> None:
    if metric is not None and metric not in METRICS:
        raise unknown("metric", metric, METRICS, SettingsError)
    if kind is not None and kind not in KINDS:
        raise unknown("kind of task", kind, KINDS, SettingsError)
    if limit is not None and limit < 1:
        raise SettingsError(f"limit is {limit}", why="A task needs rows.", fix="limit=1000")


@dataclass(frozen=True)
class _Read:
    """A source's rows as examples: those of "train", and of the other splits it brings."""

    kind: Kind
    examples: dict[str, tuple[Example, ...]]
    names: tuple[str, ...]
    text_columns: tuple[str, ...]
    label_column: str


def _read_labelled(
    found: sources.Source,
    text: str | Sequence[str] | None,
    label: str | None,
    kind: str | None,
    names: Sequence[str] | None,
) -> _Read:
    """Texts or pairs with a class or a number."""
    text_columns, label_column = columns.choose_columns(found.tables["train"], text, label)
    _require(found, text_columns, label_column)
    rows = {split: labels.read_rows(table, text_columns, label_column) for split, table in found.tables.items()}
    settled = kind or labels.guess_kind(rows["train"].labels)
    labels.refuse_constant(rows["train"], settled)
    if settled == "regression":
        examples = {split: _examples(part, labels.numbers(part)) for split, part in rows.items()}
        return _Read("regression", examples, (), text_columns, label_column)
    chosen = labels.label_names(rows["train"].labels, _named_classes(found, label_column, names))
    examples = {split: _examples(part, labels.indices(part, chosen)) for split, part in rows.items()}
    return _Read("classification", examples, chosen, text_columns, label_column)


def _read_tagged(
    found: sources.Source,
    text: str | Sequence[str] | None,
    label: str | None,
    kind: str | None,
    names: Sequence[str] | None,
) -> _Read:
    """Lists of words with a tag each."""
    word_column, tag_column = columns.choose_word_columns(found.tables["train"], text, label)
    _require(found, (word_column,), tag_column)
    rows = {split: words.read_tagged(table, word_column, tag_column) for split, table in found.tables.items()}
    words.refuse_one_tag(rows["train"])
    chosen = words.tag_names(rows["train"].tags, _named_classes(found, tag_column, names))
    examples = {
        split: tuple(
            Example(" ".join(sentence), None, tags, sentence)
            for sentence, tags in zip(part.words, words.tag_indices(part, chosen), strict=True)
        )
        for split, part in rows.items()
    }
    return _Read("token-classification", examples, chosen, (word_column,), tag_column)


def _read_prompted(
    found: sources.Source,
    text: str | Sequence[str] | None,
    label: str | None,
    kind: str | None,
    names: Sequence[str] | None,
) -> _Read:
    """Prompts with a response each."""
    if names is not None:
        raise SettingsError(f"label names {listed(list(names))} for generation", why="A response is a text, no class.")
    prompt_column, response_column = columns.choose_response_columns(found.tables["train"], text, label)
    _require(found, (prompt_column,), response_column)
    examples = {}
    for split, table in found.tables.items():
        prompts = sources.checked_texts(table, prompt_column)
        answers = responses.read_responses(table, response_column)
        if split == "train":
            responses.refuse_one_response(table, answers)
        examples[split] = tuple(Example(*row) for row in zip(prompts, [None] * len(prompts), answers, strict=True))
    return _Read("generation", examples, (), (prompt_column,), response_column)


_READERS = {"token-classification": _read_tagged, "generation": _read_prompted}


def _named_classes(found: sources.Source, label_column: str, given: Sequence[str] | None) -> Sequence[str] | None:
    """The names given, else those the source has; None where the training labels say them."""
    return given or found.tables["train"].class_names.get(label_column) or found.label_names or None


def _metric(metric: str | None, found: sources.Source, read: _Read) -> str:
    """The metric asked for, else the one the source names, else the default of the kind."""
    own = found.metric if found.kind == read.kind else None
    chosen = metric or own or default_metric(read.kind, read.names)
    if METRICS[chosen].kind != read.kind:
        fitting = [name for name, candidate in METRICS.items() if candidate.kind == read.kind]
        raise SettingsError(
            f"metric '{chosen}' scores {METRICS[chosen].kind}, the task is {read.kind}",
            fix=f"one of {listed(fitting)}",
        )
    if chosen == "f1_entities" and not are_entity_tags(read.names):
        raise SettingsError(
            f"metric 'f1_entities' on the tags {listed(read.names)}",
            why='Entities are counted in tags "O", "B-TYPE" and "I-TYPE".',
            fix="metric=accuracy_tokens",
        )
    return chosen


def _require(found: sources.Source, text_columns: tuple[str, ...], label_column: str) -> None:
    """Every split must have the columns of the training rows."""
    for table in found.tables.values():
        for column in text_columns:
            columns.require_column(table, column, "text")
        columns.require_column(table, label_column, "label")


def _examples(rows: labels.Rows, values: Sequence[int | float]) -> tuple[Example, ...]:
    pairs: Sequence[str | None] = rows.texts[1] if len(rows.texts) > 1 else [None] * len(values)
    return tuple(Example(*row) for row in zip(rows.texts[0], pairs, values, strict=True))


def _tag_notes(train: tuple[Example, ...], read: _Read) -> list[str]:
    if read.kind != "token-classification":
        return []
    return words.entity_notes([example.label for example in train if isinstance(example.label, tuple)], read.names)


def _split(
    examples: dict[str, tuple[Example, ...]], kind: str, seed: int, validation_fraction: float, test_fraction: float
) -> tuple[dict[str, tuple[Example, ...]], tuple[str, ...]]:
    """All three splits: those the source lacks are cut from its training rows."""
    fractions = {
        "validation": 0.0 if "validation" in examples else validation_fraction,
        "test": 0.0 if "test" in examples else test_fraction,
    }
    train = examples["train"]
    rows = splits.split_rows(
        splits.strata_of([example.label for example in train], kind),
        validation_fraction=fractions["validation"],
        test_fraction=fractions["test"],
        seed=seed,
    )
    cut = {split: tuple(train[row] for row in rows[split]) for split in splits.SPLITS}
    missing = [split for split, fraction in fractions.items() if fraction]
    notes = (f"{' and '.join(missing)} cut from the training rows with seed {seed}",) if missing else ()
    return {split: cut[split] if split == "train" else examples.get(split, cut[split]) for split in cut}, notes


def _duplicate_notes(examples: Mapping[str, tuple[Example, ...]]) -> list[str]:
    """A note for each held-out split that repeats training texts word for word."""
    train = {(example.text, example.text_pair) for example in examples["train"]}
    notes = []
    for split in ("validation", "test"):
        count = sum((example.text, example.text_pair) in train for example in examples[split])
        if count:
            notes.append(f"{count} of {len(examples[split])} {split} texts stand in train word for word")
    return notes
