/*
 * A program in which things begin and end where it is told to, each seen by a function and by a probe within it:
 *
 *   f_begin(long id), t:begin    -4@id, with a semaphore that is looked at
 *   f_end(long id), t:end        the same
 *
 * Commands: begin ID, end ID; fork (a child takes the commands that follow, and the answer is its pid), leave (it ends, and its parent goes on). The answer is `done`.
 */
#include "probe.h"
#include "protocol.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define EXPORT __attribute__((noinline, noclone, used, visibility("default")))

SEMAPHORE(t_begin_semaphore);
SEMAPHORE(t_end_semaphore);

EXPORT void f_begin(long id) {
  if (t_begin_semaphore != 0) PROBE("t", "begin", "t_begin_semaphore", "-4@%[id]", [id] "r"((int)id));
}

EXPORT void f_end(long id) {
  if (t_end_semaphore != 0) PROBE("t", "end", "t_end_semaphore", "-4@%[id]", [id] "r"((int)id));
}

int main(void) {
  char line[64];
  char *argument;
  answer("ready");
  while (read_command(line, sizeof line)) {
    if ((argument = argument_of(line, "begin"))) {
      f_begin(atol(argument));
    } else if ((argument = argument_of(line, "end"))) {
      f_end(atol(argument));
    } else if ((argument = argument_of(line, "fork"))) {
      pid_t child = fork();
      if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        answer("child %d", getpid());
        continue;
      }
      waitpid(child, NULL, 0);
    } else if ((argument = argument_of(line, "leave"))) {
      _exit(0);
    } else {
      answer("unknown");
      continue;
    }
    answer("done");
  }
  return 0;
}
