/*
 * How a test talks with its target: the target writes "ready", then reads one command a line from standard input and writes one line in answer
 * when it is done. End of input ends the target, so that it never outlives its test.
 */
#ifndef TARGET_PROTOCOL_H
#define TARGET_PROTOCOL_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

__attribute__((format(printf, 1, 2))) static inline void answer(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vprintf(format, arguments);
  va_end(arguments);
  putchar('\n');
  fflush(stdout);
}

/* Reads one line byte by byte, so that nothing is left in a buffer when the program calls exec or fork. */
static inline int read_command(char *line, size_t size) {
  size_t length = 0;
  for (;;) {
    char byte;
    if (read(STDIN_FILENO, &byte, 1) != 1) return 0;
    if (byte == '\n') break;
    if (length + 1 < size) line[length++] = byte;
  }
  line[length] = '\0';
  return 1;
}

/* If `line` is `name` or begins with `name` and a blank: what follows; otherwise NULL. */
static inline char *argument_of(char *line, const char *name) {
  size_t length = strlen(name);
  if (strncmp(line, name, length) != 0) return NULL;
  if (line[length] == '\0') return line + length;
  return line[length] == ' ' ? line + length + 1 : NULL;
}

#endif
