#!/usr/bin/env python3
"""The tokenizer beside the Hugging Face library, on the same cores and texts.

  bench_tokenizer.py DATA BENCH [THREADS [ROUNDS]]

DATA holds tokenizers/ and texts/; BENCH is build/tests/bench_tokenizer. The two take turns, so
that what else the machine does falls on both; the best of 5 turns of ROUNDS rounds each counts.
Both get the non-empty lines of WikiText as one batch; a round ends when all ids are there.
"""
import json
import os
import subprocess
import sys
import time

data, bench = sys.argv[1:3]
threads = int(sys.argv[3]) if len(sys.argv) > 3 else 2
rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 5
os.environ["RAYON_NUM_THREADS"] = str(threads)
os.environ["TOKENIZERS_PARALLELISM"] = "true"
import tokenizers

path = os.path.join(data, "texts", "wikitext2_valid.txt")
with open(path, encoding="utf-8", newline="") as f:
    lines = [line for line in f.read().split("\n") if line]

for family in ("llama-3", "llama-2"):
    folder = os.path.join(data, "tokenizers", family)
    theirs = tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    best_theirs = best_fast = best_ours = 1e9
    for _ in range(5):
        for _ in range(rounds):
            start = time.perf_counter()
            out = theirs.encode_batch(lines)
            best_theirs = min(best_theirs, time.perf_counter() - start)
            start = time.perf_counter()
            theirs.encode_batch_fast(lines)
            best_fast = min(best_fast, time.perf_counter() - start)
        ours = json.loads(subprocess.run([bench, folder, path, str(threads), str(rounds)], stdout=subprocess.PIPE, check=True).stdout)
        best_ours = min(best_ours, *ours["seconds"])
    n_tokens = sum(len(e.ids) for e in out)
    if n_tokens != ours["tokens"] or len(lines) != ours["texts"]:
        sys.exit("%s: %d tokens, the library %d" % (family, ours["tokens"], n_tokens))
    mb = ours["bytes"] / 1e6
    print("%s: %d texts, %.2f MB, %d tokens; %d threads: batchd %.1f MB/s, tokenizers %s %.2f MB/s (encode_batch), "
          "%.2f MB/s (encode_batch_fast), ratio %.1f and %.1f"
          % (family, len(lines), mb, n_tokens, threads, mb / best_ours, tokenizers.__version__, mb / best_theirs, mb / best_fast,
             best_theirs / best_ours, best_fast / best_ours), flush=True)
