"""Prompt tuning: tune a few vectors that a frozen base reads beside every text.

In plain words: the base stays as it is. In each layer its attention finds n more places to look at, whose keys and
values are numbers of no word: they and the head are all that is trained (``kind: deep``). With ``kind: input`` the n
vectors stand in front of the words instead. What is stored is an ordinary PEFT folder (prefix tuning, prompt tuning)
of some hundred kilobytes, from which later tasks can start: see prompt_transfer and panda.

Formula: deep: softmax(q [P_K; K]^T / sqrt(d)) [P_V; V] in every layer, P of shape [n, 2 * layers * key-value heads *
head width] drawn from N(0, init_std^2), positions of the text start at n. input: [P; E(x)] in place of E(x), P of
shape [n, width]. With ``projection`` h: P = W2 tanh(W1 E), E [n, width], W1 to h.
Paper: Liu et al. 2022 (P-tuning v2) and Li, Liang 2021 (Prefix-Tuning) for deep, Lester et al. 2021 (The Power of
Scale for Parameter-Efficient Prompt Tuning) for input prompts.
Costs: one forward and one backward through the whole base per step, but no gradient and no optimizer state of its
weights; n more places in every attention.
When not to use it: with much data and a small base, where full tuning gains more; where the texts fill the base's
positions (the prompt takes n of them); for a new base, which needs a new prompt.
Choices of ours: deep, n = 20, init_std 0.02 and dropout 0.1 on the prompt's values, as the published code of PANDA has
them (PEFT starts prefixes at a standard deviation of 1 and has no such dropout). The head is every module the base
does not hold, a freshly made pooler included. The rate of 1e-2 is that code's, too, and other prompts and bases may
want another: try 3e-3 and 3e-2. A projection is folded into the values when the prompt is stored.
"""

from __future__ import annotations

from dataclasses import dataclass

from anytune.methods.prompts import PromptMethod
from anytune.methods.registry import register


@register
@dataclass(kw_only=True)
class PromptTuning(PromptMethod):
    """A soft prompt on a frozen base."""

    neutral = None
    neutral_reason = "tuning a prompt in place of the base's weights is the method; a prompt of length 0 is none"
