"""The process that renders chat templates: its own interpreter, with limits on time, memory and output.

Knows: Jinja set up as transformers 5 does it, and a protocol of frames: marshal in, a JSON header and texts out.
Does not know: anything else of peftsmith; it runs as a file under `python -I` and imports only jinja2.

A chat template is a program from whoever uploaded the model. Jinja's sandbox stops attribute access and imports, but
not `{% for %}` in `{% for %}`, `'x' * 10**10` or `10 ** 10 ** 10`, and no limit inside one interpreter stops a single
such operation. So the template gets a process that may be killed: RLIMIT_AS, SIGALRM, and the parent's own timer.
"""

from __future__ import annotations

import contextlib
import json
import marshal
import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any


def environment() -> Any:
    """jinja2's ImmutableSandboxedEnvironment with transformers' options, filters and globals.

    Source: transformers 5.23, utils/chat_template_utils.py, _cached_compile_jinja_template.
    """
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """{% generation %} marks what the assistant said; for the text it changes nothing.

        Where a block lies is counted as transformers' AssistantTracker counts it: behind the parts that the template
        has given out so far, which inside a macro or a {% set %} block is not where its text ends up.
        """

        tags = {"generation"}  # noqa: RUF012 (jinja2 reads a plain class attribute)

        def __init__(self, environment: Any) -> None:
            super().__init__(environment)
            environment.extend(tracker=self)
            self.size, self.spans = 0, []  # type: tuple[int, list[list[int]]]

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_through"), [], [], body).set_lineno(line)

        def _through(self, caller: Callable[[], str]) -> str:
            text = caller()
            self.spans.append([self.size, self.size + len(text)])
            return text

    class Dict:
        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    class Namespace(jinja2.utils.Namespace):
        def __init__(*args: Any, **kwargs: Any) -> None:
            attributes = dict(*args[1:], **kwargs)
            for name in attributes:
                _refuse_underscore(name)
            jinja2.utils.Namespace.__init__(args[0], attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            _refuse_underscore(name)
            super().__setitem__(name, value)

    def _refuse_underscore(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(format: str) -> str:
        return datetime.now().strftime(format)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals.update(raise_exception=raise_exception, strftime_now=strftime_now, dict=Dict(), namespace=Namespace)
    return made


def render(
    template: Any, variables: dict[str, Any], messages: list[Any], prompt: bool, largest: int, tools: Any = None
) -> dict[str, Any]:
    """The template's text for one conversation, and the character spans of its {% generation %} blocks.

    `variables` hold the template's globals as well. OverflowError above `largest` characters.
    """
    environment = template.environment
    tracker = environment.tracker
    tracker.size, tracker.spans = 0, []
    parts = []
    given = {**variables, "messages": messages, "tools": tools, "documents": None, "add_generation_prompt": prompt}
    # as Template.generate does, without copying the globals each time
    for part in template.root_render_func(
        environment.context_class(environment, given, template.name, template.blocks)
    ):
        tracker.size += len(part)
        if tracker.size > largest:
            raise OverflowError(f"more than {largest} characters from one row")
        parts.append(part)
    return {"text": "".join(parts), "spans": tracker.spans}


def render_pair(
    template: Any, variables: dict[str, Any], messages: list[Any], turns: int, largest: int, tools: Any = None
) -> dict[str, Any]:
    """`render` of the whole, with `prompt`: how much of it the first `turns` messages with a generation prompt are.

    That is a number of characters, or their text where the whole does not begin with it.
    """
    prompt = render(template, variables, messages[:turns], True, largest, tools)["text"]
    whole = render(template, variables, messages, False, largest, tools)
    return {**whole, "prompt": len(prompt) if whole["text"].startswith(prompt) else prompt}


def limit_memory(size: int) -> None:
    """Cap this process's address space at `size` bytes where the system can (Linux); elsewhere only time is limited."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def alarm(seconds: float) -> None:
    """SIGALRM ends this process after `seconds`, also when its parent is gone; 0 takes the alarm back."""
    with contextlib.suppress(ImportError, AttributeError):
        import signal

        signal.setitimer(signal.ITIMER_REAL, seconds)


def attempt(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` gives, or {"refused"} (the template's own error) or {"stopped"} (a limit): never an exception."""
    try:
        return work()
    except (MemoryError, RecursionError, OverflowError) as error:
        return {"stopped": f"{type(error).__name__}: {error}"[:500]}
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"[:500]}


def read_frame() -> Any:
    """What the parent wrote: eight bytes of length, then marshal. None at the end. The parent is trusted."""
    source = sys.stdin.buffer
    head = source.read(8)
    return marshal.loads(source.read(int.from_bytes(head, "big"))) if len(head) == 8 else None


def write_frame(answers: list[dict[str, Any]]) -> None:
    """Eight bytes each of the lengths of header and body, the answers as JSON without their texts, and the texts.

    In the header `text` is the length of the text in bytes of UTF-8.
    """
    texts = []
    for answer in answers:
        if "text" in answer:
            text = answer["text"].encode("utf-8", "surrogatepass")
            answer["text"] = len(text)
            texts.append(text)
    header, body = json.dumps(answers).encode("ascii"), b"".join(texts)
    sys.stdout.buffer.write(len(header).to_bytes(8, "big") + len(body).to_bytes(8, "big") + header + body)
    sys.stdout.buffer.flush()


def main() -> None:
    """First {path, template, variables, memory, seconds}, then {seconds, pairs, rows}.

    A row is [messages, prompt, largest, tools], of pairs [messages, turns, largest, tools].
    """
    setup = read_frame()
    sys.path[:] = setup["path"]
    made = environment()
    limit_memory(setup["memory"])
    alarm(setup["seconds"])
    compiled: list[Any] = []
    variables: dict[str, Any] = {}

    def compile_template() -> dict[str, Any]:
        compiled.append(made.from_string(setup["template"]))
        variables.update({**compiled[0].globals, **setup["variables"]})
        return {"text": "", "spans": []}

    answers = [attempt(compile_template)]
    while True:
        alarm(0)
        write_frame(answers)
        request = read_frame()
        if request is None or not compiled:
            return
        alarm(request["seconds"])
        work = render_pair if request["pairs"] else render
        answers = [attempt(partial(work, compiled[0], variables, *row)) for row in request["rows"]]


if __name__ == "__main__":
    main()
