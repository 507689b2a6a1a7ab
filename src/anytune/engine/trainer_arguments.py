"""What the transformers Trainer is asked for, checked before anything is made: arguments, methods, number of steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import TrainingArguments

from anytune.engine.processes import check_engine
from anytune.errors import MethodError, SettingsError
from anytune.methods.objective import Classification, LanguageModelling, Regression, TokenClassification
from anytune.methods.protocol import Method, check_composition, overrides
from anytune.models.anatomy import Anatomy

#: Trainer argument -> (the value that leaves training to us, what to do instead).
REFUSED: dict[str, tuple[Any, str]] = {
    "fp16": (False, "bf16=True"),
    "label_smoothing_factor": (0.0, "an objective that smooths, given as objective=..."),
    "neftune_noise_alpha": (None, "a method that adds noise"),
    "auto_find_batch_size": (False, "a smaller per_device_train_batch_size"),
    "use_liger_kernel": (False, "the kernels applied to the model before it is handed over"),
    "deepspeed": (None, "torchrun (DDP)"),
    "activation_checkpointing": (False, "model.gradient_checkpointing_enable() before the model is handed over"),
    "gradient_checkpointing": (False, "model.gradient_checkpointing_enable() before the model is handed over"),
}
#: What the Trainer calls a schedule -> what ``learning_rate_share`` calls it.
SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant", "constant_with_warmup": "constant"}


def default_objective(model: Any, anatomy: Anatomy) -> Any:
    """The objective that a transformers class is made for.

    Raises:
        SettingsError: its name does not say.
    """
    name = type(model).__name__
    if name.endswith("ForSequenceClassification"):
        return Regression() if model.config.problem_type == "regression" else Classification()
    if name.endswith("ForTokenClassification"):
        return TokenClassification()
    if name.endswith(("ForMaskedLM", "ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        return LanguageModelling(anatomy)
    raise SettingsError(f"no objective is known for {name}", fix="objective=Classification()   (or another)")


def is_batches(data: Any) -> bool:
    """Whether data are batches as the loop takes them (``ExampleBatches``, ``BlockBatches``)."""
    return hasattr(data, "batches_per_epoch") and hasattr(data, "batch")


def planned_steps(data: Any, args: TrainingArguments) -> int:
    """Optimizer steps the Trainer will make: methods are prepared for them.

    Raises:
        SettingsError: they cannot be known.
    """
    if data is None:
        return 0
    if args.max_steps > 0:
        return args.max_steps
    accumulation, world = args.gradient_accumulation_steps, args.world_size
    if is_batches(data):
        return max(1, round(args.num_train_epochs * data.batches_per_epoch / (accumulation * world)))
    try:
        examples = len(data)
    except TypeError:
        raise SettingsError("the training data have no length", fix="TrainingArguments(max_steps=...)") from None
    whole = math.floor if args.dataloader_drop_last else math.ceil
    batches = whole(whole(examples / args.train_batch_size) / world)
    return math.ceil(args.num_train_epochs * max(1, math.ceil(batches / accumulation)))


def check_methods(methods: Sequence[Method]) -> None:
    """Refuse methods that collide, do not train, or train in several stages.

    Raises:
        MethodError: says which, and what to do instead.
    """
    check_composition(methods)
    for method in methods:
        if not method.trains:
            raise MethodError(
                f"method '{method.name}' does not train", why="There is nothing for the Trainer to do.",
                fix="anytune recycle DELTA --base NEW_BASE",
            )  # fmt: skip
        stages = method.stages() if overrides(method, "stages") else ()
        if len(stages) > 1:
            raise MethodError(
                f"method '{method.name}' trains in {len(stages)} stages ({', '.join(stage.name for stage in stages)})",
                why="Each stage has an optimizer of its own; the Trainer has one for the whole run.",
                fix=f"anytune {method.room} ... --method {method.name}   (or anytune.engine.train in Python)",
            )


def check_weights(model: nn.Module) -> None:
    """Refuse a prepared model whose own weights are quantised, unless an adapter is what is trained.

    Raises:
        MethodError: names one of them.
    """
    if hasattr(model, "peft_config"):
        return
    whole = [name for name, parameter in model.named_parameters() if not parameter.is_floating_point()]
    if whole or getattr(model, "is_quantized", False):
        raise MethodError(
            f"the model's weights are quantised, first {whole[0]}" if whole else "the model's weights are quantised",
            why="Such weights are rounded to a few values, and no gradient can move them: they would stay.",
            fix="methods='lora', or the model loaded without quantization_config",
        )


def check_arguments(args: TrainingArguments, trainer: Mapping[str, Any]) -> None:
    """Refuse what would change training behind the methods' back.

    Raises:
        SettingsError: names the argument, or the launcher's engine, and what to do instead.
    """
    check_engine()
    for name in ("model_init", "optimizers", "optimizer_cls_and_kwargs", "compute_loss_func"):
        if trainer.get(name) not in (None, (None, None)):
            raise SettingsError(
                f"{name} is given", why="Model, loss and optimizer are made by the methods.", fix=f"leave {name} out"
            )
    for name, (neutral, instead) in REFUSED.items():
        given = getattr(args, name, neutral)
        if given != neutral and given is not None:
            raise SettingsError(
                f"TrainingArguments({name}={given!r}) cannot be used with methods",
                why="It changes the loss or the model behind their back.",
                fix=instead,
            )
    if args.fsdp:
        raise SettingsError("fsdp is given", why="The Trainer would shard the step.", fix="torchrun (DDP)")
    if args.n_gpu > 1:
        raise SettingsError(
            f"{args.n_gpu} GPUs in one process", why="DataParallel copies the methods' state.",
            fix="torchrun --nproc-per-node ...   (or CUDA_VISIBLE_DEVICES=0)",
        )  # fmt: skip
    for name, known in (("lr_scheduler_type", tuple(SCHEDULES)), ("optim", ("adamw_torch", "adamw_torch_fused"))):
        if value_of(getattr(args, name)) not in known:
            raise SettingsError(f"{name} = '{value_of(getattr(args, name))}'", fix=f"one of {', '.join(known)}")


def value_of(given: Any) -> str:
    """Of an enumeration of the Trainer's, or a string."""
    return str(getattr(given, "value", given))


def named_labels(model: nn.Module) -> tuple[str, ...]:
    """What output i of a task model's head is called, in order; () where only transformers' own names stand."""
    names = getattr(getattr(model, "config", None), "id2label", None) or {}
    found = tuple(str(names[index]) for index in sorted(names))
    return () if all(name.startswith("LABEL_") for name in found) else found
