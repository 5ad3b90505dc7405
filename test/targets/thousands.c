/*
 * A program with 10,000 probes, t:site0 to t:site9999, each with a semaphore of its own and its number as its only argument, as a large library has them.
 *
 * Each probe is a function of its own, all of one size, so that the program calls them by their number.
 *
 * Commands:
 *
 *   run                 executes every probe whose semaphore is up; the answer is how many
 *   vary                the same, and executes probe n as often as n modulo 3 says
 *   up                  how many semaphores are not 0
 *   total               the sum of all semaphores
 */
#include "probe.h"
#include "protocol.h"

#define SITES 10000
#define SITE_BYTES 8

#if defined(__x86_64__)
#define FIRST_ARGUMENT "-4@%edi"
#else
#define FIRST_ARGUMENT "-4@w0"
#endif

__attribute__((section(".probes"), used, visibility("hidden"))) volatile unsigned short t_semaphores[SITES] = {0};

extern const char t_sites[] __attribute__((visibility("hidden")));

__asm__(".altmacro\n"
        ".macro site number\n"
        ".balign 8\n"
        PROBE_TEXT("t", "site\\number", "t_semaphores + 2 * \\number", FIRST_ARGUMENT)
        "ret\n"
        ".endm\n"
        ".text\n"
        ".balign 8\n"
        ".hidden t_sites\n"
        ".globl t_sites\n"
        ".type t_sites, @function\n"
        "t_sites:\n"
        ".set t_number, 0\n"
        ".rept 10000\n"
        "site %t_number\n"
        ".set t_number, t_number + 1\n"
        ".endr\n"
        ".noaltmacro\n");

static void fire(int number) { ((void (*)(int))(t_sites + SITE_BYTES * number))(number); }

static int run(int rounds_differ) {
  int executed = 0;
  for (int number = 0; number < SITES; number++) {
    if (t_semaphores[number] == 0) continue;
    for (int round = rounds_differ ? number % 3 : 1; round > 0; round--, executed++) fire(number);
  }
  return executed;
}

int main(void) {
  char line[16];
  answer("ready");
  while (read_command(line, sizeof line)) {
    int up = 0, total = 0;
    for (int number = 0; number < SITES; number++) {
      up += t_semaphores[number] != 0;
      total += t_semaphores[number];
    }
    if (strcmp(line, "run") == 0) {
      answer("executed %d", run(0));
    } else if (strcmp(line, "vary") == 0) {
      answer("executed %d", run(1));
    } else if (strcmp(line, "up") == 0) {
      answer("up %d", up);
    } else if (strcmp(line, "total") == 0) {
      answer("total %d", total);
    } else {
      answer("error");
    }
  }
  return 0;
}
