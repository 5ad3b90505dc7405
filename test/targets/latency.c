/*
 * A program in which things begin and end: functions that call themselves, are left by longjmp or call another in their place, and two probes.
 *
 *   f_down(n)           calls itself n times
 *   f_leave(n)          calls itself n times, and the last one leaves all of them by longjmp
 *   f_tail(n)           goes on in f_down(n), which returns for both
 *   f_hold(n)           takes commands, and returns when it is told to
 *   t:begin, t:end, t:begin_too  -4@id; they fire only where they are told to
 *
 * Commands: down N, leave N TIMES, tail N; hold N (the answer is `held`), return (from the last that holds, and the answer is that of its command); begin ID, too ID, end ID; nest N (N times begin, then N times end), thread ID (a thread that begins and is over), fork ID (a child that begins and
 * is over), pairs T N (T threads that N times begin, call f_down(3), and end, each with an id of its own), exec, leader-exit (another thread goes on). The answer is `done`, after leader-exit
 * `leader gone`.
 */
#define _GNU_SOURCE
#include "leader.h"
#include "probe.h"
#include "protocol.h"

#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define EXPORT __attribute__((noinline, noclone, used, visibility("default")))

static jmp_buf way_out;
/* Never 0, but the compiler does not know that, and thinks that the calls might end. */
static volatile int leaving = 1;

EXPORT long f_down(long n) {
  if (n == 0) return 0;
  long below = f_down(n - 1);
  /* Keeps the compiler from turning the recursion into a loop. */
  __asm__ volatile("" : "+r"(below));
  return below + 1;
}

EXPORT long f_leave(long n) {
  if (n == 0) {
    if (leaving) longjmp(way_out, 1);
    return 0;
  }
  long below = f_leave(n - 1);
  __asm__ volatile("" : "+r"(below));
  return below + 1;
}

EXPORT long f_tail(long n);
#if defined(__x86_64__)
__asm__(".text\n.globl f_tail\n.type f_tail, @function\nf_tail: lea 0(%rdi), %rdi\njmp f_down\n.size f_tail, . - f_tail\n");
#elif defined(__aarch64__)
__asm__(".text\n.globl f_tail\n.type f_tail, %function\nf_tail: mov x1, x0\nb f_down\n.size f_tail, . - f_tail\n");
#endif

static void commands(void);

EXPORT long f_hold(long n) {
  answer("held");
  commands();
  return n;
}

static __attribute__((noinline)) void begin(int id) { PROBE("t", "begin", NO_SEMAPHORE, "-4@%[id]", [id] "r"(id)); }
static __attribute__((noinline)) void begin_too(int id) { PROBE("t", "begin_too", NO_SEMAPHORE, "-4@%[id]", [id] "r"(id)); }
static __attribute__((noinline)) void end(int id) { PROBE("t", "end", NO_SEMAPHORE, "-4@%[id]", [id] "r"(id)); }

struct beginner {
  int id;
  pid_t tid;
};

static void *begin_in_thread(void *argument) {
  struct beginner *beginner = argument;
  beginner->tid = (pid_t)syscall(SYS_gettid);
  begin(beginner->id);
  return NULL;
}

/* To join a thread is not enough: before Linux 6.16 it wakes who waits for it before the tracepoint of its exit (exit_mm and trace_sched_process_exit in do_exit, kernel/exit.c). It has passed that when its number is gone. */
static void run_thread(int id) {
  struct beginner beginner = {.id = id};
  pthread_t thread;
  if (pthread_create(&thread, NULL, begin_in_thread, &beginner) != 0) abort();
  pthread_join(thread, NULL);
  while (syscall(SYS_tgkill, getpid(), beginner.tid, 0) == 0) sched_yield();
}

struct worker {
  pthread_t thread;
  long count;
  int id;
};

static void *work(void *argument) {
  struct worker *worker = argument;
  for (long i = 0; i < worker->count; i++) {
    begin(worker->id);
    f_down(3);
    end(worker->id);
  }
  return NULL;
}

static void pairs(int threads, long count) {
  struct worker workers[16];
  for (int i = 0; i < threads && i < 16; i++) {
    workers[i].count = count;
    workers[i].id = i;
    if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0) abort();
  }
  for (int i = 0; i < threads && i < 16; i++) pthread_join(workers[i].thread, NULL);
}

static char **arguments;

static void commands(void) {
  char line[256];
  char *argument;
  while (read_command(line, sizeof line)) {
    if ((argument = argument_of(line, "down"))) {
      f_down(atol(argument));
    } else if ((argument = argument_of(line, "leave"))) {
      long depth = strtol(argument, &argument, 10);
      for (volatile long times = strtol(argument, NULL, 10); times > 0; times--) {
        if (setjmp(way_out) == 0) f_leave(depth);
      }
    } else if ((argument = argument_of(line, "tail"))) {
      f_tail(atol(argument));
    } else if ((argument = argument_of(line, "hold"))) {
      f_hold(atol(argument));
    } else if ((argument = argument_of(line, "return"))) {
      return;
    } else if ((argument = argument_of(line, "begin"))) {
      begin(atoi(argument));
    } else if ((argument = argument_of(line, "end"))) {
      end(atoi(argument));
    } else if ((argument = argument_of(line, "too"))) {
      begin_too(atoi(argument));
    } else if ((argument = argument_of(line, "nest"))) {
      int depth = atoi(argument);
      for (int i = 0; i < depth; i++) begin(i);
      for (int i = depth; i > 0; i--) end(i - 1);
    } else if ((argument = argument_of(line, "thread"))) {
      run_thread(atoi(argument));
    } else if ((argument = argument_of(line, "fork"))) {
      pid_t child = fork();
      if (child == 0) {
        begin(atoi(argument));
        _exit(0);
      }
      waitpid(child, NULL, 0);
    } else if ((argument = argument_of(line, "pairs"))) {
      int threads = (int)strtol(argument, &argument, 10);
      pairs(threads, strtol(argument, NULL, 10));
    } else if ((argument = argument_of(line, "exec"))) {
      execv("/proc/self/exe", arguments);
    } else if ((argument = argument_of(line, "leader-exit"))) {
      leave_to_follower(commands);
    } else {
      answer("unknown");
      continue;
    }
    answer("done");
  }
}

int main(int count, char **own_arguments) {
  (void)count;
  arguments = own_arguments;
  answer("ready");
  commands();
  return 0;
}
