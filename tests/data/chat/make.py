#!/usr/bin/env python3
"""Render chat templates with jinja2 under transformers' settings: the oracle of test_chat.c.

    make.py DATA > tests/data/chat/cases.json

DATA is the folder of outside test data; its templates are named in the output, not
copied. A case is {"template" or "file", "messages", "add_generation_prompt", "bos",
"eos", "text"}; "text" null means that the template raised an exception."""
import json
import pathlib
import sys

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

CONVERSATIONS = [
    [("user", "Hello")],
    [("system", "Be brief."), ("user", " What is 2+2? \n")],
    [("user", "Hi"), ("assistant", "Hello! How can I help?"), ("user", "Tell me a joke")],
    [("user", "日本語で <|im_end|> </s> 'é' \"x\" {{ 1 }}")],
    [("user", "")],
]
INLINE = [
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + '\\n' + m.content | trim + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
    "{% for message in messages %}\n  {% if loop.first and messages[0]['role'] != 'system' %}\n"
    "<|im_start|>system\nYou are helpful.<|im_end|>\n  {%- endif %}\n{{ loop.index }}/{{ loop.length }} {{ loop.index0 }}"
    " {{ loop.last }} {{ message['content'] }}\n{% endfor %}\n",
    "{{ bos_token }}{% set x = messages[0]['content'] %}{% for m in messages[1:] %}{% set x = 'inner' %}{{ m.role }}"
    "{% else %}none{% endfor %}{{ x }}{# a comment #} {{ messages[-1]['role'] ~ messages | length }}",
    "{% for m in messages if m.role == 'user' %}{{ (loop.index0 % 2 == 0) }}{{ not loop.last }}{{ m.content.strip().upper()"
    " if m.content is defined and m.content and 'é' not in m.content else '-' }}{% endfor %}",
    "{%- if messages[0]['role'] == 'system' -%}\n  {{- raise_exception('no system ' + 'please') -}}\n{%- elif 1 < 2 and"
    " 'a' in 'abc' -%}\n   ok {% else %} not {% endif %}  \n  {{- 3 - 1 * 2 }}{{ undefined_thing }}|{{ none is none }}",
    "{% if messages | length > 2 %}many{% elif messages[0].content == '' %}empty{% else %}{{ 'few' }}\n\n{% endif %}\n end\n\n",
]
FILES = ["mistralai--Mistral-7B-Instruct-v0.2.jinja", "google--gemma.jinja", "google--gemma-2-2b-it.jinja",
         "microsoft--Phi-3-mini-4k-instruct.jinja", "microsoft--Phi-3-mini-128k-instruct.jinja",
         "llama.cpp/microsoft-Phi-3.5-mini-instruct.jinja"]


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def main():
    data = pathlib.Path(sys.argv[1])
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    env.globals["raise_exception"] = raise_exception
    cases = []
    for source in [{"template": t} for t in INLINE] + [{"file": f} for f in FILES]:
        text = source.get("template") or (data / "templates" / source["file"]).read_text()
        template = env.from_string(text)
        for messages in CONVERSATIONS:
            for generate in (True, False):
                try:
                    out = template.render(messages=[{"role": r, "content": c} for r, c in messages], bos_token="<s>",
                                          eos_token="</s>", add_generation_prompt=generate)
                except jinja2.exceptions.TemplateError:
                    out = None
                cases.append({**source, "messages": messages, "add_generation_prompt": generate, "text": out})
    json.dump(cases, sys.stdout, ensure_ascii=False, indent=0)
    print()


main()
