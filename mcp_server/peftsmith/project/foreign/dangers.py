"""What a stranger's script does besides training: shell commands, packages, pickles, code from repositories, secrets.

Knows: which commands and calls deserve a word, and that a secret itself is never shown.
Does not know: training (rules.py).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from peftsmith import files, secrets
from peftsmith.finding import Finding, finding
from peftsmith.project.foreign.facts import Facts
from peftsmith.project.foreign.source import Source
from peftsmith.project.foreign.values import Site, options, plain, possibly, surely, unclear

# The libraries whose versions decide what a call may say.
WATCHED = ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "datasets", "unsloth")
_PICKLES = ("pickle.load", "pickle.loads", "dill.load", "joblib.load", "cloudpickle.load", "pandas.read_pickle")
_RISKY = re.compile(
    r"\brm\s+-\w*r|\b(curl|wget)\b.*\|\s*(sudo\s+)?(ba|z)?sh\b|\bsudo\b|\bchmod\s+777|\bdd\s+if=|\bmkfs"
)
_TOKEN_ARGUMENT = re.compile(r"--?(token|hf[-_]token|api[-_]key|password|key)[= ]+(?P<value>\S+)")
_PIP = re.compile(r"(?:^|[;&|]\s*)(?:\S*python[\d.]*\s+-m\s+)?(?:uv\s+)?pip3?\s+install\s+(?P<rest>[^;&|]*)")
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?(?P<version>\s*(?:[<>=!~]=?|===).*)?")
_SHELLS = ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "pty.spawn")


def judge(facts: Facts, installed: Mapping[str, str | None]) -> Iterator[Finding]:
    """Findings about everything but training. `installed` are the versions that calls are compared with."""
    for source in facts.trace.sources:
        yield from _secrets(source)
        yield from _shell(source, installed)
    for site in facts.sites:
        yield from _call(site)


def pins(sources: list[Source]) -> dict[str, str]:
    """The exact versions that a notebook installs itself, of the libraries that matter."""
    found = {}
    for source in sources:
        for each in source.shell:
            for name, version in _packages(each.command):
                if name in WATCHED and version.startswith("==") and "*" not in version:
                    found[name] = version[2:].strip()
    return found


def _secrets(source: Source) -> Iterator[Finding]:
    for cell, what, text in source.raw:
        for hit in secrets.find_in_text(text):
            if secrets.allowed(text, hit):
                continue
            place: dict[str, Any] = {"file": source.name, "line": hit.line, "kind": hit.kind, "where": what}
            if cell is not None:
                place["cell"] = cell
            where = f"{source.name}{f' cell {cell}' if cell is not None else ''} line {hit.line}"
            printed = " of its output" if what == "output" else ""
            message = f"{where}{printed}: {secrets.title(hit.kind)}"
            yield finding("project.script.secret", message, **place)


def _shell(source: Source, installed: Mapping[str, str | None]) -> Iterator[Finding]:
    for each in source.shell:
        where, place = source.where(each.line), source.place(each.line)
        shown = files.clean(secrets.redact(each.command), 300)
        token = _TOKEN_ARGUMENT.search(each.command)
        if token:
            message = f"{where}: a credential is passed on the command line, where every process can read it"
            yield finding("script.shell.token", message, option=token[1], **place)
        if _RISKY.search(each.command):
            yield finding("script.shell.risky", f"{where}: {shown}", command=shown, **place)
        packages = _packages(each.command)
        loose = [name for name, version in packages if not version.startswith("==")]
        if loose:
            message = f"{where} installs {', '.join(loose)} without a version"
            yield finding("script.pip.unpinned", message, packages=loose, **place)
        for name, version in packages:
            have, wanted = installed.get(name), version.removeprefix("==")
            other = have and version.startswith("==") and wanted.split("+")[0] != have.split("+")[0]
            if name in WATCHED and other:
                message = f"{where} installs {name} {wanted}, and its calls were compared with {have}"
                evidence = {"package": name, "wanted": wanted, "compared": have, **place}
                yield finding("script.pip.other_version", message, **evidence)
        if not packages and not token and not _RISKY.search(each.command):
            yield finding("script.shell.command", f"{where}: {shown}", command=shown, **place)


def _packages(command: str) -> list[tuple[str, str]]:
    """(package, version condition or empty) of a pip install; paths and addresses count as unpinned."""
    found: list[tuple[str, str]] = []
    for match in _PIP.finditer(command):
        try:
            words = shlex.split(match["rest"], comments=True)
        except ValueError:
            words = match["rest"].split()
        skip = False
        for word in words:
            if skip or word.startswith("-"):
                skip = word in (
                    "-r",
                    "--requirement",
                    "-c",
                    "--index-url",
                    "--extra-index-url",
                    "-i",
                    "-f",
                    "--find-links",
                )
                continue
            requirement = _REQUIREMENT.fullmatch(word)
            if requirement:
                found.append((requirement["name"].lower(), (requirement["version"] or "").strip()))
            else:
                found.append((files.clean(secrets.redact(word), 80), ""))
    return found


def _call(site: Site) -> Iterator[Finding]:
    place: dict[str, Any] = site.source.place(site.line)
    trusts = site.keywords.get("trust_remote_code")
    if trusts is not None and not surely(trusts, False):
        revision = plain(site.keywords.get("revision", site.keywords.get("code_revision")))
        pinned = isinstance(revision, str) and files.is_commit(revision)
        said = "at a pinned commit" if pinned else "and no commit is pinned"
        maybe = "" if possibly(trusts, True) else "perhaps "
        message = f"{site.where()}: {maybe}runs code of the model's repository, {said}"
        yield finding("script.code.remote", message, severity="info" if pinned else "warning", pinned=pinned, **place)
    if site.name.startswith(_PICKLES):
        yield finding("script.code.pickle", f"{site.where()}: {site.name} runs what the file says", **place)
    if site.name == "torch.load" and possibly(site.get("weights_only"), False):
        yield finding("script.code.pickle", f"{site.where()}: torch.load with weights_only=False", **place)
    if site.name.endswith(".save_pretrained") and possibly(site.keywords.get("safe_serialization"), False):
        yield finding("script.code.pickle", f"{site.where()}: saves pickled weights", severity="info", **place)
    shell = site.keywords.get("shell")
    if site.name in _SHELLS or (site.name.startswith("subprocess.") and shell is not None and not surely(shell, False)):
        known = next((plain(each) for each in options(site.args[0] if site.args else None)), None)
        shown = files.clean(secrets.redact(known), 200) if isinstance(known, str) else "a computed command"
        risky = isinstance(known, str) and bool(_RISKY.search(known))
        id_ = "script.shell.risky" if risky else "script.shell.command"
        yield finding(id_, f"{site.where()}: {shown}", command=shown, **place)
        if unclear(site.args[0] if site.args else None):
            message = f"{site.where()}: a computed command was not read"
            yield finding("script.unread.code", message, what="a computed command", **place)
