#!/usr/bin/env bats
# What shares the batch does not change a row, seen from outside: 210 rows (40 where it has
# to be quick), half of them at temperature 0.8, through the command line in many ways; and
# what `metrics` and the step log say about it. tests/test_invariance.c has the full cross product.

load aid

setup_file() {
    export N_ROWS=$([ -n "${BATCHD_QUICK:-}" ] && echo 40 || echo 210)
    python3 - "$BATS_FILE_TMPDIR" "$N_ROWS" <<'X'
import csv, random, sys
random.seed(3)
words = "raven urchin forest ocean dragon pencil island basket apple bottle harbor acorn music pocket".split()
rows = []
for i in range(int(sys.argv[2])):
    some = [random.choice(words) for _ in range(random.randint(2, 12))]
    rows.append([f"r{i}", random.choice(["Sort these words: ", "Reverse: ", "Write in capital letters: "]) + ", ".join(some),
                 0.8 if i % 2 else 0, i, random.randint(1, 70), "true"])
longer = [r[:4] + [r[4] + 60] + r[5:] for r in rows]
for name, order in ("in", rows), ("shuffled", random.sample(rows, len(rows))), ("long", longer):
    with open(f"{sys.argv[1]}/{name}.csv", "w", newline="") as f:
        w = csv.writer(f)
        w.writerow(["id", "prompt", "@temperature", "@seed", "@max_tokens", "@ignore_eos"])
        w.writerows(order)
X
}

setup() { aid_setup; }

# texts NAME FILE FLAGS...: run, and write "id completion" in order of id to DIR/NAME.
texts() {
    local name=$1 file=$2
    shift 2
    "$BATCHD" --db "$DIR/$name.db" -q run "$BATS_FILE_TMPDIR/$file.csv" "$@"
    sqlite3 -cmd ".load $BUILD/batchd_sqlite" "$DIR/$name.db" \
        "SELECT custom_id, json_quote(completion) FROM results ORDER BY custom_id" >"$DIR/$name"
}

compare() {
    texts alone in --max-num-seqs 1 --threads 1 "$@"
    [ "$(sort -u -t'|' -k2 "$DIR/alone" | wc -l)" -ge $((N_ROWS - 10)) ]
    texts together in --threads 2 --max-num-batched-tokens 64 "$@"
    cmp "$DIR/alone" "$DIR/together"
    BATCHD_LOOKAHEAD=1 texts shuffled shuffled --threads 1 --max-num-batched-tokens 512 "$@"
    cmp "$DIR/alone" "$DIR/shuffled"
    BATCHD_LOOKAHEAD=2 texts ahead shuffled --threads 2 --max-num-batched-tokens 64 "$@"
    cmp "$DIR/alone" "$DIR/ahead"
}

@test "float32: alone, together, shuffled, with look-ahead: the same texts" {
    compare --dtype float32
}

@test "bfloat16: the same" {
    compare --dtype bfloat16
}

@test "quantized weights: the same" {
    local kind
    for kind in int8 nf4-dq fp8; do
        texts alone in --quantization $kind --max-num-seqs 1 --threads 1
        texts together in --quantization $kind --threads 2 --max-num-batched-tokens 64
        cmp "$DIR/alone" "$DIR/together"
        texts shuffled shuffled --quantization $kind --threads 1 --max-num-batched-tokens 512
        cmp "$DIR/alone" "$DIR/shuffled"
        rm "$DIR"/*.db*
    done
}

@test "keys and values in fp8: the same" {
    compare --kv-cache-dtype fp8 --quantization fp8
}

@test "a KV pool that is too small: preemptions, and the same texts" {
    texts roomy long --max-model-len 160
    [ "$(sqlite3 "$DIR/roomy.db" 'SELECT sum(preemptions) FROM metrics')" -eq 0 ]
    # The demo model in bfloat16 takes 2 KiB of keys and values a token, 64 KiB a block.
    texts tight long --max-model-len 160 --kv-cache-memory-bytes 1M
    n=$(sqlite3 "$DIR/tight.db" 'SELECT sum(preemptions) FROM metrics')
    echo "$n preemptions"
    [ "$n" -ge $((N_ROWS / 4)) ]
    cmp "$DIR/roomy" "$DIR/tight"
}

@test "the step log: prefill and decode rows in one step, short rows overtake long ones" {
    BATCHD_STEP_LOG=$DIR/steps texts logged in --max-num-seqs 16
    run -0 python3 - "$DIR/steps" "$N_ROWS" <<'X'
import json, sys
steps = [json.loads(line) for line in open(sys.argv[1])]
mixed = sum(s["prefill"] > 0 and s["decode"] > 0 for s in steps)
finished = [tag for s in steps for tag in s["finished"]]
assert len(finished) == int(sys.argv[2]) and mixed >= 10, (len(finished), mixed)
assert finished != sorted(finished)
assert all(s["rows"] == s["prefill"] + s["decode"] and s["running"] <= 16 for s in steps)
X
}
