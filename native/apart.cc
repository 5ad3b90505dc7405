// Both children are made by clone(2) with CLONE_VM, so that nothing is copied, and without CLONE_THREAD, so that they are processes of their own: a SIGKILL
// that is sent to us does not reach them. Their exit signal is 0: nobody but us is told of them, and waitpid(-1) as others call it does not see them.
//
// How the closing one becomes immune. It is made with a copy of our descriptors (no CLONE_FILES), closes all but those that are to be closed, and waits.
// We close ours, which is quick, since they are no longer the last reference, and tell it to go on. It then sends SIGKILL to itself. A process that has got
// a fatal signal is marked (SIGNAL_GROUP_EXIT), takes the signal off its list before it begins to exit (`get_signal`, kernel/signal.c), and gets no other: later
// ones are dropped (`prepare_signal`), or before Linux 6.2 at least never made pending on its thread (`complete_signal`). Only then its descriptors are closed
// (`exit_files` and `exit_task_work`, kernel/exit.c), without a fatal signal pending. exit_group(2) alone would leave a moment between its beginning and the mark. And
// if somebody else kills the child while it waits, the same happens, only earlier. If we are killed, it sees that it has another parent, and goes on.
//
// For opening there is no such state, since a process that exits makes no system calls. The opening child is out of reach of what is sent to us or to our process
// group. What kills every process of a control group, of a pid namespace or of a memory (the OOM killer does: `__oom_kill_process`, mm/oom_kill.c) still reaches it.
//
// A child runs on a small stack inside the frame of the function that made it, which lives on until the child is gone: that function waits for it,
// and if its thread is killed, nobody reuses the memory. It shares the thread-local storage of the thread that made it, and that thread may be running. So a
// child calls no function of libc, not even by its errno; it makes system calls directly, and sanitizers are kept out of its code.

#include "apart.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <ctime>

#define UPROBE_IN_CHILD __attribute__((no_sanitize("address", "thread", "undefined")))

namespace uprobe {

namespace {

#ifdef SYS_close_range
constexpr long kCloseRange = SYS_close_range;
#else
constexpr long kCloseRange = 436;  // the same everywhere
#endif

// How long the closing child takes at most to see that we were killed. Nobody but a child whose parent died or is stopped waits so long.
constexpr long kOrphanCheckNs = 10'000'000;

// A child needs some hundred bytes.
constexpr std::size_t kStackBytes = 16 << 10;

struct ChildStack {
  alignas(16) std::byte bytes[kStackBytes];
};

// A system call that leaves errno alone: the result, or a negative errno.
UPROBE_IN_CHILD inline long Raw(long number, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0, long f = 0) {
#if defined(__x86_64__)
  long result;
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  __asm__ volatile("syscall" : "=a"(result) : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
  return result;
#elif defined(__aarch64__)
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  register long x4 __asm__("x4") = e;
  register long x5 __asm__("x5") = f;
  __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
  return x0;
#else
#error "system calls of this architecture are missing"
#endif
}

UPROBE_IN_CHILD inline long Address(const void* pointer) { return static_cast<long>(reinterpret_cast<std::uintptr_t>(pointer)); }

// clone(2) of a child that runs `body(argument)` on `stack`; `body` must not return. The result is the child's pid, or a negative errno.
__attribute__((noinline)) long CloneWithMask(unsigned long flags, ChildStack& stack, void (*body)(void*), void* argument, int* child_tid) {
  auto* const top = reinterpret_cast<std::uintptr_t*>(stack.bytes + kStackBytes) - 2;
  top[0] = reinterpret_cast<std::uintptr_t>(argument);
  top[1] = reinterpret_cast<std::uintptr_t>(body);
#if defined(__x86_64__)
  long result;
  register long r10 __asm__("r10") = Address(child_tid);
  register long r8 __asm__("r8") = 0;
  __asm__ volatile(
      "syscall\n\t"
      "test %%rax, %%rax\n\t"
      "jnz 1f\n\t"
      "xor %%ebp, %%ebp\n\t"  // the outermost frame
      "pop %%rdi\n\t"
      "pop %%rax\n\t"
      "call *%%rax\n\t"
      "ud2\n"
      "1:"
      : "=a"(result)
      : "0"(SYS_clone), "D"(flags), "S"(top), "d"(0L), "r"(r10), "r"(r8)
      : "rcx", "r11", "cc", "memory");
  return result;
#elif defined(__aarch64__)
  register long x8 __asm__("x8") = SYS_clone;
  register long x0 __asm__("x0") = static_cast<long>(flags);
  register long x1 __asm__("x1") = Address(top);
  register long x2 __asm__("x2") = 0;
  register long x3 __asm__("x3") = 0;
  register long x4 __asm__("x4") = Address(child_tid);
  __asm__ volatile(
      "svc #0\n\t"
      "cbnz x0, 1f\n\t"
      "mov x29, xzr\n\t"  // the outermost frame
      "mov x30, xzr\n\t"
      "ldp x0, x1, [sp], #16\n\t"
      "blr x1\n\t"
      "brk #0\n"
      "1:"
      : "+r"(x0)
      : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
      : "cc", "memory");
  return x0;
#endif
}

// The same with every signal blocked in the child, whose handlers are copies of the ones of the program that embeds us.
long Clone(unsigned long flags, ChildStack& stack, void (*body)(void*), void* argument, int* child_tid = nullptr) {
  sigset_t every_signal;
  sigset_t before;
  sigfillset(&every_signal);
  sigprocmask(SIG_SETMASK, &every_signal, &before);  // of the calling thread
  const long child = CloneWithMask(flags, stack, body, argument, child_tid);
  sigprocmask(SIG_SETMASK, &before, nullptr);
  return child;
}

void Reap(long child) {
  while (waitpid(static_cast<pid_t>(child), nullptr, __WALL) < 0 && errno == EINTR) {
  }
}

// The end of a child: see above. A process that may not send itself signals ends all the same.
[[noreturn]] UPROBE_IN_CHILD void End() {
  Raw(SYS_kill, Raw(SYS_getpid), SIGKILL);
  for (;;) Raw(SYS_exit_group, 0);
}

// --- Opening

enum class Progress { kNotBegun, kBegun, kMade };

struct Call {
  long parent;
  long number;
  const long* arguments;
  long result;
  Progress progress;
};

UPROBE_IN_CHILD void MakeCall(void* argument) {
  auto* const call = static_cast<Call*>(argument);
  // Another answer also comes in a pid namespace of its own, where the call's pids would mean other processes.
  if (Raw(SYS_getppid) == call->parent) {
    Raw(SYS_setpgid, 0, 0);
    call->progress = Progress::kBegun;
    const long* const given = call->arguments;
    call->result = Raw(call->number, given[0], given[1], given[2], given[3], given[4], given[5]);
    call->progress = Progress::kMade;
  }
  End();
}

// --- Closing

// The values of Closing::state. The kernel stores kGone when the child leaves our memory (CLONE_CHILD_CLEARTID), and wakes who waits for it.
enum State : int { kGone = 0, kPreparing, kReady, kGo };

struct Closing {
  long parent;
  const int* fds;  // sorted
  std::size_t count;
  int state;
};

UPROBE_IN_CHILD void HoldUntilTold(void* argument) {
  auto* const closing = static_cast<Closing*>(argument);
  // Nothing else may be held open by us longer than by our parent: a connection would not end, nor a lock.
  unsigned first = 0;
  for (std::size_t index = 0; index < closing->count; index++) {
    const auto fd = static_cast<unsigned>(closing->fds[index]);
    if (fd > first && Raw(kCloseRange, first, fd - 1) != 0) End();
    first = fd + 1;
  }
  if (Raw(kCloseRange, first, UINT_MAX) != 0) End();

  __atomic_store_n(&closing->state, kReady, __ATOMIC_RELEASE);
  Raw(SYS_futex, Address(&closing->state), FUTEX_WAKE, 1);
  const timespec pause{0, kOrphanCheckNs};
  while (__atomic_load_n(&closing->state, __ATOMIC_ACQUIRE) == kReady && Raw(SYS_getppid) == closing->parent) {
    Raw(SYS_futex, Address(&closing->state), FUTEX_WAIT, kReady, Address(&pause));
  }
  End();
}

}  // namespace

long RunApart(long number, const std::array<long, 6>& arguments) {
  ChildStack stack;
  Call call{getpid(), number, arguments.data(), -EINTR, Progress::kNotBegun};
  const long child = Clone(CLONE_VM | CLONE_FILES | CLONE_VFORK, stack, MakeCall, &call);
  if (child > 0) Reap(child);
  if (call.progress == Progress::kNotBegun) {
    return syscall(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
  }
  // Of a child that somebody killed meanwhile it is not known what came of the call: EINTR.
  if (call.result >= 0) return call.result;
  errno = static_cast<int>(-call.result);
  return -1;
}

std::optional<Failure> CloseApart(const std::vector<int>& fds) {
  std::optional<Failure> failure;
  if (fds.empty()) return failure;
  std::vector<int> sorted(fds);
  std::sort(sorted.begin(), sorted.end());
  ChildStack stack;
  Closing closing{getpid(), sorted.data(), sorted.size(), kPreparing};
  // The kernel's own wake-up is not of the private kind, so neither are ours.
  const long child = Clone(CLONE_VM | CLONE_CHILD_CLEARTID, stack, HoldUntilTold, &closing, &closing.state);
  if (child > 0) {
    while (__atomic_load_n(&closing.state, __ATOMIC_ACQUIRE) == kPreparing) syscall(SYS_futex, &closing.state, FUTEX_WAIT, kPreparing, nullptr);
  }
  for (const int fd : fds) {
    // The first failure is told, and does not keep the others open. EINTR and EIO free the descriptor all the same.
    if (close(fd) != 0 && !failure) failure = LastFailure("close");
  }
  if (child > 0) {
    int expected = kReady;
    if (__atomic_compare_exchange_n(&closing.state, &expected, kGo, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
      syscall(SYS_futex, &closing.state, FUTEX_WAKE, 1);
    }
    Reap(child);
  }
  return failure;
}

}  // namespace uprobe
