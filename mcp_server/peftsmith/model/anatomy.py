"""What a base model is, without loading a weight: sizes, exact parameters, linear modules, tokens, licence.

Knows: how to join config.json, safetensors headers and tokenizer files, and what contradicts what.
Does not know: where the files come from (source.py), what one architecture looks like (layouts.py, stored.py), sizes
and quantisation by their many names (traits.py), what it costs (memory.py). What is not certain is a finding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, Severity, finding
from peftsmith.model import agreement, catalogue, layouts, source, stored, tokens, traits
from peftsmith.model.headers import Tensor
from peftsmith.model.modules import Skeleton
from peftsmith.model.roles import role

HEAD = "lm_head"
EMBEDDING = "model.embed_tokens"
_LINEAR = ("linear", "conv1d")
_NO_GENERATION = ("Classification", "ForMaskedLM", "ForQuestionAnswering", "ForMultipleChoice", "Model")
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
T = TypeVar("T")
_FAULTS_SHOWN = 5
# By what names configurations have the number of positions.
_POSITIONS = ("max_position_embeddings", "n_positions")


@dataclass(frozen=True)
class Anatomy:
    """A base model as far as it is known for certain.

    `parameters` counts what transformers would count (a tied lm_head once); 0 when it could not be counted (a finding
    says why). `skeleton` is None for architectures whose modules are not known; sizes that a model does not have are 0.
    `quantization` is the scheme in which the weights are stored already, `quantization_detail` what config.json says.
    """

    id: str
    commit: str | None
    folder: Path | None
    model_type: str
    architecture: str | None
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied_embeddings: bool
    parameters: int
    parameter_bytes: int
    dtype: str
    max_positions: int | None
    quantization: str | None
    skeleton: Skeleton | None = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    eos_token_ids: list[int]
    pad_token_id: int | None
    bos_token_id: int | None
    chat_template: str | None
    licence: str | None
    gated: bool | None = None
    findings: list[Finding] = field(default_factory=list, repr=False)
    quantization_detail: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def supported(self) -> bool:
        """True when the modules are known, so that targets and memory can be worked out."""
        return self.skeleton is not None

    @cached_property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Every linear module by full path to (inputs, outputs); a tied output head is none of its own."""
        if self.skeleton is None:
            return {}
        tied = self.skeleton.tied
        return {
            m.name: (m.inputs, m.outputs)
            for m in self.skeleton.modules
            if m.kind in _LINEAR and f"{m.name}.weight" not in tied
        }

    @cached_property
    def _worked_out(self) -> dict[Hashable, Any]:
        return {}

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, worked out once for this model; `key` must hold all else that it depends on."""
        if key not in self._worked_out:
            self._worked_out[key] = make()
        found: T = self._worked_out[key]
        return found

    @property
    def other_modules(self) -> tuple[str, ...]:
        """Modules that LoRA cannot adapt: containers, norms, and what has parameters of another kind."""
        if self.skeleton is None:
            return ()
        rest = (m.name for m in self.skeleton.modules if m.kind in ("norm", "other", "experts"))
        return (*self.skeleton.containers, *rest)

    def to_json(self) -> dict[str, Any]:
        """Plain data; `linear` is summed up by module name, unknown counts are null."""
        skipped = {
            "_worked_out",
            "findings",
            "linear",
            "folder",
            "chat_template",
            "skeleton",
            "config",
            "quantization_detail",
        }
        plain = {name: value for name, value in vars(self).items() if name not in skipped}
        leaves: dict[str, Counter[tuple[int, int]]] = {}
        for name, sizes in self.linear.items():
            leaves.setdefault(_leaf(name), Counter())[sizes] += 1
        return {
            **plain,
            "parameters": self.parameters or None,
            "folder": str(self.folder) if self.folder else None,
            "chat_template": None if self.chat_template is None else files.clean(self.chat_template, 1000),
            "modules_from": self.skeleton.source if self.skeleton else None,
            "quantization_detail": dict(self.quantization_detail),
            "layer_kinds": traits.layer_kinds(self.skeleton, self.config),
            "experts": traits.experts(self.skeleton, self.config),
            "towers": traits.towers(self.skeleton),
            "linear": {
                leaf: [{"modules": count, "in": i, "out": o} for (i, o), count in sizes.items()]
                for leaf, sizes in leaves.items()
            },
        }


def _leaf(name: str) -> str:
    """The last part of a path that is not a number."""
    return next((part for part in reversed(name.split(".")) if not part.isdigit()), name)


def inspect(model: str, revision: str | None = None, *, trust_remote_code: bool = False) -> Anatomy:
    """The anatomy of a local folder or a hub model. Raises PeftsmithError as source.open_model does.

    `trust_remote_code` only says that the user has opted in; no code of the model is ever run here.
    """
    return describe(source.open_model(model, revision), trust_remote_code=trust_remote_code)


def describe(model: source.ModelFiles, *, trust_remote_code: bool = False, real: Skeleton | None = None) -> Anatomy:
    """The anatomy of opened files. `real` is the skeleton of the real classes, where they were asked (skeleton.py)."""
    config = model.config
    findings = list(model.notes)
    scheme, detail = traits.quantization(config)
    implied = layouts.skeleton(config)
    if real is not None:
        findings += agreement.with_classes(implied, real)
        implied = real
    tensors = {name: each for name, each in model.tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    packed = stored.is_packed(tensors)
    if implied is not None:
        implied, notes = _with_real_ties(implied, tensors, model.small, packed=packed)
        findings += notes
    body, notes = _modules(config, implied, tensors, packed=packed)
    findings += notes
    findings += _remote_code(config, body, opted_in=trust_remote_code)
    if scheme:
        findings.append(
            finding(
                "model.quantization.stored", f"The weights are already quantised ({scheme}).", scheme=scheme, **detail
            )
        )
    if body is None and model.gguf is None:
        findings.append(_unsupported(config, scheme))
    elif body is not None and _writes_nothing(_architecture(config) or ""):
        message = f"{_architecture(config)} does not generate text."
        findings.append(finding("model.architecture.not_causal", message, severity="warning"))
    elif not tensors and not any(each.id.startswith("model.weights.") for each in findings):
        findings.append(finding("model.weights.missing"))
    fused = [module.name for module in body.modules if module.kind == "experts"] if body else []
    if fused:
        findings.append(finding("model.experts.fused", layers=len(fused)))
    sizes = traits.sizes(config, body)
    if sizes["kv_heads"] and sizes["heads"] % sizes["kv_heads"]:
        raise PeftsmithError(
            "config.json contradicts itself: the heads do not divide evenly",
            value={name: sizes[name] for name in ("heads", "kv_heads", "hidden")},
            next_step="Fetch config.json again, or correct it.",
        )
    counted = {} if packed else _counted(tensors, body)
    parameters = sum(each.elements for each in counted.values()) or (body.parameters if body else 0)
    dtype = _dtype(tensors, config)
    text = tokens.read(model, sizes["vocab"] or None)
    if model.licence is None:
        findings.append(finding("model.licence.unknown"))
    if model.gated:
        findings.append(finding("model.access.gated"))
    found = Anatomy(
        id=model.id,
        commit=model.commit,
        folder=model.folder,
        model_type=_name(config.get("model_type")) or "unknown",
        architecture=_architecture(config),
        **sizes,
        tied_embeddings=_is_tied(body) if body else config.get("tie_word_embeddings") is True,
        parameters=parameters,
        parameter_bytes=sum(each.size for each in (counted or tensors).values()) or parameters * BYTES[dtype],
        dtype=dtype,
        max_positions=_positions(config),
        quantization=scheme,
        skeleton=body,
        config=config,
        eos_token_ids=list(text.stop),
        pad_token_id=text.pad,
        bos_token_id=text.bos,
        chat_template=text.chat_template,
        licence=model.licence,
        gated=model.gated,
        findings=[*findings, *text.findings],
        quantization_detail=detail,
    )
    return found if body or model.gguf is None else _of_gguf(found, model.gguf)


def _of_gguf(found: Anatomy, summary: Mapping[str, Any]) -> Anatomy:
    """What a GGUF file says of itself (gguf.summary), where no config.json says more. Its modules stay unknown."""
    sizes: dict[str, Any] = {name: summary[name] or 0 for name in traits.NAMES}
    return replace(
        found,
        **sizes,
        model_type=summary["architecture"] or found.model_type,
        parameters=summary["parameters"],
        parameter_bytes=summary["bytes"],
        max_positions=found.max_positions or summary["positions"],
        quantization="gguf",
        quantization_detail={"types": summary["types"]},
    )


def _modules(
    config: Mapping[str, Any], implied: Skeleton | None, tensors: Mapping[str, Tensor], *, packed: bool
) -> tuple[Skeleton | None, list[Finding]]:
    """The skeleton: config.json's where the stored tensors bear it out, else the header's."""
    if not tensors or packed:
        return implied, []
    if implied is not None:
        have = stored.parameters(tensors, fuse=any(module.kind == "experts" for module in implied.modules))
        want = {f"{m.name}.{leaf}": shape for m in implied.modules for leaf, shape in m.parameters.items()}
        if len(want.keys() & have.keys()) * 2 >= len(want):
            return implied, agreement.contradictions(have, want, implied.tied)
        return implied, [finding("model.tensors.renamed", stored=sorted(have)[:_FAULTS_SHOWN])]
    kind = _name(config.get("model_type")) or "unknown"
    read = stored.skeleton(
        stored.parameters(tensors, fuse=False), model_type=kind, architecture=_architecture(config) or "", known={}
    )
    notes = [finding("model.modules.from_header", model_type=kind)]
    if read.unclear:
        notes.append(finding("model.modules.unclear", modules=list(read.unclear[:_FAULTS_SHOWN])))
    return read.skeleton, notes


def _with_real_ties(
    body: Skeleton, tensors: Mapping[str, Tensor], folder: Path, *, packed: bool
) -> tuple[Skeleton, list[Finding]]:
    """The skeleton without a tie that the weights contradict: both ends are stored, and they differ."""
    for name, target in body.tied.items():
        if not packed and name in tensors and target in tensors:
            tied, notes = agreement.really_tied(folder, tensors[target], tensors[name])
            return (body if tied else replace(body, tied={})), notes
    return body, []


def _is_tied(body: Skeleton) -> bool:
    return any(role(name.rpartition(".")[0]) == "head" for name in body.tied)


def _counted(tensors: Mapping[str, Tensor], body: Skeleton | None) -> dict[str, Tensor]:
    """What is stored, shared tensors counted once."""
    ties = body.tied if body else {}
    return {name: each for name, each in tensors.items() if not (name in ties and ties[name] in tensors)}


def _remote_code(config: Mapping[str, Any], body: Skeleton | None, *, opted_in: bool) -> list[Finding]:
    if not config.get("auto_map"):
        return []
    if body is not None and body.source != "header" and config.get("model_type") not in layouts.REMOTE_TYPES:
        return [finding("model.code.not_needed")]
    severity: Severity = "warning" if opted_in else "error"
    return [finding("model.code.remote", severity=severity, auto_map=files.clean(str(config["auto_map"]), 300))]


def _unsupported(config: Mapping[str, Any], quantization: str | None) -> Finding:
    name = _name(config.get("model_type")) or "none"
    known = {task: catalogue.entry(name, task) or {} for task in catalogue.tasks(name)}
    classes = {each for entry in known.values() for each in (entry.get("architecture"), *entry.get("also", ()))}
    if known and _architecture(config) in {None, *classes}:
        return finding(
            "model.architecture.unsupported",
            f"The modules of {name} models do not follow from config.json alone, and there is no safetensors header "
            "to read them from.",
            model_type=name,
        )
    if known:
        return finding(
            "model.architecture.not_causal",
            f"{_architecture(config) or 'This'} is not a class of {name} models that peftsmith knows "
            f"({', '.join(known)}), and there is no safetensors header to read its modules from.",
            model_type=name,
        )
    return finding(
        "model.architecture.unsupported",
        f"Model type {name} ({_architecture(config) or 'no architecture named'}) is not in the catalogue, and there is "
        "no safetensors header to read its modules from.",
        model_type=name,
        quantization=quantization,
    )


def _dtype(stored: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """Type of most of the stored bytes; without tensors the config's, else float32 as transformers would take."""
    sizes: Counter[str] = Counter()
    for each in stored.values():
        if each.dtype in DTYPES:
            sizes[DTYPES[each.dtype]] += each.size
    if sizes:
        return sizes.most_common(1)[0][0]
    stated = config.get("dtype", config.get("torch_dtype"))
    return stated if isinstance(stated, str) and stated in BYTES else "float32"


def _positions(config: Mapping[str, Any]) -> int | None:
    entry = layouts.entry_of(config)
    # A class that learns positions has as many as it has by default.
    usual = entry[0]["fields"] if entry else {}
    value = next((each[name] for each in (config, usual) for name in _POSITIONS if each.get(name) is not None), None)
    if value is None:
        return None
    if type(value) is not int or value < 1:
        raise PeftsmithError(
            "config.json gives no usable max_position_embeddings", value=value, next_step="Correct config.json."
        )
    return value


def _architecture(config: Mapping[str, Any]) -> str | None:
    names = config.get("architectures")
    return _name(names[0]) if isinstance(names, list) and names else None


def _writes_nothing(architecture: str) -> bool:
    """Whether the class has no head that writes text; GPT2LMHeadModel has one, BertModel has none."""
    return architecture.endswith(_NO_GENERATION) and not architecture.endswith("LMHeadModel")


def _name(value: Any) -> str | None:
    return files.clean(value, 80) if isinstance(value, str) else None


# A model of which nothing is known: what a skeleton alone is put into.
EMPTY = Anatomy(
    id="", commit=None, folder=None, model_type="unknown", architecture=None, layers=0, hidden=0, intermediate=0,
    heads=0, kv_heads=0, head_dim=0, vocab=0, tied_embeddings=False, parameters=0, parameter_bytes=0, dtype="float32",
    max_positions=None, quantization=None, skeleton=None, config={}, eos_token_ids=[], pad_token_id=None,
    bos_token_id=None, chat_template=None, licence=None,
)  # fmt: skip
