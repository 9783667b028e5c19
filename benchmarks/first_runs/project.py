"""The project around a case: a base without weights, a small tokenizer, rows as the plan reads them, plan and lock.

Knows: what config.json, tokenizer and rows a twin needs, and that a named file that exists is taken as it is.
Does not know: whether the plan is any good, or what is done with the project (trying.py).
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from benchmarks.first_runs.cases import Case
from peftsmith import __version__, files, lock, plan
from peftsmith.knowledge import methods
from peftsmith.worker.shrink import NEEDED
from peftsmith.worker.skeleton import TOKENIZER_FILES
from tests import tiny

_MOST_ROWS = 64
_LARGEST_DATA = 64 << 20
_TEXTS = {"train": 12, "eval": 4, "test": 4}  # rows of a split, unless two steps need more
# A template that marks the assistant's turns, for plans that learn from all of them.
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ message['content'] + '<|im_end|>' + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write(project: Path, base: Path, case: Case) -> plan.FineTunePlan:
    """Base, data, plan and lock of a case; nothing is written for a plan that is not valid (PeftsmithError)."""
    wanted = plan.validate(plan.migrate(dict(case.plan)))
    config = write_base(base, case, wanted)
    # The base lies in a folder here. A pinned commit stays in the scripts: it goes into the lock.
    local = {"model": str(base), "revision": wanted.base.revision if wanted.base.trust_remote_code else None}
    wanted = wanted.model_copy(update={"base": wanted.base.model_copy(update=local)})
    write_data(project, wanted, base, case.source)
    text = plan.dump(wanted)
    files.write_text(project / plan.PLAN_FILE, text)
    known = {
        "model": str(base),
        "commit": case.plan.get("base", {}).get("revision"),
        "folder": str(base),
        "model_type": config.get("model_type"),
    }
    empty: dict[str, Any] = {"data": {}, "versions": {}, "interpreter": None, "estimate": {}, "why": {}, "files": {}}
    lock.save(project, lock.Lock(peftsmith=__version__, plan_sha256=files.sha256_text(text), base=known, **empty))
    return wanted


def write_base(folder: Path, case: Case, wanted: plan.FineTunePlan) -> dict[str, Any]:
    """config.json and tokenizer, no weights: those of the folder that the plan names, or small ones. The config."""
    folder.mkdir(parents=True, exist_ok=True)
    given = named_folder(case)
    config = dict(case.config)
    if given is not None and (given / "tokenizer.json").is_file():
        for name in TOKENIZER_FILES:
            if (given / name).is_file():
                shutil.copyfile(given / name, folder / name)
    else:
        vocabulary = _write_tokenizer(folder, wanted)
        special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
        if methods.supports("SEQ_2_SEQ_LM", str(config.get("model_type"))):
            special["decoder_start_token_id"] = 3
        stated = dict(NEEDED.get(str(config.get("model_type")), {}))
        # A whole config keeps its vocabulary, which the twin has as well; else the tokenizer's is enough.
        config = {**stated, "vocab_size": vocabulary, "dtype": "float32", **special, **config}
        if config["vocab_size"] < vocabulary:
            config["vocab_size"] = vocabulary
        if wanted.task_type in ("CAUSAL_LM", "SEQ_2_SEQ_LM"):
            files.write_json(folder / "generation_config.json", special)
    files.write_json(folder / "config.json", config)
    return config


def named_folder(case: Case) -> Path | None:
    """The folder that a plan names as its base, as seen from the file that it stands in; None for anything else."""
    named = case.plan.get("base", {}).get("model") if isinstance(case.plan.get("base"), dict) else None
    if not isinstance(named, str) or "\x00" in named or case.source is None:
        return None
    folder = case.source / Path(named).expanduser()
    return folder if (folder / "config.json").is_file() else None


def _write_tokenizer(folder: Path, wanted: plan.FineTunePlan) -> int:
    """A byte-level tokenizer with ChatML, with the padding token that the plan names and every id that it trains."""
    size = tiny._write_tokenizer(folder)
    if wanted.training.loss_on == "assistant" and wanted.training.chat_template is None:
        files.write_text(folder / "chat_template.jinja", MARKED)
    place = folder / "tokenizer.json"
    tokenizer = files.read_json(place)
    known = tokenizer["model"]["vocab"]
    needed = [wanted.training.pad_token] if wanted.training.pad_token else []
    new = {name: size + place for place, name in enumerate(each for each in needed if each not in known)}
    new |= {f"<|token_{each}|>": each for each in _trained_tokens(wanted) if each >= size + len(new)}
    if new:
        known |= new
        tokenizer["added_tokens"] += [_added(name, number, name in needed) for name, number in new.items()]
        files.write_json(place, tokenizer)
    return max(size - 1, *new.values()) + 1 if new else size


def _added(name: str, number: int, special: bool) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": name, **plain, "special": special}


def _trained_tokens(wanted: plan.FineTunePlan) -> list[int]:
    """Ids of tokens that the plan trains one by one: at least one must be in the rows."""
    options = wanted.method.config
    named = options.get("token_indices") or options.get("trainable_token_indices") or []
    listed = [each for part in named.values() for each in part] if isinstance(named, dict) else named
    return sorted({each for each in listed if 0 <= each < 1 << 20})


def write_data(project: Path, wanted: plan.FineTunePlan, base: Path, source: Path | None) -> None:
    """The files that the plan names, of every data set."""
    for one in wanted.alone().values():
        _write_data(project, one, base, source)


def _write_data(project: Path, wanted: plan.FineTunePlan, base: Path, source: Path | None) -> None:
    """Those that exist beside the plan's file, else a few rows of the right format."""
    if wanted.training.chat_template:
        files.write_text(project / wanted.training.chat_template, MARKED)
    needed = 2 * wanted.training.batch_size * wanted.training.gradient_accumulation
    extra = _text_of_trained(base, wanted)
    for place, name in wanted.splits().items():
        split = place.rpartition(".")[2]
        least = _TEXTS[split]
        if not _inside(name):
            continue  # a plan that reads outside of its project must be refused, not helped
        existing = source / name if source else None
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        if existing is not None and existing.is_file() and existing.stat().st_size < _LARGEST_DATA:
            shutil.copyfile(existing, project / name)
            continue
        count = max(least, min(needed, _MOST_ROWS)) if split == "train" else least
        rows = [row(wanted, number, extra) for number in range(count)]
        files.write_text(project / name, _encoded(rows, PurePosixPath(name).suffix.lower()))


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\x00" not in name


def _encoded(rows: list[dict[str, Any]], suffix: str) -> str:
    if suffix in (".csv", ".tsv"):
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
        return stream.getvalue()
    if suffix == ".json":
        return json.dumps(rows, ensure_ascii=False)
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows)


def row(wanted: plan.FineTunePlan, number: int, extra: str = "") -> dict[str, Any]:
    """One row as the plan's format and columns say; `extra` is text that every row must hold."""
    data = wanted.data
    text = f"{tiny.CORPUS[number % len(tiny.CORPUS)]} {number}{extra}"
    labels = data.labels or ["billing", "delivery"]
    label, words = labels[number % len(labels)], text.split()
    columns = ("tokens", "tags", "source", "target", "question", "context", "answers")
    named = {name: data.columns.get(name, name) for name in columns}
    rows: Mapping[str, dict[str, Any]] = {
        "messages": {
            "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": f"that is {label}"}]
        },
        "prompt_completion": {"prompt": f"{text}: ", "completion": label},
        "text": {data.text_column: text},
        "classification": {data.text_column: text, data.label_column: label},
        "token_classification": {
            named["tokens"]: words,
            named["tags"]: [labels[len(word) % len(labels)] for word in words],
        },
        "question_answering": {
            named["question"]: f"what is row {number} about?",
            named["context"]: text,
            named["answers"]: {"text": [words[1]], "answer_start": [text.index(words[1])]},
        },
        "seq2seq": {named["source"]: text, named["target"]: f"that is {label}{extra}"},
    }
    return rows[data.format]


def _text_of_trained(base: Path, wanted: plan.FineTunePlan) -> str:
    """Text that holds tokens which the plan trains one by one, as far as a text can."""
    trained = _trained_tokens(wanted)[:8]
    if not trained:
        return ""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    decoded = (tokenizer.decode([each], skip_special_tokens=False) for each in trained)
    return "".join(f" {each}" for each in decoded if each and "�" not in each)
