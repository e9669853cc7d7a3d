/* locks.c - see locks.h. */
#include "jobs/locks.h"
#include "base/buf.h"
#include "base/clock.h"
#include "jobs/jobs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { RETRY_MS = 50, LEAST_WAIT_MS = 100 };

static int open_lock(int *fd, const char *db_path, int flags, struct err *err) {
    struct buf path = BUF_INIT(0);
    buf_printf(&path, "%s.lock", db_path);
    int r = 0, got = open(path.data, O_CLOEXEC | O_NOFOLLOW | flags, 0600);
    if (got >= 0) *fd = got;
    else
        r = err_set(err, errno == EACCES || errno == EROFS ? E_PERMISSION : errno == ENOSPC ? E_FULL : E_IO,
                    "cannot open %s: %s; check the owner and mode of the folder", path.data, strerror(errno));
    buf_clear(&path);
    return r;
}

static int read_pid(int fd) {
    char text[32] = {0};
    return pread(fd, text, sizeof text - 1, 0) > 0 ? atoi(text) : 0;
}

static int write_pid(int fd, const char *db_path, struct err *err) {
    char text[32];
    int n = snprintf(text, sizeof text, "%d\n", (int)getpid());
    if (ftruncate(fd, 0) == 0 && pwrite(fd, text, (size_t)n, 0) == n) return 0;
    return err_set(err, errno == ENOSPC ? E_FULL : E_IO, "cannot write %s.lock: %s", db_path, strerror(errno));
}

/* Who may read the database may see whether it is served. */
static void take_mode_of(int fd, const char *db_path) {
    struct stat st;
    if (stat(db_path, &st) == 0 && fchmod(fd, st.st_mode & 0666) < 0) return; /* somebody else's: it has a mode */
}

int lock_daemon(int *fd, const char *db_path, int64_t wait_ms, struct err *err) {
    int got = -1, r = open_lock(&got, db_path, O_RDWR | O_CREAT, err);
    if (r < 0) return r;
    /* Somebody who only looks (worker_is_alive) holds the lock for a moment too. */
    if (wait_ms < LEAST_WAIT_MS) wait_ms = LEAST_WAIT_MS;
    int64_t deadline = clock_mono_ns() + wait_ms * 1000000;
    while (r == 0 && flock(got, LOCK_EX | LOCK_NB) < 0) {
        if (clock_mono_ns() < deadline) clock_sleep_ms(RETRY_MS);
        else r = err_set(err, E_BUSY, "another batchd (pid %d) serves %s; wait for it or stop it", read_pid(got), db_path);
    }
    if (r == 0) r = write_pid(got, db_path, err);
    if (r == 0) take_mode_of(got, db_path);
    if (r == 0) *fd = got;
    else close(got);
    return r;
}

int lock_loader(int *fd, const char *db_path, int64_t job_id, struct err *err) {
    struct flock byte = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 1 + job_id, .l_len = 1};
    int got = -1, r = open_lock(&got, db_path, O_RDWR | O_CREAT, err);
    if (r < 0) return r;
    if (fcntl(got, F_OFD_SETLK, &byte) == 0) {
        *fd = got;
        return 0;
    }
    close(got);
    return err_set(err, E_BUSY, "job %lld is being loaded by another process", (long long)job_id);
}

bool worker_is_alive(const char *db_path, int *pid) {
    int fd = -1;
    if (open_lock(&fd, db_path, O_RDONLY, NULL) < 0) return false;
    bool alive = flock(fd, LOCK_SH | LOCK_NB) < 0;
    if (alive && pid) *pid = read_pid(fd);
    close(fd);
    return alive;
}
