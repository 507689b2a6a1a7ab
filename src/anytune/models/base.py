"""Base: one version of a pre-trained model, in a plain transformers folder.

``load_base`` finds it (a folder, a hub id, or a named sample); a ``Base`` hands out task models, pre-training models
and tensors. Nothing pickled is read and no code from a model folder is run.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from anytune import compat
from anytune.errors import BaseError, SettingsError
from anytune.manifests import MANIFEST_NAME, BaseIdentity, Manifest, read_manifest, write_atomic
from anytune.models.anatomy import Anatomy, anatomy_of
from anytune.models.finding import find_folder
from anytune.models.fingerprint import TOKENIZER_FILES, VOCABULARY_FILES, fingerprint_folder, read_config
from anytune.models.hyperprompt import HyperPrompt, hyperprompt_from, reading_module
from anytune.models.hyperprompt_config import HyperPromptConfig, read_settings
from anytune.models.layout import HYPERPROMPT, is_hyperprompt
from anytune.models.prompted import attach, hyperprompt_of
from anytune.models.weights import HYPERPROMPT_SETTINGS, HYPERPROMPT_TENSORS, SINGLE_FILE, StoredWeights, write_tensors

#: What weights may be stored as.
WEIGHT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class BaseTensors(Mapping[str, Tensor]):
    """Canonical name -> tensor in its stored dtype, read from the folder when asked for.

    Args:
        stored: the folder's weights.
        names: canonical name -> name in the folder's files.
    """

    def __init__(self, stored: StoredWeights, names: Mapping[str, str]) -> None:
        self._stored, self._names = stored, dict(names)

    def __getitem__(self, name: str) -> Tensor:
        return self._stored[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self._stored.shape(self._names[name])


@dataclass(frozen=True)
class Base:
    """One version of a pre-trained model. Made by ``load_base``.

    ``identity`` carries its hashes, its name and where it can be had again; ``manifest`` is there for a base that
    anytune made.
    """

    folder: Path
    identity: BaseIdentity
    anatomy: Anatomy
    config: Any
    stored: StoredWeights
    manifest: Manifest | None = None
    #: of a prompted base: the settings of its hypernetwork
    hyperprompt: HyperPromptConfig | None = None

    @property
    def name(self) -> str:
        """A short name for tables and errors."""
        return self.identity.name

    @property
    def ref(self) -> str | None:
        """``sample:NAME`` or a hub id, where the base can be had again; None for a folder."""
        return self.identity.ref

    @property
    def position_limit(self) -> int | None:
        """The longest input in tokens, or None where the base states none; a prompt takes its places from it."""
        positions = getattr(self.config, self.anatomy.positions, None) if self.anatomy.positions else None
        if not isinstance(positions, int):
            return None
        return positions - self.anatomy.position_offset - (self.hyperprompt.length if self.hyperprompt else 0)

    def tokenizer(self) -> Any:
        """The base's tokenizer.

        Raises:
            BaseError: the folder has none, or it cannot be read.
        """
        from transformers import AutoTokenizer

        try:
            if not any((self.folder / name).is_file() for name in VOCABULARY_FILES):
                raise FileNotFoundError(f"none of {', '.join(VOCABULARY_FILES)} is there")
            with compat.quiet_transformers():
                tokenizer = AutoTokenizer.from_pretrained(
                    str(self.folder), local_files_only=True, trust_remote_code=False
                )
        except Exception as problem:
            raise BaseError(
                f"{self.folder} has no tokenizer that can be read: {str(problem).splitlines()[0]}",
                why="Text cannot be turned into tokens without it.",
                fix="copy the model's tokenizer.json into the folder",
            ) from problem
        self._check_vocabulary(tokenizer)
        return tokenizer

    def _check_vocabulary(self, tokenizer: Any) -> None:
        """Every word must have an embedding: a foreign tokenizer would end in an index error deep in a model."""
        rows = self.tensors().shape(self.anatomy.word_embeddings)[0]
        word, largest = max(tokenizer.get_vocab().items(), key=lambda pair: pair[1], default=("", -1))
        if largest >= rows:
            raise BaseError(
                f"the tokenizer in {self.folder} has the word {word!r} as number {largest}, the model has "
                f"{rows} embeddings",
                why="The tokenizer belongs to another model, or words were added to it alone.",
                fix="copy the tokenizer files of this very model into the folder",
            )

    def tensors(self, *, pretraining_head: bool = False) -> BaseTensors:
        """Canonical name -> backbone tensor in its stored dtype; each is read when asked for.

        Args:
            pretraining_head: add the pre-training head's tensors, which a generating task model uses too. A head that
                shares the word embeddings stands there under its own name as well.
        """
        parts = self.anatomy.split(self.stored)
        names = {self.anatomy.canonical(name): name for name in parts.backbone}
        if pretraining_head:
            names |= {self.anatomy.canonical(name): name for name in parts.pretraining_head}
            cls = compat.model_class(self.anatomy.objective, self.config)
            for name, source in compat.tied_head_names(cls, self.config).items():
                bare = self.anatomy.canonical(source)
                if self.anatomy.is_pretraining_head(name) and bare in names:
                    names.setdefault(name, names[bare])
        return BaseTensors(self.stored, names)

    def task_model(
        self,
        kind: Literal["classification", "regression", "token-classification", "generation"],
        label_names: Sequence[str],
        seed: int,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Any, list[str]]:
        """A model for a task: this backbone with a fresh head, or for generation the pre-training model itself.

        Args:
            kind: "regression" gives one output and needs no label names; "generation" answers prompts with the base's
                own vocabulary head and needs none either.
            label_names: output i is ``label_names[i]``.
            seed: of the fresh head. Equal seeds give equal bits whatever was drawn before; torch's own random state
                is left as it was.
            dtype: of all weights, whatever the file stores.

        Returns:
            (model in eval mode, head_names): the state-dict names that the base file does not hold, a freshly made
            pooler included; for generation usually none. A task head that the file holds (a base that was itself
            tuned) is not used.

        Raises:
            BaseError: transformers has no such class for this kind, the base cannot generate, or backbone weights are
                missing.
        """
        if kind == "generation":
            if self.anatomy.objective == "mlm":
                raise BaseError(
                    f"base {self.name} ({self.anatomy.model_type}) fills in masked words and cannot generate",
                    why="Generation needs a decoder (GPT-2, Llama, Qwen kinds) or an encoder-decoder (T5 kinds).",
                    fix="--base sample:smollm2-135m",
                )
            return self.pretraining_model(seed, dtype)
        config = copy.deepcopy(self.config)
        if kind == "regression":
            config.num_labels, config.problem_type = 1, "regression"
            config.id2label, config.label2id = {0: "score"}, {"score": 0}
        else:
            config.num_labels = len(label_names)
            config.problem_type = "single_label_classification" if kind == "classification" else None
            config.id2label = dict(enumerate(label_names))
            config.label2id = {name: index for index, name in enumerate(label_names)}
        if config.pad_token_id is None:
            # Decoders classify at the last token that is no padding, and must know which token that is.
            tokenizer = self.tokenizer()
            ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
            config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
        purpose = "token-classification" if kind == "token-classification" else "sequence-classification"
        return self._load(purpose, config, dtype, seed, with_pretraining_head=False)

    def pretraining_model(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Any, list[str]]:
        """A model for masked-word (encoders) or next-word prediction (decoders).

        Returns:
            (model in eval mode, missing): the names of head weights that the file does not hold and that were drawn
            from ``seed``; empty for a base that still has its pre-training head.

        Raises:
            BaseError: as ``task_model``.
        """
        config = copy.deepcopy(self.config)
        return self._load(self.anatomy.objective, config, dtype, seed, with_pretraining_head=True)

    def held_over(self) -> dict[str, Tensor]:
        """Tensors in the file that the pre-training class drops (MiniLM's pooler), by the names to store them under.

        They belong in the upgrade's folder: without them a task model of the upgrade starts from a random pooler.
        """
        cls = self._class(self.anatomy.objective)
        with torch.device("meta"), compat.quiet_transformers():
            kept = {self.anatomy.canonical(name) for name in cls(copy.deepcopy(self.config)).state_dict()}
        parts = self.anatomy.split(name for name in self.stored if not is_hyperprompt(name))
        names = {name: self._name_in_model(name, True) for name in (*parts.backbone, *parts.pretraining_head)}
        return {
            stored_as: self.stored[name]
            for name, stored_as in names.items()
            if self.anatomy.canonical(name) not in kept
        }

    def copy_tokenizer(self, folder: Path) -> None:
        """Copy the tokenizer's files as they are: saving a loaded tokenizer may rewrite them."""
        for name in TOKENIZER_FILES:
            if (self.folder / name).is_file():
                shutil.copyfile(self.folder / name, folder / name)

    def _class(self, purpose: str) -> Any:
        cls = compat.model_class(purpose, self.config)
        if cls is None:
            raise BaseError(
                f"transformers has no {purpose} class for '{self.anatomy.model_type}'",
                why="This base cannot be used for that.",
                fix="--base sample:minilm-l6",
            )
        return cls

    def _name_in_model(self, name: str, pretraining: bool) -> str:
        bare = self.anatomy.canonical(name)
        return self.anatomy.in_model(bare, pretraining) if self.anatomy.is_backbone(name) else bare

    def _load(
        self, purpose: str, config: Any, dtype: torch.dtype, seed: int, with_pretraining_head: bool
    ) -> tuple[Any, list[str]]:
        """A model of the class for ``purpose``, with every name accounted for."""
        config.name_or_path = self.identity.ref or self.identity.name  # never the folder's path
        anatomy = self.anatomy
        parts = anatomy.split(self.stored)
        # A task head that the kind takes over from pre-training starts from it, and is still a head: kept whole.
        warm = [] if with_pretraining_head else [name for name in parts.pretraining_head if anatomy.is_warm_head(name)]
        names = (*parts.backbone, *(parts.pretraining_head if with_pretraining_head else warm))
        # transformers makes parameters of these very tensors; each read of the file gives a copy of its own.
        state = {
            self._name_in_model(name, with_pretraining_head): self._weight(name).to(dtype)
            for name in names
            if not is_hyperprompt(name)
        }
        try:
            model, _ = compat.model_from_state(self._class(purpose), config, dict(state), dtype, seed)
        except (RuntimeError, ValueError, KeyError) as problem:
            raise BaseError(
                f"the weights in {self.folder} do not fit its config.json: {str(problem).strip().splitlines()[-1]}",
                why="Shapes and settings must agree.",
                fix="copy or download the folder again",
            ) from problem
        fresh = _names_without_a_source(model, set(state).difference(warm))
        if self.hyperprompt is not None:
            attach(model, self._stored_hyperprompt(model, self.hyperprompt, dtype), anatomy)
        lost = [name for name in fresh if anatomy.is_backbone(name) and not anatomy.is_pooler(name)]
        held = {anatomy.canonical(name) for name in model.state_dict()}
        unused = [
            name
            for name in parts.backbone
            if anatomy.canonical(name) not in held and not anatomy.may_be_left_out(name)
        ]
        if lost or unused:
            raise BaseError(
                f"{self.folder}: {len(lost)} backbone tensors are missing ({', '.join(lost[:3]) or 'none'}), "
                f"{len(unused)} are left over ({', '.join(unused[:3]) or 'none'})",
                why="Missing ones would be random and left-over ones would be ignored, without a word.",
                fix="copy or download the folder again; its config.json must describe its weights",
            )
        return model.eval(), fresh

    def _stored_hyperprompt(self, model: Any, config: HyperPromptConfig, dtype: torch.dtype) -> HyperPrompt:
        tensors = {
            name.removeprefix(f"{HYPERPROMPT}."): self._weight(name).to(dtype)
            for name in self.stored
            if is_hyperprompt(name)
        }
        try:
            return hyperprompt_from(reading_module(model, self.anatomy), config, tensors, self.anatomy).to(dtype)
        except SettingsError as problem:
            raise BaseError(
                f"the hypernetwork in {self.folder} does not fit its base: {problem.what}",
                why=problem.why,
                fix="copy or make the base again",
            ) from problem

    def _weight(self, name: str) -> Tensor:
        """A weight as stored.

        Raises:
            BaseError: it holds no real numbers of at least 16 bits: casting them would give other weights silently.
        """
        tensor = self.stored[name]
        if tensor.dtype not in WEIGHT_DTYPES:
            raise BaseError(
                f"{name} in {self.folder} is stored as {str(tensor.dtype).removeprefix('torch.')}",
                why="Weights are real numbers of 16 bits or more; quantised ones need their scales to mean anything.",
                fix="name the model's unquantised folder or hub id",
            )
        return tensor


def _names_without_a_source(model: Any, given: set[str]) -> list[str]:
    """State-dict names of learned tensors for which neither the name nor a tied name was given, in model order."""
    state = model.state_dict(keep_vars=True)
    sourced = {tensor.data_ptr() for name, tensor in state.items() if name in given}
    buffers = {name for name, _ in model.named_buffers()}
    return [
        name
        for name, tensor in state.items()
        if name not in given and name not in buffers and tensor.data_ptr() not in sourced
    ]


def load_base(
    source: str | Path,
    *,
    resolve_sample: Callable[[str], Path] | None = None,
    name: str | None = None,
    ref: str | None = None,
) -> Base:
    """Load a base.

    Args:
        source: a folder, a hub id (``owner/name``, ``owner/name@revision``), or ``sample:NAME``.
        resolve_sample: NAME -> folder of a named sample (``anytune.data.samples.sample_folder``).
        name: shown in tables; by default the manifest's, sample's, hub's or folder's name.
        ref: where it can be had again, if the caller knows better than ``source`` says.

    Raises:
        BaseError: it cannot be found, is no model folder, is damaged, holds pickled weights only, or is of a kind that
            anytune does not know.
    """
    folder, found_name, found_ref = find_folder(str(source), resolve_sample)
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise BaseError(
            f"{folder} is a PEFT adapter, not a base",
            why="An adapter holds only what tuning changed.",
            fix=f"anytune store import {folder} --base BASE",
        )
    if not (folder / "config.json").is_file():
        near = sorted(path.parent.name for path in folder.glob("*/config.json"))
        raise BaseError(
            f"{folder} has no config.json",
            why="A base is a transformers folder: config.json, model.safetensors and the tokenizer's files.",
            fix=str(folder / near[0]) if near else "--base sample:bert-tiny   (or another folder, or a hub id)",
        )
    config = read_config(folder)
    prints = fingerprint_folder(folder)
    manifest = read_manifest(folder) if (folder / MANIFEST_NAME).is_file() else None
    if manifest is not None and manifest.base.backbone != prints.backbone:
        raise BaseError(
            f"{folder}: the weights have the hash {prints.backbone[:10]}, its manifest says "
            f"{manifest.base.backbone[:10]}",
            why="The weights were changed or damaged after the manifest was written.",
            fix="copy the folder again, or make the base again",
        )
    identity = BaseIdentity(
        backbone=prints.backbone,
        config=prints.config,
        vocabulary=prints.vocabulary,
        name=name or (manifest.name if manifest else "") or found_name,
        ref=ref or found_ref or (manifest.base.ref if manifest else None),
    )
    return Base(
        folder, identity, anatomy_of(config), config, StoredWeights(folder), manifest, read_settings(folder)
    )  # fmt: skip


def save_base(
    model: Any,
    tokenizer: Any,
    folder: Path,
    held_over: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a plain transformers folder: config.json, model.safetensors and the tokenizer's files.

    The hypernetwork of a prompted model goes into two files beside these, so transformers itself loads the bare base.

    Args:
        model: a pre-training model (or any transformers model). Tied tensors are stored once.
        tokenizer: a transformers tokenizer, or a ``Base`` whose tokenizer files are copied as they are (best: equal
            vocabulary hashes), or None.
        folder: where to; made if missing.
        held_over: further tensors by file name, from ``Base.held_over``.
        dtype: to store floating-point weights in; None keeps the model's.

    Raises:
        BaseError: a weight is not finite.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state: dict[str, Tensor] = {}
    seen: set[tuple[int, torch.Size]] = set()
    anatomy = anatomy_of(model)
    # Backbone first, so that of tied tensors the backbone's name is the one that is kept.
    for name, tensor in sorted(model.state_dict().items(), key=lambda item: not anatomy.is_backbone(item[0])):
        if (tensor.data_ptr(), tensor.shape) not in seen or tensor.numel() == 0:
            seen.add((tensor.data_ptr(), tensor.shape))
            state[name] = tensor
    for name, tensor in (held_over or {}).items():
        state.setdefault(name, tensor)
    cast = {
        name: tensor.detach().cpu().to(dtype if dtype and tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in state.items()
    }
    broken = [name for name, tensor in cast.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise BaseError(
            f"{len(broken)} tensors hold NaN or infinity, first {broken[0]}",
            why="Such a base answers nothing; training diverged.",
            fix="a lower learning rate",
        )
    plain = {name: tensor for name, tensor in cast.items() if not is_hyperprompt(name)}
    write_tensors(folder / SINGLE_FILE, plain, {"format": "pt"})
    save_hyperprompt(model, folder, cast)
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = dtype or model.dtype
    with compat.quiet_transformers():
        config.save_pretrained(folder)
        if getattr(model, "generation_config", None) is not None and model.can_generate():
            model.generation_config.save_pretrained(folder)
        if isinstance(tokenizer, Base):
            tokenizer.copy_tokenizer(folder)
        elif tokenizer is not None:
            tokenizer.save_pretrained(folder)
    _drop_path(folder / "config.json")


def save_hyperprompt(model: Any, folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write the hypernetwork of a prompted model beside the files of the bare one; nothing for a bare model.

    Args:
        model: gives the settings.
        folder: where to.
        state: the model's state dict; of it the hypernetwork's tensors are written.
    """
    hyperprompt = hyperprompt_of(model)
    if hyperprompt is not None:
        own = {name: tensor for name, tensor in state.items() if is_hyperprompt(name)}
        write_tensors(folder / HYPERPROMPT_TENSORS, own, {"format": "pt"})
        write_atomic(folder / HYPERPROMPT_SETTINGS, hyperprompt.config.to_json().encode())


def _drop_path(file: Path) -> None:
    """No path of this machine stays in a config."""
    values = json.loads(file.read_text(encoding="utf-8"))
    if values.pop("_name_or_path", None) is not None:
        file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
