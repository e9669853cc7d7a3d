/* signals.c - see signals.h. An eventfd carries the news to poll(). */
#include "batchd/signals.h"
#include "base/mapped.h"
#include "batchd/exit.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

volatile int signals_stop;
static int wake_fd = -1;

static void on_signal(int signal) {
    if (signals_stop) _exit(128 + signal);
    signals_stop = signal;
    signals_wake();
}

void signals_listen(void) {
    struct sigaction action = {.sa_handler = on_signal}, ignore = {.sa_handler = SIG_IGN};
    if (wake_fd < 0) wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (wake_fd < 0) abort();
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGPIPE, &ignore, NULL);
}

static void say(const char *text) {
    ssize_t n = write(STDERR_FILENO, text, strlen(text));
    (void)n;
}

/* Nothing but write and _exit: the fault may have come anywhere. Other faults go their own way. */
static void on_bus_error(int signal, siginfo_t *info, void *context) {
    (void)context;
    const char *path = mapped_file(info->si_addr);
    if (!path) {
        sigaction(signal, &(struct sigaction){.sa_handler = SIG_DFL}, NULL);
        return; /* to the fault once more */
    }
    say("batchd: ");
    say(path);
    say(" was cut short, or could not be read, while it was in use; what is finished is saved\n");
    _exit(EXIT_IO);
}

void signals_guard_files(void) {
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO}, ignore = {.sa_handler = SIG_IGN};
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGXFSZ, &ignore, NULL); /* a file above `ulimit -f` is then an error, as on a full disk */
}

int signals_seen(void) {
    return signals_stop;
}

void signals_wake(void) {
    uint64_t one = 1;
    ssize_t n = write(wake_fd, &one, sizeof one);
    (void)n; /* full means that a wake is pending already */
}

void signals_wait(int64_t timeout_ms) {
    struct pollfd p = {.fd = wake_fd, .events = POLLIN};
    if (poll(&p, 1, (int)timeout_ms) <= 0) return;
    uint64_t count;
    ssize_t n = read(wake_fd, &count, sizeof count);
    (void)n;
}

int signals_exit_code(void) {
    return 128 + signals_stop;
}
