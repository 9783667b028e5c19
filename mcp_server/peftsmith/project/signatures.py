"""Do the scripts' calls fit the libraries: by asking the installed ones, and by a table of old spellings.

Knows: how to put the question to the training environment once and keep its answers, and knowledge/spellings.toml.
Does not know: how an answer is found (worker/jobs/signatures.py), or where calls come from (calls.py).
"""

from __future__ import annotations

import ast
import fnmatch
import json
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftsmith import files
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, finding
from peftsmith.project.calls import Call, Script

if TYPE_CHECKING:
    from peftsmith.machine.environment import Environment

TIMEOUT = 120.0  # seconds; a cold worker imports the libraries first and has a limit of its own for that
Answers = dict[str, dict[str, Any]]  # callable -> {"missing": cause | None, "keywords": {keyword: [verdict, nearest]}}


@cache
def spellings() -> dict[str, list[dict[str, Any]]]:
    """The table in knowledge/spellings.toml: entries under "keyword", "name" and "value"."""
    text = resources.files("peftsmith").joinpath("knowledge", "spellings.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def old_spellings(file: str, script: Script) -> Iterator[Finding]:
    """Names that the supported versions no longer have, with today's; needs no environment."""
    table = spellings()
    for call in script.calls:
        for entry in table["keyword"]:
            if entry["old"] in call.keywords and _fits(call, entry["on"]):
                yield _old(file, call.line, f"{entry['old']}= of {call.name}", entry)
        for entry in table["value"]:
            value = call.keywords.get(entry["keyword"])
            if isinstance(value, ast.Constant) and value.value == entry["old"] and _fits(call, entry["on"]):
                yield _old(file, call.line, f'{entry["keyword"]}="{entry["old"]}" of {call.name}', entry)
    for entry in table["name"]:
        used = {call.name: call.line for call in reversed(script.calls)} | script.imported
        if entry["old"] in used:
            yield _old(file, used[entry["old"]], entry["old"], entry)


def _fits(call: Call, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(call.name, pattern) for pattern in patterns)


def _old(file: str, line: int, what: str, entry: dict[str, Any]) -> Finding:
    return finding(
        "project.spelling.old",
        f"{file} line {line}: {what} is no longer right, write {entry['write']}",
        severity="warning" if entry.get("works") else "error",
        fix=f"Write {entry['write']}.",
        file=file,
        line=line,
        old=entry["old"],
        write=entry["write"],
    )


def check(scripts: Mapping[str, Script], environment: Environment | None, *, todays: bool = True) -> list[Finding]:
    """What the installed libraries say about every call and every imported name of theirs.

    No environment, or one that does not answer, is the finding project.call.unchecked (unknown). Answers are kept in
    the cache by the environment's key, so that a second check asks only about what is new. With `todays` False the
    libraries are older than the table of spellings, so that only they are asked.
    """
    asked: dict[str, set[str]] = {}
    for script in scripts.values():
        for call in script.calls:
            if not _standard(call.name):
                asked.setdefault(call.name, set()).update(call.keywords)
        for name in script.imported:
            if not _standard(name):
                asked.setdefault(name, set())
    if not asked:
        return []
    if environment is None:
        return [
            finding("project.call.unchecked", "no training environment: no call was compared", callables=len(asked))
        ]
    try:
        answers = _answers(asked, environment)
    except PeftsmithError as error:
        return [finding("project.call.unchecked", f"the training environment did not answer: {error.cause}")]
    return [each for file, script in scripts.items() for each in _judge(file, script, answers, todays)]


def _standard(name: str) -> bool:
    return name.split(".")[0] in sys.stdlib_module_names


def _judge(file: str, script: Script, answers: Answers, todays: bool) -> Iterator[Finding]:
    old_names = {entry["old"] for entry in spellings()["name"]}
    missing: set[str] = set()
    used = [*script.calls, *(Call(name, line) for name, line in script.imported.items())]
    for call in used:
        name, line = call.name, call.line
        if _standard(name):
            continue
        answer = answers.get(name, {"missing": None, "keywords": {}})
        place: dict[str, Any] = {"file": file, "line": line, "callable": name}
        if answer["missing"] is not None and not call.of_instance:
            if name not in missing and name not in old_names:
                message = f"{file} line {line}: {name} is not in the installed library ({answer['missing']})"
                yield finding("project.call.missing", message, **place)
            missing.add(name)
            continue
        for keyword in call.keywords:
            verdict, nearest = answer["keywords"].get(keyword, ["open", None])
            hint = f", did you mean {nearest}?" if nearest else ""
            what = f"{file} line {line}: {keyword}= of {name}"
            if todays and _in_table(name, keyword):
                continue
            if verdict == "unknown":
                message = f"{what} does not exist{hint}"
                yield finding("project.call.unknown_keyword", message, keyword=keyword, nearest=nearest, **place)
            elif verdict == "deprecated":
                yield finding(
                    "project.call.deprecated", f"{what} is deprecated{hint}", keyword=keyword, nearest=nearest, **place
                )
            elif verdict == "open":
                yield finding(
                    "project.call.unchecked", f"{what}: nothing can be said about it", keyword=keyword, **place
                )


def _in_table(name: str, keyword: str) -> bool:
    """Old spellings are reported once, by `old_spellings`, which also knows what to write."""
    entries = spellings()["keyword"]
    return any(each["old"] == keyword and _fits(Call(name, 0), each["on"]) for each in entries)


def _answers(asked: Mapping[str, set[str]], environment: Environment) -> Answers:
    from peftsmith.worker import client

    job = Path(client.__file__).with_name("jobs") / "signatures.py"
    kept = files.cache_folder("signatures") / f"{environment.key}-{files.sha256_file(job)[:12]}.json"
    known = _load(kept)
    new = {
        name: sorted(keywords)
        for name, keywords in asked.items()
        if name not in known or keywords - known[name]["keywords"].keys()
    }
    if new:
        told = client.call(environment, "signatures", {"calls": new}, timeout=TIMEOUT)
        for name, answer in _by_name(new, told).items():
            before = known.get(name, {"keywords": {}})["keywords"]
            known[name] = {"missing": answer["missing"], "keywords": {**before, **answer["keywords"]}}
        files.write_json(kept, known)
    return known


def _load(kept: Path) -> Answers:
    try:
        answers: Answers = json.loads(kept.read_text(encoding="utf-8"))
        return {
            name: {"missing": each["missing"], "keywords": dict(each["keywords"])} for name, each in answers.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # a cache that is gone or damaged is asked for again


def _by_name(asked: Mapping[str, list[str]], told: dict[str, Any]) -> Answers:
    """The job's answer, sorted by callable. A keyword of which it says nothing bad was found, unless all are open."""
    missing = {each["callable"]: each["cause"] for each in told["missing"]}
    verdicts = {(each["callable"], each["keyword"]): ("unknown", each["nearest"]) for each in told["unknown"]}
    verdicts |= {(each["callable"], each["keyword"]): ("deprecated", each["nearest"]) for each in told["deprecated"]}
    answers: Answers = {}
    for name, keywords in asked.items():
        default = ("open", None) if name in told["open"] else ("ok", None)
        if name in missing:
            default = ("open", None)
        found = {keyword: list(verdicts.get((name, keyword), default)) for keyword in keywords}
        answers[name] = {"missing": missing.get(name), "keywords": found}
    return answers
