"""Write inv_freq.jsonl: rotary frequencies as transformers computes them.

    python make_inv_freq.py >inv_freq.jsonl        # needs torch, transformers; 5.23.0 was used

A line is {"config": keys of a Llama's config.json, "inv_freq": [...]}."""
import json

from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}

CASES = [
    {"head_dim": 64},
    {"head_dim": 128, "rope_theta": 1e6},
    {"head_dim": 64, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    {"head_dim": 80, "rope_theta": 5e4, "rope_scaling": {"rope_type": "linear", "factor": 2.5}},
    {"head_dim": 128, "rope_theta": 5e5, "max_position_embeddings": 131072, "rope_scaling": LLAMA3},
    {"head_dim": 64, "rope_theta": 5e5, "max_position_embeddings": 131072, "rope_scaling": LLAMA3 | {"factor": 32.0}},
    {"head_dim": 16, "max_position_embeddings": 256,
     "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 64, "low_freq_factor": 1.5, "high_freq_factor": 9.0}},
]

for case in CASES:
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, **json.loads(json.dumps(case)))
    kind = config.rope_parameters["rope_type"]
    compute = ROPE_INIT_FUNCTIONS.get(kind, LlamaRotaryEmbedding.compute_default_rope_parameters)
    inv_freq, scaling = compute(config)
    assert scaling == 1.0 and inv_freq.numel() == case["head_dim"] // 2
    print(json.dumps({"config": case, "inv_freq": inv_freq.tolist()}))
