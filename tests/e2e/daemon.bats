#!/usr/bin/env bats
# The daemon among other processes, against the fake engine, whose speed and faults
# environment variables set (tests/fake/fake.h).

load aid

setup() {
    aid_setup
    python3 -c 'print("prompt"); [print("row", i) for i in range(400)]' >"$DIR/rows.csv"
}

teardown() {
    [ -z "${pid:-}" ] || kill -KILL "$pid" 2>/dev/null || true
}

n_results() { sqlite3 "$BATCHD_DB" 'SELECT count(*) FROM result'; }

wait_for_results() {
    for _ in $(seq 200); do
        [ "$(n_results 2>/dev/null || echo 0)" -gt "${1:-0}" ] && return
        sleep 0.05
    done
    return 1
}

@test "serve --once with nothing to do ends with 0" {
    run -0 "$FAKE" serve --once
    [ -e "$BATCHD_DB" ]
}

@test "four submits at a time, one daemon, a reader in a loop" {
    FAKE_TOKENS_PER_S=60000 "$FAKE" -q serve 3>&- &
    pid=$!
    wait_for_daemon
    python3 - "$BATCHD_DB" "$BUILD/batchd_sqlite" "$DIR/stop" 3>&- <<'X' &
import os, sqlite3, subprocess, sys, time
# A row is there whole or not at all: every result has text that decodes, and never changes.
db, extension, stop = sys.argv[1:]
broken = ["sqlite3", "-cmd", f".load {extension}", db, "SELECT count(*) FROM results WHERE completion IS NULL"]
seen = {}
while not os.path.exists(stop):
    c = sqlite3.connect(db, timeout=10)
    for i, text, tokens, e2e in c.execute("SELECT id, completion, completion_tokens, e2e_us FROM result"):
        assert text is not None and tokens > 0 and e2e > 0, (i, text, tokens, e2e)
        assert seen.setdefault(i, text) == text, i
    c.close()
    assert subprocess.run(broken, check=True, capture_output=True, text=True).stdout == "0\n"
    time.sleep(0.01)
print(len(seen), file=open(stop + ".seen", "w"))
X
    reader=$!
    submitters=
    for i in 1 2 3 4; do
        "$FAKE" -q submit --wait --name "job$i" "$DIR/rows.csv" 3>&- &
        submitters="$submitters $!"
    done
    for p in $submitters; do wait "$p"; done
    touch "$DIR/stop"
    wait $reader
    [ "$(sqlite3 "$BATCHD_DB" "SELECT count(*) FROM job WHERE state = 'done'")" -eq 4 ]
    [ "$(n_results)" -eq 1600 ]
    [ "$(cat "$DIR/stop.seen")" -gt 0 ]
    [ "$(sqlite3 "$BATCHD_DB" 'PRAGMA integrity_check')" = ok ]
    kill -TERM $pid
    wait $pid
}

@test "SIGTERM: rows at work finish, everything is committed, exit 0" {
    python3 -c 'print("prompt"); [print("row", i) for i in range(3000)]' >"$DIR/rows.csv"
    "$FAKE" -q submit "$DIR/rows.csv"
    FAKE_TOKENS_PER_S=30000 "$FAKE" serve 2>"$DIR/log" 3>&- &
    pid=$!
    wait_for_results
    kill -TERM $pid
    wait $pid
    n=$(n_results)
    [ "$n" -gt 0 ]
    [ "$n" -lt 3000 ]
    grep -q "$n rows saved" "$DIR/log"
    [ "$(sqlite3 "$BATCHD_DB" 'SELECT count(*) FROM lease WHERE state = 1')" -eq 0 ]
    run -0 "$FAKE" -q serve --once
    [ "$(n_results)" -eq 3000 ]
    [ "$(sqlite3 "$BATCHD_DB" 'SELECT state FROM job')" = "done" ]
}

@test "a second SIGTERM ends it at once" {
    "$FAKE" -q submit "$DIR/rows.csv"
    FAKE_TOKENS_PER_S=200 "$FAKE" -q serve 3>&- &
    pid=$!
    wait_for_daemon
    sleep 0.3
    kill -TERM $pid
    sleep 0.2
    kill -TERM $pid
    status=0; wait $pid || status=$?
    [ "$status" -eq 143 ]
}

@test "a daemon that was overtaken writes nothing more" {
    "$FAKE" -q submit "$DIR/rows.csv"
    FAKE_TOKENS_PER_S=2000 "$FAKE" serve 2>"$DIR/log" 3>&- &
    pid=$!
    wait_for_results
    kill -STOP $pid
    rm "$BATCHD_DB.lock" # what keeps a second daemon away is gone; the epoch is not
    run -0 "$FAKE" -q serve --once
    kill -CONT $pid
    status=0; wait $pid || status=$?
    [ "$status" -eq 75 ]
    grep -q "taken over" "$DIR/log"
    [ "$(n_results)" -eq 400 ]
}

@test "a daemon that was overtaken ends at once, however many rows it had taken" {
    python3 -c 'print("prompt"); [print("row", i) for i in range(3000)]' >"$DIR/rows.csv"
    "$FAKE" -q submit "$DIR/rows.csv"
    FAKE_TOKENS_PER_S=400 "$FAKE" -q serve 3>&- &
    pid=$!
    wait_for_results
    sqlite3 "$BATCHD_DB" 'UPDATE daemon SET epoch = epoch + 1'
    SECONDS=0
    status=0; wait $pid || status=$?
    [ "$status" -eq 75 ]
    [ "$SECONDS" -lt 10 ]
}

@test "a database that is deleted or replaced under a daemon: exit 74, and wait ends too" {
    "$FAKE" -q submit "$DIR/rows.csv"
    FAKE_TOKENS_PER_S=2000 "$FAKE" serve 2>"$DIR/log" 3>&- &
    pid=$!
    wait_for_results
    "$FAKE" wait 1 2>"$DIR/wait" 3>&- &
    waits=$!
    sleep 0.3
    rm "$BATCHD_DB" "$BATCHD_DB"-wal "$BATCHD_DB"-shm
    "$FAKE" -q submit "$DIR/rows.csv" || true # another file at its place
    status=0; wait $waits || status=$?
    [ "$status" -eq 74 ]
    status=0; wait $pid || status=$?
    [ "$status" -eq 74 ]
    grep "t.db was deleted or replaced" "$DIR/log"
    run -0 "$FAKE" -q serve --once
    [ "$(n_results)" -eq 400 ]
}

@test "a database by two names is one: links are followed, colons and dashes are letters" {
    mkdir "$DIR/real"
    ln -s real/t.db "$DIR/link.db"
    cd "$DIR"
    "$FAKE" -q --db real/t.db submit rows.csv
    "$FAKE" -q --db link.db serve 3>&- &
    pid=$!
    BATCHD_DB=$DIR/real/t.db wait_for_daemon
    run -75 "$FAKE" --db real/t.db serve --once
    [[ "$output" == *"pid $pid"* ]]
    run -0 "$FAKE" --db real/t.db status --json
    [[ "$output" == *'"pid":'$pid* ]]
    kill -TERM $pid
    wait $pid
    for name in :memory: 'file:x?mode=memory' -x.db "it's \"quoted\".db"; do
        run -0 "$FAKE" -q --db "$name" submit rows.csv
        [ -f "$DIR/$name" ]
        run -0 --separate-stderr "$FAKE" --db "$name" sql 'SELECT n_rows FROM jobs'
        [ "$output" = 400 ]
    done
}

@test "the device fails: exit 70, finished rows are saved, the next daemon goes on" {
    "$FAKE" -q submit "$DIR/rows.csv"
    FAKE_FAIL_AT=150 run -70 "$FAKE" serve --once
    [[ "$output" == *"the engine failed"* ]]
    n=$(n_results)
    [ "$n" -ge 150 ] # all that the engine had finished, whoever had it in hand
    [ "$n" -lt 400 ]
    run -0 "$FAKE" -q serve --once
    [ "$(n_results)" -eq 400 ]
}

@test "the device fails while the collector gives up a wait: what was finished is saved too" {
    "$FAKE" -q submit "$DIR/rows.csv"
    FAKE_FAIL_AT=150 FAKE_FAIL_LATE=1 run -70 "$FAKE" serve --once
    [[ "$output" == *"the engine failed"* ]]
    [ "$(n_results)" -ge 150 ]
    run -0 "$FAKE" -q serve --once
    [ "$(n_results)" -eq 400 ]
}

@test "a job whose model is gone fails with the reason; the others go on" {
    cp -r tests/models/demo "$DIR/model"
    head -3 "$DIR/rows.csv" >"$DIR/few.csv"
    "$BATCHD" -q submit --max-tokens 2 -m "$DIR/model" "$DIR/few.csv"
    "$BATCHD" -q submit --max-tokens 2 "$DIR/few.csv"
    rm "$DIR/model/config.json"
    run -0 "$BATCHD" serve --once
    [[ "$output" == *"job 1"*"config.json"* ]]
    run -1 "$BATCHD" wait 1
    run -0 "$BATCHD" wait 2
    run -0 "$BATCHD" status 1
    [[ "$output" == *failed*config.json* ]]
}

@test "requests that somebody deletes: the job ends with a word, others and other rows are done" {
    head -6 "$DIR/rows.csv" >"$DIR/few.csv"
    "$FAKE" -q submit "$DIR/few.csv"
    "$FAKE" -q submit "$DIR/few.csv"
    sqlite3 "$BATCHD_DB" 'DELETE FROM request WHERE id >> 32 = 1 AND id & 4294967295 IN (0, 3)'
    run -0 "$FAKE" serve --once
    [ "$(grep -c 'job 1: 2 of its 5 rows are gone from the database' <<<"$output")" -eq 1 ]
    run -1 "$FAKE" -q wait 1
    [[ "$output" == *"error: job 1: 2 of its 5 rows are gone"* ]]
    run -0 "$FAKE" -q wait 2
    [ -z "$output" ]
    [ "$(n_results)" -eq 8 ]
    run -0 "$FAKE" status 1
    [[ "$output" == *failed*"2 of its 5 rows are gone"* ]]
    # All of a lease, under a `run`, which tells it once.
    FAKE_FAIL_AT=1 run -70 "$FAKE" -q run --key k "$DIR/few.csv"
    sqlite3 "$BATCHD_DB" 'DELETE FROM request WHERE id >> 32 = 3'
    run -1 "$FAKE" run --key k "$DIR/few.csv" -o "$DIR/out.jsonl"
    [ "$(grep -c 'job 3: 4 of its 5 rows are gone from the database' <<<"$output")" -eq 1 ]
    [ "$(wc -l <"$DIR/out.jsonl")" -eq 0 ]
    run -1 "$FAKE" -q submit --wait --key k "$DIR/few.csv" -m tests/models/demo
    [[ "$output" == *"error: job 3 is failed: 4 of its 5 rows are gone"*"another --key"* ]]
}

@test "a row that is damaged in the file fails alone, and an export has the rest" {
    python3 -c 'print("prompt"); [print(f"row {i} " * 30) for i in range(5)]' >"$DIR/few.csv"
    "$FAKE" -q submit "$DIR/few.csv"
    "$FAKE" -q submit "$DIR/few.csv"
    sqlite3 "$BATCHD_DB" 'UPDATE request SET input = substr(input, 1, 20) WHERE id >> 32 = 1 AND id & 4294967295 = 2'
    run -0 "$FAKE" -q serve --once
    [ "$(sqlite3 "$BATCHD_DB" "SELECT group_concat(state) FROM job")" = "partial,done" ]
    [ "$(sqlite3 "$BATCHD_DB" "SELECT row || code || message FROM failures")" = "2bad_promptthe stored row is damaged" ]
    run -0 "$FAKE" export 1 -o "$DIR/out.jsonl"
    [ "$(sed -n 3p "$DIR/out.jsonl" | python3 -c 'import json, sys; d = json.load(sys.stdin); print(d["status"], d["input"])')" = "failed None" ]
    [ "$(wc -l <"$DIR/out.jsonl")" -eq 5 ]
}

@test "jobs for two models and two dtypes: the engine is changed between them" {
    head -3 "$DIR/rows.csv" >"$DIR/few.csv"
    cp -r tests/models/demo "$DIR/other"
    "$BATCHD" -q submit --max-tokens 2 "$DIR/few.csv"
    "$BATCHD" -q submit --max-tokens 2 -m "$DIR/other" "$DIR/few.csv"
    "$BATCHD" -q submit --max-tokens 2 --dtype float32 "$DIR/few.csv"
    run -0 "$BATCHD" serve --once
    [ "$(grep -c 'loaded on' <<<"$output")" -eq 3 ]
    [ "$(sqlite3 "$BATCHD_DB" "SELECT group_concat(state) FROM job")" = "done,done,done" ]
}

@test "priorities first, jobs of one priority in turns" {
    "$FAKE" -q submit "$DIR/rows.csv"
    "$FAKE" -q submit --priority 5 "$DIR/rows.csv"
    run -0 "$FAKE" -q serve --once
    [ "$(sqlite3 "$BATCHD_DB" 'SELECT job_id FROM job ORDER BY finished_at LIMIT 1')" -eq 2 ]
}

@test "status --json and doctor see a daemon that is alive" {
    "$FAKE" -q serve 3>&- &
    pid=$!
    wait_for_daemon
    run -0 "$FAKE" status --json
    [[ "$output" == *'"alive":true,"pid":'$pid* ]]
    kill -TERM $pid
    wait $pid
    run -0 "$FAKE" status --json
    [[ "$output" == *'"alive":false'* ]]
}
