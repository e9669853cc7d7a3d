/* profile.c - where a device's time goes. A backend can only note the time when it gets to
 * some point of its queue, and say afterwards how much lies between two such stamps; what
 * the stamps stand for is decided here, alike for all backends.
 *
 *   stamps  0 ..           DEV_STAMPS: the caller's
 *           DEV_STAMPS ..  begin and end of the last 16 steps, two each */
#include "kernels/backend.h"

#include <assert.h>

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

int64_t dev_step_begin(struct dev *dev) {
    dev->backend->stamp(dev, stamp_of_step(dev->n_steps));
    return dev->n_steps++;
}

void dev_step_end(struct dev *dev) {
    assert(dev->n_steps > 0);
    dev->backend->stamp(dev, stamp_of_step(dev->n_steps - 1) + 1);
}

struct dev_step_time dev_step_time(struct dev *dev, int64_t step) {
    const struct backend *b = dev->backend;
    int32_t begin = stamp_of_step(step);
    struct dev_step_time t = {0};
    assert(step >= 0 && step < dev->n_steps && dev->n_steps - step < STEP_STAMPS / 2);
    if (dev->failed.code) return t;
    t.busy_ns = (int64_t)b->stamp_ns(dev, begin, begin + 1);
    if (step > 0) t.gap_ns = (int64_t)b->stamp_ns(dev, stamp_of_step(step - 1) + 1, begin);
    return t;
}
