#!/usr/bin/env python3
"""Make cases.jsonl: JSONL texts with the lines that hold a request and those that must not.

The judge is Python's json module, made strict: no NaN, no duplicate keys, nothing but an
object or a string. Known limits are applied here: whole numbers of 64 bits, finite reals,
64 levels, no NUL and no half of a surrogate pair in a string."""
import json
import random
import re


def refuse(what):
    raise ValueError(what)


def unique(pairs):
    return dict(pairs) if len({k for k, _ in pairs}) == len(pairs) else refuse("duplicate keys")


def whole(text):
    return int(text) if -2**63 <= int(text) < 2**63 else refuse("large")


def real(text):
    return float(text) if abs(float(text)) != float("inf") else refuse("large")


def depth(v):
    if isinstance(v, dict):
        return 1 + max(map(depth, v.values()), default=0)
    return 1 + max(map(depth, v), default=0) if isinstance(v, list) else 0


def judge(line):
    try:
        v = json.loads(line, parse_constant=refuse, object_pairs_hook=unique, parse_int=whole, parse_float=real)
    except (ValueError, RecursionError):
        return None
    text = json.dumps(v, ensure_ascii=False)
    if re.search("[\ud800-\udfff]", text) or r"\u0000" in text or depth(v) > 64 or not isinstance(v, (dict, str)):
        return None
    return v


def spoil(line):
    at = random.randrange(len(line) + 1)
    return random.choice([
        lambda: line[:at] + random.choice('{}[]",:\\ 0-.eun\t') + line[at:],
        lambda: line[:at] + line[at + 1:],
        lambda: line[:at],
        lambda: line + random.choice([" ", "x", "{}", ",", "\t", " //"]),
    ])()


GOOD = ['{"prompt": "a", "id": 7}', '{"prompt":"é 日本 😀","max_tokens":20,"temperature":0.5}', '"a bare string"', '{"prompt": "\\u00e9\\ud83d\\ude00\\n"}',
        '{"messages": [{"role": "user", "content": "hi"}], "x": [1.5e3, -0.0, true, null]}', '  {"prompt": "{\\"a\\": [\\"b\\\\"}  ',
        '{}', '{"a": {"b": {"c": []}}}']
BAD = ['{"prompt": "a"} trailing', '{"prompt": "a"', "{'prompt': 'a'}", '{"prompt": "a", "prompt": "b"}', '[1]', '7', 'null', 'true', '{"x": NaN}',
       '{"x": Infinity}', '{"x": 01}', '{"x": .5}', '{"x": "\\ud800"}', '{"x": "\\u0000"}', '{"x": "\t"}', '{"x": 9223372036854775808}', '{"x": 1e999}',
       '{"x": 1,}', '{"x" 1}', '{x: 1}', '{"prompt": "a"}{"prompt": "b"}', '{"x": ' + '[' * 64 + ']' * 64 + '}', '"open', '﻿{}', '{"x": "\\x41"}']


def main():
    random.seed(8259)
    with open(__file__.replace("make_cases.py", "cases.jsonl"), "w") as out:
        for n in range(80):
            end = random.choice(["\n", "\n", "\r\n", "\r"])
            lines = []
            for _ in range(random.randint(1, 10)):
                line = random.choice(GOOD + GOOD + BAD) if n else random.choice(GOOD)
                if n > 10 and random.random() < 0.5:
                    line = spoil(line)
                lines.append(random.choice([line] * 8 + ["", "  "]))
            rows, rejects = [], []
            for i, line in enumerate(lines):
                line = line.removeprefix("\ufeff") if i == 0 else line  # a byte order mark begins a file
                v = judge(line) if line.strip(" \t") else ""
                if line.strip(" \t"):
                    rejects.append(i + 1) if v is None else rows.append([i + 1, line, v])
            text = end.join(lines) + random.choice(["", end])
            out.write(json.dumps({"text": text, "rows": rows, "rejects": rejects}, ensure_ascii=False) + "\n")


main()
