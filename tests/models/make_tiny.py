"""Make the tiny models: random models of each family with every feature switched on, and
what transformers computes with them.

    python tests/models/make_tiny.py NAME ...    # needs torch, transformers; 5.23.0 was used

Weights are bf16, so that float32 and bf16 start from the same numbers. Each line of
reference.jsonl holds prompt_ids, greedy_ids (float32), `from` (the first position with
logits) and `logits`, float32 on the CPU, for each position from there on; and the rms
of what transformers' own bf16 forward pass differs from them, `bf16_error`."""
import json
import pathlib
import random
import shutil
import sys

import torch
import transformers

HERE = pathlib.Path(__file__).parent
LLAMA_LENGTHS = [(1, 20, 0), (13, 20, 0), (70, 12, 60), (640, 4, 638)]  # prompt, greedy, first position with logits
LENGTHS = [(n, 64, n + 64 - 1 - 12) for n in (1, 13, 70, 300, 640)]


def randomize(model, seed, norm_mean, bias, embed, gain):
    """Numbers large enough that attention is sharp and no two logits are close."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if name.endswith("bias"):
            noise = bias * noise
        elif p.dim() == 1:
            noise = norm_mean + 0.3 * noise
        elif "embed" in name or "wte" in name:
            noise = embed * noise
        else:
            noise = noise * gain / p.shape[-1] ** 0.5
        p.data = noise.to(torch.bfloat16).to(torch.float32)


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].float()


def greedy(model, prompt, n):
    ids = list(prompt)
    for _ in range(n):
        top = logits_of(model, ids)[-1].topk(2)
        if top.values[0] - top.values[1] < 1e-2:
            return None  # too close to call in another order of summation
        ids.append(top.indices[0].item())
    return ids[len(prompt):]


def make(name, model, seed, lengths=LENGTHS, norm_mean=1.0, bias=0.2, embed=1.0, gain=2.5):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    randomize(model, seed, norm_mean, bias, embed, gain)
    model.eval().to(torch.bfloat16).save_pretrained(folder)
    half, full = (type(model).from_pretrained(folder, dtype=d, attn_implementation="eager").eval()
                  for d in (torch.bfloat16, torch.float32))
    rng = random.Random(seed)
    with open(folder / "reference.jsonl", "w") as out:
        for n, n_new, start in lengths:
            new = None
            while new is None:
                prompt = [1] + [rng.randrange(3, 64) for _ in range(n - 1)]
                new = greedy(full, prompt, n_new)
                if new is None and n == 1:
                    raise SystemExit(f"{name}: choose another seed")
            ids = prompt + new[:-1]
            want = logits_of(full, ids)[start:]
            error = (logits_of(half, ids)[start:] - want).square().mean().sqrt().item()
            rows = [[round(x, 5) for x in row] for row in want.tolist()]
            out.write(json.dumps({"prompt_ids": prompt, "greedy_ids": new, "from": start, "bf16_error": error,
                                  "logits": rows}, separators=(",", ":")) + "\n")
            print(name, n, n_new, "distinct", len(set(new)), "rms", want.square().mean().sqrt().item(), "bf16 error",
                  error)
    (folder / "generation_config.json").write_text('{"bos_token_id": 1, "eos_token_id": [2, 5]}\n')


def new(kind, **keys):
    """A model of the class that transformers calls kind + ForCausalLM."""
    config = getattr(transformers, kind + "Config")
    return getattr(transformers, kind + "ForCausalLM")(config(attn_implementation="eager", **keys))


COMMON = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
              head_dim=16, max_position_embeddings=1024, rms_norm_eps=0.02, bos_token_id=1, eos_token_id=2)
IDS = dict(vocab_size=64, bos_token_id=1, eos_token_id=2)


def llama3():
    """Biases everywhere, llama3 scaling, a head of its own."""
    scaling = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 128}
    model = new("Llama", **COMMON, num_key_value_heads=2, attention_bias=True, mlp_bias=True,
                tie_word_embeddings=False, rope_parameters=scaling)
    make("tiny-llama3", model, 1, LLAMA_LENGTHS, bias=0.5, embed=1.5, gain=1.5)


def mistral():
    """A window of 8 tokens, one KV head, tied embeddings."""
    model = new("Mistral", **COMMON, num_key_value_heads=1, sliding_window=8, tie_word_embeddings=True,
                rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    make("tiny-mistral", model, 2, LLAMA_LENGTHS, embed=1.5, gain=1.5)


def phi():
    """Three heads of 16 of which 4 dimensions turn, norms of Q and K."""
    model = new("Phi", **IDS, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=3,
                max_position_embeddings=1024, layer_norm_eps=0.02, qk_layernorm=True,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25})
    make("tiny-phi", model, 3)


for chosen in sys.argv[1:]:
    {"tiny-llama3": llama3, "tiny-mistral": mistral, "tiny-phi": phi}[chosen]()
