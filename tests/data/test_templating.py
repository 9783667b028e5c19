"""Hostile chat templates: each ends in a clear error, soon, and the server's own process stays well."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest

from peftsmith.data import templating
from peftsmith.data.templating import Template, TemplateRefused, TemplateStopped

HELLO = ([{"role": "user", "content": "hello"}], True)

STOPPED = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "string": "{{ 'x' * 10 ** 11 }}",
    "list": "{{ ([0] * 10 ** 11) | length }}",
    "doubling": "{% set ns = namespace(s='x') %}{% for i in range(60) %}"
    "{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "format": "{{ '%99999999999d' % 1 }}",
    "center": "{{ 'x' | center(99999999999) }}",
    "output": "{% for i in range(99999) %}{{ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' }}{% endfor %}",
    "recursion": "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "lipsum": "{{ lipsum(n=10 ** 8) }}",
    "big range": "{{ range(10 ** 9) | list }}",
    "batch": "{{ [1] | batch(10 ** 10, 0) | list }}",
}
REFUSED = {
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['sys'].exit() }}",
    "cycler": "{{ cycler.__init__.__globals__.os.system('id') }}",
    "import": "{% import 'os' as os %}",
    "include": "{% include '/etc/passwd' %}",
    "mutation": "{{ messages.append(1) }}",
    "namespace": "{% set ns = namespace(__class__=1) %}",
    "own error": "{{ raise_exception('only alternating roles') }}",
    "undefined": "{{ nothing.at.all }}",
}
INVALID = ["{% for %}", "{{", "{% endfor %}", "{% unknown %}", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"]


@pytest.fixture(autouse=True)
def short_limits(monkeypatch):
    monkeypatch.setattr(templating, "BATCH_SECONDS", 2.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", STOPPED)
def test_limits(name):
    template = Template(STOPPED[name], {})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    with pytest.raises(TemplateStopped):
        template.render([HELLO])
    assert time.monotonic() - began < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


@pytest.mark.parametrize("name", REFUSED)
def test_sandbox(name):
    [answer] = Template(REFUSED[name], {}).render([HELLO])
    assert isinstance(answer, TemplateRefused)


def test_the_templates_own_words_are_shown():
    [answer] = Template(REFUSED["own error"], {}).render([HELLO])
    assert "only alternating roles" in str(answer)


@pytest.mark.parametrize("source", INVALID)
def test_invalid_jinja(source):
    with pytest.raises((TemplateRefused, TemplateStopped)):
        Template(source, {}).render([HELLO])


def test_one_refusal_spares_the_others_and_the_process_goes_on():
    template = Template(
        "{% if messages[0].content == 'b' %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}", {}
    )
    rows = [([{"role": "user", "content": content}], False) for content in "abc"]
    first, second, third = template.render(rows)
    assert (first, third) == ("a", "c")
    assert isinstance(second, TemplateRefused)
    assert template.render(rows[:1]) == ["a"]


def test_a_stopped_template_can_be_asked_again():
    template = Template("{% if messages[0].content == 'b' %}{{ 'x' * 10 ** 11 }}{% endif %}ok", {})
    with pytest.raises(TemplateStopped):
        template.render([([{"role": "user", "content": "b"}], False)])
    assert template.render([([{"role": "user", "content": "a"}], False)]) == ["ok"]


@pytest.mark.slow
def test_slow_on_every_row_ends_by_the_total(monkeypatch):
    monkeypatch.setattr(templating, "TOTAL_SECONDS", 0.5)
    template = Template("{% for i in range(90000) %}{% for j in range(20) %}{% endfor %}{% endfor %}", {})
    with pytest.raises(TemplateStopped, match=r"renderings|longer|time"):
        for _ in range(100):
            template.render([HELLO])


def test_no_environment_reaches_the_process(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "something")
    template = Template("x", {})
    template.render([HELLO])
    assert template._process is not None
    assert b"HF_TOKEN" not in Path(f"/proc/{template._process.pid}/environ").read_bytes()


def test_the_process_ends_with_the_object():
    template = Template("x", {})
    template.render([HELLO])
    process = template._process
    assert process is not None and process.poll() is None
    del template
    assert process.poll() is not None


def test_large_rows_and_many_rows():
    template = Template("{{ messages[0].content }}", {})
    rows = [([{"role": "user", "content": "é🙂" * 300_000}], False)] * 3 + [HELLO] * 1000
    texts = template.render(rows)
    assert len(texts) == 1003
    assert texts[0] == "é🙂" * 300_000
    assert texts[-1] == "hello"
