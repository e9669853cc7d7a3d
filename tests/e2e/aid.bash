# aid.bash - what every end-to-end test begins with. Tests run from the repository root.
#
# BUILD    the build folder, absolute: $BATCHD_BUILD, else build
# BATCHD   the program; FAKE: the same with the fake engine (tests/fake)
# DIR      a fresh folder of this test; BATCHD_DB is in it

bats_require_minimum_version 1.5.0
BUILD=$(realpath "${BATCHD_BUILD:-build}")
BATCHD=$BUILD/batchd
FAKE=$BUILD/tests/batchd-fake

aid_setup() {
    DIR=$BATS_TEST_TMPDIR
    export BATCHD_DB=$DIR/t.db XDG_CACHE_HOME=$DIR/cache
    unset NO_COLOR FAKE_TOKENS_PER_S FAKE_LATENCY_MS FAKE_FAIL_AT FAKE_FAIL_LATE FAKE_ROW_ERROR FAKE_ABORT_ROW
}

# Until a daemon holds the lock of $BATCHD_DB, 10 seconds at most.
wait_for_daemon() {
    for _ in $(seq 200); do
        [ -e "$BATCHD_DB.lock" ] && ! flock -n -s "$BATCHD_DB.lock" true && return
        sleep 0.05
    done
    return 1
}
