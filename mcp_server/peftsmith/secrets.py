"""Finding keys, tokens and passwords in text and files without ever showing them.

Knows: about 30 kinds of credential by their shape, what a placeholder looks like, redaction.
Does not know: whether a key is still valid (nothing is sent anywhere), and how a folder is walked (secret_files.py).

The guard in hooks/ loads this file by its path under whatever `python3` is there: Python 3.8 syntax, standard
library only, and nothing of peftsmith outside of `scan`. Every pattern starts with a literal and may begin only where a
word begins, so that looking through a text takes time in proportion to its length.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Callable, Iterator, NamedTuple, Sequence  # noqa: UP035 - Python 3.8

if TYPE_CHECKING:
    from pathlib import Path

    from peftsmith.secret_files import Scan

ALLOW_MARK = "peftsmith: allow-secret"
_NOT_WORD = r"(?<![A-Za-z0-9_-]{0})|(?<=\\[nrt]{0})|(?<=%3D{0})|(?<=\[\dm{0})|(?<=\[\d\dm{0})"
_GAP = r"(?:[\s\"',\\]|(?<=\\)[nrt]){1,60}"  # white space, also as JSON or a notebook's list of lines writes it


class Hit(NamedTuple):
    """One credential: `kind`, 1-based `line`, and the value's place in the text (`start` to `end`)."""

    kind: str
    line: int
    start: int
    end: int


class _Kind(NamedTuple):
    name: str
    hint: str  # the pattern can match only where this lies in the text
    pattern: re.Pattern[str]
    accept: Callable[[re.Match[str]], bool]


# --- what is not a secret ---------------------------------------------------------------------------------------
_PLACEHOLDER = re.compile(
    r"your[_-]|[_-]here\b|x{5}|\*{3}|\.{3}|example|placeholder|change[_-]?me|redacted|dummy|insert[_-]|replace[_-]"
    r"|abcdefgh|12345678|0{8}|<[^>]*>|\{[^}]*\}|\$[A-Za-z_(]|%\w+%|-goes-|_goes_",
    re.IGNORECASE,
)
_PLAIN_RUNS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", re.IGNORECASE)


def is_placeholder(value: str) -> bool:
    """True for a secret's stand-in: `your_service_key_here`, `hf_xxx`, `${TOKEN}`, few distinct letters."""
    return bool(_PLACEHOLDER.search(value)) or len(set(value)) < min(8, len(value))


def _random_looking(value: str) -> bool:
    """True for letters and digits without the runs of plain words: a key, and not an identifier or a version."""
    runs = _PLAIN_RUNS.findall(value)
    digits = [run for run in runs if run.isdigit()]
    if not digits:
        return len(value) >= 20 and 2 * len(value) < 5 * len(runs)
    if len(digits) == len(runs):
        return False
    separators = len(value) - sum(map(len, runs))
    wordy = sum(map(len, runs)) >= 3 * len(runs)
    if wordy and (len(digits) <= 1 or separators):
        return False
    counts = Counter(value)
    return -sum(n / len(value) * math.log2(n / len(value)) for n in counts.values()) >= 3.0


def _whole(match: re.Match[str]) -> bool:
    return not is_placeholder(match.group("value"))


def _openai(match: re.Match[str]) -> bool:
    value = match.group("value")
    marked = re.search(r"[A-Za-z0-9_-]{18}T3BlbkFJ[A-Za-z0-9_-]{18}", value[:400])
    return (bool(marked) or value.startswith(("sk-proj-", "sk-svcacct-", "sk-admin-"))) and _whole(match)


def _before(match: re.Match[str], size: int) -> str:
    text, start = match.string, match.start("value")
    return text[max(0, start - size) : start].lower()


_HASH_WORDS = re.compile(r"commit|sha|hash|digest|revision|\brev\b|checksum|md5|etag|\bgit\b|tree/|blob/")


def _wandb_hex(match: re.Match[str]) -> bool:
    """40 hex digits are a W&B key only on a line that names wandb, and not as a hash, or in wandb's key setting."""
    before = _before(match, 200)
    same_line = before[before.rfind("\n") + 1 :]
    near = same_line if "wandb" in same_line else "\n".join(before.split("\n")[-4:])
    place = near.rfind("wandb")
    if place < 0 or before[-1:] in ("/", "@", "#") or _HASH_WORDS.search(near[place:]):
        return False
    named = near is same_line or re.search(r"(?:key|password|token)\W{0,8}$", near)
    return bool(named) and not is_placeholder(match.group("value"))


def _kaggle_hex(match: re.Match[str]) -> bool:
    before = _before(match, 200)
    named = re.search(r"key\W{0,8}$", before) and (
        "kaggle" in before or re.search(r"username\W{3,12}[\w-]{1,60}\W", before)
    )
    return bool(named) and not is_placeholder(match.group("value"))


def _url_password(match: re.Match[str]) -> bool:
    user, value = match.group("user"), match.group("value")
    plain = re.sub(r"%[0-9A-Fa-f]{2}", "", value)
    if value == user or (plain.isalpha() and len(plain) < 12) or is_placeholder(value) or len(value) < 6:
        return False  # words such as `password` stand in documentation
    return bool(re.search(r"[a-z][a-z0-9+.-]{1,20}$", match.string[max(0, match.start() - 24) : match.start()], re.I))


def _database(match: re.Match[str]) -> bool:
    scheme = match.string[max(0, match.start() - 24) : match.start()].lower()
    known = r"(?:postgres|postgresql|mysql|mariadb|mongodb|redis|rediss|amqp|amqps|mssql|oracle|clickhouse|snowflake)"
    return bool(re.search(rf"{known}(?:\+[a-z0-9_]+)?$", scheme)) and _url_password(match)


# A literal given to a name: found from the name's last word, because searching for words is fast.
_LAST_WORDS = ("key", "token", "secret", "password", "passwd", "passphrase", "credential", "credentials", "bearer")
_KEY_NAME = re.compile(r"(?:api|access|secret|account|private|auth|kaggle|encryption|signing|service)[_ -]?key$", re.I)
_SPECIAL_TOKEN = re.compile(
    r"(?:eos|bos|pad|unk|cls|sep|mask|image|video|audio|special|stop|end|start)_token$|publickeytoken$", re.I
)
_NOT_A_VALUE = re.compile(r"://|^sha\d+[:-]|\.(?:json|ya?ml|toml|txt|pem|key|env|py|safetensors)$", re.I)
_LITERAL = re.compile(
    r"\\{0,4}[\"']?\]?(?P<gap>[ \t]{0,8}(?::=|=>|[:=,])[ \t]{0,8}|[ \t]{1,8})(?:[Bb]earer[ ])?"
    r"(?:\\{0,4}(?P<quote>[\"'])(?:\\{0,4}[\"']){0,2}(?P<quoted>[^\"'\s\\]{8,400})\\{0,4}[\"']"
    r"|(?P<bare>[A-Za-z0-9+/_.~-]{8,}={0,2})(?![\w.~/+(\[{$-]))"
)
_VENDORS = {"comet": "comet-key", "neptune": "neptune-token", "kaggle": "kaggle-key", "wandb": "wandb-key"}
_VENDORS.update({"azure": "azure-key", "aws": "aws-secret-key", "openai": "openai-key", "github": "github-token"})


def _assignments(text: str, lowered: str) -> Iterator[tuple[int, int, str]]:
    """Start, end and kind of every random-looking literal that is given to a name such as api_key or token."""
    for word in _LAST_WORDS:
        at = lowered.find(word)
        while at >= 0:
            match = _LITERAL.match(text, at + len(word))
            at = lowered.find(word, at + len(word))
            if match:
                group = "quoted" if match.group("quote") else "bare"
                name = _name_before(text, match.start())
                if _assigned(name, match, match.group(group)):
                    vendor = next(
                        (kind for vendor, kind in _VENDORS.items() if vendor in name.lower()), "assigned-secret"
                    )
                    yield (*match.span(group), vendor)


def _name_before(text: str, end: int) -> str:
    start = end
    while start > max(0, end - 60) and (text[start - 1].isalnum() or text[start - 1] in "_.- "):
        start -= 1
    return text[start:end]


def _assigned(name: str, match: re.Match[str], value: str) -> bool:
    if _UUID.fullmatch(value):
        return _names_a_secret(name) and not name.lower().endswith("token")
    if len(value) < (12 if match.group("quote") else 16) or not _random_looking(value):
        return False
    last = name.split(" ")[-1]
    if not match.group("gap").strip(" \t") and not (last.startswith("--") or last.lower() == "bearer"):
        return False  # `token value` counts as an assignment on a command line only
    return _names_a_secret(name) and not is_placeholder(value) and not _NOT_A_VALUE.search(value)


def _names_a_secret(name: str) -> bool:
    return not _SPECIAL_TOKEN.search(name) and (not name.lower().endswith("key") or bool(_KEY_NAME.search(name)))


# --- the kinds, the particular ones first -----------------------------------------------------------------------
def _shaped(name: str, literal: str, rest: str, accept: Callable[[re.Match[str]], bool] = _whole) -> _Kind:
    """A kind whose value is `literal` followed by the pattern `rest`, at the beginning of a word."""
    bounds = _NOT_WORD.replace("{0}", re.escape(literal))
    return _Kind(name, literal, re.compile(rf"(?P<value>{re.escape(literal)}(?:{bounds}){rest})"), accept)


_NEPTUNE = "eyJhcGlfYWRkcmVzcyI6"  # {"api_address": in base64
_END = r"(?![A-Za-z0-9_])"
_PEM = r"(?:(?:RSA|EC|DSA|OPENSSH|ENCRYPTED|PGP) )?PRIVATE KEY(?: BLOCK)?-----"
_PEM_BODY = r"[A-Za-z0-9+/=\s\\\"',:-]{0,120}[A-Za-z0-9+/]{40}[A-Za-z0-9+/=\s\\\"',]{0,16000}"
_COLON = r"[\s\\n\"']{1,10}:[\s\\n\"']{1,10}"
_USER_AND_PASSWORD = re.compile(r"://(?P<user>[^\s:/@\"'\\]{0,100}):(?P<value>[^\s/@:,\"'\\]{1,200})@(?=[\w\[.-])")
_AZURE_SECRET = re.compile(r"\dQ~(?<![\w~.-]{4}\dQ~)(?P<value>[\w~.-]{31,34})(?![\w~.-])")
_NETRC = re.compile(
    rf"machine{_GAP}[\w.-]{{1,200}}{_GAP}login{_GAP}[^\s\"'\\,]{{1,200}}{_GAP}password{_GAP}"
    r"(?P<value>[^\s\"'\\,]{6,200})"
)

KINDS = (
    _shaped("huggingface-token", "hf_", rf"[A-Za-z0-9]{{34}}{_END}"),
    _shaped("huggingface-org-token", "api_org_", rf"[A-Za-z0-9]{{34}}{_END}"),
    _shaped("wandb-key", "wandb_v1_", rf"[A-Za-z0-9_]{{77}}{_END}"),
    _shaped("anthropic-key", "sk-ant-", r"[a-z]{2,8}\d\d-[\w-]{40,200}"),
    _shaped("openrouter-key", "sk-or-v1-", rf"[0-9a-f]{{64}}{_END}"),
    _shaped("openai-key", "sk-", r"[A-Za-z0-9_-]{38,400}", _openai),
    _shaped("github-token", "ghp_", rf"[A-Za-z0-9]{{36,251}}{_END}"),
    _shaped("github-token", "gho_", rf"[A-Za-z0-9]{{36,251}}{_END}"),
    _shaped("github-token", "ghs_", rf"[A-Za-z0-9]{{36,251}}{_END}"),
    _shaped("github-token", "ghu_", rf"[A-Za-z0-9]{{36,251}}{_END}"),
    _shaped("github-token", "ghr_", rf"[A-Za-z0-9]{{36,251}}{_END}"),
    _shaped("github-token", "github_pat_", rf"[A-Za-z0-9]{{22}}_[A-Za-z0-9]{{59}}{_END}"),
    _shaped("gitlab-token", "glpat-", rf"[A-Za-z0-9_-]{{20,50}}{_END}"),
    _shaped("aws-access-key", "AKIA", rf"[A-Z2-7]{{16}}{_END}"),
    _shaped("aws-access-key", "ASIA", rf"[A-Z2-7]{{16}}{_END}"),
    _shaped("google-api-key", "AIza", rf"[A-Za-z0-9_-]{{35}}{_END}"),
    _Kind(
        "gcp-service-account", "private_key",
        re.compile(rf"private_key{_COLON}(?P<value>-----BEGIN {_PEM}{_PEM_BODY})"), lambda m: True,
    ),
    _Kind("private-key", "-----BEGIN", re.compile(rf"(?P<value>-----BEGIN {_PEM}{_PEM_BODY})"), lambda m: True),
    _Kind("azure-storage-key", "AccountKey=", re.compile(r"AccountKey=(?P<value>[A-Za-z0-9+/]{86}==)"), _whole),
    _Kind("azure-client-secret", "Q~", _AZURE_SECRET, _whole),
    _shaped("slack-token", "xox", r"[abeoprs]-[A-Za-z0-9-]{20,250}"),
    _shaped("slack-token", "xapp-", r"\d-[A-Za-z0-9-]{30,250}"),
    _Kind(
        "slack-webhook", "hooks.slack.com/",
        re.compile(r"hooks\.slack\.com/services/(?P<value>T[A-Z0-9]{6,12}/B[A-Z0-9]{6,12}/[A-Za-z0-9]{20,30})"), _whole,
    ),
    _shaped("kaggle-key", "KGAT_", rf"[0-9a-f]{{32}}{_END}"),
    _Kind("kaggle-key", "key", re.compile(r"(?<![A-Za-z0-9])(?P<value>[0-9a-f]{32})(?![A-Za-z0-9])"), _kaggle_hex),
    _Kind("wandb-key", "wandb", re.compile(r"(?<![A-Za-z0-9])(?P<value>[0-9a-f]{40})(?![A-Za-z0-9])"), _wandb_hex),
    _Kind("netrc-password", "machine", _NETRC, _whole),
    _shaped("neptune-token", _NEPTUNE, r"[A-Za-z0-9+/=_-]{40,2000}", lambda m: True),
    _shaped("jwt", "eyJ", r"[\w-]{10,4000}\.eyJ[\w-]{10,8000}\.[\w-]{20,2000}", lambda m: True),
    _shaped("replicate-token", "r8_", rf"[A-Za-z0-9]{{37}}{_END}"),
    _shaped("groq-key", "gsk_", rf"[A-Za-z0-9]{{52}}{_END}"),
    _shaped("pypi-token", "pypi-AgEI", r"[\w-]{50,400}"),
    _shaped("npm-token", "npm_", rf"[A-Za-z0-9]{{36}}{_END}"),
    _Kind("database-url", "://", _USER_AND_PASSWORD, _database),
    _Kind("basic-auth-url", "://", _USER_AND_PASSWORD, _url_password),
)  # fmt: skip
TITLES = {"jwt": "JSON Web Token", "database-url": "password in a database URL", "basic-auth-url": "password in a URL"}


def hints() -> tuple[str, ...]:
    """Without one of these in it (case aside) a text holds no credential that find_in_text knows."""
    return ("key", "token", "secret", "pass", "credential", "bearer", *(kind.hint for kind in KINDS))


def find_in_text(text: str) -> list[Hit]:
    """Every credential in `text`, in order and without overlap; a particular kind wins over a general one."""
    lowered = text.lower()
    if len(lowered) != len(text):  # a few letters grow when lowered, and places would shift
        lowered = "".join(c.lower() if c.isascii() else c for c in text)
    spans = [(start, end, len(KINDS), name) for start, end, name in _assignments(text, lowered)]
    for rank, kind in enumerate(KINDS):
        if kind.hint.lower() in lowered:
            spans += [(*m.span("value"), rank, kind.name) for m in kind.pattern.finditer(text) if kind.accept(m)]
    merged: list[tuple[int, int, int, str]] = []
    for start, end, rank, name in sorted(spans):
        if merged and start < merged[-1][1]:
            before = merged.pop()
            best = min(before, (start, end, rank, name), key=lambda span: span[2])
            merged.append((before[0], max(before[1], end), best[2], best[3]))
        else:
            merged.append((start, end, rank, name))
    hits, line, seen = [], 1, 0
    for start, end, _, name in merged:
        line += text.count("\n", seen, start)
        seen = start
        hits.append(Hit(name, line, start, end))
    return hits


def redact(text: str) -> str:
    """`text` with every credential replaced by `[redacted KIND]`."""
    parts, done = [], 0
    for hit in find_in_text(text):
        parts += [text[done : hit.start], f"[redacted {hit.kind}]"]
        done = hit.end
    return "".join([*parts, text[done:]])


def redact_parts(parts: Sequence[str]) -> list[str]:
    """As `redact` on the text that `parts` make up: a credential that crosses a border goes from both sides."""
    whole, made, first = "".join(parts), [], 0
    hits = find_in_text(whole)
    for part in parts:
        kept, done, end = [], first, first + len(part)
        for hit in hits:
            if first < hit.end and hit.start < end:
                kept += [whole[done : hit.start], f"[redacted {hit.kind}]" if hit.start >= first else ""]
                done = min(hit.end, end)
        # Once more by itself: what stands before a part can keep a credential from being seen as one
        made.append(redact("".join([*kept, whole[done:end]])))
        first = end
    return made


def allowed(text: str, hit: Hit) -> bool:
    """True when the line on which the credential begins says `peftsmith: allow-secret`."""
    start = text.rfind("\n", 0, hit.start) + 1
    end = text.find("\n", hit.start)
    return ALLOW_MARK in text[start : end if end >= 0 else len(text)]


def title(kind: str) -> str:
    """The kind as a reader sees it: "wandb key"."""
    return TITLES.get(kind, kind.replace("-", " "))


def scan(path: Path) -> Scan:
    """Look through a file or a folder; see `peftsmith.secret_files`."""
    from peftsmith import secret_files

    return secret_files.scan(path)
