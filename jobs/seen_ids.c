/* seen_ids.c - see seen_ids.h. Open addressing, one place after the other. */
#include "jobs/seen_ids.h"
#include "base/hash.h"
#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

struct seen_id {
    uint64_t a, b;
    int64_t line; /* 0 = empty place */
};

/* The id's place, or the empty one that it would take. */
static struct seen_id *place_of(const struct seen_ids *seen, uint64_t a, uint64_t b) {
    size_t at = a & (seen->size - 1);
    while (seen->table[at].line && !(seen->table[at].a == a && seen->table[at].b == b)) at = (at + 1) & (seen->size - 1);
    return &seen->table[at];
}

static void grow(struct seen_ids *seen) {
    struct seen_ids old = *seen;
    seen->size = old.size ? old.size * 2 : 4096;
    seen->table = mem_zalloc(seen->size, sizeof *seen->table);
    for (size_t i = 0; i < old.size; i++)
        if (old.table[i].line) *place_of(seen, old.table[i].a, old.table[i].b) = old.table[i];
    free(old.table);
}

int64_t seen_ids_add(struct seen_ids *seen, const char *id, int64_t line) {
    size_t n = strlen(id);
    uint64_t a = hash64(id, n, 1), b = hash64(id, n, 2);
    if (seen->n * 2 >= seen->size) grow(seen);
    struct seen_id *place = place_of(seen, a, b);
    if (place->line) return place->line;
    *place = (struct seen_id){a, b, line};
    seen->n++;
    return 0;
}

void seen_ids_clear(struct seen_ids *seen) {
    free(seen->table);
    *seen = (struct seen_ids){0};
}
