"""The loss-mask proof: what the trainer learns from, counted over the whole set and compared with the trainer's own.

Knows: one pass over the rows with the fast path, a sample (first, longest, by seed, with findings), the real trainer
in the warm worker, and the digest over data, settings and tokenizer that a proof holds for.
Does not know: how labels are made (labels.py), or what a run is (project/check.py keeps the proof in the lock).
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftsmith import files
from peftsmith.data import comparison, fixes, labels
from peftsmith.data.comparison import State
from peftsmith.data.examine import FAULT_FINDING
from peftsmith.data.examples import AnyExample
from peftsmith.data.faults import RowFault
from peftsmith.data.labels import Labelled, Row, Settings, SettingsRefused
from peftsmith.data.reading import fingerprint, read_rows
from peftsmith.data.rendering import NoTemplate, Renderer
from peftsmith.data.supervision import Supervision
from peftsmith.data.templating import TemplateRefused, TemplateStopped
from peftsmith.finding import Finding, finding
from peftsmith.secrets import redact_parts

if TYPE_CHECKING:
    from peftsmith.machine.environment import Environment

# Everything that decides about text and ids of a model's rows
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja", "generation_config.json", "config.json",
)  # fmt: skip
_CHUNK = 256
_FIRST, _LONGEST, _DRAWN, _ODD = 4, 4, 8, 2  # rows; the last for each kind of finding
_SHOWN_ROWS, _SHOWN_TEXT = 3, 400
_LARGEST_SAMPLE = 4 << 20  # characters of text that go to the worker


@dataclass(frozen=True)
class Source:
    """Where the rows are, and what each becomes (RowFault: no row for the trainer)."""

    path: Path
    example: Callable[[dict[str, Any]], AnyExample]


@dataclass(frozen=True)
class Proof:
    """`state`: proven (the real trainer's batches are equal), differs, refused, or unknown (no real trainer was asked).

    `counts` are over the whole set by the fast path, `sample` are the row numbers that the real trainer collated,
    `shown` some of them with the text that carries loss. `digest` covers data, settings and tokenizer (`inputs`).
    `files` are texts that a finding's patch names (a chat template), to be written into the project.
    """

    state: State
    counts: dict[str, Any]
    sample: list[int]
    shown: list[dict[str, Any]]
    inputs: dict[str, Any]
    findings: list[Finding] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return files.sha256_json(self.inputs)

    def to_json(self) -> dict[str, Any]:
        """As the lock keeps it; `fixes` are the plan patches of its findings, by finding id."""
        patches = {each.id: each.evidence["patch"] for each in self.findings if "patch" in each.evidence}
        return {
            "fixes": patches,
            "files": self.files,
            "state": self.state,
            "digest": self.digest,
            "counts": self.counts,
            "sample": self.sample,
            "shown": self.shown,
            "inputs": self.inputs,
        }


def inputs(path: Path, folder: Path, settings: Settings) -> dict[str, Any]:
    """What a proof depends on, as hashes: the data file, the settings, the tokenizer's and template's files."""
    return {
        "data": fingerprint(path),
        "settings": settings_hash(settings),
        "tokenizer": tokenizer_hashes(folder),
    }


def settings_hash(settings: Settings) -> str:
    return files.sha256_json(asdict(settings))


def tokenizer_hashes(folder: Path) -> dict[str, str]:
    return {name: files.sha256_file(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()}


def prove(
    source: Source,
    folder: Path,
    settings: Settings,
    environment: Environment | None,
    *,
    batch_size: int = 4,
    seed: int = 0,
    config: dict[str, Any] | None = None,
) -> Proof:
    """Prove what the trainer learns from the rows of `source` with the tokenizer in `folder`.

    Without an environment the state is unknown, never proven. `config` (config.json) lets packing be tried on a small
    model of the same architecture. Raises PeftsmithError when the file or the tokenizer cannot be read.
    """
    held = inputs(source.path, folder, settings)
    if environment is not None and settings.assistant_only_loss and settings.training_template is None:
        settings = _with_training_template(folder, settings, environment)
    renderer = labels.renderer_for(Renderer.load(folder), settings)
    seen = Supervision(renderer, settings)
    findings: list[Finding] = []
    try:
        picked = _pass(source, renderer, settings, seen, seed)
    except (TemplateStopped, TemplateRefused) as error:
        # Such a template never reaches the training environment
        findings += [finding("data.template.unsafe", error.cause), finding("data.mask.unproven", reason=error.cause)]
        return Proof("unknown", counts_of(seen), [], [], held, findings)
    except NoTemplate:
        return Proof("refused", counts_of(seen), [], [], held, [finding("data.template.missing")])
    except SettingsRefused as error:
        return Proof("refused", counts_of(seen), [], [], held, [finding("data.mask.refused", error.cause)])
    findings += seen.findings()
    sample = _fetch(source, picked)
    chosen = [(number, example) for number, example in sample.items()]
    made = labels.rows_of(renderer, [example for _, example in chosen], settings) if chosen else []
    usable = [
        (number, example, [row for row in rows if isinstance(row, Row)])
        for (number, example), rows in zip(chosen, made, strict=True)
        if all(isinstance(row, Row) for row in rows)
    ]
    shown = [_shown(renderer, number, rows) for number, _, rows in usable[:_SHOWN_ROWS]]
    state: State = "unknown"
    if environment is None:
        findings.append(finding("data.mask.unproven", "No training environment: the trainer's own batch was not seen"))
    elif not usable:
        findings.append(finding("data.mask.unproven", "No row of the set can be handed to the trainer"))
    else:
        state, more = comparison.compare(usable, folder, renderer, settings, environment, batch_size, config)
        findings += more

    def own_template() -> str | None:
        return None if environment is None else comparison.training_template(folder, settings, environment)

    findings, texts = fixes.offer(findings, [example for _, example, _ in usable], renderer, settings, own_template)
    return Proof(state, counts_of(seen), [number for number, _, _ in usable], shown, held, findings, texts)


def _pass(source: Source, renderer: Renderer, settings: Settings, seen: Supervision, seed: int) -> set[int]:
    """Count over all rows; returns the numbers of the rows to sample."""
    first: list[int] = []
    odd: dict[str, list[int]] = {}
    longest: list[tuple[int, int]] = []
    drawn: list[int] = []
    draw, count = random.Random(seed), 0
    for chunk in _chunks(source, seen):
        made = labels.rows_of(renderer, [example for _, example in chunk], settings)
        for (number, example), rows in zip(chunk, made, strict=True):
            count += 1
            for id_ in seen.add(number, example, rows):
                if len(odd.setdefault(id_, [])) < _ODD:
                    odd[id_].append(number)
            if len(first) < _FIRST:
                first.append(number)
            length = max((row.length for row in rows if isinstance(row, Row)), default=0)
            push = heapq.heappush if len(longest) < _LONGEST else heapq.heappushpop
            push(longest, (length, number))
            # A uniform draw without knowing how many rows will come (reservoir sampling)
            if len(drawn) < _DRAWN:
                drawn.append(number)
            elif (place := draw.randrange(count)) < _DRAWN:
                drawn[place] = number
    return {*first, *drawn, *(number for _, number in longest), *(number for rows in odd.values() for number in rows)}


def _chunks(source: Source, seen: Supervision) -> Iterator[list[tuple[int, AnyExample]]]:
    chunk: list[tuple[int, AnyExample]] = []
    for number, example in examples_of(source, seen.unusable):
        chunk.append((number, example))
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def examples_of(
    source: Source, unusable: Callable[[int, str, str], None] | None = None
) -> Iterator[tuple[int, AnyExample]]:
    """(row number, example) of every row that becomes one; the others go to `unusable` (number, finding id, why)."""
    for row in read_rows(source.path):
        try:
            if row.value is not None:
                yield row.number, source.example(row.value)
            elif unusable is not None:
                unusable(row.number, "data.rows.malformed", row.fault or "")
        except RowFault as fault:
            if unusable is not None:
                unusable(row.number, FAULT_FINDING[fault.kind], str(fault))


def _fetch(source: Source, numbers: set[int]) -> dict[int, AnyExample]:
    found: dict[int, AnyExample] = {}
    size = 0
    for number, example in examples_of(source):
        if number in numbers:
            size += len(repr(example))
            if size > _LARGEST_SAMPLE and found:
                break
            found[number] = example
            if len(found) == len(numbers):
                break
    return found


def _with_training_template(folder: Path, settings: Settings, environment: Environment) -> Settings:
    """The settings with the template that SFTTrainer would swap in; the same where TRL knows none."""
    renderer = labels.renderer_for(Renderer.load(folder), settings)
    if labels.has_marks(renderer.files.template):
        return settings
    return replace(settings, training_template=comparison.training_template(folder, settings, environment))


def counts_of(seen: Supervision) -> dict[str, Any]:
    return {
        "rows": seen.rows,
        "unusable": seen.rows - seen.usable,
        "kept": seen.kept,
        "tokens": seen.tokens,
        "trained_tokens": seen.trained,
        "share_trained": round(seen.trained / seen.tokens, 4) if seen.tokens else None,
        "lengths": seen.lengths.summary(),
        "stops_at_row": seen.stopped_at,
    }


def _shown(renderer: Renderer, number: int, rows: Sequence[Labelled]) -> dict[str, Any]:
    decode = renderer.files.tokenizer.decode
    texts = []
    for row in rows:
        if isinstance(row, Row):
            borders = [0, *(place for span in row.spans for place in span), len(row.ids)]
            parts = [decode(row.ids[left:right], skip_special_tokens=False) for left, right in pairwise(borders)]
            texts += [files.clean(text, _SHOWN_TEXT) for text in redact_parts(parts)[1::2][:4]]
    known = [row for row in rows if isinstance(row, Row)]
    return {"row": number, "tokens": sum(len(row.ids) for row in known), "trained": texts}
