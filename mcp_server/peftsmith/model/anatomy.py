"""What a base model is, without loading a weight: sizes, exact parameters, linear modules, tokens, licence.

Knows: how to join config.json, safetensors headers and tokenizer files, and what contradicts what.
Does not know: where the files come from (source.py), what one architecture looks like (layouts.py), what it costs
(memory.py). What it cannot derive for certain is a finding, and stays empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, Severity, finding
from peftsmith.model import layouts, source, tokens
from peftsmith.model.headers import Tensor

HEAD = "lm_head"
EMBEDDING = "model.embed_tokens"
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_FAULTS_SHOWN = 5
_COMPARED_AT_ONCE = 8 << 20


@dataclass(frozen=True)
class Anatomy:
    """A base model as far as it is known for certain.

    `parameters` counts what transformers would count (a tied lm_head once); 0 when it could not be counted (a finding
    says why). `linear` maps each linear module of the layers, and lm_head when it has a tensor of its own, to
    (in_features, out_features); it is empty for architectures without a layout. `other_modules` are those that LoRA
    cannot adapt.
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
    linear: dict[str, tuple[int, int]]
    eos_token_ids: list[int]
    pad_token_id: int | None
    bos_token_id: int | None
    chat_template: str | None
    licence: str | None
    findings: list[Finding] = field(default_factory=list, repr=False)
    other_modules: tuple[str, ...] = field(default=(), repr=False)

    @property
    def supported(self) -> bool:
        """True when the modules are known exactly, so that targets and memory can be worked out."""
        return bool(self.linear)

    def to_json(self) -> dict[str, Any]:
        """Plain data; `linear` is summed up by module name, unknown counts are null."""
        skipped = {"findings", "other_modules", "linear", "folder", "chat_template"}
        plain = {name: value for name, value in vars(self).items() if name not in skipped}
        leaves: dict[str, Counter[tuple[int, int]]] = {}
        for name, sizes in self.linear.items():
            leaves.setdefault(name.rpartition(".")[2], Counter())[sizes] += 1
        return {
            **plain,
            "parameters": self.parameters or None,
            "folder": str(self.folder) if self.folder else None,
            "chat_template": None if self.chat_template is None else files.clean(self.chat_template, 1000),
            "linear": {
                leaf: [{"modules": count, "in": i, "out": o} for (i, o), count in sizes.items()]
                for leaf, sizes in leaves.items()
            },
        }


def inspect(model: str, revision: str | None = None, *, trust_remote_code: bool = False) -> Anatomy:
    """The anatomy of a local folder or a hub model. Raises PeftsmithError as source.open_model does.

    `trust_remote_code` only says that the user has opted in; no code of the model is ever run here.
    """
    return describe(source.open_model(model, revision), trust_remote_code=trust_remote_code)


def describe(model: source.ModelFiles, *, trust_remote_code: bool = False) -> Anatomy:
    """The anatomy of opened files."""
    config = model.config
    layout = layouts.find(config)
    findings = list(model.notes)
    findings += _remote_code(config, layout, opted_in=trust_remote_code)
    quantization = _quantization(config)
    if quantization:
        findings.append(
            finding("model.quantization.unsupported", f"The weights are already quantised ({quantization}).")
        )
    if layout is None:
        findings.append(_unsupported(config, quantization))
    tied = layout.tied if layout else config.get("tie_word_embeddings") is True
    stored = {name: each for name, each in model.tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    if layout and layout.tied and not quantization and {EMBEDDING + ".weight", HEAD + ".weight"} <= stored.keys():
        tied, notes = _really_tied(model.small, stored[EMBEDDING + ".weight"], stored[HEAD + ".weight"])
        findings += notes
    expected = {}
    if layout:
        expected = layout.tensors() | ({} if tied else {HEAD + ".weight": (layout.vocab, layout.hidden)})
    if layout and stored and not quantization:
        findings += _contradictions(stored, expected, tied=tied)
    counted = _counted(stored, tied=tied) if stored and not quantization else {}
    parameters = sum(each.elements for each in counted.values()) or sum(map(prod, expected.values()))
    dtype = _dtype(stored, config)
    text = tokens.read(model, layout.vocab if layout else None)
    if model.licence is None:
        findings.append(finding("model.licence.unknown"))
    if layout and not stored and not any(each.id.startswith("model.weights.") for each in findings):
        findings.append(finding("model.weights.missing"))
    return Anatomy(
        id=model.id,
        commit=model.commit,
        folder=model.folder,
        model_type=_name(config.get("model_type")) or "unknown",
        architecture=_architecture(config),
        layers=layout.layers if layout else 0,
        hidden=layout.hidden if layout else 0,
        intermediate=layout.intermediate if layout else 0,
        heads=layout.heads if layout else 0,
        kv_heads=layout.kv_heads if layout else 0,
        head_dim=layout.head_dim if layout else 0,
        vocab=layout.vocab if layout else 0,
        tied_embeddings=tied,
        parameters=parameters,
        parameter_bytes=sum(each.size for each in (counted or stored).values()) or parameters * BYTES[dtype],
        dtype=dtype,
        max_positions=_positions(config),
        quantization=quantization,
        linear=_linear(layout, tied=tied),
        eos_token_ids=list(text.stop),
        pad_token_id=text.pad,
        bos_token_id=text.bos,
        chat_template=text.chat_template,
        licence=model.licence,
        findings=[*findings, *text.findings],
        other_modules=layout.other_modules() if layout else (),
    )


def _linear(layout: layouts.Layout | None, *, tied: bool) -> dict[str, tuple[int, int]]:
    if layout is None:
        return {}
    return layout.linear() | ({} if tied else {HEAD: (layout.hidden, layout.vocab)})


def _counted(stored: Mapping[str, Tensor], *, tied: bool) -> dict[str, Tensor]:
    """What is stored, the output head left out where it is the embedding itself."""
    twice = tied and EMBEDDING + ".weight" in stored
    return {name: each for name, each in stored.items() if not (twice and name == HEAD + ".weight")}


def _contradictions(
    stored: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], *, tied: bool
) -> list[Finding]:
    """Stored tensors against those that config.json implies. A tied model may store either end, or both."""
    have = {name: each.shape for name, each in stored.items()}
    want = dict(expected)
    if tied and EMBEDDING + ".weight" not in have and HEAD + ".weight" in have:
        want[HEAD + ".weight"] = want.pop(EMBEDDING + ".weight")
    elif tied:
        have.pop(HEAD + ".weight", None)
    missing = [name for name in want if name not in have]
    unknown = [name for name in have if name not in want]
    other = [name for name in want if name in have and have[name] != want[name]]
    if not (missing or unknown or other):
        return []
    shown = [f"{name}: stored {list(have[name])}, config.json implies {list(want[name])}" for name in other]
    shown += [f"{name}: not stored" for name in missing] + [
        f"{files.clean(n, 200)}: not in config.json" for n in unknown
    ]
    return [
        finding(
            "model.tensors.contradict",
            f"config.json and the weight files contradict each other in {len(shown)} tensors, such as {shown[0]}.",
            examples=shown[:_FAULTS_SHOWN],
            wrong_shape=len(other),
            missing=len(missing),
            unknown=len(unknown),
        )
    ]


def _really_tied(folder: Path, embedding: Tensor, head: Tensor) -> tuple[bool, list[Finding]]:
    """transformers 5 ties two stored tensors only when they are equal (modeling_utils.tie_weights)."""
    if (embedding.dtype, embedding.shape) != (head.dtype, head.shape):
        return False, [finding("model.embeddings.not_tied")]
    paths = folder / embedding.file, folder / head.file
    if not all(path.is_file() for path in paths):
        return True, [finding("model.embeddings.tie_unchecked")]
    with paths[0].open("rb") as first, paths[1].open("rb") as second:
        first.seek(embedding.start)
        second.seek(head.start)
        left = embedding.size
        while left:
            step = min(left, _COMPARED_AT_ONCE)
            if first.read(step) != second.read(step):
                return False, [finding("model.embeddings.not_tied")]
            left -= step
    return True, []


def _remote_code(config: Mapping[str, Any], layout: layouts.Layout | None, *, opted_in: bool) -> list[Finding]:
    if not config.get("auto_map"):
        return []
    if layout is not None:
        return [finding("model.code.not_needed")]
    severity: Severity = "warning" if opted_in else "error"
    return [finding("model.code.remote", severity=severity, auto_map=files.clean(str(config["auto_map"]), 300))]


def _unsupported(config: Mapping[str, Any], quantization: str | None) -> Finding:
    name = _name(config.get("model_type")) or "none"
    known = ", ".join(layouts.KINDS)
    if name in layouts.KINDS:
        return finding(
            "model.architecture.not_causal",
            f"The files are those of {_architecture(config)}, not of {layouts.KINDS[name].architecture}.",
            model_type=name,
        )
    return finding(
        "model.architecture.unsupported",
        f"Model type {name} ({_architecture(config) or 'no architecture named'}) is none of those whose modules "
        f"peftsmith knows exactly: {known}.",
        model_type=name,
        quantization=quantization,
    )


def _quantization(config: Mapping[str, Any]) -> str | None:
    body = config.get("quantization_config", config.get("quantization"))
    if not body:
        return None
    method = body.get("quant_method") if isinstance(body, dict) else None
    if not isinstance(method, str):
        return "unknown"
    bits = "-4bit" if body.get("load_in_4bit") is True else "-8bit" if body.get("load_in_8bit") is True else ""
    return files.clean(method, 40) + bits


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
    value = config.get("max_position_embeddings")
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


def _name(value: Any) -> str | None:
    return files.clean(value, 80) if isinstance(value, str) else None
