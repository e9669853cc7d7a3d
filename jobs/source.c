/* source.c - see source.h. */
#include "jobs/source.h"
#include "base/mapped.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { READ_MAX = 256 << 20 };

static int read_error(const char *what, struct err *err) {
    if (errno == EINTR) return err_set(err, E_INTERRUPTED, "stopped; nothing was stored");
    return err_set(err, E_IO, "cannot read %s: %s", what, strerror(errno));
}

/* A pipe cannot be mapped: copy it to a file without a name. */
static int spool(int from, const char *name, struct err *err) {
    const char *dir = getenv("TMPDIR");
    int to = open(dir && *dir ? dir : "/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (to < 0)
        return err_set(err, E_IO, "cannot make a temporary file in %s: %s; name another folder in TMPDIR",
                       dir && *dir ? dir : "/tmp", strerror(errno));
    char block[65536];
    ssize_t n;
    while ((n = read(from, block, sizeof block)) > 0)
        for (ssize_t done = 0, m; done < n; done += m)
            if ((m = write(to, block + done, (size_t)(n - done))) < 0) {
                close(to);
                return err_set(err, errno == ENOSPC ? E_FULL : E_IO, "cannot spool the input: %s", strerror(errno));
            }
    if (n == 0) return to;
    int r = read_error(name, err);
    close(to);
    return r;
}

/* A file that somebody cuts short while it is mapped is a SIGBUS; one of ordinary size is
 * therefore read, and what was there is what counts. */
static int read_whole(struct source *out, int fd, size_t size, struct err *err) {
    size_t n = 0;
    ssize_t got = 1;
    while (n < size && (got = pread(fd, (char *)out->map + n, size - n, (off_t)n)) > 0) n += (size_t)got;
    if (got < 0) return read_error(out->name, err);
    out->data = out->map;
    out->size = n;
    return 0;
}

static int map(struct source *out, int fd, struct err *err) {
    struct stat st;
    if (fstat(fd, &st) < 0) return err_set(err, E_IO, "%s: %s", out->name, strerror(errno));
    if (st.st_size == 0) return 0;
    bool is_small = st.st_size <= READ_MAX;
    out->mapped = (size_t)st.st_size;
    out->map = mmap(NULL, out->mapped, is_small ? PROT_READ | PROT_WRITE : PROT_READ,
                    MAP_PRIVATE | (is_small ? MAP_ANONYMOUS : 0), is_small ? -1 : fd, 0);
    if (out->map == MAP_FAILED) {
        out->map = NULL;
        return err_set(err, E_IO, "cannot map %s: %s", out->name, strerror(errno));
    }
    if (is_small) return read_whole(out, fd, (size_t)st.st_size, err);
    mapped_note(out->map, out->mapped, out->name);
    madvise(out->map, (size_t)st.st_size, MADV_SEQUENTIAL);
    out->data = out->map;
    out->size = (size_t)st.st_size;
    return 0;
}

/* What is told from the first bytes: every line of it would be bad, for no reason that helps. */
static int check_beginning(const struct source *s, struct err *err) {
    static const struct {
        const char *bytes;
        size_t n;
        const char *is;
    } foreign[] = {
        {"\x1f\x8b", 2, "compressed with gzip; unpack it first, or pipe what zcat makes of it to -"},
        {"\x28\xb5\x2f\xfd", 4, "compressed with zstd; unpack it first, or pipe what zstdcat makes of it to -"},
        {"\xfd" "7zXZ", 5, "compressed with xz; unpack it first, or pipe what xzcat makes of it to -"},
        {"PK\3\4", 4, "a zip archive or a workbook; unpack it, or save it as CSV in UTF-8"},
        {"\xff\xfe", 2, "in UTF-16; convert it to UTF-8, for instance with iconv"},
        {"\xfe\xff", 2, "in UTF-16; convert it to UTF-8, for instance with iconv"},
    };
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++)
        if (s->size >= foreign[i].n && memcmp(s->data, foreign[i].bytes, foreign[i].n) == 0)
            return err_set(err, E_PARSE, "%s is %s", s->name, foreign[i].is);
    return 0;
}

static int open_file(const char *path, int *fd, struct err *err) {
    *fd = open(path, O_RDONLY | O_CLOEXEC);
    if (*fd >= 0) return 0;
    if (errno == EINTR) return read_error(path, err);
    return err_set(err, errno == ENOENT ? E_NOT_FOUND : E_IO, "cannot open %s: %s", path, strerror(errno));
}

bool source_is_read_once(const char *path) {
    struct stat st;
    return strcmp(path, "-") == 0 || (stat(path, &st) == 0 && (S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode)));
}

int source_open(struct source *out, const char *path, struct err *err) {
    struct source s = {.name = path, .data = ""};
    struct stat st;
    int r = 0, fd = STDIN_FILENO;
    bool is_stdin = strcmp(path, "-") == 0;
    if (is_stdin) s.name = "standard input";
    else if ((r = open_file(path, &fd, err)) < 0) return r;
    if (fstat(fd, &st) < 0) r = err_set(err, E_IO, "%s: %s", s.name, strerror(errno));
    else if (S_ISDIR(st.st_mode)) r = err_set(err, E_IO, "%s is a folder, not a file of prompts", s.name);
    else if (S_ISBLK(st.st_mode) || (S_ISCHR(st.st_mode) && !is_stdin))
        r = err_set(err, E_IO, "%s is a device, not a file of prompts", s.name);
    else if (!S_ISREG(st.st_mode)) {
        int spooled = spool(fd, s.name, err);
        if (!is_stdin) close(fd);
        fd = spooled;
        is_stdin = false;
        r = fd < 0 ? fd : 0;
    }
    if (r == 0) r = map(&s, fd, err);
    if (r == 0) r = check_beginning(&s, err);
    if (fd >= 0 && !is_stdin) close(fd);
    if (r == 0) *out = s;
    else source_close(&s);
    return r;
}

void source_close(struct source *s) {
    mapped_forget(s->map);
    if (s->map) munmap(s->map, s->mapped);
    *s = (struct source){0};
}
