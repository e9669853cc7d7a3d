"""Save tiny-llama3 quantized, by bitsandbytes and to fp8, and what transformers computes with that.

    python tests/models/make_quantized.py   # torch, transformers, bitsandbytes, accelerate;
                                            # 5.23.0 and 0.50.2 were used, on a CPU

Makes tiny-nf4, tiny-nf4-dq, tiny-fp4 and tiny-int8. Each line of reference.jsonl holds
prompt_ids, the ids that followed greedily, and the logits of every position of the prompt,
in float32. bitsandbytes' own int8 product rounds to fp16 and lets rows share their outliers;
so of int8 the ids are its own, and the logits come from the rule of kernels/ops.h.

tiny-fp8 has the tensors of compressed-tensors' float-quantized, a scale a row in float32;
tiny-fp8-tensor those of quant_method fp8, one scale a tensor in bfloat16 and an input_scale.
Their products follow the rule of kernels/ops.h, in torch.

tiny-fp8-block and tiny-fp8-block-ct have a scale for each block of 16 x 24 numbers, as
quant_method fp8 and compressed-tensors name it; what is computed is the model with the weights
code * scale, in float32."""
import json
import pathlib
import shutil

import torch
from bitsandbytes.nn import Linear8bitLt
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

HERE = pathlib.Path(__file__).parent
PROMPTS = [[1], [5, 9, 33, 60, 12], [1, 40, 41, 42, 43, 7, 7, 7, 30, 2, 58, 16, 61], list(range(3, 60, 2))]
KINDS = {
    "nf4": dict(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "nf4-dq": dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "fp4": dict(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    "int8": dict(load_in_8bit=True),
}


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].float()


def int8_by_row(layer, x):
    """Linear8bitLt.forward with each row's own outliers, in float32."""
    codes, scale = layer.state.CB.float(), layer.state.SCB.float()  # where a first call has put them
    is_outlier = x.abs() >= 6
    rest = x.masked_fill(is_outlier, 0)
    most = rest.abs().amax(-1, keepdim=True)
    q = torch.round(rest * (1 / most * 127))
    y = (q @ codes.T) * (most * scale) / (127 * 127) + (x - rest) @ (codes * scale[:, None] / 127).T
    return y + layer.bias


def line(model, prompt, is_int8):
    ids, n = list(prompt), 12
    for _ in range(n):
        top = logits_of(model, ids)[-1].topk(2)
        if top.values[0] - top.values[1] < (0.3 if is_int8 else 0.05):
            break  # too close to call in another order of summation
        ids.append(top.indices[0].item())
    if is_int8:
        plain, Linear8bitLt.forward = Linear8bitLt.forward, int8_by_row
    logits = [[round(x, 5) for x in row] for row in logits_of(model, prompt).tolist()]
    if is_int8:
        Linear8bitLt.forward = plain
    return {"prompt_ids": prompt, "greedy_ids": ids[len(prompt):], "logits": logits}


def e4m3(x, scale):
    return (x * (1 / scale)).clamp(-448, 448).to(torch.float8_e4m3fn)


def fp8_forward(layer, codes, scale):
    def forward(x):
        x_scale = x.abs().amax(-1, keepdim=True) / 448
        return (e4m3(x, x_scale).float() @ codes.float().T) * (x_scale * scale.flatten()) + layer.bias
    return forward


def make_fp8_checkpoint(name, config, quantize):
    """quantize(layer, weight name, tensors): the layer's tensors, and what it computes from now on."""
    folder, source = HERE / name, HERE / "tiny-llama3"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("reference.jsonl", "model.safetensors"))
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    tensors = load_file(source / "model.safetensors")
    for module, layer in model.model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            quantize(layer, f"model.{module}", tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text()) | {"quantization_config": config}
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    write_references(folder, model, False)


def make_fp8(name, config, scale_of):
    """scale_of(weight): its scale, of rows or of all."""
    def quantize(layer, at, tensors):
        scale = scale_of(layer.weight.data)
        codes = e4m3(layer.weight.data, scale.float())
        tensors[f"{at}.weight"], tensors[f"{at}.weight_scale"] = codes, scale
        if scale.numel() == 1:
            tensors[f"{at}.input_scale"] = torch.tensor(0.01)
        layer.forward = fp8_forward(layer, codes, scale.float())
    make_fp8_checkpoint(name, config, quantize)


BLOCK = 16, 24


def of_blocks(scale, shape):
    return scale.repeat_interleave(BLOCK[0], 0).repeat_interleave(BLOCK[1], 1)[:shape[0], :shape[1]]


def block_scales(w):
    n, k = (-(-w.shape[i] // BLOCK[i]) for i in (0, 1))
    padded = torch.zeros(n * BLOCK[0], k * BLOCK[1])
    padded[:w.shape[0], :w.shape[1]] = w.abs()
    return padded.view(n, BLOCK[0], k, BLOCK[1]).amax((1, 3)) / 448


def make_fp8_blocks(name, config, suffix, dtype):
    def quantize(layer, at, tensors):
        scale = block_scales(layer.weight.data).to(dtype)
        whole = of_blocks(scale.float(), layer.weight.shape)
        codes = e4m3(layer.weight.data, whole)
        tensors[f"{at}.weight"], tensors[f"{at}.{suffix}"] = codes, scale
        layer.weight.data = codes.float() * whole
    make_fp8_checkpoint(name, config, quantize)


def write_references(folder, model, is_int8):
    with open(folder / "reference.jsonl", "w") as f:
        for prompt in PROMPTS:
            f.write(json.dumps(line(model, prompt, is_int8), separators=(",", ":")) + "\n")


make_fp8("tiny-fp8", {"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"]},
         lambda w: w.abs().amax(1, keepdim=True) / 448)
make_fp8("tiny-fp8-tensor", {"quant_method": "fp8", "activation_scheme": "static"},
         lambda w: (w.abs().max() / 448).to(torch.bfloat16))
make_fp8_blocks("tiny-fp8-block", {"quant_method": "fp8", "weight_block_size": list(BLOCK), "activation_scheme": "dynamic"},
                "weight_scale_inv", torch.float32)
make_fp8_blocks("tiny-fp8-block-ct", {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups":
                {"group_0": {"weights": {"strategy": "block", "block_structure": list(BLOCK)}}}},
                "weight_scale", torch.bfloat16)
for kind, settings in KINDS.items():
    folder = HERE / f"tiny-{kind}"
    shutil.rmtree(folder, ignore_errors=True)
    config = BitsAndBytesConfig(**settings)
    source = HERE / "tiny-llama3"
    AutoModelForCausalLM.from_pretrained(source, quantization_config=config, dtype=torch.bfloat16,
                                         device_map="cpu").save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu",
                                                 attn_implementation="eager").eval()
    for p in model.parameters():  # what is not quantized comes as it was saved, in bfloat16
        if p.dtype == torch.bfloat16:
            p.data = p.data.float()
    write_references(folder, model, kind == "int8")
