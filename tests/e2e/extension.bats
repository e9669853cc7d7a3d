#!/usr/bin/env bats
# batchd_sqlite.so in the stock sqlite3: the views of docs/schema.md with exactly its columns,
# and the text of prompts and completions, whatever form a row was stored in.

load aid

setup() {
    aid_setup
    export FAKE_TOKENS_PER_S=1000000
}

plain() { sqlite3 "$BATCHD_DB" "$@"; }
loaded() { sqlite3 -cmd ".load $BUILD/batchd_sqlite" "$BATCHD_DB" "$@"; }

# columns VIEW: its names as the shell's own header line says them
columns() { loaded -cmd '.headers on' -cmd '.mode list' -cmd '.separator " "' "SELECT * FROM $1 LIMIT 1" | head -1; }

# documented VIEW: its names as the table in docs/schema.md lists them
documented() { sed -n "s/^| \`$1\` | [^|]* | \(.*\) |$/\1/p" docs/schema.md; }

# Three jobs: CSV with a template, a reject and a failed row; JSONL of all kinds; one not run.
three_jobs() {
    printf 'id,topic,n\na,rain,1\nbad,row\nb,"snow, ""and"" ice",2\nc,{id},3\n' >"$DIR/one.csv"
    cat >"$DIR/two.jsonl" <<'EOF'
{"prompt": "just so", "id": "p"}
{"messages": [{"role": "user", "content": "hi"}]}
"bare"
EOF
    "$FAKE" -q submit --reject skip --template 'About {topic|trim}: {n} {{x}}' --max-tokens 40 "$DIR/one.csv"
    run -0 env FAKE_ROW_ERROR=3 "$FAKE" -q serve --once
    "$FAKE" -q submit --max-tokens 900 --ignore-eos "$DIR/two.jsonl"
    "$FAKE" -q serve --once
    "$FAKE" -q submit "$DIR/two.jsonl"
}

@test "every view has the columns that docs/schema.md lists, in its order" {
    three_jobs
    for view in jobs metrics failures rejects; do
        [ -n "$(documented $view)" ]
        [ "$(columns $view)" = "$(documented $view)" ]
    done
    [ "$(columns results)" = "$(documented metrics) prompt completion model weights" ]
    [ "$(plain "SELECT group_concat(name) FROM (SELECT name FROM sqlite_schema WHERE type = 'view' ORDER BY name)")" = failures,jobs,metrics,rejects,results ]
}

@test "jobs, metrics, failures and rejects need no extension; results says what it lacks" {
    three_jobs
    [ "$(plain 'SELECT group_concat(state) FROM jobs')" = partial,done,queued ]
    [ "$(plain 'SELECT percent FROM jobs' | paste -sd ' ')" = "100.0 100.0 0.0" ]
    [ "$(plain 'SELECT count(*) FROM metrics')" -eq 6 ]
    [ "$(plain 'SELECT count(*) FROM failures WHERE job_id = 1')" -eq 1 ]
    [ "$(plain 'SELECT job_id, line, code FROM rejects')" = "1|3|column_count" ]
    run -1 plain 'SELECT * FROM results'
    [[ "$output" == *"no such function: batchd_"* ]]
}

@test "times add up as docs/schema.md defines them" {
    three_jobs
    [ "$(plain "SELECT count(*) FROM metrics WHERE status = 'ok' AND (wait_ms < 0 OR abs(queue_ms + prefill_ms - ttft_ms) > 0.002
        OR abs(ttft_ms + decode_ms - e2e_ms) > 0.002 OR abs(tpot_ms * (completion_tokens - 1) - decode_ms) > 0.002
        OR (tpot_ms IS NULL) <> (completion_tokens < 2))")" -eq 0 ]
    [ "$(plain "SELECT count(*) FROM metrics WHERE status = 'failed' AND (finish_reason <> 'error' OR error IS NULL)")" -eq 0 ]
}

@test "prompts are what the rows asked" {
    three_jobs
    run -0 loaded "SELECT prompt FROM results ORDER BY job_id, row"
    [ "${lines[0]}" = 'About rain: 1 {x}' ]
    [ "${lines[1]}" = 'About snow, "and" ice: 2 {x}' ]
    [ "${lines[2]}" = 'About {id}: 3 {x}' ]
    [ "${lines[3]}" = 'just so' ]
    [ "${lines[4]}" = '[{"role":"user","content":"hi"}]' ]
    [ "${lines[5]}" = 'bare' ]
}

@test "completions are those of the export, compressed or not" {
    three_jobs
    [ "$(plain "SELECT count(DISTINCT typeof(completion)) FROM result WHERE completion IS NOT NULL")" -eq 2 ]
    for job in 1 2; do "$FAKE" export $job; done >"$DIR/all.jsonl"
    loaded -cmd '.mode json' "SELECT status, custom_id, completion FROM results ORDER BY job_id, row" >"$DIR/view.json"
    python3 - "$DIR/all.jsonl" "$DIR/view.json" <<'X'
import json, sys
export = [json.loads(line) for line in open(sys.argv[1])]
view = json.load(open(sys.argv[2]))
assert len(export) == len(view) == 6
for e, v in zip(export, view):
    assert e["status"] == v["status"] and e["completion"] == v["completion"], (e, v)
    assert v["custom_id"] in (e["id"], None)
assert sum(v["completion"] is None for v in view) == 1
X
}

@test "the query of docs/schema.md reads another column" {
    three_jobs
    query=$(sed -n '/^```sql/,/^```/p' docs/schema.md | grep -v '```')
    [[ "$query" == *batchd_text* ]]
    run -0 loaded "$query"
    [[ "$output" == *"1|"*"2|"*"3|"* ]]
}

@test "batchd_text: text and NULL pass, frames are decoded, damage is an error or NULL" {
    three_jobs
    [ "$(loaded "SELECT batchd_text('x'), batchd_text(NULL) IS NULL, batchd_text(7)")" = 'x|1|7' ]
    run -1 loaded "SELECT batchd_text(x'28b52ffd0102')"
    [[ "$output" == *"batchd_text: "* ]]
    run -1 loaded "SELECT batchd_text(x'00')"
    [ "$(loaded "SELECT batchd_text(x'28b52ffd0102', 0) IS NULL")" = 1 ]
    plain "UPDATE result SET completion = substr(completion, 1, length(completion) - 3) WHERE typeof(completion) = 'blob'"
    run -1 loaded "SELECT completion FROM results"
    [[ "$output" == *"batchd_text: damaged zstd frame"* ]]
}

@test "frames of the zstd program are read; their dictionary is found in zdict, of an attached database too" {
    command -v zstd >/dev/null || skip "no zstd program"
    three_jobs
    printf 'of zstd itself: é %.0s' $(seq 50) >"$DIR/text"
    zstd -q "$DIR/text" -o "$DIR/text.zst"
    [ "$(loaded "SELECT batchd_text(readfile('$DIR/text.zst'))")" = "$(cat "$DIR/text")" ]
    for i in $(seq 200); do printf '{"sentiment": "positive", "score": %d, "reason": "review %d"}' $((i % 7)) $i >"$DIR/s$i"; done
    zstd -q --train "$DIR"/s[0-9]* -o "$DIR/dict" --maxdict=2000
    zstd -q -D "$DIR/dict" "$DIR/s5" -o "$DIR/s5.zst"
    id=$(python3 -c 'import sys; print(int.from_bytes(open(sys.argv[1], "rb").read()[4:8], "little"))' "$DIR/dict")
    run -1 loaded "SELECT batchd_text(readfile('$DIR/s5.zst'))"
    [[ "$output" == *"dictionary is not in zdict"* ]]
    plain "INSERT INTO zdict VALUES ($id, NULL, 1, readfile('$DIR/dict'))"
    [ "$(loaded "SELECT batchd_text(readfile('$DIR/s5.zst'))")" = "$(cat "$DIR/s5")" ]
    [ "$(sqlite3 -cmd ".load $BUILD/batchd_sqlite" :memory: "ATTACH '$BATCHD_DB' AS q; SELECT batchd_text(readfile('$DIR/s5.zst'))")" = "$(cat "$DIR/s5")" ]
}

@test "one job's results are read without the other jobs' rows" {
    three_jobs
    for view in metrics failures results; do
        run -0 loaded "EXPLAIN QUERY PLAN SELECT * FROM $view WHERE job_id = 2"
        [[ "$output" == *"id>? AND "*"id<?"* && "$output" != *SCAN* ]]
    done
}
