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

from template_golden_cases import ERRORS, ERROR_TEMPLATES, EXPRESSIONS

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
