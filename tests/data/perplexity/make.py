#!/usr/bin/env python3
"""Write expected.jsonl: the perplexity of texts as transformers computes it, in float32.

    make.py [FOLDER_OF_MODELS FOLDER_OF_TEXTS]   # torch, transformers, tokenizers

text.txt is scored with the demo model; with the two folders also texts of theirs with
stories260K. Windows as `batchd eval perplexity` cuts them: BOS is a window's first token."""
import json
import math
import pathlib
import sys

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent
DEMO = HERE.parent.parent / "models" / "demo"


def perplexity(folder, text, window, bos):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    nats, n = 0.0, 0
    for at in range(0, len(ids), window - 1):
        row = [bos] + ids[at : at + window - 1]
        with torch.no_grad():
            logprobs = model(torch.tensor([row])).logits[0].double().log_softmax(-1)
        nats -= sum(logprobs[i, row[i + 1]].item() for i in range(len(row) - 1))
        n += len(row) - 1
    return {"nats": nats / n, "perplexity": math.exp(nats / n), "tokens": n}


cases = [("demo", "text.txt", DEMO, HERE / "text.txt", 0, window, chars)
         for window, chars in [(256, 5000), (16, 700), (33, 5000)]]
if len(sys.argv) > 2:
    models, texts = map(pathlib.Path, sys.argv[1:])
    cases += [("stories260K", name, models / "stories260K", texts / name, 1, window, 5000)
              for name in ("short_stories.txt", "tinyshakespeare.txt") for window in (256, 100)]
with open(HERE / "expected.jsonl", "w") as f:
    for model, name, folder, text, bos, window, chars in cases:
        figures = perplexity(folder, text.read_text()[:chars], window, bos)
        f.write(json.dumps({"model": model, "text": name, "window": window, "chars": chars} | figures) + "\n")
