"""Write repetition.jsonl and logprobs.jsonl: what transformers and torch say.

    python make.py        # needs torch, transformers; 2.15.0 and 5.23.0 were used

repetition.jsonl: {"penalty", "history": ids, "scores": logits, "order": ids, the highest
first, after transformers' RepetitionPenaltyLogitsProcessor}. logprobs.jsonl: {"scores",
"logprobs": torch.log_softmax of them in float32, "top": ids, the highest first}.
Logits are multiples of 1/64, so that their text is exact; no two end up equal."""
import json
import os

import torch
from transformers import RepetitionPenaltyLogitsProcessor

VOCAB = 43
here = os.path.dirname(os.path.abspath(__file__))
torch.manual_seed(20)


def scores(spread):
    return (torch.randperm(VOCAB) - VOCAB // 2).float() * spread / 64


def line(out, **values):
    out.write(json.dumps(values) + "\n")


with open(os.path.join(here, "repetition.jsonl"), "w") as out:
    for penalty in (1.3, 0.7, 1.07, 2.0, 1.9):
        while True:
            x, history = scores(11), torch.randint(0, VOCAB, (int(torch.randint(1, 60, ())),))
            y = RepetitionPenaltyLogitsProcessor(penalty)(history[None], x[None].clone())[0]
            if y.sort().values.diff().min() > 1e-4:
                break
        line(out, penalty=penalty, history=history.tolist(), scores=x.tolist(),
             order=y.argsort(descending=True).tolist())

with open(os.path.join(here, "logprobs.jsonl"), "w") as out:
    for spread in (1, 11, 60):
        x = scores(spread)
        line(out, scores=x.tolist(), logprobs=x.log_softmax(-1).tolist(), top=x.argsort(descending=True).tolist())
