"""Fetch the package lists of the machine's own Debian or Ubuntu archive with its apt, as a plain user.

A package archive describes each package in two lists: "Packages" (section, source package, and the MD5 of the
description) and "Translation-en" (the description itself under that MD5). Many machines are set not to keep the
second, so ``apt-get update`` is run on a private folder that is deleted afterwards: no root, nothing installed, and
the machine's own lists, caches and update hooks are left alone. apt checks the archive's signature as it always does.

Only the main component of a release itself is kept, not its updates and security fixes: those move every day, a
release a few times a year. Of each package only the few fields that are used are kept, so that a rebuild that changes
none of them changes no digest.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from anytune.data.samples.clients import program, run
from anytune.data.samples.sources import Source
from anytune.errors import SampleError

#: what is in the archive that ``download`` makes
PACKAGES, DESCRIPTIONS, SEEN = "lists/packages.txt", "lists/descriptions.txt", "lists/seen.json"
PACKAGE_FIELDS = ("Package", "Source", "Section", "Description-md5")
DESCRIPTION_FIELDS = ("Description-md5", "Description-en")
#: archives whose lists are known to have this form; a vendor's own repository is nobody's sample
ORIGINS = ("Debian", "Ubuntu")
#: free software: Debian's main, and Ubuntu's main and universe
COMPONENTS = ("main", "universe")
APT_HELPER = Path("/usr/lib/apt/apt-helper")
#: lists of settings can be emptied in a file only; hooks would act on the machine's own lists
_SETTINGS = """\
#clear Acquire::Languages;
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Acquire::Languages "en";
"""
_COLUMNS = ("CREATED_BY", "ORIGIN", "CODENAME", "SUITE", "COMPONENT", "ARCHITECTURE", "FILENAME")


class Listing(NamedTuple):
    """One list that apt fetched, as ``apt-get indextargets`` describes it."""

    kind: str
    origin: str
    codename: str
    suite: str
    component: str
    architecture: str
    file: str

    @property
    def part(self) -> tuple[str, str, str]:
        """The part of an archive it describes."""
        return self.origin, self.codename, self.component


def download(source: Source, folder: Path) -> Path:
    """Fetch the lists and pack what is used of them into one tar in the (empty) ``folder``; return its path.

    The tar's name says which release and architecture was seen; equal lists give equal bytes.

    Raises:
        SampleError: apt is missing, its archive cannot be reached, or it is neither Debian nor Ubuntu.
    """
    apt_get = program("apt-get", source)
    if not APT_HELPER.is_file():
        raise SampleError(
            "apt-helper is not installed", why="It is the part of apt that reads the lists.", fix="reinstall apt"
        )
    private = folder / "apt"
    for part in ("lists/partial", "cache/archives/partial"):
        (private / part).mkdir(parents=True)
    (private / "apt.conf").write_text(_SETTINGS)
    places = [f"Dir::State::lists={private / 'lists'}", f"Dir::Cache={private / 'cache'}"]
    settings = ["-c", str(private / "apt.conf"), *(part for place in places for part in ("-o", place))]

    update = run([apt_get, *settings, "update"], folder, source)
    columns = "\t".join(f"$({name})" for name in _COLUMNS)
    told = run([apt_get, *settings, "indextargets", "--format", columns], folder, source)
    packages, descriptions = chosen(told.stdout)
    if not packages:
        # A repository of the user's own may well fail while the archive answers, so it is the lists that decide.
        raise _refused(source, update.stdout + "\n" + update.stderr, told.stdout)

    def read(listings: Iterable[Listing], fields: tuple[str, ...]) -> str:
        texts = []
        for listing in listings:
            answer = run([str(APT_HELPER), "cat-file", listing.file], folder, source)
            if answer.returncode != 0:
                raise SampleError(f"cannot read the package list apt fetched: {answer.stderr.strip()[:200]}")
            texts.append(kept_fields(answer.stdout, fields))
        return "".join(texts)

    contents = {PACKAGES: read(packages, PACKAGE_FIELDS), DESCRIPTIONS: read(descriptions, DESCRIPTION_FIELDS)}
    architectures = sorted({listing.architecture for listing in packages})
    seen = {
        "releases": [list(part) for part in sorted({listing.part for listing in packages})],
        "architectures": architectures,
        "packages": contents[PACKAGES].count("\n\n"),
        "descriptions": contents[DESCRIPTIONS].count("\n\n"),
    }
    contents[SEEN] = json.dumps(seen, indent=1, sort_keys=True) + "\n"
    shutil.rmtree(private)
    releases = "+".join(sorted({f"{listing.origin}-{listing.codename}" for listing in packages}))
    return _packed(folder / f"{releases}-{'+'.join(architectures)}.tar".lower(), contents)


def chosen(said: str) -> tuple[list[Listing], list[Listing]]:
    """The lists to read among the lines of ``apt-get indextargets``: of packages, and of their descriptions.

    Taken are known archives, free components and releases proper (the names of updates, security fixes, backports and
    the like have a hyphen), where both lists came. In an order that does not depend on the machine's settings.
    """
    found = [Listing(*fields) for line in said.splitlines() if len(fields := line.split("\t")) == len(_COLUMNS)]
    found = [
        listing
        for listing in found
        if listing.origin in ORIGINS
        and listing.component in COMPONENTS
        and "-" not in listing.codename + listing.suite
    ]
    of_kind = {
        kind: sorted({listing for listing in found if listing.kind == kind}) for kind in ("Packages", "Translations")
    }
    both = set.intersection(*({listing.part for listing in listings} for listings in of_kind.values()))
    packages, descriptions = (
        [listing for listing in listings if listing.part in both] for listings in of_kind.values()
    )
    return packages, descriptions


def kept_fields(text: str, fields: Iterable[str]) -> str:
    """The paragraphs of a list with those fields alone; each paragraph ends in one empty line."""
    wanted = tuple(f"{field}:" for field in fields)
    kept: list[str] = []
    keep = False
    for line in [*text.split("\n"), ""]:
        if not line:
            keep = False
            if kept and kept[-1]:
                kept.append("")
        elif line[0] not in " \t":
            keep = line.startswith(wanted)
        if keep:
            kept.append(line)
    return "".join(f"{line}\n" for line in kept)


def _packed(place: Path, contents: dict[str, str]) -> Path:
    """A tar without times or owners."""
    with tarfile.open(place, "w") as archive:
        for name, text in contents.items():
            data = text.encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return place


def _refused(source: Source, said: str, targets: str) -> SampleError:
    """Turn what apt printed into what the user can do."""
    lines = [line.strip() for line in said.splitlines() if line.startswith(("E:", "W:"))]
    lines = [line for line in lines if "unsandboxed" not in line]  # what root is told, whatever happens
    told = f"apt-get said: {lines[0][:300]}" if lines else ""
    what = f"apt-get update brought no package lists with English descriptions for {source.package}"
    if targets.strip() and not lines:
        return SampleError(
            what,
            why=f"The lists of a release of {' or '.join(ORIGINS)} are needed; this machine's apt has others.",
            fix="run on Debian or Ubuntu, or use another sample (anytune samples)",
        )
    return SampleError(what, why=told, fix="check that apt-get can reach its archive, then run the same command again")
