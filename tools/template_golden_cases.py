"""The expressions and errors that make_template_goldens.py renders with jinja2, one a line."""

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
