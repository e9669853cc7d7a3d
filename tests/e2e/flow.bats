#!/usr/bin/env bats
# The ways of a file through the program, with the demo model.

load aid

setup() {
    aid_setup
    printf 'id,prompt\na,"Which number is the largest? 492, 747, 505"\nb,"What is the sum of:\n- 15\n- 32\n- 53\n- 10"\n' >"$DIR/in.csv"
}

json_of() { python3 -c 'import json,sys; print(eval(sys.argv[2], {"d": json.loads(open(sys.argv[1]).read().splitlines()[int(sys.argv[3])])}))' "$@"; }

@test "run: CSV in, JSONL out" {
    run -0 "$BATCHD" run "$DIR/in.csv" -o "$DIR/out.jsonl"
    [ "$(json_of "$DIR/out.jsonl" 'd["id"], d["row"], d["status"], d["completion"], d["error"]' 0)" = "('a', 0, 'ok', '747', None)" ]
    [ "$(json_of "$DIR/out.jsonl" 'd["completion"]' 1)" = "110" ]
    [ "$(json_of "$DIR/out.jsonl" 'd["input"]["prompt"]' 1)" = $'What is the sum of:\n- 15\n- 32\n- 53\n- 10' ]
    [ "$(json_of "$DIR/out.jsonl" 'sorted(d)' 0)" = "['completion', 'error', 'finish_reason', 'id', 'input', 'metrics', 'row', 'status', 'usage']" ]
    [ "$(wc -l <"$DIR/out.jsonl")" -eq 2 ]
}

@test "run: CSV out as Python's csv reads it" {
    run -0 "$BATCHD" run "$DIR/in.csv" -o "$DIR/out.csv"
    run -0 python3 -c 'import csv,sys
rows = list(csv.DictReader(open(sys.argv[1], newline="")))
print([(r["id"], r["completion"], r["finish_reason"]) for r in rows])
print(rows[1]["prompt"] == "What is the sum of:\n- 15\n- 32\n- 53\n- 10")' "$DIR/out.csv"
    [ "${lines[0]}" = "[('a', '747', 'stop'), ('b', '110', 'stop')]" ]
    [ "${lines[1]}" = True ]
}

@test "run: JSONL with messages, raw prompts, sampling keys and ids" {
    cat >"$DIR/in.jsonl" <<'X'
{"id": "m", "messages": [{"role": "user", "content": "Count these words: bottle, harbor, acorn"}]}
{"id": 7, "prompt": "<|user|>\nAdd", "max_tokens": 2, "ignore_eos": true}
{"prompt": "Sort", "temperature": 1.5, "seed": 3, "stop": ["e"]}
X
    run -0 "$BATCHD" run "$DIR/in.jsonl" -o "$DIR/out.jsonl" --max-tokens 20
    [ "$(json_of "$DIR/out.jsonl" 'd["id"], d["completion"]' 0)" = "('m', '3')" ]
    [ "$(json_of "$DIR/out.jsonl" 'd["id"], d["usage"]["completion_tokens"], d["finish_reason"]' 1)" = "('7', 2, 'length')" ]
    [ "$(json_of "$DIR/out.jsonl" 'd["id"], "e" in d["completion"]' 2)" = "('2', False)" ]
}

@test "run: a batch file made for OpenAI, as it is, and plain lines in it" {
    cat >"$DIR/in.jsonl" <<'X'
{"custom_id": "m", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "cloud-4", "messages": [{"role": "user", "content": "Count these words: bottle, harbor, acorn"}], "max_completion_tokens": 20, "temperature": 0}}
{"custom_id": "p", "method": "POST", "url": "/v1/completions", "body": {"model": "cloud-4", "prompt": "Say <this>", "max_tokens": 2, "ignore_eos": true}}
{"id": "q", "messages": [{"role": "user", "content": "Count these words: bottle, harbor, acorn"}]}
X
    run -0 "$BATCHD" run "$DIR/in.jsonl" -o "$DIR/out.jsonl"
    [ "$(grep -c 'the lines ask for the model "cloud-4", which is not looked at' <<<"$output")" -eq 1 ]
    [ "$(json_of "$DIR/out.jsonl" 'd["id"], d["completion"], d["input"]["temperature"]' 0)" = "('m', '3', 0)" ]
    [ "$(json_of "$DIR/out.jsonl" 'd["id"], d["usage"]["completion_tokens"], d["finish_reason"]' 1)" = "('p', 2, 'length')" ]
    [ "$(json_of "$DIR/out.jsonl" 'd["id"], d["completion"]' 2)" = "('q', '3')" ]
    run -0 "$BATCHD" sql "SELECT prompt FROM results WHERE custom_id = 'p'"
    [ "$output" = "Say <this>" ]
}

@test "run, export: the output file of OpenAI's batch interface, joined to the input by custom_id" {
    cat >"$DIR/in.jsonl" <<'X'
{"custom_id": "m", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "cloud-4", "messages": [{"role": "user", "content": "Count these words: bottle, harbor, acorn"}], "logprobs": true, "top_logprobs": 2}}
{"custom_id": "p", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Say <this>", "max_tokens": 2, "ignore_eos": true}}
{"custom_id": "b", "method": "POST", "url": "/v1/completions", "body": {"prompt": "x", "logit_bias": {"999999": 1}}}
X
    run -3 "$BATCHD" -q run "$DIR/in.jsonl" -o "$DIR/out.jsonl" --output-format openai
    python3 - "$DIR" <<'X'
import json, sys
asked, got = ([json.loads(line) for line in open(f"{sys.argv[1]}/{name}.jsonl")] for name in ("in", "out"))
assert [g["custom_id"] for g in got] == [a["custom_id"] for a in asked]
assert all(set(g) == {"id", "custom_id", "response", "error"} for g in got)
chat, text, bad = got
choice = chat["response"]["body"]["choices"][0]
assert (choice["message"]["content"], choice["finish_reason"], chat["error"]) == ("3", "stop", None), chat
assert "".join(t["token"] for t in choice["logprobs"]["content"]) == "3" and choice["logprobs"]["content"][0]["bytes"] == [51], choice
assert (chat["response"]["status_code"], chat["response"]["body"]["model"]) == (200, "demo"), chat
body = text["response"]["body"]
assert (body["object"], body["usage"]["completion_tokens"], body["choices"][0]["finish_reason"]) == ("text_completion", 2, "length"), text
assert bad["response"] is None and bad["error"]["code"] == "bad_token", bad
X
    run -0 "$BATCHD" export 1 --format openai
    [ "$output" = "$(cat "$DIR/out.jsonl")" ]
    run -2 "$BATCHD" export 1 --format open
    [[ "$output" == *"--format is one of jsonl|csv|openai"* ]]
}

prompt_tokens() { # of each row of $DIR/out.jsonl
    python3 -c 'import json, sys; print([json.loads(line)["usage"]["prompt_tokens"] for line in open(sys.argv[1])])' "$DIR/out.jsonl"
}

@test "run: a chat template of the job's own, its variables, and a row's" {
    printf '%s' "{% for m in messages %}{{ m.content }}{{ extra | default('') }}{% for t in tools or [] %}{{ t.n }}{% endfor %}{% endfor %}" >"$DIR/t.jinja"
    cat >"$DIR/in.jsonl" <<'X'
{"messages": [{"role": "user", "content": "abc"}]}
{"messages": [{"role": "user", "content": [{"type": "text", "text": "abc"}]}], "chat_template_kwargs": {"extra": "defghi"}}
{"messages": [{"role": "user", "content": "abc"}], "tools": [{"n": "one"}, {"n": "two"}]}
X
    run -0 "$BATCHD" -q run "$DIR/in.jsonl" -o "$DIR/out.jsonl" --max-tokens 2 --chat-template "$DIR/t.jinja"
    without=$(prompt_tokens)
    ids=$(printf 'abc\nabcdefghi\nabconetwo\n' | "$BATCHD" tokenize -m tests/models/demo)
    [ "$without" = "$(python3 -c 'import json, sys; print([len(json.loads(line)) for line in sys.argv[1].splitlines()])' "$ids")" ]
    run -0 "$BATCHD" -q run "$DIR/in.jsonl" -o "$DIR/out.jsonl" --max-tokens 2 --chat-template "$DIR/t.jinja" --force \
        --chat-template-kwargs '{"extra": " and some more words"}'
    with=$(prompt_tokens)
    [ "$(python3 -c "a = $without; b = $with; print(a[0] < b[0], a[1] == b[1], a[2] < b[2])")" = "True True True" ]
    printf '{%% if x %%}\n{%% import "os" %%}' >"$DIR/bad.jinja"
    run -65 "$BATCHD" run "$DIR/in.jsonl" --chat-template "$DIR/bad.jinja"
    [[ "$output" == *"bad.jinja: line 2: unsupported tag \"import\""* ]]
    run -2 "$BATCHD" run "$DIR/in.jsonl" --chat-template-kwargs '[1]'
    [[ "$output" == *"no JSON object"* ]]
    run -2 "$BATCHD" run "$DIR/in.jsonl" --chat never --chat-template "$DIR/t.jinja"
    run -66 "$BATCHD" run "$DIR/in.jsonl" --chat-template "$DIR/none.jinja"
}

@test "run: a row that its chat template refuses fails alone, with the template's words" {
    printf '%s' "{% if messages | length > 1 %}{{ raise_exception('One message, please') }}{% endif %}{{ messages[0].content }}" >"$DIR/t.jinja"
    cat >"$DIR/in.jsonl" <<'X'
{"id": "good", "messages": [{"role": "user", "content": "abc"}]}
{"id": "bad", "messages": [{"role": "user", "content": "abc"}, {"role": "user", "content": "def"}]}
X
    run -3 "$BATCHD" -q run "$DIR/in.jsonl" -o "$DIR/out.jsonl" --max-tokens 2 --chat-template "$DIR/t.jinja"
    [ "$(json_of "$DIR/out.jsonl" 'd["id"], d["status"]' 0)" = "('good', 'ok')" ]
    [ "$(json_of "$DIR/out.jsonl" 'd["status"], d["error"]["message"]' 1)" = "('failed', 'chat template: One message, please')" ]
}

@test "serve: a job with a chat template that this version cannot read fails, and others go on" {
    echo '{"messages": [{"role": "user", "content": "abc"}]}' >"$DIR/in.jsonl"
    printf '{{ messages[0].content }}' >"$DIR/t.jinja"
    run -0 "$BATCHD" -q submit "$DIR/in.jsonl" -m tests/models/demo --max-tokens 2 --chat-template "$DIR/t.jinja"
    run -0 "$BATCHD" -q submit "$DIR/in.jsonl" -m tests/models/demo --max-tokens 2
    sqlite3 "$BATCHD_DB" "UPDATE job SET chat_settings = json_set(chat_settings, '\$.template', '{% nonsense %}') WHERE job_id = 1"
    run "$BATCHD" -q serve --once
    [ "$(sqlite3 "$BATCHD_DB" 'SELECT group_concat(state) FROM job')" = "failed,done" ]
    [[ "$(sqlite3 "$BATCHD_DB" 'SELECT error FROM job WHERE job_id = 1')" == *'chat template: line 1: unsupported tag "nonsense"'* ]]
}

@test "run: a long error is cut at a character; exports and the database stay valid" {
    echo '{"messages": [{"role": "user", "content": "hi"}]}' >"$DIR/one.jsonl"
    for head in x xx xxx; do
        echo "{{ raise_exception('$head' ~ 'é€' * 500) }}" >"$DIR/long.jinja"
        run -3 "$BATCHD" -q run "$DIR/one.jsonl" --chat-template "$DIR/long.jinja" -o "$DIR/$head.jsonl"
        [[ "$(json_of "$DIR/$head.jsonl" 'd["error"]["message"]' 0)" == *"$head"é€*€* ]]
    done
    run -0 python3 -c 'import sqlite3,sys; print(len(sqlite3.connect(sys.argv[1]).execute("SELECT error FROM result").fetchall()))' "$BATCHD_DB"
    [ "$output" = 3 ]
}

@test "run: control tokens in a row's text are text, unless they are allowed" {
    cat >"$DIR/in.jsonl" <<'X'
{"prompt": "<|user|>\nAdd<|end|>"}
{"messages": [{"role": "user", "content": "Add<|end|><|user|>"}]}
X
    run -0 "$BATCHD" -q run "$DIR/in.jsonl" -o "$DIR/out.jsonl" --max-tokens 2
    plain=$(prompt_tokens)
    run -0 "$BATCHD" -q run "$DIR/in.jsonl" -o "$DIR/out.jsonl" --max-tokens 2 --force --allow-special-tokens
    special=$(prompt_tokens)
    [ "$(python3 -c "a = $plain; b = $special; print(a[0] >= b[0] + 8, a[1] >= b[1] + 8)")" = "True True" ]
}

@test "run: a template and a system text" {
    printf 'city,item\nLima,lamps\n' >"$DIR/t.csv"
    run -0 "$BATCHD" run "$DIR/t.csv" --template 'Which city? Omar from {city} ordered 3 {item}.' -o "$DIR/out.jsonl"
    [ "$(json_of "$DIR/out.jsonl" 'd["completion"]' 0)" = Lima ]
    run -0 "$FAKE" submit "$DIR/t.csv" --template 'Which {{city}}?'
    [[ "$output" == *"warning: the template has no {column} in it"* ]]
    run -0 "$FAKE" submit "$DIR/t.csv" --template '{city}'
    [[ "$output" != *warning* ]]
}

@test "run: once more is free, and replaces its own file only" {
    run -0 "$BATCHD" run "$DIR/in.csv" -o "$DIR/out.jsonl"
    run -0 "$BATCHD" run "$DIR/in.csv" -o "$DIR/out.jsonl"
    [[ "$output" == *"nothing was loaded"* ]]
    [ "$(sqlite3 "$BATCHD_DB" 'SELECT count(*) FROM job')" -eq 1 ]
    echo mine >"$DIR/out.jsonl"
    run -73 "$BATCHD" run "$DIR/in.csv" -o "$DIR/out.jsonl"
    [ "$(cat "$DIR/out.jsonl")" = mine ]
    run -0 "$BATCHD" run "$DIR/in.csv" -o "$DIR/out.jsonl" --force
    run -0 "$BATCHD" run "$DIR/in.csv" --fresh
    [ "$(sqlite3 "$BATCHD_DB" 'SELECT count(*) FROM job')" -eq 2 ]
}

@test "neither the input nor the database is replaced by results, --force or not" {
    before=$(cat "$DIR/in.csv")
    run -2 "$FAKE" run "$DIR/in.csv" -o "$DIR/./in.csv" --force
    [[ "$output" == *"-o names the input"* ]]
    [ "$(cat "$DIR/in.csv")" = "$before" ]
    "$FAKE" -q run "$DIR/in.csv"
    for file in "$BATCHD_DB" "$BATCHD_DB.lock"; do
        run -73 "$FAKE" export 1 -o "$file" --force
        [[ "$output" == *"the database itself"* ]]
    done
    run -0 "$FAKE" export 1
}

@test "run: interrupted, it goes on where it was" {
    python3 -c 'print("prompt"); [print("row", i) for i in range(2000)]' >"$DIR/big.csv"
    FAKE_TOKENS_PER_S=40000 "$FAKE" run "$DIR/big.csv" -o "$DIR/out.jsonl" 2>"$DIR/log" &
    pid=$!
    for _ in $(seq 100); do
        [ "$(sqlite3 "$BATCHD_DB" 'SELECT count(*) FROM result' 2>/dev/null || echo 0)" -gt 0 ] && break
        sleep 0.05
    done
    kill -INT $pid
    status=0; wait $pid || status=$?
    [ "$status" -eq 130 ]
    [ ! -e "$DIR/out.jsonl" ]
    n=$(sqlite3 "$BATCHD_DB" 'SELECT count(*) FROM result')
    [ "$n" -gt 0 ]
    [ "$n" -lt 2000 ]
    run -0 "$FAKE" run "$DIR/big.csv" -o "$DIR/out.jsonl"
    [[ "$output" == *"going on with job 1: $n of 2000"* ]]
    [ "$(wc -l <"$DIR/out.jsonl")" -eq 2000 ]
}

@test "run: flags that the engine refuses leave the job to a better try" {
    run -69 "$BATCHD" run "$DIR/in.csv" -o "$DIR/out.jsonl" --kv-cache-memory-bytes 1K
    [[ "$output" == *"--kv-cache-memory-bytes"* ]]
    run -0 "$BATCHD" run "$DIR/in.csv" -o "$DIR/out.jsonl"
}

@test "run: standard input" {
    run -0 bash -c "printf 'prompt\n\"Add these numbers: 12, 7\"\n' | '$BATCHD' -q run - --format csv -o -"
    [[ "$output" == *'"completion":"19"'* ]]
}

@test "run: a pipe is read once; its job is found again by its key" {
    rows() { printf 'prompt\none\ntwo\n'; }
    run -0 "$FAKE" run <(rows) -o "$DIR/out.jsonl"
    [ "$(wc -l <"$DIR/out.jsonl")" -eq 2 ]
    run -0 bash -c "printf 'prompt\none\n' | timeout 20 '$FAKE' run /dev/stdin"
    mkfifo "$DIR/pipe"
    rows >"$DIR/pipe" &
    run -0 timeout 20 "$FAKE" run "$DIR/pipe" --key k
    rows >"$DIR/pipe" &
    run -0 timeout 20 "$FAKE" run "$DIR/pipe" --key k
    [[ "$output" == *"nothing was loaded"* ]]
}

@test "submit: Ctrl-C or SIGTERM while it waits for a pipe" {
    mkfifo "$DIR/pipe" "$DIR/other"
    for how in "INT - 130" "TERM - 143" "INT $DIR/pipe 130"; do
        read -r signal input code <<<"$how"
        status=0 # opened for both, a pipe never ends
        timeout --preserve-status --signal="$signal" 0.5 "$FAKE" submit "$input" 2>"$DIR/log" <>"$DIR/other" || status=$?
        [ "$status" -eq "$code" ]
        grep "stopped; nothing was stored" "$DIR/log"
    done
}

@test "run: goes through a daemon that serves the database" {
    "$FAKE" -q serve 3>&- &
    pid=$!
    wait_for_daemon
    run -0 "$FAKE" run "$DIR/in.csv" -o "$DIR/out.jsonl"
    kill -TERM $pid
    wait $pid
    [[ "$output" == *"a daemon serves this database"* ]]
    [ "$(wc -l <"$DIR/out.jsonl")" -eq 2 ]
}

@test "run beside another run, or a daemon that dies: it waits, then goes on itself" {
    python3 -c 'print("prompt"); [print("row", i) for i in range(300)]' >"$DIR/other.csv"
    FAKE_TOKENS_PER_S=20000 "$FAKE" -q run "$DIR/other.csv" 3>&- &
    pid=$!
    wait_for_daemon
    run -0 timeout 30 "$FAKE" run "$DIR/in.csv" -o "$DIR/out.jsonl"
    [[ "$output" == *"a daemon serves this database"*"nobody serves this database any more: going on"* ]]
    [ "$(wc -l <"$DIR/out.jsonl")" -eq 2 ]
    wait $pid
    FAKE_TOKENS_PER_S=200 "$FAKE" -q serve 3>&- &
    pid=$!
    wait_for_daemon
    timeout 30 "$FAKE" run --fresh "$DIR/other.csv" -o "$DIR/other.jsonl" 3>&- 2>"$DIR/log" &
    runs=$!
    for _ in $(seq 100); do grep -q "serves this database" "$DIR/log" && break; sleep 0.05; done
    kill -KILL $pid
    wait $runs
    [ "$(wc -l <"$DIR/other.jsonl")" -eq 300 ]
}

@test "run: a job that was cancelled stays so, and it says how to start over" {
    "$FAKE" -q submit --key k "$DIR/in.csv" -m tests/models/demo
    "$FAKE" -q cancel 1
    run -5 "$FAKE" run --key k "$DIR/in.csv" -m tests/models/demo
    [[ "$output" == *"job 1 was cancelled before; another --key starts over"* ]]
    run -0 "$FAKE" submit --key k "$DIR/in.csv" -m tests/models/demo
    [[ "$output" == *"job 1 is cancelled: cancelled by batchd cancel; another --key submits it anew"* ]]
}

@test "results shows what stands behind a NUL byte, too" {
    run -0 "$BATCHD" -q run "$DIR/in.csv" --max-tokens 2
    sqlite3 "$BATCHD_DB" "UPDATE result SET codec = 0, completion = 'a' || char(0) || 'b' WHERE id & 1 = 0"
    [ "$("$BATCHD" results 1 | tr '\000' '#' | sed -n 3p)" = "a#b" ]
}

@test "submit, serve --once, wait, results, export" {
    run -0 "$BATCHD" submit --parsable -q "$DIR/in.csv"
    [ "$output" = 1 ]
    run -0 "$BATCHD" -q serve --once
    [ -z "$output" ]
    run -0 "$BATCHD" wait 1
    run -0 "$BATCHD" results 1
    [[ "$output" == *"-- a"*"747"*"-- b"*"110"* ]]
    run -0 "$BATCHD" results 1 --row 1 --json
    [ "${#lines[@]}" -eq 1 ]
    [[ "$output" == *'"row":1'* ]]
    run -0 "$BATCHD" results 1 -n 1
    [[ "$output" != *"110"* ]]
    run -0 "$BATCHD" export 1
    [ "${#lines[@]}" -eq 2 ]
    run -0 "$BATCHD" export 1 --format csv
    [[ "${lines[0]}" == id,prompt,completion* ]]
}

@test "submit --key: the same job, however often" {
    run -0 "$BATCHD" submit -q --parsable --key night "$DIR/in.csv"
    run -0 "$BATCHD" submit -q --parsable --key night "$DIR/in.csv"
    [ "$output" = 1 ]
    run -0 "$BATCHD" -q serve --once
    run -0 "$BATCHD" wait --key night
    run -0 "$BATCHD" status --key night --json
    [[ "$output" == *'"state":"done"'* ]]
}

@test "submit --wait with no daemon says what to do" {
    run -69 "$BATCHD" submit --wait "$DIR/in.csv"
    [[ "$output" == *"serve --once"* ]]
    run -124 "$BATCHD" wait 1 --timeout 1
    [[ "$output" == *"job 1 is queued, 0 of 2 rows are there; the --timeout is over"* ]]
}

@test "cancel: finished rows stay, wait ends with 5" {
    python3 -c 'print("prompt"); [print("row", i) for i in range(5000)]' >"$DIR/big.csv"
    "$FAKE" -q submit "$DIR/big.csv"
    FAKE_TOKENS_PER_S=30000 "$FAKE" -q serve 3>&- &
    pid=$!
    for _ in $(seq 100); do
        [ "$(sqlite3 "$BATCHD_DB" 'SELECT count(*) FROM result')" -gt 0 ] && break
        sleep 0.05
    done
    run -0 "$FAKE" cancel 1
    n=$(sqlite3 "$BATCHD_DB" 'SELECT count(*) FROM result')
    run -5 "$FAKE" wait 1
    run -0 "$FAKE" cancel 1
    sleep 1.2
    [ "$(sqlite3 "$BATCHD_DB" 'SELECT count(*) FROM result')" -eq "$n" ]
    run -0 "$FAKE" -q submit "$DIR/in.csv"
    run -0 "$FAKE" wait 2
    run -1 "$FAKE" cancel 2
    kill -TERM $pid
    wait $pid
}

@test "rows that fail: partial, exit 3, the others are whole" {
    python3 -c 'print("prompt"); [print("row", i) for i in range(30)]' >"$DIR/rows.csv"
    export FAKE_ROW_ERROR=10
    run -3 "$FAKE" run "$DIR/rows.csv" -o "$DIR/out.jsonl"
    [ "$(grep -c '"status":"failed"' "$DIR/out.jsonl")" -ge 2 ]
    [ "$(wc -l <"$DIR/out.jsonl")" -eq 30 ]
    run -0 "$FAKE" results 1 --failed
    [[ "$output" == *"error: logits are not finite"* ]]
    run -0 "$FAKE" results 1 --failed --row 1
    [ -z "$output" ]
    run -0 "$FAKE" export 1 --only-ok
    [[ "$output" != *'"failed"'* ]]
}

@test "views in the stock shell, text through the extension and batchd sql" {
    "$BATCHD" -q run "$DIR/in.csv"
    run -0 sqlite3 "$BATCHD_DB" "SELECT custom_id, status, finish_reason, completion_tokens > 0, ttft_ms > 0 FROM metrics"
    [ "${lines[0]}" = "a|ok|stop|1|1" ]
    run -0 sqlite3 -cmd ".load $BUILD/batchd_sqlite" "$BATCHD_DB" "SELECT completion FROM results WHERE custom_id = 'a'"
    [ "$output" = 747 ]
    run -0 "$BATCHD" sql "SELECT completion FROM results WHERE row = 1"
    [ "$output" = "110" ]
    run "$BATCHD" sql "DELETE FROM result"
    [ "$status" -ne 0 ]
    run -0 "$BATCHD" sql --write "UPDATE job SET name = 'x'"
}

@test "tokenize: there and back" {
    run -0 bash -c "printf 'Sort these words\nnaïve\n' | '$BATCHD' -q tokenize"
    ids="$output"
    run -0 bash -c "echo '$ids' | '$BATCHD' -q tokenize --decode"
    [ "$output" = $'Sort these words\nnaïve' ]
    run -0 bash -c "echo '{\"text\": \"a\\nb\", \"add_special\": true}' | '$BATCHD' -q tokenize --jsonl"
    [[ "$output" == "[0, "* ]]
    run -65 bash -c "echo '[999999]' | '$BATCHD' -q tokenize --decode"
    [[ "$output" == *"line 1"* ]]
}

@test "bench throughput prints its figures" {
    run -0 "$BATCHD" -q bench throughput -m tests/models/tiny-llama3 --load-format dummy --input-len 8 --output-len 96 \
        --num-prompts 16 --max-num-seqs 4 --json
    run -0 python3 -c 'import json,sys; d = json.loads(sys.argv[1])
assert d["cached_tokens"] == 0 and d["num_prompts"] == 16 and d["steps"] > 0, d
assert abs(d["output_tokens_per_s"] * d["seconds"] - 16 * 96) < 1e-6, d
assert 0 < d["fraction_of_matmul"] < 1.5, d
assert d["copy_bytes_per_s"] > 1e8 and d["matrix_flop_per_s"] > 1e8 and d["void"] is None, d
assert abs(d["output_tokens_per_s"] / d["roof_tokens_per_s"] / d["fraction_of_roof"] - 1) < 1e-6, d
assert d["finite_logits"] and d["device_busy_s"] > 0 and 0 <= d["idle_share"] < 1 and d["large_steps"] == 0, d
assert d["device_busy_s"] + d["device_idle_s"] < d["seconds"], d
assert abs(sum(d["roof_share"].values()) - 1) < 1e-9 and min(d["roof_share"].values()) > 0, d
share = d["profile"]["share"]
assert d["profile"]["steps"] > 0 and 0.5 < sum(share.values()) <= 1, d
assert all(share[c] > 0 for c in "linear attention norm rope_kv activation embed_gather sample".split()), d' "$output"
}

@test "bench throughput beside its roof, in words" {
    run -0 "$BATCHD" -q bench throughput -m tests/models/tiny-llama3 --load-format dummy --input-len 1000 --output-len 2 \
        --num-prompts 24 --max-num-seqs 6 --max-num-batched-tokens 2048
    for name in "copy  " "matrix rate" "roof  " "fraction of roof" "output tokens/s" "cached tokens       0" "time on the device  "; do
        [[ "$output" == *"$name"* ]]
    done
    [[ "$output" =~ "idle between steps  "[0-9.]+" % of the device's time; "[0-9.]+" % at the "[1-9][0-9]?" steps of 2048 rows" ]]
}

@test "bench kernels times every operation and knows what it moves and computes" {
    run -0 --separate-stderr "$BATCHD" -q bench kernels --device cpu --json
    run -0 python3 -c 'import json,sys
lines = [json.loads(l) for l in sys.argv[1].splitlines()]
hidden, heads, kv, size, ffn, vocab = 256, 4, 2, 64, 768, 4096  # the shape "small"
products = {"qkv": ((heads + 2 * kv) * size, hidden), "o": (hidden, heads * size), "gate_up": (2 * ffn, hidden),
            "down": (hidden, ffn), "lm_head": (vocab, hidden)}
want = {}
for name, (n, k) in products.items():
    for m in (1, 8, 64): want["linear " + name, f"M {m}, N {n}, K {k}"] = 2 * n * k, 2 * m * n * k
experts, top = 4, 2
for m in (1, 8, 64):
    chosen = experts * (1 - (1 - top / experts) ** m)
    want["experts", f"M {m}, {top} of {experts} experts"] = chosen * 3 * ffn * hidden * 2, 2 * m * top * 3 * ffn * hidden
key = {"": 2 * size, " fp8": size + 4}  # bytes: codes with a scale
for name, n, context in (("", 16, 128), ("", 15, 512), ("", 1, 2048), (" fp8", 16, 128), (" fp8", 16, 512), (" fp8", 1, 2048)):
    sequences = f"{n} sequence" + "s" * (n > 1)
    want["attention decode" + name, f"context {context}, {sequences}"] = n * context * 2 * kv * key[name], 0
for name in key:
    want["attention prefill" + name, "2 prompts of 128"] = 0, 2 * 4 * heads * size * sum(range(1, 129))
    want["qkv_finish" + name, "64 rows of 512"] = 64 * ((2 * heads + 2 * kv) * size * 2 + 2 * kv * key[name]), 0
want["residual_norm", "64 rows of 256"] = 4 * 64 * hidden * 2, 0
want["glu", "64 rows of 2 x 768"] = 3 * 64 * ffn * 2, 0
want["embed", "64 rows of 256"] = 2 * 64 * hidden * 2, 0
want["gather", "32 of 64 rows of 256"] = 2 * 32 * hidden * 2, 0
for how in ("greedy", "temperature", "top-p"): want["sample " + how, "32 rows of 4096"] = 32 * vocab * 4, 0
got = {(l["kernel"], l["case"]): (l["bytes"], l["flop"]) for l in lines}
assert got == want, (set(got.items()) ^ set(want.items()))
for l in lines:
    roof = max(l["bytes"] / l["copy_bytes_per_s"], l["flop"] / l["matrix_flop_per_s"]) * 1e6
    assert l["us"] > 0 and abs(l["roof_us"] / roof - 1) < 1e-6 and abs(l["fraction_of_roof"] * l["us"] / roof - 1) < 1e-6, l
' "$output"
}

@test "bench kernels in words, by part; what it does not take" {
    run -0 "$BATCHD" -q bench kernels rows --device cpu --dtype float32
    [[ "$output" == "device "*"matrix rate"*"float32"*"residual_norm"*"gather"* && "$output" != *linear* ]]
    run -2 "$BATCHD" bench kernels cooking --device cpu
    [[ "$output" == *"no part \"cooking\""* ]]
    run -2 "$BATCHD" bench kernels --device cpu --input-len 4
    [[ "$output" == *"takes no --input-len"* ]]
    run -2 "$BATCHD" bench kernels --shape huge
    run -2 "$BATCHD" bench throughput rows
    run -2 "$BATCHD" bench throughput --shape small
    run -2 "$BATCHD" bench everything
    [[ "$output" == *"throughput, kernels and tune"* ]]
}

@test "bench tune has nothing to do on the CPU, and says so" {
    run -0 "$BATCHD" -q bench tune -m tests/models/tiny-llama3 --load-format dummy --device cpu
    [[ "$output" == "device "*"cpu"*"nothing to tune"* ]]
    run -0 --separate-stderr "$BATCHD" bench tune -m tests/models/tiny-llama3 --load-format dummy --device cpu --json
    [[ "$output" == "" && "$stderr" == *"nothing to tune"* ]]
    run -2 "$BATCHD" bench tune rows -m tests/models/tiny-llama3
    [[ "$output" == *"bench tune: what is \"rows\""* ]]
    run -2 "$BATCHD" bench tune --shape small
    run -2 "$BATCHD" bench tune -m tests/models/tiny-llama3 --input-len 5
    [[ "$output" == *"bench tune takes no --input-len"* ]]
    run -69 "$BATCHD" bench tune -m ./no-such-folder --device cpu
}

@test "doctor is content here" {
    run -0 "$BATCHD" doctor
    [[ "$output" == *"OK"*"database"* ]]
    run -0 "$BATCHD" doctor --json
    python3 -c 'import json,sys; assert all(c["verdict"] in ("OK", "WARN") for c in json.loads(sys.argv[1]))' "$output"
}

@test "the build tree may be moved" {
    mkdir -p "$DIR/tree/build" "$DIR/tree/tests/models"
    cp "$BUILD/batchd" "$BUILD/batchd_sqlite.so" "$DIR/tree/build/"
    cp -r tests/models/demo "$DIR/tree/tests/models/"
    cd /
    run -0 "$DIR/tree/build/batchd" run "$DIR/in.csv" -o "$DIR/out.jsonl"
    [[ "$output" == *"$DIR/tree/tests/models/demo"* ]]
    run -0 "$DIR/tree/build/batchd" sql "SELECT completion FROM results WHERE row = 0"
    [ "$output" = 747 ]
}

@test "a terminal gets a progress bar, a pipe does not" {
    script -qec true /dev/null >/dev/null 2>&1 || skip "no pseudo-terminal here"
    python3 -c 'print("prompt"); [print("row", i) for i in range(600)]' >"$DIR/big.csv"
    FAKE_TOKENS_PER_S=30000 TERM=xterm run -0 script -qefc "$FAKE run $DIR/big.csv" /dev/null
    [[ "$output" == *"/600 rows"*"tok/s"* ]]
    FAKE_TOKENS_PER_S=30000 run -0 "$FAKE" run "$DIR/big.csv" --fresh
    [[ "$output" != *"/600 rows"* ]]
}

@test "status: names and keys stay on their line and steer no terminal" {
    "$FAKE" -q submit "$DIR/in.csv" --name $'red \e[31m\nnext' --key $'k\u202e'
    run -0 "$FAKE" status
    [ "${#lines[@]}" -eq 3 ]
    [[ "${lines[2]}" == *'red \x1b[31m\x0anext' ]]
    run -0 "$FAKE" status 1
    [[ "$output" == *'key         k\u202e'* ]]
    run -0 python3 -c 'import json,sys; print(json.loads(sys.argv[1])["name"] == "red \x1b[31m\nnext")' "$("$FAKE" status 1 --json)"
    [ "$output" = True ]
}

@test "what a command says to do next can be pasted: with the database that was named" {
    printf 'id,prompt\na,x\nb\n' >"$DIR/bad.csv"
    unset BATCHD_DB
    run -3 "$FAKE" run --db "$DIR/o.db" "$DIR/bad.csv" --reject skip
    [[ "$output" == *"rejected lines: batchd --db $DIR/o.db sql "*"next: batchd --db $DIR/o.db results 1, or batchd --db $DIR/o.db export 1"* ]]
    run -0 "$FAKE" submit --db "$DIR/an other.db" "$DIR/in.csv"
    [[ "$output" == *"next: batchd --db '$DIR/an other.db' serve --once" ]]
    run -69 "$FAKE" submit --wait --db "$DIR/o.db" "$DIR/in.csv"
    [[ "$output" == *"run \`batchd --db $DIR/o.db serve --once\`" ]]
}

@test "848 real prompts on a trained model: what fits is answered, the rest says why" {
    data=${BATCHD_TEST_DATA:-../shared/data}
    [ -d "$data/prompts" ] || skip "no test data"
    run -3 "$BATCHD" run "$data/prompts/awesome_chatgpt_prompts.csv" --model "$data/models/stories260K" \
        --prompt-col prompt --max-tokens 32 --temperature 0 -o "$DIR/out.jsonl"
    [ "$(wc -l <"$DIR/out.jsonl")" -eq 848 ]
    [ "$(sqlite3 "$BATCHD_DB" 'SELECT count(*) FROM metrics')" -eq 848 ]
    run -0 python3 - "$DIR/out.jsonl" <<'X'
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
failed = [r for r in rows if r["status"] == "failed"]
assert [r["row"] for r in rows] == list(range(848))
assert 0 < len(failed) < 848, len(failed)
for r in failed:
    assert r["error"]["code"] == "context_length" and r["completion"] is None, r
for r in rows:
    assert r["status"] == "failed" or r["usage"]["prompt_tokens"] < 512, r
X
}
