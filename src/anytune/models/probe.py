"""Probes: a few token ids and what the weights answered to them.

Shapes and names cannot tell that a layout was transposed or a tensor swapped; a number can. A probe is stored beside
the weights and asked again when they are loaded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anytune.errors import AnytuneError, DeltaError
from anytune.manifests import Probe
from anytune.models.answering import task_output

ROWS = 3
LENGTH = 12
#: Largest difference of an output that is put down to other hardware or threads.
TOLERANCE = 1e-3
#: Of a long output (vocabulary logits, hidden states) only this many values are kept, spread evenly.
VALUES = 64


def make_probe(model: Any, vocabulary_size: int, seed: int = 0, tolerance: float = TOLERANCE) -> Probe:
    """Ask a model about a few seeded rows of token ids.

    Args:
        model: a task model, a pre-training model or a bare backbone; left in the mode it was in.
        vocabulary_size: ids are drawn below this.
        seed: of the rows; torch's random state is left alone.
        tolerance: how far a later answer may be off.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, vocabulary_size, (ROWS, LENGTH), generator=generator)
    return Probe(inputs=rows.tolist(), outputs=_ask(model, rows).tolist(), tolerance=tolerance)


def check_probe(
    model: Any, probe: Probe, what: str = "these weights", error: type[AnytuneError] = DeltaError
) -> float:
    """Ask again; returns the largest difference of an output.

    Raises:
        DeltaError (or ``error``): the answers differ by more than ``probe.tolerance``.
    """
    answers, expected = _ask(model, torch.tensor(probe.inputs)), torch.tensor(probe.outputs)
    if answers.shape != expected.shape:
        raise error(
            f"{what} answer with {answers.shape[-1]} values a row, {expected.shape[-1]} were recorded",
            why="They are not the weights the manifest describes.",
        )
    worst = float((answers - expected).abs().max())
    if not worst <= probe.tolerance:
        row, column = divmod(int((answers - expected).abs().nan_to_num(torch.inf).argmax()), expected.shape[1])
        raise error(
            f"{what} answer {answers[row, column]:.6g} where {expected[row, column]:.6g} was recorded "
            f"(difference {worst:.2g}, allowed {probe.tolerance:.2g})",
            why="They do not do what they did when they were stored.",
            fix="copy the artefact again, or make it again from the recipe in its manifest",
        )
    return worst


def _ask(model: Any, rows: Tensor) -> Tensor:
    """Answers [rows, values] in fp32 on the CPU: logits, or a backbone's hidden states; of many positions the last."""
    modes, device = [(module, module.training) for module in model.modules()], next(model.parameters()).device
    model.eval()
    try:
        with torch.no_grad():
            ids = rows.to(device)
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if getattr(model.config, "is_encoder_decoder", False):
                batch["decoder_input_ids"] = ids
            output = task_output(model, batch)
    finally:
        for module, training in modes:
            module.training = training
    answers = (output.logits if hasattr(output, "logits") else output[0]).float().cpu()
    if answers.dim() == 3:
        answers = answers[:, -1]
    return answers[:, :: -(-answers.shape[1] // VALUES)]
