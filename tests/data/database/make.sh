#!/bin/bash
# Make versionN.db: what a batchd of schema version N leaves behind when it is killed
# halfway. Run from the root of a tree whose build is that version; a file is made once
# and never again, for it stands for databases that people have.
#
#   tests/data/database/make.sh build N
#
# Job 1 is done (CSV, a reject, a failed row, text that is compressed), job 2 has some
# results and a lease of a daemon that is dead, job 3 is cancelled, job 4 is queued. From
# version 2 on the model of job 2 is registered too, as "demo".
set -euo pipefail
fake=$1/tests/batchd-fake
out=tests/data/database/version$2.db
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
db=$dir/version$2.db
batchd() { "$fake" -q --db "$db" "$@"; }

printf 'id,prompt,@max_tokens,@ignore_eos\none,"First, with a comma",9,\ntwo,Zweite Zeile: Grüße,900,true\nbad,row\nthree,Third,9,\nfour,Fourth,9,\n' >"$dir/one.csv"
python3 -c 'import json
for i in range(600): print(json.dumps({"prompt": f"row {i}", "id": f"r{i}", "max_tokens": 3 + i % 5}))' >"$dir/two.jsonl"
(cd "$dir" && FAKE_ROW_ERROR=3 "$OLDPWD/$fake" -q --db "$db" run one.csv --reject skip --temperature 0.5 --seed 9) || [ $? -eq 3 ]
(cd "$dir" && "$OLDPWD/$fake" -q --db "$db" submit two.jsonl --key night -m "$OLDPWD/tests/models/demo")
FAKE_TOKENS_PER_S=2000 "$fake" -q --db "$db" serve &
pid=$!
until [ "$(sqlite3 "$db" 'SELECT count(*) FROM result WHERE id >= 2 << 32')" -gt 100 ]; do sleep 0.05; done
kill -KILL $pid
wait $pid || true
(cd "$dir" && "$OLDPWD/$fake" -q --db "$db" submit one.csv --reject skip --name third)
batchd cancel 3
(cd "$dir" && "$OLDPWD/$fake" -q --db "$db" submit one.csv --reject skip --name fourth --priority 3)
if [ "$2" -ge 2 ]; then
    batchd models add tests/models/demo --name demo
    sqlite3 "$db" "UPDATE model SET path = '/models/demo'"
fi
sqlite3 "$db" "UPDATE job SET model = '/models/demo' WHERE model IS NOT NULL; PRAGMA wal_checkpoint(TRUNCATE); VACUUM"
cp "$db" "$out"
