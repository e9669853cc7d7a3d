/* profile.c - where a device's time goes. A backend can only note the time when it gets to
 * some point of its queue, and say afterwards how much lies between two such stamps; what
 * the stamps stand for is decided here, alike for all backends.
 *
 *   stamps  0 ..           DEV_STAMPS: the caller's
 *           DEV_STAMPS ..  begin and end of the last 16 steps, two each
 *           behind these   before each operation of the step that is profiled
 *
 * An operation's time is that to the next one's begin, so a profiled step costs one stamp an
 * operation, and waits for the host between two operations count for the first of them. */
#include "kernels/backend.h"

#include "base/hash.h"

#include <assert.h>

enum { PROFILE_BEGIN = DEV_STAMPS + STEP_STAMPS };

static int32_t stamp_of_step(int64_t step) {
    return DEV_STAMPS + (int32_t)(2 * step % STEP_STAMPS);
}

void dev_stamp(struct dev *dev, int32_t stamp) {
    assert(stamp >= 0 && stamp < DEV_STAMPS);
    dev->backend->stamp(dev, stamp);
}

double dev_stamp_ns(struct dev *dev, int32_t from, int32_t to) {
    dev->backend->sync(dev);
    return dev->failed.code == 0 ? dev->backend->stamp_ns(dev, from, to) : 0;
}

/* ---------------------------------------------------------------- operations of a step */

const char *op_class_name(enum op_class c) {
    static const char *const names[] = {[CLASS_LINEAR] = "linear", [CLASS_ATTENTION] = "attention", [CLASS_NORM] = "norm",
                                        [CLASS_QKV] = "rope_kv",   [CLASS_ACTIVATION] = "activation",
                                        [CLASS_EMBED] = "embed_gather", [CLASS_SAMPLE] = "sample"};
    return names[c];
}

void dev_profile(struct dev *dev, int32_t every) {
    dev->profile.every = every;
}

void dev_profile_read(const struct dev *dev, struct dev_profile *out) {
    *out = dev->profile.sums;
}

/* The first steps choose matrix products and say nothing about the others. */
static bool is_chosen(const struct profile *p, int64_t step) {
    if (p->every == 0 || p->is_noted) return false;
    return p->every == 1 || (step >= p->every && hash64_mix(1, (uint64_t)step) % (uint64_t)p->every == 0);
}

/* For people who look at a step with a profiler: a range for the step, and in it one for each
 * operation, closed when the next begins. */
static void close_range(struct dev *dev) {
    if (dev->profile.in_range) dev->backend->range_pop();
    dev->profile.in_range = false;
}

static void open_range(struct dev *dev, enum op_class c) {
    close_range(dev);
    if (!dev->profile.in_step || !dev->backend->range_push) return;
    dev->backend->range_push(op_class_name(c));
    dev->profile.in_range = true;
}

void profile_op(struct dev *dev, enum op_class c) {
    struct profile *p = &dev->profile;
    open_range(dev, c);
    if (!p->is_noting) return;
    if (p->n < PROFILE_STAMPS) {
        p->classes[p->n] = (uint8_t)c;
        dev->backend->stamp(dev, PROFILE_BEGIN + p->n);
    }
    p->n++;
}

/* Take the times of the profiled step in; one with more operations than stamps is left out. */
static void read_profile(struct dev *dev, int32_t end, int64_t busy_ns) {
    struct profile *p = &dev->profile;
    p->is_noted = false;
    if (p->n > PROFILE_STAMPS) return;
    for (int32_t i = 0; i < p->n; i++) {
        int32_t next = i + 1 < p->n ? PROFILE_BEGIN + i + 1 : end;
        p->sums.ns[p->classes[i]] += (int64_t)dev->backend->stamp_ns(dev, PROFILE_BEGIN + i, next);
        p->sums.n_ops[p->classes[i]]++;
    }
    p->sums.n_steps++;
    p->sums.busy_ns += busy_ns;
}

/* ---------------------------------------------------------------- steps */

int64_t dev_step_begin(struct dev *dev) {
    struct profile *p = &dev->profile;
    int64_t step = dev->n_steps++;
    assert(!p->in_step);
    p->in_step = true;
    if (dev->backend->range_push) dev->backend->range_push("step");
    dev->backend->stamp(dev, stamp_of_step(step));
    p->is_noting = is_chosen(p, step);
    if (p->is_noting) {
        p->step = step;
        p->n = 0;
    }
    return step;
}

void dev_step_end(struct dev *dev) {
    assert(dev->profile.in_step);
    dev->backend->stamp(dev, stamp_of_step(dev->n_steps - 1) + 1);
    close_range(dev);
    if (dev->backend->range_pop) dev->backend->range_pop();
    dev->profile.in_step = false;
    if (dev->profile.is_noting) dev->profile.is_noted = true;
    dev->profile.is_noting = false;
}

struct dev_step_time dev_step_time(struct dev *dev, int64_t step) {
    const struct backend *b = dev->backend;
    int32_t begin = stamp_of_step(step);
    struct dev_step_time t = {0};
    assert(step >= 0 && step < dev->n_steps && dev->n_steps - step < STEP_STAMPS / 2);
    if (dev->failed.code) return t;
    t.busy_ns = (int64_t)b->stamp_ns(dev, begin, begin + 1);
    if (dev->profile.is_noted && dev->profile.step == step) read_profile(dev, begin + 1, t.busy_ns);
    if (step > 0) t.gap_ns = (int64_t)b->stamp_ns(dev, stamp_of_step(step - 1) + 1, begin);
    return t;
}
