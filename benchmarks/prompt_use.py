"""Does a model pre-trained with HPrompt-CPT use its prompts, and do its two losses pull?

    python benchmarks/prompt_use.py                          # BERT-tiny, two stages of 200 steps; about three minutes
    python benchmarks/prompt_use.py --models minilm-l6 --steps 64 --precision bf16

A stage on one domain, then a stage on another. At the beginning, in the middle and at the end of each, the same masked
held-out text of both domains is read beside: its own prompts, the prompts of the other domain's texts, random prompts,
no prompt. If prompts mattered, the loss would rise from the first to the others and the states would turn
(``1 - cos``, the mean over tokens). ``components`` is how many of them are in use, ``between`` the mean cosine of the
prompts of one domain's texts to the other's, ``within`` to each other. Gradient lengths of the terms are those of the
body and of the hypernetwork, as ratios to the masked language model's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from alternating import Arm, tell, write_results

from anytune.data.batches import BlockBatches
from anytune.data.domains import load_domain
from anytune.data.packing import pack
from anytune.data.samples import cache_folder, sample_folder
from anytune.methods import registry
from anytune.methods.agreement import effective_number, unit
from anytune.methods.gradient_scores import gradient_norms
from anytune.methods.objective import LanguageModelling
from anytune.methods.protocol import Run
from anytune.models.base import load_base
from anytune.models.hyperprompt import mixture
from anytune.models.prompted import given_prompt, hyperprompt_of

BATCH, LENGTH, HELD_OUT = 16, 64, 8
DOMAINS = ("hpo", "foldoc")


def blocks_of(name: str, base: Any, seed: int) -> tuple[BlockBatches, list[dict[str, Any]]]:
    """Training batches of a domain, and some masked batches of every tenth of its texts, which are not trained on."""
    texts, tokenizer = load_domain(f"sample:{name}").texts, base.tokenizer()
    parts = [text for i, text in enumerate(texts) if i % 10], texts[::10]
    made = [
        BlockBatches(pack(part, tokenizer, LENGTH, objective="mlm", cache=cache_folder() / "blocks"), BATCH, seed,
                     "mlm", tokenizer)
        for part in parts
    ]  # fmt: skip
    return made[0], [made[1].batch(i) for i in range(HELD_OUT)]


def run_on(base: Any, batches: Any, steps: int, seed: int) -> Run:
    return Run(seed=seed, steps=steps, anatomy=base.anatomy, objective=LanguageModelling(base.anatomy),
               batches=batches, base=base, device=torch.device("cpu"))  # fmt: skip


@torch.no_grad()
def reading(model: nn.Module, base: Any, own: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, float]:
    """Losses and turned states of held-out text under its own and other prompts, and what the prompts are like."""
    model.eval()
    objective, hyperprompt = LanguageModelling(base.anatomy), hyperprompt_of(model)
    weights = [hyperprompt.weights(batch["input_ids"], batch["attention_mask"]) for batch in own]
    others = [hyperprompt.weights(batch["input_ids"], batch["attention_mask"]) for batch in other]
    sums: dict[str, float] = {}
    for index, batch in enumerate(own):
        prompts: dict[str, Tensor | str] = {
            "own": mixture(weights[index], hyperprompt.components),
            "of the other domain": mixture(others[index], hyperprompt.components),
            "random": hyperprompt.random(len(batch["labels"]), torch.Generator().manual_seed(index)),
            "none": "none",
        }
        plain = None
        for name, prompt in prompts.items():
            with given_prompt(model, prompt):
                output = objective.forward(model, batch)
            plain = output.hidden if plain is None else plain
            turned = 1 - nn.functional.cosine_similarity(output.hidden, plain, dim=-1).mean()
            sums[f"loss, {name}"] = sums.get(f"loss, {name}", 0.0) + float(output.loss) / len(own)
            if name != "own":
                sums[f"turned, {name}"] = sums.get(f"turned, {name}", 0.0) + float(turned) / len(own)
    here, there = (unit(mixture(torch.cat(w), hyperprompt.components).flatten(1)) for w in (weights, others))
    sums["components"] = float(effective_number(torch.cat(weights)))
    sums["cosine within"], sums["cosine between"] = float((here @ here.T).mean()), float((here @ there.T).mean())
    return sums


def pulls(arm: Arm, batch: dict[str, Any]) -> dict[str, float]:
    """Gradient lengths of the terms over body and hypernetwork, as ratios to the loss's own over the body."""
    model = arm.model.train()
    [method] = arm.methods
    output = method.forward(model, batch)
    terms = method.objective(model, batch, output, LanguageModelling(arm.run.anatomy).terms(output, batch))
    sides: dict[str, list[Tensor]] = {"body": [], "hypernetwork": []}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            sides["hypernetwork" if "hyperprompt" in name.split(".") else "body"].append(weight)
    found = {side: gradient_norms(terms, weights) for side, weights in sides.items()}
    unit_length = found["body"]["loss"] or 1.0
    return {
        f"pull, {term}, {side}": norm / unit_length for side, norms in found.items() for term, norm in norms.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["bert-tiny"])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--method", default="hprompt", help="hprompt, with settings: hprompt:agreement=10")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    name, _, settings = given.method.partition(":")
    chosen = {"name": name, **dict(pair.split("=") for pair in settings.split(",") if pair)}
    for sample in given.models:
        base = load_base(f"sample:{sample}", resolve_sample=sample_folder)
        data = {domain: blocks_of(domain, base, seed) for seed, domain in enumerate(DOMAINS)}
        model: nn.Module = base.pretraining_model(0)[0]
        for stage, domain in enumerate(DOMAINS):
            run = run_on(base, data[domain][0], given.steps, stage)
            arm = Arm(domain, registry.parse(chosen, "pretrain"), model, run, given.precision)
            for group in arm.optimizer.param_groups:
                group["lr"] = given.learning_rate
            for step in range(given.steps + 1):
                if step in (1, given.steps // 2, given.steps):
                    found = pulls(arm, data[domain][0].batch(step))
                    for read in DOMAINS:
                        other = DOMAINS[1 - DOMAINS.index(read)]
                        said = reading(arm.model, base, data[read][1], data[other][1])
                        rows.append({"model": sample, "method": given.method, "stage": domain, "step": step,
                                     "text": read, **said, **(found if read == domain else {})})  # fmt: skip
                        tell(f"{sample}, {step} steps of {domain}, text of {read}: "
                             + ", ".join(f"{key} {value:.4g}" for key, value in rows[-1].items()
                                         if isinstance(value, float)))  # fmt: skip
                if step < given.steps:
                    arm.step()
            model = arm.methods[0].finish(arm.model, run)
    write_results(given.out, f"prompt-use-{'-'.join(given.models)}", {"rows": rows})


if __name__ == "__main__":
    main()
