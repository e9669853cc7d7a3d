#!/usr/bin/env bats
# SIGKILL at random moments (tests/kill_test.py says what must hold).

load aid

kills() { [ -n "${BATCHD_QUICK:-}" ] && echo "$1" || echo "$2"; }

@test "serve is killed at random moments of one job" {
    n=$(kills 20 200)
    run -0 --separate-stderr python3 tests/kill_test.py "$FAKE" --kills "$n" --rows $((n * 200))
    echo "# note: $output" >&3
}

@test "the same with a real model" {
    n=$(kills 5 15) per_kill=600
    case $BUILD in */asan | */tsan) per_kill=60 ;; esac
    run -0 --separate-stderr python3 tests/kill_test.py "$BATCHD" --kills "$n" --rows $((n * per_kill)) --model tests/models/demo
    echo "# note: $output" >&3
}
