#!/usr/bin/env bats
# Bad input: each has an exit code, and a message that names file, line and remedy. A file
# that is refused leaves nothing behind; with --reject skip the good rows are kept.

load aid

setup() { aid_setup; }

# write NAME TEXT: printf's escapes
write() { printf "$2" >"$DIR/$1"; }

# refused CODE TEXT... -- ARGS: `submit ARGS` ends with CODE, says all of TEXT, stores nothing.
refused() {
    local code=$1 texts=()
    shift
    while [ "$1" != -- ]; do texts+=("$1"); shift; done
    shift
    run "$FAKE" submit "$@"
    echo "$output"
    [ "$status" -eq "$code" ]
    local text
    for text in "${texts[@]}"; do [[ "$output" == *"$text"* ]] || { echo "lacks: $text"; return 1; }; done
    [ ! -e "$BATCHD_DB" ] || [ "$(sqlite3 "$BATCHD_DB" 'SELECT (SELECT count(*) FROM job) + (SELECT count(*) FROM request)
        + (SELECT count(*) FROM reject) + (SELECT count(*) FROM lease)')" -eq 0 ]
}

# kept N CODE: with --reject skip, N rows stay, one reject with that code, and they finish.
kept() {
    local file=$1 n=$2 code=$3
    run -0 --separate-stderr "$FAKE" submit -q --parsable --reject skip "$DIR/$file"
    local job=$output
    [ "$(sqlite3 "$BATCHD_DB" 'SELECT n_rows, n_rejected FROM job')" = "$n|1" ]
    [ "$(sqlite3 "$BATCHD_DB" 'SELECT code FROM rejects WHERE line > 0 AND byte > 0 AND length(message) > 5')" = "$code" ]
    run -0 "$FAKE" -q serve --once
    run -3 "$FAKE" wait "$job"
    [ "$(sqlite3 "$BATCHD_DB" 'SELECT n_done FROM job')" -eq "$n" ]
}

@test "a missing file, a folder, an unreadable file" {
    refused 66 none.csv "No such file" -- "$DIR/none.csv"
    mkdir "$DIR/folder.csv"
    refused 66 folder.csv folder -- "$DIR/folder.csv"
}

@test "an empty file, and one with a header only" {
    write empty.csv ''
    refused 65 empty.csv empty -- "$DIR/empty.csv"
    write header.csv 'id,prompt\n'
    refused 65 header.csv "no rows" -- "$DIR/header.csv"
    write blank.jsonl '\n\n'
    refused 65 blank.jsonl -- "$DIR/blank.jsonl"
}

@test "compressed files, archives, UTF-16: what it is and what to do, not where a byte is bad" {
    write in.csv 'prompt\nx\n'
    gzip -k "$DIR/in.csv"
    refused 65 in.csv.gz gzip zcat -- "$DIR/in.csv.gz"
    refused 65 "standard input" zcat -- - <"$DIR/in.csv.gz"
    write zip.csv 'PK\003\004xx\n'
    refused 65 zip.csv workbook CSV -- "$DIR/zip.csv"
    iconv -t UTF-16 "$DIR/in.csv" >"$DIR/wide.csv"
    refused 65 wide.csv UTF-16 iconv -- "$DIR/wide.csv"
}

@test "columns that are not there: with a suggestion" {
    write in.csv 'id,question,prompt\na,b,c\n'
    refused 2 '"qestion"' question -- "$DIR/in.csv" --template 'Say: {qestion}'
    refused 2 promt prompt -- "$DIR/in.csv" --prompt-col promt
    refused 2 ids -- "$DIR/in.csv" --id-col ids
    refused 2 temprature -- "$DIR/in.csv" --param-cols temprature
    refused 2 -- "$DIR/in.csv" --template 'an open {brace'
}

@test "a prompt column that is not clear" {
    write in.csv 'a,b\n1,2\n'
    refused 2 --prompt-col --template -- "$DIR/in.csv"
}

@test "one column with a semicolon in its name is another dialect, unless it is asked for" {
    write in.csv 'question;answer\na;b\n'
    refused 2 in.csv 'one column, "question;answer"' commas "--format tsv" --prompt-col -- "$DIR/in.csv"
    run -0 "$FAKE" submit "$DIR/in.csv" --prompt-col 'question;answer'
    run -0 "$FAKE" submit "$DIR/in.csv" --template 'Both: {question;answer}'
}

@test "an unterminated quote" {
    write in.csv 'id,prompt\na,"never closed\nb,c\n'
    refused 65 "in.csv" "2" quote -- "$DIR/in.csv"
    write more.csv 'id,prompt\na,fine\nb,"never closed\nc,fine too\n'
    kept more.csv 2 unterminated_quote
}

@test "a stray quote" {
    write in.csv 'id,prompt\na,say "x" now\nb,fine\nc,fine\n'
    refused 65 "in.csv" 2 quote "--reject skip" -- "$DIR/in.csv"
    kept in.csv 2 stray_quote
}

@test "a ragged row, too short or too long" {
    write short.csv 'id,prompt,x\na,b\nc,d,e\n'
    refused 65 "short.csv" "2 columns" "header has 3" -- "$DIR/short.csv"
    write long.csv 'id,prompt\na,b\nc,d,e\n'
    refused 65 "long.csv" 3 "3 columns" -- "$DIR/long.csv"
    kept long.csv 1 column_count
}

@test "bytes that are not UTF-8, NUL bytes" {
    write latin.csv 'id,prompt\na,caf\xe9\nb,fine\n'
    refused 65 latin.csv 2 UTF-8 -- "$DIR/latin.csv"
    write nul.csv 'id,prompt\na,x\\000y\nb,fine\n'
    python3 -c 'import sys; open(sys.argv[1], "wb").write(b"id,prompt\na,x\0y\nb,fine\n")' "$DIR/nul.csv"
    refused 65 nul.csv NUL -- "$DIR/nul.csv"
    kept nul.csv 1 nul
}

@test "flags and names of files that are not UTF-8: refused, or repaired where they are shown" {
    write in.csv 'prompt\nx\n'
    for flag in --key --name --prompt-col --template --system; do
        refused 2 "$flag" "not UTF-8" -- "$DIR/in.csv" "$flag" $'\xff'
    done
    printf '\xff{prompt}' >"$DIR/template"
    refused 65 --template "$DIR/template" "not UTF-8" -- "$DIR/in.csv" --template "@$DIR/template"
    cp "$DIR/in.csv" "$DIR/"$'caf\xe9.csv'
    run -0 --separate-stderr "$FAKE" run --json "$DIR/"$'caf\xe9.csv'
    name='import json,sys; d = json.loads(sys.argv[1]); print(ascii((d if "name" in d else d["jobs"][0])["name"]))'
    [ "$(python3 -c "$name" "$output")" = "'caf\\ufffd.csv'" ]
    [ "$(python3 -c "$name" "$("$FAKE" status --json)")" = "'caf\\ufffd.csv'" ]
    cp -r tests/models/demo "$DIR/"$'caf\xe9'
    run -0 "$BATCHD" models show --json "$DIR/"$'caf\xe9'
    [ "$(python3 -c 'import json,sys; print(ascii(json.loads(sys.argv[1])["path"][-4:]))' "$output")" = "'caf\\ufffd'" ]
}

@test "a field of 20 MiB" {
    python3 -c 'import sys; open(sys.argv[1], "w").write("id,prompt\na," + "x" * (20 << 20) + "\nb,fine\n")' "$DIR/huge.csv"
    refused 65 huge.csv 2 "16 MiB" -- "$DIR/huge.csv"
    kept huge.csv 1 field_size
}

@test "duplicate ids: both lines are named" {
    write in.csv 'id,prompt\na,x\nb,y\na,z\n'
    refused 65 in.csv '"a"' 2 4 -- "$DIR/in.csv"
    kept in.csv 2 duplicate_id
}

@test "JSON: trailing garbage, wrong types, no prompt, duplicate keys, too deep" {
    write good.jsonl '{"prompt": "x"}\n'
    write garbage.jsonl '{"prompt": "x"} y\n'
    refused 65 garbage.jsonl 1 -- "$DIR/garbage.jsonl"
    write cut.jsonl '{"prompt": "x"\n{"prompt": "y"}\n'
    refused 65 cut.jsonl 1 -- "$DIR/cut.jsonl"
    write type.jsonl '{"prompt": 7}\n'
    refused 65 type.jsonl prompt -- "$DIR/type.jsonl"
    write none.jsonl '{"text": "x"}\n'
    refused 65 none.jsonl prompt messages -- "$DIR/none.jsonl"
    write twice.jsonl '{"prompt": "x", "prompt": "y"}\n'
    refused 65 twice.jsonl -- "$DIR/twice.jsonl"
    write roles.jsonl '{"messages": [{"role": "user"}]}\n'
    refused 65 roles.jsonl content -- "$DIR/roles.jsonl"
    python3 -c 'print("{\"prompt\": \"x\", \"deep\": " + "[" * 3000 + "]" * 3000 + "}")' >"$DIR/deep.jsonl"
    refused 65 deep.jsonl -- "$DIR/deep.jsonl"
    cat "$DIR/good.jsonl" "$DIR/garbage.jsonl" >"$DIR/both.jsonl"
    kept both.jsonl 1 json
}

@test "batch files: another endpoint or method, streams: the key is named, the good lines are kept" {
    local good='{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "x"}]}}'
    local other=${good/'"a"'/'"b"'}
    refuse_line() { printf '%s\n%s\n' "$good" "$1" >"$DIR/batch.jsonl"; refused 65 "batch.jsonl:2: $2" "$3" -- "$DIR/batch.jsonl"; }
    refuse_line "${other/POST/GET}" 'method: "GET"' 'only "POST"'
    refuse_line "${other/completions/edits}" 'url: "/v1/chat/edits"' 'only /v1/chat/completions and /v1/completions'
    refuse_line "${other/'"messages"'/'"stream": true, "messages"'}" 'stream: true' 'leave it out'
    refuse_line "${other/'"messages"'/'"n": 3, "messages"'}" 'n: 3' 'only 1 is'
    refuse_line "${other/'"messages"'/'"input"'}" 'body: no "messages"' '/v1/chat/completions needs'
    kept batch.jsonl 1 bad_value
}

@test "sampling values out of range, of a wrong type, not built" {
    for bad in '"temperature": 11' '"temperature": "hot"' '"temperature": -0.1' '"top_p": 0' '"top_p": 1.5' '"top_k": -2' \
        '"max_tokens": 0' '"max_tokens": 1.5' '"min_p": 2' '"seed": -1' '"stop": [""]' '"stop": 3' '"stop_token_ids": [-4]' \
        '"ignore_eos": 1' '"presence_penalty": 3' '"repetition_penalty": 0' '"logit_bias": {"x": 1}' '"banned_token_ids": 4' '"logprobs": 21'; do
        printf '{"prompt": "x", %s}\n' "$bad" >"$DIR/bad.jsonl"
        key=${bad%%:*}
        refused 65 bad.jsonl "${key//\"/}" -- "$DIR/bad.jsonl"
    done
    for bad in '"n": 2' '"echo": true' '"bad_words": ["x"]' '"tools": [{}]'; do
        printf '{"prompt": "x", %s}\n' "$bad" >"$DIR/bad.jsonl"
        key=${bad%%:*}
        refused 65 bad.jsonl "${key//\"/}" "not built" -- "$DIR/bad.jsonl"
    done
    printf '{"prompt": "x", "n": 1, "bad_words": [], "presence_penalty": 0}\n' >"$DIR/fine.jsonl"
    run -0 "$FAKE" -q submit "$DIR/fine.jsonl"
    for flag in "--temperature 11" "--top-p 0" "--max-tokens 0" "--seed -1" "--priority 101" \
        "--presence-penalty -2.5" "--repetition-penalty 0" "--frequency-penalty 2.1"; do
        run -2 "$FAKE" submit "$DIR/fine.jsonl" $flag
        [[ "$output" == *"${flag%% *}"* || "$output" == *"is not"* ]]
    done
}

@test "a file of which every line is bad" {
    write in.csv 'id,prompt\na\nb\n'
    refused 65 in.csv "2 bad lines" -- "$DIR/in.csv"
    refused 65 in.csv "all 2 lines are bad" -- "$DIR/in.csv" --reject skip
}

@test "the first ten bad lines are listed" {
    python3 -c 'print("id,prompt"); [print(i) for i in range(15)]' >"$DIR/in.csv"
    refused 65 "in.csv:2:" "in.csv:11:" "and 5 more bad lines" -- "$DIR/in.csv"
}

# ------------------------------------------------------------------ models

model() { # a copy to spoil
    rm -rf "$DIR/model"
    cp -r tests/models/tiny-llama3 "$DIR/model"
    cp tests/models/demo/tokenizer.json "$DIR/model/"
}

bad_model() {
    run -69 "$BATCHD" submit "$DIR/in.csv" -m "$DIR/model"
    echo "$output"
    local text
    for text in "$@"; do [[ "$output" == *"$text"* ]] || { echo "lacks: $text"; return 1; }; done
}

@test "models: missing, a file, no config.json, one that is not JSON, not supported" {
    write in.csv 'prompt\nx\n'
    bad_model "no model folder"
    write model 'x'
    bad_model "not a folder"
    rm "$DIR/model"
    mkdir "$DIR/model"
    bad_model config.json
    model
    echo '{' >"$DIR/model/config.json"
    bad_model config.json
    model
    sed -i 's/LlamaForCausalLM/MambaForCausalLM/; s/"model_type": "llama"/"model_type": "mamba"/' "$DIR/model/config.json"
    bad_model mamba
    run -69 "$BATCHD" submit "$DIR/in.csv" -m nobody
    [[ "$output" == *'"nobody"'*"batchd models"* ]]
}

@test "weights: missing, truncated, overlapping, a header of 2^60 bytes" {
    write in.csv 'prompt\nx\n'
    model
    rm "$DIR/model/model.safetensors"
    bad_model safetensors
    model
    truncate -s -100 "$DIR/model/model.safetensors"
    bad_model model.safetensors
    model
    python3 - "$DIR/model/model.safetensors" <<'X'
import json, struct, sys
data = open(sys.argv[1], "rb").read()
n, = struct.unpack("<Q", data[:8])
header = json.loads(data[8:8 + n])
a, b = [k for k in header if k != "__metadata__"][:2]
begin, end = header[a]["data_offsets"]
size = header[b]["data_offsets"][1] - header[b]["data_offsets"][0]
header[b]["data_offsets"] = [begin, begin + size]
text = json.dumps(header).encode()
open(sys.argv[1], "wb").write(struct.pack("<Q", len(text)) + text + data[8 + n:])
X
    bad_model model.safetensors
    model
    python3 -c 'import struct, sys; f = open(sys.argv[1], "r+b"); f.write(struct.pack("<Q", 1 << 60))' "$DIR/model/model.safetensors"
    bad_model model.safetensors
}

@test "a GPU where there is none" {
    [ ! -e /dev/nvidiactl ] || skip "there is one"
    write in.csv 'prompt\nx\n'
    run -69 "$BATCHD" run "$DIR/in.csv" --device cuda
    [[ "$output" == *"CUDA"* ]]
    run -0 "$BATCHD" run "$DIR/in.csv" --max-tokens 2
    [[ "$output" == *"loaded on cpu"* ]]
}

@test "a model without a tokenizer" {
    write in.csv 'prompt\nx\n'
    model
    rm "$DIR/model/tokenizer.json"
    run -69 "$BATCHD" run "$DIR/in.csv" -m "$DIR/model"
    [[ "$output" == *tokenizer.json* ]]
}

# ------------------------------------------------------------------ databases, rights, disks

@test "databases that are not ours, or newer than we are" {
    write in.csv 'prompt\nx\n'
    mkdir "$DIR/d"
    run -74 "$FAKE" --db "$DIR/d" submit "$DIR/in.csv"
    [[ "$output" == *"not a database"* ]]
    python3 -c 'print("hello " * 1000)' >"$DIR/text.db"
    run -74 "$FAKE" --db "$DIR/text.db" submit "$DIR/in.csv"
    [[ "$output" == *text.db* ]]
    sqlite3 "$DIR/other.db" 'CREATE TABLE t(x)'
    run -74 "$FAKE" --db "$DIR/other.db" submit "$DIR/in.csv"
    [[ "$output" == *"another program"*"--db"* ]]
    "$FAKE" -q --db "$DIR/new.db" submit "$DIR/in.csv"
    sqlite3 "$DIR/new.db" 'PRAGMA user_version = 99'
    run -78 "$FAKE" --db "$DIR/new.db" submit "$DIR/in.csv"
    [[ "$output" == *"newer"*"upgrade"* ]]
    run -78 "$FAKE" --db "$DIR/new.db" serve --once
}

as_nobody() { setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }

@test "no permission: to read the input, to write the database, to write the output" {
    [ "$(id -u)" -eq 0 ] || skip "needs root to become somebody else"
    as_nobody test -x "$FAKE" || skip "nobody cannot reach the program"
    chmod 755 "$BATS_RUN_TMPDIR" "$BATS_FILE_TMPDIR" "$BATS_TEST_TMPDIR" "$(dirname "$BATS_TEST_TMPDIR")" || true
    write in.csv 'prompt\nx\n'
    as_nobody test -r "$DIR/in.csv" || skip "nobody cannot reach $DIR"
    run as_nobody "$FAKE" --db "$DIR/t.db" submit "$DIR/in.csv"
    [ "$status" -eq 77 ]
    "$FAKE" -q submit "$DIR/in.csv"
    chmod 644 "$BATCHD_DB"
    run as_nobody "$FAKE" submit "$DIR/in.csv"
    [ "$status" -eq 77 ]
    [[ "$output" == *"permission"* ]]
    mkdir -m 777 "$DIR/open"
    chmod 000 "$DIR/in.csv"
    run as_nobody "$FAKE" --db "$DIR/open/t.db" submit "$DIR/in.csv"
    [ "$status" -eq 66 ] || [ "$status" -eq 77 ]
    [[ "$output" == *in.csv* ]]
}

@test "a database that may only be read: all that reads works, doctor says so" {
    [ "$(id -u)" -eq 0 ] || skip "needs root to become somebody else"
    as_nobody test -x "$FAKE" || skip "nobody cannot reach the program"
    chmod 755 "$BATS_RUN_TMPDIR" "$BATS_FILE_TMPDIR" "$BATS_TEST_TMPDIR" "$(dirname "$BATS_TEST_TMPDIR")" || true
    write in.csv 'prompt\nx\n'
    as_nobody test -r "$DIR/in.csv" || skip "nobody cannot reach $DIR"
    mkdir -m 777 "$DIR/open"
    export BATCHD_DB=$DIR/open/t.db
    "$FAKE" -q run "$DIR/in.csv"
    chmod 644 "$BATCHD_DB"
    for what in status "status 1" "wait 1" "results 1" "export 1" "export 1 -o $DIR/open/out.jsonl" "models list" "sql SELECT(1)"; do
        run -0 as_nobody "$FAKE" $what
    done
    [ "$(wc -l <"$DIR/open/out.jsonl")" -eq 1 ]
    run as_nobody "$FAKE" doctor
    [[ "$output" == *"WARN  database   not writable for you"* ]]
    for what in "submit $DIR/in.csv" "serve --once" "cancel 1" "models remove x"; do
        run -77 as_nobody "$FAKE" $what
    done
    mkdir "$DIR/closed"
    cp "$BATCHD_DB" "$DIR/closed/"
    chmod 644 "$DIR/closed/t.db"
    run -77 as_nobody "$FAKE" --db "$DIR/closed/t.db" status
    [[ "$output" == *"its folder must be writable for you"* ]]
}

@test "a limit on the size of files is a full disk: 75" {
    python3 -c 'print("prompt"); [print(f"{i:0200}") for i in range(2000)]' >"$DIR/in.csv"
    run bash -c "ulimit -f 100; '$FAKE' submit '$DIR/in.csv'"
    echo "$output"
    [ "$status" -eq 75 ]
    [[ "$output" == *"t.db"*full* ]]
}

@test "closed standard files: what is printed lands in no other file" {
    write in.csv 'prompt\nx\n'
    run -0 bash -c "'$FAKE' run '$DIR/in.csv' -o '$DIR/out.jsonl' <&- >&- 2>&-"
    python3 -c 'import json,sys; [json.loads(l) for l in open(sys.argv[1])]' "$DIR/out.jsonl"
    [[ "$(cat "$BATCHD_DB.lock")" =~ ^[0-9]+$ ]]
    [ "$(sqlite3 "$BATCHD_DB" 'PRAGMA integrity_check')" = ok ]
    run -74 bash -c "'$FAKE' status >&-"
    [[ "$output" == *"standard output: Bad file descriptor" ]]
    run -66 bash -c "'$FAKE' submit - <&-"
}

@test "a lock that cannot be opened is no fault of the input: 74" {
    write in.csv 'prompt\nx\n'
    mkdir "$BATCHD_DB.lock"
    refused 74 t.db.lock "Is a directory" -- "$DIR/in.csv"
    run -74 "$FAKE" serve --once
}

@test "standard output on a full disk: 75, and it says what could not be written" {
    [ -e /dev/full ] || skip "no /dev/full"
    python3 -c 'print("prompt"); [print("row", i) for i in range(200)]' >"$DIR/in.csv"
    "$FAKE" -q run "$DIR/in.csv"
    for what in "results 1" "results 1 -n 0" "results 1 --json" "export 1" "status" "export 1 -o /dev/full"; do
        run -75 bash -c "'$FAKE' $what >/dev/full"
        [ "${#lines[@]}" -eq 1 ]
        [[ "$output" == *"cannot write to "*": No space left on device" ]]
    done
}

@test "a full disk: work waits, the job finishes when there is room" {
    mkdir "$DIR/small"
    mount -t tmpfs -o size=4m none "$DIR/small" 2>/dev/null || skip "cannot mount a small disk here"
    db=$DIR/small/t.db
    python3 -c 'print("id,prompt"); [print(f"r{i},row {i}") for i in range(3000)]' >"$DIR/in.csv"
    "$FAKE" -q --db "$db" submit "$DIR/in.csv"
    FAKE_TOKENS_PER_S=40000 "$FAKE" --db "$db" serve --once 2>"$DIR/log" 3>&- &
    pid=$!
    for _ in $(seq 100); do [ "$(sqlite3 "$db" 'SELECT count(*) FROM result')" -gt 0 ] && break; sleep 0.05; done
    cat /dev/zero >"$DIR/small/ballast" 2>/dev/null || true
    for _ in $(seq 100); do grep -q "work waits" "$DIR/log" && break; sleep 0.1; done
    grep "work waits.*full" "$DIR/log" || { kill -KILL $pid; umount -l "$DIR/small"; cat "$DIR/log"; false; }
    rm "$DIR/small/ballast"
    status=0; wait $pid || status=$?
    state=$(sqlite3 "$db" "SELECT state || n_done FROM job; PRAGMA integrity_check")
    umount "$DIR/small"
    [ "$status" -eq 0 ]
    [ "$state" = $'done3000\nok' ]
}

@test "a disk that is full at submit: exit 75, nothing of the job stays" {
    mkdir "$DIR/small"
    mount -t tmpfs -o size=1m none "$DIR/small" 2>/dev/null || skip "cannot mount a small disk here"
    python3 -c 'import random; print("prompt"); [print("".join(random.choices("abcdefghijklmnop ", k=200))) for i in range(20000)]' >"$DIR/in.csv"
    run "$FAKE" --db "$DIR/small/t.db" submit "$DIR/in.csv"
    echo "$output"
    umount "$DIR/small"
    [ "$status" -eq 75 ]
    [[ "$output" == *"full"* ]]
}

@test "a second daemon on the same database: exit 75, naming the first" {
    "$FAKE" -q serve 3>&- &
    pid=$!
    wait_for_daemon
    run -75 "$FAKE" serve --once
    [[ "$output" == *"pid $pid"* ]]
    run -75 "$FAKE" serve -q
    [[ "$output" == *"error: another batchd (pid $pid) serves"* ]]
    run -75 "$FAKE" serve --once -q
    [ -z "$output" ]
    kill -TERM $pid
    wait $pid
}

@test "a key that is used again with other content" {
    write in.csv 'prompt\nx\n'
    write other.csv 'prompt\ny\n'
    run -0 "$FAKE" -q submit --key k "$DIR/in.csv"
    run -65 "$FAKE" -q submit --key k "$DIR/other.csv"
    [[ "$output" == *'"k"'* ]]
    run -65 "$FAKE" -q submit --key k --temperature 1 "$DIR/in.csv"
}
