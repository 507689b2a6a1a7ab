"""anytune: keep what you tuned when the base model is upgraded.

Nothing heavy is imported here: each name is loaded when it is first used.
"""

from __future__ import annotations

from typing import Any

from anytune._version import __version__

__all__ = ["__version__"]
