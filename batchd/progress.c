/* progress.c - see progress.h. */
#include "batchd/progress.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "batchd/command.h"
#include "batchd/terminal.h"

#include <inttypes.h>
#include <langinfo.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N_SAMPLES = 16 }; /* of the last seconds, for the rates */

struct sample {
    int64_t ns, n_finished, n_tokens;
};

struct progress {
    bool bar, lines, color, utf8;
    pthread_mutex_t lock; /* the bar may be cleared by a message of another thread */
    bool drawn;
    struct sample samples[N_SAMPLES];
    size_t n_samples, next;
    int64_t last_line_ns;
};

static void clear_locked(struct progress *p) {
    static const char code[] = "\r\033[K";
    if (!p->drawn) return;
    ssize_t n = write(STDERR_FILENO, code, sizeof code - 1);
    (void)n;
    p->drawn = false;
}

/* Runs under the log's lock, just before a message. */
static void before_message(void *arg) {
    struct progress *p = arg;
    pthread_mutex_lock(&p->lock);
    clear_locked(p);
    pthread_mutex_unlock(&p->lock);
}

struct progress *progress_new(const struct args *args) {
    struct progress *p = mem_zalloc(1, sizeof *p);
    bool shown = !args->quiet && !args->no_progress;
    const char *term = getenv("TERM");
    p->bar = shown && isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0;
    p->lines = shown && !p->bar;
    p->color = terminal_has_color(STDERR_FILENO, args->no_color);
    p->utf8 = strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
    p->last_line_ns = clock_mono_ns();
    pthread_mutex_init(&p->lock, NULL);
    if (p->bar) log_set_before(before_message, p);
    return p;
}

int64_t progress_interval_ms(const struct progress *p) {
    return p->bar ? 250 : p->lines ? 1000 : 60000;
}

/* The oldest sample of the window; the new one takes a place at most once a second. */
static struct sample oldest_sample(struct progress *p, const struct sample *now) {
    struct sample *last = &p->samples[(p->next + N_SAMPLES - 1) % N_SAMPLES];
    if (p->n_samples == 0 || now->ns - last->ns >= 1000000000) {
        p->samples[p->next] = *now;
        p->next = (p->next + 1) % N_SAMPLES;
        if (p->n_samples < N_SAMPLES) p->n_samples++;
    }
    return p->samples[p->n_samples < N_SAMPLES ? 0 : p->next];
}

static void describe(struct progress *p, const struct progress_state *s, struct buf *out) {
    struct sample now = {clock_mono_ns(), s->n_finished, s->n_tokens}, then = oldest_sample(p, &now);
    double seconds = (double)(now.ns - then.ns) / 1e9;
    double rows_per_s = seconds > 0.2 ? (double)(now.n_finished - then.n_finished) / seconds : 0;
    double tokens_per_s = seconds > 0.2 ? (double)(now.n_tokens - then.n_tokens) / seconds : 0;
    char done[32], total[32], rate[32], eta[24];
    buf_printf(out, "%s/%s %s  %3d%%", command_count(done, s->n_finished), command_count(total, s->n_total), s->what,
               s->n_total > 0 ? (int)(100.0 * (double)s->n_finished / (double)s->n_total) : 0);
    if (s->n_failed > 0) buf_printf(out, "  %" PRId64 " failed", s->n_failed);
    if (tokens_per_s > 0) buf_printf(out, "  %s tok/s", command_count(rate, (int64_t)tokens_per_s));
    if (s->n_running >= 0) buf_printf(out, "  batch %d", s->n_running);
    if (rows_per_s > 0 && s->n_total > s->n_finished)
        buf_printf(out, "  eta %s", command_duration(eta, (double)(s->n_total - s->n_finished) / rows_per_s));
}

/* |######----| of the width that the words leave. */
static void draw(struct progress *p, const struct progress_state *s, const struct buf *words) {
    struct buf line = BUF_INIT(4096);
    int width = terminal_width(STDERR_FILENO), room = width - (int)words->n - 5;
    if (room > 40) room = 40;
    buf_puts(&line, "\r\033[K");
    if (room >= 8) {
        int full = s->n_total > 0 ? (int)((double)room * (double)s->n_finished / (double)s->n_total) : 0;
        if (p->color) buf_puts(&line, "\033[32m");
        for (int i = 0; i < room; i++) buf_puts(&line, p->utf8 ? i < full ? "█" : "░" : i < full ? "#" : "-");
        if (p->color) buf_puts(&line, "\033[0m");
        buf_puts(&line, " ");
    }
    buf_append(&line, words->data, (int)words->n < width ? words->n : (size_t)(width > 1 ? width - 1 : 0));
    pthread_mutex_lock(&p->lock);
    ssize_t n = write(STDERR_FILENO, line.data, line.n);
    (void)n;
    p->drawn = true;
    pthread_mutex_unlock(&p->lock);
    buf_clear(&line);
}

void progress_update(struct progress *p, const struct progress_state *s) {
    if (!p->bar && !p->lines) return;
    struct buf words = BUF_INIT(1024);
    describe(p, s, &words);
    if (p->bar) {
        draw(p, s, &words);
    } else if (clock_mono_ns() - p->last_line_ns >= 30 * INT64_C(1000000000)) {
        p->last_line_ns = clock_mono_ns();
        log_info("%s", words.data);
    }
    buf_clear(&words);
}

void progress_clear(struct progress *p) {
    pthread_mutex_lock(&p->lock);
    clear_locked(p);
    pthread_mutex_unlock(&p->lock);
}

void progress_free(struct progress *p) {
    if (!p) return;
    log_set_before(NULL, NULL);
    progress_clear(p);
    pthread_mutex_destroy(&p->lock);
    free(p);
}
