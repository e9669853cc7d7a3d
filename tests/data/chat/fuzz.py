#!/usr/bin/env python3
"""Random small templates with what jinja2 makes of them, for test_chat.c:

    fuzz.py SEED N > cases.json
    BATCHD_CHAT_CASES=cases.json build/tests/test_chat 'generated*'

Expressions are built from values that fit more often than not, so that most of them
render. Left out is what the interpreter refuses by name, and what differs on purpose:
integers beyond 64 bits, and the text of functions, macros, views and generators."""
import json
import random
import re
import sys

from make import render
from small import VARIABLES as SMALL

VARIABLES = {**SMALL, "messages": SMALL["messages"][:3]}  # no parts: they are joined for a template that does not read them

STRINGS = ["''", "'a'", "'Hello World'", "'  pad '", "'a,b,c'", "'é😀ß'", "'x\\ny\\n'", "'12'", "'-3.5'", "'<b>&'", "'%s'", "'A-b c'", "text",
           "words[0]", "d['items']", "messages[1].content", "messages[0].role", "empty"]
NUMBERS = ["0", "1", "-1", "2", "7", "2.5", "-0.5", "100", "true", "pi", "numbers[2]", "rows[0].v", "1e3"]
LISTS = ["[]", "[1, 2, 3]", "['b', 'a', 'C']", "words", "numbers", "(1, 'a')", "range(4) | list", "[[1, 2], [3]]", "d.keys() | list", "'a b c'.split()"]
DICTS = ["{}", "{'a': 1}", "d", "rows[0]", "{'k': [1, 'x'], 2: none}", "messages[2].tool_calls[0].function"]
OTHERS = ["none", "missing", "false", "messages", "rows", "nothing"]
TEXT_FILTERS = ["upper", "lower", "title", "capitalize", "trim", "trim('a ')", "replace('a', 'X')", "replace('', '.')", "length", "wordcount", "string",
                "tojson", "first", "last", "list", "reverse", "indent", "indent(2, true)", "truncate(5)", "truncate(5, true, '')", "center(9)", "int",
                "float", "default('D')", "default('D', true)", "join('-')", "sort", "unique | list", "format", "int(7)", "batch(2) | list"]
NUMBER_FILTERS = ["abs", "round", "round(1)", "int", "float", "string", "tojson", "default(1)", "round(0, 'floor')", "round(1, 'ceil')"]
LIST_FILTERS = ["length", "first", "last", "join", "join(', ')", "list", "sort", "sort(reverse=true)", "unique | list", "reverse | list", "tojson",
                "tojson(indent=2)", "map('string') | list", "map('upper') | join", "select | list", "reject('none') | list", "min", "max", "sum", "string",
                "select('number') | list", "select('string') | list", "batch(2, 0) | list", "slice(2) | list", "map('length') | list", "count",
                "select('gt', 1) | list", "map('tojson') | join(' ')", "select('in', [1, 'a', 'fig']) | list", "first | string"]
DICT_FILTERS = ["items | list", "dictsort", "length", "tojson", "tojson(sort_keys=true)", "list", "string", "tojson(indent=1)", "first", "join(',')"]
TEXT_METHODS = ["upper()", "lower()", "strip()", "strip('a')", "lstrip()", "rstrip('c')", "split()", "split(',')", "split(' ', 1)", "rsplit(none, 1)", "title()",
                "capitalize()", "startswith('a')", "endswith(('b', 'd'))", "replace('l', 'L', 1)", "find('o')", "count('a')", "isdigit()", "isalpha()", "isupper()",
                "splitlines()", "partition(' ')", "rpartition('l')", "join(['1', '2'])", "center(8, '*')", "ljust(6)", "swapcase()", "removeprefix('a')",
                "format(1)", "islower()", "isspace()", "rfind('l')", "index('a')", "isalnum()"]
TESTS = ["defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "mapping", "iterable", "sequence", "true", "false", "upper", "lower",
         "odd", "even", "divisibleby 2", "eq 1", "in [1, 'a']", "ne 'a'", "gt 1", "not none", "not string", "callable"]


class Maker:
    def __init__(self, seed):
        self.r = random.Random(seed)
        self.names = []

    def pick(self, items):
        return self.r.choice(items)

    def text(self, depth):
        k = self.r.random()
        if depth <= 0 or k < 0.3:
            return self.pick(STRINGS + self.names)
        if k < 0.5:
            return f"({self.text(depth - 1)}).{self.pick(TEXT_METHODS)}"
        if k < 0.6:
            return f"({self.text(depth - 1)} + {self.text(depth - 1)})"
        if k < 0.7:
            return f"({self.any(depth - 1)} ~ {self.any(depth - 1)})"
        if k < 0.78:
            return f"({self.text(depth - 1)} | string)[{self.index()}]"
        if k < 0.85:
            return f"({self.text(depth - 1)} if {self.any(depth - 1)} else {self.text(depth - 1)})"
        if k < 0.9:
            return f"({self.text(depth - 1)} * {self.r.randint(-1, 3)})"
        if k < 0.95:
            return f"('%s|%5s|%r' % ({self.any(0)}, {self.any(0)}, {self.any(0)}))"
        return f"({self.any(depth - 1)} | {self.pick(['string', 'tojson', 'upper', 'trim'])})"

    def index(self):
        k = self.r.random()
        ends = ["", "", "0", "1", "-1", "2", "-2", "9"]
        if k < 0.4:
            return self.pick(["0", "1", "-1", "5", "'a'", "'k'"])
        return f"{self.pick(ends)}:{self.pick(ends)}" + (f":{self.pick(['', '1', '2', '-1', '-2'])}" if k > 0.7 else "")

    def number(self, depth):
        k = self.r.random()
        if depth <= 0 or k < 0.3:
            return self.pick(NUMBERS)
        if k < 0.7:
            return f"({self.number(depth - 1)} {self.pick(['+', '-', '*', '/', '//', '%'])} {self.number(depth - 1)})"
        if k < 0.8:
            return f"({self.text(depth - 1)} | length)"
        if k < 0.9:
            return f"(-{self.number(depth - 1)} | {self.pick(NUMBER_FILTERS)})"
        return f"({self.list(depth - 1)} | length)"

    def list(self, depth):
        k = self.r.random()
        if depth <= 0 or k < 0.4:
            return self.pick(LISTS)
        if k < 0.6:
            return "[" + ", ".join(self.any(depth - 1) for _ in range(self.r.randint(0, 3))) + "]"
        if k < 0.7:
            return f"({self.list(depth - 1)} + {self.list(depth - 1)})"
        if k < 0.85:
            return f"({self.list(depth - 1)} | list)[{self.index()}]"
        return f"({self.list(depth - 1)} | {self.pick(LIST_FILTERS)})"

    def dict(self, depth):
        if depth <= 0 or self.r.random() < 0.7:
            return self.pick(DICTS)
        return "{" + ", ".join(f"{self.pick(STRINGS[1:8])}: {self.any(depth - 1)}" for _ in range(self.r.randint(1, 3))) + "}"

    def condition(self, depth):
        k = self.r.random()
        if k < 0.3:
            return f"({self.any(depth - 1)} {self.pick(['==', '!=', '<', '>', '<=', '>=', 'in', 'not in'])} {self.any(depth - 1)})"
        if k < 0.6:
            return f"({self.any(depth - 1)} is {self.pick(TESTS)})"
        if k < 0.7:
            return f"({self.number(depth - 1)} < {self.number(depth - 1)} {self.pick(['<', '<=', '!='])} {self.number(depth - 1)})"
        if k < 0.85:
            return f"({self.any(depth - 1)} {self.pick(['and', 'or'])} {self.any(depth - 1)})"
        return f"(not {self.any(depth - 1)})"

    def filtered(self, depth):
        kind = self.pick([(self.text, TEXT_FILTERS), (self.number, NUMBER_FILTERS), (self.list, LIST_FILTERS), (self.dict, DICT_FILTERS)])
        return f"({kind[0](depth - 1)} | {self.pick(kind[1])})"

    def any(self, depth):
        k = self.r.random()
        if k < 0.06:
            return self.pick(OTHERS)
        if k < 0.12 and self.names:
            return self.pick(self.names)
        if k < 0.3 and depth > 0:
            return self.filtered(depth)
        return self.pick([self.text, self.number, self.list, self.dict, self.condition])(depth) if depth > 0 else self.pick(STRINGS + NUMBERS)

    def tag(self, inside):
        return self.pick(["{%", "{%", "{%-", "{%+"]) + f" {inside} " + self.pick(["%}", "%}", "-%}", "+%}"])

    def space(self):
        return self.pick(["", "", "\n", "  ", " \n  ", "x", "\n\n", "\t", " y\n"])

    def body(self, depth):
        return "".join(self.space() + self.statement(depth) for _ in range(self.r.randint(1, 2))) + self.space()

    def statement(self, depth):
        k = self.r.random()
        if depth <= 0 or k < 0.45:
            return self.pick(["{{", "{{", "{{-"]) + f" {self.any(3)} " + self.pick(["}}", "}}", "-}}"])
        if k < 0.58:
            return self.tag(f"if {self.condition(2)}") + self.body(depth - 1) + self.pick(
                ["", self.tag("else") + self.body(depth - 1), self.tag(f"elif {self.condition(1)}") + self.body(depth - 1)]) + self.tag("endif")
        if k < 0.74:
            return self.loop(depth)
        name = self.pick(["v", "w"])
        if k < 0.84:
            out = self.tag(f"set {name} = {self.any(2)}")
        elif k < 0.9:
            out = self.tag(f"set {name}{self.pick(['', ' | upper', ' | trim'])}") + self.body(depth - 1) + self.tag("endset")
        elif k < 0.95:
            return self.tag(f"filter {self.pick(['upper', 'trim', 'indent', 'title'])}") + self.body(depth - 1) + self.tag("endfilter")
        else:
            return self.tag("macro m(a, b=1)") + "{{ a }}" + self.body(depth - 1) + "{{ b }}" + self.tag("endmacro") + f"{{{{ m({self.any(1)}) }}}}"
        if name not in self.names:
            self.names.append(name)
        return out

    def loop(self, depth):
        head = self.pick([f"for i in {self.list(2)}", f"for i in {self.list(1)} if {self.condition(1)}", f"for k, i in {self.dict(1)}.items()", "for i in rows"])
        self.names += ["i", "loop.index", "loop.last", "loop.previtem", "loop.nextitem"]
        body = self.body(depth - 1)
        del self.names[-5:]
        jump = self.pick(["", "", self.tag("if loop.index == 2") + self.tag(self.pick(["break", "continue"])) + self.tag("endif")])
        return self.tag(head) + jump + body + self.pick(["", "", self.tag("else") + "none"]) + self.tag("endfor")


# Outputs that depend on Python's own objects, or on what is refused on purpose.
SKIP = re.compile(r"<(generator|dict_|built-in|bound|method|function|Macro|class|jinja2|range|list_|str_|reversed|tuple_|set)|range\(|dict_(items|keys|values)|\d{19}"
                  r"|Markup\(|Undefined|&(amp|lt|gt|#3[49]);", re.I)


def main():
    seed, n = int(sys.argv[1]), int(sys.argv[2])
    cases, k = [], 0
    while len(cases) < n:
        maker = Maker(seed * 1000003 + k)
        k += 1
        source = maker.body(2)
        text = render(source, VARIABLES)
        if text is not None and (SKIP.search(text) or len(text) > 20000):
            continue
        cases.append({"template": source, "text": text})
    print(json.dumps({"variables": VARIABLES, "cases": cases}, ensure_ascii=False))


main()
