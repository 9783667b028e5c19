"""Synthetic credentials for tests, made at test time so that none lies in the repository.

Knows: the shape of 20 kinds of credential, ten places in which people leave them, what looks like one and is none.
Does not know: how they are found.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import string
import uuid
from collections.abc import Callable
from dataclasses import dataclass

LETTERS = string.ascii_letters
ALNUM = string.ascii_letters + string.digits
HEX = "0123456789abcdef"
BASE32 = string.ascii_uppercase + "234567"


@dataclass(frozen=True)
class Credential:
    """`name` is the variable it is kept in, `text` what is pasted, `value` the part that must stay unseen."""

    kind: str
    name: str
    text: str
    value: str


def _run(rng: random.Random, alphabet: str, size: int) -> str:
    """Random characters with at least one digit where the alphabet has digits."""
    chosen = [rng.choice(alphabet) for _ in range(size)]
    if "7" in alphabet and not any(c.isdigit() for c in chosen):
        chosen[size // 2] = "7"
    return "".join(chosen)


def _plain(kind: str, name: str, value: str) -> Credential:
    return Credential(kind, name, value, value)


def _openai(rng: random.Random, head: str, half: int) -> str:
    return "sk-" + head + _run(rng, ALNUM, half) + "T3Blbk" + "FJ" + _run(rng, ALNUM, half)


def _pem(rng: random.Random, label: str) -> str:
    body = base64.b64encode(rng.randbytes(900)).decode()
    lines = "\n".join(body[i : i + 64] for i in range(0, len(body), 64))
    return f"-----BEGIN {label}-----\n{lines}\n-----END {label}-----"


def _gcp(rng: random.Random) -> Credential:
    key = _pem(rng, "PRIVATE" + " KEY") + "\n"
    document = {
        "type": "service_account",
        "project_id": "demo",
        "private_key_id": _run(rng, HEX, 40),
        "private_key": key,
    }
    return Credential("gcp-service-account", "GOOGLE_CREDENTIALS", json.dumps(document), key.split("\n")[3])


def _jwt(rng: random.Random) -> str:
    parts = [
        json.dumps({"alg": "HS256", "typ": "JWT"}),
        json.dumps({"sub": _run(rng, string.digits, 10), "iat": 1516239022}),
    ]
    encoded = [base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts]
    return ".".join([*encoded, _run(rng, ALNUM + "-_", 43)])


def _neptune(rng: random.Random) -> str:
    document = {"api_address": "https://app.neptune.ai", "api_key": str(uuid.UUID(int=rng.getrandbits(128)))}
    return base64.b64encode(json.dumps(document, separators=(",", ":")).encode()).decode()


def _netrc(rng: random.Random) -> Credential:
    value = _run(rng, HEX, 40)
    return Credential("wandb-key", "WANDB_NETRC", f"machine api.wandb.ai login user password {value}", value)


def _kaggle(rng: random.Random) -> Credential:
    value = _run(rng, HEX, 32)
    return Credential("kaggle-key", "KAGGLE_JSON", json.dumps({"username": "somebody", "key": value}), value)


def _url(rng: random.Random, kind: str, name: str, scheme: str, host: str) -> Credential:
    value = _run(rng, ALNUM, 18)
    return Credential(kind, name, f"{scheme}://svc-user:{value}@{host}", value)


MAKERS: dict[str, Callable[[random.Random], Credential]] = {
    "huggingface": lambda r: _plain("huggingface-token", "HF_TOKEN", "hf_" + _run(r, LETTERS, 34)),
    "huggingface-org": lambda r: _plain("huggingface-org-token", "HF_ORG", "api_org_" + _run(r, LETTERS, 34)),
    "wandb-v1": lambda r: _plain("wandb-key", "WANDB_KEY_NEW", "wandb_v1_" + _run(r, ALNUM, 77)),
    "wandb-legacy": lambda r: _plain("wandb-key", "WANDB_API_KEY", _run(r, HEX, 40)),
    "wandb-netrc": _netrc,
    "openai-legacy": lambda r: _plain("openai-key", "OPENAI_API_KEY", _openai(r, "", 20)),
    "openai-project": lambda r: _plain("openai-key", "OPENAI_API_KEY", _openai(r, "proj-", 74)),
    "openai-service": lambda r: _plain("openai-key", "OPENAI_API_KEY", _openai(r, "svcacct-", 74)),
    "anthropic": lambda r: _plain(
        "anthropic-key", "ANTHROPIC_API_KEY", "sk-ant-" + "api03-" + _run(r, ALNUM + "-_", 93) + "AA"
    ),
    "github": lambda r: _plain("github-token", "GITHUB_TOKEN", "ghp_" + _run(r, ALNUM, 36)),
    "aws": lambda r: _plain("aws-access-key", "AWS_ACCESS_KEY_ID", "AKIA" + _run(r, BASE32, 16)),
    "gcp": _gcp,
    "azure": lambda r: (
        lambda key: Credential("azure-storage-key", "AZURE_STORAGE", f"AccountName=demo;AccountKey={key};Suffix=x", key)
    )(_run(r, ALNUM + "+/", 86) + "=="),
    "pem": lambda r: (lambda key: Credential("private-key", "SSH_KEY", key, key.split("\n")[3]))(
        _pem(r, "RSA PRIVATE" + " KEY")
    ),
    "slack": lambda r: _plain(
        "slack-token",
        "SLACK_TOKEN",
        f"xoxb-{_run(r, string.digits, 12)}-{_run(r, string.digits, 12)}-{_run(r, ALNUM, 24)}",
    ),
    "kaggle": _kaggle,
    "comet": lambda r: _plain("comet-key", "COMET_API_KEY", _run(r, ALNUM, 25)),
    "neptune": lambda r: _plain("neptune-token", "NEPTUNE_API_TOKEN", _neptune(r)),
    "jwt": lambda r: _plain("jwt", "SESSION", _jwt(r)),
    "database-url": lambda r: _url(r, "database-url", "DATABASE_URL", "postgresql", "db.internal:5432/app"),
    "basic-auth-url": lambda r: _url(r, "basic-auth-url", "INDEX_URL", "https", "pypi.internal/simple"),
}


def make(kind: str, seed: int) -> Credential:
    return MAKERS[kind](random.Random(f"{kind}-{seed}"))


def _notebook(source: list[str], output: list[str]) -> str:
    cell = {
        "cell_type": "code",
        "execution_count": 1,
        "metadata": {},
        "source": source,
        "outputs": [{"output_type": "stream", "name": "stdout", "text": output}],
    }
    return json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}, indent=1)


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


CONTEXTS: dict[str, Callable[[Credential], str]] = {
    "train.py": lambda c: f"import os\n\n{c.name} = {c.text!r}\nmodel = load({c.name})\n",
    "source.ipynb": lambda c: _notebook(_lines(f'import os\nos.environ["{c.name}"] = """{c.text}"""\n'), ["ok\n"]),
    "output.ipynb": lambda c: _notebook(["print(settings)\n"], _lines(f"settings: {c.name}={c.text}\ndone\n")),
    ".env": lambda c: f"# local\n{c.name}={json.dumps(c.text) if chr(10) in c.text else c.text}\nLOG=1\n",
    "config.yaml": lambda c: (
        "tracking:\n  {}: |\n    {}\n".format(c.name.lower(), c.text.replace("\n", "\n    "))
        if "\n" in c.text
        else f"tracking:\n  {c.name.lower()}: {c.text}\n"
    ),
    "settings.json": lambda c: json.dumps({"rank": 16, c.name.lower(): c.text}, indent=2),
    "launch.sh": lambda c: f"#!/bin/sh\npython train.py --{c.name.lower().replace('_', '-')} '{c.text}' --epochs 3\n",
    "Modelfile": lambda c: f'FROM ./base.gguf\nSYSTEM """{c.name}: {c.text}"""\nPARAMETER stop "<|im_end|>"\n',
    "README.md": lambda c: f"# Demo\n\nSet it first:\n\n    export {c.name}={c.text}\n\nThen train.\n",
    "train.log": lambda c: f"{{'loss': 1.25}}\n\x1b[32m[INFO]\x1b[0m {c.name.lower()}: {c.text}\n{{'loss': 1.19}}\n",
}

_RNG = random.Random(7)
_SHA1 = hashlib.sha1(b"commit", usedforsecurity=False).hexdigest()
_SHA256 = hashlib.sha256(b"weights").hexdigest()

# one line each; must stay silent in every context they can stand in
HARMLESS: dict[str, str] = {
    "git sha": f"commit {_SHA1}",
    "git sha beside wandb": f"wandb @ git+https://github.com/wandb/wandb@{_SHA1}",
    "wandb run commit": f"wandb: git commit {_SHA1} (dirty)",
    "wandb tree url": f"https://github.com/wandb/wandb/tree/{_SHA1}",
    "revision": f"revision: {_SHA1}",
    "sha256": f'"sha256": "{_SHA256}"',
    "pip hash": f"    --hash=sha256:{_SHA256}",
    "token sha256": f'token: "sha256:{_SHA256}"',
    "md5 beside kaggle": f"kaggle datasets download a/b  # md5 {hashlib.md5(b'x', usedforsecurity=False).hexdigest()}",
    "uuid": f"run_id = '{uuid.UUID(int=_RNG.getrandbits(128))}'",
    "uuid as token": f"sync_token: {uuid.UUID(int=_RNG.getrandbits(128))}",
    "safetensors hash": f'{{"model.safetensors": {{"lfs": {{"oid": "{_SHA256}", "size": 269060552}}}}}}',
    "base64 image": f'"image/png": "iVBORw0KGgo{base64.b64encode(_RNG.randbytes(6000)).decode()}"',
    "tokenizer vocab": '{"Ġtoken": 11241, "Ġsecret": 4839, "Ġpassword": 18142, "api_key": 5, "hf_": 9}',
    "tokenizer merges": '"merges": ["Ġ t", "to ken", "sec ret", "pass word"], "unk_token": "<unk>"',
    "use_cls_token": "use_cls_token = True",
    "num_memory_tokens": "num_memory_tokens: 16",
    "max_new_tokens": "outputs = model.generate(**inputs, max_new_tokens=64)",
    "eos token": 'eos_token: "<|im_end|>"',
    "eos token id": "eos_token_id=151645, pad_token_id=151643",
    "reserved token": 'pad_token = "<|reserved_special_token_12|>"',
    "image token": "image_token: <image_soft_token_2048>",
    "hf_xxx": "HF_TOKEN=hf_xxx",
    "long hf_xxx": 'login(token="hf_' + "x" * 34 + '")',
    "sequential": "HF_TOKEN=hf_" + "abcdefghijklmnopqrstuvwxyzABCDEFGH",
    "hf module": "from transformers.integrations import hf_argparser_compatibility_helpers_v2",
    "shell variable": 'huggingface-cli login --token "${HF_TOKEN}"',
    "shell variable 2": "export WANDB_API_KEY=$WANDB_API_KEY_FROM_VAULT_2",
    "environment": 'token = os.environ["HF_TOKEN"]',
    "environment get": 'api_key=os.environ.get("OPENAI_API_KEY_2024"),',
    "getpass": "password = getpass.getpass('W&B key: ')",
    "placeholder": "OPENAI_API_KEY=your_service_key_here",
    "placeholder with a project": "HF_TOKEN=demo_dev_your_key_here",
    "placeholder template": "api_key: {project}_{env}_your_key_here",
    "angle placeholder": 'api_key = "<paste your key 123 here>"',
    "aws documentation": "aws_access_key_id = AKIAIOSFODNN7EXAMPLE",
    "pem in prose": "The file begins with -----BEGIN PRIVATE KEY----- and ends with -----END PRIVATE KEY-----.",
    "pem placeholder": '"private_key": "-----BEGIN PRIVATE KEY-----\\nyour_key_here\\n-----END PRIVATE KEY-----"',
    "database default": "postgresql://postgres:postgres@localhost:5432/app",
    "database template": "postgresql://user:${DB_PASSWORD}@db/app",
    "url template": "https://user:<password>@example.com/",
    "url with port": "http://127.0.0.1:8000/v1/chat/completions?user=a@b",
    "git over ssh": "git@github.com:owner/name.git ssh://git@github.com:22/owner/name",
    "scp target": "rsync://host:873/module user@host:/data",
    "model id": "token_classifier: dslim/bert-base-NER-2024-v2",
    "identifier": "secret = load_secret_from_vault_v2_config1",
    "file name": 'credentials: "config/service-account-2024-v3.json"',
    "loss log": "{'loss': 1.2345, 'grad_norm': 0.98765432101234, 'learning_rate': 0.0002, 'num_tokens': 123456789.0}",
    "date": "token_expiry: 2026-11-22T18:41:44.123456+00:00",
    "task word": "sk-learn and disk-based-caches-with-many-shards-and-long-names-v2 and mask-token",
    "slack prose": "channels such as xoxb- are described in the manual",
    "url in documentation": "smb://workgroup;user:mypassword@server/share and https://a%20user:a%20secret@host/",
    "several hosts": "postgres://user:pass@localhost:123,foo:bar@localhost:456/app",
    "qualified name": "private_key: ed25519.Ed25519PrivateKey",
    "assembly": 'publicKeyToken="1fc8b3b9a1e18e3b"',
    "jwt prose": "a JWT begins with eyJ and has two dots",
}
