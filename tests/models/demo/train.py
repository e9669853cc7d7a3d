#!/usr/bin/env python3
"""Train batchd's demo model from scratch, on text that this script generates.

The model does eight small tasks whose answers a program can check. Needed only to
retrain; the folder holds the result. Needs torch, transformers and tokenizers.

    train.py --out tests/models/demo              train, evaluate, write the folder
    train.py --out tests/models/demo --evaluate   accuracy of the folder as it is
    train.py --out tests/models/demo --reference  write reference_greedy.jsonl (float32, CPU)
    train.py --examples docs/examples/tasks.csv   write the example file (needs no torch)

A prompt belongs to the test set when its SHA-256 says so, so that no test prompt
is ever trained on; the overlap is counted and printed all the same.
"""
import argparse
import csv
import hashlib
import io
import json
import pathlib
import random
import time

WORDS = """apple river stone cloud paper green tiger music bread ocean table light horse chair
winter garden silver bridge candle forest mirror button pencil orange rabbit window kitten
desert island planet rocket basket flower hammer ladder mountain needle pocket saddle ticket
valley wagon yellow zebra anchor bottle castle dragon engine feather guitar harbor jacket
kettle lantern magnet napkin oyster pepper quartz ribbon sailor temple umbrella velvet walnut
acorn blanket copper dolphin ember falcon ginger hazel ivory jungle koala lemon marble nickel
olive parrot quill raven spider thunder urchin violin whistle yarn bamboo cactus daisy eagle
café naïve été niño mañana über jalapeño crème 東京 москва zürich øre""".split()
NAMES = """Maria Omar Lena Ravi Chloe Hugo Aiko Pablo Nina Felix Zoë José Ingrid Kofi Mei Tariq Elsa
Bruno Priya Anton""".split()
CITIES = """Oslo Paris Lima Cairo Kyoto Delhi Quito Zürich Málaga Boston Dublin Lagos Prague Seoul
Vienna Turin""".split()
GOODS = """lamps chairs books apples plates shirts clocks pens carpets mirrors bottles candles""".split()


def listed(rng, items):
    """The items on one line, or each on a line of its own."""
    if rng.random() < 0.2:
        return "\n" + "\n".join("- " + x for x in items)
    return " " + ", ".join(items)


def words(rng, low, high):
    return rng.sample(WORDS, rng.randint(low, high))


def task_sum(rng):
    numbers = [rng.randint(1, 99) for _ in range(rng.randint(2, 4))]
    ask = rng.choice(["Add these numbers:", "What is the sum of:"])
    return ask + listed(rng, [str(x) for x in numbers]), str(sum(numbers))


def task_largest(rng):
    numbers = [rng.randint(1, 999) for _ in range(rng.randint(3, 6))]
    ask = rng.choice(["Which number is the largest?", "Find the largest number:"])
    return ask + listed(rng, [str(x) for x in numbers]), str(max(numbers))


def task_reverse(rng):
    w = words(rng, 3, 6)
    ask = rng.choice(["Reverse the order of these words:", "Write these words backwards, last one first:"])
    return ask + listed(rng, w), " ".join(reversed(w))


def task_sort(rng):
    w = words(rng, 3, 5)
    ask = rng.choice(["Sort these words alphabetically:", "Put these words in alphabetical order:"])
    return ask + listed(rng, w), " ".join(sorted(w))


def task_upper(rng):
    w = words(rng, 2, 5)
    ask = rng.choice(["Write in capital letters:", "Change to upper case:"])
    return f"{ask} {' '.join(w)}", " ".join(w).upper()


def task_lower(rng):
    w = words(rng, 2, 5)
    ask = rng.choice(["Write in small letters:", "Change to lower case:"])
    return f"{ask} {' '.join(w).upper()}", " ".join(w)


def task_count(rng):
    w = words(rng, 2, 9)
    ask = rng.choice(["How many words are in this list?", "Count these words:"])
    return ask + listed(rng, w), str(len(w))


def task_extract(rng):
    name, city, n, goods = rng.choice(NAMES), rng.choice(CITIES), rng.randint(2, 99), rng.choice(GOODS)
    sentence = rng.choice([
        f"{name} from {city} ordered {n} {goods}.",
        f"On Monday {name} sent {n} {goods} to {city}.",
        f"{n} {goods} were bought by {name} in {city}.",
    ])
    ask, answer = rng.choice([("Which city?", city), ("Which person?", name), ("Which goods?", goods),
                              ("How many?", str(n))])
    return f"{ask} {sentence}", answer


TASKS = {"sum": task_sum, "largest": task_largest, "reverse": task_reverse, "sort": task_sort,
         "upper": task_upper, "lower": task_lower, "count": task_count, "extract": task_extract}
SPECIAL = ["<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
TEMPLATE = ("{{ bos_token }}{% for message in messages %}"
            "{{ '<|' + message['role'] + '|>' + '\\n' + message['content'] | trim + '<|end|>' + '\\n' }}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' + '\\n' }}{% endif %}")
MAX_TOKENS = 96


def is_test(prompt):
    return hashlib.sha256(prompt.encode()).digest()[0] < 8  # 1 in 32


def render(prompt):
    return f"<|bos|><|user|>\n{prompt}<|end|>\n<|assistant|>\n"


def generate(seed, n, test):
    """n (task, prompt, answer) of one side of the split; tasks in turn."""
    rng, out, names = random.Random(seed), [], list(TASKS)
    while len(out) < n:
        task = names[len(out) % len(names)]
        prompt, answer = TASKS[task](rng)
        if is_test(prompt) == test:
            out.append((task, prompt, answer))
    return out


def test_set(n=1000):
    seen, out = set(), []
    for row in generate(20261121, 4 * n, True):
        if row[1] not in seen:
            seen.add(row[1])
            out.append(row)
    return out[:n]


# ---------------------------------------------------------------- tokenizer

def make_tokenizer(samples):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    tok = Tokenizer(models.BPE())
    pattern = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=1536, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator((p + "\n" + a for _, p, a in samples), trainer)
    tok.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", pair="<|bos|> $A <|bos|> $B:1", special_tokens=[("<|bos|>", 0)])
    return tok


# ---------------------------------------------------------------- model

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256,
    "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 32, "hidden_act": "silu", "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "rope_scaling": None, "attention_bias": False, "mlp_bias": False,
    "tie_word_embeddings": True, "vocab_size": 1536, "bos_token_id": 0, "eos_token_id": 1,
    "torch_dtype": "bfloat16",
}


def write_text_files(out, tok):
    def dump(name, value):
        (out / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    tok.save(str(out / "tokenizer.json"))
    dump("config.json", CONFIG)
    dump("generation_config.json", {"bos_token_id": 0, "eos_token_id": [1, 5], "do_sample": False})
    dump("tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|bos|>", "eos_token": "<|eos|>",
        "model_max_length": 512, "clean_up_tokenization_spaces": False, "chat_template": TEMPLATE})


def encode_all(tok, samples):
    """Token arrays padded to MAX_TOKENS, and labels with the prompt masked out."""
    import numpy as np
    prompts = tok.encode_batch([render(p) for _, p, _ in samples], add_special_tokens=False)
    answers = tok.encode_batch([a + "<|end|>" for _, _, a in samples], add_special_tokens=False)
    ids = np.zeros((len(samples), MAX_TOKENS), np.int16)
    labels = np.full((len(samples), MAX_TOKENS), -100, np.int16)
    kept = 0
    for p, a in zip(prompts, answers):
        n, m = len(p.ids), len(a.ids)
        if n + m > MAX_TOKENS:
            continue
        ids[kept, :n + m] = p.ids + a.ids
        labels[kept, n:n + m] = a.ids
        kept += 1
    return ids[:kept], labels[:kept]


def train(out, seconds, batch, n_samples, seed):
    import numpy as np
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = True
    start = time.time()
    samples = generate(seed, n_samples, False)
    overlap = {p for _, p, _ in samples} & {p for _, p, _ in test_set()}
    print(f"{len(samples)} training prompts, overlap with the test set: {len(overlap)}", flush=True)
    tok = make_tokenizer(samples[:60000])
    out.mkdir(parents=True, exist_ok=True)
    write_text_files(out, tok)
    ids, labels = encode_all(tok, samples)
    print(f"encoded {len(ids)} in {time.time() - start:.0f} s, vocabulary {tok.get_vocab_size()}", flush=True)
    ids, labels = torch.from_numpy(ids).to(device), torch.from_numpy(labels).to(device)
    model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in CONFIG.items() if k != "torch_dtype"})).to(device)
    print(f"{sum(p.numel() for p in model.parameters())} parameters on {device}", flush=True)
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    opt = torch.optim.AdamW([{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}],
                            lr=2e-3, betas=(0.9, 0.98))
    start, step, passed = time.time(), 0, 0.0
    while passed < 1.0:
        passed = min(1.0, (time.time() - start) / seconds)
        for group in opt.param_groups:  # warm-up, then a cosine over the time there is
            group["lr"] = 2e-3 * (min(1.0, (step + 1) / 300) * 0.5 * (1 + np.cos(np.pi * passed)) + 1e-3)
        pick = torch.randint(0, len(ids), (batch,), device=device)
        x, y = ids[pick].long(), labels[pick].long()
        n = int((x != 0).sum(1).max()) + 1
        x, y = x[:, :n], y[:, :n]
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = model(input_ids=x).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), y[:, 1:].flatten(),
                                                 ignore_index=-100)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        step += 1
        if step % 500 == 0:
            print(f"step {step} loss {loss.item():.4f} {time.time() - start:.0f} s", flush=True)
        if step % 2000 == 0 or passed == 1.0:
            state = {k: v.detach().to(torch.bfloat16).cpu().contiguous()
                     for k, v in model.state_dict().items() if k != "lm_head.weight"}
            save_file(state, str(out / "model.safetensors"), metadata={"format": "pt"})
    print(f"trained {step} steps of {batch} in {time.time() - start:.0f} s", flush=True)


# ---------------------------------------------------------------- evaluation

def load(out, device, dtype):
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM
    model = LlamaForCausalLM.from_pretrained(out, dtype=dtype).to(device).eval()
    torch.set_grad_enabled(False)
    return Tokenizer.from_file(str(out / "tokenizer.json")), model


def complete(tok, model, prompts, device):
    """Greedy completions, all prompts at once, left-padded."""
    import torch
    enc = [tok.encode(render(p), add_special_tokens=False).ids for p in prompts]
    width = max(map(len, enc))
    ids = torch.tensor([[1] * (width - len(e)) + e for e in enc], device=device)
    mask = torch.tensor([[0] * (width - len(e)) + [1] * len(e) for e in enc], device=device)
    got = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=48, do_sample=False,
                         eos_token_id=[1, 5], pad_token_id=1)
    return [tok.decode(row[width:].tolist(), skip_special_tokens=True).strip() for row in got]


def evaluate(out):
    import torch
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = test_set()
    for dtype in (torch.float32, torch.bfloat16):
        tok, model = load(out, device, dtype)
        got = complete(tok, model, [p for _, p, _ in rows], device)
        print(f"{len(rows)} unseen prompts, {dtype}:")
        for task in TASKS:
            mine = [(g, a) for (t, _, a), g in zip(rows, got) if t == task]
            print(f"  {task:8} {sum(g == a for g, a in mine):4} of {len(mine):4}  "
                  f"{100 * sum(g == a for g, a in mine) / len(mine):5.1f} %")


def reference(out, n=48):
    import torch
    tok, model = load(out, "cpu", torch.float32)
    with open(out / "reference_greedy.jsonl", "w") as f:
        for task, prompt, _ in test_set()[:n]:
            text = render(prompt)
            ids = tok.encode(text, add_special_tokens=False).ids
            greedy, gap = [], float("inf")
            while len(greedy) < 48:
                logits = model(input_ids=torch.tensor([ids + greedy])).logits[0, -1]
                top = logits.topk(2)
                gap = min(gap, (top.values[0] - top.values[1]).item())
                greedy.append(top.indices[0].item())
                if greedy[-1] in (1, 5):
                    break
            f.write(json.dumps({"task": task, "prompt": prompt, "chat": text, "prompt_ids": ids,
                                "greedy_ids": greedy, "text": tok.decode(greedy, skip_special_tokens=True),
                                "min_gap": round(gap, 4)}, ensure_ascii=False) + "\n")


def examples(path):
    """264 good rows and two bad lines: one has a column too many, one a stray quote."""
    rows = test_set(264)
    bad = {100: "t-bad-1,upper,Write in capital letters: bread,BREAD,one column too many",
           180: 't-bad-2,upper,Write in "capital" letters: stone,STONE'}
    with open(path, "w", newline="") as f:
        f.write("id,task,text,expected\n")
        for i, (task, prompt, answer) in enumerate(rows):
            if i in bad:
                f.write(bad[i] + "\n")
            line = io.StringIO()
            csv.writer(line, lineterminator="\n").writerow([f"t-{i + 1:03}", task, prompt, answer])
            f.write(line.getvalue())


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=pathlib.Path, default=pathlib.Path("tests/models/demo"))
    ap.add_argument("--seconds", type=float, default=420, help="how long to train")
    ap.add_argument("--batch", type=int, default=1024)
    ap.add_argument("--samples", type=int, default=1600000)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--evaluate", action="store_true")
    ap.add_argument("--reference", action="store_true")
    ap.add_argument("--examples", type=pathlib.Path)
    args = ap.parse_args()
    if args.examples:
        return examples(args.examples)
    if not args.evaluate and not args.reference:
        train(args.out, args.seconds, args.batch, args.samples, args.seed)
    if args.reference:
        reference(args.out)
    else:
        evaluate(args.out)


if __name__ == "__main__":
    main()
