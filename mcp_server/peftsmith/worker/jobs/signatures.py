"""Do the keywords of these calls exist in the libraries that are installed here?

Knows: how to find a callable by its dotted name and which keywords it takes, also through **kwargs where its source
says so, and today's name of keywords that were renamed.
Does not know: where the calls come from (project/vet.py reads them out of the scripts).
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

from peftsmith.worker.child import Report, describe

# Only these are imported: a name out of a script must not be able to load any other code.
LIBRARIES = frozenset(
    [
        "accelerate",
        "bitsandbytes",
        "datasets",
        "evaluate",
        "numpy",
        "peft",
        "safetensors",
        "sklearn",
        "tokenizers",
        "torch",
        "transformers",
        "trl",
    ]
)
# old keyword -> today's; reported only where the callable takes the new one, so a table that ages stays silent
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
    "group_by_length": "train_sampling_strategy",
    "load_in_4bit": "quantization_config",
    "load_in_8bit": "quantization_config",
    "max_seq_length": "max_length",
    "no_cuda": "use_cpu",
    "tokenizer": "processing_class",
    "torch_dtype": "dtype",
    "use_auth_token": "token",
    "use_flash_attention_2": "attn_implementation",
    "warmup_ratio": "warmup_steps",
}
# Keywords that **kwargs lets in and the model class then refuses or ignores (transformers 5: TypeError in __init__).
REFUSED_BY_MODELS = frozenset({"load_in_4bit", "load_in_8bit", "use_auth_token", "use_flash_attention_2", "tokenizer"})
# What Auto classes' from_pretrained passes its **kwargs on to.
FORWARDS = {
    "AutoModel": ("transformers.PreTrainedModel.from_pretrained",),
    "AutoTokenizer": (
        "transformers.PreTrainedTokenizerBase.from_pretrained",
        "transformers.PreTrainedTokenizerBase._from_pretrained",
        "transformers.PreTrainedTokenizerBase.__init__",
    ),
    "AutoConfig": ("transformers.PreTrainedConfig.from_pretrained",),
}
# Not popped by name in from_pretrained but read by helpers further down.
HUB_KEYWORDS = frozenset(
    [
        "cache_dir",
        "code_revision",
        "force_download",
        "local_files_only",
        "proxies",
        "revision",
        "subfolder",
        "token",
        "trust_remote_code",
    ]
)


def run(arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    """`{"calls": {"trl.SFTConfig": ["max_length", ...]}}` -> unknown, deprecated, missing, open, checked.

    unknown: [{callable, keyword, nearest}]; deprecated: the same for keywords that still work; missing: [{callable,
    cause}] for names that do not exist; open: callables with keywords of which nothing can be said; checked: a count.
    """
    calls: dict[str, list[str]] = arguments["calls"]
    unknown: list[dict[str, Any]] = []
    deprecated: list[dict[str, Any]] = []
    missing: list[dict[str, Any]] = []
    unclear: list[str] = []
    checked = 0
    for name, keywords in sorted(calls.items()):
        if name.split(".")[0] not in LIBRARIES:
            unclear.append(name)
            continue
        try:
            target = find(name)
        except (ImportError, AttributeError) as error:
            missing.append({"callable": name, "cause": describe(error)})
            continue
        accepted, takes_any = keywords_of(target, name)
        for keyword in keywords:
            new = RENAMED.get(keyword)
            entry = {"callable": name, "keyword": keyword, "nearest": nearest(keyword, accepted)}
            refused = takes_any and keyword in REFUSED_BY_MODELS and _loads_a_model(name)
            if keyword in accepted and not refused:
                checked += 1
                if new in accepted:
                    deprecated.append(entry)
            elif refused or not takes_any:
                checked += 1
                unknown.append(entry)
            elif name not in unclear:
                unclear.append(name)
    return {"unknown": unknown, "deprecated": deprecated, "missing": missing, "open": unclear, "checked": checked}


def find(name: str) -> Callable[..., Any]:
    """The object behind a dotted name: the longest importable module, then attributes."""
    parts = name.split(".")
    found: Any = importlib.import_module(parts[0])
    for depth, part in enumerate(parts[1:], start=1):
        try:
            found = getattr(found, part)
        except AttributeError:
            if not inspect.ismodule(found):
                raise
            try:
                found = importlib.import_module(".".join(parts[: depth + 1]))
            except ModuleNotFoundError:
                raise AttributeError(f"{'.'.join(parts[:depth])} has no {part!r}") from None
    return found


def keywords_of(target: Callable[..., Any], name: str) -> tuple[set[str], bool]:
    """Keywords that `target` takes, and whether it takes others that cannot be listed."""
    accepted, takes_any = _own(target)
    if inspect.isclass(target) and takes_any:
        for base in target.__mro__[1:]:
            if "__init__" in vars(base) and base is not object:
                more, any_here = _own(base)
                accepted |= more
                if not any_here:
                    takes_any = False
                    break
    owner, _, method = name.rpartition(".")
    if method == "from_pretrained" and takes_any:
        prefix = next((each for each in FORWARDS if owner.rpartition(".")[2].startswith(each)), None)
        for forward in FORWARDS.get(prefix or "", ()):
            accepted |= _own(find(forward))[0] | HUB_KEYWORDS
        if _loads_a_model(name):
            accepted |= _own(find("transformers.PreTrainedModel.from_pretrained"))[0] | HUB_KEYWORDS
    return accepted, takes_any


def nearest(keyword: str, accepted: Iterable[str]) -> str | None:
    """Today's name of a renamed keyword, else the most similar one."""
    names = sorted(accepted)
    if RENAMED.get(keyword) in names:
        return RENAMED[keyword]
    return next(iter(difflib.get_close_matches(keyword, names, 1, 0.7)), None)


def _own(target: Callable[..., Any]) -> tuple[set[str], bool]:
    body = target.__init__ if inspect.isclass(target) else target
    try:
        parameters = inspect.signature(body).parameters.values()
    except (TypeError, ValueError):  # written in C without a signature
        return set(), True
    kinds = inspect.Parameter
    accepted = {p.name for p in parameters if p.kind in (kinds.KEYWORD_ONLY, kinds.POSITIONAL_OR_KEYWORD)}
    variable = next((p.name for p in parameters if p.kind == kinds.VAR_KEYWORD), None)
    return accepted - {"self", "cls"} | (_popped(body, variable) if variable else set()), variable is not None


def _popped(body: Callable[..., Any], variable: str) -> set[str]:
    """String literals that the source takes out of its **kwargs: kwargs.pop("x"), kwargs.get("x"), "x" in kwargs."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(body))))
    except (OSError, TypeError, SyntaxError):
        return set()
    found: set[str] = set()
    for node in ast.walk(tree):
        literal: ast.expr | None = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            if node.func.attr in ("pop", "get", "setdefault") and _is_name(node.func.value, variable):
                literal = node.args[0]
        elif isinstance(node, ast.Compare) and _is_name(node.comparators[0], variable):
            literal = node.left
        elif isinstance(node, ast.Subscript) and _is_name(node.value, variable):
            literal = node.slice
        if isinstance(literal, ast.Constant) and isinstance(literal.value, str):
            found.add(literal.value)
    return found


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _loads_a_model(name: str) -> bool:
    owner, _, method = name.rpartition(".")
    kind = owner.rpartition(".")[2]
    return method == "from_pretrained" and (kind.startswith("AutoModel") or "For" in kind or kind.endswith("Model"))
