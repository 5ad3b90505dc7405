/*
 * A program that says what it is told, byte for byte, as a hostile one would:
 *
 *   t:text   8@text -4@length
 *
 * Commands, with bytes as hexadecimal digits:
 *
 *   say HEX      fires t:text with these bytes
 *   name HEX     makes them the name of the thread
 */
#include "probe.h"
#include "protocol.h"

#include <sys/prctl.h>

static __attribute__((noinline)) void fire(const char *text, int length) {
  PROBE("t", "text", NO_SEMAPHORE, "8@%[text] -4@%[length]", [text] "nor"(text), [length] "nor"(length));
}

/* Decodes digits in place, with a NUL behind; returns how many bytes there are. */
static int decode(char *digits) {
  int length = 0;
  unsigned byte;
  while (sscanf(digits + 2 * length, "%2x", &byte) == 1) digits[length++] = (char)byte;
  digits[length] = '\0';
  return length;
}

int main(void) {
  char line[8192];
  char *bytes;
  answer("ready");
  while (read_command(line, sizeof line)) {
    if ((bytes = argument_of(line, "say"))) {
      int length = decode(bytes);
      fire(bytes, length);
      answer("said %d", length);
    } else if ((bytes = argument_of(line, "name"))) {
      decode(bytes);
      answer("named %d", prctl(PR_SET_NAME, bytes));
    }
  }
  return 0;
}
