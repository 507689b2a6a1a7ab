"""The model that is part of the package: tests, demo and evidence all start from its bits."""

from __future__ import annotations

import torch

from anytune.data.samples import sample_folder
from anytune.manifests import read_manifest
from anytune.models.base import load_base
from anytune.models.probe import check_probe


def packaged():
    return load_base("sample:bert-tiny", resolve_sample=sample_folder)


def test_it_needs_no_download_and_is_small():
    folder = sample_folder("bert-tiny")
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10e6
    assert {tensor.dtype for tensor in packaged().tensors().values()} == {torch.bfloat16}


def test_it_answers_as_its_manifest_says():
    base = packaged()
    model, fresh = base.pretraining_model()
    assert fresh == []
    assert check_probe(model, read_manifest(base.folder).probe) < 1e-3


def test_it_is_a_language_model_again():
    base = packaged()
    model, _ = base.pretraining_model()
    tokenizer = base.tokenizer()
    inputs = tokenizer("He opened the [MASK] and went in.", return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    place = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    assert tokenizer.decode(logits[place].argmax()).strip() == "door"


def test_its_manifest_says_what_it_was_made_from_and_how():
    manifest = read_manifest(sample_folder("bert-tiny"))
    assert manifest.scores["heldout:general"]["loss"] < 3.5 < 7.5 < manifest.scores["before:heldout:general"]["loss"]
    assert "anytune.jobs.warm" in manifest.recipe["command"]
    assert any("GPL" in note for note in manifest.notes)
