/* mailbox.h - a bounded queue of pointers between threads.
 *
 * The only place where threads meet. Ownership of an item moves with it. A
 * closed mailbox takes nothing more but gives out what it holds. */
#ifndef BATCHD_BASE_MAILBOX_H
#define BATCHD_BASE_MAILBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct mailbox;

struct mailbox *mailbox_new(size_t cap);
void mailbox_free(struct mailbox *m); /* must be empty; NULL is fine */

/* Wait for room at most timeout_ms (< 0 = for ever, 0 = not at all). False: the
 * mailbox is full or closed and the item is still the caller's. */
bool mailbox_put(struct mailbox *m, void *item, int64_t timeout_ms);

/* The oldest item, or NULL after timeout_ms, or at once when closed and empty. */
void *mailbox_take(struct mailbox *m, int64_t timeout_ms);

void mailbox_close(struct mailbox *m);
bool mailbox_is_closed(struct mailbox *m);

#endif
