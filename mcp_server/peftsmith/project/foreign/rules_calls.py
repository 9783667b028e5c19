"""Rules about single calls and what led to them: loading a base, putting adapters on it, merging, new tokens.

Knows: the rows of docs/findings.md's failure table that need no trainer (rows 3, 13, 18, 20, 24-26, 30, 33, 34, 37).
Does not know: what a trainer is given (rules.py), security (dangers.py), or single names (signatures.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from peftsmith.finding import Finding
from peftsmith.project.foreign import facts, objects, values
from peftsmith.project.foreign.facts import Facts
from peftsmith.project.foreign.values import Site


def judge(known: Facts) -> Iterator[Finding]:
    """All rules over all calls."""
    for site in known.sites:
        yield from _wrapped_again(site)
        yield from _merge(site)
        yield from _added_by_name(site)
        yield from _optimizer(site)
        yield from _head(site)
        yield from _new_tokens(site)
        yield from _double_bos(site)
        if objects.is_load(site):
            yield from _load(site, known)
    for site in facts.configs(known):
        yield from _parameters(site)


def _wrapped_again(site: Site) -> Iterator[Finding]:
    if not objects.is_wrap(site):
        return
    for model in values.things(site.get("model", 0)):
        before = facts.adapters_of(model)
        if before:
            message = f"a second adapter around the one of {before[0].where()}"
            yield facts.at(site, "script.adapter.twice", message)


def _merge(site: Site) -> Iterator[Finding]:
    if not site.name.endswith((".merge_and_unload", ".merge_adapter")) or site.receiver is None:
        return
    load = facts.load_of(site.receiver)
    if load is not None:
        held = facts.bits(load)
        if "gptq" in held:
            yield facts.at(site, "script.merge.gptq", f"a merge into GPTQ weights ({load.where()})")
        elif held & {4, 8}:
            yield facts.at(site, "script.merge.quantised", f"a merge into quantised weights ({load.where()})")
        elif "unknown" in held:
            message = "whether the base of this merge is quantised was not followed"
            yield facts.at(site, "script.unread.value", message, names=["quantization_config"])
    elif site.name.endswith(".merge_and_unload"):
        yield facts.at(site, "script.unread.value", "the base of this merge was not followed", names=["model"])
    if site.dropped and site.name.endswith(".merge_and_unload"):
        yield facts.at(site, "script.merge.result_ignored", "the merged model is the result, which nobody takes")


def _added_by_name(site: Site) -> Iterator[Finding]:
    if site.name == f"{objects.MODEL}.add_adapter" and site.args and isinstance(values.plain(site.args[0]), str):
        yield facts.at(site, "script.adapter.name_first", "add_adapter of a transformers model takes the config first")


def _optimizer(site: Site) -> Iterator[Finding]:
    """An optimiser made before the adapter holds the frozen weights only."""
    if not objects.is_wrap(site):
        return
    for model in values.things(site.get("model", 0)):
        for each in model.chain():
            for called in each.later:
                if called.name.endswith((".parameters", ".named_parameters")) and _feeds_optimizer(called, site):
                    yield facts.at(
                        site, "script.optimizer.before_adapter", f"the optimiser is older ({called.where()})"
                    )


def _feeds_optimizer(called: Site, wrap: Site) -> bool:
    text = called.source.lines[called.line - 1] if called.line <= len(called.source.lines) else ""
    return called.source is wrap.source and called.line < wrap.line and bool(re.search(r"Adam|SGD|optim|Lion", text))


def _head(site: Site) -> Iterator[Finding]:
    if not objects.is_wrap(site) or site.name.startswith("unsloth."):
        return
    for model in values.things(site.get("model", 0)):
        load = facts.load_of(model)
        if load is None or "ForSequenceClassification" not in load.name:
            continue
        for config in values.things(site.get("peft_config", 1)):
            saved = config.site.get("modules_to_save")
            if config.site.get("task_type") is None and (saved is None or values.surely(saved, None)):
                yield facts.at(
                    config.site, "script.head.no_task_type", "a classifier's head, and no task_type: it is not saved"
                )


def _new_tokens(site: Site) -> Iterator[Finding]:
    """Embeddings that are resized for new tokens, under an adapter that does not train them."""
    if not objects.is_wrap(site):
        return
    for model in values.things(site.get("model", 0)):
        resized = [
            called
            for each in model.chain()
            for called in each.later
            if called.name.endswith(".resize_token_embeddings")
        ]
        settings = (
            [site] if site.name.startswith("unsloth.") else [c.site for c in values.things(site.get("peft_config", 1))]
        )
        for config in settings:
            trained = [config.get(name) for name in ("modules_to_save", "trainable_token_indices", "target_modules")]
            text = " ".join(str(values.plain(each)) for each in trained if each is not None)
            if resized and not any(map(values.unclear, trained)) and not re.search(r"embed|wte|\{|\d", text):
                message = f"{resized[0].where()} adds embeddings, and the adapter trains none"
                yield facts.at(config, "script.tokens.untrained", message)


def _double_bos(site: Site) -> Iterator[Finding]:
    if site.name != f"{objects.TOKENIZER}.__call__" or site.get("add_special_tokens") is not None:
        return
    for text in values.things(site.get("text", 0)):
        if text.kind.endswith(".apply_chat_template") and values.surely(text.site.get("tokenize"), False):
            yield facts.at(
                site, "script.tokens.double_bos", "text of a chat template is tokenised with special tokens added"
            )


def _load(load: Site, known: Facts) -> Iterator[Finding]:
    name = facts.base_name(load)
    if name and re.search(r"bnb-4bit", name, re.IGNORECASE):
        yield facts.at(load, "script.base.quantised_copy", f"the base is {name}, a quantised copy", base=name)
    trained = [loop for loop in known.loops for model in loop.model if facts.load_of(model) is load]
    spread = [
        each
        for each in values.options(load.get("device_map"))
        if values.plain(each) in ("auto", "balanced", "sequential")
    ]
    if spread and trained and known.multi:
        yield facts.at(
            load, "script.device_map.multi_process", f'device_map="{values.plain(spread[0])}" ({known.multi[0]})'
        )


def _parameters(config: Site) -> Iterator[Finding]:
    targets = config.get("target_parameters")
    if targets is None or values.surely(targets, None) or isinstance(targets, values.Unknown):
        return
    if isinstance(targets, values.Many) and not targets.items:
        return
    if values.possibly(config.get("use_dora"), True):
        yield facts.at(config, "script.parameters.dora", "use_dora=True with target_parameters")
    dropout = config.get("lora_dropout")
    numbers = [values.plain(each) for each in values.options(dropout)]
    if any(isinstance(each, (int, float)) and each > 0 for each in numbers):
        yield facts.at(config, "script.parameters.dropout", "lora_dropout above 0 with target_parameters")


def models_and_data(known: Facts) -> dict[str, list[dict[str, Any]]]:
    """Which base models, adapters and data the script names, each with its place; text that is computed is None."""
    models: dict[str, dict[str, Any]] = {}
    data: dict[str, dict[str, Any]] = {}
    for site in known.sites:
        value = site.get("pretrained_model_name_or_path", 0)
        if objects.is_load(site):
            _noted(models, site, facts.base_name(site))
        elif objects.is_adapter_load(site):
            path = values.plain(site.get("model_id", 1))
            _noted(models, site, path if isinstance(path, str) else None)
        elif site.name.startswith("datasets.") and site.name.endswith(("load_dataset", "load_from_disk", "from_json")):
            named = [values.plain(value), values.plain(site.get("name", 1)), values.plain(site.get("data_files"))]
            _noted(data, site, " ".join(str(each) for each in named if isinstance(each, (str, list, dict))) or None)
        elif site.name in ("pandas.read_csv", "pandas.read_json", "pandas.read_parquet"):
            named_file = values.plain(site.args[0]) if site.args else None
            _noted(data, site, named_file if isinstance(named_file, str) else None)
    for loop in known.loops:
        for each in values.options(loop.model_value):
            if isinstance(values.plain(each), str):
                _noted(models, loop.site, str(values.plain(each)))
    return {"models": list(models.values()), "data": list(data.values())}


def _noted(found: dict[str, dict[str, Any]], site: Site, text: str | None) -> None:
    from peftsmith import files

    place = site.source.place(site.line)
    found.setdefault(f"{text} {place}", {"value": files.clean(text, 200) if text else None, **place})
