/*
 * A program whose probe is a nop of five bytes, as some libraries place it:
 *
 *   t:nop5     fires only while its semaphore is up   -4@index
 *
 * Commands:
 *
 *   nop5 N     fires; the answer says how many executed the probe
 *   fork N     a child fires it N times; the answer says how many executed the probe in it, -1 if it crashed
 */
#define PROBE_NOP ".byte 0x0f, 0x1f, 0x44, 0x00, 0x00"
#include "probe.h"
#include "protocol.h"

#include <sys/wait.h>

#ifndef __x86_64__
#error the nop is one of x86-64
#endif

SEMAPHORE(t_nop5_semaphore);

static __attribute__((noinline)) int fire_nop5(int index) {
  if (t_nop5_semaphore == 0) return 0;
  PROBE("t", "nop5", "t_nop5_semaphore", "-4@%[index]", [index] "nor"(index));
  return 1;
}

static int fire(int count) {
  int executed = 0;
  for (int i = 0; i < count; i++) executed += fire_nop5(i);
  return executed;
}

static int fire_in_child(int count) {
  pid_t child = fork();
  if (child < 0) abort();
  if (child == 0) _exit(fire(count));
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int main(void) {
  answer("ready");
  for (char line[64]; read_command(line, sizeof line);) {
    char *argument;
    if ((argument = argument_of(line, "nop5"))) {
      answer("executed %d", fire(atoi(argument)));
    } else if ((argument = argument_of(line, "fork"))) {
      answer("executed %d", fire_in_child(atoi(argument)));
    } else {
      answer("error");
    }
  }
  return 0;
}
