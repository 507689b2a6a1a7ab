"""Adapters: PEFT folders that stay PEFT folders.

PEFT loads what anytune saves, and anytune loads what PEFT saved. Two things PEFT does not do are done here. The whole
head is kept: every module the base does not hold goes into ``modules_to_save``, a freshly made pooler included (PEFT
alone keeps only ``classifier`` or ``score``, and the pooler is drawn anew on loading). And absolute copies of base
weights (``modules_to_save`` modules the base does hold, trained biases) become differences before they move to another
base, instead of overwriting the new base with the old one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from anytune import compat
from anytune.errors import BaseError, DeltaError, MethodError
from anytune.manifests import BaseIdentity, load_json
from anytune.models import difference as arithmetic
from anytune.models.adapter_config import harmless
from anytune.models.anatomy import Anatomy
from anytune.models.finding import HUB_ID
from anytune.models.prompt_files import prompt_tensors, put_prompt
from anytune.models.rebasing import carried, move_copy, move_tokens, moved_magnitude
from anytune.models.soft_prompt_config import is_soft_prompt
from anytune.models.soft_prompts import prompt_of
from anytune.models.vocabulary import Rows
from anytune.models.weights import write_tensors

CONFIG_FILE = "adapter_config.json"
ADAPTER_FILE = "adapter_model.safetensors"
#: What PEFT puts before every name of the model inside.
INSIDE = "base_model.model."
#: Ways to start a LoRA that leave the base as it is; all others (PiSSA, OLoRA, LoftQ, CorDA ...) change it.
HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
#: Of these others, starts that the base's weights give again: ``plain_lora`` can say what was added.
FROM_WEIGHTS = ("pissa", "olora")
#: Kinds whose own tensors do not depend on the base's values. Others hold absolute copies or are unknown to us.
MOVABLE = ("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "VERA", "OFT", "BOFT", "HRA", "PROMPT_TUNING", "P_TUNING",
           "PREFIX_TUNING")  # fmt: skip
#: Parts of a name that say: this tensor was made by PEFT (all others are copies of a tensor of the model).
MADE_BY_PEFT = ("lora_", "ia3_", "hada_", "lokr_", "vera_", "oft_", "boft_", "hra_", "prompt_embeddings",
                "prompt_encoder", "trainable_tokens_", "ranknum")  # fmt: skip


@dataclass(frozen=True)
class AdapterDelta:
    """A PEFT adapter: its config and its tensors, by the names PEFT stores them under."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def from_model(
        cls, peft_model: Any, base: BaseIdentity | None = None, head_names: Collection[str] | None = None
    ) -> AdapterDelta:
        """The adapter of a PEFT model (its active one), or a model's soft prompt; with copies of the tensors.

        Args:
            peft_model: a ``PeftModel``, or a model with a soft prompt.
            base: written into the config as the base's hub id, sample or name; never a path.
            head_names: of a soft prompt: what the base does not hold; by default the task's head and a trained pooler.
        """
        if prompt_of(peft_model) is not None:
            settings, own = prompt_tensors(peft_model, head_names)
            if base is not None:
                settings["base_model_name_or_path"] = base.ref or base.name
            return cls(settings, own)
        name = peft_model.active_adapter
        config = {key: _plain(value) for key, value in peft_model.peft_config[name].to_dict().items()}
        config["inference_mode"] = True
        if config.get("modules_to_save"):  # PEFT adds to the list each time it wraps a model
            config["modules_to_save"] = list(dict.fromkeys(config["modules_to_save"]))
        if base is not None:
            config["base_model_name_or_path"] = base.ref or base.name
        tensors = {key: value.detach().cpu().clone() for key, value in compat.adapter_state(peft_model).items()}
        return cls(config, tensors)

    def save(self, folder: Path, base: BaseIdentity | None = None) -> None:
        """Write a plain PEFT folder: adapter_config.json, adapter_model.safetensors and a short README.md."""
        folder.mkdir(parents=True, exist_ok=True)
        config = dict(self.config)
        if base is not None:
            config["base_model_name_or_path"] = base.ref or base.name
        stated = str(config.get("base_model_name_or_path") or "")
        if not stated.startswith("sample:") and not HUB_ID.fullmatch(stated):
            config["base_model_name_or_path"] = Path(stated).name or None  # a folder of one machine is no name
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        write_tensors(folder / ADAPTER_FILE, self.tensors, {"format": "pt"})
        (folder / "README.md").write_text(_readme(config, base), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> AdapterDelta:
        """Read a PEFT folder, made here or elsewhere.

        Raises:
            DeltaError: a file is missing or damaged, or the weights are pickled (``adapter_model.bin``).
        """
        folder = Path(folder)
        try:
            config = load_json(folder / CONFIG_FILE)
        except FileNotFoundError:
            raise DeltaError(f"{folder} has no {CONFIG_FILE}", why="It is no PEFT folder.") from None
        except (OSError, ValueError) as problem:
            raise DeltaError(f"cannot read {folder / CONFIG_FILE}: {problem}", why="The folder is damaged.") from None
        if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
            raise DeltaError(f"{folder / CONFIG_FILE} names no peft_type", why="It is no PEFT config.")
        path = folder / ADAPTER_FILE
        if not path.is_file():
            if (folder / "adapter_model.bin").is_file():
                raise DeltaError(
                    f"{folder} has its weights only as adapter_model.bin",
                    why="That is a pickle, which can run any code when opened; anytune reads safetensors only.",
                    fix='for a file you trust: python -c "import torch; from safetensors.torch import save_file; '
                    f"save_file(torch.load('{folder}/adapter_model.bin', weights_only=True), '{path}')\"",
                )
            raise DeltaError(f"{folder} has no {ADAPTER_FILE}", why="The adapter's weights are missing.")
        try:
            tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        except (SafetensorError, OSError) as problem:
            raise DeltaError(
                f"cannot read {path} ({path.stat().st_size:,} bytes): {problem}",
                why="The file is truncated or no safetensors file.",
                fix="copy it again",
            ) from None
        return cls(config, tensors)

    def attach(self, model: nn.Module, trainable: bool = True) -> Any:
        """Put this adapter onto a task model (changed in place); returns the ``PeftModel`` in eval mode.

        A soft prompt is put on by ``soft_prompts``, and the model itself is returned: it answers as PEFT's would, and
        tags tokens too. Torch's random state is left as it was.

        Raises:
            DeltaError: PEFT cannot make such an adapter, or names, shapes or values do not all match.
        """
        from peft import PeftConfig, get_peft_model

        settings = harmless(self.config, self.tensors.values())
        if is_soft_prompt(settings):
            try:
                put_prompt(model, settings, self.tensors, trainable)
            except (BaseError, MethodError) as problem:
                raise DeltaError(problem.what, why=problem.why, fix=problem.fix) from None
            return model.eval()
        try:
            with compat.quiet_transformers(), compat.seeded(0):
                config = PeftConfig.from_peft_type(**settings)
                # Only a config without inference mode gives trainable parameters; loading weights does not change it.
                config.inference_mode = not trainable
                peft_model: Any = get_peft_model(model, config)
                _match(compat.adapter_state(peft_model), self.tensors)
                compat.set_adapter_state(peft_model, self.tensors)
        except DeltaError:
            raise
        except (ValueError, TypeError, KeyError, RuntimeError, AttributeError) as problem:
            raise DeltaError(
                f"PEFT cannot put this {self.config.get('peft_type')} adapter onto {type(model).__name__}: "
                f"{str(problem).strip().splitlines()[0] if str(problem).strip() else problem!r}",
                why="Its targets must be modules of the model, with equal shapes.",
            ) from problem
        written = compat.adapter_state(peft_model)
        wrong = [name for name, tensor in self.tensors.items() if not torch.equal(written[name].cpu(), tensor)]
        if wrong:
            raise DeltaError(
                f"{len(wrong)} adapter tensors did not arrive: {', '.join(wrong[:5])}",
                why="The model would answer with other weights than the adapter's.",
            )
        return peft_model.eval()

    def absolute_copies(self, base_tensors: Iterable[str], anatomy: Anatomy) -> dict[str, str]:
        """Adapter tensor name -> canonical name, for tensors that are copies of weights the base holds."""
        held = set(base_tensors)
        found = {name: anatomy.canonical(_inside(name)) for name in self.tensors if not _made_by_peft(name)}
        return {name: bare for name, bare in found.items() if bare in held}

    def rebase(
        self,
        old_base: Mapping[str, Tensor],
        new_base: Mapping[str, Tensor],
        anatomy: Anatomy,
        tables: Mapping[str, Rows] | None = None,
    ) -> AdapterDelta:
        """This adapter for another base of the same shapes.

        The adapter's own tensors and the head are carried bit for bit, those on a table of words with their words.
        Absolute copies of base weights, and trained tokens, become ``new_base + (copy - old_base)``, in fp64 and
        rounded once; where the two bases hold the same bits, the copy's bits stay. DoRA's magnitudes keep their ratio
        to the length of the matrix's rows.

        Args:
            old_base: canonical name -> tensor of the base it was tuned on.
            new_base: the same of the base it moves to.
            anatomy: of the model's kind.
            tables: canonical name -> where the rows of a table went, for tables that changed.

        Raises:
            DeltaError: the adapter's kind depends on the base it was made on (PiSSA and OLoRA, which
                ``plain_lora.as_plain_lora`` turns into LoRA first; LoftQ and CorDA; layer-norm tuning), or shapes
                differ.
        """
        reason, tables = self.why_not_movable(), tables or {}
        if not reason and self.config.get("init_lora_weights") in FROM_WEIGHTS:
            reason = f"it was started by '{self.config['init_lora_weights']}' and is no plain LoRA yet"
        if reason:
            raise DeltaError(
                f"this adapter cannot move to another base: {reason}",
                why="Its tensors only mean something on the base they were made on.",
                fix="merge it into its own base and move the merged model's full delta, or convert it to plain LoRA",
            )
        moved, config = dict(self.tensors), dict(self.config)
        for name, bare in self.absolute_copies(old_base, anatomy).items():
            copy, old, rows = self.tensors[name], old_base[bare], tables.get(bare)
            expected = (rows.size, *copy.shape[1:]) if rows is not None else copy.shape
            if bare not in new_base or new_base[bare].shape != expected or old.shape != copy.shape:
                new_shape = list(new_base[bare].shape) if bare in new_base else "nothing"
                raise DeltaError(
                    f"{name}: adapter {list(copy.shape)}, old base {list(old.shape)}, new base {new_shape}",
                    why="A difference can only be added to a tensor of the same shape.",
                )
            moved[name] = move_copy(copy, old, new_base[bare], rows)
        for name, module in self.acts_on(anatomy).items():
            if "trainable_tokens_delta" in name:
                move_tokens(name, module, moved, config, old_base, new_base, tables)
            elif "lora_magnitude_vector" in name:
                moved[name] = moved_magnitude(name, module, moved[name], old_base, new_base, anatomy)
            else:
                moved[name] = carried(name, module, moved[name], tables)
        return AdapterDelta(config, moved)

    def acts_on(self, anatomy: Anatomy) -> dict[str, str]:
        """Adapter tensor name -> canonical name of the module that it acts on, for tensors that PEFT made.

        What belongs to no module (the values of a prompt) is left out.
        """
        found = {}
        for name in self.tensors:
            if _made_by_peft(name):
                parts = _inside(name).split(".")
                ends = (at for at, part in enumerate(parts) if part.startswith((*MADE_BY_PEFT, "token_adapter")))
                module = ".".join(parts[: next(ends)])
                if module:
                    found[name] = anatomy.canonical(f"{module}.weight").removesuffix(".weight")
        return found

    def scaled(self, scale: float, base: Mapping[str, Tensor], anatomy: Anatomy) -> AdapterDelta:
        """This LoRA with its difference multiplied by ``scale``; the head stays as it is.

        The matrices keep their bits: ``alpha`` carries the factor. Absolute copies of base weights become
        ``base + scale * (copy - base)``, in fp64 and rounded once. With ``scale`` 1 nothing changes.

        Args:
            scale: 0 leaves the base with the head, 1 the adapter as it is.
            base: canonical name -> tensor of the base it belongs to.
            anatomy: of the model's kind.

        Raises:
            DeltaError: the adapter is no LoRA, or holds trained tokens beside it, or ``scale`` is not finite.
        """
        kind = "DoRA" if self.config.get("use_dora") else str(self.config.get("peft_type"))
        tokens = scale != 1 and any("trainable_tokens_" in name for name in self.tensors)
        if kind != "LORA" or tokens:
            raise DeltaError(
                f"a {kind} adapter {'with trained tokens ' if tokens else ''}cannot be scaled",
                why="Tokens are values of their own, and would be added whole at any scale."
                if kind == "LORA"
                else "Only plain LoRA's difference is a product with a factor of its own.",
                fix="--method direct, or initialize   (all of it)",
            )
        if not math.isfinite(scale):
            raise DeltaError(f"scale = {scale}", fix="a number, such as 0.5")
        config = {**self.config, "lora_alpha": self.config.get("lora_alpha", 8) * scale}
        config["alpha_pattern"] = {name: alpha * scale for name, alpha in (config.get("alpha_pattern") or {}).items()}
        tensors = dict(self.tensors)
        if scale != 1:
            for name, bare in self.absolute_copies(base, anatomy).items():
                step = tensors[name].double() - base[bare].double()
                tensors[name] = arithmetic.add(base[bare], step, tensors[name].dtype, scale)
        return AdapterDelta(config, tensors)

    def why_not_movable(self) -> str:
        """Why this adapter cannot be put onto another base; empty where it can."""
        kind, start = str(self.config.get("peft_type")), self.config.get("init_lora_weights", True)
        if kind not in MOVABLE:
            return f"kind {kind} (known to be movable: {', '.join(MOVABLE)})"
        if start not in (*HARMLESS_STARTS, *FROM_WEIGHTS) or (start in FROM_WEIGHTS and self.config.get("use_dora")):
            return f"it was started by '{start}', which changes the base's own weights"
        return ""

    def head(self, base_tensors: Iterable[str], anatomy: Anatomy) -> dict[str, Tensor]:
        """State-dict name -> tensor of the head: what neither PEFT made nor the base holds."""
        copies = self.absolute_copies(base_tensors, anatomy)
        return {
            _inside(name): tensor
            for name, tensor in self.tensors.items()
            if name not in copies and not _made_by_peft(name)
        }

    def saved_head_missing(self, head_names: Iterable[str]) -> list[str]:
        """State-dict names of the task model's head that neither the base nor this adapter holds.

        An adapter made with PEFT alone lost its freshly made pooler: what it answered with is gone, and this says so.

        Args:
            head_names: what the base does not hold, from ``Base.task_model``.
        """
        held = {_inside(name) for name in self.tensors if not _made_by_peft(name)}
        return [name for name in head_names if name not in held]


def _match(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    reasons = [f"{name}: not in the adapter" for name in expected if name not in given]
    reasons += [f"{name}: not in the model" for name in given if name not in expected]
    reasons += [
        f"{name}: adapter {list(given[name].shape)}, model {list(expected[name].shape)}"
        for name in expected
        if name in given and given[name].shape != expected[name].shape
    ]
    if reasons:
        raise DeltaError(
            f"this adapter does not fit the model, {len(reasons)} names: {'; '.join(reasons[:5])}",
            why="A name left out would keep random weights.",
            fix="a task model with the adapter's number of labels, on a base of the same architecture",
        )


def _inside(name: str) -> str:
    """The name of a tensor in the model inside: ``base_model.model.x.base_layer.bias`` -> ``x.bias``."""
    bare = name.removeprefix(INSIDE).removeprefix("base_model.")
    for wrapper in (".base_layer.", ".modules_to_save.", ".original_module."):
        bare = bare.replace(wrapper, ".")
    return bare


def _made_by_peft(name: str) -> bool:
    return any(part.startswith(MADE_BY_PEFT) for part in name.split("."))


def _plain(value: Any) -> Any:
    """A config value as JSON has it: sets sorted (their order changes from run to run), enumerations as text."""
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return getattr(value, "value", value)


#: Adapter's task type -> the class its base is loaded by, and what that needs besides the base.
BASE_CLASSES = {
    "SEQ_CLS": ("AutoModelForSequenceClassification", ", num_labels=N"),
    "TOKEN_CLS": ("AutoModelForTokenClassification", ", num_labels=N"),
    "CAUSAL_LM": ("AutoModelForCausalLM", ""),
    "SEQ_2_SEQ_LM": ("AutoModelForSeq2SeqLM", ""),
}


def _readme(config: Mapping[str, Any], base: BaseIdentity | None) -> str:
    loader, labels = BASE_CLASSES.get(str(config.get("task_type")), BASE_CLASSES["SEQ_CLS"])
    stated = config.get("base_model_name_or_path") or "BASE"
    named = f"{base.name} (backbone {base.backbone[:10]})" if base else stated
    return (
        "---\nlibrary_name: peft\n---\n\n"
        f"A {config.get('peft_type')} adapter of the base {named}, made with anytune. It is a plain PEFT folder:\n\n"
        f"```python\nmodel = {loader}.from_pretrained(BASE{labels})\n"
        "model = PeftModel.from_pretrained(model, THIS_FOLDER)\n```\n\n"
        "It belongs to this base only; `anytune recycle` moves it to another.\n"
    )
