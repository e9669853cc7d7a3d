#!/usr/bin/env bats
# Sampling keys from the command line to the result: in rows, in columns and as flags.
# That they do the right thing to logits is for tests/test_sampling.c.

load aid

setup() { aid_setup; }

# completions FILE FLAGS...: one line a row, as JSON
completions() {
    "$BATCHD" --db "$DIR/$RANDOM$RANDOM.db" -q run "$@" --max-tokens 40 --ignore-eos -o - |
        python3 -c 'import json, sys
for line in sys.stdin: print(json.dumps(json.loads(line)["completion"]))'
}

@test "penalties, bias and lists: the same from rows, columns and flags" {
    echo '{"prompt": "Sort these words: raven, acorn"}' >"$DIR/plain.jsonl"
    completions "$DIR/plain.jsonl" >"$DIR/plain"
    for key in 'repetition_penalty 1.4' 'presence_penalty 1.5' 'frequency_penalty 0.7' 'logit_bias {"5":-100,"22":3.5}'; do
        name=${key%% *} value=${key#* }
        echo '{"prompt": "Sort these words: raven, acorn", "'"$name"'": '"$value"'}' >"$DIR/row.jsonl"
        python3 -c 'import csv, sys
w = csv.writer(open(sys.argv[1], "w"))
w.writerow(["prompt", "@" + sys.argv[2]])
w.writerow(["Sort these words: raven, acorn", sys.argv[3]])' "$DIR/cell.csv" "$name" "$value"
        completions "$DIR/row.jsonl" >"$DIR/row"
        ! cmp -s "$DIR/row" "$DIR/plain"
        completions "$DIR/cell.csv" --chat never >"$DIR/cell"
        cmp "$DIR/row" "$DIR/cell"
        completions "$DIR/plain.jsonl" "--${name//_/-}" "$value" >"$DIR/flag"
        cmp "$DIR/row" "$DIR/flag"
    done
}

@test "top_k -1 is off, as in vLLM" {
    for k in 0 -1 2; do
        echo '{"prompt": "Sort these words: raven, acorn", "temperature": 3, "seed": 7, "top_k": '$k'}' >"$DIR/k.jsonl"
        completions "$DIR/k.jsonl" >"$DIR/k$k"
    done
    cmp "$DIR/k0" "$DIR/k-1"
    ! cmp -s "$DIR/k0" "$DIR/k2"
}

@test "allowed ids are the only ones, banned ids never come" {
    ids=$(echo r | "$BATCHD" tokenize -m tests/models/demo | tr -d '[]')
    echo '{"prompt": "Sort these words: raven, acorn", "allowed_token_ids": ['"$ids"'], "temperature": 2}' >"$DIR/one.jsonl"
    completions "$DIR/one.jsonl" >"$DIR/one"
    python3 -c 'import json, sys
text = json.load(open(sys.argv[1]))
part = text[:len(text) // 40]
assert part and text == part * 40, text' "$DIR/one"
    echo '{"prompt": "Sort these words: raven, acorn", "allowed_token_ids": ['"$ids"', 22], "banned_token_ids": ['"$ids"'], "temperature": 2}' >"$DIR/two.jsonl"
    completions "$DIR/two.jsonl" >"$DIR/two"
    ! cmp -s "$DIR/one" "$DIR/two"
}

@test "an id beyond the vocabulary fails its row alone" {
    printf '{"prompt": "x", "logit_bias": {"999999": 1}}\n{"prompt": "Sort these words: raven, acorn"}\n' >"$DIR/in.jsonl"
    run -3 "$BATCHD" -q run "$DIR/in.jsonl" -o "$DIR/out.jsonl" --max-tokens 5
    python3 -c 'import json, sys
bad, good = map(json.loads, open(sys.argv[1]))
assert bad["error"]["code"] == "bad_token" and "logit_bias: id 999999" in bad["error"]["message"], bad
assert good["status"] == "ok", good' "$DIR/out.jsonl"
}

@test "logprobs: OpenAI's form in exports, the same JSON in SQL, nothing where not asked" {
    cat >"$DIR/in.jsonl" <<'X'
{"prompt": "Sort these words: raven, acorn", "logprobs": 4}
{"prompt": "Sort these words: raven, acorn", "logprobs": true, "top_logprobs": 4}
{"prompt": "Sort these words: raven, acorn", "logprobs": 0}
{"prompt": "Sort these words: raven, acorn", "logprobs": false}
{"prompt": "Reverse: Grüße 日本 \u0001 \"x\" 😀", "temperature": 3, "seed": 4, "ignore_eos": true}
X
    run -0 "$BATCHD" -q run "$DIR/in.jsonl" -o "$DIR/out.jsonl" --max-tokens 200 --logprobs 20
    sqlite3 -cmd ".load $BUILD/batchd_sqlite" "$BATCHD_DB" \
        "SELECT batchd_text(logprobs) FROM result WHERE logprobs IS NOT NULL ORDER BY id" >"$DIR/sql"
    [ "$(sqlite3 "$BATCHD_DB" "SELECT typeof(logprobs) FROM result ORDER BY id DESC LIMIT 1")" = blob ]
    python3 - "$DIR/out.jsonl" "$DIR/sql" <<'X'
import json, math, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
assert [json.loads(line) for line in open(sys.argv[2])] == [r["logprobs"] for r in rows if "logprobs" in r]
assert "logprobs" not in rows[3] and rows[0]["logprobs"] == rows[1]["logprobs"]
assert all(len(t) == 1 for t in rows[2]["logprobs"]["top_logprobs"])
for row, n in (rows[0], 4), (rows[2], 0), (rows[4], 20):
    l = row["logprobs"]
    length = len(l["tokens"])
    assert length > 3 and all(len(v) == length for v in l.values()), row
    assert row["usage"]["completion_tokens"] - length in (0, 1), row
    for token, x, top in zip(l["tokens"], l["token_logprobs"], l["top_logprobs"]):
        values = list(top.values())
        assert top[token] == x and n <= len(values) <= n + 1 and x <= 0, (token, x, top)
        assert values[:n] == sorted(values[:n], reverse=True)
        assert sum(map(math.exp, values)) < 1.0001
def piece(token):
    return eval("b'" + token[6:] + "'") if token.startswith("bytes:") else token.encode()
def skipped(token):
    return token.startswith("<|") and token.endswith("|>")
for row in rows[0], rows[2], rows[4]:
    l = row["logprobs"]
    text = b"".join(piece(t) for t in l["tokens"] if not skipped(t))
    assert text.decode(errors="replace") == row["completion"], row
    if "\ufffd" not in row["completion"]:
        for token, at in zip(l["tokens"], l["text_offset"]):
            assert skipped(token) or row["completion"].startswith(token, at), (token, at)
X
}

@test "prompt logprobs: vLLM's form, in exports and SQL, once for each token, cached or not" {
    for i in 1 2; do echo '{"prompt": "Sort these words: raven, acorn, urchin, forest, ocean, dragon, pencil, island, basket, apple, bottle, harbor, music, pocket, puddle, teapot", "prompt_logprobs": 3}'; done >"$DIR/in.jsonl"
    echo '{"prompt": "Sort these words: raven"}' >>"$DIR/in.jsonl"
    run -0 "$BATCHD" -q run "$DIR/in.jsonl" -o "$DIR/out.jsonl" --max-tokens 5 --max-num-seqs 1
    sqlite3 -cmd ".load $BUILD/batchd_sqlite" "$BATCHD_DB" \
        "SELECT batchd_text(prompt_logprobs) FROM result WHERE prompt_logprobs IS NOT NULL ORDER BY id" >"$DIR/sql"
    python3 - "$DIR/out.jsonl" "$DIR/sql" <<'X'
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
assert [json.loads(line) for line in open(sys.argv[2])] == [r["prompt_logprobs"] for r in rows[:2]]
assert "prompt_logprobs" not in rows[2] and all("logprobs" not in r for r in rows)
first = rows[0]["prompt_logprobs"]
assert first == rows[1]["prompt_logprobs"]
assert len(first) == rows[0]["usage"]["prompt_tokens"] > 32 and first[0] is None
text = ""
for place in first[1:]:
    own = next(iter(place.values()))
    text += own["decoded_token"]
    ranks = {v["rank"]: v["logprob"] for v in place.values()}
    assert {1, 2, 3} <= set(ranks) and len(place) == (3 if own["rank"] <= 3 else 4), place
    assert [ranks[r] for r in sorted(ranks)] == sorted(ranks.values(), reverse=True), place
assert rows[0]["input"]["prompt"].endswith(text) and len(text) > 100, text
X
    run -0 "$BATCHD" -q run "$DIR/in.jsonl" --fresh -o "$DIR/flags.jsonl" --max-tokens 5 --prompt-logprobs 3
    python3 -c 'import json, sys
a, b = ([json.loads(line) for line in open(f)] for f in sys.argv[1:])
assert a[0]["prompt_logprobs"] == b[0]["prompt_logprobs"] and len(b[2]["prompt_logprobs"]) > 3' "$DIR/out.jsonl" "$DIR/flags.jsonl"
}

@test "generation_config.json's penalty is the default, and a row's own lies over it" {
    cp -r tests/models/demo "$DIR/model"
    echo '{"repetition_penalty": 1.3}' >"$DIR/model/generation_config.json"
    for i in 1 2 3; do echo "{\"prompt\": \"Sort these words: raven, acorn, raven $i\"}"; done >"$DIR/in.jsonl"
    sed 's/}/, "repetition_penalty": 1}/' "$DIR/in.jsonl" >"$DIR/off.jsonl"
    run -0 "$BATCHD" -q run "$DIR/in.jsonl" -m tests/models/demo -o "$DIR/plain.jsonl" --max-tokens 24 --ignore-eos
    run -0 "$BATCHD" -q run "$DIR/in.jsonl" -m tests/models/demo -o "$DIR/flag.jsonl" --max-tokens 24 --ignore-eos --repetition-penalty 1.3
    run -0 "$BATCHD" -q run "$DIR/in.jsonl" -m "$DIR/model" -o "$DIR/file.jsonl" --max-tokens 24 --ignore-eos
    run -0 "$BATCHD" -q run "$DIR/off.jsonl" -m "$DIR/model" -o "$DIR/row.jsonl" --max-tokens 24 --ignore-eos
    texts() { python3 -c 'import json, sys; print([json.loads(l)["completion"] for l in open(sys.argv[1])])' "$DIR/$1.jsonl"; }
    [ "$(texts file)" = "$(texts flag)" ]
    [ "$(texts row)" = "$(texts plain)" ]
    [ "$(texts file)" != "$(texts plain)" ]
}

@test "logprobs in CSV: two more columns, as JSON, where some row has any" {
    printf 'id,prompt,@logprobs\na,"Sort these words: raven, acorn",2\nb,abc,\n' >"$DIR/in.csv"
    printf 'id,prompt\na,abc\n' >"$DIR/none.csv"
    run -0 "$BATCHD" -q run "$DIR/in.csv" -m tests/models/demo -o "$DIR/out.csv" --max-tokens 4
    run -0 "$BATCHD" -q run "$DIR/none.csv" -m tests/models/demo -o "$DIR/none-out.csv" --max-tokens 4
    run -0 "$BATCHD" -q export 1 -o "$DIR/out.jsonl"
    python3 - "$DIR" <<'P'
import csv, json, sys
rows = list(csv.DictReader(open(sys.argv[1] + "/out.csv", newline="")))
lines = [json.loads(line) for line in open(sys.argv[1] + "/out.jsonl")]
assert list(rows[0])[-3:] == ["error", "logprobs", "prompt_logprobs"], list(rows[0])
assert json.loads(rows[0]["logprobs"]) == lines[0]["logprobs"], rows[0]
assert (rows[0]["prompt_logprobs"], rows[1]["logprobs"], "logprobs" in lines[1]) == ("", "", False), rows
header = open(sys.argv[1] + "/none-out.csv").readline()
assert header.rstrip().endswith(",error"), header
P
}
