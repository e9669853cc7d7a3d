/* clock.h - the two clocks. Durations come from the monotonic one only; the
 * wall clock is for people and for rows that outlive a boot. */
#ifndef BATCHD_BASE_CLOCK_H
#define BATCHD_BASE_CLOCK_H

#include <stdint.h>

int64_t clock_mono_ns(void); /* since some fixed moment; never goes back */
int64_t clock_wall_us(void); /* since 1970-01-01 UTC */
void clock_sleep_ms(int64_t ms);

#endif
