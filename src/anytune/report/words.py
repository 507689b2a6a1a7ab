"""How numbers are written on the page and in the terminal."""

from __future__ import annotations

from anytune.evaluate import Difference, Summary

NOTHING = "–"


def decimal(value: float | None, places: int = 1) -> str:
    """A number with a true minus sign, and a dash for none; never "-0.0"."""
    if value is None:
        return NOTHING
    text = f"{value:,.{places}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text.replace("-", "−")


def signed(value: float | None, places: int = 1) -> str:
    """A difference: with its sign, always."""
    text = decimal(value, places)
    return f"+{text}" if value is not None and float(f"{value:.{places}f}") > 0 else text


def mean_sd(summary: Summary | None) -> str:
    """``61.2 ± 0.8``, or the value alone for one seed."""
    if summary is None:
        return NOTHING
    return decimal(summary.mean) + (f" ± {decimal(summary.sd)}" if summary.sd is not None else "")


def interval(difference: Difference | None) -> str:
    """``−0.4 to 2.0``, empty where there is none."""
    return "" if difference is None else interval_text(difference.low, difference.high)


def interval_text(low: float | None, high: float | None) -> str:
    """``−0.4 to 2.0``, empty where there is none."""
    return "" if low is None else f"{decimal(low)} to {decimal(high)}"


def count(value: float | None) -> str:
    """A count, thousands apart."""
    return decimal(value, 0)


def short_count(value: float) -> str:
    """``412k``, ``1.3M``: counts of tokens in a drawing."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}"


def share(value: float | None) -> str:
    """A share as a percentage without decimals."""
    return NOTHING if value is None else f"{decimal(100 * value, 0)} %"


def duration(seconds: float | None) -> str:
    """``8.4 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds is None:
        return NOTHING
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
