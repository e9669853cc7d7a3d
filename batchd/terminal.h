/* terminal.h - what is different when a person is looking. */
#ifndef BATCHD_BATCHD_TERMINAL_H
#define BATCHD_BATCHD_TERMINAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

int terminal_width(int fd); /* columns, 80 when unknown */

/* May colours be used on fd: a terminal that is not dumb, no NO_COLOR, no --no-color? */
bool terminal_has_color(int fd, bool no_color);

/* Print n bytes of text. On a terminal what could steer it is made visible: control
 * characters other than newline and tab, and marks that turn the direction of text. */
void terminal_print(FILE *out, const char *text, size_t n);

/* Print text that must stay on its line, with newlines and all of the above visible, on a
 * terminal or not. */
void terminal_print_line(FILE *out, const char *text);

#endif
