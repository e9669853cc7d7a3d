#!/usr/bin/env python3
"""Roofs from the sizes in a model's config.json, for tests/test_roof.c. Standard library only.

    tests/data/roof/make_roof.py > tests/data/roof/roof.json      # from the repository root

Counted from layer sizes, time per output token; the program counts from its weights, time
per step. `models` are numbers that the safetensors headers of tests/models/ give."""
import json
import pathlib
import struct

# layers, hidden, heads, KV heads, head size, intermediate, vocabulary, matrices of the MLP, window,
# share of the layers where it holds
MODELS = {
    "phi-2": (32, 2560, 32, 32, 80, 10240, 51200, 2, 0, 0),
    "mistral-7b": (32, 4096, 32, 8, 128, 14336, 32000, 3, 4096, 1),
    "llama-3.1-8b": (32, 4096, 32, 8, 128, 14336, 128256, 3, 0, 0),
    "llama-70b": (80, 8192, 64, 8, 128, 28672, 128256, 3, 0, 0),
    "smollm2-135m": (30, 576, 9, 3, 64, 1536, 49152, 3, 0, 0),
    "gemma-2-2b": (26, 2304, 8, 4, 256, 9216, 256000, 3, 4096, 0.5),
}
# copy B/s, matrix FLOP/s
DEVICES = {"h200": (4.26e12, 815e12), "small": (3.0e11, 4.0e13)}
# prompt, completion, sequences at once
SHAPES = [(128, 128, 2048), (512, 512, 2048), (1024, 128, 870), (2048, 128, 448), (21, 77, 1), (8000, 100, 16), (1, 1, 8)]


# bytes a number of the layers' weights, and the matrix rate with them over that without
KINDS = {"none": (2, 1), "fp8": (1, 1.8), "nf4": (0.5625, 1)}


def seconds_per_token(model, device, isl, osl, at_once, kind="none"):
    layers, hidden, heads, kv_heads, size, ffn, vocab, mats, window, share = MODELS[model]
    copy, matrix = DEVICES[device]
    numbers = layers * (hidden * size * (2 * heads + 2 * kv_heads) + mats * hidden * ffn)
    head = vocab * hidden
    rows = 1 + isl / osl  # each token brings so many prompt rows with it
    size_of, faster = KINDS[kind]
    layer_s = max(2 * numbers * rows / (matrix * faster), size_of * numbers / copy / at_once)
    head_s = max(2 * head / matrix, 2 * head / copy / at_once)
    seen = isl + osl / 2
    seen = share * min(seen, window) + (1 - share) * seen
    kv_s = seen * layers * 2 * kv_heads * size * 2 / copy
    pairs = isl * isl / 2
    if window and window < isl:
        pairs -= share * (isl - window) ** 2 / 2
    attention_s = 4 * layers * heads * size * pairs / osl / (0.6 * matrix)
    return [layer_s, head_s, kv_s, attention_s]


def work(model, kind="none"):
    layers, hidden, heads, kv_heads, size, ffn, vocab, mats, window, share = MODELS[model]
    numbers = layers * (hidden * size * (2 * heads + 2 * kv_heads) + mats * hidden * ffn)
    size_of, faster = KINDS[kind]
    return {"row_flop": 2 * numbers, "layer_bytes": size_of * numbers,
            "row_flop_quant": 2 * numbers if faster != 1 else 0, "head_flop": 2 * vocab * hidden,
            "head_bytes": 2 * vocab * hidden, "kv_bytes": 4 * layers * kv_heads * size,
            "pair_flop": 4 * layers * heads * size, "sliding_window": window, "sliding_share": share}


def counted(folder):
    """Numbers in the layers' matrices and in the vocabulary projection of a checkpoint."""
    with open(folder / "model.safetensors", "rb") as f:
        header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
    header.pop("__metadata__", None)
    size = {name: t["shape"][0] * t["shape"][1] for name, t in header.items() if len(t["shape"]) == 2}
    layers = sum(n for name, n in size.items() if ".layers." in name and ".experts." not in name)
    experts = sum(n for name, n in size.items() if ".experts." in name)
    head = size.get("lm_head.weight", size["model.embed_tokens.weight"])
    config = json.loads((folder / "config.json").read_text())
    if experts:  # a row goes through some of them; all may have to be read
        used = experts * config["num_experts_per_tok"] // config["num_local_experts"]
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    return {"folder": folder.as_posix(), "row_flop": 2 * (layers + (used if experts else 0)),
            "layer_numbers": layers + experts, "head_flop": 2 * head,
            "kv_numbers": 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * width,
            "pair_flop": 4 * config["num_hidden_layers"] * heads * width}


def main():
    cases = []
    for model in MODELS:
        for device in DEVICES:
            for isl, osl, at_once in SHAPES:
                parts = seconds_per_token(model, device, isl, osl, at_once)
                cases.append({"model": model, "copy": DEVICES[device][0], "matrix": DEVICES[device][1], "input_len": isl,
                              "output_len": osl, "n_seqs": at_once, "parts_s": [p * at_once for p in parts],
                              "tokens_per_s": 1 / sum(parts)})
    for kind in ("fp8", "nf4"):
        for isl, osl, at_once in SHAPES:
            copy, matrix = DEVICES["h200"]
            parts = seconds_per_token("llama-3.1-8b", "h200", isl, osl, at_once, kind)
            cases.append({"model": "llama-3.1-8b " + kind, "copy": copy, "matrix": matrix, "faster": KINDS[kind][1],
                          "input_len": isl, "output_len": osl, "n_seqs": at_once, "parts_s": [p * at_once for p in parts],
                          "tokens_per_s": 1 / sum(parts)})
    works = {m: work(m) for m in MODELS} | {"llama-3.1-8b " + k: work("llama-3.1-8b", k) for k in ("fp8", "nf4")}
    out = {"work": works, "cases": cases,
           "models": [counted(pathlib.Path("tests/models") / m) for m in ("demo", "tiny-llama3", "tiny-mistral", "tiny-mixtral", "tiny-phi", "tiny-gemma2")]}
    rows = [json.dumps(c) for c in cases]
    print('{"work": ' + json.dumps(out["work"]) + ',\n"models": ' + json.dumps(out["models"]) + ',\n"cases": [\n'
          + ",\n".join(rows) + "\n]}")


main()
