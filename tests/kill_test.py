#!/usr/bin/env python3
"""Kill `batchd serve` with SIGKILL at random moments of one job, and look for harm.

    kill_test.py PROGRAM --kills N [--rows N] [--model DIR] [--seed N]

Between kills: no result is lost and none has changed. At the end: every row has
exactly one result, the insert log (kept by a trigger) has no id twice, every text
equals that of an undisturbed run, and the database passes integrity_check. Prints
how many kills met rows in flight; fewer than 80 % is a failure of the test itself.
"""
import argparse
import os
import pathlib
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time


def check(ok, what):
    if not ok:
        sys.exit(f"FAILED: {what}")


def batchd(args, *words, env=None):
    return subprocess.run([args.program, "--db", str(args.db), *words], check=True, text=True, env=env,
                          stdout=subprocess.PIPE).stdout


def submit(args, db):
    args.db = db
    extra = ["--model", args.model] if args.model else []
    return int(batchd(args, "submit", str(args.input), "--parsable", "--prompt-col", "prompt", "--max-tokens", "16",
                      "--temperature", "0.8", *extra))


def results(db):
    """id -> (codec, text) of all results."""
    with sqlite3.connect(db) as c:
        return {i: (codec, text) for i, codec, text in c.execute("SELECT id, codec, completion FROM result")}


def in_flight(db):
    """Rows that were leased and have no result."""
    with sqlite3.connect(db) as c:
        leased = c.execute("SELECT coalesce(sum(n_rows), 0) FROM lease WHERE state = 1").fetchone()[0]
        done = c.execute("SELECT count(*) FROM lease l JOIN result r ON r.id BETWEEN (l.job_id << 32) + l.first_row"
                         " AND (l.job_id << 32) + l.first_row + l.n_rows - 1 WHERE l.state = 1").fetchone()[0]
    return leased - done


def start(args, env):
    return subprocess.Popen([args.program, "--db", str(args.db), "-q", "serve"], env=env, stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)


def time_to_first_lease(args, env):
    """Seconds from the start of a daemon until rows are in flight; it is killed then."""
    begin, p = time.monotonic(), start(args, env)
    while in_flight(args.db) == 0:
        check(p.poll() is None and time.monotonic() - begin < 60, "serve leases nothing")
        time.sleep(0.005)
    p.kill()
    p.wait()
    return time.monotonic() - begin


def one_life(args, env, shortest):
    """Start the daemon, let it work for a random while, kill it."""
    p = start(args, env)
    time.sleep(args.rng.uniform(shortest, shortest + args.longest))
    check(p.poll() is None, f"serve ended by itself with {p.returncode}")
    p.send_signal(signal.SIGKILL)
    p.wait()


def kill_loop(args, env):
    before, met = {}, 0
    shortest = 0.8 * time_to_first_lease(args, env) # a slow build starts slowly
    for n in range(args.kills):
        one_life(args, env, shortest)
        now = results(args.db)
        met += in_flight(args.db) > 0
        check(before.keys() <= now.keys(), f"kill {n}: {len(before.keys() - now.keys())} results are gone")
        changed = [i for i in before if before[i] != now[i]]
        check(not changed, f"kill {n}: {len(changed)} results have changed")
        before = now
    return met


def check_end(args, job, reference):
    with sqlite3.connect(args.db) as c:
        state, rows, done, failed = c.execute("SELECT state, n_rows, n_done, n_failed FROM job WHERE job_id = ?",
                                              (job,)).fetchone()
        check(state == "done", f"the job is {state}")
        check(done == rows and failed == 0, f"{done} of {rows} rows are done, {failed} failed")
        log = c.execute("SELECT count(*), count(DISTINCT id) FROM insert_log").fetchone()
        check(log == (rows, rows), f"the insert log has {log[0]} entries of {log[1]} rows, not {rows}")
        check(c.execute("PRAGMA integrity_check").fetchone()[0] == "ok", "integrity_check")
    check(results(args.db) == reference, "texts differ from the undisturbed run's")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("program")
    ap.add_argument("--kills", type=int, default=200)
    ap.add_argument("--rows", type=int, default=40000)
    ap.add_argument("--model")
    ap.add_argument("--longest", type=float, default=0.6, help="seconds that the daemon may live beyond its start-up")
    ap.add_argument("--speed", default="12000", help="tokens a second of the fake engine")
    ap.add_argument("--seed", type=int, default=int(time.time()))
    args = ap.parse_args()
    args.rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="batchd-kill-") as folder:
        folder = pathlib.Path(folder)
        args.input = folder / "rows.csv"
        args.input.write_text("id,prompt\n" + "".join(f"r{i},Row number {i} says\n" for i in range(args.rows)))
        submit(args, folder / "calm.db")
        batchd(args, "-q", "serve", "--once")
        reference = results(args.db)
        job = submit(args, folder / "killed.db")
        with sqlite3.connect(args.db) as c:
            c.execute("CREATE TABLE insert_log(n INTEGER PRIMARY KEY, id INTEGER)")
            c.execute("CREATE TRIGGER log_inserts AFTER INSERT ON result BEGIN INSERT INTO insert_log(id) VALUES (new.id); END")
        met = kill_loop(args, {**os.environ, "FAKE_TOKENS_PER_S": args.speed})
        left = args.rows - len(results(args.db))
        batchd(args, "-q", "serve", "--once")
        check_end(args, job, reference)
        print(f"{args.kills} kills, {met} with rows in flight ({100 * met // max(args.kills, 1)} %), {left} of {args.rows} rows"
              f" left after the last; 0 lost, 0 twice, 0 changed; seed {args.seed}")
        check(met * 100 >= 80 * args.kills, "fewer than 80 % of the kills met rows in flight")


main()
