"""A hypernetwork that writes a soft prompt for each text: weights of a text over a memory of prompt components.

A frozen encoder reads the text, a small transformer and a pooling make one vector of it, a linear map gives one weight
per component, and the prompt is the weighted sum of the components. Only the weights depend on the text. How the
prompt gets into a model stands in ``prompted``.

The encoder is made once, of the first base that gets a hypernetwork, and never changes again: what a text weighs does
not drift with the base.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from anytune import compat
from anytune.errors import BaseError
from anytune.models.anatomy import Anatomy, anatomy_of
from anytune.models.hyperprompt_config import HyperPromptConfig
from anytune.models.layout import HYPERPROMPT
from anytune.models.weights import HYPERPROMPT_SETTINGS, HYPERPROMPT_TENSORS

# ---------------------------------------------------------------------- pure functions


def mixture(weights: Tensor, components: Tensor) -> Tensor:
    """``P_b = sum_m weights[b, m] components[m]``: [b, M], [M, L, d] -> [b, L, d]."""
    return torch.einsum("bm,mld->bld", weights, components)


def pooled(hidden: Tensor, mask: Tensor, how: Literal["mean", "first"]) -> Tensor:
    """One vector for each row, of its tokens: their mean, or the first one's.

    Args:
        hidden: [b, n, w].
        mask: [b, n], true where there is a token; a row without one gives zeros.

    Returns:
        [b, w].
    """
    kept = mask.to(hidden.dtype).unsqueeze(-1)
    if how == "mean":
        return (hidden * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)
    first = mask.to(torch.uint8).argmax(dim=1)
    rows = torch.arange(len(hidden), device=hidden.device)
    return hidden[rows, first] * kept[rows, first]


def mixing_weights(scores: Tensor, mix: Literal["linear", "softmax"], temperature: float = 1.0) -> Tensor:
    """Scores [b, M] as weights: as they are, or ``softmax(scores / temperature)``."""
    return torch.softmax(scores / temperature, dim=-1) if mix == "softmax" else scores


def readable_tokens(mask: Tensor, allowed: Tensor | None = None, reads: int | None = None) -> Tensor:
    """Which tokens [b, n] a hypernetwork reads: at least one in every row.

    Args:
        mask: the attention mask [b, n].
        allowed: [b, n], what may be read; None for all.
        reads: at most so many of each row, the first ones; None for no limit.

    Returns:
        A boolean [b, n]. Where nothing is left of a row, its first token is read; of padding alone, the first place.
    """
    attended = mask.bool()
    chosen = attended if allowed is None else attended & allowed.bool()
    if reads is not None:
        chosen = chosen & (chosen.cumsum(dim=1) <= reads)
    first = functional.one_hot(attended.to(torch.uint8).argmax(dim=1), mask.shape[1]).bool()
    return chosen | (first & ~chosen.any(dim=1, keepdim=True))


def unscored_beginning(labels: Tensor, no_label: int = -100) -> Tensor:
    """The positions [b, n] before the first label of each row: what may be read without a look at what is asked."""
    return (labels != no_label).cumsum(dim=1) == 0


# ---------------------------------------------------------------------- modules


class Block(nn.Module):
    """One layer of the hypernetwork's transformer: attention over all tokens of a text, then two linear maps.

    Norms stand before each half, so a fresh layer changes its input little.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_maps = nn.LayerNorm(width), nn.LayerNorm(width)
        self.joint, self.joined = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """[b, n, w], [b, n] -> [b, n, w]; every row of ``mask`` is true somewhere."""
        rows, length, width = hidden.shape
        split = self.joint(self.before_attention(hidden)).view(rows, length, 3, self.heads, width // self.heads)
        asks, keys, values = split.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(asks, keys, values, attn_mask=mask[:, None, None, :])
        seen = self.joined(seen.transpose(1, 2).reshape(rows, length, width))
        hidden = hidden + self.dropout(seen)
        made = self.narrow(functional.gelu(self.widen(self.before_maps(hidden))))
        return hidden + self.dropout(made)


class Net(nn.Module):
    """The hypernetwork's transformer: what the encoder says [b, n, e] -> one vector for each text [b, w]."""

    def __init__(self, encoded: int, config: HyperPromptConfig) -> None:
        super().__init__()
        width, heads, layers = config.width, config.heads, config.layers
        assert width is not None
        assert heads is not None
        assert layers is not None
        self.pooling = config.pooling
        self.enter = nn.Linear(encoded, width) if encoded != width else nn.Identity()
        self.blocks = nn.ModuleList(Block(width, heads, config.dropout) for _ in range(layers))
        # After pooling: a mean over many tokens is small, and the weights should not depend on how many there are.
        self.norm = nn.LayerNorm(width)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """[b, n, e], [b, n] -> [b, w]."""
        hidden = self.enter(hidden)
        for block in self.blocks:
            hidden = block(hidden, mask)
        return self.norm(pooled(hidden, mask, self.pooling))


class _Frozen:
    """Holds a module where nothing that walks over a model sees it: no optimizer, no adapter, no ``train()``.

    Copies of a model share it, as it never changes.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module.requires_grad_(False).eval()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Frozen:
        return self


class HyperPrompt(nn.Module):
    """Writes a prompt for each text. Made by ``make_hyperprompt``.

    The encoder is in its state dict (``encoder.*``), but in none of ``parameters()``, ``modules()``, ``train()``.

    Args:
        config: resolved settings.
        encoder: reads texts; frozen here, and never in train mode.
        encoded: the width of what it says.
        width: d, that of a word embedding of the base.
        hidden_id: stands in the place of tokens that may not be read.
    """

    def __init__(
        self, config: HyperPromptConfig, encoder: nn.Module, encoded: int, width: int, hidden_id: int = 0
    ) -> None:
        super().__init__()
        self.config = config
        self.hidden_id = hidden_id
        self._frozen = _Frozen(encoder)
        self.net = Net(encoded, config)
        assert config.width is not None
        # Not called "head": PEFT saves whole modules by the end of their names, and a task head may be called so.
        self.weigh = nn.Linear(config.width, config.components)
        self.components = nn.Parameter(torch.zeros(config.components, config.length, width))
        self.eval()

    @property
    def encoder(self) -> nn.Module:
        """What reads the text: frozen, without dropout."""
        return self._frozen.module

    @property
    def head(self) -> nn.Linear:
        """The linear map from a text's vector [b, w] to the scores of the components [b, M]."""
        return self.weigh

    def _apply(self, fn: Any, recurse: bool = True) -> HyperPrompt:
        super()._apply(fn, recurse)
        self.encoder._apply(fn)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self.encoder.state_dict(destination=destination, prefix=f"{prefix}encoder.", keep_vars=keep_vars)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        _, _, missing, unexpected, _ = others
        super()._load_from_state_dict(state_dict, prefix, *others)
        inside = f"{prefix}encoder."
        own = self.encoder.state_dict()
        given = {name.removeprefix(inside): state_dict[name] for name in state_dict if name.startswith(inside)}
        missing.extend(inside + name for name in own if name not in given)
        unexpected[:] = [name for name in unexpected if name.removeprefix(inside) not in own]
        given = {name: tensor for name, tensor in given.items() if name in own}
        if any(not torch.equal(own[name].cpu(), tensor.cpu()) for name, tensor in given.items()):
            # Another encoder than this model's copies have, which keep theirs.
            self._frozen = _Frozen(copy.deepcopy(self.encoder))
            self.encoder.load_state_dict(given, strict=False)

    def weights(self, input_ids: Tensor, mask: Tensor | None = None, allowed: Tensor | None = None) -> Tensor:
        """How much of each component the prompts of these texts hold.

        Args:
            input_ids: [b, n] as the model is given them; or word embeddings [b, n, d], where nothing else is known.
            mask: the attention mask [b, n]; None for no padding.
            allowed: [b, n], the tokens that may be read; None for all. Others do not change a bit of the result.

        Returns:
            [b, M].
        """
        if mask is None:
            mask = torch.ones(input_ids.shape[:2], dtype=torch.long, device=input_ids.device)
        chosen = readable_tokens(mask, allowed, self.config.reads)
        if allowed is not None or self.config.reads is not None:
            # What comes after the last token that any row may show costs time and says nothing.
            end = int(chosen.any(dim=0).nonzero().max()) + 1
            input_ids, chosen = input_ids[:, :end], chosen[:, :end]
        hidden = self._encoded(input_ids, chosen)
        scores = self.weigh(self.net(hidden.to(self.components.dtype), chosen))
        return mixing_weights(scores, self.config.mix, self.config.temperature)

    def forward(self, input_ids: Tensor, mask: Tensor | None = None, allowed: Tensor | None = None) -> Tensor:
        """Prompts [b, L, d]; arguments as ``weights``."""
        return mixture(self.weights(input_ids, mask, allowed), self.components)

    @torch.no_grad()
    def random(
        self, rows: int, generator: torch.Generator, kind: Literal["gaussian", "mixture"] = "gaussian"
    ) -> Tensor:
        """Random prompts [rows, L, d] on the scale of generated ones, without a gradient.

        A linear mixture with standard normal weights has, at each place, mean 0 and variance ``sum_m V_m^2``; one with
        weights that add up to one lies within the components, of which mean and variance are taken.

        Args:
            rows: how many.
            generator: draws on its own device; the result is where the components are.
            kind: "gaussian": independent numbers with these moments; "mixture": random weights over the components.
        """
        parts = self.components.detach().float()
        linear = self.config.mix == "linear"
        if kind == "mixture":
            drawn = torch.randn(rows, len(parts), generator=generator, device=generator.device).to(parts.device)
            made = mixture(drawn if linear else torch.softmax(drawn, dim=-1), parts)
        else:
            drawn = torch.randn(rows, *parts.shape[1:], generator=generator, device=generator.device).to(parts.device)
            if linear:
                made = drawn * parts.square().sum(dim=0).sqrt()
            else:
                made = parts.mean(dim=0) + drawn * parts.var(dim=0, unbiased=False).sqrt()
        return made.to(self.components.dtype)

    @torch.no_grad()
    def _encoded(self, input_ids: Tensor, chosen: Tensor) -> Tensor:
        if not input_ids.is_floating_point():
            # Words that were added to the base later are none that the first base knows.
            known = input_ids < word_table(self.encoder).weight.shape[0]
            input_ids = input_ids.masked_fill(~(chosen & known), self.hidden_id)
        else:
            input_ids = input_ids.masked_fill(~chosen.unsqueeze(-1), 0)
        if next(self.encoder.parameters()).device != input_ids.device:
            self.encoder.to(input_ids.device)  # a copy was moved weight by weight
        if isinstance(self.encoder, nn.Embedding):
            return input_ids if input_ids.is_floating_point() else self.encoder(input_ids)
        inputs: dict[str, Any] = {"attention_mask": chosen.long()}
        inputs["inputs_embeds" if input_ids.is_floating_point() else "input_ids"] = input_ids
        if anatomy_of(self.encoder).causal:
            # Counted from each text's first token, whatever padding stands before it.
            inputs |= {"use_cache": False, "position_ids": (chosen.cumsum(dim=1) - 1).clamp(min=0)}
        return self.encoder(**inputs)[0]


# ---------------------------------------------------------------------- making one


def reading_module(model: Any, anatomy: Anatomy) -> Any:
    """The part of a model that is given the text: its backbone, of an encoder-decoder the encoder."""
    backbone = anatomy.backbone(model)
    return backbone.get_submodule(anatomy.blocks.split(".", 1)[0]) if anatomy.encoder_decoder else backbone


def word_table(module: Any) -> nn.Embedding:
    """The word embeddings of a backbone.

    Raises:
        BaseError: it has none that can be asked for.
    """
    if isinstance(module, nn.Embedding):
        return module
    try:
        table = module.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        table = None
    if not isinstance(table, nn.Embedding):
        raise BaseError(
            f"{type(module).__name__} has no table of word embeddings to stand prompts beside",
            why="A prompt is a row of vectors in the place of words.",
            fix="--base sample:bert-tiny   (or another base of a known kind)",
        )
    return table


def make_hyperprompt(base: Any, config: HyperPromptConfig, seed: int) -> HyperPrompt:
    """A fresh hypernetwork for a base, whose frozen encoder is a copy of that base as it is.

    Args:
        base: a ``Base``, or a model of one.
        config: what it leaves open is chosen here; ``HyperPrompt.config`` holds all settings.
        seed: of all fresh weights. Equal seeds give equal bits; torch's own random state is left as it was.

    Returns:
        In eval mode, on the CPU, in fp32 but for the encoder, which keeps its dtype.

    Raises:
        SettingsError: the settings do not fit the base.
        BaseError: the base has no word embeddings.
    """
    model = base.pretraining_model(seed)[0] if hasattr(base, "pretraining_model") else base
    anatomy = anatomy_of(model)
    module = reading_module(model, anatomy)
    made = shaped_like(module, config, anatomy)
    with torch.no_grad(), compat.seeded(seed):
        _draw(made, word_table(module).weight.detach().float().cpu())
    return made


def shaped_like(module: Any, config: HyperPromptConfig, anatomy: Anatomy) -> HyperPrompt:
    """A hypernetwork with a copy of ``module`` (see ``reading_module``) as its encoder and the rest not yet drawn."""
    resolved = config.resolved(module.config)
    table = word_table(module)
    width = table.weight.shape[1]
    if resolved.encoder == "embeddings":
        encoder: nn.Module = nn.Embedding.from_pretrained(table.weight.detach().clone().cpu())
        encoded = width
    else:
        encoder, encoded = _bare_copy(module, anatomy), module.config.hidden_size
    hidden_id = table.padding_idx if table.padding_idx is not None else 0
    with compat.seeded(0):  # filled by the caller; nothing of torch's own state is used up
        return HyperPrompt(resolved, encoder, encoded, width, hidden_id)


def _bare_copy(module: nn.Module, anatomy: Anatomy) -> nn.Module:
    """A copy without the hooks that make the original a prompted one, and without a pooler."""
    copied = copy.deepcopy(module).cpu()
    for hooks in (copied._forward_pre_hooks, copied._forward_pre_hooks_with_kwargs,
                  copied._forward_hooks, copied._forward_hooks_with_kwargs):  # fmt: skip
        hooks.clear()
    if anatomy.pooler and getattr(copied, anatomy.pooler, None) is not None:
        setattr(copied, anatomy.pooler, None)
    if HYPERPROMPT in copied._modules:
        delattr(copied, HYPERPROMPT)
    return copied


def _draw(made: HyperPrompt, table: Tensor) -> None:
    """Fresh weights from torch's generator: prompts start on the scale of word embeddings ``table`` [V, d]."""
    config = made.config
    for layer in made.net.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
    for block in made.net.blocks:
        assert isinstance(block, Block)
        for layer in (block.joined, block.narrow):
            layer.weight.div_((2 * len(made.net.blocks)) ** 0.5)
    nn.init.normal_(made.weigh.weight, std=made.weigh.in_features**-0.5)
    nn.init.zeros_(made.weigh.bias)
    # Linear weights start near standard normal ones, so a sum of M components has M times the variance of one.
    share = config.components**-0.5 if config.mix == "linear" else 1.0
    if config.init == "vocabulary":
        rows = torch.randint(len(table), (config.components * config.length,))
        made.components.copy_(table[rows].view_as(made.components) * share)
    else:
        made.components.normal_(std=float(table.std()) * share)


def hyperprompt_from(
    module: Any, config: HyperPromptConfig, tensors: Mapping[str, Tensor], anatomy: Anatomy
) -> HyperPrompt:
    """A stored hypernetwork.

    Args:
        module: of a model of the base (see ``reading_module``): gives the encoder's shape, not its weights.
        config: as stored.
        tensors: names as in ``HyperPrompt.state_dict()`` -> weights.

    Raises:
        BaseError: a tensor is missing, left over, or of another shape.
    """
    made = shaped_like(module, config, anatomy)
    own = made.state_dict()
    reasons = [f"{name}: missing" for name in own if name not in tensors]
    reasons += [f"{name}: not of such a hypernetwork" for name in tensors if name not in own]
    reasons += [
        f"{name}: {list(tensors[name].shape)} in the file, {list(own[name].shape)} by the settings"
        for name in own
        if name in tensors and own[name].shape != tensors[name].shape
    ]
    if reasons:
        raise BaseError(
            f"{HYPERPROMPT_TENSORS} does not fit {HYPERPROMPT_SETTINGS}, {len(reasons)} tensors: "
            f"{'; '.join(reasons[:3])}",
            why="Weights that are missing would be random.",
            fix="copy the folder again, both files together",
        )
    made.load_state_dict(dict(tensors))
    return made
