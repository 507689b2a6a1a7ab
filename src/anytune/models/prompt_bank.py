"""Many prompts in memory, one for each row of a batch: one pass of the model for texts of many tasks.

Every row reads its own prompt, and what the model makes of it goes through that prompt's own head. Prompts may have
different lengths and heads different numbers of outputs. Answers and gradients are those of separate passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from anytune.errors import MethodError, WrongBaseError
from anytune.manifests import BaseIdentity
from anytune.models.anatomy import Anatomy
from anytune.models.answering import task_output
from anytune.models.prompted import given_prompt
from anytune.models.soft_prompt_config import SoftPromptConfig
from anytune.models.soft_prompts import PromptSource, attach_prompt, given_prompt_values, make_prompt, prompt_of


class PromptBank(nn.Module):
    """Prompts and heads of one model; its parameters are these alone.

    >>> bank = PromptBank(model, anatomy)
    >>> news, mood = bank.add(first), bank.add(second)
    >>> answers = bank(batch, torch.tensor([news, mood, news]))  # a tensor for each row
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, base: BaseIdentity | None = None) -> None:
        """An empty bank.

        Args:
            model: a task model of the prompts' base; the first prompt that is added makes it one with a soft prompt.
                Its training mode decides about dropout. It is no part of the bank's parameters.
            anatomy: of the model's kind.
            base: which base it is; prompts of another one are then refused.
        """
        super().__init__()
        self._model, self.anatomy, self.base = (model,), anatomy, base
        self.prompts, self.heads = nn.ParameterList(), nn.ModuleList()
        self.sources: list[PromptSource] = []

    @property
    def model(self) -> Any:
        """The model that all prompts share."""
        return self._model[0]

    def add(self, source: PromptSource) -> int:
        """Take a prompt in; its id is what rows name it by.

        Raises:
            WrongBaseError: it belongs to another base.
            MethodError: it is of another kind or width than this model's, holds NaN, or its head does not fit.
        """
        if self.base is not None and source.base is not None and source.base.backbone != self.base.backbone:
            raise WrongBaseError(
                f"'{source.name}' belongs to {source.base.short}, the bank to {self.base.short}",
                why="On another base a prompt answers differently from when it was tuned.",
                fix="a bank for each base",
            )
        prompt = prompt_of(self.model)
        if prompt is not None and prompt.config.kind != source.config.kind:
            raise MethodError(
                f"'{source.name}' is of kind {source.config.kind}, those of the bank are of kind {prompt.config.kind}",
                why="The two stand in different places of the model.",
                fix="a bank for each kind",
            )
        config = SoftPromptConfig(kind=source.config.kind, length=len(source.values))
        checked = make_prompt(self.model, config, self.anatomy, seed=0, values=source.values)
        state = self.model.state_dict()
        lost = [
            f"{name} {list(tensor.shape)}"
            for name, tensor in source.head.items()
            if name not in state or tensor.shape[1:] != state[name].shape[1:]
        ]
        if lost:
            raise MethodError(
                f"the head of '{source.name}' does not fit: {', '.join(lost[:5])}",
                why="It was tuned on a base of other sizes, or for another kind of task.",
                fix="a bank for each kind of task",
            )
        if prompt is None:
            attach_prompt(self.model, checked, self.anatomy)
        device = next(self.model.parameters()).device
        self.prompts.append(nn.Parameter(source.values.detach().clone().to(device)))
        self.heads.append(nn.ParameterList(tensor.detach().clone().to(device) for tensor in source.head.values()))
        self.sources.append(source)
        return len(self.sources) - 1

    def forward(self, batch: Mapping[str, Any], ids: Tensor | Sequence[int]) -> list[Tensor]:
        """The answers of a batch: row i read with prompt ``ids[i]``.

        Args:
            batch: what the model takes, [b, S]; padded as for any batch.
            ids: [b], as ``add`` gave them.

        Returns:
            For each row the logits of its own head: [outputs], or [S, outputs] where every token has an answer.

        Raises:
            MethodError: an id is none of the bank's, or there is not one for each row.
        """
        chosen = self._checked(ids, batch)
        values, mask = self._values(chosen)
        groups = {one: [row for row, other in enumerate(chosen) if other == one] for one in dict.fromkeys(chosen)}
        backbone = self.anatomy.backbone(self.model)
        heads = {one: self.head(one) for one in groups}
        with given_prompt_values(self.model, values, mask), _recorded(backbone, self.anatomy) as made:
            logits = task_output(self.model, batch).logits
        if not any(heads.values()):
            return list(logits)
        answers: dict[int, Tensor] = {}
        for one, rows in groups.items():
            index = torch.tensor(rows, device=values.device)
            part = {key: value[index] for key, value in batch.items() if _has_rows(value, len(chosen))}
            head = {f"model.{name}": weight for name, weight in heads[one].items()}
            rest = _Rest(self.model, self.anatomy, made.of(index))
            found = functional_call(rest, head, (part,), tie_weights=False)
            answers |= dict(zip(rows, found, strict=True))
        return [answers[row] for row in range(len(chosen))]

    def head(self, one: int) -> dict[str, Tensor]:
        """The head of a prompt: state-dict name -> parameter of the bank."""
        return dict(zip(self.sources[one].head, cast(nn.ParameterList, self.heads[one]), strict=True))

    def _checked(self, ids: Tensor | Sequence[int], batch: Mapping[str, Any]) -> list[int]:
        chosen = [int(one) for one in ids]
        read = batch["input_ids"] if "input_ids" in batch else batch["inputs_embeds"]
        strange = [one for one in chosen if not 0 <= one < len(self.sources)]
        if len(chosen) != len(read) or strange:
            raise MethodError(
                f"prompt {strange[0]} is none of the bank's {len(self.sources)}"
                if strange
                else f"{len(chosen)} prompt ids for {len(read)} texts",
                why="Each text is read with one prompt of the bank.",
                fix="ids that add() gave, one for each row",
            )
        return chosen

    def _values(self, chosen: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Values [b, n, w] and which of their places count [b, n]: shorter prompts are padded in front."""
        used = list(dict.fromkeys(chosen))
        length = max(len(self.prompts[one]) for one in used)
        padded = [nn.functional.pad(self.prompts[one], (0, 0, length - len(self.prompts[one]), 0)) for one in used]
        index = torch.tensor([used.index(one) for one in chosen], device=padded[0].device)
        values = torch.stack(padded)[index]
        lengths = torch.tensor([len(self.prompts[one]) for one in chosen], device=values.device)
        if all(len(self.prompts[one]) == length for one in used):
            return values, None
        return values, torch.arange(length, device=values.device) >= length - lengths.unsqueeze(1)


class _Made:
    """What the backbone gave for the whole batch, and what its pooler was given."""

    def __init__(self, pooler: nn.Module | None) -> None:
        self.pooler = pooler
        self.output: Any = None
        self.pooled: Tensor | None = None

    def of(self, rows: Tensor) -> _Made:
        """The same of some rows."""
        part = _Made(self.pooler)
        output, size = self.output, len(self.output[0])
        if isinstance(output, tuple):
            part.output = tuple(value[rows] for value in output if _has_rows(value, size))
        else:
            part.output = type(output)(**{key: one[rows] for key, one in output.items() if _has_rows(one, size)})
        part.pooled = None if self.pooled is None else self.pooled[rows]
        return part


@contextmanager
def _recorded(backbone: Any, anatomy: Anatomy) -> Iterator[_Made]:
    """Keeps what a backbone gives inside."""
    pooler = getattr(backbone, anatomy.pooler, None) if anatomy.pooler else None
    made = _Made(pooler)

    def output(module: Any, args: Any, found: Any) -> None:
        made.output = found

    def pooled(module: Any, args: Any) -> None:
        made.pooled = args[0]

    handles = [backbone.register_forward_hook(output)]
    if pooler is not None:
        handles.append(pooler.register_forward_pre_hook(pooled))
    try:
        yield made
    finally:
        for handle in handles:
            handle.remove()


class _Rest(nn.Module):
    """What a task model does after its backbone, whose output is known."""

    def __init__(self, model: nn.Module, anatomy: Anatomy, made: _Made) -> None:
        super().__init__()
        self.model, self._anatomy, self._made = model, anatomy, made

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        backbone: Any = self._anatomy.backbone(self.model)
        backbone.forward = self._known
        try:
            with given_prompt_values(self.model, None), given_prompt(self.model, "none"):
                logits: Tensor = task_output(self.model, batch).logits
        finally:
            del backbone.forward
        return logits

    def _known(self, *args: Any, **kwargs: Any) -> Any:
        output = self._made.output
        if self._made.pooled is not None:  # a pooler that the base lacks belongs to the head
            pooled = self._made.pooler(self._made.pooled)  # type: ignore[misc]
            if isinstance(output, tuple):
                return (output[0], pooled, *output[2:])
            output["pooler_output"] = pooled
        return output


def _has_rows(value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == rows
