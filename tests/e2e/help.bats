#!/usr/bin/env bats
# What the program says about itself, and what it says to a mistyped line.

load aid

setup() { aid_setup; }

verbs() { "$BATCHD" help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p'; }

@test "every command has help with usage, exit codes and examples" {
    [ "$(verbs | wc -l)" -eq 16 ]
    for verb in $(verbs); do
        run -0 "$BATCHD" help "$verb"
        [[ "$output" == *"Usage: batchd $verb"*"Exit codes:"*"Examples:"* ]]
        plain=$output
        run -0 "$BATCHD" "$verb" --help
        [ "$output" = "$plain" ]
    done
}

@test "the manual page has every command, flag and exit code, and no warnings" {
    scripts/manual "$BATCHD" >"$DIR/batchd.1"
    for verb in $(verbs); do
        grep -q "^\.SS batchd $verb" "$DIR/batchd.1"
        for flag in $("$BATCHD" help "$verb" | grep -o '^ *\(-., \)\?--[a-z-]*' | grep -o -- '--[a-z-]*'); do
            grep -qF -- "${flag//-/\\-}" "$DIR/batchd.1" || { echo "$verb $flag"; false; }
        done
    done
    command -v groff >/dev/null || skip "no groff"
    run -0 groff -man -Tutf8 -ww -z "$DIR/batchd.1"
    [ -z "$output" ]
}

@test "commands.md names every command and every exit code" {
    for verb in $(verbs); do grep -q "\(batchd \|\`\)$verb" docs/commands.md || [ "$verb" = version ] || { echo "$verb"; false; }; done
    for code in $(for v in $(verbs); do "$BATCHD" help "$v" | sed -n 's/^ *\([0-9][0-9]*\)  .*/\1/p'; done | sort -u); do
        grep -q "^| .*\b$code\b" docs/commands.md || { echo "$code"; false; }
    done
}

@test "mistyped commands, flags and values: exit 2, with a suggestion" {
    run -2 "$BATCHD" submitt
    [[ "$output" == *"did you mean submit?"* ]]
    run -2 "$BATCHD" run x.csv --max-token 3
    [[ "$output" == *"did you mean --max-tokens?"* ]]
    run -2 "$BATCHD" run x.csv --temperature hot
    [[ "$output" == *"temperature"* ]]
    run -2 "$BATCHD" run x.csv --temperature 11
    [[ "$output" == *"0 .. 10"* ]]
    run -2 "$BATCHD" run x.csv --reject perhaps
    [[ "$output" == *"fail|skip"* ]]
    run -2 "$BATCHD" run x.csv --threads 0
    run -2 "$BATCHD" run x.csv --max-tokens
    [[ "$output" == *"needs a value"* ]]
    run -2 "$BATCHD" run
    [[ "$output" == *"usage: batchd run"* ]]
    run -2 "$BATCHD" run x.csv --max-tokens 1e3x
    [[ "$output" == *'--max-tokens "1e3x": not a number'* ]]
    run -2 "$BATCHD" wait 1 --timeout 1.5h
    [[ "$output" == *"6h or 1d, not \"1.5h\""* ]]
    run -2 "$BATCHD" serve --cache-size 3Q
    [[ "$output" == *"256M or 1G"* ]]
    run -2 "$BATCHD" status --json=1
    [[ "$output" == *"--json takes no value"* ]]
    run -2 "$BATCHD" -m x run x.csv
    [[ "$output" == *"-m belongs to a command and goes behind it"* ]]
    run -2 "$BATCHD" serve --max-tokens 3
    run -2 "$BATCHD"
    run -2 "$BATCHD" help nothing
}

@test "a variable that is not set, flags that would do nothing: exit 2, nothing is made" {
    printf 'prompt\nx\n' >"$DIR/in.csv"
    for flag in --db --key --model --output --template --name; do
        run -2 "$BATCHD" run "$DIR/in.csv" "$flag" ""
        [[ "$output" == *"$flag is empty; is a variable of the shell not set?"* ]]
    done
    for flag in "--output-format csv" --only-ok --csv-raw --force; do
        run -2 "$BATCHD" run "$DIR/in.csv" $flag
        [[ "$output" == *"${flag% *} is about the file that -o names"* ]]
    done
    run -2 "$BATCHD" run "$DIR/in.csv" --fresh --key k
    run -2 "$BATCHD" submit "$DIR/in.csv" --timeout 5
    [[ "$output" == *"--timeout goes with --wait"* ]]
    run -2 "$BATCHD" submit "$DIR/in.csv" --parsable --json
    run -2 "$BATCHD" models list more
    [[ "$output" == *"usage: batchd models list" ]]
    run -2 "$BATCHD" models check demo --name demo
    [ ! -e "$BATCHD_DB" ]
}

@test "version, help and JSON" {
    run -0 "$BATCHD" --version
    [[ "$output" == "batchd "* ]]
    run -0 "$BATCHD" version --json
    python3 -c 'import json,sys; assert json.loads(sys.argv[1])["version"]' "$output"
    run -0 "$BATCHD" --help
}

@test "a reader that goes away ends the program quietly" {
    run -0 bash -c "set -o pipefail; '$BATCHD' help submit | head -1"
    [ "${#lines[@]}" -eq 1 ]
    printf 'prompt\nx\n' >"$DIR/in.csv"
    "$FAKE" -q submit "$DIR/in.csv"
    run -0 bash -c "set -o pipefail; timeout 20 '$FAKE' status --watch | head -1"
    [[ "$output" == "daemon: none"* ]]
    run -0 bash -c "set -o pipefail; '$FAKE' -q run '$DIR/in.csv' -o - | true"
    [ -z "$output" ]
}

@test "jobs and databases that are not there: exit 4" {
    run -4 "$BATCHD" status
    [[ "$output" == *"$BATCHD_DB"* ]]
    "$FAKE" -q serve --once
    run -2 "$BATCHD" wait x
    [[ "$output" == *"by its number"* ]]
    run -4 "$BATCHD" status 9
    [[ "$output" == *"no job 9"* ]]
    run -4 "$BATCHD" wait --key none
    run -4 "$BATCHD" results 9
    run -4 "$BATCHD" export 9
    run -4 "$BATCHD" cancel 9
}
