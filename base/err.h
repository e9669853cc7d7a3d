/* err.h - how functions tell what went wrong.
 *
 * A function that can fail for a reason outside the program returns 0 or a
 * negative E_* code and puts one line of text into the caller's struct err. The
 * text says what is wrong, not what the caller was doing; err_wrap() adds the
 * context when the error leaves a module. It is shown once, at the top.
 *
 * A caller's own mistake is an assert, not an error. A struct err belongs to
 * whoever declared it; a NULL err is allowed and loses the text. */
#ifndef BATCHD_BASE_ERR_H
#define BATCHD_BASE_ERR_H

#ifdef __cplusplus
extern "C" {
#endif

enum {
    E_OK = 0,
    E_FAIL = -1,         /* none of the below */
    E_USAGE = -2,        /* the caller's flags or settings make no sense together */
    E_NOT_FOUND = -3,    /* no such job, model, file */
    E_IO = -4,           /* the operating system refused a read, write or sync */
    E_PARSE = -5,        /* bytes that are not what they claim to be */
    E_UNSUPPORTED = -6,  /* well-formed, but not built */
    E_RANGE = -7,        /* a value outside its limits */
    E_FULL = -8,         /* no room: pool, disk, ceiling of a buffer */
    E_BUSY = -9,         /* somebody else holds it; try again later */
    E_PERMISSION = -10,  /* not allowed */
    E_EXISTS = -11,      /* would overwrite */
    E_DEVICE = -12,      /* no usable device, or the device failed */
    E_FENCED = -13,      /* another daemon has taken over this database */
    E_INTERRUPTED = -14, /* asked to stop */
    E_NO_MEMORY = -15,   /* an allocation whose size came from outside failed */
    E_CONFIG = -16,      /* configuration file or installation */
};

struct err {
    int code;        /* E_*, 0 = none */
    char text[1000]; /* one line, no newline, always terminated */
};

#define ERR_INIT {0, {0}}

/* Set code and text; returns code, so that `return err_set(...)` reads well. */
int err_set(struct err *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Put "fmt: " before the text that is there; returns the code that is there. */
int err_wrap(struct err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#ifdef __cplusplus
}
#endif
#endif
