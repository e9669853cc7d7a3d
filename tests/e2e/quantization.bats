#!/usr/bin/env bats
# --quantization from the command line to the engine: stored with the job, obeyed by `run`
# and by a daemon, and part of what a job is.

load aid

setup() { aid_setup; }

@test "a job keeps its quantization, and texts differ from those of another" {
    printf '{"prompt": "Sort these words: raven, apple, ocean"}\n{"prompt": "Reverse: acorn, island"}\n' >"$DIR/in.jsonl"
    for kind in none fp4 int8; do
        "$BATCHD" --db "$DIR/a.db" -q run "$DIR/in.jsonl" --quantization $kind --max-tokens 200 --temperature 1.5 \
            --ignore-eos -o "$DIR/$kind.jsonl"
    done
    "$BATCHD" --db "$DIR/a.db" -q run "$DIR/in.jsonl" --quantization fp4 --quantization-skip o_proj,layers.1 \
        --max-tokens 200 --temperature 1.5 --ignore-eos -o "$DIR/skip.jsonl"
    run sqlite3 "$DIR/a.db" "SELECT ifnull(quantization, '-') FROM job ORDER BY job_id"
    [ "$output" = "$(printf -- '-\nfp4\nint8\nfp4 except o_proj,layers.1')" ]
    [ "$(cat "$DIR"/{none,fp4,skip}.jsonl | python3 -c '
import json, sys
print(len({json.loads(line)["completion"] for line in sys.stdin}))')" -ge 4 ]
}

@test "the daemon loads what each job asks for" {
    printf '{"prompt": "Sort these words: raven, apple, ocean"}\n' >"$DIR/in.jsonl"
    "$BATCHD" --db "$DIR/a.db" -q run "$DIR/in.jsonl" --quantization nf4 --max-tokens 40 --temperature 0 -o "$DIR/want.jsonl"
    "$BATCHD" --db "$DIR/b.db" -q submit "$DIR/in.jsonl" --max-tokens 40 --temperature 0
    "$BATCHD" --db "$DIR/b.db" -q submit "$DIR/in.jsonl" --quantization nf4 --max-tokens 40 --temperature 0
    "$BATCHD" --db "$DIR/b.db" serve --once 2>"$DIR/log"
    [ "$(grep -c 'loaded on' "$DIR/log")" -eq 2 ]
    "$BATCHD" --db "$DIR/b.db" export 2 -o "$DIR/got.jsonl"
    python3 - "$DIR/want.jsonl" "$DIR/got.jsonl" <<'X'
import json, sys
want, got = (json.loads(open(p).read()) for p in sys.argv[1:])
assert want["completion"] == got["completion"], (want, got)
X
}

@test "flags that make no sense are refused" {
    printf '{"prompt": "x"}\n' >"$DIR/in.jsonl"
    run "$BATCHD" --db "$DIR/a.db" run "$DIR/in.jsonl" --quantization int4
    [ "$status" -eq 2 ]
    [[ "$output" == *"none"*"nf4-dq"* ]]
    run "$BATCHD" --db "$DIR/a.db" run "$DIR/in.jsonl" --quantization-skip o_proj
    [ "$status" -eq 2 ]
    [[ "$output" == *"--quantization-skip needs --quantization"* ]]
}
