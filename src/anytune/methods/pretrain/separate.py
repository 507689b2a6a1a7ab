"""Separate pre-training: every domain begins at the first base, none at the domain before.

In plain words: where a stream has five domains, you get five bases, each of them the first base trained on one domain
alone. Nothing is forgotten, for nothing is built upon; and nothing is learned from the other domains.

Formula: w_t = train(w_0, D_t) for every t, with the loss of plain language modelling (``sequential``), where a chain
has w_t = train(w_(t-1), D_t).

Paper: one model per domain is the domain-adaptive pre-training of Gururangan et al. 2020 (DAPT); as a control for
continual pre-training it stands in Ke et al. 2023 (Continual Pre-training of Language Models).
Costs: those of ``sequential``. All bases have to be kept, and somebody has to say which one a task needs.
When not to use it: when one base has to serve all domains, or later domains gain by earlier ones.
Choices of ours: each stage has its own optimizer and schedule and the order of blocks it would have alone, so that the
base of a domain is bit for bit the one that a stream of this domain alone ends in.
"""

from __future__ import annotations

from dataclasses import dataclass

from anytune.methods.protocol import Method
from anytune.methods.registry import register


@register
@dataclass(kw_only=True)
class Separate(Method):
    """Plain pre-training of the first base on each domain by itself; it has no settings."""

    neutral = {}  # noqa: RUF012 - within a stage it is plain training
    stream = "restart"
