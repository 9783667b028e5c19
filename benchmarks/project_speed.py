"""How long a project takes from the plan to the proof, as a client of the server sees it.

Run as: python benchmarks/project_speed.py [--model FOLDER] [--types llama,bert | --all] [--repeats 5]

Every figure is the time from a request to its answer by the real server over stdio. Cold: a new server (its start is
counted where the project is measured without twin), an empty cache and no warm worker; the files of both environments
may be in the system's page cache. Warm: the same server and worker, with a project of another name, so that no kept
verdict answers. Projects are planned by plan_finetune as it recommends, with 24 short rows; a type's model has its own
default sizes and vocabulary, and no weights. `twin` is the whole of check_project. Prints a line per project, and last
the figure; exit code 1 when a limit is missed or a twin is not proven.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "mcp_server")]

from benchmarks import startup
from benchmarks.first_runs import cases, project
from peftsmith import files, plan
from peftsmith.model import catalogue
from peftsmith.worker import client
from peftsmith.worker.shrink import NEEDED

# Seconds: plan, generate and vet together; the whole check with the twin.
COLD, WARM, TWIN, COMMON_TWIN = 20.0, 2.0, 60.0, 15.0
COMMON = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text", "phi3", "gpt2", "bert", "roberta", "modernbert", "t5")
OTHERS = ("mixtral", "qwen3_moe", "falcon_h1", "mamba", "deberta-v2")
# Without weights, plan_finetune knows a type's modules by its config.json alone.
EVERY = tuple(
    name
    for name in cases.kinds()
    if any((catalogue.entry(name, task) or {}).get("complete") for task in catalogue.tasks(name))
)
TASKS = {"encoder": "sequence_classification", "encoder-decoder": "seq2seq"}  # the others answer chats
ROWS = 24


@dataclass(frozen=True)
class Twins:
    """Seconds of one type's checks, or why there are none."""

    model_type: str
    cold: float
    warm: float
    fault: str = ""


class Server:
    """The real server on a pipe. `spawned` is when it was started."""

    def __init__(self, home: Path, work: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment |= {
            "PYTHONPATH": str(REPOSITORY / "mcp_server"),
            "PEFTSMITH_HOME": str(home),
            "HF_HUB_OFFLINE": "1",
        }
        environment |= {"PEFTSMITH_ROOTS": "/"}
        self.spawned = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "peftsmith.server"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, cwd=work,
        )  # fmt: skip
        startup.ask(self.process, 0, "initialize", startup.CLIENT)
        startup.send(self.process, {"jsonrpc": "2.0", "method": "notifications/initialized"})

    def call(self, tool: str, **arguments: Any) -> tuple[dict[str, Any], float]:
        """A tool's result, and the seconds until it was there."""
        began = time.perf_counter()
        reply = startup.ask(self.process, 1, "tools/call", {"name": tool, "arguments": arguments})
        took = time.perf_counter() - began
        text = reply["content"][0]["text"]
        if reply["isError"]:
            raise SystemExit(f"{tool}: {text}")
        return json.loads(text), took


@contextmanager
def fresh() -> Iterator[tuple[Server, Path]]:
    """A server with an empty cache and no worker, and a folder to work in; all of it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="speed-") as name:
        home, work = Path(name) / "home", Path(name) / "work"
        for each in (home, work):
            each.mkdir()
        server = Server(home, work)
        try:
            yield server, work
        finally:
            server.process.kill()
            server.process.wait()
            for pipe in (server.process.stdin, server.process.stdout):
                if pipe is not None:
                    pipe.close()
            _stop_workers(home)


def _stop_workers(home: Path) -> None:
    before = os.environ.get("PEFTSMITH_HOME")
    os.environ["PEFTSMITH_HOME"] = str(home)
    client.stop_all()
    del os.environ["PEFTSMITH_HOME"]
    if before is not None:
        os.environ["PEFTSMITH_HOME"] = before


def without_twin(model: Path, repeats: int) -> tuple[float, list[dict[str, float]]]:
    """Seconds from the server's start to a vetted project, and of each step of the warm ones after it."""
    with fresh() as (server, work):
        data = write_rows(work, _case("llama"))
        _vetted(server, model, data, work / "first")
        cold = time.perf_counter() - server.spawned
        return cold, [_vetted(server, model, data, work / f"warm-{number}") for number in range(repeats)]


def _vetted(server: Server, model: Path, data: Path, folder: Path) -> dict[str, float]:
    _, planned = server.call("plan_finetune", project=str(folder), model=str(model), data=str(data), test=str(data))
    _, generated = server.call("generate_project", project=str(folder))
    seen, vetted = server.call("check_project", project=str(folder), twin=False)
    if not seen["proofs"]["vet"]["ok"]:
        raise SystemExit(f"{folder.name} was not vetted: {seen['findings']}")
    return {"plan": planned, "generate": generated, "vet": vetted}


def twins(model_type: str) -> Twins:
    """The check of one type's project on a cold and on a warm worker."""
    case = _case(model_type)
    task = case.plan["task"]
    with fresh() as (server, work):
        model = _model(work / "model", case)
        data = write_rows(work, case)
        took = []
        for name in ("cold", "warm"):
            folder = str(work / name)
            server.call("plan_finetune", project=folder, model=str(model), data=str(data), test=str(data), task=task)
            server.call("generate_project", project=folder)
            seen, seconds = server.call("check_project", project=folder)
            twin = seen["proofs"].get("twin") or {"ok": False}
            if seen["digest"] is None or not twin["ok"] or twin["cached"]:
                wrong = [each["message"] for each in seen["findings"] if each["severity"] == "error"]
                return Twins(model_type, 0.0, 0.0, fault="; ".join(wrong)[:400] or "a kept verdict answered")
            took.append(seconds)
    return Twins(model_type, *took)


def _case(model_type: str) -> cases.Case:
    task = TASKS.get(cases.kinds()[model_type], "chat")
    return cases.combination(model_type, task, cases.method("LORA", model_type))


def _model(folder: Path, case: cases.Case) -> Path:
    """A base with the type's own vocabulary size, which is what a twin cannot cut down."""
    config = project.write_base(folder, case, plan.validate(case.plan))
    own = {**NEEDED.get(config["model_type"], {}), **case.config}
    if "vocab_size" not in own:
        config = {name: value for name, value in config.items() if name != "vocab_size"}
        files.write_json(folder / "config.json", config)
    return folder


def write_rows(folder: Path, case: cases.Case) -> Path:
    wanted = plan.validate(case.plan)
    lines = [json.dumps(project.row(wanted, number)) for number in range(ROWS)]
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def report(cold: float, warm: list[dict[str, float]], found: list[Twins]) -> tuple[str, bool]:
    """The last lines, and whether every limit holds and every twin is proven."""
    usual = statistics.median(sum(each.values()) for each in warm)
    proven = [each for each in found if not each.fault]
    slowest = max((max(each.cold, each.warm) for each in proven), default=0.0)
    common = max((each.warm for each in proven if each.model_type in COMMON), default=0.0)
    steps = ", ".join(f"{name} {statistics.median(each[name] for each in warm):.2f} s" for name in warm[0])
    text = (
        f"warm: {steps}\n"
        f"plan + generate + vet: cold {cold:.1f} s (at most {COLD:.0f}), warm {usual:.2f} s (at most {WARM:.0f}); "
        f"twins: {len(proven)} of {len(found)} proven, slowest {slowest:.1f} s (at most {TWIN:.0f}), "
        f"slowest warm of the common {common:.1f} s (at most {COMMON_TWIN:.0f})"
    )
    good = cold <= COLD and usual <= WARM and slowest <= TWIN and common <= COMMON_TWIN
    return text, good and len(proven) == len(found)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=REPOSITORY / ".cache" / "models" / "smollm2")
    parser.add_argument("--types", default=",".join((*COMMON, *OTHERS)))
    parser.add_argument("--all", action="store_true", help="every type of first_run.py that config.json implies")
    parser.add_argument("--repeats", type=int, default=5, help="warm projects without twin")
    given = parser.parse_args(argv)
    chosen = EVERY if given.all else tuple(given.types.split(","))
    if not (given.model / "tokenizer.json").exists() or not set(chosen) <= set(EVERY):
        print(f"Run `make demo-model`, and name types out of: {', '.join(EVERY)}", file=sys.stderr)
        return 2
    files.set_roots(["/"])
    cold, warm = without_twin(given.model.resolve(), given.repeats)
    print(f"{'without twin':16} cold {cold:6.1f} s, warm {sum(warm[0].values()):6.2f} s", flush=True)
    found = []
    for model_type in chosen:
        found.append(each := twins(model_type))
        print(f"{each.model_type:16} {each.fault or f'cold {each.cold:6.1f} s, warm {each.warm:6.2f} s'}", flush=True)
    text, good = report(cold, warm, found)
    print(text)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
