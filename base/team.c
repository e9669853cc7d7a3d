/* team.c - see team.h. */
#include "base/team.h"

#include <unistd.h>

void team_begin(struct team *t, int64_t most, void *(*work)(void *), void *arg) {
    int64_t wanted = sysconf(_SC_NPROCESSORS_ONLN) - 1;
    if (wanted > most) wanted = most;
    if (wanted > TEAM_MAX) wanted = TEAM_MAX;
    t->n = 0;
    while (t->n < wanted && pthread_create(&t->threads[t->n], NULL, work, arg) == 0) t->n++;
}

void team_end(struct team *t) {
    while (t->n > 0) pthread_join(t->threads[--t->n], NULL);
}

void team_do(int64_t most, void *(*work)(void *), void *arg) {
    struct team team;
    team_begin(&team, most, work, arg);
    work(arg);
    team_end(&team);
}
