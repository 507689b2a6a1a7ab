from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from anytune.errors import DeltaError, WrongBaseError
from anytune.models import delta_file
from anytune.models.base import load_base
from anytune.models.delta import DELTA_FILE, FullDelta
from anytune.models.delta_file import HEADER_BYTES, smallest
from tests.models.conftest import KINDS, LABELS, VOCABULARY, equal_bits, logits, save, scatter, tiny_model


def extract(base, model, head) -> FullDelta:
    return FullDelta.extract(base.tensors(), model.state_dict(), head, base.anatomy, base.identity)


def put_on(delta, base, **options):
    model, _ = base.task_model("classification", LABELS, seed=99)
    delta.install(model, base.tensors(), base.identity, **options)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_delta_on_its_own_base_is_the_tuned_model_bit_for_bit_through_a_file(
    kind, make_base, tuned, tmp_path, batch
):
    base = make_base(kind=kind)
    model, head = tuned(base)
    extract(base, model, head).save(tmp_path / "delta")
    again = put_on(FullDelta.load(tmp_path / "delta"), base)
    assert equal_bits(dict(model.state_dict()), dict(again.state_dict()))
    assert torch.equal(logits(model, batch), logits(again, batch))


@pytest.mark.parametrize(("stored", "run"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float64),
                                             (torch.bfloat16, torch.bfloat16)])  # fmt: skip
def test_it_is_exact_for_bases_stored_in_bf16_and_for_other_precisions_of_the_tuned_model(
    stored, run, make_base, tuned, tmp_path
):
    base = make_base(dtype=stored)
    model, head = tuned(base, dtype=run)
    extract(base, model, head).save(tmp_path / "delta")
    body = FullDelta.load(tmp_path / "delta").apply(base.tensors(), base.identity)
    names = {base.anatomy.canonical(name): name for name in model.state_dict() if name not in head}
    assert equal_bits(body, {bare: model.state_dict()[name] for bare, name in names.items()})


def test_hard_values_come_back_exactly(make_base, tuned):
    base = make_base()
    model, head = tuned(base)
    with torch.no_grad():
        weight = model.bert.encoder.layer[0].output.dense.weight
        weight[0, :6] = torch.tensor([-0.0, 0.0, 1e-45, -1e-40, 3e38, 1e-30])
    again = put_on(extract(base, model, head), base)
    assert equal_bits(dict(model.state_dict()), dict(again.state_dict()))


def test_scale_zero_gives_the_base_and_half_the_scale_half_the_way(make_base, tuned):
    base = make_base()
    model, head = tuned(base)
    delta = extract(base, model, head)
    start, middle, end = (delta.apply(base.tensors(), base.identity, scale) for scale in (0.0, 0.5, 1.0))
    assert equal_bits(start, dict(base.tensors()) | {})
    assert all(torch.allclose(middle[name] * 2, start[name] + end[name], atol=1e-6) for name in middle)


def test_corrections_are_used_on_their_own_base_at_full_scale_and_nowhere_else(make_base, tuned):
    base, other = make_base("base", seed=0), make_base("other", seed=5)
    model, head = tuned(base)
    name, bare = (f"{prefix}encoder.layer.0.output.dense.weight" for prefix in ("bert.", ""))
    with torch.no_grad():
        model.get_parameter(name).copy_(torch.full((16, 32), 1e-25))
    delta = extract(base, model, head)
    assert len(delta.corrections[bare][0]) > 100
    assert equal_bits(delta.apply(base.tensors(), base.identity, 0.0), dict(base.tensors()))
    half = delta.apply(base.tensors(), base.identity, 0.5)[bare]
    assert torch.allclose(half, base.tensors()[bare] / 2, atol=1e-8)
    moved, asked = delta.rebased(other.identity), delta.apply(other.tensors(), other.identity, another_base=True)
    assert moved.corrections == {}
    expected = other.tensors()[bare].double() + delta.difference[bare].double()
    assert torch.equal(asked[bare], expected.float())
    assert equal_bits(asked, moved.apply(other.tensors(), other.identity))


def test_a_pooler_in_the_file_that_no_task_model_uses_is_no_obstacle(make_base, tuned, tmp_path):
    base = make_base(kind="roberta", purpose="backbone")
    assert "pooler.dense.weight" in base.tensors()
    model, head = tuned(base)
    assert not any("pooler" in name for name in model.state_dict())
    delta = extract(base, model, head)
    assert equal_bits(dict(put_on(delta, base).state_dict()), dict(model.state_dict()))
    assert "pooler.dense.weight" not in delta.apply(base.tensors(), base.identity)


def test_there_and_back_again_restores_the_bits(make_base, tuned):
    base = make_base()
    first, head = tuned(base, seed=1)
    second, _ = tuned(base, seed=2)
    body = {name: t for name, t in first.state_dict().items() if name not in head}
    names = {base.anatomy.canonical(name): name for name in body}
    first_body = {bare: body[name] for bare, name in names.items()}
    other = base.identity.model_copy(update={"backbone": "first"})
    forth = FullDelta.extract(first_body, second.state_dict(), head, base.anatomy, other)
    second_body = forth.apply(first_body, other)
    back = FullDelta.extract(second_body, first.state_dict(), head, base.anatomy, other).apply(second_body, other)
    assert equal_bits(back, first_body)


def test_recycling_onto_an_upgrade_that_is_the_same_base_gives_the_tuned_bits(make_base, tuned, batch):
    old, new = make_base("old"), make_base("new")
    model, head = tuned(old)
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight.copy_(torch.randn(16, 32) * 1e-3)
    delta = extract(old, model, head)
    assert delta.corrections
    again = put_on(delta.rebased(new.identity), new)
    assert equal_bits(dict(model.state_dict()), dict(again.state_dict()))
    assert torch.equal(logits(model, batch), logits(again, batch))


def test_a_chain_of_direct_recycling_ends_where_the_direct_way_ends(make_base, tuned):
    bases = [make_base(f"m{index}", seed=index) for index in range(3)]
    model, head = tuned(bases[0])
    delta = extract(bases[0], model, head)
    chained = delta.rebased(bases[1].identity).rebased(bases[2].identity)
    straight = delta.rebased(bases[2].identity)
    results = [d.apply(bases[2].tensors(), bases[2].identity) for d in (chained, straight)]
    assert equal_bits(*results)
    assert equal_bits(results[0], delta.apply(bases[2].tensors(), bases[2].identity, another_base=True))


def test_on_an_upgraded_base_the_body_moves_by_the_difference_and_the_head_is_copied_exactly(make_base, tuned):
    old, new = make_base("old", seed=0), make_base("new", seed=5)
    model, head = tuned(old)
    state = put_on(extract(old, model, head).rebased(new.identity), new).state_dict()
    assert equal_bits({n: state[n] for n in head}, {n: model.state_dict()[n] for n in head})
    for bare, before in old.tensors().items():
        name = old.anatomy.in_model(bare)
        expected = new.tensors()[bare].double() + (model.state_dict()[name].double() - before.double())
        assert torch.allclose(state[name].double(), expected, atol=1e-7, rtol=1e-6)


def test_where_nothing_was_tuned_the_bits_of_the_new_base_stay(make_base):
    old, new = make_base("old", seed=0), make_base("new", seed=5)
    model, head = old.task_model("classification", LABELS, seed=0)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[7] += 0.5
    delta = extract(old, model, head)
    assert list(delta.difference) == ["embeddings.word_embeddings.weight"]
    moved = delta.rebased(new.identity).apply(new.tensors(), new.identity)
    changed = moved.pop("embeddings.word_embeddings.weight") != new.tensors()["embeddings.word_embeddings.weight"]
    assert changed.any(dim=1).nonzero().reshape(-1).tolist() == [7]
    assert equal_bits(moved, {name: t for name, t in new.tensors().items() if name in moved})


def test_only_changed_tensors_and_changed_rows_are_stored(make_base, tmp_path):
    base = make_base()
    model, head = base.task_model("classification", LABELS, seed=0)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[[3, 9]] += 0.5
        model.bert.encoder.layer[1].output.dense.bias += 0.5
    extract(base, model, head).save(tmp_path)
    stored = load_file(tmp_path / DELTA_FILE)
    word = "embeddings.word_embeddings.weight"
    kinds = {name for name in stored if not name.startswith(("head/", "correction"))}
    assert kinds == {f"rows/{word}", f"row-values/{word}", "difference/encoder.layer.1.output.dense.bias"}
    assert stored[f"rows/{word}"].tolist() == [3, 9]
    assert {name.removeprefix("head/") for name in stored if name.startswith("head/")} == set(head)


def sparse(base, model, share=0.01, seed=3):
    """Put back the base's weights in all but a share of the entries of the blocks' matrices."""
    generator = torch.Generator().manual_seed(seed)
    names = {base.anatomy.in_model(bare): bare for bare in base.tensors()}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in names:
                kept = torch.rand(weight.shape, generator=generator) < (
                    share if ".layer" in name and "embeddings" not in name else 0.0
                )
                kept &= torch.tensor(weight.ndim == 2)
                weight.copy_(torch.where(kept, weight, base.tensors()[names[name]]))
    return model


def stored_parts(path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for key in load_file(path):
        found.setdefault(key.partition("/")[2], set()).add(key.partition("/")[0])
    return found


def version_of(path) -> int:
    from safetensors import safe_open

    with safe_open(str(path), "pt") as handle:
        return json.loads(handle.metadata()["anytune"])["format_version"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sparse_difference_is_stored_as_entries_and_comes_back_bit_for_bit(kind, make_base, tuned, tmp_path, batch):
    base = make_base(kind=kind)
    model, head = tuned(base)
    full = extract(base, model, head).save(tmp_path / "full").stat().st_size
    model = sparse(base, model)
    delta = extract(base, model, head)
    path = delta.save(tmp_path / "sparse")
    assert path.stat().st_size < full / 3
    assert version_of(path) == 2
    stored = stored_parts(path)
    assert all("layer" in bare for bare in delta.difference)
    for bare, values in delta.difference.items():
        assert stored[bare] - {"correction", "correction-index"} == {"entries", "entry-values"}
        assert values.count_nonzero() < 0.05 * values.numel()
    again = FullDelta.load(tmp_path / "sparse")
    assert equal_bits(again.difference, delta.difference)
    assert equal_bits(dict(put_on(again, base).state_dict()), dict(model.state_dict()))
    assert again.save(tmp_path / "again").read_bytes() == path.read_bytes()
    other = make_base("other", kind=kind, seed=5)
    assert equal_bits(
        again.rebased(other.identity).apply(other.tensors(), other.identity),
        delta.rebased(other.identity).apply(other.tensors(), other.identity),
    )


def test_the_smallest_form_is_stored():
    def parts(values):
        return set(smallest(values))

    values = torch.zeros(100, 100)
    assert parts(values) == {"rows", "row-values"}  # nothing to say but that it is there
    values[3] = 1.0
    assert parts(values) == {"rows", "row-values"}
    values[:, 7] = 1.0
    assert parts(values) == {"entries", "entry-values"}
    values[:, :48] = 1.0  # 8 bytes each, against 4 of every entry
    assert parts(values) == {"entries", "entry-values"}
    values[:, :50] = 1.0
    assert parts(values) == {"difference"}
    assert parts(torch.zeros(100).index_fill(0, torch.arange(24), 1.0)) == {"entries", "entry-values"}
    assert parts(torch.zeros(100).index_fill(0, torch.arange(40), 1.0)) == {"difference"}  # for the header's sake
    wide = torch.zeros(90, 100, dtype=torch.float64)
    for count in range(0, 90, 10):
        wide[:, : count + 1] = 1.0
        taken = smallest(wide)
        size = sum(HEADER_BYTES + one.numel() * one.element_size() for one in taken.values())
        assert size == min(HEADER_BYTES + 8 * wide.numel(), 2 * HEADER_BYTES + 12 * int(wide.count_nonzero()))


def test_signs_of_zero_and_differences_of_nothing_survive_as_entries(make_base, tuned, tmp_path):
    base = make_base()
    model, head = base.task_model("classification", LABELS, seed=0)
    layer = model.bert.encoder.layer[0]
    with torch.no_grad():
        layer.output.dense.weight.view(-1)[[5, 77, 300]] = torch.tensor([-0.0, 1e-45, 2.5])
    delta = extract(base, model, head)
    path = delta.save(tmp_path)
    assert stored_parts(path)["encoder.layer.0.output.dense.weight"] >= {"entries", "entry-values"}
    again = FullDelta.load(tmp_path)
    assert equal_bits(again.difference, delta.difference)
    assert equal_bits(dict(put_on(again, base).state_dict()), dict(model.state_dict()))


def test_a_tensor_of_which_only_a_sign_of_zero_changed_is_kept(tmp_path):
    from anytune.manifests import BaseIdentity
    from anytune.models import difference as arithmetic

    for shape in ((40,), (40, 3)):
        before = torch.zeros(shape)
        after = before.clone()
        after.view(-1)[7] = -0.0
        found = arithmetic.subtract(before, after)
        content = FullDelta(
            BaseIdentity(backbone="x"),
            "bert",
            {"w": found.values},
            {"w": (found.index, found.exact)},
            {},
            {"w": ("float32", shape)},
        )
        content.save(tmp_path / str(len(shape)))
        again = FullDelta.load(tmp_path / str(len(shape)))
        end = arithmetic.put(arithmetic.add(before, again.difference["w"], torch.float32), *again.corrections["w"])
        assert arithmetic.same_bits(end, after).all()
        # -0.0 is a change of nothing: entries hold it, rows do not
        assert again.difference["w"].shape == shape


def test_files_without_entries_stay_readable_for_an_anytune_that_knows_none(make_base, tuned, tmp_path, monkeypatch):
    base = make_base()
    model, head = tuned(base)
    extract(base, model, head).save(tmp_path / "dense")
    assert version_of(tmp_path / "dense" / DELTA_FILE) == 1
    extract(base, sparse(base, model), head).save(tmp_path / "sparse")
    # the reader of version 1: it would take the matrices for unchanged, so it must refuse
    monkeypatch.setattr(delta_file, "FORMAT_VERSION", 1)
    FullDelta.load(tmp_path / "dense")
    with pytest.raises(DeltaError, match="format 2; this anytune reads up to 1"):
        FullDelta.load(tmp_path / "sparse")


def test_a_file_that_holds_what_its_version_does_not_have_is_refused(make_base, tuned, tmp_path):
    from safetensors import safe_open

    base = make_base()
    model, head = tuned(base)
    path = extract(base, sparse(base, model), head).save(tmp_path)
    with safe_open(str(path), "pt") as handle:
        record = json.loads(handle.metadata()["anytune"])
    tensors = load_file(path)
    save_file(tensors, path, {"anytune": json.dumps({**record, "format_version": 1})})
    with pytest.raises(DeltaError, match="which format 1 does not have"):
        FullDelta.load(tmp_path)
    save_file({**tensors, "strange/x": torch.zeros(1)}, path, {"anytune": json.dumps(record)})
    with pytest.raises(DeltaError, match="it holds strange"):
        FullDelta.load(tmp_path)
    name = next(key for key in tensors if key.startswith("entries/"))
    places = tensors[name]
    before_the_first = places.clone()
    before_the_first[0] = -1
    for bad in (places + 100_000, before_the_first, places[:-1].clone(), places.view(1, -1)):
        save_file({**tensors, name: bad}, path, {"anytune": json.dumps(record)})
        with pytest.raises(DeltaError, match="is damaged"):
            FullDelta.load(tmp_path)


def test_equal_deltas_are_equal_bytes(make_base, tuned, tmp_path):
    base = make_base()
    for name in ("one", "two"):
        model, head = tuned(base)
        extract(base, model, head).save(tmp_path / name)
    assert (tmp_path / "one" / DELTA_FILE).read_bytes() == (tmp_path / "two" / DELTA_FILE).read_bytes()
    assert [path.name for path in (tmp_path / "one").iterdir()] == [DELTA_FILE]


def test_integer_buffers_and_tied_copies_are_never_part_of_a_delta(make_base, tuned):
    base = make_base()
    model, head = tuned(base)
    model.bert.embeddings.register_buffer("position_ids", torch.arange(40), persistent=True)
    delta = extract(base, model, head)
    assert not any("position_ids" in name for name in (*delta.body, *delta.difference, *delta.head))
    delta.install(model, base.tensors(), base.identity)
    assert model.bert.embeddings.position_ids.tolist() == list(range(40))


def test_a_pooler_of_the_base_is_body_and_a_fresh_one_is_head(make_base, tuned):
    with_pooler, without = make_base("a", purpose="backbone"), make_base("b")
    assert "bert.pooler.dense.weight" not in tuned(with_pooler)[1]
    assert "bert.pooler.dense.weight" in tuned(without)[1]
    assert "pooler.dense.weight" in extract(with_pooler, *tuned(with_pooler)).difference
    assert "bert.pooler.dense.weight" in extract(without, *tuned(without)).head


def test_a_delta_with_a_tuned_pooler_is_refused_by_an_upgrade_that_lost_it(make_base, tuned):
    old, new = make_base("old", purpose="backbone"), make_base("new")
    delta = extract(old, *tuned(old)).rebased(new.identity)
    with pytest.raises(DeltaError, match=r"pooler.dense.weight: the base has none"):
        put_on(delta, new)


def test_another_base_is_refused_unless_it_is_asked_for(make_base, tuned):
    old, new = make_base("old", seed=0), make_base("new", seed=5)
    delta = extract(old, *tuned(old))
    with pytest.raises(WrongBaseError, match=r"belongs to old \(.{10}\), not to new \(.{10}\)[\s\S]*anytune recycle"):
        delta.apply(new.tensors(), new.identity)
    moved = delta.apply(new.tensors(), new.identity, another_base=True)
    assert equal_bits(moved, delta.rebased(new.identity).apply(new.tensors(), new.identity))


def test_a_base_of_other_shapes_is_refused_with_the_reason_for_each_name(make_base, tuned, tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    base = make_base()
    wide = BertConfig(vocab_size=VOCABULARY, hidden_size=24, num_hidden_layers=1, num_attention_heads=2,
                      intermediate_size=32, max_position_embeddings=40)  # fmt: skip
    other = load_base(save(BertForMaskedLM(wide), tmp_path / "wide"))
    with pytest.raises(DeltaError) as caught:
        extract(base, *tuned(base)).apply(other.tensors(), other.identity, another_base=True)
    text = str(caught.value)
    assert "embeddings.word_embeddings.weight: delta [96, 16], base [96, 24]" in text
    assert "more" in text
    assert len(text) < 1200


def test_every_name_of_the_model_is_accounted_for_before_anything_is_written(make_base, tuned):
    base = make_base()
    delta = extract(base, *tuned(base))
    two, _ = base.task_model("classification", ("a", "b"), seed=0)
    before = copy.deepcopy(two.state_dict())
    with pytest.raises(DeltaError, match=r"classifier.weight: delta \[3, 16\], model \[2, 16\]"):
        delta.install(two, base.tensors(), base.identity)
    assert equal_bits(dict(before), dict(two.state_dict()))
    right, _ = base.task_model("classification", LABELS, seed=0)
    right.register_parameter("stray", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(DeltaError, match="stray: not in the delta"):
        delta.install(right, base.tensors(), base.identity)


def test_a_tensor_that_is_neither_body_nor_named_as_head_is_refused(make_base, tuned):
    base = make_base()
    model, head = tuned(base)
    with pytest.raises(DeltaError, match=r"'classifier.bias' is neither"):
        extract(base, model, [name for name in head if name != "classifier.bias"])
    with pytest.raises(DeltaError, match=r"bert.pooler.dense.weight: tuned, not in the base"):
        extract(base, model, [name for name in head if "pooler" not in name])
    with pytest.raises(DeltaError, match=r"score.weight: named as head, not in the tuned model"):
        extract(base, model, [*head, "score.weight"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_make_no_delta(value, make_base, tuned):
    base = make_base()
    model, head = tuned(base)
    with torch.no_grad():
        model.classifier.weight[0, 0] = value
    with pytest.raises(DeltaError, match=r"1 tuned tensors hold NaN or infinity: classifier.weight"):
        extract(base, model, head)


def test_truncated_foreign_newer_and_missing_files_are_clear_errors(make_base, tuned, tmp_path):
    base = make_base()
    extract(base, *tuned(base)).save(tmp_path / "good")
    file = tmp_path / "bad" / DELTA_FILE
    file.parent.mkdir()
    with pytest.raises(DeltaError, match="does not exist"):
        FullDelta.load(file.parent)
    for size in (0, 5, 200, -1):
        file.write_bytes((tmp_path / "good" / DELTA_FILE).read_bytes()[:size])
        with pytest.raises(DeltaError, match="cannot read"):
            FullDelta.load(file.parent)
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(DeltaError, match="no full delta of anytune"):
        FullDelta.load(file.parent)
    save_file({"x": torch.zeros(1)}, file, {"anytune": '{"format": "anytune-full-delta", "format_version": 7}'})
    with pytest.raises(DeltaError, match="format 7; this anytune reads up to 3"):
        FullDelta.load(file.parent)


def test_a_file_whose_record_and_tensors_disagree_is_refused(make_base, tuned, tmp_path):
    from safetensors import safe_open

    base = make_base()
    model, head = tuned(base)
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.bias[0] = 1e-30
    path = extract(base, model, head).save(tmp_path)
    with safe_open(str(path), "pt") as handle:
        metadata = handle.metadata()
    tensors = load_file(path)
    for name in ("difference/encoder.layer.0.output.dense.bias", "correction-index/encoder.layer.0.output.dense.bias"):
        bad = dict(tensors)
        bad[name] = bad[name] + 1000 if "index" in name else bad[name][:3].clone()
        save_file(bad, path, metadata)
        with pytest.raises(DeltaError, match="is damaged"):
            FullDelta.load(tmp_path)


def test_the_old_base_folder_may_go_once_the_delta_is_made(make_base, tuned, tmp_path, batch):
    base = make_base()
    model, head = tuned(base)
    delta = extract(base, model, head)
    want = logits(model, batch)
    shutil.copytree(base.folder, tmp_path / "copy")
    shutil.rmtree(base.folder)
    assert torch.equal(logits(put_on(delta, load_base(tmp_path / "copy")), batch), want)


def test_the_arithmetic_leaves_the_base_and_the_tuned_model_untouched(make_base, tuned):
    base = make_base()
    model, head = tuned(base)
    state, held = copy.deepcopy(dict(model.state_dict())), {n: t.clone() for n, t in base.tensors().items()}
    tensors = dict(base.tensors())
    delta = FullDelta.extract(tensors, model.state_dict(), head, base.anatomy, base.identity)
    scatter(put_on(delta, base), 3)
    assert equal_bits(tensors, held)
    assert equal_bits(dict(model.state_dict()), state)
    assert equal_bits(dict(base.tensors()), held)
    assert delta.head["classifier.weight"].data_ptr() != model.classifier.weight.data_ptr()


def test_the_body_of_a_tiny_model_is_whole(make_base, tuned):
    base = make_base()
    delta = extract(base, *tuned(base))
    assert set(delta.body) == {
        base.anatomy.canonical(n) for n in base.anatomy.split(tiny_model().state_dict()).backbone
    }
