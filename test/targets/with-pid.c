/*
 * with-pid PID PROGRAM [ARGUMENT...]: runs a program under the process id PID (any, if it is 0) as a child, reaps it when it ends, and ends too.
 *
 * So a test can bring about in an instant what takes a machine days: that a process id is handed out again. Choosing a pid takes CAP_CHECKPOINT_RESTORE
 * (clone3 with set_tid, Linux 5.5 and later).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  pid_t wanted = atoi(argv[1]);
  struct clone_args arguments = {.exit_signal = SIGCHLD};
  if (wanted != 0) {
    arguments.set_tid = (uint64_t)(uintptr_t)&wanted;
    arguments.set_tid_size = 1;
  }
  long child = syscall(SYS_clone3, &arguments, sizeof arguments);
  if (child < 0) {
    fprintf(stderr, "with-pid %d: %s\n", wanted, strerror(errno));
    return 1;
  }
  if (child == 0) {
    /* Whoever kills us means the program. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    execv(argv[2], argv + 2);
    fprintf(stderr, "%s: %s\n", argv[2], strerror(errno));
    _exit(127);
  }
  int status;
  if (waitpid((pid_t)child, &status, 0) < 0) return 1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
