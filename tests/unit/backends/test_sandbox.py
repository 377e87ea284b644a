"""Templates that never end, or make much of little, are refused within bounds."""

import time
import tracemalloc

import pytest

from proxy.backends.base import Message, Question
from proxy.backends.tokens.chat_template import ChatTemplate, rendered_here
from proxy.errors import ConfigError, RequestError
from tests.support.paths import ROOT

LOOP = "{% for a in range(99999) %}"
NAMESPACE = "{% set ns = namespace(a='x') %}"
DOUBLED = NAMESPACE + "{% for i in range(99) %}{% set ns.a = "
GROWN = " %}{% endfor %}"
ENDLESS = {
    "loops in loops": LOOP * 4 + "x" + "{% endfor %}" * 4,
    "silent loops in loops": LOOP * 4 + "{% set b = a %}" + "{% endfor %}" * 4,
    "filtered loops": "{% for a in range(99999) if a < 0 %}{% endfor %}" * 99,
    "a macro that calls itself twice": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}"
    ),
    "a recursive loop": "{% for a in [1, 1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "a wide recursive loop": (
        "{% for a in [1] recursive %}{% if loop.depth < 9 %}{{ loop(range(9999)) }}{% endif %}"
        "{% endfor %}"
    ),
    "sums in loops": LOOP + "{{ range(99999)|sum }}{% endfor %}",
    "sorted lists in loops": LOOP + "{% set b = range(99999)|sort %}{% endfor %}",
    "mapped lists in loops": LOOP + "{% set b = range(99999)|map('string')|list %}{% endfor %}",
}
LARGE = {
    "a product": "{{ 'x' * 99999999999 }}",
    "a product with the number first": "{{ 99999999999 * 'x' }}",
    "a product of a list": "{% set a = [1] * 99999999999 %}",
    "a power": "{{ 9 ** 99999999 }}",
    "a product of numbers": "{% set ns = namespace(a=9) %}" + "{% for i in range(99) %}"
    "{% set ns.a = ns.a * ns.a %}{% endfor %}",
    "a width": "{{ '%99999999999d' % 1 }}",
    "a width from outside": "{{ '%*d' % (99999999999, 1) }}",
    "a filter's width": "{{ '%99999999999d'|format(1) }}",
    "a format's width": "{{ '{:99999999999}'.format(1) }}",
    "centre": "{{ 'x'|center(99999999999) }}",
    "a method's centre": "{{ 'x'.center(99999999999) }}",
    "ljust": "{{ 'x'.ljust(99999999999) }}",
    "zeros": "{{ 'x'.zfill(99999999999) }}",
    "tabs": "{{ '\\t'.expandtabs(99999999999) }}",
    "indent": "{{ 'x\\nx'|indent(99999999999) }}",
    "indented JSON": "{{ [1]|tojson(indent=99999999999) }}",
    "batches": "{{ [1]|batch(99999999999, 'x')|list }}",
    "a range": "{{ range(99999999999)|list }}",
    "filler": "{{ lipsum(n=99999999) }}",
    "doubled by ~": DOUBLED + "ns.a ~ ns.a" + GROWN,
    "doubled by +": DOUBLED + "ns.a + ns.a" + GROWN,
    "doubled by a filter": DOUBLED + "[ns.a, ns.a]|join" + GROWN,
    "doubled by a method": DOUBLED + "'x'.join([ns.a, ns.a])" + GROWN,
    "doubled by a format": DOUBLED + "'%s%s' % (ns.a, ns.a)" + GROWN,
    "doubled by a replacement": DOUBLED + "ns.a|replace('x', 'xx')" + GROWN,
    "doubled by a macro": "{% macro f(a) %}{{ a }}{{ a }}{% endmacro %}"
    + DOUBLED
    + "f(ns.a)"
    + GROWN,
    "a replacement": (
        "{% set a = 'x' * 999999 %}{% set b = a|replace('x', a) %}{% set c = a.replace('x', a) %}"
    ),
}


@pytest.mark.parametrize("name", ENDLESS | LARGE)
def test_a_template_that_leaves_the_bounds_is_refused_when_it_is_loaded(name: str) -> None:
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(ConfigError, match="chat_template cannot render a user's message"):
        ChatTemplate((ENDLESS | LARGE)[name])
    seconds = time.process_time() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 5
    assert peak < 100_000_000


@pytest.mark.parametrize("body", [*ENDLESS.values(), *LARGE.values()], ids=[*ENDLESS, *LARGE])
async def test_messages_cannot_make_a_template_leave_the_bounds(body: str) -> None:
    template = ChatTemplate("{% if messages|length > 1 %}" + body + "{% endif %}")
    assert template.render((Message("user", "Q"),)) == ""
    messages = (Message("user", "Q"), Message("user", "x"))
    with pytest.raises(RequestError, match="the chat template cannot render these messages"):
        await rendered_here(Question(messages), template)


def test_a_long_template_is_refused_before_it_is_compiled() -> None:
    with pytest.raises(ConfigError, match="has 100001 characters, and at most 100000 are read"):
        ChatTemplate("x" * 100_001)
    ChatTemplate("x" * 100_000)


async def test_a_template_that_compares_all_messages_with_all_ends() -> None:
    template = ChatTemplate(
        "{% for a in messages %}{% for b in messages %}{% if a.content == b.content %}{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    began = time.process_time()
    with pytest.raises(RequestError, match="it takes longer than 5 s"):
        await rendered_here(Question((Message("user", "Q"),) * 65_536), template)
    assert time.process_time() - began < 15


@pytest.mark.parametrize("path", sorted((ROOT / "tests/golden/templates").glob("*.jinja")))
async def test_a_real_template_renders_long_conversations(path: object) -> None:
    template = ChatTemplate(path.read_text("utf-8"), {"bos_token": "", "eos_token": ""})  # type: ignore[attr-defined]
    turns = (Message("user", "Q" * 500), Message("assistant", "A" * 500))
    rendered = await rendered_here(Question((turns * 500)[:-1]), template)
    assert rendered is not None
    assert rendered.count("Q" * 500) == 500
    whole = await rendered_here(Question((Message("user", "<b>" * 1_000_000),)), template)
    assert whole is not None
    assert "<b>" * 1_000_000 in whole
