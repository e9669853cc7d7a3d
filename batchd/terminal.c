/* terminal.c - see terminal.h. */
#include "batchd/terminal.h"
#include "base/utf8.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

int terminal_width(int fd) {
    struct winsize size;
    return ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

bool terminal_has_color(int fd, bool no_color) {
    const char *no = getenv("NO_COLOR"), *term = getenv("TERM");
    return isatty(fd) && !no_color && !(no && *no) && term && strcmp(term, "dumb") != 0;
}

/* C0, DEL, C1; embeddings, overrides and isolates of the bidirectional algorithm. */
static bool steers(int32_t cp) {
    return cp < 0x20 || (cp >= 0x7f && cp < 0xa0) || cp == 0x200e || cp == 0x200f || (cp >= 0x202a && cp <= 0x202e) ||
           (cp >= 0x2066 && cp <= 0x2069);
}

static void print_visibly(FILE *out, const char *text, size_t n, const char *allowed) {
    size_t len;
    for (size_t i = 0; i < n; i += len) {
        int32_t cp = utf8_decode(text + i, n - i, &len);
        bool is_allowed = cp > 0 && cp < 0x20 && strchr(allowed, cp);
        if (cp < 0) fprintf(out, "\\x%02x", (unsigned char)text[i]);
        else if (steers(cp) && !is_allowed) fprintf(out, cp < 0x100 ? "\\x%02x" : "\\u%04x", (unsigned)cp);
        else fwrite(text + i, 1, len, out);
    }
}

void terminal_print(FILE *out, const char *text, size_t n) {
    if (isatty(fileno(out))) print_visibly(out, text, n, "\n\t");
    else fwrite(text, 1, n, out);
}

void terminal_print_line(FILE *out, const char *text) {
    print_visibly(out, text, strlen(text), "");
}
