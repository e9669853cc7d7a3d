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
LENGTHS = [(1, 64, 52), (13, 64, 64), (70, 64, 60), (300, 64, 351), (640, 64, 691)]


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
        if name.endswith("mlp.gate.weight"):
            noise = 8 * noise  # rounding may exchange the last expert chosen, so it gets a small share
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


def refer(name, kind, seed, file, lengths, attention="eager"):
    """Write what transformers computes with the model in the folder."""
    folder = HERE / name
    half, full = (kind.from_pretrained(folder, dtype=d, attn_implementation=attention).eval()
                  for d in (torch.bfloat16, torch.float32))
    rng = random.Random(seed)
    with open(folder / file, "w") as out:
        for n, n_new, start in lengths:
            new = None
            while new is None:
                prompt = [1] + [rng.randrange(3, 64) for _ in range(n - 1)]
                new = greedy(full, prompt, n_new)
                if new is None and n == 1:
                    return False  # there is but one prompt of one token
            ids = prompt + new[:-1]
            want = logits_of(full, ids)[start:]
            error = (logits_of(half, ids)[start:] - want).square().mean().sqrt().item()
            rows = [[round(x, 5) for x in row] for row in want.tolist()]
            out.write(json.dumps({"prompt_ids": prompt, "greedy_ids": new, "from": start, "bf16_error": error,
                                  "logits": rows}, separators=(",", ":")) + "\n")
            print(name, seed, n, n_new, "distinct", len(set(new)), "rms", want.square().mean().sqrt().item(),
                  "bf16 error", error, flush=True)
    return True


def make(name, model, seed, lengths=LENGTHS, norm_mean=1.0, bias=0.2, embed=1.0, gain=2.5, attention="eager"):
    """With the first seed from the given one on that leaves no choice in doubt."""
    folder = HERE / name
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        randomize(model.float(), seed, norm_mean, bias, embed, gain)
        model.eval().to(torch.bfloat16).save_pretrained(folder)
        (folder / "generation_config.json").write_text('{"bos_token_id": 1, "eos_token_id": [2, 5]}\n')
        if refer(name, type(model), seed, "reference.jsonl", lengths, attention):
            return
        seed += 1000


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


def qwen2():
    """Biases of Q, K and V alone; yarn; a window in all layers but the first; tied."""
    scaling = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 256}
    model = new("Qwen2", **IDS, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
                num_key_value_heads=2, max_position_embeddings=1024, rms_norm_eps=0.02, use_sliding_window=True,
                sliding_window=40, max_window_layers=1, tie_word_embeddings=True, rope_parameters=scaling)
    make("tiny-qwen2", model, 4, gain=1.3)


def qwen3():
    """Norms of Q and K, heads wider than hidden / heads, biases."""
    model = new("Qwen3", **IDS, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
                num_key_value_heads=3, head_dim=24, max_position_embeddings=1024, rms_norm_eps=0.02,
                attention_bias=True, tie_word_embeddings=False,
                rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    make("tiny-qwen3", model, 5, gain=1.7)


def phi3():
    """Fused tensors, partial rotation, a window, longrope: its short factors up to 256 tokens."""
    scaling = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
               "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5], "long_factor": [1.2, 1.9, 3.0, 5.5, 9.0, 14.0]}
    model = new("Phi3", **IDS, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=3,
                num_key_value_heads=1, max_position_embeddings=1024, original_max_position_embeddings=256,
                rms_norm_eps=0.02, sliding_window=150, pad_token_id=0, tie_word_embeddings=False,
                rope_parameters=scaling)
    make("tiny-phi3", model, 6, [(300, 64, 290), (500, 64, 551), (640, 64, 691), (800, 64, 851)], gain=1.3)
    refer("tiny-phi3", type(model), 7, "reference_short.jsonl",
          [(1, 64, 52), (13, 64, 64), (70, 64, 60), (120, 64, 171), (190, 64, 241)])


def gemma():
    """1 + w, scaled embeddings, GELU by tanh, heads wider than hidden / heads, biases, tied."""
    model = new("Gemma", **IDS, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=3,
                num_key_value_heads=1, head_dim=32, max_position_embeddings=1024, rms_norm_eps=0.02,
                attention_bias=True, pad_token_id=0)
    make("tiny-gemma", model, 8, norm_mean=0.0, embed=0.3, gain=1.7)


def gemma2():
    """Four norms a layer, both soft caps, a scale of its own, a window in every other layer."""
    model = new("Gemma2", **IDS, hidden_size=48, intermediate_size=80, num_hidden_layers=4, num_attention_heads=6,
                num_key_value_heads=2, head_dim=24, query_pre_attn_scalar=20, max_position_embeddings=1024,
                rms_norm_eps=0.02, sliding_window=30, attn_logit_softcapping=4.0, final_logit_softcapping=6.0,
                pad_token_id=0)
    make("tiny-gemma2", model, 9, norm_mean=1.0, embed=0.3, gain=1.7)


FALCON = dict(num_hidden_layers=3, max_position_embeddings=1024, layer_norm_epsilon=0.02)


def falcon7b():
    """One KV head, one norm for both halves of a parallel block, GELU by erf, tied."""
    make("tiny-falcon-7b", new("Falcon", **IDS, **FALCON, hidden_size=80, num_attention_heads=5), 10, gain=1.5)


def falcon40b():
    """Groups of heads in the fused tensor, two norms in a parallel block, a head of its own."""
    model = new("Falcon", **IDS, **FALCON, hidden_size=96, num_attention_heads=6, num_kv_heads=2,
                new_decoder_architecture=True, ffn_hidden_size=160, tie_word_embeddings=False)
    make("tiny-falcon-40b", model, 11)


def falcon_rw():
    """ALiBi of six heads, biases everywhere, Q, K and V of each head side by side, sequential blocks.

    By attention sdpa, for the eager one of 5.23.0 adds ALiBi twice."""
    model = new("Falcon", **IDS, **FALCON, hidden_size=48, num_attention_heads=6, multi_query=False,
                parallel_attn=False, bias=True, alibi=True)
    make("tiny-falcon-rw", model, 12, gain=1.7, attention="sdpa")


def mpt():
    """ALiBi of six heads, clipped Q, K and V, a scale of its own, norms without bias, tied."""
    from transformers.models.mpt import modeling_mpt as module

    # MptModel of 5.23.0 forgets to hand alibi_bias_max on to this function, and so computes with 8.
    module.MptModel.build_mpt_alibi_tensor = lambda self, n_heads, length, device: module.build_mpt_alibi_tensor(
        n_heads, length, self.config.attn_config.alibi_bias_max, device)
    model = new("Mpt", **IDS, d_model=48, n_heads=6, n_layers=3, max_seq_len=1024, layer_norm_epsilon=0.02,
                attn_config={"clip_qkv": 1.5, "alibi_bias_max": 6, "softmax_scale": 0.4})
    make("tiny-mpt", model, 13)


def mixtral():
    """Three of five experts for each token, one KV head in three, a window."""
    model = new("Mixtral", **IDS, hidden_size=48, intermediate_size=40, num_hidden_layers=3, num_attention_heads=6,
                num_key_value_heads=2, max_position_embeddings=1024, rms_norm_eps=0.02, sliding_window=200,
                num_local_experts=5, num_experts_per_tok=3, tie_word_embeddings=False,
                rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    make("tiny-mixtral", model, 14, gain=1.0)
    fused = transformers.MixtralForCausalLM.from_pretrained(HERE / "tiny-mixtral", dtype=torch.bfloat16)
    fused.save_pretrained(HERE / "tiny-mixtral-fused", save_original_format=False)


MODELS = {"tiny-llama3": llama3, "tiny-mistral": mistral, "tiny-mixtral": mixtral, "tiny-phi": phi,
          "tiny-qwen2": qwen2, "tiny-qwen3": qwen3, "tiny-phi3": phi3, "tiny-gemma": gemma, "tiny-gemma2": gemma2,
          "tiny-falcon-7b": falcon7b, "tiny-falcon-40b": falcon40b, "tiny-falcon-rw": falcon_rw, "tiny-mpt": mpt}
for chosen in sys.argv[1:]:
    MODELS[chosen]()
