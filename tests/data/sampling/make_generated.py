"""Write generated.jsonl: texts that transformers generates with the demo model, greedily.

    python make_generated.py        # needs torch, transformers; 2.15.0 and 5.23.0 were used

A line is {"prompt_ids", "params": sampling keys, "ids": what follows, "logprobs": of each of
them, "top": [[[id, logprob] x 3] of each], "prompt_logprobs": of each token of the prompt but
the first, "prompt_top"}. Logprobs are log_softmax of the raw logits in float32.

Repetition penalty, bias and bans are transformers' own processors; presence and frequency
penalty, which it lacks, are OpenAI's formula. End-of-text does not end a text. It is cut where
the two highest scores come closer than 0.01."""
import json
import os

import torch
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList

here = os.path.dirname(os.path.abspath(__file__))
folder = os.path.join(here, "../../models/demo")
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

CASES = [
    {},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.85},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.4},
    {"frequency_penalty": -0.3, "presence_penalty": -1.0},
    {"repetition_penalty": 1.15, "frequency_penalty": 0.2, "presence_penalty": 0.7},
    {"logit_bias": {"22": 6.0, "204": -8.0, "26": 5.5}, "repetition_penalty": 1.2},
    {"banned_token_ids": [22, 204, 5, 4], "presence_penalty": 0.5},
]


class Penalties(LogitsProcessor):
    def __init__(self, n_prompt, presence, frequency):
        self.n_prompt, self.presence, self.frequency = n_prompt, presence, frequency

    def __call__(self, input_ids, scores):
        counts = torch.zeros_like(scores)
        output = input_ids[:, self.n_prompt:]
        counts.scatter_add_(1, output, torch.ones_like(output, dtype=scores.dtype))
        return scores - self.frequency * counts - self.presence * (counts > 0)


def highest(logprobs, n=3):
    top = logprobs.topk(n)
    return [[[i, round(x, 6)] for i, x in zip(*row)] for row in zip(top.indices.tolist(), top.values.tolist())]


def generate(prompt, case):
    options = {}
    if "logit_bias" in case:
        options["sequence_bias"] = [[[int(i)], v] for i, v in case["logit_bias"].items()]
    if "banned_token_ids" in case:
        options["suppress_tokens"] = case["banned_token_ids"]
    if "repetition_penalty" in case:
        options["repetition_penalty"] = case["repetition_penalty"]
    own = Penalties(len(prompt), case.get("presence_penalty", 0), case.get("frequency_penalty", 0))
    ids = torch.tensor([prompt])
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=70, do_sample=False,
                          eos_token_id=[], pad_token_id=0, logits_processor=LogitsProcessorList([own]),
                          output_scores=True, output_logits=True, return_dict_in_generate=True, **options)


prompts = [json.loads(line)["prompt_ids"] for line in open(os.path.join(folder, "reference_greedy.jsonl"))]
with torch.no_grad(), open(os.path.join(here, "generated.jsonl"), "w") as out:
    for i, case in enumerate(CASES):
        prompt = prompts[i % len(prompts)]
        got = generate(prompt, case)
        top2 = torch.cat(got.scores).topk(2).values
        close = ((top2[:, 0] - top2[:, 1]) < 0.01).nonzero()
        n = int(close[0]) if len(close) else len(got.scores)
        ids = got.sequences[0, len(prompt):][:n]
        logprobs = torch.cat(got.logits)[:n].float().log_softmax(-1)
        before = model(torch.tensor([prompt])).logits[0, :-1].float().log_softmax(-1)
        of_prompt = before.gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
        line = {"params": case, "prompt_ids": prompt, "ids": ids.tolist(),
                "logprobs": [round(x, 6) for x in logprobs.gather(1, ids[:, None])[:, 0].tolist()],
                "top": highest(logprobs), "prompt_logprobs": [round(x, 6) for x in of_prompt.tolist()],
                "prompt_top": highest(before)}
        print(n, len(set(ids.tolist())), case)
        out.write(json.dumps(line, separators=(",", ":")) + "\n")
