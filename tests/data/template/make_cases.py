#!/usr/bin/env python3
"""Make cases.jsonl: templates over three columns, with the text that must come out, or null
where the template must be refused. The judge of braces and names is Python's str.format_map;
the filters are strip, json.dumps and a slice."""
import json
import random

BLANKS = " \t\n\r\v\f"


class Cell(str):
    def __format__(self, spec):
        if not spec:
            return str(self)
        if not (spec.isascii() and spec.isdigit() and int(spec) > 0):
            raise ValueError("not a length")
        return self[:int(spec)]


class Row(dict):
    def __missing__(self, key):
        name, bar, word = key.rpartition("|")
        if not bar or name not in self:
            raise KeyError(key)
        return Cell({"trim": lambda s: s.strip(BLANKS), "json": lambda s: json.dumps(s, ensure_ascii=False)}[word](self[name]))


def judge(template, cells):
    try:
        return template.format_map(Row({k: Cell(v) for k, v in cells.items()}))
    except (ValueError, KeyError, IndexError):
        return None


def main():
    random.seed(15)
    tokens = ["{a}", "{a}", "{two words}", "{é}", "{{", "}}", "{", "}", "text ", "日本", "\n", "{a|trim}", "{é|json}", "{a:3}",
              "{two words:1}", "{a:0}", "{a|upper}", "{b}", "{}", "\\", "%s", "\"", "{a|trim}", "{two words|json}"]
    values = ["", "x", " spaced out ", "{a}", "}{", "日本語の文", "\t\"quoted\"\n", "\\", "é", "😀😀😀😀", "a\x01b", "{{", "%d"]
    seen = set()
    with open(__file__.replace("make_cases.py", "cases.jsonl"), "w") as out:
        while len(seen) < 400:
            template = "".join(random.choice(tokens) for _ in range(random.randint(1, 6)))
            if template in seen:
                continue
            seen.add(template)
            cells = {k: random.choice(values) for k in ("a", "two words", "é")}
            out.write(json.dumps({"template": template, "cells": cells, "text": judge(template, cells)}, ensure_ascii=False) + "\n")


main()
