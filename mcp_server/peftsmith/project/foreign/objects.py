"""What the calls of the training libraries give back: a model, an adapter around it, a tokenizer, a parser's settings.

Knows: which calls load, wrap, merge or pass on a model, and the names that snippets use without importing them.
Does not know: what is right or wrong about a call (rules.py).
"""

from __future__ import annotations

from peftsmith.project.foreign.values import Known, Many, Record, Ref, Site, Thing, Unknown, Value, plain, things

MODEL, TOKENIZER, PEFT = "transformers.PreTrainedModel", "transformers.PreTrainedTokenizerBase", "peft.PeftModel"
DATA = "datasets.Dataset"
UNSLOTH = ("unsloth.FastLanguageModel", "unsloth.FastModel", "unsloth.FastVisionModel")
WRAPS = ("peft.get_peft_model", *(f"{each}.get_peft_model" for each in UNSLOTH))
PREPARES = ("peft.prepare_model_for_kbit_training", "peft.prepare_model_for_int8_training")
_DATA_LOADS = ("datasets.load_dataset", "datasets.load_from_disk", "datasets.concatenate_datasets")
# Methods that give the same object back, for models and for data sets.
_SAME = {"to", "cuda", "cpu", "eval", "train", "half", "bfloat16", "float", "requires_grad_", "compile"}
_IMPLIED = {
    "torch": "torch",
    "transformers": "AutoModelForCausalLM AutoModelForSequenceClassification AutoModelForSeq2SeqLM AutoTokenizer "
    "AutoConfig BitsAndBytesConfig TrainingArguments Trainer DataCollatorForLanguageModeling",
    "peft": "LoraConfig PeftModel TaskType get_peft_model prepare_model_for_kbit_training",
    "trl": "SFTTrainer SFTConfig DPOTrainer DPOConfig",
    "datasets": "load_dataset",
    "unsloth": "FastLanguageModel",
}


def implied(name: str) -> Ref | None:
    """What a well-known name stands for where a snippet does not import it."""
    for library, names in _IMPLIED.items():
        if name in names.split():
            return Ref(name if name == library else f"{library}.{name}")
    return None


def is_load(site: Site) -> bool:
    """Does the call load base weights?"""
    owner, _, method = site.name.rpartition(".")
    kind = owner.rpartition(".")[2]
    if owner in UNSLOTH:
        return method == "from_pretrained"
    if method not in ("from_pretrained", "from_config") or not owner.startswith("transformers"):
        return False
    return kind.startswith("AutoModel") or "For" in kind or (kind.endswith("Model") and kind != "PreTrainedModel")


def is_wrap(site: Site) -> bool:
    """Does the call put a fresh adapter around a model?"""
    return site.name in WRAPS


def is_adapter_load(site: Site) -> bool:
    """Does the call put a saved adapter around a model?"""
    return site.name.startswith("peft.") and site.name.endswith("Model.from_pretrained")


def result(site: Site) -> Value:
    """The value of a call."""
    owner, _, method = site.name.rpartition(".")
    first = things(site.get("model", 0)) or things(site.args[0] if site.args else None)
    if owner in UNSLOTH and method == "from_pretrained":
        return Many((Thing(MODEL, site), Thing(TOKENIZER, site)))
    if is_wrap(site):
        return Thing(PEFT, site, first[0] if first else None)
    if is_load(site):
        return Thing(MODEL, site)
    if is_adapter_load(site):
        return Thing(PEFT, site, first[0] if first else None)
    if site.name in PREPARES:
        return Thing(first[0].kind, site, first[0]) if first else Unknown("a prepared model")
    if method == "from_pretrained" and ("Tokenizer" in owner or "Processor" in owner):
        return Thing(TOKENIZER, site)
    if method in ("merge_and_unload", "unload") and site.receiver is not None:
        return Thing(MODEL, site, site.receiver)
    if method in ("prepare", "prepare_model", "unwrap_model") and owner.endswith("Accelerator"):
        return Many(site.args) if len(site.args) > 1 else (site.args[0] if site.args else Unknown("a prepared object"))
    if site.name in ("copy.copy", "copy.deepcopy", "torch.compile") and site.args:
        return site.args[0]
    if method == "parse_args" and site.receiver is not None:
        return _settings(site.receiver)
    if site.name in ("os.environ.get", "os.getenv") and len(site.args) > 1:
        return site.args[1] if isinstance(site.args[1], Known) else Unknown("a value of the environment")
    if site.name == "os.path.join" or site.name.endswith(".joinpath"):
        parts = [plain(each) for each in site.args]
        known = parts and all(isinstance(part, str) for part in parts)
        return Known("/".join(parts)) if known else Unknown("a computed path")
    if (
        site.name in ("pathlib.Path", "pathlib.PurePath")
        and len(site.args) == 1
        and isinstance(plain(site.args[0]), str)
    ):
        return site.args[0]
    if owner in ("os", "os.environ", "os.path", "sys", "json", "random", "math"):
        return Unknown(f"the result of {site.name}()")
    if site.receiver is not None and method in _SAME:
        return site.receiver
    if site.name in _DATA_LOADS or owner == DATA:
        return Thing(DATA, site, site.receiver)
    if site.receiver is not None:
        return Thing(f"{site.receiver.kind}.{method}", site, site.receiver)
    return Thing(owner if method in ("from_pretrained", "from_dict", "from_json") else site.name, site)


def _settings(parser: Thing) -> Value:
    """What parse_args() gives: each option with its default, since that is what runs when nothing is said."""
    values: dict[object, Value] = {}
    for site in parser.later:
        if not site.name.endswith(".add_argument"):
            continue
        names = [name for name in map(plain, site.args) if isinstance(name, str)]
        chosen = next((name for name in names if name.startswith("--")), names[0] if names else None)
        if chosen is None:
            continue
        default = site.keywords.get("default")
        if default is None:
            flag = plain(site.keywords.get("action"))
            default = Known(flag == "store_false") if flag in ("store_true", "store_false") else None
        named = plain(site.keywords.get("dest"))
        key = named if isinstance(named, str) else chosen.lstrip("-").replace("-", "_")
        values[key] = default or Unknown(f"the option {chosen}")
    return Record(values, open=True)
