"""The page, the figures and the terminal tables, made from a store alone."""

from __future__ import annotations

from anytune.report.page import build, page
from anytune.report.reading import read_store

__all__ = ["build", "page", "read_store"]
