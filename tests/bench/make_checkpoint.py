#!/usr/bin/env python3
"""A checkpoint of random bfloat16 numbers in the shape that a config.json of the Llama or
Mistral kind describes, to time loading with: no weights need be fetched.

    make_checkpoint.py CONFIG_FOLDER OUT_FOLDER [LAYERS]

Writes config.json and model-N.safetensors of up to 4 GB, and copies a tokenizer.json: that of
CONFIG_FOLDER, else the demo model's where it is run from the repository. Numbers are of sizes
2^-7 to 2^-3 with random signs and fractions."""
import json
import os
import shutil
import sys

SHARD = 4 << 30
POOL = 64 << 20


def pool():
    """Random numbers: sign and fraction at random, exponents 120 to 123."""
    n = POOL
    bits = int.from_bytes(os.urandom(n), "little")
    keep = int.from_bytes(b"\xff\x81" * (n // 2), "little")
    exponent = int.from_bytes(b"\x00\x3c" * (n // 2), "little")
    return (bits & keep | exponent).to_bytes(n, "little")


def tensors(c, n_layers):
    h, f, hd = c["hidden_size"], c["intermediate_size"], c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    q, kv = c["num_attention_heads"] * hd, c["num_key_value_heads"] * hd
    yield "model.embed_tokens.weight", [c["vocab_size"], h]
    for i in range(n_layers):
        at = f"model.layers.{i}."
        yield at + "input_layernorm.weight", [h]
        yield at + "post_attention_layernorm.weight", [h]
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            yield at + f"self_attn.{name}_proj.weight", [rows, h]
        yield at + "self_attn.o_proj.weight", [h, q]
        yield at + "mlp.gate_proj.weight", [f, h]
        yield at + "mlp.up_proj.weight", [f, h]
        yield at + "mlp.down_proj.weight", [h, f]
    yield "model.norm.weight", [h]
    if not c.get("tie_word_embeddings"):
        yield "lm_head.weight", [c["vocab_size"], h]


def size(shape):
    n = 2
    for d in shape:
        n *= d
    return n


def shards(all_tensors):
    shard, total = [], 0
    for name, shape in all_tensors:
        if shard and total + size(shape) > SHARD:
            yield shard
            shard, total = [], 0
        shard.append((name, shape))
        total += size(shape)
    yield shard


def write_numbers(f, numbers, n, phase):
    while n > 0:
        piece = numbers[phase:phase + n]
        f.write(piece)
        n -= len(piece)
        phase = 0


def main():
    source, out = sys.argv[1:3]
    with open(os.path.join(source, "config.json")) as f:
        config = json.load(f)
    n_layers = int(sys.argv[3]) if len(sys.argv) > 3 else config["num_hidden_layers"]
    config["num_hidden_layers"] = n_layers
    os.makedirs(out, exist_ok=True)
    with open(os.path.join(out, "config.json"), "w") as f:
        json.dump(config, f)
    tokenizers = [os.path.join(folder, "tokenizer.json") for folder in (source, "tests/models/demo")]
    for path in [path for path in tokenizers if os.path.exists(path)][:1]:
        shutil.copy(path, out)
    numbers, phase = memoryview(pool()), 0
    parts = list(shards(tensors(config, n_layers)))
    index = {}
    for i, shard in enumerate(parts):
        name, at, header = f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors", 0, {}
        for tensor, shape in shard:
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size(shape)]}
            index[tensor] = name
            at += size(shape)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(os.path.join(out, name), "wb", buffering=0) as f:
            f.write(len(text).to_bytes(8, "little") + text)
            for tensor, shape in shard:
                write_numbers(f, numbers, size(shape), phase)
                phase = (phase + 4096 * 37) % POOL
    with open(os.path.join(out, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {}, "weight_map": index}, f)


main()
