"""Chat templates in the shapes that published models have, and things that hostile ones try."""
# ruff: noqa: E501 - a template's lines are text

from __future__ import annotations

TEMPLATES = {
    "llava": """\
{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}
{# images first #}
{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}
{# then text #}
{% if message['role'] != 'assistant' %}
{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}
{% else %}
{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}{{ content['text'] + ' '}}\
{% endgeneration %}{% endfor %}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}""",
    "llama-3": """\
{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%Y") %}
    {%- else %}
        {%- set date_string = "2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set image_ns = namespace(has_images=false) %}
{%- for message in messages %}
    {%- for content in message['content'] %}
        {%- if content['type'] == 'image' %}
            {%- set image_ns.has_images = true %}
        {%- endif %}
    {%- endfor %}
{%- endfor %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{%- if not image_ns.has_images %}
    {{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
    {%- if tools is not none %}
        {{- "Environment: ipython\\n" }}
        {%- for t in tools %}{{- t | tojson(indent=4) }}{%- endfor %}
    {%- endif %}
    {{- "Today Date: " + date_string + "\\n\\n" }}
    {{- system_message }}
    {{- "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {%- if message['content'] is string %}
            {{- message['content'] | trim }}
        {%- else %}
            {%- for content in message['content'] %}
                {%- if content['type'] == 'image' %}
                    {{- '<|image|>' }}
                {%- elif content['type'] == 'text' %}
                    {{- content['text'] }}
                {%- endif %}
            {%- endfor %}
        {%- endif %}
        {{- '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}""",
    "qwen2-vl": """\
{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}\
{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content or\
 'image_url' in content %}{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture\
 {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] == 'video' or\
 'video' in content %}{% set video_count.value = video_count.value + 1 %}{% if add_vision_id %}Video\
 {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}\
{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}""",
    "qwen3-vl": """\
{%- set image_count = namespace(value=0) %}
{%- macro render_content(content, do_vision_count) %}
    {%- if content is string %}
        {{- content }}
    {%- else %}
        {%- for item in content %}
            {%- if 'image' in item or 'image_url' in item or item.type == 'image' %}
                {%- if do_vision_count %}
                    {%- set image_count.value = image_count.value + 1 %}
                {%- endif %}
                {%- if add_vision_id %}Picture {{ image_count.value }}: {% endif -%}
                <|vision_start|><|image_pad|><|vision_end|>
            {%- elif 'text' in item %}
                {{- item.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" %}
        {%- set content = render_content(message.content, false) %}
        {%- if not (content.startswith('<tool_response>') and content.endswith('</tool_response>')) %}
            {%- set ns.multi_step_tool = false %}
            {%- set ns.last_query_index = index %}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = render_content(message.content, true)|trim %}
    {%- if message.role == "user" %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and reasoning_content %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>' }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}""",
    "mistral": """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST]" + system_message + "\\n\\n" }}
        {%- else %}
            {{- "[INST]" }}
        {%- endif %}
        {%- for block in message["content"] | sort(attribute="type") %}
            {{- "[IMG]" if block["type"] == "image" else block["text"] }}
        {%- endfor %}
        {{- "[/INST]" }}
        {%- if message == user_messages[-1] %}{{ '' }}{% endif %}
    {%- elif message["role"] == "assistant" %}
        {{- message["content"] | map(attribute="text") | join(", ") + eos_token }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported!") }}
    {%- endif %}
{%- endfor %}""",
    "gemma": """\
{{ bos_token }}{%- for message in messages -%}
    {%- set role = 'model' if (message['role'] == 'assistant') else message['role'] -%}
    {{ '<start_of_turn>' ~ role ~ '\\n' ~ loop.index ~ loop.revindex ~ ((loop.previtem or {}).role | default('none')) }}
    {%- for item in message['content'] if item is mapping -%}
        {%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}{%- else -%}{{ item['text'] | trim }}{%- endif -%}
    {%- else -%}nothing{%- endfor -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{'<start_of_turn>model\\n'}}{%- endif -%}""",
    "odds and ends": """\
{%- macro show(x, sep=', ') -%}{{ x | join(sep) }}{{ varargs | length }}{{ caller() if caller else '' }}{%- endmacro -%}
{{ show([1, 2.5, none, true], ';', 7) }}{% call show(('a', 'b')) %}!{% endcall %}
{%- set text %}a{{ 'b' ~ 1 }}{% endset -%}{{ text | upper | replace('A', 'x') | title | indent(2, true) }}
{%- set pairs = {'b': 1, 'a': [1, 2]} -%}{% for key, value in pairs | dictsort %}{{ key }}={{ value }};{% endfor -%}
{%- for key, value in pairs.items() %}{{ loop.cycle('x', 'y') }}{{ key }}{% if loop.changed(1) %}*{% endif %}{% endfor -%}
{{ pairs | tojson }}{{ pairs | tojson(indent=2) }}{{ '<é"' | tojson }}{{ '%s-%03d' % ('a', 7) }}{{ '{}:{:>4}'.format(1, 2) }}
{%- for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i > 4 %}{% break %}{% endif %}{{ i }}{% endfor -%}
{%- for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor -%}
{%- for x in 'abc' if x != 'b' %}{{ loop.length }}{{ x }}{% else %}none{% endfor -%}
{{ (1 < 2 < 3) and 'yes' or 'no' }}{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 5 }}{{ 1 / 4 }}{{ -3 | abs }}{{ 'ab' * 3 }}{{ [1] + [2] }}
{{ messages | map(attribute='role') | unique | list }}{{ 'yes' if messages | selectattr('none') else 'no' }}
{{ messages[-1]['content'][0].get('text', 'x').strip() }}{{ undefined_name }}{{ none }}{{ 'x' is in 'xyz' }}{{ 3.14159 | round(2) }}
{{ joiner('|')() }}{{ dict(a=1).get('b') }}{{ 'a-b'.split('-', 1)[1] }}{{ 'aXb'.partition('X') }}{{ [3, 1, 2] | sort | first }}
{%- with a = 1, b = 2 %}{{ a + b }}{% endwith %}{% filter upper %}shout{% endfilter %}{{ [1, 2, 3] | sum }}{{ 'é' | e }}
{%- block b %}{{ self.c() if false else 'block' }}{% endblock %}{{ namespace(a=[1]).a | last }}{{ [1, 2, 3][::-1][:2] }}""",
}
"""What each is like: loops, macros, namespaces, slices, filters, and the names that transformers gives to templates."""

HOSTILE = """\
{% for i in range(10**9) %}x{% endfor %}
{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}
{% for i in range(100000) %}{% for j in range(100000) if false %}{% endfor %}{% endfor %}
{% for i in range(100000) %}{% for j in range(100000) %}xxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}
{% set x %}{% for i in range(100000) %}{% for j in range(999) %}xxxxxxxxxxxxxxxx{% endfor %}{% endfor %}{% endset %}
{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}
{% macro f(n) %}{% if n > 0 %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}
{% for i in [1, 1, 1] recursive %}{% if loop.depth < 40 %}{{ loop([1, 1, 1]) }}{% endif %}{% endfor %}
{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}
{{ 'a' * 10**13 }}
{{ ('a' * 10**6) * 10**6 }}
{{ [1] * 10**9 }}
{{ 99999999999999999999999999999 * 'a' }}
{{ 'a'.center(10**12) }}
{{ 'a'.expandtabs(10**12) }}
{{ 'a'.encode().center(10**12) }}
{{ (5).to_bytes(10**10, 'big') }}
{{ '%1000000000000d' % 1 }}
{{ '%*d' % (10**9, 1) }}
{{ '%1000000000d'|format(1) }}
{{ '{:>1000000000000}'.format(1) }}
{% set x = '{0}' * 3000 %}{{ x.format('b' * 1000000) }}
{% set x = '%(' * 3000000 %}{{ x % 1 }}
{% filter indent(10**12) %}a{% endfilter %}
{{ [1]|batch(10**12, 'x')|list }}
{{ [1]|slice(10**12)|list }}
{{ lipsum(n=10**9) }}
{{ 10**(10**10) }}
{{ (10**15)**(10**15) }}
{{ 1.5|round(10**9, 'ceil') }}
{{ messages|tojson(indent=10**10) }}
{{ range(0, 10**25, 2**61 - 1)|unique|list }}
{% set n = namespace(x=[1]) %}{% for i in range(64) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}
{% set n = namespace(x=(1,)) %}{% for i in range(64) %}{% set n.x = (n.x, n.x) %}{% endfor %}{{ {n.x: 1} }}
{% set n = namespace(x='a') %}{% for i in range(64) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}
{% set n = namespace(x='ab') %}{% for i in range(64) %}{% set n.x = n.x.replace('a', n.x) %}{% endfor %}{{ n.x }}
{% set n = namespace(x='a') %}{% for i in range(64) %}{% set n.x = [n.x, n.x]|join(n.x) %}{% endfor %}{{ n.x }}
{% set n = namespace(x=2) %}{% for i in range(64) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}
{% set n = namespace(x=1) %}{% for i in range(9999) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x }}
{% set x = 'a' * 100000 %}{{ x.join(x) }}
{% set x = 'a' * 4000000 %}{{ x.strip('b' * 4000000 + 'a') }}
{% set x = range(99999)|list %}{% for i in range(99999) %}{% set y = x|sort %}{% endfor %}
{% set t = (1,) * 200000 %}{% set d = {t: 1} %}{% for i in range(99999) %}{% set x = d[t] %}{% endfor %}
{{ raise_exception('no\\nnew\\nline ' * 100000) }}
{{ 1 / 0 }}
{{ none.x.y }}
{{ [1].append(2) }}
{{ messages.__class__.__mro__ }}
{{ ''.join.__self__.__class__.x }}
{{ namespace(_x=1) }}
{% include 'x' %}
{% import 'x' as y %}
{% extends 'x' %}
{% if %}
{{ 'a'|no_such_filter }}
""".splitlines()
"""One a line."""

DEEP = {
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "lists": "{{ " + "[" * 500 + "]" * 500 + " }}",
    "loops": "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "sums": "{{ 1 " + "+ 1" * 20000 + " }}",
    "filters": "{{ x" + "|trim" * 10000 + " }}",
    "joined": "{% set x = 'a' * 4000000 %}{{ '' " + "~ x" * 10000 + " }}",
    "listed": "{% set x = 'a' * 4000000 %}{{ ['' " + ", x" * 10000 + "]|join }}",
    "macros": "{% macro f() %}" * 300 + "{% endmacro %}" * 300,
    "digits": "{{ " + "9" * 5000 + " }}",
    "unclosed": "{{ '" + "\\\\" * 30000,
}
"""Templates whose own text is the attack."""
