"""lm-eval's tasks on our models: offline, its numbers are those of the model, and a tuned model scores differently."""

from __future__ import annotations

import builtins
import json
import math
import random
import socket
from pathlib import Path

import pytest
import torch

import anytune
from anytune.errors import BaseError, DeltaError, SettingsError
from tests.models.kinds import make_kind

pytest.importorskip("lm_eval")

CHOICES = ["oak fern moss", "cat dog owl", "flint slate"]
TEXT = "the old oak and a small fern near the cat"
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
metric_list: [{metrics}]
{rest}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two tasks of local files: a choice among three answers, and the perplexity of a text."""
    place = tmp_path_factory.mktemp("tasks")
    rows = [{"q": f"the {word} is", "choices": CHOICES, "gold": 0} for word in ("oak", "fern", "moss", "rose")]
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (place / "texts.jsonl").write_text(json.dumps({"text": TEXT}))
    (place / "choose.yaml").write_text(
        TASK.format(name="choose", rows=place / "rows.jsonl", metrics="{metric: acc}, {metric: acc_norm}",
                    rest='output_type: multiple_choice\ndoc_to_text: "{{q}}"\ndoc_to_choice: "{{choices}}"\n'
                    "doc_to_target: gold\ntarget_delimiter: \"\"")
    )  # fmt: skip
    (place / "read.yaml").write_text(
        TASK.format(name="read", rows=place / "texts.jsonl", metrics="{metric: byte_perplexity}",
                    rest='output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"')
    )  # fmt: skip
    return place


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return make_kind("llama", tmp_path_factory.mktemp("llama") / "tiny-llama")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(self, address):
        raise AssertionError(f"reached for {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_perplexity_is_that_of_the_model(folder, llama):
    answer = anytune.lm_eval(str(llama), ["read"], include_path=folder)
    base = anytune.open_base(str(llama))
    model, _ = base.pretraining_model()
    tokenizer = base.tokenizer()
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    with torch.no_grad():
        logits = model(input_ids=torch.cat([torch.tensor([[start]]), ids], dim=1)[:, :-1]).logits
    said = torch.log_softmax(logits.double(), -1)[0].gather(1, ids[0][:, None]).sum().item()
    expected = math.exp(-said / len(TEXT.encode()))
    found = answer["tasks"]["read"]
    assert found["scores"]["byte_perplexity"] == pytest.approx(expected, rel=1e-4)
    assert (found["examples"], found["higher_is_better"]) == (1, {"byte_perplexity": False})
    assert answer["reference"] == "tiny-llama"


def test_a_tuned_delta_scores_otherwise_than_its_base_and_its_manifest_says_so(folder, llama, tmp_path):
    rows = [{"prompt": f"the {word} is", "response": CHOICES[0]} for word in ("oak", "fern", "moss", "rose") * 5]
    rows = [{**row, "prompt": f"{'by ' * number}{row['prompt']}"} for number, row in enumerate(rows)]
    rows += [{"prompt": f"we {'by ' * number}", "response": CHOICES[1]} for number in range(1, 5)]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))
    [delta] = anytune.tune(
        str(llama), str(tmp_path / "answers.jsonl"), store=tmp_path / "s", method="full", kind="generation",
        training={"steps": 80, "batch_size": 8, "learning_rate": 1e-2},
    )  # fmt: skip
    before = anytune.lm_eval(str(llama), ["choose", "read"], include_path=folder)["tasks"]
    after = anytune.lm_eval(delta, ["choose", "read"], include_path=folder, base=str(llama))["tasks"]
    assert after["choose"]["scores"]["acc"] == 1.0
    assert before["choose"]["scores"]["acc"] < 1.0
    assert before["read"]["scores"] != after["read"]["scores"]
    kept = anytune.Store(tmp_path / "s").get(delta.reference).manifest.scores
    assert kept["lm-eval:choose"] == after["choose"]["scores"]
    anytune.lm_eval(delta, ["choose"], include_path=folder, base=str(llama), limit=1)
    assert anytune.Store(tmp_path / "s").get(delta.reference).manifest.scores == kept  # a part is no score of it


def test_a_limit_and_examples_in_the_prompt(folder, llama):
    found = anytune.lm_eval(str(llama), ["choose"], include_path=folder, limit=2)
    assert (found["limit"], found["tasks"]["choose"]["examples"]) == (2, 2)
    assert set(found["tasks"]["choose"]["scores"]) == {"acc", "acc_norm"}
    assert set(found["tasks"]["choose"]["stderr"]) == {"acc", "acc_norm"}


def test_random_states_are_as_they_were(folder, llama):
    import numpy

    states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    anytune.lm_eval(str(llama), ["read"], include_path=folder)
    assert (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states


def test_models_that_predict_no_next_words_are_refused(folder, tiny_base, tiny_task, tmp_path):
    with pytest.raises(BaseError, match="fills gaps"):
        anytune.lm_eval(str(tiny_base), ["read"], include_path=folder)
    [delta] = anytune.tune(str(tiny_base), str(tiny_task), store=tmp_path / "s", method="lora", training={"steps": 1})
    with pytest.raises(DeltaError, match="tuned for classification"):
        anytune.lm_eval(delta, ["read"], include_path=folder)


@pytest.mark.parametrize(
    ("tasks", "options", "said"),
    [
        ([], {}, "no task"),
        (["read"], {"limit": 0}, "limit = 0"),
        (["read"], {"include_path": "nowhere"}, "nowhere is no folder"),
    ],
)
def test_what_cannot_be_asked(folder, llama, tasks, options, said):
    with pytest.raises(SettingsError, match=said):
        anytune.lm_eval(str(llama), tasks, **{"include_path": folder, **options})


def test_a_task_whose_data_are_not_here(folder, llama, tmp_path):
    (tmp_path / "gone.yaml").write_text((folder / "read.yaml").read_text().replace("texts.jsonl", "gone.jsonl")
                                        .replace("task: read", "task: gone"))  # fmt: skip
    with pytest.raises(SettingsError, match="could not run gone"):
        anytune.lm_eval(str(llama), ["gone"], include_path=tmp_path)


def test_without_lm_eval_the_error_says_what_to_install(cli, monkeypatch, llama):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        "anytune.evaluate.lm_eval_bridge.find_spec", lambda name: None if name == "lm_eval" else find(name)
    )
    load = builtins.__import__

    def refuse(name, *rest, **more):
        assert not name.startswith("lm_eval"), name
        return load(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    answer = cli("lm-eval", llama, "--tasks", "hellaswag")
    assert (answer.code, answer.out) == (2, "")
    assert 'try: pip install "anytune[lm-eval]"' in answer.err


def test_the_command_prints_a_table_and_json(cli, folder, llama):
    answer = cli("lm-eval", llama, "--tasks", "choose,read", "--include-path", folder)
    assert answer.code == 0, answer.err
    assert [line.split()[:2] for line in answer.out.splitlines()] == [
        ["task", "metric"], ["choose", "acc"], ["choose", "acc_norm"], ["read", "byte_perplexity"],
    ]  # fmt: skip
    answer = cli("lm-eval", llama, "--tasks", "read", "--include-path", folder, "--json")
    assert json.loads(answer.out)["tasks"]["read"]["examples"] == 1
