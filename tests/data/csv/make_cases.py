#!/usr/bin/env python3
"""Make cases.jsonl: CSV texts with the rows that must be accepted and the lines that must not.

The judge is Python's csv module in strict mode, and RFC 4180's grammar, which forbids
a quote inside an unquoted field (Python lets it pass). Two deviations are known and
applied here: blanks around unquoted fields are trimmed, blank lines are skipped. After
a bad row reading goes on at the physical line behind the row's first one; in a file of
one column a bad quote ends it ("lost")."""
import csv
import json
import random
import re

FIELD = re.compile(r'"((?:[^"]|"")*)"|([^",\r\n]*)')
END = re.compile(r"\r\n|\n|\r|\Z")


def physical_lines(text):
    return re.findall(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+\Z", text)


def rfc_row(raw):
    """Cells of one row by RFC 4180, or None."""
    cells, at = [], 0
    while True:
        m = FIELD.match(raw, at)
        quoted = m.group(1) is not None
        cells.append(m.group(1).replace('""', '"') if quoted else m.group(2).strip(" \t"))
        at = m.end()
        if raw[at:at + 1] == ",":
            at += 1
            continue
        end = END.match(raw, at)
        return cells if end and end.end() == len(raw) else None


def judge(text):
    lines = physical_lines(text)
    rows, rejects, columns, i = [], [], None, 0
    while i < len(lines):
        if not lines[i].strip(" \t\r\n"):
            i += 1
            continue
        reader = csv.reader(iter(lines[i:]), strict=True)
        try:
            python = next(reader)
            cells = rfc_row("".join(lines[i:i + reader.line_num]))
        except csv.Error:
            cells = None
        if cells is None:
            rejects.append([i + 1, "quote"])
            if columns == 1 or columns is None:
                return rows, rejects, True
            i += 1
            continue
        assert [c.strip(" \t") for c in python] == [c.strip(" \t") for c in cells]
        if columns is None:
            columns = len(cells)
        if len(cells) != columns:
            rejects.append([i + 1, "column_count"])
            i += 1
            continue
        rows.append(cells)
        i += reader.line_num
    return rows, rejects, False


def main():
    random.seed(4180)
    tokens = ["a", "b", "é", "日本", "😀", ",", ",", '"', '""', "\n", "\n", "\r\n", "\r", "x y", "=1", "'", ";", "{", "\\"]
    with open(__file__.replace("make_cases.py", "cases.jsonl"), "w") as out:
        n = 0
        while n < 600:
            header = random.choice(["p,q\n", "p,q\r\n", "p,q,r\n", "p\n"])
            if random.random() < 0.5:  # rows that are mostly well formed
                cell = lambda: random.choice(["", "a", " b ", '"c"', '" d,e "', '"f\ng"', '"h""i"', '"j\r\nk"', "é", 'l"m', '"n'])
                n_cells = header.count(",") + 1
                body = "".join(
                    ",".join(cell() for _ in range(n_cells + (random.random() < 0.07))) + random.choice(["\n", "\r\n", "\n\n"])
                    for _ in range(random.randint(1, 8)))
            else:
                body = "".join(random.choice(tokens) for _ in range(random.randint(0, 40)))
            text = header + body
            if random.random() < 0.2:
                text = text.rstrip("\r\n")
            rows, rejects, lost = judge(text)
            out.write(json.dumps({"text": text, "rows": rows, "rejects": rejects, "lost": lost}, ensure_ascii=False) + "\n")
            n += 1


main()
