"""Joint pre-training: all domains of a stream mixed, in one stage.

In plain words: what could be had if the text of all domains were there at the same time. It is no way to go on when
new text arrives, but the mark that the others are measured against: whatever a stream loses, it does not.

Formula: w = train(w_0, D_1 + ... + D_N), with the loss of plain language modelling (``sequential``) over the blocks of
all domains in one random order.

Paper: multi-task or joint training, the customary upper mark of continual learning; no one paper.
Costs: those of ``sequential`` over the same text. All text has to be kept, and a new domain means starting over.
When not to use it: when earlier text is gone, or a base is needed after every domain.
Choices of ours: a domain counts by its size, and nothing is sampled up or down; ``steps`` counts per domain, so that
the mixture gets as many steps as the stream had in all.
"""

from __future__ import annotations

from dataclasses import dataclass

from anytune.methods.protocol import Method
from anytune.methods.registry import register


@register
@dataclass(kw_only=True)
class Joint(Method):
    """Plain pre-training on all domains mixed; it has no settings."""

    neutral = {}  # noqa: RUF012 - within its one stage it is plain training
    stream = "joint"
