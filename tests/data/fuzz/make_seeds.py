#!/usr/bin/env python3
"""Small good files to mutate, tokenizer.json with every part and safetensors, into the folders
tokenizer/ and safetensors/ beside it. Those of config.json are the models in tests/models/."""
import json
import os
import struct

HERE = os.path.dirname(os.path.abspath(__file__))


def put(folder, name, data):
    os.makedirs(os.path.join(HERE, folder), exist_ok=True)
    with open(os.path.join(HERE, folder, name), "wb") as f:
        f.write(data if isinstance(data, bytes) else json.dumps(data, ensure_ascii=False).encode())


def letter(b):
    if 0x21 <= b <= 0x7e or 0xa1 <= b <= 0xac or 0xae <= b <= 0xff:
        return chr(b)
    return chr(0x100 + b if b <= 32 else 0x143 if b == 0xad else 0x121 + b - 0x7f)


def added(first, *contents):
    return [{"id": first + i, "content": c, "single_word": i == 1, "lstrip": i == 2, "rstrip": i == 3, "normalized": i % 2 == 0,
             "special": i < 2} for i, c in enumerate(contents)]


def regex(pattern, behavior, invert=False):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def tokenizers():
    letters = [letter(b) for b in list(range(32, 127)) + [10, 0xc3, 0xa9, 0xe2, 0x96, 0x81]]
    merges = ["t h", "th e", "i n", "Ġ a", "Ġ the", "Ã ©", "1 2"]
    vocab = {c: i for i, c in enumerate(letters + [m.replace(" ", "") for m in merges])}
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}
    put("tokenizer", "bytes.json", {
        "added_tokens": added(len(vocab), "<|end|>", "<s>", "x  ", "thee"),
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Strip", "strip_left": True, "strip_right": False}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            regex("(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|\\s+(?!\\S)|\\s+", "Isolated"),
            {"type": "Digits", "individual_digits": True}, {"type": "Punctuation", "behavior": "Contiguous"}, byte_level,
            regex("[0-9][0-9]", "MergedWithNext", True)]},
        "post_processor": {"type": "TemplateProcessing", "pair": [],
                           "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                           "special_tokens": {"<s>": {"id": "<s>", "ids": [len(vocab) + 1], "tokens": ["<s>"]}}},
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
                  "vocab": vocab, "merges": merges}})
    pieces = ["<unk>", "<s>", "</s>"] + ["<0x%02X>" % b for b in (0xC3, 0xA9, 0x0A)] + list("▁abehint12,.é") + ["▁a", "th", "in", "▁th"]
    vocab = {p: i for i, p in enumerate(pieces)}
    put("tokenizer", "pieces.json", {
        "added_tokens": added(0, "<unk>", "<s>", "</s>"),
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                                                           {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
                                                           {"type": "Replace", "pattern": {"Regex": "\\t+"}, "content": "▁"}]},
        "pre_tokenizer": None,
        "post_processor": {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1], "trim_offsets": True, "add_prefix_space": True},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                                                     {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "vocab": vocab,
                  "merges": [["▁", "a"], ["t", "h"], ["i", "n"], ["▁", "th"]]}})
    meta = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    put("tokenizer", "unigram.json", {
        "added_tokens": added(0, "<unk>"),
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, meta]},
        "post_processor": None, "decoder": meta,
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": True,
                  "vocab": [["<unk>", 0]] + [[p, -1.5 - i / 4] for i, p in enumerate(["▁", "a", "b", "▁the", "t", "h", "e", "th", "in", "<0xC3>", "<0xA9>"])]}})


def safetensors():
    def file(header, n):
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + bytes(range(n))

    put("safetensors", "four.safetensors", file({
        "__metadata__": {"format": "pt"}, "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [2], "data_offsets": [24, 28]}, "none": {"dtype": "F16", "shape": [0, 9], "data_offsets": [28, 28]},
        "one": {"dtype": "I64", "shape": [], "data_offsets": [28, 36]}}, 36))
    put("safetensors", "names.safetensors", file({
        "a\"}\u00e9\\": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "model.layers.0.w": {"dtype": "F8_E4M3", "shape": [3, 1], "data_offsets": [1, 4]}}, 4))
    put("safetensors", "empty.safetensors", file({}, 0))


tokenizers()
safetensors()
