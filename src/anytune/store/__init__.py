"""Finding things: a folder of bases and deltas, known by the manifests beside the weights.

``importing`` (adapters made elsewhere) needs torch and is therefore imported by name only.
"""

from anytune.store.entry import Entry
from anytune.store.store import Store

__all__ = ["Entry", "Store"]
