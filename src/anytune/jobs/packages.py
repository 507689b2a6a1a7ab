"""Whether the installed packages fit: the declared ranges, and combinations that are known to go wrong.

The ranges are those of anytune's own installed metadata. A known-bad combination is a row of :data:`KNOWN_BAD`: data,
with the thread upstream in which it was found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

#: Packages that anytune computes and stores with, in the order they are shown.
CORE = (
    "torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "huggingface-hub", "numpy",
)  # fmt: skip


@dataclass(frozen=True)
class KnownBad:
    """A combination of packages that goes wrong.

    Attributes:
        packages: name -> range of versions it is about ("" for any); all must be installed.
        wrong: what goes wrong.
        link: the thread upstream.
        fix: what to type.
    """

    packages: Mapping[str, str]
    wrong: str
    link: str
    fix: str


KNOWN_BAD = (
    KnownBad(
        {"adapter-transformers": "", "transformers": ""},
        "adapter-transformers is a fork that writes its files over those of transformers",
        "https://github.com/huggingface/transformers/issues/26465",
        "pip uninstall adapter-transformers transformers && pip install transformers",
    ),
    KnownBad(
        {"transformers": ">=5.6", "peft": "<0.18.2"},
        "transformers refuses to load adapters with this peft",
        "https://github.com/huggingface/transformers/issues/45405",
        "pip install -U peft",
    ),
)

#: Packages that transformers imports where they are there, and that break its import if they were built for another
#: torch: "operator torchvision::nms does not exist".
BUILT_FOR_TORCH = {
    "torchvision": "https://github.com/pytorch/pytorch/issues/157648",
    "torchaudio": "https://github.com/pytorch/pytorch/issues/157648",
}


def installed(name: str) -> str | None:
    """The version of a package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requirements(name: str = "anytune") -> list[Requirement]:
    """What a package declares to need here, without its extras; [] if it is not installed."""
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            one = Requirement(line)
        except InvalidRequirement:
            continue
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            found.append(one)
    return found


def fits(version: str, allowed: SpecifierSet | str) -> bool:
    """Whether a version is in a range; a build tag (``+cpu``) and pre-releases count as their version."""
    return SpecifierSet(str(allowed)).contains(version.partition("+")[0], prereleases=True)


def known_bad(rows: tuple[KnownBad, ...] = KNOWN_BAD) -> Iterator[KnownBad]:
    """The rows that describe this installation."""
    for row in rows:
        versions = {name: installed(name) for name in row.packages}
        if all(version is not None and fits(version, row.packages[name]) for name, version in versions.items()):
            yield row


def built_for_another_torch() -> Iterator[KnownBad]:
    """Packages built for another torch than the one that is installed."""
    torch = installed("torch")
    for name, link in BUILT_FOR_TORCH.items():
        for need in requirements(name):
            if torch and canonicalize_name(need.name) == "torch" and not fits(torch, need.specifier):
                yield KnownBad(
                    {name: "", "torch": ""},
                    f"{name} {installed(name)} is built for torch {need.specifier}, and torch is {torch}; then "
                    "transformers cannot be imported",
                    link,
                    f"pip uninstall {name}   (anytune does not need it), or install the one for this torch",
                )
