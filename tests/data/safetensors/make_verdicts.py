"""Write verdicts.jsonl: mutated safetensors headers, and whether the format's own
library (https://github.com/huggingface/safetensors) takes them.

    python make_verdicts.py >verdicts.jsonl        # needs safetensors; 0.8.0 was used

A line is {"header": ..., "n_data": bytes behind the header, "ok": true|false}."""
import json
import random

import safetensors

DTYPES = ["F32", "BF16", "F16", "U8", "I64", "BOOL", "F8_E4M3", "f32", "F128", ""]
NUMBERS = [0, 1, 2, 3, 4, 6, 8, 12, 24, 28, -1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, 1.0]


def good(rng):
    tensors, at = {}, 0
    for i in range(rng.randint(1, 4)):
        shape = [rng.randint(1, 3) for _ in range(rng.randint(0, 3))]
        dtype, size = rng.choice([("F32", 4), ("BF16", 2), ("U8", 1), ("I64", 8)])
        n = size
        for d in shape:
            n *= d
        tensors[f"t{i}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + n]}
        at += n
    return tensors, at


def mutate(rng, tensors, n_data):
    t = rng.choice(list(tensors.values()))
    kind = rng.randrange(9)
    if kind == 0:
        t["dtype"] = rng.choice(DTYPES)
    elif kind == 1 and t["shape"]:
        t["shape"][rng.randrange(len(t["shape"]))] = rng.choice(NUMBERS)
    elif kind == 2:
        t["shape"].append(rng.choice(NUMBERS))
    elif kind == 3:
        t["data_offsets"][rng.randrange(2)] = rng.choice(NUMBERS)
    elif kind == 4:
        t["data_offsets"] = [x + rng.choice([-1, 1, 4]) for x in t["data_offsets"]]
    elif kind == 5:
        n_data = max(0, n_data + rng.choice([-1, 1, 8, -n_data]))
    elif kind == 6:
        t.pop(rng.choice(sorted(t)))
    elif kind == 7:
        tensors["__metadata__"] = rng.choice([{"a": "b"}, {"a": 1}, {}, None, [], {"a": {"b": "c"}}])
    else:
        tensors["copy"] = dict(t)
    return n_data


def mutate_text(rng, text):
    at = rng.randrange(len(text))
    return rng.choice([text[:at] + text[at + 1:], text[:at] + rng.choice('{}[],:"0 ') + text[at:], text + " ", " " + text,
                       text + "x", text[:-1]])


def main():
    rng = random.Random(1)
    for i in range(400):
        tensors, n_data = good(rng)
        for _ in range(rng.randrange(3)):
            if all(isinstance(t, dict) and "shape" in t and "data_offsets" in t for t in tensors.values()):
                n_data = mutate(rng, tensors, n_data)
        text = json.dumps(tensors, separators=(",", ":"))
        if i % 4 == 3:
            text = mutate_text(rng, text)
        header = text.encode()
        try:
            safetensors.deserialize(len(header).to_bytes(8, "little") + header + bytes(n_data))
            ok = True
        except Exception:
            ok = False
        print(json.dumps({"header": text, "n_data": n_data, "ok": ok}))


main()
