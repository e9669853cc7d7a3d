#!/usr/bin/env bats
# A database that an older batchd left behind (tests/data/database/make.sh says how):
# everything in it can be read, and its work goes on.

load aid

setup() {
    aid_setup
    cp tests/data/database/version1.db "$BATCHD_DB"
    chmod 600 "$BATCHD_DB"
}

@test "jobs, results, rejects and failures of version 1 are read" {
    run -0 "$FAKE" status
    [[ "$output" == *"1  partial"*"2  running"*"3  cancelled"*"4  queued"* ]]
    run -0 "$FAKE" export 1
    [ "${#lines[@]}" -eq 4 ]
    python3 -c 'import json, sys
rows = [json.loads(line) for line in sys.argv[1].splitlines()]
assert [r["id"] for r in rows] == ["one", "two", "three", "four"], rows
assert rows[1]["input"]["prompt"] == "Zweite Zeile: Grüße", rows
assert [r["status"] for r in rows].count("failed") == 2, rows
assert len(rows[1]["completion"]) > 800, rows
assert all(r["completion"] for r in rows if r["status"] == "ok"), rows' "$output"
    run -0 sqlite3 "$BATCHD_DB" "SELECT line, code FROM rejects"
    [ "${lines[0]}" = "4|column_count" ]
    run -0 sqlite3 -cmd ".load $BUILD/batchd_sqlite" "$BATCHD_DB" "SELECT count(*) FROM results WHERE completion IS NOT NULL"
    [ "$output" -gt 100 ]
}

@test "its unfinished jobs are finished, and what was there stays" {
    sqlite3 "$BATCHD_DB" "UPDATE job SET model = '$PWD/tests/models/demo' WHERE model IS NOT NULL"
    sqlite3 "$BATCHD_DB" "SELECT id, codec, hex(completion) FROM result" >"$DIR/before"
    run -0 "$FAKE" -q serve --once
    [ "$(sqlite3 "$BATCHD_DB" "SELECT group_concat(state) FROM job")" = "partial,done,cancelled,done" ]
    [ "$(sqlite3 "$BATCHD_DB" "SELECT count(*) FROM result WHERE id >= 2 << 32 AND id < 3 << 32")" -eq 600 ]
    sqlite3 "$BATCHD_DB" "SELECT id, codec, hex(completion) FROM result" | sort >"$DIR/after"
    [ -z "$(sort "$DIR/before" | comm -23 - "$DIR/after")" ]
    run -0 "$FAKE" wait --key night
    [ "$(sqlite3 "$BATCHD_DB" 'PRAGMA integrity_check')" = ok ]
}

@test "reading leaves it as it is; the first writer adds what later versions have, and logprobs can be asked for" {
    run -0 "$FAKE" status
    run -0 "$FAKE" results 1 --json
    [ "$(sqlite3 "$BATCHD_DB" 'PRAGMA user_version')" -eq 1 ]
    sqlite3 "$BATCHD_DB" "SELECT id, codec, hex(completion) FROM result" >"$DIR/before"
    echo '{"prompt": "Sort these words: raven, acorn", "logprobs": 2}' >"$DIR/in.jsonl"
    run -0 "$BATCHD" -q run "$DIR/in.jsonl" -m tests/models/demo -o "$DIR/out.jsonl" --max-tokens 5
    python3 -c 'import json, sys; assert json.load(open(sys.argv[1]))["logprobs"]["token_logprobs"]' "$DIR/out.jsonl"
    [ "$(sqlite3 "$BATCHD_DB" 'PRAGMA user_version')" -eq 3 ]
    [ -n "$(sqlite3 "$BATCHD_DB" 'SELECT weights FROM jobs WHERE job_id = 5')" ]
    sqlite3 "$BATCHD_DB" "SELECT id, codec, hex(completion) FROM result" >"$DIR/after"
    [ -z "$(sort "$DIR/after" | comm -13 - <(sort "$DIR/before"))" ]
    [ "$(sqlite3 "$BATCHD_DB" 'PRAGMA integrity_check')" = ok ]
}

@test "a database of version 2: its names stay, its jobs go on and note their weights" {
    cp tests/data/database/version2.db "$BATCHD_DB"
    sqlite3 "$BATCHD_DB" "UPDATE job SET model = '$PWD/tests/models/demo' WHERE model IS NOT NULL"
    run -0 "$FAKE" status
    [ "$(sqlite3 "$BATCHD_DB" 'PRAGMA user_version')" -eq 2 ]
    run -0 "$FAKE" -q serve --once
    [ "$(sqlite3 "$BATCHD_DB" "SELECT group_concat(state) FROM job")" = "partial,done,cancelled,done" ]
    [ -n "$(sqlite3 "$BATCHD_DB" 'SELECT weights FROM jobs WHERE job_id = 2')" ]
    run -0 "$FAKE" models list
    [[ "$output" == *"demo"*"/models/demo"* ]]
    [ "$(sqlite3 "$BATCHD_DB" 'PRAGMA integrity_check; PRAGMA foreign_key_check')" = ok ]
}
