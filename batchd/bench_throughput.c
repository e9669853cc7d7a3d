/* bench_throughput.c - batchd bench throughput: the engine alone, beside what the device could
 * do at best (roof.h) and the rate of the model's matrix products, measured in the same run. */
#include "base/clock.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/mem.h"
#include "batchd/bench.h"
#include "batchd/command.h"
#include "batchd/engine_flags.h"
#include "batchd/exit.h"
#include "batchd/progress.h"
#include "batchd/roof.h"
#include "batchd/signals.h"
#include "batchd/version.h"

#include <inttypes.h>
#include <string.h>

struct plan {
    int32_t input_len, output_len, n_seqs; /* n_seqs: at once */
    int64_t n_prompts;
};

/* One step in so many is profiled. Small ones are replayed from recordings otherwise, which a
 * profiled step is not: it takes much longer, and must be rare. */
enum { PROFILE_EVERY = 32, PROFILE_SMALL_EVERY = 256, SMALL_STEP = 64 };

struct figures {
    double seconds, products_before, products_after; /* token rows per second */
    struct engine_roof roof;
    double roof_tokens_per_s;
    struct roof_step roof_step; /* what it is made of */
    struct engine_stats stats;
    struct engine_profile profile;
    int32_t profile_every;
    double load_s; /* to open the device, load the weights and make room for keys and values */
};

/* Unique ids: no two prompts begin alike, so nothing comes from the prefix cache. */
static struct engine_request *make_request(const struct plan *p, int64_t i, int32_t vocab) {
    struct engine_request *r = engine_request_new();
    r->tag = (uint64_t)i;
    r->n_tokens = (size_t)p->input_len;
    r->tokens = mem_zalloc(r->n_tokens, sizeof *r->tokens);
    for (int32_t k = 0; k < p->input_len; k++)
        r->tokens[k] = (int32_t)(hash64_mix((uint64_t)i, (uint64_t)k + 1) % (uint64_t)vocab);
    r->sampling.max_tokens = p->output_len;
    r->sampling.ignore_eos = true;
    return r;
}

static int collect(struct engine *e, int64_t *n_finished, struct err *err) {
    struct engine_completion *c = engine_collect(e, 200);
    int r = 0;
    if (!c) return engine_failure(e, err);
    ++*n_finished;
    if (c->finish == FINISH_ERROR) r = err_set(err, E_FAIL, "a request failed: %s", c->error);
    engine_completion_free(c);
    return r;
}

static void show(struct progress *progress, struct engine *e, const struct plan *p, int64_t n_finished, int64_t *last_ms) {
    int64_t now = clock_mono_ns() / 1000000;
    if (now - *last_ms < progress_interval_ms(progress)) return;
    *last_ms = now;
    struct engine_stats s;
    engine_stats(e, &s);
    struct progress_state state = {.n_total = p->n_prompts,
                                   .n_finished = n_finished,
                                   .n_tokens = s.n_completion_tokens,
                                   .n_running = s.n_running,
                                   .what = "prompts"};
    progress_update(progress, &state);
}

static int run(struct engine *e, const struct plan *p, const struct args *args, double *seconds, struct err *err) {
    struct progress *progress = progress_new(args);
    int64_t n_given = 0, n_finished = 0, last_ms = 0, start = clock_mono_ns();
    struct engine_request *next = NULL;
    int r = 0;
    while (r == 0 && n_finished < p->n_prompts && !signals_seen()) {
        for (bool taken = true; taken && n_given < p->n_prompts;) {
            if (!next) next = make_request(p, n_given, engine_model(e)->vocab);
            taken = engine_submit(e, next, 0);
            if (taken) {
                next = NULL;
                n_given++;
            }
        }
        r = collect(e, &n_finished, err);
        show(progress, e, p, n_finished, &last_ms);
    }
    *seconds = (double)(clock_mono_ns() - start) / 1e9;
    engine_request_free(next);
    progress_free(progress);
    if (r == 0 && signals_seen()) r = err_set(err, E_INTERRUPTED, "interrupted");
    return r;
}

static struct roof_shape shape_of(const struct plan *p) {
    int64_t at_once = p->n_prompts < p->n_seqs ? p->n_prompts : p->n_seqs;
    return (struct roof_shape){p->input_len, p->output_len, (double)at_once};
}

static int measure(struct engine *e, const struct plan *p, const struct args *args, struct figures *out, struct err *err) {
    struct engine_work work;
    struct roof_shape shape = shape_of(p);
    int r = engine_measure_roof(e, &out->roof, err);
    if (r == 0) r = engine_matmul_rate(e, p->n_seqs, 1.0, &out->products_before, err);
    if (r == 0) r = run(e, p, args, &out->seconds, err);
    if (r == 0) r = engine_matmul_rate(e, p->n_seqs, 1.0, &out->products_after, err);
    if (r == 0) r = engine_profile(e, &out->profile, err);
    if (r < 0) return r;
    engine_work(e, &work);
    engine_stats(e, &out->stats);
    out->roof_step = roof_step(&work, &out->roof, &shape);
    out->roof_tokens_per_s = roof_tokens_per_s(&work, &out->roof, &shape);
    return 0;
}

/* ---------------------------------------------------------------- what is shown */

static double idle_share(const struct engine_device_time *t) {
    int64_t all = t->busy_ns + t->idle_ns;
    return all > 0 ? (double)t->idle_ns / (double)all : 0;
}

static void add_device_time(json_t *o, const struct engine_stats *s) {
    const struct engine_device_time *all = &s->device, *large = &s->device_large;
    json_object_set_new(o, "device_busy_s", json_real((double)all->busy_ns / 1e9));
    json_object_set_new(o, "device_idle_s", json_real((double)all->idle_ns / 1e9));
    json_object_set_new(o, "idle_share", json_real(idle_share(all)));
    json_object_set_new(o, "large_steps", json_integer(large->n_steps));
    json_object_set_new(o, "idle_share_large", large->n_steps ? json_real(idle_share(large)) : json_null());
}

static json_t *roof_json(const struct roof_step *t) {
    double all = t->layers + t->head + t->kv + t->prompt_attention;
    return json_pack("{s:f, s:f, s:f, s:f}", "layers", t->layers / all, "head", t->head / all, "kv", t->kv / all,
                     "prompt_attention", t->prompt_attention / all);
}

static json_t *profile_json(const struct figures *f) {
    const struct engine_profile *p = &f->profile;
    json_t *share = json_object();
    for (int32_t i = 0; i < p->n_classes && p->n_steps > 0; i++)
        json_object_set_new(share, p->classes[i].name, json_real((double)p->classes[i].ns / (double)p->busy_ns));
    return json_pack("{s:I, s:i, s:o}", "steps", (json_int_t)p->n_steps, "every", f->profile_every, "share", share);
}

static json_t *figures_json(struct engine *e, const struct plan *p, const struct figures *f) {
    const struct engine_stats *s = &f->stats;
    double products = (f->products_before + f->products_after) / 2, rows = (double)s->n_step_rows / f->seconds;
    double output = (double)s->n_completion_tokens / f->seconds;
    json_t *o = json_pack("{s:s, s:s, s:I, s:i, s:i, s:I, s:i, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:f, s:f, s:f}", //
                          "device", engine_device_name(e), "family", engine_model(e)->family, "parameters",
                          (json_int_t)engine_model(e)->n_params, "input_len", p->input_len, "output_len", p->output_len,
                          "num_prompts", (json_int_t)p->n_prompts, "max_num_seqs", p->n_seqs, "seconds", f->seconds, //
                          "output_tokens_per_s", output, "total_tokens_per_s",
                          (double)(s->n_completion_tokens + s->n_prompt_tokens) / f->seconds, "requests_per_s",
                          (double)p->n_prompts / f->seconds, "steps", (json_int_t)s->n_steps, "cached_tokens",
                          (json_int_t)s->n_cached_tokens, "preemptions", (json_int_t)s->n_preemptions, //
                          "rows_per_s", rows, "matmul_rows_per_s", products, "fraction_of_matmul", rows / products);
    json_object_set_new(o, "version", json_string(VERSION_TEXT));
    bench_add_roof(o, engine_device_name(e), &f->roof);
    json_object_set_new(o, "roof_tokens_per_s", json_real(f->roof_tokens_per_s));
    json_object_set_new(o, "roof_share", roof_json(&f->roof_step));
    json_object_set_new(o, "fraction_of_roof", json_real(output / f->roof_tokens_per_s));
    json_object_set_new(o, "finite_logits", json_true()); /* a draw from others would have ended the run */
    add_device_time(o, s);
    json_object_set_new(o, "load_s", json_real(f->load_s));
    json_object_set_new(o, "device_open_s", json_real(engine_device_open_s(e)));
    json_object_set_new(o, "profile", profile_json(f));
    return o;
}

static double real(const json_t *o, const char *key) {
    return json_number_value(json_object_get(o, key));
}

static void print_idle(const json_t *o) {
    printf("idle between steps  %.2f %% of the device's time", 100 * real(o, "idle_share"));
    if (real(o, "large_steps") > 0)
        printf("; %.2f %% at the %.0f steps of %d rows or more", 100 * real(o, "idle_share_large"),
               real(o, "large_steps"), ENGINE_LARGE_STEP);
    putchar('\n');
}

static void print_roof(const json_t *o) {
    const json_t *share = json_object_get(o, "roof_share");
    printf("roof                %.1f output tokens/s: layers' products %.1f %%, head %.1f %%, keys and values %.1f %%, "
           "prompts' attention %.1f %%\n",
           real(o, "roof_tokens_per_s"), 100 * real(share, "layers"), 100 * real(share, "head"), 100 * real(share, "kv"),
           100 * real(share, "prompt_attention"));
}

static void print_profile(const struct figures *f) {
    const struct engine_profile *p = &f->profile;
    printf("time on the device  ");
    if (p->n_steps == 0) printf("too few steps: one in %d is profiled\n", f->profile_every);
    if (p->n_steps == 0) return;
    for (int32_t i = 0; i < p->n_classes; i++)
        printf("%s%s %.1f %%", i ? ", " : "", p->classes[i].name, 100 * (double)p->classes[i].ns / (double)p->busy_ns);
    printf("; of %" PRId64 " steps, one in %d\n", p->n_steps, f->profile_every);
}

static void print_figures(const json_t *o, const struct plan *p, const struct figures *f) {
    const char *device = json_string_value(json_object_get(o, "device"));
    printf("device              %s\n", device);
    bench_print_roof(device, &f->roof);
    printf("requests            %" PRId64 " of %d + %d tokens, %d at once\n", p->n_prompts, p->input_len, p->output_len,
           p->n_seqs);
    printf("load                %.2f s, of which %.2f s to open the device\n", real(o, "load_s"), real(o, "device_open_s"));
    printf("time                %.2f s\n", real(o, "seconds"));
    printf("output tokens/s     %.1f\n", real(o, "output_tokens_per_s"));
    printf("total tokens/s      %.1f\n", real(o, "total_tokens_per_s"));
    printf("requests/s          %.2f\n", real(o, "requests_per_s"));
    print_roof(o);
    printf("fraction of roof    %.3f\n", real(o, "fraction_of_roof"));
    printf("steps               %.0f, %.1f rows each\n", real(o, "steps"),
           real(o, "rows_per_s") * real(o, "seconds") / real(o, "steps"));
    print_idle(o);
    print_profile(f);
    printf("cached tokens       %.0f\n", real(o, "cached_tokens"));
    printf("preemptions         %.0f\n", real(o, "preemptions"));
    printf("finite logits       yes, of all tokens\n");
    printf("token rows/s        %.1f\n", real(o, "rows_per_s"));
    printf("matrix products     %.1f rows/s alone, at %d rows a step\n", real(o, "matmul_rows_per_s"), p->n_seqs);
    printf("fraction            %.2f of the matrix products' rate\n", real(o, "fraction_of_matmul"));
}

static int measure_and_show(struct engine *e, struct plan *p, const struct args *args, struct figures *f) {
    struct err err = ERR_INIT;
    p->n_seqs = engine_max_num_seqs(e);
    if (p->input_len + p->output_len > engine_max_model_len(e)) {
        log_error("--input-len %d and --output-len %d are more than the context of %d tokens", p->input_len, p->output_len,
                  engine_max_model_len(e));
        return EXIT_USAGE;
    }
    if (measure(e, p, args, f, &err) < 0) {
        if (err.code == E_INTERRUPTED) return signals_exit_code();
        int code = exit_with(ABOUT_MODEL, &err);
        return err.code == E_DEVICE ? EXIT_ENGINE : code;
    }
    json_t *o = figures_json(e, p, f);
    if (args->json) command_print_json(json_incref(o));
    else print_figures(o, p, f);
    json_decref(o);
    return EXIT_DONE;
}

int bench_throughput(const struct args *args, const char *folder) {
    struct err err = ERR_INIT;
    struct engine_flags flags = {.options = ENGINE_OPTIONS_DEFAULT};
    struct engine *e = NULL;
    struct figures f = {0};
    struct plan p = {.input_len = args->input_len ? (int32_t)args->input_len : 64,
                     .output_len = args->output_len ? (int32_t)args->output_len : 64,
                     .n_prompts = args->num_prompts ? args->num_prompts : 256};
    int code = engine_flags_read(&flags, args);
    flags.options.model_dir = folder;
    bool is_small = flags.options.max_num_seqs > 0 && flags.options.max_num_seqs <= SMALL_STEP;
    f.profile_every = flags.options.profile_every = is_small ? PROFILE_SMALL_EVERY : PROFILE_EVERY;
    signals_listen();
    int64_t start = clock_mono_ns();
    if (code == EXIT_DONE && engine_open(&e, &flags.options, &err) < 0) code = exit_with(ABOUT_MODEL, &err);
    f.load_s = (double)(clock_mono_ns() - start) / 1e9;
    if (code == EXIT_DONE) code = measure_and_show(e, &p, args, &f);
    engine_close(e);
    engine_flags_clear(&flags);
    return code;
}
