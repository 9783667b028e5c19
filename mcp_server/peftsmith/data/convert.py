"""What a row of each format becomes for its trainer, and how it is written down again.

Knows: the rule of every format, from a row to an example (examples.py) and from an example to a normalised row.
Does not know: which format a file has (formats.py) or where rows come from (reading.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from collections.abc import Mapping as Lookup
from dataclasses import replace
from typing import Any

from peftsmith import files
from peftsmith.data import chats, faults
from peftsmith.data.examples import (
    Answered,
    AnyExample,
    Chat,
    Classified,
    Judged,
    Message,
    Pair,
    Plain,
    Preference,
    Side,
    Tagged,
)
from peftsmith.data.faults import RowFault
from peftsmith.data.mapping import Mapping
from peftsmith.plan_parts import DataFormat
from peftsmith.secrets import redact

Row = Lookup[str, Any]


def to_example(row: Row, mapping: Mapping, labels: Collection[str] = ()) -> AnyExample:
    """The example that a row becomes. Text is taken as it is, nothing is stripped or repaired.

    `mapping.format` must be set (detect() gives such a mapping). `labels`, where given, are the only classes allowed.
    Raises RowFault (a ValueError) with the reason.
    """
    assert mapping.format is not None, "a row has no meaning without a format"
    example = _RULES[mapping.format](row, mapping)
    if labels:
        _allowed(example, labels)
    return example


def as_chat(example: AnyExample, system_prompt: str | None = None) -> Chat | None:
    """The conversation that a chat model is trained on: a class is the assistant's answer to its text.

    `system_prompt` goes first where there is no system message. None for kinds that are no single conversation.
    """
    if isinstance(example, Classified):
        asked = example.text if example.second is None else f"{example.text}\n\n{example.second}"
        example = Chat([{"role": "user", "content": asked}], [{"role": "assistant", "content": example.label}])
    if not isinstance(example, Chat):
        return None
    return replace(example, prompt=chats.with_system(example.prompt, system_prompt)) if system_prompt else example


def _messages(row: Row, mapping: Mapping) -> AnyExample:
    roles = _roles(chats.ROLES, mapping)
    return chats.chat(chats.messages(mapping.get(row, "messages"), "messages", roles), _tools(row, mapping))


def _sharegpt(row: Row, mapping: Mapping) -> AnyExample:
    roles = _roles(chats.SHAREGPT_ROLES, mapping)
    conversation = chats.messages(mapping.get(row, "conversations"), "conversations", roles)
    return chats.chat(chats.with_system(conversation, _optional(row, mapping, "system")), _tools(row, mapping))


def _alpaca(row: Row, mapping: Mapping) -> AnyExample:
    """Instruction and input are joined by a line feed, as LLaMA-Factory joins them for chat templates."""
    asked = faults.text(mapping.get(row, "instruction"), "instruction")
    more = _optional(row, mapping, "input")
    turns: list[Message] = []
    for pair in _list(mapping.get(row, "history"), "history"):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise RowFault("shape", "history is not a list of pairs of question and answer")
        turns.append({"role": "user", "content": faults.text(pair[0], "a question in history")})
        turns.append({"role": "assistant", "content": faults.text(pair[1], "an answer in history")})
    turns.append({"role": "user", "content": f"{asked}\n{more}" if more else asked})
    answer = {"role": "assistant", "content": faults.text(mapping.get(row, "output"), "output")}
    return Chat(chats.with_system(turns, _optional(row, mapping, "system")), [answer])


def _prompt_completion(row: Row, mapping: Mapping) -> AnyExample:
    """Strings are a user's and an assistant's message, lists are messages already."""
    prompt = _as_messages(_side(row, mapping, "prompt"), "user")
    completion = _as_messages(_side(row, mapping, "completion"), "assistant")
    return chats.checked(prompt, completion, _tools(row, mapping))


def _preference(row: Row, mapping: Mapping) -> AnyExample:
    """Without a prompt column, it is what both conversations begin with (trl 1.16 data_utils.py, extract_prompt)."""
    chosen, rejected = _side(row, mapping, "chosen"), _side(row, mapping, "rejected")
    prompt = _side(row, mapping, "prompt") if mapping.has(row, "prompt") else None
    schemas, system = _tools(row, mapping), _optional(row, mapping, "system")
    if system or isinstance(prompt, list) or isinstance(chosen, list) or isinstance(rejected, list):
        sides = _as_messages(chosen, "assistant"), _as_messages(rejected, "assistant")
        asked = _as_messages(prompt, "user") if prompt is not None else []
        if all(side[: len(asked)] == asked and len(side) > len(asked) for side in sides):
            shared = _shared(*sides)
            asked, sides = sides[0][:shared], (sides[0][shared:], sides[1][shared:])
        asked = chats.with_system(asked, system)
        _differ(*sides)
        for side in sides:
            chats.checked(asked, side)
        return Preference(asked, sides[0], sides[1], schemas)
    assert isinstance(chosen, str) and isinstance(rejected, str)
    if prompt is None:
        shared = _shared(chosen, rejected)
        # A word is not cut: what both share goes back to the last border between words.
        shared = max(chosen.rfind(" ", 0, shared), chosen.rfind("\n", 0, shared)) if shared else 0
        prompt, chosen, rejected = chosen[: max(shared, 0)], chosen[max(shared, 0) :], rejected[max(shared, 0) :]
        faults.text(prompt, "what chosen and rejected begin with", blank=False)
    _differ(chosen, rejected)
    return Preference(prompt, faults.text(chosen, "chosen"), faults.text(rejected, "rejected"), schemas)


def _kto(row: Row, mapping: Mapping) -> AnyExample:
    prompt, completion = _side(row, mapping, "prompt"), _side(row, mapping, "completion")
    desirable = faults.yes_or_no(mapping.get(row, "label"), "label")
    if isinstance(prompt, list) or isinstance(completion, list):
        made = chats.checked(_as_messages(prompt, "user"), _as_messages(completion, "assistant"))
        return Judged(made.prompt, made.completion, desirable)
    return Judged(prompt, completion, desirable)


def _classification(row: Row, mapping: Mapping) -> AnyExample:
    body = faults.text(mapping.get(row, "text"), mapping.column(row, "text") or "text")
    label = faults.label(mapping.get(row, "label"), mapping.label_names)
    second = mapping.column(row, "second")
    return Classified(body, label, faults.text(mapping.get(row, "second"), second) if second else None)


def _token_classification(row: Row, mapping: Mapping) -> AnyExample:
    words, tags = _list(mapping.get(row, "tokens"), "tokens"), _list(mapping.get(row, "tags"), "tags")
    if not words:
        raise RowFault("empty", "the row has no tokens")
    if len(words) != len(tags):
        raise RowFault("shape", f"{len(words)} tokens have {len(tags)} tags")
    return Tagged(
        [faults.text(word, "a token") for word in words],
        [faults.label(tag, mapping.label_names, "a tag") for tag in tags],
    )


def _question_answering(row: Row, mapping: Mapping) -> AnyExample:
    """Answers as SQuAD has them, as a list of objects, or one text whose start stands in a column of its own."""
    question = faults.text(mapping.get(row, "question"), mapping.column(row, "question") or "question")
    context = faults.text(mapping.get(row, "context"), mapping.column(row, "context") or "context")
    texts, starts = _answers(mapping.get(row, "answers"), mapping.get(row, "answer_start"))
    for text, start in zip(texts, starts, strict=True):
        _stands_there(context, text, start)
    return Answered(question, context, texts, starts)


def _seq2seq(row: Row, mapping: Mapping) -> AnyExample:
    """A context stands before its question, with a line feed between; of several answers the first is taken."""
    source = faults.text(mapping.get(row, "source"), mapping.column(row, "source") or "the source")
    target = mapping.get(row, "target")
    if isinstance(target, dict) and isinstance(target.get("text"), list):
        target = target["text"]
    if isinstance(target, list) and target:
        target = target[0]
    context = _optional(row, mapping, "context")
    return Pair(f"{context}\n{source}" if context else source, faults.text(target, "the target"))


def _text(row: Row, mapping: Mapping) -> AnyExample:
    prompt = _optional(row, mapping, "prompt")
    return Plain(prompt, faults.text(mapping.get(row, "text"), mapping.column(row, "text") or "text"))


_RULES: dict[DataFormat, Callable[[Row, Mapping], AnyExample]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "text": _text,
    "preference": _preference,
    "kto": _kto,
    "classification": _classification,
    "token_classification": _token_classification,
    "question_answering": _question_answering,
    "seq2seq": _seq2seq,
}


def _allowed(example: AnyExample, labels: Collection[str]) -> None:
    used = [example.label] if isinstance(example, Classified) else example.tags if isinstance(example, Tagged) else []
    for label in used:
        if label not in labels:
            raise RowFault("label", f"label {files.clean(label, 60)!r} is not one of the plan's labels")


def is_answers(value: object) -> bool:
    """True for {"text": [...], "answer_start": [...]} and for a list of such objects with one answer each."""
    if isinstance(value, list):
        return all(isinstance(each, dict) and each.keys() >= {"text", "answer_start"} for each in value)
    return isinstance(value, dict) and all(isinstance(value.get(name), list) for name in ("text", "answer_start"))


def _answers(held: Any, start: Any) -> tuple[list[str], list[int]]:
    """Texts and starts; none where there is no answer (no text at all)."""
    if held is None or held == "":
        return [], []
    if isinstance(held, str):
        texts, starts = [held], [start]
    elif is_answers(held) and isinstance(held, list):
        texts, starts = [each["text"] for each in held], [each["answer_start"] for each in held]
    elif is_answers(held):
        texts, starts = held["text"], held["answer_start"]
    else:
        raise RowFault("shape", "answers is not an object of the lists text and answer_start")
    if len(texts) != len(starts):
        raise RowFault("shape", f"{len(texts)} answers have {len(starts)} starts")
    return [faults.text(each, "an answer") for each in texts], [_start(each) for each in starts]


def _start(value: Any) -> int:
    if isinstance(value, str) and value.strip().isdecimal():  # as a CSV file has it
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise RowFault("answer", f"answer_start is {files.clean(repr(value), 40)}, not a place in the context")
    return value


def _stands_there(context: str, text: str, start: int) -> None:
    if context[start : start + len(text)] == text:
        return
    for name, encoding, size in (("bytes", "utf-8", 1), ("UTF-16 units", "utf-16-le", 2)):
        raw, sought = context.encode(encoding), text.encode(encoding)
        if raw[start * size :].startswith(sought):
            place = len(raw[: start * size].decode(encoding))
            raise RowFault("units", f"answer_start {start} counts {name}; in characters it is {place}")
    found = context.find(text)
    where = f"it stands at {found}" if found >= 0 else "it stands nowhere in it"
    there, wanted = (files.clean(repr(redact(each)), 60) for each in (context[start : start + len(text)], text))
    raise RowFault("answer", f"at {start} the context has {there}, not {wanted}; {where}")


def _roles(usual: Lookup[str, str], mapping: Mapping) -> Lookup[str, str]:
    return {**usual, **mapping.roles} if mapping.roles else usual


def _tools(row: Row, mapping: Mapping) -> list[dict[str, Any]] | None:
    return chats.tools(mapping.get(row, "tools"))


def _optional(row: Row, mapping: Mapping, name: str) -> str:
    value = mapping.get(row, name)
    return "" if value is None else faults.text(value, name, blank=True)


def _list(value: object, name: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise RowFault("shape", f"{name} is not a list")
    return value


def _side(row: Row, mapping: Mapping, name: str) -> Side:
    value = mapping.get(row, name)
    if value is None and mapping.column(row, name) in row:
        raise RowFault("empty", f"{name} is null")
    if isinstance(value, str):
        return faults.text(value, name)
    return chats.messages([value] if isinstance(value, dict) else value, name, _roles(chats.SHAREGPT_ROLES, mapping))


def _as_messages(side: Side, role: str) -> list[Message]:
    return [{"role": role, "content": side}] if isinstance(side, str) else side


def _shared(one: Side, other: Side) -> int:
    """How much both begin with, at least one message (or character) being left of each."""
    most = min(len(one), len(other)) - 1
    return next((place for place in range(most) if one[place] != other[place]), max(most, 0))


def _differ(chosen: Side, rejected: Side) -> None:
    if chosen == rejected:
        raise RowFault("shape", "chosen and rejected are the same")
