/* file.c - see file.h. */
#include "base/file.h"
#include "base/buf.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int file_read(const char *path, size_t max, char **data, size_t *n, struct err *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_set(err, errno == ENOENT || errno == ENOTDIR ? E_NOT_FOUND : E_IO, "cannot open %s: %s", path,
                       strerror(errno));
    int r = 0;
    struct buf b = BUF_INIT(max);
    struct stat st;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        r = err_set(err, E_IO, "%s is not a regular file", path);
        goto out;
    }
    if (st.st_size > 0 && (size_t)st.st_size > max) {
        r = err_set(err, E_RANGE, "%s has %lld bytes, more than the %zu allowed", path, (long long)st.st_size, max);
        goto out;
    }
    char chunk[65536];
    ssize_t got;
    while ((got = read(fd, chunk, sizeof chunk)) > 0) buf_append(&b, chunk, (size_t)got);
    if (got < 0) r = err_set(err, E_IO, "cannot read %s: %s", path, strerror(errno));
    else if (b.full) r = err_set(err, E_RANGE, "%s is larger than the %zu bytes allowed", path, max);
    if (r < 0) goto out;
    *n = b.n;
    *data = buf_take(&b);
out:
    buf_clear(&b);
    close(fd);
    return r;
}

char *path_join(const char *dir, const char *name) {
    struct buf b = BUF_INIT(0);
    buf_puts(&b, dir);
    if (b.n && b.data[b.n - 1] != '/') buf_putc(&b, '/');
    buf_puts(&b, name);
    return buf_take(&b);
}

struct file_new {
    char *path; /* the name it will have */
    char *temp; /* the name it has until then */
    FILE *stream;
};

static int create_error(struct err *err, const char *path) {
    int code = errno == EACCES || errno == EPERM || errno == EROFS ? E_PERMISSION : errno == ENOSPC ? E_FULL : E_IO;
    return err_set(err, code, "cannot create %s: %s", path, strerror(errno));
}

/* A new file beside `path`, with a name that nobody has. Not mkstemp, whose files are their
 * owner's alone: this one shall have the rights that the umask leaves. */
static int create_beside(struct buf *temp, const char *path) {
    static atomic_uint count;
    for (int i = 0; i < 100; i++) {
        uint64_t key[] = {(uint64_t)getpid(), (uint64_t)clock_wall_us(), count++};
        buf_reset(temp);
        buf_printf(temp, "%s.tmp-%016" PRIx64, path, hash64(key, sizeof key, 0));
        int fd = open(temp->data, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd >= 0 || errno != EEXIST) return fd;
    }
    return -1;
}

/* What a symbolic link names, whether it is there or not; the path itself where it is none. NULL and errno
 * when links go round. */
static char *behind_links(const char *path) {
    enum { MOST = 40 }; /* as Linux follows */
    char *at = mem_strdup(path), target[4096];
    ssize_t n;
    for (int i = 0; (n = readlink(at, target, sizeof target - 1)) > 0; i++) {
        target[n] = 0;
        char *next = target[0] == '/' ? mem_strdup(target) : path_join(dirname(at), target);
        free(at);
        at = next;
        if (i < MOST) continue;
        free(at);
        errno = ELOOP;
        return NULL;
    }
    return at;
}

int file_new_open(struct file_new **out, const char *path, struct err *err) {
    struct buf temp = BUF_INIT(0);
    char *real = behind_links(path);
    int fd = real ? create_beside(&temp, real) : -1;
    if (fd < 0) {
        int r = create_error(err, real ? real : path);
        buf_clear(&temp);
        free(real);
        return r;
    }
    struct file_new *f = mem_zalloc(1, sizeof *f);
    f->path = real;
    f->temp = buf_take(&temp);
    f->stream = fdopen(fd, "w");
    if (!f->stream) abort();
    *out = f;
    return 0;
}

FILE *file_new_stream(struct file_new *f) {
    return f->stream;
}

const char *file_new_path(const struct file_new *f) {
    return f->temp;
}

static void forget(struct file_new *f) {
    free(f->path);
    free(f->temp);
    free(f);
}

void file_new_abort(struct file_new *f) {
    if (!f) return;
    fclose(f->stream);
    unlink(f->temp);
    forget(f);
}

/* The rename is durable only once the folder is synced. */
static void sync_folder_of(const char *path) {
    char *copy = mem_strdup(path);
    int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    free(copy);
}

int file_new_commit(struct file_new *f, struct err *err) {
    bool ok = fflush(f->stream) == 0 && !ferror(f->stream) && fsync(fileno(f->stream)) == 0;
    if (ok) ok = rename(f->temp, f->path) == 0;
    if (!ok) {
        int code = errno == ENOSPC ? E_FULL : E_IO;
        int r = err_set(err, code, "cannot write %s: %s", f->path, strerror(errno));
        file_new_abort(f);
        return r;
    }
    fclose(f->stream);
    sync_folder_of(f->path);
    forget(f);
    return 0;
}
