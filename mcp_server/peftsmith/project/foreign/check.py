"""A training script or notebook that peftsmith did not write, looked at without running it.

Knows: the order of the looks, how the findings of other modules get their cell and line, what was not looked at.
Does not know: the rules (rules.py, dangers.py), or the libraries (signatures.py).
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftsmith import files
from peftsmith.finding import Finding, finding
from peftsmith.project import calls, requirements, signatures
from peftsmith.project.foreign import dangers, facts, patch, rules, rules_calls, source, trace, values

if TYPE_CHECKING:
    from peftsmith.machine.environment import Environment

# Asked about their signatures; what else a script calls is named, not judged.
LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets")
# Parts of torch that other packages bring for their hardware; scripts ask for them behind a condition.
_PLUG_INS = tuple(f"torch.{name}" for name in ("hpu", "mlu", "musa", "neuron", "npu", "sdaa", "xla"))
_UNBOUND = "E9,F821,F822,F823"  # ruff's rules for names that do not exist when the line is reached


@dataclass(frozen=True)
class Look:
    """`seen` says what the script uses, what was compared with which versions, and a diff of pure renames."""

    findings: list[Finding]
    seen: dict[str, Any]


def look(path: Path, environment: Environment | None) -> Look:
    """Everything that can be said about a script (.py) or notebook (.ipynb) from its text.

    Modules that lie beside it are followed. Without an environment, calls are compared with the table of old
    spellings only. What could not be read is a finding of severity unknown. Nothing is executed or imported.
    Raises PeftsmithError for a file of another kind, or one that cannot be read.
    """
    main = source.read(path)
    written = {Path(name).stem: source.script(name, text) for name, _, text in main.written if name.endswith(".py")}
    walked = trace.trace(main, lambda module: written.get(module) or _beside(path, module))
    for each in written.values():  # scripts that a notebook writes are run by it, if not imported
        if each not in walked.sources:
            more = trace.trace(each, lambda module: written.get(module) or _beside(path, module))
            walked.sites += more.sites
            walked.imported |= more.imported
            walked.unread += more.unread
            walked.sources += more.sources
    versions = _versions(environment)
    known = facts.gather(walked, dangers.pins(walked.sources), versions, path.parent)
    found = [*_faults(walked.sources), *_unread(known)]
    for name, script in _scripts(known).items():
        home = next(each for each in walked.sources if each.name == name)
        found += [_placed(each, home) for each in signatures.old_spellings(name, script)]
        found += _compared(name, script, environment, home)
    found += _unsloth(known)
    found += [each for home in walked.sources for each in _undefined(home)]
    found += rules.judge(known)
    found += rules_calls.judge(known)
    found += dangers.judge(known, versions)
    seen = rules_calls.models_and_data(known)
    diffs = [patch.diff(home, known.sites) for home in walked.sources]
    return Look(
        _once(found),
        {
            "file": main.name,
            "trainers": [f"{loop.site.name} ({loop.site.where()})" for loop in known.loops],
            **seen,
            "files": [each.name for each in walked.sources],
            "calls": len({id(site.node) for site in known.sites if site.name.startswith(LIBRARIES)}),
            "compared_with": {name: version for name, version in versions.items() if version} if environment else {},
            "not_compared": sorted(_others(known)),
            "several_processes": known.multi,
            "patch": "".join(diffs),
        },
    )


def _beside(path: Path, module: str) -> source.Source | None:
    """The source of a module or package that lies in the script's folder."""
    if not module.isidentifier():
        return None
    for candidate in (path.parent / f"{module}.py", path.parent / module / "__init__.py"):
        if candidate.is_file() and candidate.resolve().is_relative_to(path.parent.resolve()):
            return source.script(candidate.relative_to(path.parent).as_posix(), files.read_text(candidate))
    return None


def _versions(environment: Environment | None) -> dict[str, str | None]:
    if environment is not None:
        return dict(environment.versions)
    pinned = re.findall(r"(?m)^([A-Za-z0-9._-]+)==([^\s;\\]+)", requirements.pinned())
    return {"torch": requirements.torch_version(), **dict(pinned)}


def _scripts(known: facts.Facts) -> dict[str, calls.Script]:
    """The calls of each file as the checks of signatures take them; values that are known stand as literals."""
    scripts = {each.name: calls.Script([], {}) for each in known.trace.sources}
    seen: set[tuple[str, int, str, str]] = set()
    for site in known.sites:
        if not site.name.startswith(LIBRARIES) or site.name.endswith(".__call__"):
            continue
        keywords = {name: _literal(value) for name, value in site.keywords.items()}
        key = (site.source.name, site.line, site.name, ",".join(sorted(keywords)))
        if key not in seen:
            seen.add(key)
            of_instance = site.receiver is not None
            scripts[site.source.name].calls.append(calls.Call(site.name, site.line, keywords, of_instance))
    for file, line, name in sorted(known.trace.imported):
        if name.split(".")[0] in LIBRARIES and file in scripts:
            scripts[file].imported.setdefault(name, line)
    return scripts


def _literal(value: values.Value) -> ast.expr:
    found = next((values.plain(each) for each in values.options(value)), None)
    return ast.Constant(found if isinstance(found, (str, int, float, bool)) else None)


def _compared(
    name: str, script: calls.Script, environment: Environment | None, home: source.Source
) -> Iterator[Finding]:
    """What the installed libraries say; all that they say nothing about is one finding."""
    opened = []
    for each in signatures.check({name: script}, environment):
        name_of = each.evidence.get("callable", "")
        if each.id == "project.call.missing" and name_of.startswith(_PLUG_INS):
            opened.append(name_of)
        elif each.id != "project.call.unchecked":
            yield _placed(each, home)
        elif "callable" not in each.evidence:
            yield dataclasses.replace(each, message=f"{name}: {each.message}")
        elif not each.evidence["callable"].startswith(("transformers.PreTrained", "peft.PeftModel.")):
            opened.append(f"{each.evidence['keyword']}= of {each.evidence['callable']}")
    if opened:
        message = f"{name}: nothing can be said about {', '.join(sorted(set(opened)))}"
        yield finding("project.call.unchecked", message, file=name, arguments=sorted(set(opened)))


def _placed(each: Finding, home: source.Source) -> Finding:
    """A finding that counts lines of the whole text, with the cell and its line instead."""
    line = each.evidence.get("line")
    if not isinstance(line, int) or not home.notebook:
        return each
    message = each.message.replace(f"{home.name} line {line}", home.where(line), 1)
    return dataclasses.replace(each, message=message, evidence={**each.evidence, **home.place(line)})


def _faults(sources: list[source.Source]) -> Iterator[Finding]:
    for home in sources:
        for fault in home.faults:
            message = f"{home.where(fault.line)} does not parse: {fault.message}"
            yield finding("project.script.syntax", message, **home.place(fault.line))


def _unread(known: facts.Facts) -> Iterator[Finding]:
    if not any(site.name.startswith(LIBRARIES) for site in known.sites):
        yield finding("script.calls.none")
    for home, each in known.trace.unread:
        yield finding(
            "script.unread.code", f"{home.where(each.line)}: {each.what}", what=each.what, **home.place(each.line)
        )
    for site in known.sites:
        if site.open and site.name.startswith(LIBRARIES) and not site.name.endswith((".__call__", ".generate")):
            message = f"{site.where()}: the **mapping given to {site.name} was not followed"
            yield finding(
                "script.unread.code", message, what=f"a **mapping of {site.name}", **site.source.place(site.line)
            )


def _undefined(home: source.Source) -> Iterator[Finding]:
    """Names that nothing binds, by ruff."""
    import ruff

    argv = [ruff.find_ruff_bin(), "check", "--isolated", "--no-cache", "--output-format=json", "--target-version=py311"]
    argv += [f"--select={_UNBOUND}", '--config=builtins=["display", "get_ipython", "In", "Out"]', "-"]
    text = "\n".join(home.lines) if not home.faults or home.notebook else ""
    try:
        done = subprocess.run(argv, input=text, capture_output=True, encoding="utf-8", timeout=60, check=False)
        faults = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        yield finding("project.script.unlinted", f"{home.name}: ruff could not be run: {error}")
        return
    for fault in faults:
        line, code = fault["location"]["row"], fault["code"] or "syntax"
        if code.startswith("F"):
            message = f"{home.where(line)}: {code} {fault['message']}"
            yield finding("project.script.lint", message, severity="error", rule=code, **home.place(line))


@cache
def _unsloth_keywords() -> dict[str, list[str]]:
    text = resources.files("peftsmith").joinpath("knowledge", "unsloth.toml").read_text(encoding="utf-8")
    table: dict[str, list[str]] = tomllib.loads(text)["keywords"]
    return table


def _unsloth(known: facts.Facts) -> Iterator[Finding]:
    """Unsloth's functions swallow unknown keywords, so they are compared with a list out of its source."""
    for site in known.sites:
        if site.receiver is not None or not site.name.startswith("unsloth."):
            continue
        accepted = _unsloth_keywords().get(site.name.removeprefix("unsloth."))
        for keyword in site.keywords:
            place: dict[str, Any] = {**site.source.place(site.line), "callable": site.name, "keyword": keyword}
            if accepted is None:
                message = f"{site.where()}: {keyword}= of {site.name}: nothing can be said about it"
                yield finding("project.call.unchecked", message, **place)
            elif keyword not in accepted:
                message = f"{site.where()}: {site.name} ignores {keyword}=, which it does not have"
                yield finding("project.call.unknown_keyword", message, **place)


def _others(known: facts.Facts) -> set[str]:
    """Libraries that the script calls and that were not asked."""
    import sys

    heads = {site.name.split(".")[0] for site in known.sites}
    return heads - {*LIBRARIES, "unsloth"} - sys.stdlib_module_names


def _once(found: list[Finding]) -> list[Finding]:
    """The same finding of the same place once: functions and loops are walked more than once."""
    kept: dict[str, Finding] = {}
    for each in found:
        kept.setdefault(json.dumps([each.id, each.message], ensure_ascii=False), each)
    return list(kept.values())
