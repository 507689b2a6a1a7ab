"""What every test stands on: one thread, no network, a cache of its own, a tiny random base and a tiny task."""

from __future__ import annotations

import os

# Before torch and huggingface_hub are imported: both read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import csv
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
#: three groups of words; the label of a text is the group most of its words come from
TOPICS = {
    "animal": [f"{stem}{end}" for stem in ("cat", "dog", "owl", "fox", "bear") for end in ("", "ling", "paw", "fur")],
    "plant": [
        f"{stem}{end}" for stem in ("oak", "fern", "moss", "rose", "leek") for end in ("", "leaf", "root", "bud")
    ],
    "stone": [
        f"{stem}{end}" for stem in ("flint", "slate", "chalk", "onyx", "jade") for end in ("", "dust", "rock", "y")
    ],
}
COMMON = ["the", "a", "is", "was", "near", "under", "old", "small", "and", "with", "seen", "found", "we", "by", "some"]
VOCABULARY = 200


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(request, monkeypatch, session_cache):
    """A temporary cache, except for tests that download real samples, which should not do so every time."""
    if request.node.get_closest_marker("downloads") is None:
        monkeypatch.setenv("ANYTUNE_CACHE", str(session_cache))


def write_tiny_tokenizer(folder: Path) -> None:
    """A WordPiece tokenizer of ``VOCABULARY`` entries that knows the words of the tiny task whole."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIALS, *COMMON, *(word for group in TOPICS.values() for word in group)]
    letters = "abcdefghijklmnopqrstuvwxyz"
    words += [piece for letter in letters for piece in (letter, f"##{letter}") if piece not in words]
    words += [f"[unused{index}]" for index in range(VOCABULARY - len(words))]
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64, model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip


def write_tiny_base(folder: Path, seed: int = 0) -> Path:
    """A random two-layer BERT with its masked-word head, as transformers itself saves it."""
    import torch
    from transformers import BertConfig, BertForMaskedLM
    from transformers.utils import logging

    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertForMaskedLM(config).save_pretrained(folder)
    write_tiny_tokenizer(folder)
    return folder


def tiny_rows(count: int = 60, seed: int = 0) -> list[tuple[str, str]]:
    """``count`` distinct (text, label) rows, the labels in turn."""
    draw, rows = random.Random(seed), {}
    while len(rows) < count:
        label = list(TOPICS)[len(rows) % len(TOPICS)]
        words = draw.choices(TOPICS[label], k=4) + draw.choices(COMMON, k=5)
        draw.shuffle(words)
        rows.setdefault(" ".join(words), label)
    return list(rows.items())


def write_rows(path: Path, rows, header=("text", "label")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle).writerows([header, *rows])
    return path


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """Folder of a tiny random BERT (2 layers, hidden 32, 200 words); shared by all tests, so only read it."""
    return write_tiny_base(tmp_path_factory.mktemp("bases") / "tiny", seed=0)


@pytest.fixture(scope="session")
def other_base(tmp_path_factory) -> Path:
    """The same shape and words as ``tiny_base``, other weights."""
    return write_tiny_base(tmp_path_factory.mktemp("bases") / "other", seed=1)


@pytest.fixture(scope="session")
def tiny_task(tmp_path_factory) -> Path:
    """A CSV file with the columns text and label: 60 rows, 3 classes that single words give away."""
    return write_rows(tmp_path_factory.mktemp("tasks") / "things.csv", tiny_rows())


@pytest.fixture(scope="session")
def tiny_domain(tmp_path_factory) -> Path:
    """A text file of 200 documents made of the same words, none of them a row of ``tiny_task``."""
    path = tmp_path_factory.mktemp("domains") / "walks.txt"
    path.write_text(
        "\n".join(
            f"{left} {right}" for (left, _), (right, _) in zip(tiny_rows(200, 1), tiny_rows(200, 2), strict=True)
        ),
        encoding="utf-8",
    )
    return path


@dataclass(frozen=True)
class Answer:
    """What a command left behind: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch) -> Callable[..., Answer]:
    """``cli("tune", base, task)`` runs the real command line in this process, in an empty current folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> Answer:
        from anytune.cli.main import main

        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        said = capsys.readouterr()
        return Answer(left.value.code or 0, said.out, said.err)

    return call
