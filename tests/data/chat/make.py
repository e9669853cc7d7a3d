#!/usr/bin/env python3
"""Render chat templates with transformers' own jinja2 environment: the oracle of test_chat.c.

    make.py models DATA > tests/data/chat/models.json    templates of models, found below DATA
    make.py small > tests/data/chat/small.json           one small template per construct (small.py)

DATA is the folder of outside test data; its templates are named in the output, not
copied. A case of a model is {"file", "texts"}: conversation -> text with a generation
prompt, text without; one of a construct is {"template", "text"}. A long text is there as
its SHA-256 behind "sha256:"; null means that rendering raised an exception. The date is
fixed."""
import datetime
import hashlib
import json
import pathlib
import sys

import jinja2
from transformers.utils.chat_template_utils import _alias_reasoning_fields, _compile_jinja_template

NOW = datetime.datetime(2025, 7, 24, 10, 0, 0)  # test_chat.c has the same
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather of a place: \"now\" & <then>.",
    "parameters": {"type": "object", "properties": {
        "place": {"type": "string", "description": "City, é or 東京"},
        "unit": {"type": "string", "enum": ["C", "F"]},
        "days": {"type": "integer", "default": 3}}, "required": ["place"]}}}
CALL = {"id": "call12345", "type": "function", "function": {"name": "get_weather", "arguments": {"place": "Köln", "days": 2}}}
CONVERSATIONS = {
    "system": {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " What is 2+2? \n"}]},
    "turns": {"messages": [
        {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello! How can I help?"},
        {"role": "user", "content": "Tell me a joke"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nKnock knock."},
        {"role": "user", "content": "Who's there?"}]},
    "unicode": {"messages": [{"role": "user", "content": "日本語で <|im_end|> </s> 'é' \"x\" \\ {{ 1 }}\t\U0001f600"}]},
    "empty": {"messages": [{"role": "user", "content": ""}]},
    "tools": {"messages": [
        {"role": "system", "content": "Use tools."}, {"role": "user", "content": "Weather in Köln?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call12345", "name": "get_weather", "content": "{\"t\": 21.5, \"sky\": \"cloudy\"}"},
        {"role": "assistant", "content": "21.5 degrees."}, {"role": "user", "content": "Thanks"}], "tools": [WEATHER]},
    "given": {"messages": [{"role": "system", "content": "Tools é."}, {"role": "user", "content": "Weather?"}],
              "tools": [WEATHER], "functions": "[]", "datetime": "2025-07-24"},
    "text-arguments": {"messages": [
        {"role": "user", "content": "Weather in Köln?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "call12345", "type": "function", "function": {
            "name": "get_weather", "arguments": "{\"place\": \"Köln\"}"}}]},
        {"role": "tool", "tool_call_id": "call12345", "name": "get_weather", "content": "cloudy"}],
        "tools": [WEATHER], "functions": "[]", "datetime": "2025-07-24"},
    "reasoning": {"messages": [
        {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4", "reasoning": "Two and two é."},
        {"role": "user", "content": "3+3?"}, {"role": "assistant", "content": "6", "reasoning_content": "Three.\n"},
        {"role": "user", "content": "And 4+4?"}, {"role": "assistant", "content": "8", "thinking": "Four."}]},
    "definitions": {"messages": [{"role": "system", "content": "é"}, {"role": "user", "content": "Weather?"}], "tools": [
        {"name": "get_weather", "description": "The weather.", "parameters": {"type": "object", "properties": {}},
         "parameter_definitions": {"place": {"type": "str", "description": "City", "required": True}, "days": {"type": "int", "description": "n"}}}]},
    "extras": {"messages": [
        {"role": "system", "content": "Cite /no_think"}, {"role": "user", "content": "What?"}],
        "documents": [{"title": "A", "text": "First"}, {"title": "B", "text": "Second"}], "enable_thinking": False,
        "functions": "[]", "datetime": "2025-07-24", "builtin_tools": ["browser", "python"], "reasoning_effort": "high"},
}


def compiled(text):
    template = _compile_jinja_template(text)
    template.environment.globals["strftime_now"] = lambda f: NOW.strftime(f)
    return template


def render(source, variables):
    """The text, or None where jinja2 or Python raised."""
    given = json.loads(json.dumps({"tools": None, "documents": None, "add_generation_prompt": False, **TOKENS, **variables}))
    given["messages"] = _alias_reasoning_fields(given["messages"])
    try:
        return compiled(source).render(**given)
    except (jinja2.exceptions.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError):
        return None


def shortened(text):
    if text is None or len(text) <= 100:
        return text
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def model_templates(data):
    """Name and text of each template: *.jinja files, and those in tokenizer_config.json."""
    for path in sorted(data.glob("templates/**/*.jinja")):
        yield str(path.relative_to(data)), path.read_text()
    for path in sorted([*data.glob("configs/*/tokenizer_config.json"), *data.glob("tokenizers/*/tokenizer_config.json")]):
        template = json.loads(path.read_text()).get("chat_template")
        if isinstance(template, list):
            template = next((t["template"] for t in template if t["name"] == "default"), None)
        if template:
            yield str(path.relative_to(data)), template


def models(data):
    cases = []
    for name, text in model_templates(data):
        texts = {which: [shortened(render(text, {**variables, "add_generation_prompt": generate})) for generate in (True, False)]
                 for which, variables in CONVERSATIONS.items()}
        cases.append({"file": name, "texts": texts})
    return {"conversations": CONVERSATIONS, "cases": cases}


def small():
    from small import TEMPLATES, VARIABLES
    cases = []
    for text in TEMPLATES:
        cases.append({"template": text, "text": render(text, VARIABLES)})
    return {"variables": VARIABLES, "cases": cases}


def main():
    out = models(pathlib.Path(sys.argv[2])) if sys.argv[1] == "models" else small()
    cases = out.pop("cases")
    head = json.dumps(out, ensure_ascii=False)[:-1]
    print(head + ', "cases": [\n' + ",\n".join(json.dumps(c, ensure_ascii=False) for c in cases) + "\n]}")


if __name__ == "__main__":
    main()
