#!/usr/bin/env bats
# Names for model folders, and which weights a job ran on.

load aid

setup() {
    aid_setup
    cp -r tests/models/demo "$DIR/model"
    printf 'id,prompt\na,abc\nb,def\n' >"$DIR/in.csv"
}

weights_of() { sqlite3 "$BATCHD_DB" "SELECT weights FROM jobs WHERE job_id = $1"; }

@test "models: add, list, show, check, remove" {
    run -0 "$BATCHD" models add "$DIR/model" --name demo
    run -0 "$BATCHD" models list
    [[ "$output" == *"demo"*"$DIR/model"* ]]
    run -0 "$BATCHD" models show demo --json
    [[ "$output" == *'"parameters":3344640'* ]]
    python3 -c 'import json, sys
m = json.loads(sys.argv[1])
assert (m["stop_token_ids"], m["sampling"], m["tokenizer"]["chat_template"]) == ([1, 5], {"temperature": 0.0}, True), m
rooms = {(r["quantization"], r["kv_cache_dtype"]): r for r in m["gpus"]}
assert len(rooms) == 12 and rooms["none", "auto"]["kv_tokens_by_gpu_gb"]["16"] > 0, m
assert rooms["nf4-dq", "fp8"]["weight_bytes"] < rooms["none", "fp8"]["weight_bytes"], m' "$output"
    run -0 "$BATCHD" --db "$DIR/none.db" models show "$DIR/model" # a folder needs no database
    [ ! -e "$DIR/none.db" ]
    [[ "$output" == *"sampling    greedy"*"141 GB"*"nf4-dq, fp8 KV"* ]]
    mkdir "$DIR/config" # what would it take, were it downloaded?
    cp "$DIR/model/config.json" "$DIR/config"
    run -0 "$BATCHD" models show "$DIR/config" --json
    python3 -c 'import json, sys
m = json.loads(sys.argv[1])
assert not m["has_weights"] and m["parameters"] == 3344640 and len(m["gpus"]) == 12, m' "$output"
    run -0 "$BATCHD" models show "$DIR/config"
    [[ "$output" == *"weights     none here"*"nf4-dq, fp8 KV"* ]]
    run -0 "$BATCHD" models check demo
    [[ "$output" == "demo: 5 files as they were added" ]]
    run -0 "$BATCHD" doctor
    [[ "$output" == *"OK    models     names: 1;"* ]]
    echo >>"$DIR/model/README.md" # nothing that the engine reads
    run -0 "$BATCHD" models check
    printf 'x' | dd of="$DIR/model/model.safetensors" bs=1 seek=200000 conv=notrunc status=none
    echo '{{ messages }}' >"$DIR/model/chat_template.jinja"
    run -1 "$BATCHD" models check demo
    [[ "$output" == *"changed: model.safetensors"*"new: chat_template.jinja"* ]]
    run -1 --separate-stderr "$BATCHD" models check --json
    python3 -c 'import json, sys
got = json.loads(sys.argv[1])
assert got[0]["name"] == "demo" and got[0]["same"] is False, got
assert {"file": "model.safetensors", "change": "changed"} in got[0]["differences"], got' "$output"
    run -4 "$BATCHD" models show none
    run -4 "$BATCHD" models check none
    run -4 "$BATCHD" models remove none
    run -2 "$BATCHD" models add "$DIR/model" --name 'a/b'
    run -2 "$BATCHD" models remove
    run -69 "$BATCHD" models add "$DIR/nothing" --name x
    run -0 "$BATCHD" models remove demo
    run -4 "$BATCHD" models show demo
    [ -e "$DIR/model/config.json" ]
}

@test "a terminal sees how far the hashes are, and a file that cannot be read is named" {
    run -69 "$BATCHD" models add "$DIR/in.csv" --name x
    run -0 script -qec "TERM=xterm '$BATCHD' models add '$DIR/model' --name demo" /dev/null
    [[ "$output" == *MiB* ]]
    rm "$DIR/model/config.json"
    run -1 "$BATCHD" models check demo
    [[ "$output" == *"missing: config.json"* ]]
    rm "$DIR/model/model.safetensors"
    run -0 "$BATCHD" doctor
    [[ "$output" == *"WARN  models     model demo: "*"neither model.safetensors"* ]]
    run -69 "$BATCHD" models check demo
    [[ "$output" == *"model demo: "*model.safetensors* ]]
}

@test "a job says which weights made it, whole files of a name, headers of a folder" {
    run -0 "$BATCHD" models add "$DIR/model" --name demo
    run -0 "$BATCHD" -q run "$DIR/in.csv" -m demo -o "$DIR/1.jsonl" --max-tokens 2
    run -0 "$BATCHD" -q run "$DIR/in.csv" -m "$DIR/model" -o "$DIR/2.jsonl" --max-tokens 2
    cp -r "$DIR/model" "$DIR/copy"
    run -0 "$BATCHD" -q run "$DIR/in.csv" -m "$DIR/copy" -o "$DIR/3.jsonl" --max-tokens 2
    [ "$(sqlite3 "$BATCHD_DB" 'SELECT count(*), sum(whole) FROM weights')" = "2|1" ]
    [ "$(weights_of 1)" != "$(weights_of 2)" ]
    [ "$(weights_of 2)" = "$(weights_of 3)" ]
    run -0 "$BATCHD" status 1
    [[ "$output" == *"weights     $(weights_of 1 | head -c 16)"* ]]
    run -0 "$BATCHD" status 1 --json
    [[ "$output" == *"\"weights\":\"$(weights_of 1)\""* ]]
    run -0 "$BATCHD" sql "SELECT DISTINCT model || ' ' || weights FROM results WHERE job_id = 1"
    [ "$output" = "demo $(weights_of 1)" ]
    python3 - "$BATCHD_DB" "$DIR/model" <<'P'
import hashlib, json, sqlite3, sys
files = json.loads(sqlite3.connect(sys.argv[1]).execute("SELECT files FROM weights WHERE whole").fetchone()[0])
assert {f["name"] for f in files} == {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
                                      "model.safetensors"}, files
for f in files:
    data = open(f"{sys.argv[2]}/{f['name']}", "rb").read()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (f["size"], f["sha256"]), f
P
}

@test "a registered model that has changed is refused before anything is stored, or when it is loaded" {
    run -0 "$BATCHD" models add "$DIR/model" --name demo
    touch "$DIR/model/model.safetensors"
    run -0 "$BATCHD" -q run "$DIR/in.csv" -m demo -o "$DIR/1.jsonl" --max-tokens 2
    [ "$(sqlite3 "$BATCHD_DB" "SELECT files LIKE '%' || $(stat -c %Y "$DIR/model/model.safetensors") || '%' FROM model")" -eq 1 ]

    printf 'x' | dd of="$DIR/model/model.safetensors" bs=1 seek=200000 conv=notrunc status=none
    run -78 "$BATCHD" -q run "$DIR/in.csv" -m demo -o "$DIR/2.jsonl" --max-tokens 3
    [[ "$output" == *"model demo: model.safetensors has changed"*"models check demo"*"models add $DIR/model --name demo"* ]]
    echo ' ' >>"$DIR/model/config.json"
    run -0 "$BATCHD" doctor
    [[ "$output" == *"WARN  models     model demo: config.json has changed"* ]]
    run -78 "$BATCHD" -q submit "$DIR/in.csv" -m demo
    [[ "$output" == *"config.json has changed"* ]]
    [ "$(sqlite3 "$BATCHD_DB" 'SELECT count(*) FROM job')" -eq 2 ]

    run -0 "$BATCHD" models add "$DIR/model" --name demo
    run -0 "$BATCHD" -q run "$DIR/in.csv" -m demo -o "$DIR/2.jsonl" --max-tokens 3
    [ "$(weights_of 1)" != "$(weights_of 2)" ]
}

@test "a job that was begun keeps to its weights; a daemon goes on to the next job" {
    run -0 "$BATCHD" -q submit "$DIR/in.csv" -m "$DIR/model" --max-tokens 2
    run -0 "$BATCHD" -q submit "$DIR/in.csv" -m "$DIR/model" --max-tokens 3
    sqlite3 "$BATCHD_DB" "INSERT INTO weights VALUES (9, 'ab', 0, '/m', '[]', 1); UPDATE job SET weights_id = 9 WHERE job_id = 1"
    run -0 "$BATCHD" -q serve --once
    [ "$(sqlite3 "$BATCHD_DB" 'SELECT group_concat(state) FROM jobs')" = "failed,done" ]
    run -0 "$BATCHD" status 1
    [[ "$output" == *"began with other weights than $DIR/model holds now"* ]]
}

@test "a name that a waiting job needs is not removed" {
    run -0 "$BATCHD" models add "$DIR/model" --name demo
    run -0 "$BATCHD" -q submit "$DIR/in.csv" -m demo
    run -1 "$BATCHD" models remove demo
    [[ "$output" == *"job 1 is not finished"* ]]
    run -0 "$BATCHD" cancel 1
    run -0 "$BATCHD" models remove demo
}
