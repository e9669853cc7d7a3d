/* weight_image.c - a quantized weight as bytes in one piece; see ops.h.
 *
 * An image is a head, a record for each segment, and arrays: the codes, the scales of rows,
 * and of each segment that owns them absmax, absmax2 and map. All begin at multiples of ALIGN.
 * Numbers are as this kind of machine has them. */
#include "base/mem.h"
#include "kernels/backend.h"
#include "kernels/ops.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGN = 64, CHUNK = 8 << 20 };

struct image_head {
    int64_t n, k;
    int32_t dtype, quant, n_segments, reserved;
    uint64_t used;
};

struct image_segment {
    int64_t first_row, n_rows, from_row, block;
    uint64_t offset;
    int64_t n_absmax, n_absmax2, n_map;
    int32_t absmax_dtype, is_shared;
    float mean, codes[16];
    int32_t reserved;
};

static size_t aligned(size_t bytes) {
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

static size_t data_bytes(const struct weight *w) {
    return (size_t)w->n_pad * (size_t)w->k_pad / (quant_is_4bit(w->quant) ? 2 : 1);
}

/* The i-th array of a weight; false behind the last. A tensor that is not there has no bytes. */
static bool array_at(const struct weight *w, int i, const void **data, size_t *bytes) {
    struct tensor none = {0}, codes = tensor_1d(w->data, DTYPE_U8, (int64_t)data_bytes(w));
    if (i >= 2 + 3 * w->n_segments) return false;
    const struct weight_segment *s = i < 2 ? NULL : &w->segments[(i - 2) / 3];
    const struct tensor *of_segment[] = {s ? &s->absmax : &none, s ? &s->absmax2 : &none, s ? &s->map : &none};
    const struct tensor *t = i == 0 ? &codes : i == 1 ? &w->scale : s->is_shared ? &none : of_segment[(i - 2) % 3];
    *data = t->data;
    *bytes = t->data ? tensor_bytes(t) : 0;
    return true;
}

static size_t records_bytes(int32_t n_segments) {
    return aligned(sizeof(struct image_head) + (size_t)n_segments * sizeof(struct image_segment));
}

size_t weight_image_bytes(const struct weight *w) {
    size_t all = records_bytes(w->n_segments), bytes;
    const void *data;
    for (int i = 0; array_at(w, i, &data, &bytes); i++) all += aligned(bytes);
    return all;
}

/* ---------------------------------------------------------------- out */

static int64_t count(const struct tensor *t, bool is_shared) {
    return t->data && !is_shared ? t->shape[0] : 0;
}

static char *records_of(const struct weight *w) {
    char *records = mem_zalloc(1, records_bytes(w->n_segments));
    struct image_head head = {.n = w->n, .k = w->k, .dtype = (int32_t)w->dtype, .quant = (int32_t)w->quant,
                              .n_segments = w->n_segments, .used = w->used};
    memcpy(records, &head, sizeof head);
    for (int32_t i = 0; i < w->n_segments; i++) {
        const struct weight_segment *s = &w->segments[i];
        struct image_segment r = {.first_row = s->first_row, .n_rows = s->n_rows, .from_row = s->from_row,
                                  .block = s->block, .offset = s->offset, .is_shared = s->is_shared, .mean = s->mean,
                                  .absmax_dtype = (int32_t)s->absmax.dtype};
        r.n_absmax = count(&s->absmax, s->is_shared);
        r.n_absmax2 = count(&s->absmax2, s->is_shared);
        r.n_map = count(&s->map, s->is_shared);
        memcpy(r.codes, s->codes, sizeof r.codes);
        memcpy(records + sizeof head + (size_t)i * sizeof r, &r, sizeof r);
    }
    return records;
}

static bool read_back(struct dev *dev, void *to, const void *from, size_t bytes) {
    if (dev->backend->weight_read) return dev->backend->weight_read(dev, to, from, bytes);
    memcpy(to, from, bytes);
    return true;
}

static int put_array(struct dev *dev, const char *data, size_t bytes, char *room, weight_image_fn *put, void *arg,
                     struct err *err) {
    for (size_t at = 0; at < bytes; at += CHUNK) {
        size_t n = bytes - at < CHUNK ? bytes - at : CHUNK;
        if (!read_back(dev, room, data + at, n)) return err_set(err, E_DEVICE, "weights cannot be read back");
        memset(room + n, 0, aligned(n) - n);
        int r = put(arg, room, aligned(n), err);
        if (r < 0) return r;
    }
    return 0;
}

int weight_image_write(struct dev *dev, const struct weight *w, weight_image_fn *put, void *arg, struct err *err) {
    char *records = records_of(w), *room = mem_alloc(CHUNK);
    const void *data;
    size_t bytes;
    int r = put(arg, records, records_bytes(w->n_segments), err);
    for (int i = 0; r == 0 && array_at(w, i, &data, &bytes); i++) r = put_array(dev, data, bytes, room, put, arg, err);
    free(records);
    free(room);
    return r;
}

/* ---------------------------------------------------------------- in */

static bool has_no_arrays(const struct image_segment *s) {
    return s->n_absmax == 0 && s->n_absmax2 == 0 && s->n_map == 0;
}

/* Does the tensor whose rows a segment has lie within the codes? */
static bool segment_fits(const struct weight *w, const struct image_segment *s) {
    if (s->first_row < 0 || s->n_rows < 1 || s->from_row < 0 || s->n_rows > w->n || s->from_row > w->n) return false;
    if (!quant_is_4bit(w->quant)) return s->offset == (uint64_t)(s->first_row * w->k_pad) && has_no_arrays(s);
    int64_t n = (s->from_row + s->n_rows) * w->k;
    bool is_nested = s->absmax_dtype == DTYPE_U8;
    if (!quant_block_is_valid(s->block) || s->offset % 4 || s->offset > data_bytes(w)) return false;
    if ((uint64_t)(n + 1) / 2 > data_bytes(w) - s->offset || (!is_nested && s->absmax_dtype != DTYPE_F32)) return false;
    if (s->is_shared) return has_no_arrays(s);
    int64_t blocks = quant_blocks(n, s->block);
    return s->n_absmax >= blocks && s->n_absmax <= w->n * w->k &&
           (is_nested ? s->n_absmax2 == quant_blocks(s->n_absmax, QUANT_NESTED_BLOCK) && s->n_map == 256
                      : s->n_absmax2 == 0 && s->n_map == 0);
}

static struct image_segment record_at(const char *image, int32_t i) {
    struct image_segment s;
    memcpy(&s, image + sizeof(struct image_head) + (size_t)i * sizeof s, sizeof s);
    return s;
}

/* The segment whose tensors a segment has: its own, or another's of the same checkpoint tensor; -1: nobody's. */
static int32_t owner_of(const struct weight *w, const char *image, int32_t n_segments, int32_t i) {
    struct image_segment s = record_at(image, i);
    for (int32_t j = 0; s.is_shared && j < n_segments; j++) {
        struct image_segment o = record_at(image, j);
        if (!o.is_shared && o.offset == s.offset && o.block == s.block &&
            quant_blocks((s.from_row + s.n_rows) * w->k, s.block) <= o.n_absmax)
            return j;
    }
    return s.is_shared ? -1 : i;
}

/* Segments one after another, and room for exactly what they say. */
static bool image_fits(const struct weight *w, const char *image, size_t bytes) {
    struct image_head head;
    if (bytes < sizeof head) return false;
    memcpy(&head, image, sizeof head);
    if (head.n != w->n || head.k != w->k || head.dtype != (int32_t)w->dtype || head.quant != (int32_t)w->quant ||
        head.n_segments < 1 || head.n_segments > w->n || head.used > data_bytes(w) ||
        (size_t)head.n_segments > bytes / sizeof(struct image_segment) || records_bytes(head.n_segments) > bytes)
        return false;
    size_t all = records_bytes(head.n_segments) + aligned(data_bytes(w)) +
                 aligned(w->scale.data ? tensor_bytes(&w->scale) : 0);
    int64_t row = 0;
    for (int32_t i = 0; i < head.n_segments; i++) {
        struct image_segment s = record_at(image, i);
        if (s.first_row != row || !segment_fits(w, &s)) return false;
        row += s.n_rows;
        all += aligned((size_t)s.n_absmax * dtype_bytes(s.absmax_dtype == DTYPE_U8 ? DTYPE_U8 : DTYPE_F32)) +
               aligned((size_t)s.n_absmax2 * 4) + aligned((size_t)s.n_map * 4);
    }
    for (int32_t i = 0; i < head.n_segments; i++)
        if (owner_of(w, image, head.n_segments, i) < 0) return false;
    return row == w->n && all == bytes;
}

/* n numbers of the image that `at` has come to. */
static bool take(struct dev *dev, struct tensor *out, enum dtype dtype, int64_t n, const char **at) {
    if (n == 0) return true;
    struct tensor t = tensor_1d(dev_alloc(dev, (size_t)n * dtype_bytes(dtype)), dtype, n);
    if (!t.data) return false;
    *out = t;
    weight_upload(dev, t.data, *at, tensor_bytes(&t));
    *at += aligned(tensor_bytes(&t));
    return true;
}

static bool take_segments(struct dev *dev, struct weight *w, const char *image, const char *at) {
    bool ok = true;
    for (int32_t i = 0; i < w->n_segments; i++) {
        struct image_segment r = record_at(image, i);
        struct weight_segment *s = &w->segments[i];
        *s = (struct weight_segment){.first_row = r.first_row, .n_rows = r.n_rows, .from_row = r.from_row,
                                     .block = r.block, .offset = r.offset, .is_shared = r.is_shared, .mean = r.mean};
        memcpy(s->codes, r.codes, sizeof s->codes);
        ok = ok && take(dev, &s->absmax, r.absmax_dtype == DTYPE_U8 ? DTYPE_U8 : DTYPE_F32, r.n_absmax, &at) &&
             take(dev, &s->absmax2, DTYPE_F32, r.n_absmax2, &at) && take(dev, &s->map, DTYPE_F32, r.n_map, &at);
    }
    for (int32_t i = 0; i < w->n_segments; i++) {
        const struct weight_segment *owner = &w->segments[owner_of(w, image, w->n_segments, i)];
        w->segments[i].absmax = owner->absmax;
        w->segments[i].absmax2 = owner->absmax2;
        w->segments[i].map = owner->map;
    }
    return ok;
}

bool weight_image_read(struct dev *dev, struct weight *w, const void *image, size_t bytes) {
    struct image_head head;
    assert(w->quant != QUANT_NONE && w->n_segments == 0);
    if (!image_fits(w, image, bytes)) return false;
    memcpy(&head, image, sizeof head);
    const char *at = (const char *)image + records_bytes(head.n_segments);
    weight_upload(dev, w->data, at, data_bytes(w));
    at += aligned(data_bytes(w));
    if (w->scale.data) {
        weight_upload(dev, w->scale.data, at, tensor_bytes(&w->scale));
        at += aligned(tensor_bytes(&w->scale));
    }
    w->used = head.used;
    w->n_segments = head.n_segments;
    w->segments = mem_zalloc((size_t)head.n_segments, sizeof *w->segments);
    if (take_segments(dev, w, image, at)) return true;
    dev_fail(dev, E_NO_MEMORY, "no memory for the scales of a quantized weight");
    return true;
}
