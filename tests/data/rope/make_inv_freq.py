"""Write inv_freq.jsonl: rotary frequencies as transformers computes them.

    python make_inv_freq.py >inv_freq.jsonl        # needs torch, transformers; 5.23.0 was used

A line is {"config": keys of a config.json (a Llama's, or a Phi's), "inv_freq": [...]}, with "attention_factor"
where that is not 1, and "n_positions" where the frequencies depend on the longest sequence."""
import json

from transformers import LlamaConfig, PhiConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi.modeling_phi import PhiRotaryEmbedding

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}
YARN = {"rope_type": "yarn", "factor": 4.0}
LONGROPE = {"rope_type": "longrope", "original_max_position_embeddings": 256,
            "short_factor": [1.0, 1.05, 1.1, 1.2, 1.4, 1.6, 1.8, 2.0],
            "long_factor": [1.1, 1.5, 2.25, 4.0, 8.0, 12.5, 16.0, 20.0]}

CASES = [
    {"head_dim": 64},
    {"head_dim": 128, "rope_theta": 1e6},
    {"head_dim": 64, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    {"head_dim": 80, "rope_theta": 5e4, "rope_scaling": {"rope_type": "linear", "factor": 2.5}},
    {"head_dim": 128, "rope_theta": 5e5, "max_position_embeddings": 131072, "rope_scaling": LLAMA3},
    {"head_dim": 64, "rope_theta": 5e5, "max_position_embeddings": 131072, "rope_scaling": LLAMA3 | {"factor": 32.0}},
    {"head_dim": 16, "max_position_embeddings": 256,
     "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 64, "low_freq_factor": 1.5, "high_freq_factor": 9.0}},
    {"model_type": "phi", "hidden_size": 320, "partial_rotary_factor": 0.4},
    {"model_type": "phi", "hidden_size": 256, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    {"head_dim": 128, "rope_theta": 1e6, "max_position_embeddings": 32768,
     "rope_scaling": YARN | {"original_max_position_embeddings": 32768}},
    {"head_dim": 64, "max_position_embeddings": 8192, "rope_scaling": YARN | {"beta_fast": 16, "beta_slow": 2}},
    {"head_dim": 64, "max_position_embeddings": 4096, "rope_scaling": YARN | {"truncate": False, "factor": 7.5}},
    {"head_dim": 32, "max_position_embeddings": 512,
     "rope_scaling": YARN | {"attention_factor": 0.75, "original_max_position_embeddings": 128}},
    {"head_dim": 32, "max_position_embeddings": 512,
     "rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 1.5, "original_max_position_embeddings": 128}},
    {"head_dim": 16, "max_position_embeddings": 4096, "rope_scaling": LONGROPE},
    {"head_dim": 16, "max_position_embeddings": 4096, "rope_scaling": LONGROPE | {"attention_factor": 1.25}},
]

for case in CASES:
    is_phi = case.get("model_type") == "phi"
    keys = {"hidden_size": 64, "num_attention_heads": 4} | json.loads(json.dumps(case))
    keys.pop("model_type", None)
    config = (PhiConfig if is_phi else LlamaConfig)(**keys)
    kind = config.rope_parameters["rope_type"]
    embedding = PhiRotaryEmbedding if is_phi else LlamaRotaryEmbedding
    compute = ROPE_INIT_FUNCTIONS.get(kind, embedding.compute_default_rope_parameters)
    for n_positions in (256, 257) if kind == "longrope" else (None,):
        inv_freq, scaling = compute(config) if n_positions is None else compute(config, seq_len=n_positions)
        line = {"config": case, "inv_freq": inv_freq.tolist()}
        if scaling != 1.0:
            line["attention_factor"] = scaling
        if n_positions:
            line["n_positions"] = n_positions
        print(json.dumps(line))
