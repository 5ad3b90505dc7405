/*
 * A program whose probe has the arguments that it is told, for filters:
 *
 *   t:values    arg0 8 bytes, arg1 -8, arg2 4, arg3 -4, arg4 2, arg5 -2, arg6 1, arg7 -1: the eight numbers, cut to these sizes; in registers and in memory
 *               arg8 8: how many hits there were before
 *               arg9 -4: the first number, in memory that can be read only if there is a string
 *               arg10 8, arg11 8: the string, by a pointer in a register and in memory
 *
 * Commands, with numbers and bytes as hexadecimal digits:
 *
 *   text HEX|null    sets the string, which ends where the memory ends, or none
 *   name HEX         sets the name of the thread
 *   fire N…          fires with eight numbers
 */
#define _GNU_SOURCE
#include "probe.h"
#include "protocol.h"

#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>

static uint64_t hits;

static __attribute__((noinline)) void fire(const uint64_t *numbers, const char *text, const int32_t *sometimes) {
  const uint64_t a = numbers[0], count = hits++;
  const int64_t b = (int64_t)numbers[1];
  volatile uint32_t c = (uint32_t)numbers[2];
  volatile int32_t d = (int32_t)numbers[3];
  const uint16_t e = (uint16_t)numbers[4];
  volatile int16_t f = (int16_t)numbers[5];
  volatile uint8_t g = (uint8_t)numbers[6];
  const int8_t h = (int8_t)numbers[7];
  const char *volatile pointer = text;
  PROBE("t", "values", NO_SEMAPHORE, "8@%[a] -8@%[b] 4@%[c] -4@%[d] 2@%[e] -2@%[f] 1@%[g] -1@%[h] 8@%[count] -4@%[sometimes] 8@%[text] 8@%[pointer]",
        [a] "r"(a), [b] "r"(b), [c] "m"(c), [d] "m"(d), [e] "r"(e), [f] "m"(f), [g] "m"(g), [h] "r"(h), [count] "r"(count),
        [sometimes] "m"(*sometimes), [text] "r"(text), [pointer] "m"(pointer));
}

/* Decodes digits in place; returns how many bytes there are. */
static size_t decode(char *digits) {
  size_t length = 0;
  unsigned byte;
  while (sscanf(digits + 2 * length, "%2x", &byte) == 1) digits[length++] = (char)byte;
  return length;
}

int main(void) {
  const size_t page = 64 * 1024;
  char line[1024];
  char *argument;
  const char *text = NULL;
  int32_t first = 0;
  char *memory = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory + page, page, PROT_NONE) != 0) abort();
  answer("ready");
  while (read_command(line, sizeof line)) {
    if ((argument = argument_of(line, "text"))) {
      text = NULL;
      if (strcmp(argument, "null") != 0) {
        const size_t length = decode(argument);
        text = memcpy(memory + page - length - 1, argument, length);
        memory[page - 1] = '\0';
      }
      answer("set");
    } else if ((argument = argument_of(line, "name"))) {
      argument[decode(argument)] = '\0';
      answer("named %d", prctl(PR_SET_NAME, argument));
    } else if ((argument = argument_of(line, "fire"))) {
      uint64_t numbers[8];
      for (int i = 0; i < 8; i++) numbers[i] = strtoull(argument, &argument, 16);
      first = (int32_t)numbers[0];
      fire(numbers, text, text == NULL ? NULL : &first);
      answer("fired");
    } else {
      answer("unknown");
    }
  }
  return 0;
}
