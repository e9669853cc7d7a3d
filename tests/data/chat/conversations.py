#!/usr/bin/env python3
"""Random conversations through the templates of models, with what jinja2 makes of them, for
test_chat.c:

    conversations.py DATA SEED N > cases.json            N for each template below DATA
    BATCHD_CHAT_CASES=cases.json build/tests/test_chat 'generated*'

Half of the conversations take turns as templates want them; the others have roles in any order,
keys that are missing or null, and values of any kind. Left out is what differs on purpose: lists
of parts for a template that does not read them."""
import json
import pathlib
import random
import re
import sys

from make import WEATHER, model_templates, render, shortened

TEXTS = ["Hi", "", "  padded \n", "日本語 é ß İ ǅ", "line1\nline2\n", "<|im_end|> </s> <s>[INST]", "{{ x }} {% if %}", "\"quoted\" 'single' \\ back\\n",
         "<think>\nhm\n</think>\n\nOK", "<think>a</think>b</think>c", "</think>", "[TOOL_CALLS]", "/no_think do", "\t\u00a0\u2028x\u3000", "a" * 50,
         "<&>'\"", "😀👍🏽", "\r\nCR\r", "0", "null", "<tool_response>\nx\n</tool_response>", "<tool_response>", "\x1c\x85 sep\x0b",
         "final<|channel|>analysis", "e\u0301", "{\"a\": 1}", "None", "ﬁ Ⅷ", "<think>", "x</think>\n\n"]
KEYS = ["a", "b", "type", "name", "é", "items", "keys", "with space", "0", "Z", "enum"]
NAMES = ["get_weather", "f", "ns.func", "é_fn", "python"]
IDS = ["call12345", "abcdefghi", "x1", "é"]
NUMBERS = [0, 1, -1, 42, 10 ** 12, 2 ** 53, -2 ** 31, 0.5, 1.0, -2.25, 1e20, 1e-7, 3.14159, 1e16, 123456789.125]
VARIABLES = {
    "enable_thinking": [True, False, None, "no"], "date_string": ["26 Jul 2024"], "tools_in_user_message": [True, False],
    "builtin_tools": [["browser", "python"], [], ["code_interpreter"]], "reasoning_effort": ["high", "low", None],
    "functions": ["[]", "é"], "datetime": ["2025-07-24"], "custom_instructions": ["Be é", None], "xml_tools": [[{"name": "x"}]],
    "python_tools": [["a"]], "model_identity": ["I am é"], "citations": [True], "safety_mode": ["CONTEXTUAL", "NONE", True],
    "thinking": [True, False], "system_message": ["S"], "developer_instructions": ["D"], "code_interpreter": [True]}


class Maker:
    def __init__(self, seed, reads_parts):
        self.r = random.Random(seed)
        self.reads_parts = reads_parts

    def chance(self, p):
        return self.r.random() < p

    def pick(self, items):
        return self.r.choice(items)

    def some(self, items, most):
        return self.r.sample(items, self.r.randint(0, most))

    def times(self, least, most):
        return range(self.r.randint(least, most))

    def text(self):
        return self.pick(TEXTS) + (self.pick(TEXTS) if self.chance(0.3) else "")

    def value(self, depth=0):
        k = self.r.random()
        if depth > 2 or k < 0.35:
            return self.text()
        if k < 0.65:
            return self.pick(NUMBERS + [True, False, None, None])
        if k < 0.8:
            return [self.value(depth + 1) for _ in self.times(0, 3)]
        return {key: self.value(depth + 1) for key in self.some(KEYS, 4)}

    def parameter(self):
        kind = self.pick(["string", "integer", "number", "boolean", "array", "object", ["string", "null"], None])
        out = {} if kind is None else {"type": kind}
        if self.chance(0.7):
            out["description"] = self.text()
        if self.chance(0.3):
            out["enum"] = [self.pick(["C", "F", "é", 1, None]) for _ in self.times(0, 3)]
        if self.chance(0.2):
            out["default"] = self.value(2)
        if kind == "array" and self.chance(0.8):
            out["items"] = self.parameter() if self.chance(0.7) else {}
        if kind == "object" and self.chance(0.8):
            out["properties"] = {k: self.parameter() for k in self.some(["p", "q", "é"], 2)}
        if self.chance(0.1):
            out["anyOf"] = [self.parameter(), self.parameter()]
        return out

    def tool(self):
        f = {"name": self.pick(NAMES)}
        if self.chance(0.9):
            f["description"] = self.text()
        if self.chance(0.9):
            properties = {k: self.parameter() for k in self.some(["place", "unit", "days", "é", "x y"], 4)}
            f["parameters"] = {"type": "object", "properties": properties}
            if self.chance(0.7):
                f["parameters"]["required"] = self.some(["place", "unit", "days"], 2)
        if self.chance(0.15):
            f["return"] = self.parameter()
        if self.chance(0.15):
            f["parameter_definitions"] = {"place": {"type": self.pick(["str", "int", "List[str]"]), "description": self.text(),
                                                    "required": self.pick([True, False])}}
        return f if self.chance(0.15) else {"type": "function", "function": f}

    def plain_tool(self):
        """With all that templates look for."""
        place = {"type": "string", "description": self.text()}
        return {"type": "function", "function": {"name": self.pick(NAMES), "description": self.text(), "parameters": {
            "type": "object", "properties": {"place": place}, "required": self.some(["place"], 1)}}}

    def call(self):
        arguments = {k: self.value(1) for k in self.some(["place", "days", "é", "a b"], 3)}
        return {"id": "call12345", "type": "function", "function": {"name": self.pick(NAMES), "arguments": arguments}}

    def odd_call(self):
        c = self.call()
        c["id"] = self.pick(IDS)
        if self.chance(0.2):
            c["function"]["arguments"] = json.dumps(c["function"]["arguments"], ensure_ascii=self.chance(0.5))
        for key in ("id", "type"):
            if self.chance(0.1):
                del c[key]
        return c["function"] if self.chance(0.1) else c

    def content(self):
        if self.reads_parts and self.chance(0.06):
            return [{"type": "text", "text": self.text()} for _ in self.times(0, 3)]
        return None if self.chance(0.1) else self.text()

    def odd_message(self, role):
        m = {"role": role}
        if self.chance(0.97):
            m["content"] = self.content()
        if role == "assistant" and self.chance(0.3):
            m["tool_calls"] = self.pick([[self.odd_call() for _ in self.times(1, 3)], [], None])
        if role == "assistant" and self.chance(0.15):
            m[self.pick(["reasoning", "reasoning_content", "thinking"])] = self.pick([self.text(), self.text(), None])
        if role == "tool":
            m["tool_call_id"] = self.pick(IDS)
            value = self.value(1)
            if self.chance(0.15) and not isinstance(value, list):
                m["content"] = value
        if self.chance(0.1):
            m["name"] = self.text()
        return m

    def odd_messages(self):
        out = []
        for _ in self.times(0, 7):
            out.append(self.odd_message(self.pick(["user", "assistant", "tool", "system", "user", "assistant", "developer", "function"])))
            for _ in out[-1].get("tool_calls") or []:
                out.append(self.odd_message("tool"))
        return out

    def turns(self):
        out = [{"role": "system", "content": self.text()}] if self.chance(0.4) else []
        for _ in self.times(1, 3):
            out.append({"role": "user", "content": self.text()})
            if self.chance(0.3):
                calls = [self.call() for _ in self.times(1, 2)]
                out.append({"role": "assistant", "content": self.pick(["", None]), "tool_calls": calls})
                out += [{"role": "tool", "tool_call_id": c["id"], "name": "f", "content": self.text()} for c in calls]
            out.append({"role": "assistant", "content": self.text()})
        return out[:-1] if self.chance(0.7) else out

    def variables(self):
        out = {"messages": self.turns() if self.chance(0.5) else self.odd_messages()}
        k = self.r.random()
        if k < 0.4:
            out["tools"] = [WEATHER] if k < 0.1 else [self.plain_tool() for _ in self.times(1, 2)]
        elif k < 0.6:
            out["tools"] = [self.tool() for _ in self.times(0, 3)]
        if self.chance(0.2):
            out["documents"] = [{"title": self.text(), "text": self.text()} if self.chance(0.8) else {"id": i, "body": self.value(1)}
                                for i in self.times(0, 2)]
        for key, values in VARIABLES.items():
            if self.chance(0.5 if key in ("functions", "datetime") else 0.12):
                out[key] = self.pick(values)
        return out


def main():
    data, seed, n = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    templates, cases = [], []
    for name, source in model_templates(data):
        reads_parts = re.search(r"""['"]text['"]|\.text\b""", source)
        for i in range(n):
            maker = Maker("%s %s %d" % (seed, name, i), reads_parts)
            variables, generate = maker.variables(), maker.chance(0.5)
            try:
                text = render(source, {**variables, "add_generation_prompt": generate})
            except RecursionError:
                continue
            cases.append({"template": len(templates), "variables": variables, "generate": generate, "text": shortened(text)})
        templates.append(source)
    print(json.dumps({"templates": templates, "cases": cases}, ensure_ascii=False))


main()
