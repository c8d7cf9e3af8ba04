"""A chat template is a program that came with a model: it ends, and in good time."""

import contextlib
import resource
import signal
import sys
import threading
import time

import pytest
from transformers import AutoTokenizer

from rlhf_peft.engine import BaseSpec
from rlhf_peft.engine import templates as module
from rlhf_peft.engine.templates import TemplateRefused, render

SAID = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BaseSpec("builtin:tiny").location)


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.5)


def with_template(tokenizer, template):
    tokenizer.chat_template = template
    return tokenizer


def test_what_is_rendered_is_what_transformers_renders(tokenizer):
    with_template(tokenizer, PLAIN)
    assert render(tokenizer, SAID) == tokenizer.apply_chat_template(SAID, tokenize=False)
    extra = PLAIN + "{{ name }}{% if add_generation_prompt %}[assistant]{% endif %}"
    with_template(tokenizer, extra)
    assert render(tokenizer, SAID[:1], add_generation_prompt=True, name="x").endswith("x[assistant]")


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")


@pytest.mark.parametrize(
    "template",
    [
        pytest.param("{{ 'a' * 10000000000 }}", marks=LINUX),
        pytest.param("{{ ('a' * 100000) * 100000 }}", marks=LINUX),
        pytest.param("{{ [0] * 10000000000 }}", marks=LINUX),
        pytest.param("{{ 'a'.center(10000000000) }}", marks=LINUX),
        pytest.param("{{ 'a'|center(10000000000) }}", marks=LINUX),
        pytest.param("{{ '%10000000000d'|format(1) }}", marks=LINUX),
        pytest.param("{{ '%10000000000d' % 1 }}", marks=LINUX),
        pytest.param("{{ ('a' * 100000).replace('a', 'b' * 100000) }}", marks=LINUX),
        pytest.param(
            "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
            marks=LINUX,
        ),
        "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}x{% endfor %}{% endfor %}"
        "{% endfor %}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ 'a' * (10**10) }}",
        "{{ messages|length\n** 999999999 }}",
        "{{ 'a' * 20000000 }}",
        "{{ lipsum(100000000) }}",
        "{{ raise_exception('no such role') }}",
        "{% for m in messages %}",
    ],
)
def test_a_template_that_takes_too_much_is_refused_as_a_row(tokenizer, template):
    begun, used = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TemplateRefused, match="the chat template"):
        render(with_template(tokenizer, template), SAID)
    assert time.monotonic() - begun < 8
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 2 * 2**20
    assert render(with_template(tokenizer, PLAIN), SAID)


def test_a_slow_template_is_waited_for_once(tokenizer):
    with_template(
        tokenizer, "{% for i in range(99999) %}{% for j in range(99999) %}y{% endfor %}{% endfor %}"
    )
    begun = time.monotonic()
    for _ in range(20):
        with pytest.raises(TemplateRefused, match="takes longer than"):
            render(tokenizer, SAID)
    assert time.monotonic() - begun < 3


def test_keyword_arguments_are_no_power(tokenizer):
    template = "{% macro f(a) %}{{ a }}{% endmacro %}{% set d = {'a': 1} %}{{ f(**d) }} ** {# 2 ** 3 #}"
    assert render(with_template(tokenizer, template), SAID) == "1 ** "


def test_limits_and_handlers_are_as_before(tokenizer):
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *given: rung.append(1))
    limit = resource.getrlimit(resource.RLIMIT_AS)
    try:
        signal.setitimer(signal.ITIMER_REAL, 30)
        for template in (PLAIN, "{{ 'a' * 10000000000 }}"):
            with contextlib.suppress(TemplateRefused):
                render(with_template(tokenizer, template), SAID)
            assert resource.getrlimit(resource.RLIMIT_AS) == limit
            assert signal.getitimer(signal.ITIMER_REAL)[0] > 20
            assert signal.getsignal(signal.SIGALRM)() is None and rung
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_another_thread_renders_too(tokenizer):
    with_template(tokenizer, PLAIN)
    found = []
    thread = threading.Thread(target=lambda: found.append(render(tokenizer, SAID)))
    thread.start()
    thread.join()
    assert found == [render(tokenizer, SAID)]


def test_rendering_costs_little_more(tokenizer):
    with_template(tokenizer, PLAIN)
    render(tokenizer, SAID)

    def seconds(call):
        begun = time.perf_counter()
        for _ in range(300):
            call()
        return (time.perf_counter() - begun) / 300

    plain = min(seconds(lambda: tokenizer.apply_chat_template(SAID, tokenize=False)) for _ in range(3))
    limited = min(seconds(lambda: render(tokenizer, SAID)) for _ in range(3))
    assert limited - plain < 0.001
    print(f"plain {plain * 1e6:.0f} us, limited {limited * 1e6:.0f} us")
