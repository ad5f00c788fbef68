"""Render small chat templates with transformers, as the reference for the test `chat_templates`.

    pip install transformers jinja2
    python scripts/make_chat_template_cases.py     # writes tests/fixtures/chat_templates.json

Each case is a template, its input, and the prompt that transformers' `render_jinja_template` returns, or
`"error": true` where it raises an exception. Random and time-dependent constructs are left out.
"""

import json
from pathlib import Path

import transformers
from transformers.utils.chat_template_utils import _normalize_chat_messages, render_jinja_template

OUT = Path(__file__).parent.parent / "tests/fixtures/chat_templates.json"

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Who is Ä\"n<a> & 'b'?\n"},
    {"role": "assistant", "content": "<think>hm</think>She, é 🦀."},
    {"role": "user", "content": "Thanks"},
]
ONE = [{"role": "user", "content": "x"}]
PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "a b"}, {"type": "text", "text": "c", "cache": True}]},
]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in Zürich & \"elsewhere\"",
        "parameters": {
            "type": "object",
            "properties": {
                "zone": {"type": "array", "items": {"type": "string"}, "default": None},
                "days": {"type": "integer", "minimum": 1, "maximum": 1e21, "step": 0.5},
                "items": {"type": "boolean", "default": False},
            },
            "required": ["zone"],
        },
    },
}
CALLS = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{\"zone\": [\"a\"]}"}}
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "sunny"},
    {"role": "assistant", "content": "Sunny.", "reasoning_content": "easy", "name": "bot", "refusal": None},
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CASES = []


def add(*templates, messages=ONE, tokens=TOKENS, **options):
    for template in templates:
        CASES.append({"template": template, "messages": messages, "tokens": tokens, **options})


def expressions(*texts, **options):
    add(*("{{ " + text + " }}" for text in texts), **options)


# --- what is always there

for name in ["tools", "documents"]:
    add(
        "{% if NAME is none %}N{% else %}other{% endif %}",
        "{% if NAME is not none %}other{% else %}N{% endif %}",
        "{% if NAME == none %}N{% endif %}{% if NAME != none %}other{% endif %}",
        "{{ NAME is defined }}{{ NAME is undefined }}",
        "[{{ NAME }}]",
        "{{ NAME | tojson }}",
        "{% if not NAME is defined %}{% set NAME = 'u' %}{% endif %}[{{ NAME }}]",
        "{{ NAME or 'none' }}{{ NAME is iterable }}{{ NAME | default('d') }}{{ NAME | default('d', true) }}",
    )
    for case in CASES[-8:]:
        case["template"] = case["template"].replace("NAME", name)
expressions(
    "add_generation_prompt", "bos_token ~ eos_token", "unk_token is defined", "bos_token is defined",
    "unk_token", "enable_thinking is defined",
)
expressions("bos_token is defined", "'[' ~ bos_token ~ ']'", "bos_token + 'x'", tokens={})
add("{% if add_generation_prompt %}yes{% else %}no{% endif %}", add_generation_prompt=False)
add("{{ enable_thinking }}|{{ level.deep[0] }}", variables={"enable_thinking": False, "level": {"deep": [1.5, None]}})
add("{{ bos_token }}", variables={"bos_token": "<other>"})
expressions("none", "None", "true", "True", "[true, none, 1, 1.0, 'a', \"it's\"]", "(1,)", "(1, 'b')", "{}", "[]", "()")

# --- messages as dicts

add("{{ messages }}", "{{ messages[0] }}", "{{ messages[0] | tojson }}", messages=CHAT)
add(
    "{{ messages }}", "{{ messages | tojson }}", "{{ messages | tojson(indent=2) }}", "{{ messages[1].keys() | list }}",
    "{% for m in messages %}{{ m.role }}:{{ m.content is defined }}{{ m.get('name', '-') }};{% endfor %}",
    "{% for m in messages %}{% for k, v in m.items() %}{{ k }}={{ v }};{% endfor %}{% endfor %}",
    "{% for m in messages if m.tool_calls %}{{ m.tool_calls[0].function.arguments }}{{ m.tool_calls | tojson }}{% endfor %}",
    "{% for m in messages %}{{ m.reasoning_content }}{{ m.thinking }}{{ m.reasoning }}{% endfor %}",
    "{% for m in messages %}{% if 'tool_calls' in m %}calls{% elif m['role'] == 'tool' %}{{ m.tool_call_id }}{% endif %}{% endfor %}",
    messages=CALLS,
)
add("{{ messages[0].thinking }}{{ messages[0] }}", messages=[{"role": "assistant", "content": "a", "thinking": "t"}])
add("{{ messages[0] }}", messages=[{"role": "assistant", "content": "a", "reasoning": "t"}])
add("{{ messages[0].role }}{{ messages[0] }}", messages=[{"content": "b", "z": 1, "role": "user", "a": [1, {"y": 2, "b": 3}]}])

# --- tools

add(
    "{{ tools | tojson }}", "{{ tools | tojson(indent=4) }}", "{{ tools }}", "{{ tools[0].function.parameters }}",
    "{% for t in tools %}{% for n, p in t.function.parameters.properties.items() %}{{ n }}:{{ p.type }};{% endfor %}{% endfor %}",
    "{{ tools[0].function.parameters.properties.keys() | list }}", "{{ tools is none }}{{ tools | length }}",
    "{{ tools[0] | tojson(sort_keys=true) }}", "{{ tools[0] | tojson(separators=(',', ':')) }}",
    "{{ tools[0].function.description | tojson(ensure_ascii=true) }}", "{{ tools[0].function.parameters.properties.zone['items'] }}",
    "{% for t in tools | selectattr('type', 'equalto', 'function') | map(attribute='function') %}{{ t.name }}{% endfor %}",
    tools=[TOOL],
)
add("{{ documents }}{{ documents[0].title }}", documents=[{"title": "T", "text": "x"}])

# --- tojson

for value in [
    "'a\"b\\\\c\\n\\t/<>&'", "'é🦀\\u2028'", "1", "1.0", "0.1", "1e20", "1e16", "1e15", "0.00001", "-2.5e-7", "true", "none",
    "[]", "{}", "[[], {}]", "{'b': 1, 'a': {'d': [1, 2], 'c': none}}", "(1, 'x')", "{1: 'a', true: 'b', none: 'c'}",
    "'\\x7f\\x01'",
]:
    expressions(
        f"{value} | tojson", f"{value} | tojson(indent=2)", f"{value} | tojson(ensure_ascii=true)",
        f"{value} | tojson(separators=(', ', ':'), sort_keys=true)" if "none:" not in value else f"{value} | tojson(false)",
    )
expressions(
    "{'a': [1, {'b': 2}]} | tojson(indent=0)", "{'a': [1]} | tojson(indent='\t')", "[1, 2] | tojson(true, 3)",
    "{'b': 1, 'a': 2} | tojson(indent=4, sort_keys=true, separators=(',', ' = '))", "nothing | tojson", "messages[1:] | tojson",
    "{'a': 1} | tojson(nonsense=1)", "'x' | tojson | length", "[1.5, -0.0] | tojson", "18446744073709551615 | tojson",
)

# --- dicts keep their order

expressions(
    "{'b': 1, 'a': 2}", "{'b': 1, 'a': 2}.items() | list", "{'z': 1, 'y': 2} | list", "{'b': 1, 'a': 2} | dictsort",
    "{'b': 1, 'a': 2}.keys() | join(',')", "{'b': 1, 'a': 2}.values() | list", "dict(b=1, a=2)", "{'b': 1, 'b': 2, 'a': 3}",
    "{'b': 1, 'a': 2}.copy()", "{'a': 1}.get('b') is none", "{'a': 1}.get('b', 5)", "{'a': {'b': 1}}.a.b", "{'a': 1} == {'a': 1}",
)
add("{% for k, v in {'b': 1, 'a': 2}.items() %}{{ loop.index }}{{ k }}{{ v }}{% endfor %}",
    "{% for k in {'b': 1, 'a': 2} %}{{ k }}{% endfor %}", "{% for k, v in {'b': 1, 'a': 2} | items %}{{ k }}{{ v }}{% endfor %}")

# --- lists as contents

add(
    "{% for p in messages[0].content %}<{{ p.text }}>{% endfor %}",
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{% if p.type == 'text' %}"
    "{{ p.text }}|{% endif %}{% endfor %}{% endif %}{% endfor %}",
    "{{ messages[0].content | map(attribute='text') | join(' ') }}",
    "{{ messages[0]['content'][0]['text'] }}{{ messages[0].content | length }}",
    "{% macro show(content) %}{% for p in content %}{{ p['text'] | upper }}{% endfor %}{% endmacro %}{{ show(messages[0].content) }}",
    "{% for p in messages[0].content | selectattr('type', 'equalto', 'text') %}{{ p.text }}{{ p.cache }}{% endfor %}",
    "{% set c = messages[0].content %}{% if c is sequence and c is not string %}{{ c[-1].text }}{% else %}{{ c }}{% endif %}"
    "{{ messages[0].content[0].text }}",
    messages=PARTS,
)
add("{% for p in messages[0].content %}<{{ p.text }}>{% endfor %}|", messages=ONE)

# --- methods

TEXT = "' aXb-ab Éßx\\t'"
for call in [
    "rsplit('b')", "rsplit('b', 1)", "rsplit()", "rsplit(none, 1)", "rsplit(maxsplit=1)", "rsplit(sep='-')", "split('b', 1)",
    "split('b', maxsplit=1)", "split()", "split(none, 1)", "split('')", "partition('b')", "rpartition('b')", "partition('q')",
    "rpartition('q')", "partition('')", "index('b')", "index('q')", "rindex('b')", "index('b', 5)", "find('b', 5)", "find('b', 0, 2)",
    "find('', 99)", "find('', 11)", "rfind('b')", "rfind('b', 0, 5)", "find('b', -3)", "count('b')", "count('')", "count('b', 4)",
    "removeprefix(' a')", "removeprefix('q')", "removesuffix('\\t')", "removesuffix('q')", "removesuffix('')", "zfill(14)", "zfill(2)",
    "ljust(14, '.')", "rjust(14, '.')", "center(14, '.')", "center(15, '.')", "ljust(14)", "ljust(14, '..')", "casefold()", "swapcase()",
    "expandtabs()", "expandtabs(4)", "expandtabs(0)", "expandtabs(tabsize=3)", "title()", "istitle()", "upper()", "lower()",
    "capitalize()", "strip()", "lstrip()", "rstrip()", "strip(' \\ta')", "strip(none)", "isspace()", "isdecimal()", "splitlines()",
    "startswith(' a')", "startswith(('q', ' a'))", "startswith('a', 1)", "startswith('a', 1, 1)", "endswith('\\t')", "endswith('x', 0, -1)",
    "replace('b', 'BB')", "replace('b', 'BB', 1)", "join(['1', '2'])", "isalpha()", "isalnum()", "islower()", "isupper()", "encode()",
    "nonsense()", "format()", "isascii()", "isdigit()",
]:
    expressions(f"{TEXT}.{call}")
for text, calls in [
    ("'-7'", ["zfill(4)", "isdigit()"]), ("'+'", ["zfill(3)"]), ("''", ["zfill(3)", "split()", "split(',')", "splitlines()", "title()", "center(4)"]),
    ("'a\\r\\nb\\rc\\x0bd\\n'", ["splitlines()", "splitlines(true)", "splitlines(keepends=true)", "expandtabs()"]),
    ("'they\\'re BILL\\'s 3rd ǆ ß'", ["title()", "capitalize()", "swapcase()", "casefold()"]),
    ("'ΣΑΣ ſ ﬁ İ ı Ꭰ'", ["casefold()", "lower()", "upper()", "swapcase()"]),
    ("'12'", ["isdecimal()", "isdigit()", "isnumeric()"]), ("'٣'", ["isdecimal()"]), ("'½'", ["isdecimal()"]),
    ("'Hello World'", ["istitle()", "swapcase()"]), ("'a,b,,c'", ["split(',')", "rsplit(',', 2)", "split(',', -1)", "partition(',')[2]"]),
    ("'a\u00a0b\u2003c'", ["split()", "strip()"]), ("'{} {x}'", ["format(1, x=2)"]), ("'ab' * 3", ["count('ab')"]),
]:
    expressions(*(f"({text}).{call}" for call in calls))
expressions(
    "[1, 2, 1].index(1)", "[1, 2, 1].index(1, 1)", "[1, 2].index(3)", "[1, 2, 1].count(1)", "(1, 2, 1).count(1)", "['a'].copy()",
    "(1, 2).index(2)", "[1].append(2)", "{'a': 1}.pop('a')", "{'a': 1}.update({})", "messages[0:1].index(messages[0])", "[[1], [2]].index([2])",
)

# --- percent formatting

expressions(
    "'%s: %s' % ('user', 'x')", "'%s' % 'x'", "'%s' % 5", "'%d items' % 3", "'%05.1f|%x|%+d|%-4s|%%' % (3.14159, 255, 7, 'a')",
    "'%(a)s-%(b)d' % {'a': 'x', 'b': 2}", "'%s' % [1, 'a']", "'%s' % none", "'%r' % 'a'", "'%s%s' % ('a',)", "'%d' % 'a'", "'a' % 'b'",
    "'%s' % (messages[0].content,)", "'%s' % messages[0].content | upper", "('%s' % 'a') ~ 'b'", "'x' ~ '%s' % 'a' ~ 'y'",
    "'%s' % ('a' if true else 'b')", "('a' ~ '%s') % 'b'", "'%s' % 'a' == 'a'", "['%s' % 1, '%s' % 2]", "7 % 3", "-7 % 3", "7 % -3",
    "7.5 % 2", "-7.5 % 2", "7 % 0", "2 * 7 % 4", "7 % 4 * 2", "20 % 7 % 4", "1 + 7 % 4", "true % 2", "'%s' % ('%s' % 'in')",
    "{'a': '%s' % 1}['a']", "'%s%%' % (10 % 4)", "'%3d|%-3d|%03d' % (5, 5, 5)", "'%s' % 1.0", "'%c' % 'a'", "'%e' % 12345.678", "'%g' % 0.00001",
)
add("{% for m in messages %}{% if loop.index0 % 2 == 0 %}{{ m.role }}{% endif %}{% endfor %}",
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 1) %}odd{% endif %}{% endfor %}",
    "{% set f = '%s=%d' %}{{ f % ('a', 1) }}", "{%- set x = 5 -%}{{- x%3 -}}", messages=CHAT)

# --- filters

PROSE = "'The quick-brown fox jumped over the well-known lazy dog -- twice; see supercalifragilistic and/or e-mail.'"
expressions(
    "'a b_c, d-e é'|wordcount", "''|wordcount", "'ab'|center(7)", "'ab'|center(width=6)", "'ab'|center|length", "5|center(4)",
    "'<p>a  <b>b</b><!-- <i> --> &amp; &lt;c&gt; &eacute;&#39;&#x41; &nope;</p>\\n d'|striptags", "'a < b'|striptags", "'<!-- a'|striptags",
    "'foo bar baz qux'|truncate(9)", "'foo bar baz qux'|truncate(9, true)", "'foo bar baz qux'|truncate(11)", "'foo bar baz qux'|truncate(9, leeway=0)",
    "'foo bar baz qux'|truncate(9, true, '…', 0)", "'foo bar baz qux'|truncate(length=5, end='')", "'foo bar'|truncate(2)", "'x'|truncate",
    "('word ' * 80)|truncate", "'a b/ü?&='|urlencode", "{'b': 'x y', 'a/': 1}|urlencode", "[('a', 'b c'), ('d', 2)]|urlencode", "5|urlencode",
    "{'b': 'x<y', 'a': none, 'c': nothing, 'd': \"q'\"}|xmlattr", "{'b': 1}|xmlattr(false)", "{}|xmlattr", "{'a b': 1}|xmlattr",
    "{'a': 1}|xmlattr(autospace=false)", "1|filesizeformat", "0|filesizeformat", "999|filesizeformat", "1000|filesizeformat", "1024|filesizeformat(true)",
    "1300000|filesizeformat", "1e12|filesizeformat", "'13000'|filesizeformat", "1e30|filesizeformat", "1234567890|filesizeformat(binary=true)", "1.5|filesizeformat",
    "[7]|random", "'a'|random", "[]|random", "'<a>'|forceescape", "'<a>'|e", "'<a>'|escape|forceescape",
    f"{PROSE}|wordwrap(20)", f"{PROSE}|wordwrap(10)", f"{PROSE}|wordwrap(10, false)", f"{PROSE}|wordwrap(10, break_long_words=false, break_on_hyphens=false)",
    f"{PROSE}|wordwrap(20, wrapstring='|')", f"{PROSE}|wordwrap(4)", f"{PROSE}|wordwrap", "'a\\nb  c\\n\\n  d'|wordwrap(3)", "''|wordwrap",
    "'x-y-z ab-cd-ef 1-2 a--b'|wordwrap(3)", "'a - b -- c'|wordwrap(4)", "'     lead'|wordwrap(4)",
    "'hello world-wide o\\'neil'|title", "'aBc'|capitalize", "'a,b'|replace(',', ';')", "[3, 1, 2]|sort", "['b', 'A']|sort", "['b', 'A']|sort(case_sensitive=true)",
    "[3, 1]|sort(reverse=true)", "[1, 2, 3]|sum", "[1, 2]|join('-')", "['a', 1, none]|join", "'abc'|reverse", "[1, 2]|reverse|list", "[1, 2, 1]|unique|list",
    "[1, 2, 3, 4]|batch(3)|list", "[1, 2, 3, 4]|slice(3)|list", "' a '|trim", "'xax'|trim('x')", "'a\\nb'|indent", "'a\\nb'|indent(2, true)",
    "'a\\n\\nb'|indent(width=2, blank=true)", "'5'|int + 1", "'x'|int(7)", "'2.5'|float", "2.675|round(2)", "2.5|round", "-3|abs", "[1, 2]|first", "[1, 2]|last",
    "[]|first", "'ab'|list", "5|string ~ 'x'", "none|string", "[1, none]|string", "nothing|default('d')", "''|default('d', true)", "[1, 2]|max", "['b', 'a']|min",
    "[{'a': 1}, {'a': 2}]|map(attribute='a')|list", "[{'a': 1}, {}]|map(attribute='a', default=0)|list", "['a', 'b']|map('upper')|list",
    "[1, 2, 3]|select('odd')|list", "[1, 2, 3]|reject('odd')|list", "[0, 1, '']|select|list", "[{'a': 1}, {'a': 0}]|selectattr('a')|list",
    "[{'a': 1}, {'a': 0}]|rejectattr('a')|list", "[{'k': 1, 'v': 2}, {'k': 1, 'v': 3}]|groupby('k')|map('last')|list", "'%s-%s'|format('a', 1)",
    "{'a': 1}|attr('a')", "'a'|length", "[1]|count", "'a'|nonsense", "'http://a.b'|urlize", "'AbC'|lower|upper", "3.0|int", "[[1, 2], [3]]|sum(start=[])",
    "'x'|e ~ '<'", "'a'|pprint", "[1.0, 2]|list",
)

# --- tests

for value in ["'a'", "1", "1.0", "true", "none", "nothing", "[]", "{}", "()", "messages", "messages[0]", "raise_exception", "range(3)", "bos_token"]:
    names = ["sequence", "iterable", "mapping", "string", "number", "integer", "float", "boolean", "callable", "none", "defined"]
    add("".join("{{ " + value + " is " + name + " }}," for name in names))
expressions(
    "1 is odd", "2 is even", "6 is divisibleby 3", "6 is divisibleby(4)", "'a' is lower", "'A' is upper", "1 is sameas 1", "1 in [1]", "1 is in [1]",
    "1 is eq 1", "'a' is not string", "1 is nonsense", "2 is gt 1", "true is true", "1 is true", "'upper' is filter", "'odd' is test", "'nope' is filter",
)
add("{% macro m() %}{% endmacro %}{{ m is callable }}{{ cycler(1) is callable }}{{ joiner() is callable }}")

# --- functions and objects

add(
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.current }}{{ c.next() }}{{ c.next() }}{{ c.reset() }}{{ c.next() }}", "{{ cycler() }}",
    "{% set j = joiner('|') %}{% for x in [1, 2, 3] %}{{ j() }}{{ x }}{% endfor %}", "{% set j = joiner() %}{{ j() }}a{{ j() }}b",
    "{% set ns = namespace(a=1) %}{% for x in [1, 2] %}{% set ns.a = ns.a + x %}{% endfor %}{{ ns.a }}", "{{ raise_exception('no') }}",
    "{{ range(3) | list }}{{ range(5, 1, -2) | list }}", "{{ debug() }}", "{{ strftime_now('%%') }}", "{{ nonsense() }}",
    "{% for x in [1, 2, 3] %}{{ loop.cycle('a', 'b') }}{{ loop.changed(x > 1) }}{{ loop.first }}{{ loop.last }}{{ loop.revindex }}{{ loop.length }}{% endfor %}",
    "{% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% if x == 3 %}{% break %}{% endif %}{% else %}none{% endfor %}",
    "{% for x in [] %}x{% else %}none{% endfor %}", "{% for a, b in [(1, 2), [3, 4]] %}{{ a }}{{ b }}{% endfor %}",
    "{% for x in [1, [2, [3]]] recursive %}{% if x is iterable %}[{{ loop(x) }}]{% else %}{{ x }}{% endif %}{% endfor %}",
    "{% for x in [1, 2] %}{{ loop.previtem }}{{ loop.nextitem }};{% endfor %}",
    "{% macro m(a, b='d') %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{{ m(1, b=2) }}{{ m() }}",
    "{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}x{% endcall %}", "{% filter upper %}abc{% endfilter %}",
    "{% set x %}a{{ 1 }}{% endset %}{{ x }}{{ x | length }}", "{% set x | upper %}a{% endset %}{{ x }}", "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% with a = 1 %}{{ a }}{% endwith %}{{ a }}", "{% if false %}{% elif true %}b{% endif %}", "{% do 1 %}", "{% include 'x' %}", "{% frobnicate %}",
    "{% set x = 1 %}{% for i in [1] %}{% set x = 2 %}{% endfor %}{{ x }}", "{% autoescape true %}{{ '<' }}{% endautoescape %}",
)

# --- operators, literals and undefined values

expressions(
    "1 + 2 * 3 ** 2", "7 // 2", "-7 // 2", "7 / 2", "'a' ~ 1 ~ none ~ true", "'a' 'b'", "'a' * 3", "[1] + [2]", "[1] * 2", "1 < 2 < 3", "1 if false", "'a' if true else 'b'",
    "not true and false", "'a' in 'abc'", "'x' not in ['x']", "'abc'[1]", "'abc'[-1]", "'abc'[::-1]", "'abc'[:2]", "[1, 2, 3][1:]", "[1, 2, 3][::-1]", "'\\x41\\u00e9\\d\\n'",
    "'\\101'", "0x1f", "0b11", "1_000", "1e3", "1.5", "1e400", "'a' + 1", "nothing", "nothing.a", "nothing[0]", "nothing + 'a'", "'a' + nothing", "nothing ~ 'a'", "nothing == none",
    "nothing is none", "[] or 'e'", "'' and 'x'", "messages[9]", "messages[0].nothing", "messages[0]['nothing'] is defined", "messages | length > 0", "{'a': 1}.b", "'a'.b", "5 | string | length",
    "1 == 1.0", "'1' == 1", "true == 1", "[1, 2] == [1, 2]", "(1, 2) + (3,)", "'%' ~ '}'", "'}}'", "\"a'b\"", "'a' > 'b'", "2 ** -1", "10 ** 20", "'é' | length",
    "'a' if nothing else 'b'", "-1 | abs", "not nothing", "(1 + 2) | string", "'\\\\n'", "' '.join(['a', 'b'])", "[1, 'a', [2.5, none]]", "{'a': [1, (2, 3)], 'b': {'c': \"d'e\"}}",
    "'\"' ~ \"'\"", "['\"', \"'\", 'a\\nb', 'é', '\\x00']", "{'k': '\\t'}", "1.0 * 3", "1e-7", "123456789012345680.0", "0.1 + 0.2", "5.0 // 2", "[1e20]",
)

# --- text, white space and line ends

add(
    "<{{ messages[0].role }}>\r\n{% for m in messages %}\r\n{{ m.content }}\r\n{% endfor %}\r\n", "a\rb\r\nc\nd", "{{ 'a\r\nb' }}", "a\n", "a\n\n", "\na",
    "a\n  {% if true %}\n    b\n  {% endif %}\n  c", "a  {%- if true -%}  b  {%- endif -%}  c", "a\n  {%+ if true %}b{% endif +%}\n c", "a {#- c -#} b", "a {# {{ x }} #} b\n",
    "  {# c #}\nb", "{{- 'a' -}}  \n b", "{% raw %}{{ x }}{% if %}{% endraw %}", "{% raw -%}  {{ x }}  {%- endraw %}", "{{ '{{' }}{{ '%}' }}", "{% set x = '{% endif %}' %}{{ x }}",
    "{%- for m in messages -%}\n  {{ m.role }}\n{%- endfor %}\n{%- if add_generation_prompt %}\nassistant{% endif %}", "{ {% if true %}{{ '}' }}{% endif %} }", "é🦀{{ '🦀' }}",
    "{% if true %}\n\nb{% endif %}\n\n\nc", "\t{% if true %}\tb\n\t{% endif %}", "{% if true %}{# c #}\nx{% endif %}", "line # no comment\n{{ 1 }}",
)

# --- generation tags

add(
    "{% generation %}{{ messages[0].content }}{% endgeneration %}", "{%- generation -%} x {%- endgeneration -%} y", "a\n  {% generation %}\nb\n  {% endgeneration %}\nc",
    "{% raw %}{% generation %}{% endraw %}", "{{ '{% generation %}' }}", "{# {% generation %} #}x", "{% set x = \"{% endgeneration %}\" %}{{ x }}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x }}", "{% raw %} it's {% generation %} {% endraw %}{% generation %}a{% endgeneration %}",
    "generation {{ 'endgeneration' }}", "{% generation %}{% if true %}{{ messages[0]['role'] }}{% endif %}{% endgeneration %}", messages=CHAT,
)

# --- continued messages

UNFINISHED = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "1, 2, "}]
for template in [
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}",
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
    "{% for m in messages %}{{ m['content'].split('2')[0] }}{% endfor %}", "{% for m in messages %}{{ m.role }}{% endfor %}", "{{ messages[0].content }}",
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}</s>{% endfor %}",
]:
    add(template, messages=UNFINISHED, continue_final_message=True, add_generation_prompt=False)
    add(template, messages=PARTS, continue_final_message=True, add_generation_prompt=False)
add("{{ messages }}", messages=CALLS[:2], continue_final_message=True, add_generation_prompt=False)
add("{{ messages[-1].content }}!", messages=ONE, continue_final_message=True, add_generation_prompt=False)

# --- templates as they are published

add(
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'system') and loop.first %}{{ '<<SYS>>' + message['content'] | trim + '<</SYS>>' }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' + message['content'].strip() + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}",
    "{%- set ns = namespace(found=false, last=messages|length - 1) -%}\n{%- for m in messages[::-1] %}\n    {%- if m.role == 'user' and not ns.found %}\n        {%- set ns.found = true %}\n"
    "        {%- set ns.last = (messages|length - 1) - loop.index0 %}\n    {%- endif %}\n{%- endfor %}\n{%- for m in messages %}\n    {%- if m.role == 'assistant' %}\n"
    "        {%- set content = m.content.split('</think>')[-1].lstrip('\\n') %}\n        {{- '<|assistant|>' + content }}\n    {%- else %}\n"
    "        {{- '<|' ~ m.role ~ '|>' ~ m.content }}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|assistant|>' }}\n{%- endif %}",
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}"
    "{%- for m in loop_messages %}{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('roles must alternate') }}{%- endif %}"
    "{{- '<start_of_turn>' + m['role'] + '\n' + (m['content'] | trim) + '<end_of_turn>\n' }}{%- endfor %}", messages=CHAT,
)


def main():
    results = []
    for case in CASES:
        options = {"add_generation_prompt": True, "continue_final_message": False, **case}
        given = {
            "conversations": [_normalize_chat_messages(case["messages"])],
            "chat_template": case["template"],
            "tools": case.get("tools"),
            "documents": case.get("documents"),
            "add_generation_prompt": options["add_generation_prompt"],
            "continue_final_message": options["continue_final_message"],
        }
        try:
            rendered, _ = render_jinja_template(**given, **{**case["tokens"], **case.get("variables", {})})
            results.append({**case, "expected": rendered[0]})
        except Exception:  # Whatever it is: the template cannot be used with this input.
            results.append({**case, "error": True})
    OUT.write_text(json.dumps({"transformers": transformers.__version__, "cases": results}, ensure_ascii=False, indent=1) + "\n")
    failed = [case["template"] for case in results if "error" in case]
    print(f"{len(results)} cases, {len(failed)} of them errors:")
    print("\n".join(failed))


if __name__ == "__main__":
    main()
