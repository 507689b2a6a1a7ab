from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from anytune.data.masking import IGNORED
from anytune.data.packing import TokenizerFacts
from anytune.errors import MethodError
from anytune.methods import registry
from anytune.methods.distillation import logit_distillation
from anytune.methods.protocol import Run, check_kinds
from anytune.methods.step import trainable
from anytune.methods.tune.dft_plus import GRAFT, BorrowedHead, borrowed, generation, masked_texts, masked_word_loss
from anytune.models.base import load_base
from anytune.models.delta import FullDelta
from anytune.models.language_modelling import labelled_logits
from tests.conftest import VOCABULARY
from tests.methods.prepared import TEXTS, batch_of, prepared
from tests.models.kinds import ENCODERS, make_kind

FACTS = TokenizerFacts(begin_id=2, separator_id=3, end_id=3, pad_id=0, mask_id=4, special_ids=(0, 1, 2, 3, 4),
                       vocabulary_size=VOCABULARY)  # fmt: skip


def texts(rows: int, width: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, VOCABULARY, (rows, width), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, -1] = 2, 3
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


# ---------------------------------------------------------------------- masks


def test_about_15_percent_are_hidden_and_special_tokens_never():
    batch = texts(200, 102)
    shown, labels = masked_texts(batch, FACTS, 0)
    hidden = labels != IGNORED
    assert 0.14 < hidden[:, 1:-1].float().mean().item() < 0.16
    assert not hidden[:, [0, -1]].any()
    assert torch.equal(labels[hidden], batch["input_ids"][hidden])
    assert torch.equal(shown[~hidden], batch["input_ids"][~hidden])
    assert 0.77 < (shown[hidden] == 4).float().mean().item() < 0.83
    assert 0.08 < (shown[hidden] == batch["input_ids"][hidden]).float().mean().item() < 0.13


def test_a_text_has_the_same_mask_in_whatever_batch_and_padding_it_stands_and_another_at_another_step():
    batch = batch_of()
    shown, labels = masked_texts(batch, FACTS, "a", 1)
    for row in range(4):
        wider = functional.pad(batch["input_ids"][[row]], (0, 5))
        alone, its = masked_texts({"input_ids": wider, "attention_mask": (wider != 0).long()}, FACTS, "a", 1)
        assert torch.equal(alone[0, :6], shown[row])
        assert torch.equal(its[0, :6], labels[row])
        assert (its[0, 6:] == IGNORED).all()
    assert not torch.equal(masked_texts(texts(1, 60), FACTS, 1)[0], masked_texts(texts(1, 60), FACTS, 2)[0])


def test_every_text_hides_a_word_and_one_without_words_hides_none():
    _, labels = masked_texts(batch_of(), FACTS, 0)
    assert (labels != IGNORED).any(dim=1).all()
    ids = torch.tensor([[2, 3, 0], [2, 9, 3]])
    shown, labels = masked_texts({"input_ids": ids, "attention_mask": (ids != 0).long()}, FACTS, 0)
    assert torch.equal(shown[0], ids[0])
    assert labels.tolist() == [[IGNORED] * 3, [IGNORED, 9, IGNORED]]


def test_torchs_own_generator_is_left_alone():
    before = torch.get_rng_state()
    masked_texts(batch_of(), FACTS, 0)
    assert torch.equal(before, torch.get_rng_state())


# ---------------------------------------------------------------------- the borrowed head


@pytest.mark.parametrize("kind", ENCODERS)
def test_on_the_bases_own_backbone_the_borrowed_head_answers_as_the_pretraining_model(kind, tmp_path):
    base = load_base(make_kind(kind, tmp_path))
    model, _ = base.task_model("classification", ("a", "b"), 0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pretraining, _ = base.pretraining_model(0)
    ids = torch.tensor(TEXTS)
    batch = {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": ids.masked_fill(ids < 20, IGNORED)}
    with torch.no_grad():
        expected, _ = labelled_logits(pretraining, batch, base.anatomy)
    head = BorrowedHead(model, base.pretraining_model(0)[0], base.anatomy)
    model.add_module(GRAFT, head)
    with torch.no_grad():
        found, _ = labelled_logits(borrowed(model), batch, base.anatomy)
    assert torch.equal(found, expected)
    words = base.anatomy.backbone(model).get_parameter(base.anatomy.word_embeddings)
    theirs = base.anatomy.backbone(pretraining).get_parameter(base.anatomy.word_embeddings)
    tied = [name for name, one in pretraining.named_parameters(remove_duplicate=False) if one is theirs]
    mine = [name for name, one in head.named_parameters(remove_duplicate=False) if one is words]
    assert len(mine) == len(tied) - 1, "what was tied is tied to this model's words"
    assert not any(base.anatomy.is_backbone(name) for name in dict(head.named_parameters()))
    del model._modules[GRAFT]
    assert before.keys() == model.state_dict().keys()


def test_the_loss_is_a_mean_over_each_texts_words_and_then_over_texts(tiny_base):
    ready = prepared(tiny_base, "tune/dft_plus")
    batch = batch_of()
    shown, labels = masked_texts(batch, FACTS, 3)
    labels[2, 1:3] = batch["input_ids"][2, 1:3]
    labels[1] = IGNORED  # a text without words
    head = borrowed(ready.model)
    with torch.no_grad():
        found = masked_word_loss(head, batch, shown, labels, ready.base.anatomy)
        hidden = ready.model.bert(input_ids=shown, attention_mask=batch["attention_mask"])[0]
        logits = ready.base.anatomy.pretraining_logits(head, hidden)
    naive = 0.0
    for row in range(4):
        places = [place for place in range(6) if labels[row, place] != IGNORED]
        losses = [-logits[row, place].log_softmax(-1)[labels[row, place]].item() for place in places]
        naive += sum(losses) / max(1, len(losses)) / 4
    assert found.item() == pytest.approx(naive, rel=1e-12)


def test_finish_leaves_no_trace_and_the_delta_neither(tiny_base):
    ready = prepared(tiny_base, "tune/dft_plus")
    assert any(name.startswith(GRAFT) for name, _ in ready.model.named_parameters())
    state = ready.model.state_dict()
    assert not any(GRAFT in name for name in state)
    ready.model.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Missing key.*classifier\.bias"):
        ready.model.load_state_dict({name: state[name] for name in state if name != "classifier.bias"})
    sum(ready.terms(batch_of()).values()).backward()
    assert all(one.grad is not None for name, one in ready.model.named_parameters() if name.startswith(GRAFT))
    torch.optim.SGD(ready.model.parameters(), lr=0.1).step()
    model = ready.method.finish(ready.model, ready.run).float()
    plain, head = ready.base.task_model("classification", ("a", "b", "c"), 3)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]
    base = ready.base
    delta = FullDelta.extract(base.tensors(), model.state_dict(), head, base.anatomy, base.identity)
    assert delta.difference
    assert set(delta.head) == set(head)


@pytest.mark.parametrize("order", [("lora", "dft_plus"), ("dft_plus", "lora")])
def test_beside_an_adapter_it_comes_off_too(tiny_base, order):
    base = load_base(tiny_base)
    model, head = base.task_model("classification", ("a", "b", "c"), 3)
    objective = prepared(tiny_base, "tune/full").objective
    run = Run(seed=1, steps=4, anatomy=base.anatomy, head_names=head, objective=objective, base=base)
    methods = [registry.create(f"tune/{name}", {"generations": 1} if name == "dft_plus" else {}) for name in order]
    for method in methods:
        model = method.prepare(model, run)
    for method in methods:
        method.before_step(model)
    dft = methods[order.index("dft_plus")]
    batch = batch_of()
    output = objective.forward(model, batch)
    terms = dft.objective(model, batch, output, objective.terms(output, batch))
    sum(terms.values()).backward()
    assert any("lora_A" in name for name, one in model.named_parameters() if one.grad is not None)
    for method in reversed(methods):
        model = method.finish(model, run)
    assert not any(GRAFT in name for name, _ in model.named_modules())


def test_a_teacher_that_an_adapter_comes_after_is_refused_before_the_first_step(tiny_base):
    ready = prepared(tiny_base, "tune/dft_plus", weight=0.0)
    model, _ = ready.base.task_model("classification", ("a", "b", "c"), 3)
    method = registry.create("tune/dft_plus", {"weight": 0.0})
    model = registry.create("tune/lora").prepare(method.prepare(model, ready.run), ready.run)
    with pytest.raises(MethodError, match="'dft_plus' copied the model before another method") as caught:
        method.before_step(model)
    assert "--method OTHER --method dft_plus" in caught.value.fix


# ---------------------------------------------------------------------- generations


def test_generations_are_equally_long_up_to_one_step():
    assert [generation(step, 7, 3) for step in range(7)] == [0, 0, 0, 1, 1, 2, 2]
    assert [generation(step, 4, 1) for step in range(4)] == [0] * 4
    assert [generation(step, 3, 3) for step in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("kind", ["classification", "regression", "token-classification"])
def test_from_the_second_generation_on_the_model_learns_from_what_it_was(tiny_base, kind):
    ready = prepared(tiny_base, "tune/dft_plus", kind, weight=0.0, alpha=0.3, temperature=2.0, steps=4)
    batch, method, model = batch_of(kind), ready.method, ready.model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    taught = None
    for step in range(4):
        if step:
            method.before_step(model)
        if step == 2:
            with torch.no_grad():
                taught = ready.objective.forward(model, batch).logits
        terms = ready.terms(batch)
        output = ready.objective.forward(model, batch)
        plain = ready.objective.terms(output, batch)["loss"]
        if step < 2:
            assert set(terms) == {"loss"}
            assert torch.equal(terms["loss"], plain)
        else:
            torch.testing.assert_close(terms["loss"], 0.3 * plain, rtol=1e-12, atol=0)
            pull = (output.logits - taught).square().mean()
            if kind != "regression":
                pull = logit_distillation(output.logits, taught, 2.0)
            torch.testing.assert_close(terms["teacher"], 0.7 * pull, rtol=1e-12, atol=0)
            assert (terms["teacher"].item() > 0) == (step == 3)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()


def test_each_generation_has_the_one_before_as_its_teacher(tiny_base):
    ready = prepared(tiny_base, "tune/dft_plus", weight=0.0, generations=3, steps=3)
    biases = []
    for step in range(1, 3):
        with torch.no_grad():
            ready.model.classifier.bias.fill_(float(step))
        ready.method.before_step(ready.model)
        biases.append(ready.method.state_dict()["teacher"]["classifier.bias"][0].item())
    assert biases == [1.0, 2.0]


def test_clock_and_teacher_survive_a_checkpoint(tiny_base):
    ready = prepared(tiny_base, "tune/dft_plus", steps=4)
    assert ready.method.state_dict() == {"step": 0}
    for _ in range(2):
        with torch.no_grad():
            ready.model.classifier.bias[0].add_(0.5)
        ready.method.before_step(ready.model)
    state = ready.method.state_dict()
    assert state["step"] == 2
    assert not any(name.startswith(GRAFT) for name in state["teacher"])
    again = prepared(tiny_base, "tune/dft_plus", steps=4)
    again.model.load_state_dict(ready.model.state_dict())
    with torch.no_grad():
        for name, tensor in trainable(ready.model).items():
            trainable(again.model)[name].copy_(tensor)
    again.method.load_state_dict(state)
    for one in (ready, again):
        with torch.no_grad():
            one.model.classifier.bias.mul_(3.0)
        one.method.before_step(one.model)
    found, expected = again.terms(batch_of()), ready.terms(batch_of())
    assert found.keys() == expected.keys() == {"loss", "teacher", "masked_words"}
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert expected["teacher"].item() > 0


def test_more_generations_than_steps_are_an_error(tiny_base):
    with pytest.raises(MethodError, match="5 generations in 4 steps") as caught:
        prepared(tiny_base, "tune/dft_plus", generations=5, steps=4)
    assert "generations=4" in caught.value.fix


def test_the_base_is_needed_for_its_head_alone(tiny_base):
    base = load_base(tiny_base)
    model, head = base.task_model("classification", ("a", "b"), 0)
    run = Run(seed=0, steps=4, anatomy=base.anatomy, head_names=head, objective=object())
    with pytest.raises(MethodError, match="needs to know the run's base"):
        registry.create("tune/dft_plus").prepare(model, run)
    registry.create("tune/dft_plus", {"weight": 0.0}).prepare(model, run)


def test_decoders_have_no_masked_words(tiny_base):
    with pytest.raises(MethodError, match="does not work on a base of kind 'gpt2'"):
        check_kinds([registry.create("tune/dft_plus")], "gpt2")
    check_kinds([registry.create("tune/dft_plus")], "modernbert")
