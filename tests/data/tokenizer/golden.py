#!/usr/bin/env python3
"""Texts that are hard to tokenize, with what the `tokenizers` package makes of them.

  golden.py write DATA                     texts.zst and one FAMILY.bin per tokenizer
  golden.py compare DATA BATCHD [N [SEED [FAMILY ...]]]
                                           N texts per family (default 100000; others with each SEED,
                                           default 1) through `BATCHD tokenize`, every id and character
                                           compared
  golden.py vectors DATA                   phi-2.json, mistral-v1.json: ids and text of the library for
                                           the texts of DATA's generated vectors of those two
  golden.py parts                          parts.json and parts.bin: small tokenizers with every
                                           part that tokenizer.json may have

DATA is the folder with tokenizers/*/tokenizer.json. Needs the Python package `tokenizers`
(written with 0.23.3) and, for `write`, the program zstd. Texts hold code points that are
assigned in Unicode 14, so Python must know that version or a later one.

texts.zst: for each text two bytes of length, little-endian, and its UTF-8.
parts.json: models, and tokenizers made of them. parts.bin: as FAMILY.bin, for the first N_PARTS
texts and each tokenizer; six bytes 0xff where the library itself panics.
FAMILY.bin: for each text six bytes: the low 32 bits of a hash of the ids (texts with an odd
number are encoded with special tokens added) and the low 16 bits of one of the decoded text,
special tokens kept, both little-endian. The hash is FNV-1a, 64 bits; ids are four bytes each.
"""
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import unicodedata

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
N_GOLDEN = 5000
UNKNOWN = b"\xff" * 6

ALL = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Cs", "Co")]
if unicodedata.unidata_version != "14.0.0":
    sys.exit("Unicode %s, not 14.0.0: take a Python 3.11" % unicodedata.unidata_version)
KIND = {}
for c in ALL:
    KIND.setdefault(unicodedata.category(c), []).append(c)
MARKS = KIND["Mn"] + KIND["Mc"] + KIND["Me"]
NUMBERS = KIND["Nd"] + KIND["Nl"] + KIND["No"]
PUNCTUATION = sum((KIND[k] for k in ("Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps")), [])
SPACES = " \t\n\r\v\f\x1c\x1f\x85\xa0\u1680\u180e\u2000\u2003\u200a\u200b\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
DECOMPOSED = [c for c in ALL if unicodedata.decomposition(c)]
LATIN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
CONTRACTIONS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "'\u017f", "'Re", "’s", "''s"]
WORDS = ("the of and to in a is that for it as was with be by on not he his but at are this have from or had an "
         "they which one you were all her she there would their we him been has when who will no more if out so "
         "naïve café über Straße straße İstanbul ΑΒΓ Σίσυφος привет Москва мир שלום עולם مرحبا العالم नमस्ते दुनिया "
         "สวัสดี ชาวโลก 你好 世界 東京 こんにちは カタカナ 안녕하세요 한국어 Việt tiếng ﬁne ﬃ ２０２４ Ⅷ ½ ² x² ①").split()
EMOJI = ["😀", "👍🏽", "👨‍👩‍👧‍👦", "🇩🇪", "❤️", "🏳️‍🌈", "1️⃣", "☃", "🫠", "🧑🏿‍🚀"]
CODE = ["if (x == 0) {\n", "\treturn -1;\n", "}\n", "def f(a, *b):\n", "    ", "        ", "x += 1  # inc\n", "<div class=\"a\">",
        "</div>", "SELECT * FROM t;", "#include <stdio.h>\n", "0x1F", "1e-9", "3.14159", "a->b", "::", "&&", "\\n", "http://x.y/?q=1&r=2",
        "{\"a\": [1, 2]}", "@user", "#tag", "$9.99", "C:\\x", "\r\n", "\n\n\n", "__init__", "camelCaseWord", "CONST_NAME"]


def random_code_points(r, special):
    return "".join(r.choice(ALL) for _ in range(r.randint(1, 16)))


def by_category(r, special):
    """One category is as likely as the next, which plain draws over 280,000 characters are not."""
    kinds = sorted(KIND)
    return "".join(r.choice(KIND[r.choice(kinds)]) for _ in range(r.randint(1, 20)))


def prose(r, special):
    out = []
    for _ in range(r.randint(1, 14)):
        w = r.choice(WORDS)
        if r.random() < 0.2:
            w = r.choice([w.upper(), w.title(), w + r.choice(WORDS)])
        out.append(w + r.choice([" ", " ", " ", "  ", "", ", ", ". ", "\n", " - ", r.choice(CONTRACTIONS) + " ", r.choice(EMOJI)]))
    return "".join(out)


def white_space(r, special):
    return "".join(r.choice([r.choice(SPACES) * r.randint(1, 5), " " * r.randint(1, 40), "\n" * r.randint(1, 4), r.choice(LATIN),
                             r.choice("0.,▁_")]) for _ in range(r.randint(1, 10)))


def numbers(r, special):
    return "".join(r.choice([str(r.randint(0, 10 ** r.randint(1, 12))), r.choice(NUMBERS), r.choice(NUMBERS) * r.randint(1, 4),
                             r.choice(".,:-+ %$€²³¹¼½¾"), r.choice(LATIN), "000"]) for _ in range(r.randint(1, 12)))


def special_tokens(r, special):
    out = []
    for _ in range(r.randint(1, 8)):
        s = r.choice(special)
        k = r.random()
        if k < 0.15 and len(s) > 1:
            s = s[:r.randint(1, len(s))]
        elif k < 0.25:
            s = s + s[-1]
        elif k < 0.3:
            s = s.upper()
        out.append(s + r.choice(["", "", " ", "  ", "\n", "a", "▁", r.choice(WORDS), r.choice(MARKS), r.choice(SPACES)]))
    return "".join(out)


def composition(r, special):
    out = []
    for _ in range(r.randint(1, 8)):
        base = r.choice([r.choice(LATIN), r.choice(DECOMPOSED), r.choice(ALL), chr(r.randint(0x1100, 0x11ff)), chr(r.randint(0xac00, 0xd7a3))])
        out.append(base + "".join(r.choice(MARKS) for _ in range(r.choice([0, 1, 1, 2, 3]))))
    text = "".join(out)
    return r.choice([text, unicodedata.normalize("NFD", text), unicodedata.normalize("NFC", text)])


def runs(r, special):
    if r.random() < 0.2:  # marks in no order
        few = r.sample(MARKS, 5) + ["\u0f73", "\u0f75", "\u0f81", "\u0301", "\u0316", "\u0334"]
        return r.choice(LATIN) + "".join(r.choice(few) for _ in range(r.randint(25, 90))) + r.choice(LATIN)
    return "".join(r.choice([r.choice(LATIN), r.choice("-=*#. \n"), r.choice(ALL), r.choice(EMOJI)]) * r.choice([2, 3, 7, 16, 33, 64, 100])
                   for _ in range(r.randint(1, 3)))


def code(r, special):
    return "".join(r.choice(CODE) for _ in range(r.randint(1, 10)))


def punctuation(r, special):
    return "".join(r.choice([r.choice(PUNCTUATION), r.choice(PUNCTUATION) * 3, r.choice("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"), " ",
                             r.choice(LATIN), r.choice(KIND["Sm"] + KIND["So"] + KIND["Sk"] + KIND["Sc"]), r.choice(CONTRACTIONS)])
                   for _ in range(r.randint(1, 20)))


def ascii_noise(r, special):
    return "".join(chr(r.randint(0, 127)) for _ in range(r.randint(0, 40)))


def letters(r, special):
    """Long words: merges that meet in every order."""
    pool = r.choice(["abc", "etaoin", LATIN, "aA0", "Ġ▁Ċ", "人口日本", "אבגד"])
    return "".join(r.choice(pool) for _ in range(r.randint(1, 80)))


MAKERS = [random_code_points, by_category, prose, white_space, numbers, special_tokens, composition, runs, code, punctuation,
          ascii_noise, letters]


def text_number(seed, i, special):
    r = random.Random("%s %d" % (seed, i))
    text = MAKERS[i % len(MAKERS)](r, special)
    if r.random() < 0.15:
        text += r.choice(MAKERS)(r, special)
    return text


def families(data):
    folder = os.path.join(data, "tokenizers")
    return {f: Tokenizer.from_file(os.path.join(folder, f, "tokenizer.json")) for f in sorted(os.listdir(folder))
            if os.path.exists(os.path.join(folder, f, "tokenizer.json"))}


def added_contents(tokenizers):
    out = set()
    for t in tokenizers:
        contents = sorted(a.content for a in t.get_added_tokens_decoder().values())
        out.update(contents if len(contents) < 60 else contents[:20] + contents[-20:])
    return sorted(out)


def fnv(data):
    h = 0xcbf29ce484222325
    for b in data:
        h = (h ^ b) * 0x100000001b3 & 0xffffffffffffffff
    return h


def encode(t, texts, odd):
    """ids of all texts; those with an odd number get special tokens added."""
    out = [None] * len(texts)
    for k in (0, 1):
        some = [i for i in range(len(texts)) if i % 2 == k]
        for i, e in zip(some, t.encode_batch([texts[i] for i in some], add_special_tokens=bool(k) and odd)):
            out[i] = e.ids
    return out


def encode_singly(t, texts):
    """The same; None where the library itself panics, as it does behind some normalizers that shorten a text."""
    out = []
    for i, text in enumerate(texts):
        try:
            out.append(t.encode(text, add_special_tokens=i % 2 == 1).ids)
        except BaseException as e:
            if type(e).__name__ != "PanicException":
                raise
            out.append(None)
    return out


def digests(t, texts, singly=False):
    out = b""
    for ids in encode_singly(t, texts) if singly else encode(t, texts, True):
        if ids is None:
            out += UNKNOWN
            continue
        text = t.decode(ids, skip_special_tokens=False)
        out += struct.pack("<IH", fnv(struct.pack("<%dI" % len(ids), *ids)) & 0xffffffff, fnv(text.encode()) & 0xffff)
    return out


def write(data):
    tokenizers = families(data)
    special = added_contents(tokenizers.values())
    texts = [text_number("golden", i, special) for i in range(N_GOLDEN)]
    packed = b"".join(struct.pack("<H", len(s)) + s for s in (t.encode() for t in texts))
    with open(os.path.join(HERE, "texts.zst"), "wb") as f:
        f.write(subprocess.run(["zstd", "-19", "-c"], input=packed, stdout=subprocess.PIPE, check=True).stdout)
    for family, t in tokenizers.items():
        with open(os.path.join(HERE, family + ".bin"), "wb") as f:
            f.write(digests(t, texts))


def train(kind):
    """A small model of each kind, on the words and the code above."""
    corpus = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))] + ["".join(CODE[i:] + CODE[:i]) for i in range(len(CODE))]
    if kind == "bytes":
        t = Tokenizer(models.BPE())
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        t.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=450, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    elif kind == "pieces":
        t = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        t.normalizer = normalizers.Replace(" ", "▁")
        t.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", "<s>", "</s>"] + ["<0x%02X>" % i for i in range(256)],
                                                          limit_alphabet=120, show_progress=False))
    else:
        t = Tokenizer(models.Unigram())
        t.pre_tokenizer = pre_tokenizers.Metaspace()
        t.train_from_iterator(corpus, trainers.UnigramTrainer(vocab_size=320, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False))
    model = json.loads(t.to_str())["model"]
    if kind == "pieces":  # the trainer gives no bytes to a model; these go where they can be found
        model["byte_fallback"] = True
    return model


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
SPACED = dict(BYTES, add_prefix_space=True, use_regex=True)
BOTH = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
META = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
LLAMA = {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                                          {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}


def split(behavior, pattern, invert=False):
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


def template(before, after):
    token = {"x": 5, "y": 6, "z": 7}
    return {"type": "TemplateProcessing", "pair": [],
            "single": [{"SpecialToken": {"id": k, "type_id": 0}} for k in before] + [{"Sequence": {"id": "A", "type_id": 0}}] +
                      [{"SpecialToken": {"id": k, "type_id": 0}} for k in after],
            "special_tokens": {k: {"id": k, "ids": [token[k], 9], "tokens": [k, k]} for k in before + after}}


def added(*tokens):
    """(content, flags) with the letters l r n w s for lstrip rstrip normalized single_word special."""
    return [{"id": None, "content": c, "single_word": "w" in f, "lstrip": "l" in f, "rstrip": "r" in f,
             "normalized": "n" in f, "special": "s" in f} for i, (c, f) in enumerate(tokens)]


def part_tokenizers():
    out = []

    def one(model, decoder, **parts):
        overrides = parts.pop("overrides", {})
        out.append({"model": model, "overrides": overrides, "parts": dict({"normalizer": None, "pre_tokenizer": None, "post_processor": None,
                                                                           "decoder": decoder, "added_tokens": []}, **parts)})

    for kind in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"):
        one("bytes", BYTES, normalizer={"type": kind}, pre_tokenizer=BYTES)
    for left, right in ((True, True), (True, False), (False, True)):
        one("bytes", BYTES, normalizer={"type": "Strip", "strip_left": left, "strip_right": right}, pre_tokenizer=BYTES)
    for pattern in ({"String": "a"}, {"String": "  "}, {"Regex": "\\s+"}, {"Regex": "\\w"}, {"Regex": "\\bt"},
                    {"Regex": "(?i:T|S)h?"}, {"Regex": "^."}, {"Regex": "[^\\w\\s]{,2}x"}, {"Regex": "\\h+$"}, {"Regex": "\\p{^L}"}):
        one("bytes", BYTES, normalizer={"type": "Replace", "pattern": pattern, "content": "<é>"}, pre_tokenizer=BYTES)
    one("bytes", BYTES, normalizer={"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "_"}, {"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "StripAccents"}]},
        {"type": "Lowercase"}]}, pre_tokenizer=BYTES)
    for behavior in ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        for invert in (False, True):
            one("bytes", BYTES, pre_tokenizer={"type": "Sequence", "pretokenizers": [split(behavior, {"Regex": "[aeiou \\d]"}, invert), BYTES]})
        one("bytes", BYTES, pre_tokenizer={"type": "Sequence", "pretokenizers": [split(behavior, {"String": "."}), BYTES]})
        one("bytes", BYTES, pre_tokenizer={"type": "Sequence", "pretokenizers": [split(behavior, {"Regex": "(?<=e)|(?=t)| ?"}), BYTES]})
        one("bytes", BYTES, pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Punctuation", "behavior": behavior}, BYTES]})
    for digits in (False, True):
        one("bytes", BYTES, pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": digits}, SPACED]})
        one("bytes", BYTES, pre_tokenizer={"type": "Sequence", "pretokenizers": [SPACED, {"type": "Digits", "individual_digits": digits}]})
    one("bytes", BYTES, pre_tokenizer={"type": "Sequence", "pretokenizers": [BYTES, split("Removed", {"Regex": "[Ġ\\p{Lu}]"}),
                                                                            split("MergedWithNext", {"String": "Ã"})]})
    for pattern in (" ?[^(\\s|[.,!?…。，、।۔،])]+", "[[a-c]x[[:digit:]]]+|[^[:space:]]", "[가-힣一-龥]+|[\\r\\n]|\\p{^Lu}?+\\p{L}++",
                    "[!-#\\[\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
                    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\\p{N}{1,3}",
                    "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+"):
        one("bytes", BYTES, pre_tokenizer={"type": "Sequence", "pretokenizers": [split("Isolated", {"Regex": pattern}), BYTES]})
    for pattern in ("[^\\w]", "\\b.", ".\\B", "[[:word:]]+|[[:punct:][:blank:]]", "\\p{Han}+|[^\\p{^Arabic}]+", "[[:^digit:]]+"):
        one("bytes", BYTES, pre_tokenizer={"type": "Sequence", "pretokenizers": [split("Isolated", {"Regex": pattern}), BYTES]})
    one("bytes", BYTES, pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, BYTES]})
    one("bytes", BYTES, pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, SPACED]})
    one("bytes", BYTES, pre_tokenizer=SPACED, overrides={"ignore_merges": True})
    one("bytes", BYTES, pre_tokenizer=SPACED, post_processor={"type": "Sequence", "processors": [
        SPACED, {"type": "Sequence", "processors": [template("x", "yz")]}]})
    one("bytes", BYTES, pre_tokenizer=SPACED, post_processor={"type": "RobertaProcessing", "sep": ["!", 0], "cls": ["\"", 1],
                                                              "trim_offsets": True, "add_prefix_space": True})
    one("bytes", BYTES, pre_tokenizer=SPACED, post_processor={"type": "BertProcessing", "sep": ["!", 0], "cls": ["\"", 1]})
    for flags in ("", "l", "r", "lr", "n", "nl", "nr", "w", "wn", "s", "sn", "lrwns"):
        one("bytes", BYTES, pre_tokenizer=SPACED, normalizer={"type": "Lowercase"},
            added_tokens=added(("the", flags), ("  ", "n"), ("É", flags), ("=", flags), ("<|endoftext|>", "s"), ("<|en", flags)))
        one("pieces", LLAMA, normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                                                                             {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            added_tokens=added(("the", flags), ("a", flags), (" ", flags), ("</s>", flags), ("<unk>", "s")))
    for scheme in ("always", "first", "never"):
        for cut in (False, True):
            meta = dict(META, prepend_scheme=scheme, split=cut)
            one("pieces", meta, pre_tokenizer=meta, added_tokens=added(("the", ""), ("</s>", "sr")))
            one("unigram", meta, pre_tokenizer=meta, added_tokens=added(("the", ""), ("</s>", "sr")))
    old = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
    one("pieces", old, pre_tokenizer=old)
    one("pieces", BOTH, pre_tokenizer=META)
    one("pieces", BOTH, normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        pre_tokenizer=split("MergedWithPrevious", {"String": " "}))
    one("pieces", {"type": "Sequence", "decoders": [META, {"type": "ByteFallback"}, {"type": "Fuse"}]}, pre_tokenizer=META)
    one("pieces", {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"Regex": "[▁a-c]+"}, "content": "-"}, {"type": "Fuse"}]})
    one("pieces", None)
    one("pieces", None, pre_tokenizer=META)
    for fuse in (False, True):
        one("pieces", None, overrides={"byte_fallback": False, "fuse_unk": fuse})
        one("pieces", None, overrides={"byte_fallback": False, "fuse_unk": fuse, "unk_token": None})
        one("unigram", META, pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, META]}, overrides={"byte_fallback": fuse})
    one("unigram", META, normalizer={"type": "NFKC"}, pre_tokenizer=META, post_processor=template("x", "y"))
    one("bytes-in-unigram", LLAMA, normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, overrides={"byte_fallback": True})
    return out


def number(tokens, vocab):
    """The ids that the library gives: the model's own, or the next one."""
    known = vocab if isinstance(vocab, dict) else {p[0]: i for i, p in enumerate(vocab)}
    free = len(vocab)
    for t in tokens:
        t["id"] = known.get(t["content"], free)
        free += t["content"] not in known


N_PARTS = 240


def parts():
    """Texts come from texts.zst, so `write` goes first."""
    trained = {kind: train(kind) for kind in ("bytes", "pieces", "unigram")}
    spelled = json.loads(json.dumps(trained["unigram"]))
    spelled["vocab"] += [["<0x%02X>" % i, -20.0] for i in range(256)]
    trained["bytes-in-unigram"] = spelled
    packed = subprocess.run(["zstd", "-dc", os.path.join(HERE, "texts.zst")], stdout=subprocess.PIPE, check=True).stdout
    texts, at = [], 0
    while len(texts) < N_PARTS:
        n = struct.unpack_from("<H", packed, at)[0]
        texts.append(packed[at + 2:at + 2 + n].decode())
        at += 2 + n
    tokenizers = part_tokenizers()
    with open(os.path.join(HERE, "parts.bin"), "wb") as f:
        for o in tokenizers:
            number(o["parts"]["added_tokens"], trained[o["model"]]["vocab"])
            whole = dict({"version": "1.0", "truncation": None, "padding": None, "model": dict(trained[o["model"]], **o["overrides"])}, **o["parts"])
            try:
                t = Tokenizer.from_str(json.dumps(whole))
            except Exception as e:
                sys.exit("%s: %s" % (e, json.dumps(o)))
            d = digests(t, texts, True)
            unknown = sum(d[i:i + 6] == UNKNOWN for i in range(0, len(d), 6))
            if unknown:
                print("%d texts unknown to %s" % (unknown, json.dumps(o)))
            f.write(d)
    with open(os.path.join(HERE, "parts.json"), "w") as f:
        f.write("{\"models\": {\n")
        f.write(",\n".join("%s: %s" % (json.dumps(k), json.dumps(v, ensure_ascii=False, separators=(",", ":"))) for k, v in trained.items()))
        f.write("},\n\"tokenizers\": [\n" + ",\n".join(json.dumps(o, ensure_ascii=False) for o in tokenizers) + "]}\n")


def vectors(data):
    for family in ("phi-2", "mistral-v1"):
        t = families(data)[family]
        with open(os.path.join(data, "tokenizers", family, "vectors", "generated.json")) as f:
            out = [dict(v, ids=t.encode(v["text"], add_special_tokens=v["add_special"]).ids) for v in json.load(f)]
        for v in out:
            v["decoded"] = t.decode(v["ids"], skip_special_tokens=False)
            v["decoded_skip_special"] = t.decode(v["ids"], skip_special_tokens=True)
        with open(os.path.join(HERE, family + ".json"), "w") as f:
            f.write("[\n" + ",\n".join(json.dumps(v, ensure_ascii=False) for v in out) + "\n]\n")


def ask(batchd, folder, lines, decode):
    command = [batchd, "-q", "tokenize", "-m", folder + "/", "--jsonl"] + (["--decode"] if decode else [])
    p = subprocess.run(command, input="\n".join(lines) + "\n", stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    out = p.stdout.split("\n")[:-1]
    if p.returncode or len(out) != len(lines):
        sys.exit("%s: exit %d after %d of %d lines: %s" % (" ".join(command), p.returncode, len(out), len(lines), p.stderr))
    return [json.loads(line) for line in out]


def compare_texts(name, t, batchd, folder, texts):
    """Number of texts whose ids, or whose decoded text, are not those of the package."""
    want = encode(t, texts, True)
    got = ask(batchd, folder, [json.dumps({"text": x, "add_special": i % 2 == 1}) for i, x in enumerate(texts)], False)
    back = ask(batchd, folder, [json.dumps(ids) for ids in want], True)
    bad = 0
    for i, text in enumerate(texts):
        said = t.decode(want[i], skip_special_tokens=False)
        if got[i] == want[i] and back[i]["text"] == said:
            continue
        bad += 1
        if bad <= 5:
            print("%s: text %d %s %s" % (name, i, ascii(text), "special" if i % 2 else ""))
            if got[i] != want[i]:
                print("   ids  want %s\n        got  %s" % (want[i], got[i]))
            if back[i]["text"] != said:
                print("   text want %s\n        got  %s" % (ascii(said), ascii(back[i]["text"])))
    return bad


def compare(data, batchd, n, seed, names):
    tokenizers = families(data)
    total = 0
    for family in names or tokenizers:
        t = tokenizers[family]
        special = added_contents([t])
        bad = 0
        for start in range(0, n, 20000):
            texts = [text_number("%s %s" % (family, seed), i, special) for i in range(start, min(n, start + 20000))]
            bad += compare_texts(family, t, batchd, os.path.join(data, "tokenizers", family), texts)
        print("%s: %d texts, %d differ" % (family, n, bad), flush=True)
        total += bad
    sys.exit(total > 0)


def main(args):
    if args[:1] == ["write"] and len(args) == 2:
        write(args[1])
    elif args[:1] == ["vectors"] and len(args) == 2:
        vectors(args[1])
    elif args == ["parts"]:
        parts()
    elif args[:1] == ["compare"] and len(args) >= 3:
        compare(args[1], args[2], int(args[3]) if len(args) > 3 else 100000, args[4] if len(args) > 4 else "1", args[5:])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
