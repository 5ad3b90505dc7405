/*
 * A program with one probe, k:gated, and processes that are related to it:
 *
 *   fork      a child with a copy of the memory waits; the answer is its pid
 *   relay N   a child forks a child and ends, and so on N times, one every millisecond; the last waits
 *   relay-end the answer is the pid of the last, once it is there
 *   share     a child with the very same memory waits, as one of vfork does before it calls exec; the answer is its pid
 *   end PID   ends a child
 *   counter   the semaphore as the program reads it
 */
#define _GNU_SOURCE
#include "probe.h"
#include "protocol.h"

#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

SEMAPHORE(k_gated_semaphore);

static __attribute__((noinline)) void fire(int index) {
  if (k_gated_semaphore != 0) PROBE("k", "gated", "k_gated_semaphore", "-4@%[index]", [index] "nor"(index));
}

static int wait_for_end(void *parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  /* The parent may have been killed before that. */
  if (getppid() != *(pid_t *)parent) _exit(0);
  while (pause() != 0) continue;
  return 0;
}

/* The last one's pid comes through the first; the second ends with the target. */
static int relay_pipe[2], target_pipe[2];

/* Hands the memory on from child to child. */
static _Noreturn void run_relay(int times) {
  close(target_pipe[1]);
  for (; times > 0; times--) {
    usleep(1000);
    pid_t next = fork();
    if (next < 0) abort();
    if (next > 0) _exit(0);
  }
  pid_t self = getpid();
  if (write(relay_pipe[1], &self, sizeof self) != sizeof self) abort();
  char end;
  _exit(read(target_pipe[0], &end, 1) != 0);
}

/* One child of this kind at a time. */
static char stack[64 * 1024] __attribute__((aligned(16)));

int main(void) {
  char line[64];
  char *argument;
  pid_t self = getpid();
  answer("ready");
  while (read_command(line, sizeof line)) {
    if ((argument = argument_of(line, "fork"))) {
      pid_t child = fork();
      if (child == 0) return wait_for_end(&self);
      answer("child %d", child);
    } else if ((argument = argument_of(line, "relay-end"))) {
      pid_t last = 0;
      if (read(relay_pipe[0], &last, sizeof last) != sizeof last) abort();
      answer("last %d", last);
    } else if ((argument = argument_of(line, "relay"))) {
      if (pipe(relay_pipe) != 0 || pipe(target_pipe) != 0) abort();
      pid_t first = fork();
      if (first == 0) run_relay(atoi(argument));
      close(relay_pipe[1]);
      waitpid(first, NULL, 0);
      answer("started");
    } else if ((argument = argument_of(line, "share"))) {
      answer("child %d", clone(wait_for_end, stack + sizeof stack, CLONE_VM | SIGCHLD, &self));
    } else if ((argument = argument_of(line, "end"))) {
      kill(atoi(argument), SIGKILL);
      answer("ended %d", waitpid(atoi(argument), NULL, 0));
    } else {
      fire(1);
      answer("counter %d", k_gated_semaphore);
    }
  }
  return 0;
}
