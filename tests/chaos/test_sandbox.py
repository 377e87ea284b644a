"""Tests that no chat template leaves its sandbox."""

from typing import Final

import pytest

from proxy.backends.base import Message
from proxy.backends.tokens.chat_template import ChatTemplate
from proxy.errors import ConfigError, RequestError

WALK: Final = "__init__.__globals__['__builtins__']['__import__']('os').environ"
REFUSED: Final[dict[str, str]] = {
    "a walk over a class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a walk over a function": "{{ raise_exception.__globals__.os }}",
    "a function's code": "{{ raise_exception.__code__.co_consts }}",
    "a walk by subscripts": "{{ ''['__class__']['__mro__'] }}",
    "a name in pieces": "{{ ''['__cla' ~ 'ss__'].mro() }}",
    "a name in escapes": "{{ ''['\\x5f\\x5fclass\\x5f\\x5f'].mro() }}",
    "the filter attr": "{{ (''|attr('__class__')|attr('__mro__')).count(1) }}",
    "the filter map with an attribute": "{{ ['']|map(attribute='__class__.__mro__')|list }}",
    "the filter groupby": "{{ ['']|groupby('__class__.__mro__') }}",
    "the filter sort": "{{ ['', 'a']|sort(attribute='__class__.__mro__')|list ~ ''.__class__ }}",
    "a format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "a format of a function": "{{ '{0.__globals__[os]}'.format(raise_exception) }}",
    "format_map": "{{ '{a.__class__.__mro__}'.format_map({'a': ''}) }}",
    "a format behind a filter": "{% set f = '{0.__class__.__mro__}'.format %}{{ f('') }}",
    "a format by map": "{{ ['{0.__class__}']|map('format', '')|list ~ ''.__class__ }}",
    "cycler": "{{ cycler." + WALK + " }}",
    "joiner": "{{ joiner." + WALK + " }}",
    "namespace": "{{ namespace." + WALK + " }}",
    "lipsum": "{{ lipsum.__globals__.os }}",
    "range": "{{ range.__class__.mro() }}",
    "dict": "{{ dict.__base__.__subclasses__() }}",
    "self": "{{ self.__init__.__globals__ }}",
    "self's context": "{{ self._TemplateReference__context.environment }}",
    "a macro": "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
    "a macro's insides": "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "caller": "{% macro m() %}{{ caller.__init__.__globals__ }}{% endmacro %}"
    "{% call m() %}{% endcall %}",
    "a loop": "{% for m in messages %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "an undefined name": "{{ nothing.__class__.__init__.__globals__ }}",
    "a generator's frame": "{{ (messages|map('length')).gi_frame.f_globals }}",
    "import": "{% import 'os' as os %}{{ os.environ }}",
    "from": "{% from 'os' import environ %}{{ environ }}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends '/etc/passwd' %}",
    "do": "{% do messages.append(1) %}",
    "append": "{{ messages.append({}) }}",
    "clear": "{{ messages.clear() }}",
    "pop": "{{ messages[0].pop('role') }}",
    "update": "{{ messages[0].update({'role': 'system'}) }}",
    "setdefault": "{{ messages[0].setdefault('x', 1) }}",
    "a set's add": "{{ messages[0].__setitem__('role', 'system') }}",
    "a builtin": "{{ open('/etc/passwd').read() }}",
    "import by name": "{{ __import__('os').environ }}",
    "a large range": "{{ range(10000000)|list }}",
}
HARMLESS: Final[dict[str, str]] = {
    "a debug tag in a text": "{{ '{% debug %}' }}",
    "a template in a template": "{{ '{{ 7 * 7 }}' }}",
    "an undefined context": "{{ context }}{{ environment }}{{ request }}{{ config }}",
    "a private name": "{{ messages[0]._private }}",
}


@pytest.mark.parametrize("source", REFUSED.values(), ids=REFUSED)
def test_an_escape_is_refused_in_words(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTAB_CANARY", "a-canary")
    with pytest.raises(ConfigError, match=r"chat_template (does not parse|cannot render)") as error:
        ChatTemplate(source)
    assert "a-canary" not in str(error.value)
    assert "root:" not in str(error.value)


@pytest.mark.parametrize("source", HARMLESS.values(), ids=HARMLESS)
def test_what_only_looks_like_an_escape_is_text(source: str) -> None:
    said = ChatTemplate(source).render((Message("user", "Q"),))
    assert "49" not in said
    assert "<" not in said


@pytest.mark.parametrize("source", REFUSED.values(), ids=REFUSED)
def test_a_message_and_a_variable_are_never_templates(source: str) -> None:
    template = ChatTemplate("{{ messages[0].content }}|{{ given }}")
    assert template.render((Message("user", source),), {"given": source}) == f"{source}|{source}"


def test_an_escape_by_a_variable_is_refused() -> None:
    template = ChatTemplate("{% if name is defined %}{{ ''[name].mro() }}{% endif %}")
    with pytest.raises(RequestError, match="cannot render with these variables"):
        template.render((Message("user", "Q"),), {"name": "__class__"})
