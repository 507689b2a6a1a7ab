"""Recipes that are no recipes, and settings outside what they mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bad_input.checks import QUICK, STORE, check, nothing_written, refused


def recipe(cli, text: str, *values: str) -> None:
    Path("r.yaml").write_text(text)
    check(cli("run", "r.yaml"), *values)
    nothing_written()


@pytest.fixture
def words(tiny_base, tiny_task) -> str:
    return f"job: tune\nbase: {tiny_base}\ntask: {tiny_task}\nstore: {STORE}\n"


def test_a_recipe_with_tabs(cli, words):
    recipe(cli, words + "training:\n\tsteps: 2\n", "r.yaml", "6", "tab")


def test_a_recipe_that_is_empty(cli):
    recipe(cli, "", "r.yaml")


def test_a_recipe_of_comments(cli):
    recipe(cli, "# later\n", "r.yaml")


def test_a_recipe_that_is_a_list(cli):
    recipe(cli, "- tune\n- recycle\n", "r.yaml")


def test_a_recipe_that_is_a_word(cli):
    recipe(cli, "tune", "r.yaml")


def test_a_recipe_of_bytes(cli):
    Path("r.yaml").write_bytes(b"\x00\xff\xfe job")
    check(cli("run", "r.yaml"), "r.yaml")


def test_a_recipe_that_is_a_folder(cli):
    Path("r.yaml").mkdir()
    check(cli("run", "r.yaml"), "r.yaml")


def test_a_key_twice(cli, words):
    """YAML takes the last one without a word."""
    recipe(cli, words + "seed: 1\nseed: 2\n", "seed")


def test_a_recipe_that_makes_objects(cli, words):
    recipe(cli, words + "name: !!python/object/apply:os.system ['touch pwned']\n", "r.yaml")
    assert not Path("pwned").exists()


def test_a_recipe_that_grows_without_end(cli, words):
    layers = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    layers += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
    recipe(cli, layers + words, "line 1", "unfold without end")


def test_a_recipe_without_a_job(cli, tiny_base):
    recipe(cli, f"base: {tiny_base}\n", "job")


def test_a_job_nobody_knows(cli, words):
    recipe(cli, words.replace("job: tune", "job: tun"), "tun", "tune")


def test_an_override_that_is_none(cli, words):
    Path("r.yaml").write_text(words)
    check(cli("run", "r.yaml", "steps"), "steps", "=")
    nothing_written()


@pytest.mark.parametrize("number", ["yes", "1e-3x", "[1]", "{}", "null, 3"])
def test_a_learning_rate_that_is_no_number(cli, words, number):
    recipe(cli, words + f"training: {{learning_rate: {number}}}\n", "learning_rate")


def test_a_rate_as_yaml_reads_it(cli, words):
    """1e-3 without a point is a word to YAML 1.1."""
    Path("r.yaml").write_text(words + "training: {learning_rate: 1e-3, steps: 2, batch_size: 8}\n")
    answer = cli("run", "r.yaml")
    assert answer.code == 0, answer.err


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("learning_rate", "-0.001"), ("learning_rate", "0"), ("learning_rate", "nan"), ("learning_rate", "inf"),
        ("batch_size", "0"), ("batch_size", "-1"), ("batch_size", "2.5"), ("accumulation", "0"), ("steps", "0"),
        ("steps", "-3"), ("epochs", "0"), ("epochs", "nan"), ("warmup", "1.5"), ("weight_decay", "-1"),
        ("max_grad_norm", "0"), ("precision", "fp8"), ("schedule", "step"), ("max_length", "1"),
        ("evaluate_every", "0"), ("keep", "first"), ("checkpoint_every", "-1"), ("checkpoints_kept", "0"),
        ("mask_probability", "1"),
    ],
)  # fmt: skip
def test_a_training_setting_outside_what_it_means(cli, tiny_base, tiny_task, setting, value):
    options = ("--store", STORE, "--quiet", "--training", f"{setting}={value}")
    check(cli("tune", tiny_base, tiny_task, *options), setting)
    nothing_written()


@pytest.mark.parametrize("seeds", ["4294967296", "-1", "1.5", "99999999999999999999", "1,1", "a", "", "0", ","])
def test_seeds_that_are_no_seeds(cli, tiny_base, tiny_task, seeds):
    refused(cli, tiny_base, tiny_task, "seed", options=("--seeds", seeds))


@pytest.mark.parametrize(
    "name", ["../out", "/tmp/out", "a/b", "..", "con\x1b[31mtrol", "new\nline", "", " ", "x" * 300]
)
def test_a_name_that_is_no_name(cli, tiny_base, tiny_task, name):
    before = sorted(path.name for path in Path("..").iterdir())
    answer = cli("tune", tiny_base, tiny_task, "--name", name, *QUICK)
    if answer.code == 0:  # made harmless
        [folder] = Path(STORE).glob("deltas/*")
        assert (folder / "anytune.json").is_file()
        assert folder.name.isprintable()
        assert "\x1b" not in answer.out + answer.err
    else:
        check(answer)
    assert sorted(path.name for path in Path("..").iterdir()) == before


def test_a_tag_that_is_none(cli, tiny_base, tiny_task):
    refused(cli, tiny_base, tiny_task, "fresh", "=", options=("--tag", "fresh"))


def test_both_ways_to_ask_for_few_rows(cli, tiny_base, tiny_task):
    refused(cli, tiny_base, tiny_task, "10", "2", options=("--train-size", 10, "--per-class", 2))


def test_a_method_twice(cli, tiny_base, tiny_task):
    refused(cli, tiny_base, tiny_task, "full", "twice", options=("--method", "full", "--method", "full"))


def test_a_learning_rate_that_breaks_the_weights(cli, tiny_base, tiny_task):
    answer = cli("tune", tiny_base, tiny_task, "--store", STORE, "--steps", 30, "--learning-rate", 9.9, "--quiet",
                 "--training", "max_grad_norm=null", "--training", "schedule=constant")  # fmt: skip
    if answer.code:  # it may live on, badly: then scores say so
        check(answer, "9.9", fix="lower learning rate")
    assert not list(Path(STORE).glob("deltas/*/delta.safetensors")) or not answer.code
