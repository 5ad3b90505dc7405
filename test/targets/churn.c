/*
 * A program with one probe, c:gated, that forks all the time, as a server does that has a process for each request:
 *
 *   fork N    forks so many children that wait; the answer is their pids
 *   churn N   forks children that fire if the probe is on, and end after some milliseconds, so many at a time, until the next command
 *   stop      the answer is how many of them fired
 *   counter   the semaphore as the program reads it
 */
#define _GNU_SOURCE
#include "probe.h"
#include "protocol.h"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

SEMAPHORE(c_gated_semaphore);

static __attribute__((noinline)) int fire(int index) {
  if (c_gated_semaphore == 0) return 0;
  PROBE("c", "gated", "c_gated_semaphore", "-4@%[index]", [index] "nor"(index));
  return 1;
}

static int command_waits(void) {
  struct pollfd input = {.fd = 0, .events = POLLIN};
  return poll(&input, 1, 0) != 0;
}

static int await_child(void) {
  int status;
  if (wait(&status) < 0) abort();
  return WIFEXITED(status) ? WEXITSTATUS(status) : 0;
}

/* Returns how many fired. */
static long churn(int at_a_time) {
  long fired = 0;
  int living = 0;
  while (!command_waits()) {
    pid_t child = fork();
    if (child < 0) abort();
    if (child == 0) {
      int fires = fire(1);
      usleep(4000);
      _exit(fires);
    }
    if (++living < at_a_time) continue;
    fired += await_child();
    living--;
  }
  for (; living > 0; living--) fired += await_child();
  return fired;
}

static _Noreturn void wait_for_end(pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  /* The parent may have been killed before that. */
  if (getppid() != parent) _exit(0);
  for (;;) pause();
}

int main(void) {
  long fired = 0;
  char *argument;
  pid_t self = getpid();
  answer("ready");
  for (char line[64]; read_command(line, sizeof line);) {
    if ((argument = argument_of(line, "churn"))) {
      answer("churning");
      fired = churn(atoi(argument));
    } else if ((argument = argument_of(line, "fork"))) {
      for (int left = atoi(argument); left > 0; left--) {
        pid_t child = fork();
        if (child == 0) wait_for_end(self);
        printf("%d%c", child, left == 1 ? '\n' : ' ');
        fflush(stdout);
      }
    } else if (argument_of(line, "stop")) {
      answer("fired %ld", fired);
    } else {
      answer("counter %d", c_gated_semaphore);
    }
  }
  return 0;
}
