"""The page of an artefact on a hub: what it is, its base, task, method, scores and how to load it, from its manifest.

Pure functions on a manifest. Every word of a manifest is data: it is put on one line and what Markdown or HTML would
read into it is escaped. No licence is stated: that is for those who publish, and for the base's own terms.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

import yaml

from anytune.manifests import Manifest
from anytune.models.finding import HUB_ID

#: keys of the front matter that are written here; all others of a page that is there already are kept
OUR_KEYS = ("base_model", "base_model_relation", "library_name", "tags", "pipeline_tag")
#: kind of task -> (the hub's name for it, the class of transformers that has such a head)
PURPOSES = {
    "classification": ("text-classification", "AutoModelForSequenceClassification"),
    "regression": ("text-classification", "AutoModelForSequenceClassification"),
    "token-classification": ("token-classification", "AutoModelForTokenClassification"),
    "generation": ("text-generation", "AutoModelForCausalLM"),
}
SHOWN_LABELS = 50
_MARKUP = re.compile(r"([\\`*_{}\[\]|#~!])")


def model_card(
    manifest: Manifest,
    repository: str,
    *,
    base_repository: str | None = None,
    config: Mapping[str, Any] | None = None,
    kept: Mapping[str, Any] | None = None,
) -> str:
    """The text of README.md.

    Args:
        manifest: of the artefact.
        repository: ``owner/name`` where it will be.
        base_repository: ``owner/name`` of its base (for a base: of its parent) on the hub, if it is there.
        config: the artefact's ``adapter_config.json`` or ``config.json``, which say how to load it.
        kept: front matter of the page that is there already; its keys that are not ours (``license``) stay.
    """
    config = config or {}
    parts = [f"# {plain(manifest.name)}", _what(manifest), _facts(manifest, base_repository)]
    if manifest.label_names:
        named = [plain(name) for name in manifest.label_names[:SHOWN_LABELS]]
        more = len(manifest.label_names) - len(named)
        parts.append(f"Labels: {', '.join(named)}" + (f" and {more} more" if more else ""))
    parts += [_scores(manifest), _loading(manifest, repository, base_repository, config), _closing(manifest)]
    front = {**_front_matter(manifest, base_repository, config), **_foreign(kept or {})}
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, default_flow_style=False)
    return f"---\n{head}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def front_matter(card: str) -> dict[str, Any]:
    """The front matter of a page; empty where it has none that can be read."""
    found = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(?:\n|$)", card, re.DOTALL)
    try:
        values = yaml.safe_load(found.group(1)) if found else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def plain(value: Any) -> str:
    """A value as one line of text in which Markdown and HTML find nothing to read."""
    text = " ".join(str(value).split())
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return _MARKUP.sub(r"\\\1", html.escape(text, quote=False))


def _what(manifest: Manifest) -> str:
    made = " + ".join(plain(method.name) for method in manifest.methods) or "plain copying"
    base = plain(manifest.base.name or "its base")
    if manifest.kind == "base":
        after = f", after {', '.join(plain(domain.name) for domain in manifest.domains)}" if manifest.domains else ""
        return f"A language model{after} ({made}), in a plain transformers folder. Made with anytune."
    form = "A PEFT adapter" if manifest.form == "peft" else "What full fine-tuning added (a difference)"
    form = "Bottleneck adapters" if _is_plugged_in(manifest) else form
    task = plain(manifest.task.name) if manifest.task else "a task"
    return f"{form}: **{task}** tuned on **{base}** by {made}. Made with anytune."


def _is_plugged_in(manifest: Manifest) -> bool:
    """Whether networks were put into the base, which no matrix of it can take in."""
    return manifest.form == "full" and any(method.name == "tune/bottleneck" for method in manifest.methods)


def _facts(manifest: Manifest, base_repository: str | None) -> str:
    base = manifest.base
    origin = base_repository or (base.ref if base.ref and base.ref.startswith("sample:") else None)
    rows: list[tuple[str, str]] = [
        ("base" if manifest.kind == "delta" else "made from", _linked(base.name, origin, manifest.kind)),
        ("fingerprint (backbone)", f"`{_digits(base.backbone)}`"),
    ]
    task = manifest.task
    if task is not None:
        counts = ", ".join(f"{count} {plain(split)}" for split, count in task.counts.items())
        rows.append(("task", f"{plain(task.name)} ({plain(task.kind)}{', ' + counts if counts else ''})"))
    for domain in manifest.domains:
        rows.append(("domain", f"{plain(domain.name)} ({domain.texts} texts, {domain.tokens} tokens)"))
    for method in manifest.methods:
        settings = ", ".join(f"{plain(key)} {plain(value)}" for key, value in method.settings.items())
        rows.append(("method", f"{plain(method.name)}{': ' + settings if settings else ''}"))
    shown = ("learning_rate", "batch_size", "max_length", "schedule", "weight_decay")
    training = [f"{key} {plain(manifest.training[key])}" for key in shown if manifest.training.get(key) is not None]
    rows.append(("training", ", ".join([f"{manifest.steps} steps", *map(_spaced, training)])))
    rows.append(("seed", str(manifest.seed)))
    rows.append(("id", f"`{_digits(manifest.id)}`"))
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows if value)])


def _scores(manifest: Manifest) -> str:
    rows = [
        f"| {plain(split)} | {plain(metric)} | {'' if value is None else format(value, '.4f')} |"
        for split, values in manifest.scores.items()
        for metric, value in values.items()
    ]
    if not rows:
        return ""
    title = f"## Scores (seed {manifest.seed}, one run)"
    return "\n".join([title, "", "| split | metric | value |", "|---|---|---|", *rows])


def _loading(manifest: Manifest, repository: str, base_repository: str | None, config: Mapping[str, Any]) -> str:
    base = base_repository or "BASE"
    if manifest.kind == "base":
        cls = _class_of(config.get("architectures"))
        code = [
            "# plain transformers", f"from transformers import {cls}, AutoTokenizer",
            f'model = {cls}.from_pretrained("{repository}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{repository}")', "",
            "# on a command line", f"# anytune tune {repository} TASK.csv",
        ]  # fmt: skip
        return _code(code)
    reference = f"{manifest.name}-{manifest.id[:12]}" if re.fullmatch(r"[\w.-]+", manifest.name) else repository
    code = [
        "import anytune", f'delta = anytune.pull("{repository}")',
        "model, tokenizer = anytune.load(delta)" + ("" if base_repository else '   # base="FOLDER" where it is'),
    ]  # fmt: skip
    text = [_code(code), _code([f"anytune pull {repository}", f"anytune predict {reference} ..."], "bash")]
    if manifest.form == "peft":
        cls = _class_for_adapter(manifest, config)
        outputs = len(manifest.label_names) or 1
        labels = "" if cls in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM") else f", num_labels={outputs}"
        text.append("With plain PEFT:")
        text.append(
            _code(
                [
                    "from peft import PeftModel",
                    f"from transformers import {cls}",
                    f'model = {cls}.from_pretrained("{base}"{labels})',
                    f'model = PeftModel.from_pretrained(model, "{repository}").eval()',
                ]
            )
        )
    elif _is_plugged_in(manifest):
        text.append("Its networks stand beside the base's weights; neither PEFT nor plain transformers reads them.")
    else:
        text.append(
            "It is a difference from its base, which plain transformers does not read; "
            f"`anytune merge {reference} --out FOLDER` writes base and difference as one plain transformers folder."
        )
    return "## Loading\n\n" + "\n\n".join(text)


def _closing(manifest: Manifest) -> str:
    said = "No licence is stated here; the terms of the base and of the data hold."
    if manifest.kind == "delta":
        said = f"It belongs to this base only; `anytune recycle` moves it to another. {said}"
    return said


def _front_matter(manifest: Manifest, base_repository: str | None, config: Mapping[str, Any]) -> dict[str, Any]:
    front: dict[str, Any] = {}
    if base_repository:
        front["base_model"] = base_repository
        beside = manifest.form == "peft" or _is_plugged_in(manifest)
        front["base_model_relation"] = "adapter" if beside else "finetune"
    front["library_name"] = (
        "transformers" if manifest.kind == "base" else "peft" if manifest.form == "peft" else "anytune"
    )
    methods = [re.sub(r"[^A-Za-z0-9-]+", "-", method.name.rpartition("/")[2]) for method in manifest.methods]
    front["tags"] = list(dict.fromkeys(["anytune", manifest.kind, *filter(None, methods)]))
    if manifest.task is not None and manifest.task.kind in PURPOSES:
        front["pipeline_tag"] = PURPOSES[manifest.task.kind][0]
        if config.get("task_type") == "SEQ_2_SEQ_LM":
            front["pipeline_tag"] = "text2text-generation"
    return front


def _foreign(kept: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in kept.items() if key not in OUR_KEYS}


def _class_of(architectures: Any) -> str:
    first = architectures[0] if isinstance(architectures, list) and architectures else ""
    return first if isinstance(first, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", first) else "AutoModel"


def _class_for_adapter(manifest: Manifest, config: Mapping[str, Any]) -> str:
    if config.get("task_type") == "SEQ_2_SEQ_LM":
        return "AutoModelForSeq2SeqLM"
    kind = manifest.task.kind if manifest.task else "classification"
    return PURPOSES[kind][1] if kind in PURPOSES else "AutoModel"


def _linked(name: str, origin: str | None, kind: str) -> str:
    if origin is None:
        return plain(name) if kind == "delta" else ""
    if origin.startswith("sample:") or not HUB_ID.fullmatch(origin):
        return f"{plain(name)} ({plain(origin)})" if kind == "delta" else plain(origin)
    link = f"[{plain(origin)}](https://huggingface.co/{origin.partition('@')[0]})"
    return link if kind == "base" or name == origin else f"{plain(name)}, {link}"


def _digits(text: str) -> str:
    return text if re.fullmatch(r"[0-9a-f]{0,64}", text) else "?"


def _spaced(text: str) -> str:
    name, _, value = text.partition(" ")
    return f"{name.replace('_', ' ')} {value}"


def _code(lines: list[str], language: str = "python") -> str:
    return "\n".join([f"```{language}", *lines, "```"])
