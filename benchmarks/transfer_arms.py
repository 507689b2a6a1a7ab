"""The arms of ``transfer.py``: ours, the released way written out, PEFT's, and what none can do without."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from alternating import Arm, now
from torch import Tensor, nn
from torch.nn import functional

from anytune.data.batches import ExampleBatches, encode_task
from anytune.data.samples import sample_folder
from anytune.data.tasks import load_task
from anytune.methods import registry
from anytune.methods.objective import Classification
from anytune.methods.protocol import Batch, Method, Run
from anytune.models.base import load_base
from anytune.models.language_modelling import model_inputs
from anytune.models.soft_prompt_config import SoftPromptConfig
from anytune.models.soft_prompts import PromptSource, make_prompt

BATCH, LENGTH, PROMPT, PADDED = 16, 128, 20, 128
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass
class Workload:
    """A base, a task with real texts, and prompts of other tasks and of this one."""

    model: str
    precision: str
    base: Any
    fresh: nn.Module
    head_names: list[str]
    batches: Any
    label_names: tuple[str, ...]

    def prompt(self, seed: int, length: int = PROMPT) -> PromptSource:
        """A prompt with a head, as a library has them; what it answers does not matter here."""
        config = SoftPromptConfig(length=length)
        values = make_prompt(self.fresh, config, self.base.anatomy, seed).values().detach()
        state = self.fresh.state_dict()
        head = {name: torch.randn_like(state[name]) * 0.02 for name in self.head_names}
        return PromptSource(f"prompt-{seed}", config, values, head, self.label_names, self.base.identity, 0.8)

    def run(self, steps: int, sources: int = 3) -> Run:
        return Run(seed=0, steps=steps, anatomy=self.base.anatomy, head_names=self.head_names,
                   objective=Classification(), batches=self.batches, base=self.base, device=DEVICE,
                   label_names=self.label_names, sources=[self.prompt(seed) for seed in range(sources)],
                   teachers=[self.prompt(9)])  # fmt: skip


def workload(model: str, precision: str, batch: int = BATCH, length: int = LENGTH) -> Workload:
    base = load_base(f"sample:{model}", resolve_sample=sample_folder)
    task = load_task("sample:hpo").subset(train_size=BATCH * 40, seed=0)
    batches = ExampleBatches(encode_task(task.train, base.tokenizer(), length, task.kind), batch, 0)
    fresh, head_names = base.task_model(task.kind, task.label_names, 0)
    return Workload(model, precision, base, fresh, head_names, batches, tuple(task.label_names))


class Published(Arm):
    """The released way: two models in training mode, both with gradients, the second's thrown away."""

    padded = PADDED

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.teacher = copy.deepcopy(self.model)

    def step(self) -> None:
        batch = self.runtime.to_device(padded(self.batches.batch(self.done), self.padded))
        began = now()
        self.model.train()
        self.teacher.train()
        self.optimizer.zero_grad(set_to_none=True)
        self.teacher.zero_grad(set_to_none=True)
        with autocast(self):
            mine = self.model(**model_inputs(self.model, batch)).logits.float()
            theirs = self.teacher(**model_inputs(self.teacher, batch)).logits.float()
            apart = functional.mse_loss(mine, theirs) / len(mine)
            loss = functional.cross_entropy(mine, batch["labels"]) + 0.1 * 0.1 * apart
        finish(self, loss, began)


class PublishedShort(Published):
    """The same without padding to one length."""

    padded = 0


class Peft(Arm):
    """PEFT's prefix tuning of the same length with nothing of ours around it."""

    def step(self) -> None:
        batch = self.runtime.to_device(self.batches.batch(self.done))
        began = now()
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self):
            logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            loss = functional.cross_entropy(logits.float(), batch["labels"])
        finish(self, loss, began)


class Bare(Peft):
    """The model's own passes, the prompt as a cache; a table of values and the head are trained."""

    def step(self) -> None:
        from transformers import DynamicCache

        batch = self.runtime.to_device(self.batches.batch(self.done))
        began = now()
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self):
            ids, mask = batch["input_ids"], batch["attention_mask"]
            slots = self.model.table.view(PROMPT, *self.model.slots).permute(1, 2, 0, 3)
            cache = DynamicCache()
            for layer in range(len(slots) // 2):
                pair = (slots[2 * layer + which].unsqueeze(0).expand(len(ids), -1, -1, -1) for which in (0, 1))
                cache.update(*pair, layer)
            logits = self.model(
                input_ids=ids,
                attention_mask=torch.cat([mask.new_ones(len(mask), PROMPT), mask], dim=1),
                position_ids=torch.arange(PROMPT, PROMPT + ids.shape[1], device=ids.device).expand(ids.shape),
                past_key_values=cache,
            ).logits
            loss = functional.cross_entropy(logits.float(), batch["labels"])
        finish(self, loss, began)


class AsPeft(Method):
    """PEFT's prefix tuning in our step: the head and the prompt are trained, as in prompt_tuning."""

    name, room = "peft", "transfer"

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        from peft import PrefixTuningConfig, get_peft_model

        wrapped: Any = get_peft_model(model, PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=PROMPT))
        nn.init.normal_(wrapped.prompt_encoder["default"].embedding.weight, std=0.02)
        return wrapped


class AsCache(Method):
    """A table of values beside the frozen model, for ``Bare``."""

    name, room = "cache", "transfer"

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        layout = make_prompt(model, SoftPromptConfig(length=PROMPT), run.anatomy, 0)
        only_head(model, run)
        model.slots = (2 * layout.layout.layers, layout.layout.heads, layout.layout.head_dim)
        model.table = nn.Parameter(layout.values().detach().clone())
        return model


class OnlyHead(Method):
    """The frozen model with a trained head."""

    name, room = "head", "transfer"

    def prepare(self, model: nn.Module, run: Run) -> nn.Module:
        return only_head(model, run)


def only_head(model: nn.Module, run: Run) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in run.head_names)
    return model


SMOOTHING = {"name": "label_smoothing", "share": 0.1}
#: arm -> its class and its methods
ARMS: dict[str, tuple[type[Arm], Callable[[], list[Method]]]] = {
    "prompt_tuning": (Arm, lambda: methods("prompt_tuning")),
    "prompt_tuning again": (Arm, lambda: methods("prompt_tuning")),  # what the measure itself is worth
    "no dropout": (Arm, lambda: methods({"name": "prompt_tuning", "dropout": 0.0})),  # of the prompt, as PEFT has it
    "panda": (Arm, lambda: methods("panda")),
    "published": (Published, lambda: methods("prompt_tuning")),
    "published, short": (PublishedShort, lambda: methods("prompt_tuning")),
    "peft": (Arm, lambda: [AsPeft()]),
    "peft, bare": (Peft, lambda: [AsPeft()]),
    "bare": (Bare, lambda: [AsCache()]),
    "no prompt": (Arm, lambda: [OnlyHead()]),
    "input prompts": (Arm, lambda: methods({"name": "prompt_tuning", "kind": "input"})),
    "prompt_transfer": (Arm, lambda: methods("prompt_transfer")),
    "attempt": (Arm, lambda: methods("attempt")),
    "attempt, per task": (Arm, lambda: methods({"name": "attempt", "per": "task"})),
    "mpt": (Arm, lambda: methods("mpt")),
    "label_smoothing": (Arm, lambda: methods("prompt_tuning", SMOOTHING)),
    "full": (Arm, list),
}


def methods(*given: Any) -> list[Method]:
    return registry.parse(list(given), registry.TUNING)


def padded(batch: Batch, length: int) -> Batch:
    """The batch with every text as long as ``length``; it may be longer already."""
    more = max(0, length - batch["input_ids"].shape[1])
    wide = {key: functional.pad(value, (0, more)) for key, value in batch.items()
            if isinstance(value, Tensor) and value.ndim == 2}  # fmt: skip
    return {**batch, **wide}


def autocast(arm: Arm) -> Any:
    return (arm.runtime.autocast() or contextlib.nullcontext)()


def finish(arm: Arm, loss: Tensor, began: float) -> None:
    loss.backward()
    parameters = [parameter for group in arm.optimizer.param_groups for parameter in group["params"]]
    nn.utils.clip_grad_norm_(parameters, 1.0)
    arm.optimizer.step()
    arm.seconds.append(now() - began)
    arm.done += 1
