#!/usr/bin/env python3
"""Makes and re-checks tests/tokenizer/golden/templates.json: chat templates and expressions rendered by Python's jinja2
in the environment that Hugging Face's transformers sets up for them.

    pip install transformers jinja2
    tools/make_template_goldens.py            # rewrites the golden
    tools/make_template_goldens.py --check    # exit 1 if the committed file differs

A case is {template, variables, output} or {template, variables, error: true}. Every template here is our own.
"""
import argparse
import json
import pathlib
import sys

import jinja2
import transformers
from transformers.utils.chat_template_utils import _compile_jinja_template

OUT = pathlib.Path(__file__).resolve().parent.parent / "tests/tokenizer/golden/templates.json"

CHATS = [
    [{"role": "user", "content": "Hello, who are you?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  2 + 2?\n"},
     {"role": "assistant", "content": "4"}, {"role": "user", "content": "Grüße, 你好 😀 'quoted' \"double\" <b>&</b>"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"}, {"role": "user", "content": ""}],
]

TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Wetter für \"Orte\" </tools>",
          "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 3}},
                         "required": ["city"]}}}]

CHATML = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

CHATML_DEFAULT_SYSTEM = """{%- for message in messages -%}
    {%- if loop.first and messages[0]['role'] != 'system' -%}
        {{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
    {%- endif -%}
    {{ '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""

BRACKETS = """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate') }}
{% endif %}
{% if message['role'] == 'user' %}
{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}
{{ message['content'] + eos_token }}
{% else %}
{{ raise_exception('only user and assistant') }}
{% endif %}
{% endfor %}
"""

HEADERS = """{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

TURNS = """{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}{%- set loop_messages = messages[1:] -%}{%- else -%}{%- set first_user_prefix = '' -%}{%- set loop_messages = messages -%}{%- endif -%}
{%- for message in loop_messages -%}
  {%- if (message['role'] == 'assistant') -%}{%- set role = 'model' -%}{%- else -%}{%- set role = message['role'] -%}{%- endif -%}
  {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else '') }}
  {%- if message['content'] is string -%}
    {{ message['content'] | trim }}
  {%- elif message['content'] is iterable -%}
    {%- for item in message['content'] -%}
      {%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
    {%- endfor -%}
  {%- else -%}{{ raise_exception('bad content') }}{%- endif -%}
  {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""

TOOL_CHATML = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}{{- tool_call.arguments }}{%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

TOOL_CHAT = [{"role": "user", "content": "Weather?"},
             {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "days": 2}}}, {"name": "weather", "arguments": "{}"}]},
             {"role": "tool", "content": "rain"}, {"role": "tool", "content": "sun"}]

MACRO_TYPES = """{%- macro type_of(spec) -%}
  {%- if spec.type == 'array' -%}array<{{ type_of(spec['items']) }}>
  {%- elif spec.type == 'object' -%}
    { {%- for key, value in spec.properties.items() %}{{ key }}: {{ type_of(value) }}{% if key in spec.required %}!{% endif %}{{ ', ' if not loop.last }}{% endfor -%} }
  {%- elif spec.enum is defined -%}{{ spec.enum | join(' | ') }}
  {%- else -%}{{ spec.type | default('any') }}{%- endif -%}
{%- endmacro -%}
{%- for tool in tools -%}{{ tool.function.name }}({{ type_of(tool.function.parameters) }}){% endfor -%}"""

VARIED = [
    "{% macro item(text, mark='-', n=2) %}{{ mark * n }} {{ text }}{% endmacro %}{{ item('a') }}|{{ item('b', '+') }}|{{ item(n=1, text='c') }}|{{ item() }}",
    "{% macro wrap(tag) %}<{{ tag }}>{{ caller() }}</{{ tag }}>{% endmacro %}{% call wrap('b') %}{{ messages[0].content }}{% endcall %}",
    "{% macro each(xs) %}{% for x in xs %}{{ caller(x, loop.index) }};{% endfor %}{% endmacro %}{% call(v, i) each([3, 4]) %}{{ i }}={{ v }}{% endcall %}",
    "{% macro v() %}{{ varargs }} {{ kwargs }}{% endmacro %}{{ v(1, 2, a='x') }}",
    "{% macro m() %}{{ x }}{% endmacro %}{% set x = 1 %}{{ m() }}{% set x = 2 %}{{ m() }}",
    "{% macro a(n) %}{{ n }}{% if n > 0 %}{{ a(n - 1) }}{% endif %}{% endmacro %}{{ a(5) }}",
    "{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{{ m(1, 2) }}",
    "{% macro m(caller) %}{{ caller }}{% endmacro %}{{ m('x') }}",
    "{% set ns = namespace(n=0, found=false) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% if m.role == 'user' and not ns.found %}{% set ns.found = true %}[{{ loop.index }}]{% endif %}{% endfor %}{{ ns.n }}",
    "{% set x = 1 %}{% for i in [1, 2] %}{{ x }}{% set x = i * 10 %}{{ x }}{% endfor %}{{ x }}",
    "{% if true %}{% set y = 5 %}{% endif %}{{ y }}",
    "{% set a, b = 1, (2, 3) %}{{ a }}{{ b }}{% set (c, d) = b %}{{ c }}{{ d }}",
    "{% for a, (b, c) in [(1, (2, 3)), (4, (5, 6))] %}{{ a }}{{ b }}{{ c }};{% endfor %}",
    "{% for k, v in {'x': 1, 'y': 2}.items() %}{{ k }}={{ v }},{% endfor %}",
    "{% for k in {'x': 1, 'y': 2} %}{{ k }}{% endfor %}{% for c in 'añ😀' %}({{ c }}){% endfor %}",
    "{% for x in [] %}a{% else %}empty{% endfor %}{% for x in nothing %}a{% else %}undefined{% endfor %}",
    "{% for x in [1, 2, 3, 4, 5] if x is odd %}{{ loop.index }}/{{ loop.length }}:{{ x }}{{ ',' if not loop.last }}{% endfor %}",
    "{% for x in range(4) %}{{ loop.first }} {{ loop.last }} {{ loop.index }} {{ loop.index0 }} {{ loop.revindex }} {{ loop.revindex0 }} {{ loop.previtem }} {{ loop.nextitem }} {{ loop.cycle('a', 'b') }} {{ loop.depth }}|{% endfor %}",
    "{% for x in [1, 1, 2, 2, 1] %}{{ loop.changed(x) }} {% endfor %}",
    "{% for x in range(10) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in [1, 2] %}{% for y in [3, 4] %}{{ loop.index }}{{ x }}{{ y }} {% if y == 3 %}{% continue %}{% endif %}{% break %}{% endfor %}{% endfor %}",
    "{% set ns = namespace(stop=false) %}{% for x in [1, 2, 3, 4] if not ns.stop %}{{ x }}{% if x == 2 %}{% set ns.stop = true %}{% endif %}{% endfor %}",
    "{% set text %}  hello {{ messages | length }}  {% endset %}[{{ text }}]{% set up | trim | upper %} abc {% endset %}[{{ up }}]",
    "{% filter upper %}abc {{ 'def' }}{% endfilter %}{% filter trim | replace('a', 'b') %} aaa {% endfilter %}",
    "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a }}",
    "{% generation %}{{ messages[0].content }}{% endgeneration %}",
    "{% raw %}{{ not }} {% rendered %}{% endraw %}  {%- raw -%}  x  {%- endraw -%}  y",
    "a {# comment #} b {#- c -#} d\n{# e #}\nf",
    "  {% if true %}\n    x\n  {% endif %}\ny\n",
    "  {%+ if true %}\n x {%+ endif +%}\ny",
    "\t{% if true -%}\n\n  x  \n\n{%- endif %}\n\nz\n\n",
    "a\n  {{ 1 }}\n  {{- 2 -}}\n  b",
    "line1\r\nline2\rline3\n\n",
    "{{ 'a' 'b' \"c\" }}{{ '\\n\\t\\\\\\'\\x41\\u00e9\\U0001f600\\q' }}",
    "{% print 1, 2 %}",
    "{% if a is defined and a %}A{% elif messages %}M{% else %}E{% endif %}",
    "{{- messages[0]['content'] -}}",
    "{% set x = [1, 2] + [3] %}{{ x }}{{ x[0] }}{{ x[-1] }}{{ x[1:] }}{{ x[::-1] }}{{ x[5] }}{{ x['a'] }}",
    "{{ messages | map(attribute='role') | join(', ') }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list }}",
    "{{ messages | rejectattr('role', 'eq', 'user') | list | length }}",
    "{{ (messages | selectattr('role', '==', 'user') | list | last).content }}",
    "{{ (messages | first)['role'] }}{{ messages[-1].role }}{{ messages | map('length') | list }}",
    "{% for m in messages | reverse %}{{ m.role }} {% endfor %}",
    "{{ messages | groupby('role') | map(attribute='grouper') | list }}",
    "{% for role, ms in messages | groupby('role') %}{{ role }}{{ ms | length }};{% endfor %}",
    "{{ messages | tojson }}",
    "{{ tools | tojson(indent=2) }}",
    "{{ messages[0] }}",
    "{% set d = dict(a=1, **{'b': 2}) %}{{ d }}{{ d.a }}{{ d['b'] }}{{ d.get('c') }}{{ d.get('c', 3) }}{{ d.c }}{{ d.keys() | list }}{{ d.values() | list }}",
    "{% set m = messages | last %}{{ m.content if m.role == 'user' else 'none' }}{{ 'x' if false }}",
    "{% if messages[0].tool_calls is defined %}T{% else %}F{% endif %}{% if messages[0]['name'] %}N{% endif %}",
    "{{ messages[0].content.upper() }}|{{ messages[0].content.split() }}|{{ messages[0].content[2:5] }}",
    "{{ bos_token ~ 1 ~ none ~ true ~ 1.5 ~ undefined_thing ~ [1, 'a'] }}",
    "{% set f = ns if ns is defined else 'no' %}{{ f }}",
    "{%- set t = namespace() -%}{%- set t.a = [1] -%}{{ t.a }}{{ t.b is defined }}",
    "{% for i in range(3) %}{% set outer = loop %}{% for j in range(2) %}{{ outer.index }}.{{ loop.index }} {% endfor %}{% endfor %}",
    "{% set messages = messages[1:] %}{{ messages | length }}",
    "{{ messages | tojson(ensure_ascii=True) }}{{ {'b': 1, 'a': [1.0, none, true]} | tojson(sort_keys=true, separators=(',', ':')) }}",
    "{% if not messages %}no{% endif %}{{ not messages }}{{ not not messages }}",
    "{{ m(1) if false else 'lazy' }}",
    "{% if false %}{{ x | no_such_filter }}{% endif %}ok",
    "{% for m in messages %}{% if loop.first %}{% set first = m.role %}{% endif %}{% endfor %}{{ first is defined }}",
    "{{ '%s is %d and %.2f' | format('a', 5, 1.005) }}{{ '%-5s|%5s|%05d|%x' % ('a', 'b', 42, 255) }}",
    "{{ '{} {1}' }}{{ '{} and {}'.format('a', 2) }}{{ '{x} {0}'.format(1, x=2) }}",
]

EXPRESSIONS = """
1 + 2 * 3 - 4
7 // 2 ~ ' ' ~ -7 // 2 ~ ' ' ~ 7 % 3 ~ ' ' ~ -7 % 3 ~ ' ' ~ 7 % -3
7 / 2
6 / 2
2 ** 10
2 ** -1
2 ** 3 ** 2
-2 ** 2
7.5 // 2
-7.5 % 2
1e3
1.5e-7
1e16
1e15
123456789.123456789
0.1 + 0.2
1_000_000
0x1f + 0o17 + 0b11
1 < 2 < 3
1 < 3 < 2
1 == 1.0
true == 1
'a' < 'b'
[1, 2] < [1, 3]
(1, 2) == (1, 2)
(1, 2) == [1, 2]
'a' in 'abc'
'a' not in 'abc'
1 in [1, 2]
1 in {1: 2}
'x' in {'x': 1}
none in [none]
true and 'x'
'' or 'y'
none or 0 or []
not 1
1 if true
1 if false
'a' if 0 else 'b' if 0 else 'c'
'ab' * 3
3 * [1]
[1] + [2]
(1,) + (2,)
'a' ~ 1 ~ none
{'a': 1, 'b': [1, 2, {'c': none}]}
{1: 'a', none: 2, true: 3}
{'a': 1, 'a': 2}
[1, 'two', 3.0, none, true, (1,), ()]
['it\\'s', "say \\"hi\\"", 'both \\' and "', 'tab\\t', 'nl\\n', 'é', '\\x00\\x7f', '\\u200b', '\\\\']
(1, 2, 3)[1:]
'hello'[1]
'hello'[-1]
'hello'[1:3]
'hello'[::-1]
'hello'[::2]
'hello'[-3:]
'hello'[10:]
'hello'[3:1]
'hello'[4:0:-2]
'añ😀b'[1:3]
'añ😀b'[2]
'hello'[10]
[1, 2, 3][::-2]
[1, 2, 3][-100:100]
range(5) | list
range(1, 10, 3) | list
range(5, 0, -2) | list
range(3)
range(0)
range(2, 2) | list | length
range(5)[1]
range(5)[1:3] | list
range(3) | sum
undefined_name
undefined_name is defined
undefined_name.x is defined if false else 'skipped'
none
true
[undefined_name]
undefined_name == undefined_name
undefined_name == none
undefined_name | default('d')
undefined_name | length
undefined_name | join
undefined_name | list
undefined_name | trim ~ '|'
undefined_name | upper
undefined_name | tojson is string if false else 'skipped'
'' | default('d')
'' | default('d', true)
none | default('d')
none | d('d', boolean=true)
none.x
none.x is defined
none['x'] is defined
(1).x is defined
'abc'.nothing is defined
{}.x is defined
{}['x'] is defined
{'items': 1}['items']
{'get': 5}['get']
[1, 2].x is defined
[[1, 2], [3]][0][1]
{'a': {'b': [1, 2]}}.a.b.1
{'a b': 1}['a b']
'  x y  ' | trim ~ '|'
'xxaxx' | trim('x')
'\\u00a0\\u3000x\\u2003' | trim
'Hello World' | upper
'HELLO World ÄÖ' | lower
'straße ﬁ' | upper
'ΑΣ ΑΣΑ Σ' | lower
'hello wORLD' | capitalize
'ǆ ß' | capitalize
'hello wORLD-foo (bar) it\\'s' | title
'hello wORLD-foo it\\'s 3rd'.title()
'hello' | length
'añ😀' | length
[1, 2] | length
{'a': 1} | length
'hello' | first
'hello' | last
[1, 2] | first
[] | first
[] | last
[] | first is defined
'abc' | list
{'a': 1, 'b': 2} | list
[3, 1, 2] | sort
[3, 1, 2] | sort(reverse=true)
['b', 'A', 'c'] | sort
['b', 'A', 'c'] | sort(case_sensitive=true)
[{'a': 2}, {'a': 1}] | sort(attribute='a')
[{'a': 2, 'b': 1}, {'a': 1, 'b': 2}, {'a': 1, 'b': 1}] | sort(attribute='a,b')
{'b': 1, 'A': 2, 'c': 0} | dictsort
{'b': 1, 'A': 2} | dictsort(case_sensitive=true)
{'b': 1, 'a': 2} | dictsort(by='value')
{'b': 1, 'a': 2} | dictsort(reverse=true)
[1, 2, 1, 'a', 'A'] | unique | list
[1, true, 1.0, 'x'] | unique | list
[1, 2, 3] | sum
[{'a': 1}, {'a': 2}] | sum(attribute='a')
[1.5, 2] | sum(start=10)
[3, 1, 2] | min
[3, 1, 2] | max
['b', 'A'] | min
[] | max
[1, 2, 3, 4, 5] | batch(2) | list
[1, 2, 3, 4, 5] | batch(2, 'x') | list
[1, 2, 3, 4, 5] | slice(2) | list
[1, 2, 3] | reverse | list
'abc' | reverse
{'a': 1, 'b': 2} | items | list
{'a': 1}.items()
{'a': 1}.keys()
{'a': 1}.values()
{'a': 1}.items() | list
undefined_name | items | list
[1, 2, 3] | join
[1, 2, 3] | join(', ')
[{'a': 1}, {'a': 2}] | join('-', attribute='a')
[none, true, 1.5, 'x'] | join('|')
'abc' | join('-')
'a-b' | replace('-', '+')
'aaa' | replace('a', 'b', 2)
'abc' | replace('', '-')
'abc'.replace('', '-', 2)
'abc'.replace('b', '')
'a\\nb\\n\\nc' | indent
'a\\nb\\n\\nc' | indent(2, true)
'a\\nb\\n\\nc' | indent(2, blank=true)
'a\\nb' | indent('> ')
'' | indent
'a\\n' | indent
'42' | int
'42.7' | int
'0x1f' | int
'0x1f' | int(base=16)
'1f' | int(base=16)
'ff' | int(0, 16)
'abc' | int
'abc' | int(7)
' 12 ' | int
'-12' | int
'1_000' | int
'' | int
none | int
true | int
3.9 | int
-3.9 | int
'1e3' | int
[] | int
'1.5' | float
'abc' | float
'abc' | float(2.5)
'inf' | float
'-inf' | float
'nan' | float
'1e400' | float
'.5' | float
'5.' | float
3 | float
1.23456 | round(2)
2.5 | round
3.5 | round
-2.5 | round
1234 | round(-2)
1.1 | round(1, 'ceil')
1.19 | round(1, 'floor')
2.3 | round(method='ceil')
5 | round
-5 | abs
-5.5 | abs
5 | string
1.0 | string
none | string
[1, 'a'] | string
'<a href="x">&\\'' | escape
'<b>' | e | e
'<b>' | safe
('<b>' | safe) + '<i>'
'a b c' | wordcount
'hello world foo' | truncate(8)
'hello world foo' | truncate(8, true)
'hello world foo bar baz' | truncate(12, leeway=0, end='!')
'ab' | center(6) ~ '|'
{'a': 1, 'b': [1, 2.0, none, true, 'é\\n"\\\\/<>&\\'']} | tojson
{'a': []} | tojson
[] | tojson(indent=2)
{'a': [1, {'b': 2}], 'c': {}} | tojson(indent=2)
[1, [2]] | tojson(indent=0)
[1, 2] | tojson(separators=(',', ':'))
{1: 2, none: 3, true: 4, 1.5: 5} | tojson
'\\u007f\\u0001é😀' | tojson
'\\u007f\\u0001é😀' | tojson(ensure_ascii=true)
(1, 2) | tojson
1e100 | tojson
'nan' | float | tojson
[1, 2, 3] | select('odd') | list
[1, 2, 3] | reject('odd') | list
[0, 1, '', 'a'] | select | list
[1, 2, 3, 4] | select('divisibleby', 2) | list
[1, 2, 3] | select('in', [1, 3]) | list
[1, 2, 3] | select('>', 1) | list
[{'a': 1}, {'b': 2}] | selectattr('a') | list
[{'a': 1}, {'b': 2}] | selectattr('a', 'defined') | list
[{'a': 1}, {'b': 2}] | rejectattr('a', 'defined') | list
[{'a': {'b': 1}}, {'a': {'b': 2}}] | map(attribute='a.b') | list
[{'a': 1}, {}] | map(attribute='a', default='z') | list
[[1, 2], [3]] | map(attribute=0) | list
['a', 'b'] | map('upper') | join
[1, 2] | map('string') | list
['a ', ' b'] | map('trim') | list
[1.26, 2.31] | map('round', 1) | list
['a', 'b'] | map('replace', 'a', 'z') | list
[] | map('upper') | list
([1, 2] | select('odd')) is iterable
'x' if [] | select else 'y'
[1, 2] | attr('x') is defined
{'a': 1} | attr('a') is defined
1 is number
1.0 is number
true is number
'1' is number
1 is integer
true is integer
1.0 is float
true is boolean
'a' is string
[] is string
{} is mapping
[] is mapping
[] is sequence
'a' is sequence
{} is sequence
(1,) is sequence
1 is sequence
[] is iterable
'a' is iterable
1 is iterable
none is none
undefined_name is none
undefined_name is undefined
undefined_name is iterable
undefined_name is sequence
1 is odd
2 is even
9 is divisibleby 3
9 is divisibleby(2)
1 is eq 1
1 is ne(2)
1 is lt 2
2 is ge 2
'a' is in 'abc'
'a' is in ['b']
'abc' is lower
'ABC' is upper
'aBC' is upper
'123' is lower
none is sameas none
true is sameas true
1 is sameas true
true is true
1 is true
false is false
range is callable
'a' is callable
1 is not none
1 is defined and 2 is defined
1 is not odd or true
'trim' is filter
'nope' is filter
'odd' is test
'  a b '.strip() ~ '|'
'xxaxx'.strip('x')
'xyaxy'.lstrip('xy')
'a\\n\\n'.rstrip('\\n')
'a,b,,c'.split(',')
'a,b,c'.split(',', 1)
'a,b,c'.rsplit(',', 1)
' a  b c '.split()
' a  b c '.split(none, 1)
' a  b c '.rsplit(none, 1)
' a  b c '.split(maxsplit=1)
''.split()
''.split(',')
'a\\nb\\r\\nc\\n'.splitlines()
'a\\nb'.splitlines(true)
'abc'.startswith('ab')
'abc'.startswith(('x', 'a'))
'abc'.endswith('bc')
'abc'.startswith('b', 1)
'abc'.find('c')
'añ😀c'.find('c')
'abc'.find('z')
'abcabc'.rfind('b')
'abcabc'.count('b')
'abc'.count('')
'abc'.index('b')
'a-b-c'.partition('-')
'a-b-c'.rpartition('-')
'abc'.partition('z')
'abc'.rpartition('z')
'ab'.center(5) ~ '|'
'ab'.center(5, '*')
'abc'.center(6, '*')
'ab'.ljust(4, '.')
'ab'.rjust(4) ~ '|'
'42'.zfill(5)
'-42'.zfill(5)
'prefix-x'.removeprefix('prefix-')
'x.txt'.removesuffix('.txt')
'-'.join(['a', 'b'])
'abc'.isalpha()
'12'.isdigit()
'a1'.isalnum()
' '.isspace()
''.isdigit()
'aBc'.lower() ~ 'aBc'.upper() ~ 'aBC'.capitalize()
[1, 2, 1].count(1)
[1, 2, 1].index(2)
(1, 2).count(1)
[1, 2].copy()
{'a': 1}.copy()
{'a': 1}.get('b', 'c')
{'a': 1}.get('a')
{'a': none}.a
dict(a=1, b=2)
dict([('a', 1), ('b', 2)])
dict({'a': 1}, b=2)
namespace(a=1).a
namespace({'a': 1}, b=2).b
[1, 2, 3] is sequence and [1] | length == 1
1 | string ~ 2 | string
-1 | abs
- 1 | abs
[1, 2] | length * 2
'a' ~ 'b' | upper
('a' ~ 'b') | upper
not 1 in [2]
not (1 in [2])
1 + 1 == 2 and 'ok'
'%s' % 'a'
'%s %s' % ('a', 'b')
'%(x)s' % {'x': 1}
'%5.1f|%-6d|%+d|% d|%e|%g|%%' % (3.14159, 42, 5, 5, 12345.678, 0.0001)
'%s' | format([1])
'%r' % 'a'
'%c%c' % (65, 'z')
'%o %X %#x' % (8, 255, 255)
'%.3s|%5s' % ('abcdef', 'ab')
'%03d' % -5
'\\u00e9' == 'é'
'a' 'b'
[1, 2,]
{'a': 1,}
(1)
(1,)
()
[]
{}
1.0
100000000000000000000.0
-0.0
1.5 | int
9223372036854775807
9223372036854775806 + 1
-9223372036854775807 - 1
10 | float / 4
[[]] | tojson
'a' < 'B'
'é' > 'z'
1 != 2
'1' == 1
none == none
[1, [2, [3]]]
{'k': 'v'}['k']['x'] is defined
messages[0]['role']
messages[0].content | length
messages | length
messages[-1]['content'] | upper
messages[0].keys() | list
messages[0].items() | list
messages[0] | dictsort
messages[100] is defined
messages | map(attribute='content') | map('length') | list
add_generation_prompt
bos_token + eos_token
loop is defined
self is defined if false else 1
"""

ERRORS = """
1 / 0
1 // 0
1 % 0
1.0 / 0
0 ** -1
none.a.b
undefined_name.x
undefined_name['x']
undefined_name()
undefined_name + 1
undefined_name + 'a'
1 + undefined_name
'a' + 1
1 + 'a'
'a' + none
[1] + (1,)
[1] + 'a'
'a' * 'b'
-'a'
1 < 'a'
[1] < 'a'
none < 1
1 in 1
1 in none
1 in 'abc'
{[]: 1}
'abc'[::0]
[1, 2]()
'a'()
messages.x()
messages[0].nothing()
[1, 2].append(3)
{}.update({})
{'a': 1}.pop('a')
'abc'.index('z')
[1].index(2)
'abc'.startswith(1)
'abc'.split('')
'abc'.strip(1)
'abc'.nope()
raise_exception('stop')
raise_exception()
range()
range(1, 2, 0)
range('a')
range(1.5)
range(1000000000)
range(100001) | list
none | list
1 | list
1 | length
none | length
1 | join
1 | first
[] | sort(attribute='a', nope=1)
[1, 'a'] | sort
[{}, {}] | sort
none | items | list
[1] | items | list
none | dictsort
{'a': 1} | dictsort(by='x')
undefined_name | tojson
range(3) | tojson
[undefined_name] | tojson
{(1, 2): 3} | tojson
undefined_name | int
undefined_name | float
'a' | abs
none | abs
'a' | round
1 | round(1, 'x')
[1, 2] | batch
[1] | sum('a', 'b', 'c')
['a'] | sum
[1] | map | list
[1] | map('nope') | list
[1] | select('nope') | list
[1] | selectattr | list
1 | nope
1 is nope
1 is odd(2) is defined
'a' is odd
'%d' % 'a'
'%s %s' % 'a'
'%s' % ('a', 'b')
'%q' % 1
'{} {}'.format(1)
namespace(1)
namespace(_x=1)
dict(1)
[1, 2] | indent
'a' | indent('a', 'b', 'c', 'd')
'a' | upper(1)
'a'.upper(1)
'a'.join([1])
'a'.join(1)
'a'.center()
'a'.center(3, 'ab')
'x'.zfill()
(1, 2).append
1 if
1 +
(1
[1
{'a'
'abc
1 2
a b
| upper
1 |
1 | 2
1 is
x.
x[
x[]
f(
f(a=1, 2)
f(**a, *b)
f(*a, *b)
@
1 ? 2
a = 1
$x
{{ 1 }}
1 is is
'\\N{DASH}' if false
'\\x4'
lambda x: x
[x for x in y]
1 and
not
a.b.1.c.d
'%s' % undefined_name.x
"""

ERROR_TEMPLATES = [
    "{% if %}x{% endif %}", "{% if true %}", "{% for %}{% endfor %}", "{% for x in %}{% endfor %}", "{% for x in [1] %}", "{% endfor %}",
    "{% else %}", "{% set %}", "{% set x %}", "{% set 1 = 2 %}", "{% set x = %}", "{% set x.y = 1 %}", "{% set x, y = 1 %}", "{% set x, y = [1] %}",
    "{% set x, y = 'abc' %}", "{% for a, b in [1] %}{% endfor %}", "{% for x in 5 %}{% endfor %}", "{% for x in none %}{% endfor %}",
    "{% macro %}{% endmacro %}", "{% macro m %}{% endmacro %}", "{% macro m( %}{% endmacro %}", "{% macro m(a=1, b) %}{% endmacro %}",
    "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{% endmacro %}{{ m(b=2) }}", "{% macro m(a) %}{% endmacro %}{{ m(1, a=2) }}",
    "{% macro m() %}{% endmacro %}{% call m() %}x{% endcall %}", "{% call 1 %}x{% endcall %}", "{% call nope() %}x{% endcall %}",
    "{% unknown %}", "{% %}", "{{ }}", "{{", "{%", "{#", "{{ 1", "{% if 1", "{% raw %}x", "{% break %}", "{% continue %}",
    "{% for x in [1] %}{% macro m() %}{% break %}{% endmacro %}{% endfor %}", "{% filter nope %}x{% endfilter %}", "{% include 'x' %}", "{% extends 'x' %}", "{% import 'x' as y %}",
    "{% for x in messages recursive %}{{ loop() }}{% endfor %}", "{% set ns = namespace() %}{% set ns._x = 1 %}", "{% set d = {} %}{% set d.x = 1 %}",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "{% if x is defined %}{{ 1 | nope }}{% else %}{{ 1 | nope }}{% endif %}",
    "{% set loop = 1 %}{% for x in [1] %}{{ loop.index.x.y }}{% endfor %}", "{{ messages[0].content.nope.nope }}", "{% with x %}{% endwith %}", "{% endif %}",
    "{% if true %}{% endfor %}", "{% for x in [1] %}{% endif %}{% endfor %}", "{{ 1 }", "{% if true }x{% endif %}", "{{ ) }}", "{{ (] }}", "{{ [1, 2) }}",
]


def cases():
    context = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
    for template in (CHATML, CHATML_DEFAULT_SYSTEM, BRACKETS, HEADERS, TURNS, TOOL_CHATML):
        for chat in CHATS:
            for prompt in (True, False):
                yield template, {**context, "messages": chat, "add_generation_prompt": prompt}
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " what? "}]}]
    yield TURNS, {**context, "messages": parts}
    yield TURNS, {**context, "messages": [{"role": "user", "content": 5}]}
    yield TOOL_CHATML, {**context, "messages": TOOL_CHAT, "tools": TOOLS}
    yield TOOL_CHATML, {**context, "messages": CHATS[2], "enable_thinking": False}
    yield TOOL_CHATML, {**context, "messages": TOOL_CHAT[:2], "tools": []}
    yield MACRO_TYPES, {**context, "messages": [], "tools": TOOLS + [{"function": {"name": "f", "parameters": {"type": "array", "items": {"enum": ["a", "b"]}}}}]}
    for template in VARIED:
        yield template, {**context, "messages": CHATS[1], "tools": TOOLS}
    for expression in EXPRESSIONS.strip().split("\n") + ERRORS.strip().split("\n"):
        yield "{{ " + expression + " }}", {**context, "messages": CHATS[1]}
    for template in ERROR_TEMPLATES:
        yield template, {**context, "messages": CHATS[1]}


def render(template, variables):
    try:
        return {"output": _compile_jinja_template(template).render(**variables)}
    except Exception as error:  # whatever Python raises, the answer is an error
        return {"error": type(error).__name__}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    lines, shared = [], {}
    for template, variables in cases():
        key = json.dumps(variables)
        index = shared.setdefault(key, len(shared))
        lines.append(json.dumps({"template": template, "variables": index, **render(template, variables)}))
    versions = {"jinja2": jinja2.__version__, "transformers": transformers.__version__}
    text = ('{\n"versions": %s,\n"variables": [\n%s\n],\n"cases": [\n%s\n]\n}\n'
            % (json.dumps(versions), ",\n".join(shared), ",\n".join(lines)))
    if args.check:
        if OUT.read_text() != text:
            sys.exit(f"{OUT} differs from what this script makes")
        print(f"{OUT.name}: the same")
    else:
        OUT.write_text(text)
        errors = sum('"error"' in line for line in lines)
        print(f"{OUT.name}: {len(text)} bytes, {len(lines)} cases, {errors} errors")


if __name__ == "__main__":
    main()
