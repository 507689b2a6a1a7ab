"""Soft prompts and models that do not go together, told as one clear error each."""

from __future__ import annotations

import math

import pytest
import torch

from anytune.errors import BaseError, MethodError
from anytune.models.anatomy import anatomy_of
from anytune.models.hyperprompt import make_hyperprompt
from anytune.models.hyperprompt_config import HyperPromptConfig
from anytune.models.prompt_attention import with_prompt
from anytune.models.prompted import attach
from anytune.models.soft_prompt_config import SoftPromptConfig
from anytune.models.soft_prompts import attach_prompt, detach_prompt, given_prompt_values, make_prompt, prompt_of
from tests.models.test_soft_prompts import answers, batch_of, prompted, task_model


@pytest.mark.parametrize(
    ("values", "said"),
    [(torch.zeros(3, 64), "length 3 cannot start one of length 4"), (torch.zeros(4, 32), "width 64"),
     (torch.full((4, 64), math.nan), "NaN"), (torch.zeros(64), "width 64")],
)  # fmt: skip
def test_values_that_do_not_fit_are_refused(values, said):
    model = task_model("bert")
    with pytest.raises(MethodError, match=said):
        make_prompt(model, SoftPromptConfig(length=4), anatomy_of(model), 0, values=values)


def test_what_cannot_be_put_on_is_refused():
    model = prompted("bert")
    anatomy = anatomy_of(model)
    with pytest.raises(BaseError, match="already"):
        attach_prompt(model, make_prompt(model, SoftPromptConfig(), anatomy, 0), anatomy)
    llama = task_model("llama")
    with pytest.raises(MethodError, match=r"2 layers of 2 heads of width 8.*2 layers of 1 heads of width 8"):
        attach_prompt(llama, make_prompt(model, SoftPromptConfig(), anatomy, 0), anatomy_of(llama))
    with pytest.raises(MethodError, match="without a soft prompt"), given_prompt_values(llama, None):
        pass
    with pytest.raises(MethodError, match="length, 64"), given_prompt_values(model, torch.zeros(3, 32)):
        pass
    with pytest.raises(MethodError, match="mask"), given_prompt_values(model, torch.zeros(3, 64), torch.ones(3)):
        pass
    with (
        pytest.raises(MethodError, match="prompts for 2 texts were given to 3 texts"),
        given_prompt_values(model, torch.zeros(2, 3, 64)),
    ):
        answers(model, batch_of("bert"))
    detach_prompt(llama)  # nothing to take off


def test_an_input_prompt_beside_a_hypernetworks_on_an_encoder_decoder_is_refused():
    model = task_model("t5", "pretraining")
    anatomy = anatomy_of(model)
    attach(model, make_hyperprompt(model, HyperPromptConfig(components=3, length=2), 1), anatomy)
    with pytest.raises(BaseError, match="kind: deep"):
        attach_prompt(model, make_prompt(model, SoftPromptConfig(kind="input"), anatomy, 0), anatomy)
    assert prompt_of(model) is None
    attach_prompt(model, make_prompt(model, SoftPromptConfig(), anatomy, 0), anatomy)


def test_a_mask_of_an_unknown_form_is_refused():
    with pytest.raises(BaseError, match="str"):
        with_prompt("blocks", None, 2, 3, 3, False, torch.zeros(1))
