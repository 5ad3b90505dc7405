#include "thread.h"

#include <csignal>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#include "fd.h"

// glibc 2.34 moved these functions from libpthread into libc and gave them a new version. The old version is still there, is the same
// function, and is the only one before 2.34; Node itself brings libpthread into the process there.
#if defined(__GLIBC__) && defined(__x86_64__)
__asm__(".symver pthread_create,pthread_create@GLIBC_2.2.5");
__asm__(".symver pthread_join,pthread_join@GLIBC_2.2.5");
__asm__(".symver pthread_detach,pthread_detach@GLIBC_2.2.5");
#elif defined(__GLIBC__) && defined(__aarch64__)
__asm__(".symver pthread_create,pthread_create@GLIBC_2.17");
__asm__(".symver pthread_join,pthread_join@GLIBC_2.17");
__asm__(".symver pthread_detach,pthread_detach@GLIBC_2.17");
#endif

namespace uprobe {

namespace {

// What a new thread needs from the call that starts it. It lies on that call's stack, so the thread may use it only until it has
// written to `started`.
struct Beginning {
  const char* name;
  std::function<void()> body;
  int started;  // an eventfd that gets the thread's id
};

void* Run(void* argument) {
  auto* const beginning = static_cast<Beginning*>(argument);
  const std::function<void()> body = std::move(beginning->body);
  prctl(PR_SET_NAME, beginning->name);
  const auto tid = static_cast<std::uint64_t>(syscall(SYS_gettid));
  // Eight bytes to a fresh eventfd neither block nor fail; if they did, nobody could go on.
  if (write(beginning->started, &tid, sizeof tid) != sizeof tid) __builtin_trap();
  body();
  return nullptr;
}

}  // namespace

Thread& Thread::operator=(Thread&& other) noexcept {
  if (this != &other) {
    Join();
    handle_ = other.handle_;
    tid_ = other.tid_;
    joinable_ = std::exchange(other.joinable_, false);
  }
  return *this;
}

Result<Thread> Thread::Start(const char* name, std::function<void()> body) {
  const Fd started(eventfd(0, EFD_CLOEXEC));
  if (!started.valid()) return LastFailure("eventfd");
  Beginning beginning{name, std::move(body), started.get()};

  // A thread inherits its mask, so blocking here leaves no moment in which it could take a signal. sigfillset leaves out the two that
  // libc needs for itself (setuid is made of one). On Linux sigprocmask works on the calling thread.
  sigset_t every_signal;
  sigset_t before;
  sigfillset(&every_signal);
  sigprocmask(SIG_SETMASK, &every_signal, &before);
  Thread thread;
  const int refused = pthread_create(&thread.handle_, nullptr, Run, &beginning);
  sigprocmask(SIG_SETMASK, &before, nullptr);
  if (refused != 0) return Failure{"pthread_create", refused};

  thread.joinable_ = true;
  std::uint64_t tid = 0;
  while (read(started.get(), &tid, sizeof tid) < 0 && errno == EINTR) {
  }
  thread.tid_ = static_cast<int>(tid);
  return thread;
}

void Thread::Join() {
  if (std::exchange(joinable_, false)) pthread_join(handle_, nullptr);
}

void Thread::Detach() {
  if (std::exchange(joinable_, false)) pthread_detach(handle_);
}

}  // namespace uprobe
