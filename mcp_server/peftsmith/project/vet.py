"""Static proof of a project before anything runs: its scripts, its settings, its data rows and its ignore files.

Knows: what must hold of a project's files, and which finding says that it does not.
Does not know: the libraries (worker/jobs/signatures.py asks them), or what the scripts do when they run (twin.py).
"""

from __future__ import annotations

import ast
import fnmatch
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftsmith import files, lock, plan, secrets
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, finding
from peftsmith.project import calls, drift, notebook, requirements, signatures

if TYPE_CHECKING:
    from peftsmith.machine.environment import Environment

RULES = ("E", "F", "B", "S")
# E501: long literals come from the plan. S101: scripts may assert. S108: a base model may lie below /tmp.
# S311: drawing rows is no cryptography. S603, S607: whether argv lists are trusted cannot be seen by a linter.
IGNORED_RULES = ("E501", "S101", "S108", "S311", "S603", "S607")
_BROKEN = ("E9", "F821", "F822", "F823")  # ruff's rules for what fails as soon as the line is reached
_DYNAMIC = {"eval", "exec", "compile", "__import__"}
_PICKLE = ("pickle.", "cPickle.", "dill.", "cloudpickle.", "joblib.load", "shelve.", "torch.load", "pandas.read_pickle")
_SHELL = ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput")
_PLACEHOLDER = re.compile(r"your_[a-z0-9_]+_here")
_MOST = 20


def vet(project: Path, environment: Environment | None) -> list[Finding]:
    """Everything that can be said about a project without running it; no finding is a pass.

    Without an environment, calls are compared with the table of old spellings only, and that the rest is unchecked is
    a finding of severity unknown. Raises PeftsmithError when there is no plan, no lock, or nothing was generated.
    """
    wanted, locked = plan.load(project), lock.load(project)
    if not locked.files:
        raise PeftsmithError(
            "The project has no generated files yet", value=str(project), next_step="Run generate_project first."
        )
    findings = [
        finding("project.file.missing", f"{name} is missing", file=name)
        for name in sorted(locked.files)
        if not (project / name).is_file()
    ]
    todays = requirements.library(wanted) == "peft"  # the library adapters needs an older transformers
    scripts = sorted(path for path in project.glob("*.py") if path.is_file())
    local = {path.stem for path in scripts}
    parsed: dict[str, calls.Script] = {}
    for path in scripts:
        text = files.read_text(path)
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            line = getattr(error, "lineno", None)
            message = f"{path.name} does not parse (line {line}): {error}"
            findings.append(finding("project.script.syntax", message, file=path.name, line=line))
            continue
        parsed[path.name] = calls.read(tree, local)
        findings += _dangers(path.name, tree, parsed[path.name], wanted)
        if todays:
            findings += signatures.old_spellings(path.name, parsed[path.name])
    findings += _lint(project, [path for path in scripts if path.name in parsed])
    findings += signatures.check(parsed, environment, todays=todays)
    findings += drift.find(project, wanted)
    named = {*locked.files, plan.PLAN_FILE, lock.LOCK_FILE, *(path.name for path in scripts)}
    findings += _secrets(project, named - {notebook.FILE})
    findings += notebook.judge(project)
    findings += _ignore_files(project)
    findings += _data(project, wanted)
    return findings


def _dangers(file: str, tree: ast.Module, script: calls.Script, wanted: plan.FineTunePlan) -> Iterator[Finding]:
    """Shells, pickles, text run as code, and code out of model repositories."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _DYNAMIC:
            message = f"{file} line {node.lineno} calls {node.func.id}()"
            yield finding("project.script.dynamic_code", message, file=file, line=node.lineno)
    known = calls.constants(tree)
    for call in script.calls:
        place: dict[str, Any] = {"file": file, "line": call.line}
        where = f"{file} line {call.line}"
        if call.name in _SHELL or (call.name.startswith("subprocess.") and not _is_false(call, "shell", known)):
            yield finding("project.script.shell", f"{where} calls {call.name} through a shell", **place)
        if call.name.startswith(_PICKLE):
            yield finding("project.script.pickle", f"{where} calls {call.name}", **place)
        if not _is_false(call, "trust_remote_code", known):
            pinned = _pinned(call, known)
            if not (wanted.base.trust_remote_code and pinned):
                why = "the plan does not opt in" if not wanted.base.trust_remote_code else "no commit is pinned there"
                yield finding("project.script.remote_code", f"{where} trusts remote code, but {why}", **place)
    for name, line in script.imported.items():
        if name.split(".")[0] in ("pickle", "cPickle", "dill", "cloudpickle", "shelve"):
            yield finding("project.script.pickle", f"{file} line {line} imports {name}", file=file, line=line)


def _is_false(call: calls.Call, keyword: str, known: dict[str, object]) -> bool:
    """True where the keyword is absent or surely False."""
    value = call.keywords.get(keyword)
    if isinstance(value, ast.Name):
        return known.get(value.id, True) is False
    return value is None or (isinstance(value, ast.Constant) and value.value is False)


def _pinned(call: calls.Call, known: dict[str, object]) -> bool:
    """True where the call names a full commit: of the repository, or of the code that a local copy points to."""
    value = call.keywords.get("revision", call.keywords.get("code_revision"))
    if isinstance(value, ast.Name):
        return files.is_commit(str(known.get(value.id)))
    return isinstance(value, ast.Constant) and files.is_commit(str(value.value))


def _lint(project: Path, scripts: list[Path]) -> Iterator[Finding]:
    if not scripts:
        return
    import ruff

    try:
        argv = [
            ruff.find_ruff_bin(),
            "check",
            "--isolated",
            "--no-cache",
            "--output-format=json",
            "--target-version=py311",
        ]
        argv += [f"--select={','.join(RULES)}", f"--ignore={','.join(IGNORED_RULES)}", "--"]
        done = subprocess.run(
            [*argv, *(path.name for path in scripts)],
            cwd=project,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=False,
        )
        faults = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        yield finding("project.script.unlinted", f"ruff could not be run: {error}")
        return
    for fault in faults[:_MOST]:
        name, line, code = Path(fault["filename"]).name, fault["location"]["row"], fault["code"] or "syntax"
        yield finding(
            "project.script.lint",
            f"{name} line {line}: {code} {fault['message']}",
            severity="error" if code.startswith(_BROKEN) else "warning",
            file=name,
            line=line,
            rule=code,
        )


def _secrets(project: Path, names: set[str]) -> Iterator[Finding]:
    for name in sorted(names):
        path = project / name
        if not path.is_file():
            continue
        text = files.read_text(path)
        for hit in secrets.find_in_text(text):
            if not secrets.allowed(text, hit):
                message = f"{name} line {hit.line}: {secrets.title(hit.kind)}"
                yield finding("project.script.secret", message, file=name, line=hit.line, kind=hit.kind)


def _ignore_files(project: Path) -> Iterator[Finding]:
    ignore = project / ".gitignore"
    if ignore.is_file():
        patterns = files.read_text(ignore).splitlines()
        exposed = [name for name in (".env", ".env.local") if not _ignored(name, patterns)]
        if exposed or _ignored(".env.example", patterns):
            yield finding("project.gitignore.env_exposed", exposed=exposed)
    example = project / ".env.example"
    if example.is_file():
        told = ""  # the comment above, down to the next empty line
        for number, line in enumerate(files.read_text(example).splitlines(), start=1):
            told = f"{told}{line}" if line.lstrip().startswith("#") else "" if not line.strip() else told
            name, equals, value = line.partition("=")
            secret = re.search(r"TOKEN|KEY|SECRET|PASS|CREDENTIAL", name, re.IGNORECASE)
            if equals and secret and not line.lstrip().startswith("#") and not _PLACEHOLDER.fullmatch(value.strip()):
                message = f".env.example line {number}: the value is no placeholder"
                yield finding("project.env_example.no_placeholder", message, line=number)
            if equals and secret and not line.lstrip().startswith("#") and "https://" not in told:
                message = f".env.example line {number} does not say where to get {files.clean(name.strip(), 60)}"
                yield finding("project.env_example.no_source", message, line=number)


def _ignored(name: str, patterns: list[str]) -> bool:
    """Whether git would ignore a file of this name in the project's folder: the last pattern that fits decides."""
    ignored = False
    for pattern in patterns:
        stripped = pattern.strip()
        if not stripped or stripped.startswith("#"):
            continue
        body = stripped.removeprefix("!").removeprefix("**/").removeprefix("/")
        if fnmatch.fnmatchcase(name, body):
            ignored = not stripped.startswith("!")
    return ignored


def _data(project: Path, wanted: plan.FineTunePlan) -> Iterator[Finding]:
    """Every row of every file as the scripts will take it: they stop at the first row that they cannot use."""
    from peftsmith.data import formats, normal

    mapping = formats.Mapping.of_plan(wanted.data)
    apart = wanted.alone()
    for split, name in wanted.splits().items():
        data = apart[split.rpartition(".")[0]].data
        bad: list[str] = []
        count = rows = 0
        try:
            for row in formats.read_rows(project / name):
                rows += 1
                reason = row.fault
                if row.value is not None:
                    try:
                        example = formats.to_example(row.value, mapping, data.labels)
                        reason = normal.unprepared(row.value, example, data) or None
                    except ValueError as error:
                        reason = str(error)
                if reason is not None:
                    count += 1
                    bad += [f"row {row.number}: {files.clean(reason, 120)}"] if len(bad) < _MOST else []
        except PeftsmithError as error:
            yield finding("project.data.unread", f"data.{split} ({name}): {error.cause}", split=split)
            continue
        if count:
            message = f"{count} of {rows} rows of data.{split} ({name}) cannot be used, the first: {bad[0]}"
            yield finding("project.data.unusable_row", message, split=split, count=count, rows=bad)
