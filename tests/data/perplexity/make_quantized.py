#!/usr/bin/env python3
"""Write quantized.jsonl: stories260K's perplexity with quantized weights, not by batchd.

    make_quantized.py FOLDER_OF_MODELS FOLDER_OF_TEXTS
                              # torch, transformers, tokenizers, bitsandbytes, accelerate

nf4, nf4-dq, fp4 and int8 as transformers runs bitsandbytes, on a CPU; fp8, of weights and of keys
and values, by docs/quantization.md's rules in torch. Everything that is not quantized computes in float32."""
import json
import math
import pathlib
import sys

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.models.llama import modeling_llama

HERE = pathlib.Path(__file__).parent
KINDS = {
    "nf4": dict(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "nf4-dq": dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "fp4": dict(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    "int8": dict(load_in_8bit=True),
    "fp8": None,
    "none": None,
}


def e4m3(x):
    scale = x.abs().amax(-1, keepdim=True) / 448
    return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float(), scale


def to_fp8(model):
    for name, layer in model.model.named_modules():
        if not isinstance(layer, torch.nn.Linear):
            continue
        codes, scale = e4m3(layer.weight.data)

        def forward(x, codes=codes, scale=scale):
            x, x_scale = e4m3(x)
            return (x @ codes.T) * (x_scale * scale.T[0])

        layer.forward = forward


def with_fp8_cache(plain):
    """The attention function, its keys and values put through e4m3 token by token and head by head."""
    def attend(module, query, key, value, *args, **kwargs):
        key, value = (codes * scale for codes, scale in (e4m3(key), e4m3(value)))
        return plain(module, query, key, value, *args, **kwargs)
    return attend


def perplexity(model, ids, window=256):
    nats, n = 0.0, 0
    for at in range(0, len(ids), window - 1):
        row = [1] + ids[at : at + window - 1]
        with torch.no_grad():
            logprobs = model(torch.tensor([row])).logits[0].double().log_softmax(-1)
        nats -= sum(logprobs[i, row[i + 1]].item() for i in range(len(row) - 1))
        n += len(row) - 1
    return math.exp(nats / n)


folder, texts = pathlib.Path(sys.argv[1]) / "stories260K", pathlib.Path(sys.argv[2])
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
with open(HERE / "quantized.jsonl", "w") as f:
    for kind, settings in KINDS.items():
        config = dict(quantization_config=BitsAndBytesConfig(**settings), device_map="cpu") if settings else {}
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                                     **config).eval()
        if kind == "fp8":
            to_fp8(model)
        plain = modeling_llama.eager_attention_forward
        for kv in ["auto"] * (kind != "none") + ["fp8"] * (settings is None):
            modeling_llama.eager_attention_forward = with_fp8_cache(plain) if kv == "fp8" else plain
            for name in ("short_stories.txt", "tinyshakespeare.txt"):
                ids = tokenizer.encode((texts / name).read_text()[:5000], add_special_tokens=False).ids
                f.write(json.dumps({"quantization": kind, "kv_cache_dtype": kv, "text": name,
                                    "perplexity": perplexity(model, ids)}) + "\n")
        modeling_llama.eager_attention_forward = plain
