"""train.ipynb: the same project as a notebook that runs on Colab, on Kaggle and beside the project.

Knows: the notebook format (4.5), where Colab and Kaggle keep secrets and uploads, that cells hold the scripts byte
for byte, and what is wrong with such a notebook.
Does not know: what the scripts do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftsmith import files, secrets
from peftsmith.errors import PeftsmithError
from peftsmith.finding import Finding, finding
from peftsmith.lock import Lock
from peftsmith.plan import FineTunePlan
from peftsmith.project import literal, requirements
from peftsmith.project.foreign import source

FILE = "train.ipynb"
# In the order in which they are run.
SCRIPTS = ("progress.py", "train.py", "evaluate.py", "infer.py", "merge.py")
_METADATA = {
    "accelerator": "GPU",
    "colab": {"provenance": []},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
_ALLOWED = re.compile(
    r"pip install -q torch==[\w.+]+"
    r"|pip install -q --require-hashes --no-deps -r requirements\.txt"
    r"|\{sys\.executable\} (train|evaluate|infer|merge)\.py( --[a-z-]+( ([\w./-]+|\"[\w .,?!-]+\"))?)*"
)

_GPU = """\
import shutil
import subprocess
import sys

if shutil.which("nvidia-smi"):
    query = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, encoding="utf-8", check=True).stdout
    print(answer)
"""
_BF16 = """\
    if any(float(line.split(",")[-1]) < 8 for line in answer.splitlines()):
        print("This GPU has no bfloat16: set training.precision to fp16 in plan.yaml and generate again.")
"""
_NO_GPU = """\
else:
    print("No GPU. Colab: Runtime > Change runtime type. Kaggle: Settings > Accelerator.")
"""
_KEYS = '''\
import os
import sys


def stored(name: str) -> str:
    """A key from Colab's or Kaggle's secret store, else from the environment; empty when there is none."""
    try:
        if "google.colab" in sys.modules:
            from google.colab import userdata

            return userdata.get(name) or ""
        if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
            from kaggle_secrets import UserSecretsClient

            return UserSecretsClient().get_secret(name) or ""
    except Exception as error:  # each store has its own for a name that it does not hold
        print(f"{name} was not taken from the secret store: {type(error).__name__}")
    return os.environ.get(name, "")


token = stored("HF_TOKEN")
if token and token != "your_hugging_face_token_here":
    os.environ["HF_TOKEN"] = token
else:
    print("No HF_TOKEN. That is enough for a model that is public.")
'''
_ROWS = """\
import hashlib
import shutil
import sys
from pathlib import Path

{rows}

for name, digest in ROWS.items():
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        for found in sorted(Path("/kaggle/input").rglob(path.name))[:1]:
            shutil.copyfile(found, path)
    if not path.exists() and "google.colab" in sys.modules:
        from google.colab import files

        print(f"Choose the file for {{name}}")
        for body in files.upload().values():
            path.write_bytes(body)
    if not path.exists():
        raise FileNotFoundError(f"{{name}} is missing: put it there")
    if digest and hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        print(f"{{name}} is another file than the one that was planned for")
"""


def build(texts: Mapping[str, str], plan: FineTunePlan, lock: Lock) -> str:
    """The notebook's text; `texts` holds every file of the project as it will lie on disk. Deterministic."""
    scripts = [name for name in SCRIPTS if name in texts]
    rows = {name: lock.data[split].sha256 if split in lock.data else "" for split, name in plan.splits().items()}
    local = bool(lock.base.get("folder")) and not lock.base.get("commit")
    install = f"%pip install -q torch=={requirements.torch_version()}\n"
    install += "%pip install -q --require-hashes --no-deps -r requirements.txt\n"
    result = "model" if plan.method.full else "adapter"
    cells = [
        ("markdown", _opening(plan, local)),
        ("code", _GPU + (_BF16 if plan.training.precision == "bf16" else "") + _NO_GPU),
        ("markdown", "The libraries, in the versions that the scripts were tested with.\n"),
        ("code", _written("requirements.txt", texts)),
        ("code", install),
        *([] if local else [("markdown", _KEYS_TEXT), ("code", _KEYS)]),
        ("markdown", "The scripts, exactly as they lie in the project.\n"),
        *(("code", _written(name, texts)) for name in scripts),
        ("markdown", _ROWS_TEXT),
        ("code", _ROWS.format(rows=literal.setting(rows, "ROWS"))),
        ("markdown", "A few updates first: does it run here?\n"),
        ("code", _run("train.py --output trial --max-steps 5")),
        ("markdown", "The training. Run again, it goes on from its last checkpoint.\n"),
        ("code", _run("train.py --output output")),
    ]
    if plan.adapters:
        cells += _of_adapters(plan, scripts)
        return _dumped([_cell(number, kind, text) for number, (kind, text) in enumerate(cells, start=1)])
    if "evaluate.py" in scripts:
        cells.append(("markdown", "Is it better than the base? `output/evaluation/evaluation.json` says so.\n"))
        cells.append(("code", _run(f"evaluate.py --{result} output/{result} --output output/evaluation")))
    cells.append(("code", _run(f"infer.py --{result} output/{result} {_asked(plan)}")))
    if "merge.py" in scripts:
        cells.append(("markdown", "The adapter merged into the base, for servers that take whole models only.\n"))
        cells.append(("code", _run("merge.py --adapter output/adapter --output output")))
    return _dumped([_cell(number, kind, text) for number, (kind, text) in enumerate(cells, start=1)])


def _of_adapters(plan: FineTunePlan, scripts: Sequence[str]) -> list[tuple[str, str]]:
    """What is done with several adapters after their training."""
    first, *_ = names = list(plan.adapters)
    cells = []
    if "evaluate.py" in scripts:
        cells.append(("markdown", "Is each better than the base? `output/evaluation/NAME/evaluation.json` says so.\n"))
        for name in names:
            given = f"--adapter output/adapters/{name} --output output/evaluation/{name}"
            cells.append(("code", _run(f"evaluate.py {given}")))
    cells.append(("code", _run(f"infer.py --adapters output/adapters --adapter {first} {_asked(plan)}")))
    if "merge.py" in scripts:
        cells.append(("markdown", "An adapter merged into the base, for servers that take whole models only.\n"))
        cells.append(("code", _run(f"merge.py --adapter output/adapters/{first} --output output")))
    return cells


def _asked(plan: FineTunePlan) -> str:
    if plan.task == "question_answering":
        return '--question "Who came?" --context "The parcel came."'
    return '--text "Hello"' if plan.task.endswith("_classification") else '--prompt "Hello"'


def canonical(text: str) -> str:
    """A notebook without what running it leaves behind: outputs, counters, metadata. PeftsmithError when it is none."""
    try:
        document = json.loads(text)
        cells = [
            _cell(number, each["cell_type"], "".join(each["source"]), each.get("id"))
            for number, each in enumerate(document["cells"], start=1)
        ]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise PeftsmithError(
            f"{FILE} is no notebook: {error}", next_step="Delete it; generate_project writes it again."
        ) from error
    return _dumped(cells)


def judge(project: Path) -> Iterator[Finding]:
    """What is wrong with the project's notebook: it must parse, hold no secret, run nothing but pip and the project's
    own scripts, and write the scripts as they lie beside it."""
    path = project / FILE
    if not path.is_file():
        return
    try:
        read = source.notebook(FILE, files.read_json(path, largest=source.LARGEST))
    except PeftsmithError as error:
        yield finding("project.script.syntax", f"{FILE} cannot be read: {error.cause}", file=FILE)
        return
    for fault in read.faults:
        message = f"{read.where(fault.line)} does not parse: {fault.message}"
        yield finding("project.script.syntax", message, **read.place(fault.line))
    for each in read.shell:
        if not _ALLOWED.fullmatch(each.command.strip()):
            shown = files.clean(secrets.redact(each.command), 200)
            message = f"{read.where(each.line)} runs something else than pip and the project's scripts: {shown}"
            yield finding("project.script.shell", message, **read.place(each.line))
    for cell, what, text in read.raw:
        for hit in secrets.find_in_text(text):
            if not secrets.allowed(text, hit):
                message = f"{FILE} cell {cell} line {hit.line} ({what}): {secrets.title(hit.kind)}"
                yield finding("project.script.secret", message, file=FILE, cell=cell, line=hit.line, kind=hit.kind)
    for name, line, body in read.written:
        target = project / name
        if name not in (*SCRIPTS, "requirements.txt"):
            message = f"{read.where(line)} writes {files.clean(name, 100)}, which is no file of the project"
            yield finding("project.notebook.other_file", message, **read.place(line))
        elif target.is_file() and files.read_text(target) != _ended(body):
            message = f"{FILE} holds another {name} than the project"
            yield finding("project.notebook.differs", message, file=FILE, script=name)


def written(text: str) -> dict[str, str]:
    """What the cells of a notebook write: file name -> text."""
    read = source.notebook(FILE, json.loads(text))
    return {name: _ended(body) for name, _, body in read.written}


_KEYS_TEXT = """\
Only a gated or private base model needs a key. Get one (read access is enough) at
<https://huggingface.co/settings/tokens>, accept the model's terms on its page, and store it as `HF_TOKEN`: on Colab
under the key symbol at the left, on Kaggle under Add-ons > Secrets, elsewhere in the environment. Never write it into
a cell.
"""
_ROWS_TEXT = """\
The rows. Put them beside this notebook, add them as a Kaggle data set, or upload them when Colab asks.
"""


def _opening(plan: FineTunePlan, local: bool) -> str:
    text = f"# {literal.name(plan.name)}\n\nFine-tuning of {literal.inert(plan.base.model)} on "
    trained = [name for split, name in plan.splits().items() if split.rpartition(".")[2] == "train"]
    text += f"{', '.join(literal.inert(name) for name in trained)}. Run the cells from top to bottom.\n\n"
    text += "The cells write the scripts of the project and run them; nothing is trained outside of those scripts.\n"
    if local:
        text += "\nThe base model is a local folder: bring it along, and set `BASE_MODEL` to its place.\n"
    return text


def _written(name: str, texts: Mapping[str, str]) -> str:
    return f"%%writefile {name}\n{texts[name]}"


def _run(command: str) -> str:
    return f"import sys\n\n!{{sys.executable}} {command}\n"


def _ended(body: str) -> str:
    """IPython ends a cell's last line before it writes the cell."""
    return body if body.endswith("\n") else body + "\n"


def _cell(number: int, kind: str, text: str, own_id: object = None) -> dict[str, Any]:
    lines = text.removesuffix("\n").split("\n")
    cell: dict[str, Any] = {
        "cell_type": kind,
        "id": own_id if isinstance(own_id, str) else f"cell-{number:02}",
        "metadata": {},
        "source": [f"{line}\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else []),
    }
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


def _dumped(cells: Sequence[Mapping[str, Any]]) -> str:
    document = {"cells": list(cells), "metadata": _METADATA, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
