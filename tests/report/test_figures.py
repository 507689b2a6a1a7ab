from __future__ import annotations

import builtins
import csv
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from anytune.errors import AnytuneError
from anytune.evaluate import compare, runs_of
from anytune.report import build, read_store
from anytune.report.figures import write_figures
from tests.report.stores import delta, write_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = [delta("../a $x$", "v1", "direct", seed, steps=0, start=0.4) for seed in range(2)]
    runs += [delta("../a $x$", "v1", "fresh", seed, steps=100) for seed in range(2)]
    return write_store(tmp_path_factory.mktemp("figures") / "store", runs)


def test_each_figure_is_written_as_png_svg_and_csv_with_the_computed_numbers(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    build(store, tmp_path / "page.html", figures=tmp_path / "figures")
    names = sorted(file.name for file in (tmp_path / "figures").iterdir())
    assert names == [f"a-x-on-v1-{axis}.{kind}" for axis in ("seconds", "steps") for kind in ("csv", "png", "svg")]
    assert (tmp_path / "figures" / names[1]).read_bytes().startswith(b"\x89PNG")
    ElementTree.parse(tmp_path / "figures" / names[2])
    with (tmp_path / "figures" / "a-x-on-v1-steps.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["arm"] for row in rows] == ["direct"] + ["fresh"] * 5
    (fresh,) = [row for row in compare(runs_of(read_store(store)[0])) if row.arm == "fresh"]
    ends = [100 * run.curve.scores[-1] for run in fresh.runs if run.curve]
    assert [float(rows[-1][key]) for key in ("steps", "mean", "low", "high", "seeds")] == pytest.approx(
        [100, sum(ends) / 2, min(ends), max(ends), 2]
    )


def test_the_same_numbers_give_the_same_bytes(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    artefacts, _ = read_store(store)
    first, second = (write_figures(artefacts, tmp_path / name) for name in ("one", "two"))
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def test_without_matplotlib_the_error_says_what_to_install(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordinary = builtins.__import__

    def without(name: str, *rest: object, **more: object) -> object:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return ordinary(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    with pytest.raises(AnytuneError) as caught:
        build(store, tmp_path / "page.html", figures=tmp_path / "figures")
    assert caught.value.fix == 'pip install "anytune[figures]"'
    assert not (tmp_path / "page.html").exists()
