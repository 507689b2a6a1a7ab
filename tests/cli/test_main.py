"""The command line as a whole: how fast it answers, what it loads, and how it fails."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from anytune._version import __version__

HEAVY = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "pandas",
    "numpy",
    "pydantic",
    "pyarrow",
    "yaml",
    "rich",
)
COMMANDS = (
    "demo", "samples", "methods", "pretrain", "tune", "diagnose", "recycle", "upgrade", "compare", "anytime",
    "transfer", "evaluate", "predict", "merge", "export", "report", "store", "run",
)  # fmt: skip


def process(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "anytune.cli.main", *words], capture_output=True, text=True, **options
    )


def test_help_names_every_command_in_the_order_of_the_life_cycle(cli):
    answer = cli("--help")
    assert answer.code == 0
    places = [answer.out.index(f"\n  {name} ") for name in COMMANDS]
    assert places == sorted(places)
    assert "..." not in answer.out.split("Commands:")[1]  # no description is cut off


@pytest.mark.parametrize(
    "words", [["--help"], ["tune", "--help"], ["store", "list", "--help"], ["--version"], ["tnue"]]
)
def test_nothing_heavy_is_imported_before_a_command_runs(words):
    # typer itself takes pydantic to read the words of a command
    heavy = HEAVY if words[0].startswith("--") else [name for name in HEAVY if name != "pydantic"]
    code = (
        "import sys\n"
        "from anytune.cli.main import main\n"
        f"try: main({words!r})\n"
        "except SystemExit: pass\n"
        f"print('LOADED', [name for name in {heavy!r} if name in sys.modules])\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "LOADED []"


@pytest.mark.slow
def test_help_takes_less_than_a_third_of_a_second():
    seconds = []  # of the processor: other work on the machine is no fault of the command's
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process("--help", check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.3


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(cli, name):
    answer = cli(name, "--help")
    assert answer.code == 0
    assert answer.err == ""
    assert "Usage: anytune" in answer.out


def test_the_version_is_that_of_the_package(cli):
    assert cli("--version").out == f"anytune {__version__}\n"


def test_python_m_anytune_is_the_command():
    said = subprocess.run([sys.executable, "-m", "anytune", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout == f"anytune {__version__}\n"


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["tnue"], "tune"), (["stor", "list"], "store"), (["store", "lst"], "list"), (["samples", "fech"], "fetch"),
        (["tune", "--stpes", "3"], "--steps"), (["store", "list", "--taks", "x"], "--task"),
    ],
)  # fmt: skip
def test_a_mistyped_command_or_option_gets_the_near_one(cli, words, near):
    answer = cli(*words)
    assert answer.code == 2
    assert near in answer.err
    assert "Traceback" not in answer.err


def test_a_value_of_the_wrong_kind_is_a_usage_error(cli):
    answer = cli("tune", "--steps", "many")
    assert answer.code == 2
    assert "--steps" in answer.err
    assert "integer" in answer.err


# Failures


def failing(monkeypatch, problem: BaseException) -> None:
    import anytune.jobs.report

    def fail(*_, **__):
        raise problem

    monkeypatch.setattr(anytune.jobs.report, "report", fail)


def test_an_unexpected_error_is_one_line_and_exit_1(cli, monkeypatch):
    failing(monkeypatch, ValueError("shapes\ndiffer"))
    answer = cli("report")
    assert answer.code == 1
    assert answer.err == ("error: ValueError: shapes differ (this is a bug in anytune; rerun with --traceback)\n")


@pytest.mark.parametrize("words", [["--traceback", "report"], ["report", "--traceback"]])
def test_the_traceback_is_there_for_the_asking_wherever_the_option_stands(cli, monkeypatch, words):
    failing(monkeypatch, ValueError("shapes differ"))
    answer = cli(*words)
    assert answer.code == 1
    assert "Traceback (most recent call last)" in answer.err
    assert answer.err.rstrip().endswith("error: ValueError: shapes differ (this is a bug in anytune)")


def test_traceback_after_two_dashes_is_a_word_like_others(cli, monkeypatch):
    asked = []
    monkeypatch.setattr("anytune.jobs.load.predict", lambda delta, texts, **_: asked.extend(texts) or [{"value": 0.5}])
    cli("predict", "delta", "--", "--traceback")
    assert asked == ["--traceback"]


def test_an_interrupt_says_that_the_run_goes_on(cli, monkeypatch):
    failing(monkeypatch, KeyboardInterrupt())
    answer = cli("report")
    assert answer.code == 2
    assert answer.err == "interrupted; the same command goes on where it was\n"


def test_an_error_has_three_parts_and_no_control_characters(cli, monkeypatch):
    from anytune.errors import DataError

    failing(monkeypatch, DataError("label '\x1b[2Jx' is new", why="It was never seen.", fix="--test FILE"))
    answer = cli("report")
    assert answer.code == 2
    assert answer.err == "error: label '\\x1b[2Jx' is new\nIt was never seen.\ntry: --test FILE\n"


def test_parts_that_are_missing_leave_no_empty_lines(cli, monkeypatch):
    from anytune.errors import DataError

    failing(monkeypatch, DataError("no text"))
    assert cli("report").err == "error: no text\n"


def test_errors_are_red_on_a_terminal_only(monkeypatch, capsys):
    from anytune.cli import failures
    from anytune.errors import DataError

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    failures.show_error(DataError("no text"))
    assert capsys.readouterr().err.startswith("\x1b[1;31merror:\x1b[0m")
    monkeypatch.setenv("NO_COLOR", "1")
    failures.show_error(DataError("no text"))
    assert capsys.readouterr().err.startswith("error:")


def test_a_reader_that_leaves_early_is_no_error():
    code = (
        "import sys\n"
        "from anytune.cli import main, report\n"
        "import anytune.jobs.report\n"
        "anytune.jobs.report.report = lambda *a, **k: 'x' * 5_000_000\n"
        "main.main(['report'])\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out:
        said = subprocess.run([sys.executable, "-c", code], stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    assert said.stderr == ""
    assert said.returncode == 1


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_no_character_ends_a_command_on_a_pipe_of_another_encoding(encoding):
    code = (
        "import anytune.jobs.report\n"
        "anytune.jobs.report.report = lambda *a, **k: 'd\\xe9j\\xe0 vu \\u732b \\u2192'\n"
        "from anytune.cli.main import main\n"
        "main(['report'])\n"
    )
    environment = {**os.environ, "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONIOENCODING": encoding}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)
    assert said.returncode == 0, said.stderr
    assert said.stdout.decode(encoding).startswith("d")


def test_a_pipe_in_a_plain_locale_gets_utf8():
    code = (
        "import anytune.jobs.report\n"
        "anytune.jobs.report.report = lambda *a, **k: 'd\\xe9j\\xe0 vu \\u732b'\n"
        "from anytune.cli.main import main\n"
        "main(['report'])\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONIOENCODING"}
    environment |= {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    assert said.stdout.decode() == "déjà vu 猫\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on_by_the_same_command(tmp_path, tiny_base, tiny_task, number):
    words = [sys.executable, "-m", "anytune", "tune", tiny_base, tiny_task, "--steps", "1000000", "--store", "s"]
    said = []
    for _ in range(2):
        with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
            lines = [run.stderr.readline()]
            while " steps" not in lines[-1]:  # the run's title: training begins
                lines.append(run.stderr.readline())
            time.sleep(1.5)
            run.send_signal(number)
            out, rest = run.communicate(timeout=60)
        assert run.returncode == 2, rest
        assert out == ""
        assert rest.splitlines()[-1].startswith("interrupted; the same command goes on where it was (things on tiny")
        assert "Traceback" not in rest
        said.append("".join(lines))
    assert "going on at step" not in said[0]
    assert "going on at step" in said[1]
    assert not list((tmp_path / "s").glob("deltas/*"))
