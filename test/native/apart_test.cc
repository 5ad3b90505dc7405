// Unit tests of native/apart.cc, without Node and without probes: test/native/apart.test.ts compiles this with each sanitizer and runs every case.
//
//     apart_test --list     the names of the cases, one a line
//     apart_test NAME       runs one; silent and 0 if it holds
//
// What is opened and closed are pipes: the end of a pipe's last writer is seen at once at its other end.

#include "../../native/apart.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

namespace {

using uprobe::Argument;
using uprobe::CloseApart;
using uprobe::Failure;
using uprobe::RunApart;

[[noreturn]] void Fail(int line, const std::string& what) {
  std::fprintf(stderr, "apart_test.cc:%d: %s\n", line, what.c_str());
  _exit(1);
}

#define CHECK(condition)                                     \
  do {                                                       \
    if (!(condition)) Fail(__LINE__, "not so: " #condition); \
  } while (false)

void CheckEqual(int line, const char* text, long long actual, long long expected) {
  if (actual != expected) Fail(line, std::string(text) + " is " + std::to_string(actual) + ", not " + std::to_string(expected));
}
#define CHECK_EQUAL(actual, expected) CheckEqual(__LINE__, #actual, static_cast<long long>(actual), static_cast<long long>(expected))

struct Pipe {
  int reading = -1;
  int writing = -1;
  Pipe() {
    int ends[2];
    CHECK_EQUAL(pipe2(ends, O_CLOEXEC), 0);
    reading = ends[0];
    writing = ends[1];
  }
};

bool IsOpen(int fd) { return fcntl(fd, F_GETFD) >= 0; }

// Whether nobody can write to the pipe any more; waits at most so long for it.
bool HasEnded(const Pipe& pipe, int timeout_ms) {
  pollfd poll_of{pipe.reading, POLLIN, 0};
  return poll(&poll_of, 1, timeout_ms) == 1 && (poll_of.revents & POLLHUP) != 0;
}

constexpr int kPatienceMs = 20'000;

bool HasNoChildren() { return waitpid(-1, nullptr, WNOHANG | __WALL) == -1 && errno == ECHILD; }

// Runs `body` in a process of its own, which must end well.
template <typename Body>
void InProcess(Body body) {
  const pid_t pid = fork();
  if (pid == 0) {
    body();
    _exit(0);
  }
  int status = 0;
  CHECK_EQUAL(waitpid(pid, &status, 0), pid);
  CHECK_EQUAL(status, 0);
}

// From here on `number` fails with `error` in this process, if the low half of its first argument has none of `unless`.
void Forbid(long number, int error, unsigned unless) {
  sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<unsigned>(number), 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[0])),
      BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, unless, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<unsigned>(error)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog filter{sizeof program / sizeof program[0], program};
  CHECK_EQUAL(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
  CHECK_EQUAL(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter), 0);
}

// --- RunApart

void GivesTheResult() {
  const int fd = static_cast<int>(RunApart(SYS_openat, {AT_FDCWD, Argument("/dev/null"), O_WRONLY | O_CLOEXEC}));
  CHECK(fd >= 0);
  CHECK_EQUAL(fcntl(fd, F_GETFD), FD_CLOEXEC);
  CHECK_EQUAL(write(fd, "1", 1), 1);
}

void GivesTheErrno() {
  errno = 0;
  CHECK_EQUAL(RunApart(SYS_openat, {AT_FDCWD, Argument("/dev/null/none"), O_RDONLY}), -1);
  CHECK_EQUAL(errno, ENOTDIR);
}

void PassesSixArguments() {
  const long length = 4096;
  const long address = RunApart(SYS_mmap, {0, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0});
  CHECK(address != -1);
  *reinterpret_cast<volatile char*>(address) = 1;
  const Pipe from;
  const Pipe to;
  CHECK_EQUAL(write(from.writing, "abc", 3), 3);
  CHECK_EQUAL(RunApart(SYS_splice, {from.reading, 0, to.writing, 0, 2, 0}), 2);
}

void IsAnotherProcess() {
  CHECK(RunApart(SYS_getpid, {}) != getpid());
  CHECK_EQUAL(RunApart(SYS_getppid, {}), getpid());
  CHECK_EQUAL(RunApart(SYS_getuid, {}), getuid());
}

// A shell, and timeout(1), kill whole process groups.
void IsInAnotherProcessGroup() { CHECK(RunApart(SYS_getpgid, {0}) != getpgid(0)); }

// The call is a write of more than the pipe can hold, so that it has begun when there is something in the pipe, and waits until that is taken out.
void GoesOnWhenKilled() {
  const std::vector<char> bytes(300'000, 'x');
  const Pipe pipe;
  const pid_t pid = fork();
  if (pid == 0) {
    RunApart(SYS_write, {pipe.writing, Argument(bytes.data()), static_cast<long>(bytes.size())});
    _exit(1);
  }
  close(pipe.writing);
  pollfd poll_of{pipe.reading, POLLIN, 0};
  CHECK_EQUAL(poll(&poll_of, 1, kPatienceMs), 1);
  CHECK_EQUAL(kill(pid, SIGKILL), 0);
  int status = 0;
  CHECK_EQUAL(waitpid(pid, &status, 0), pid);
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  CHECK(!HasEnded(pipe, 0));
  std::size_t got = 0;
  char piece[4096];
  for (ssize_t count = 1; count > 0; got += static_cast<std::size_t>(count)) {
    count = read(pipe.reading, piece, sizeof piece);  // 0 when the child has ended too, and with it the last writer
    CHECK(count >= 0);
  }
  CHECK_EQUAL(got, bytes.size());
}

void IsDoneHereWithoutProcesses() {
  InProcess([] {
    Forbid(SYS_clone, EAGAIN, CLONE_THREAD);
    CHECK_EQUAL(RunApart(SYS_getpid, {}), getpid());
    CHECK_EQUAL(RunApart(SYS_close, {-1}), -1);
    CHECK_EQUAL(errno, EBADF);
  });
}

// A child there would take the pids of a call for those of other processes.
void IsDoneHereWhenChildrenLiveElsewhere() {
  InProcess([] {
    if (unshare(CLONE_NEWPID) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWPID) != 0) _exit(0);  // without the right
    for (int round = 0; round < 3; round++) CHECK_EQUAL(RunApart(SYS_getpid, {}), getpid());
    const Pipe pipe;
    CHECK(!CloseApart({pipe.writing}));
    CHECK(HasEnded(pipe, 0));
  });
}

// --- CloseApart

void ClosesTheseOnly() {
  std::vector<Pipe> pipes(100);
  std::vector<int> wanted;
  for (std::size_t index = 0; index < pipes.size(); index += 3) wanted.push_back(pipes[index].writing);
  std::swap(wanted.front(), wanted.back());  // in no order
  CHECK(!CloseApart(wanted));
  for (std::size_t index = 0; index < pipes.size(); index++) {
    CHECK_EQUAL(IsOpen(pipes[index].writing), index % 3 != 0);
    CHECK_EQUAL(HasEnded(pipes[index], 0), index % 3 == 0);
    CHECK(IsOpen(pipes[index].reading));
  }
  for (int fd = 0; fd < 3; fd++) CHECK(IsOpen(fd));
}

void ClosesTheFirstAndTheLast() {
  InProcess([] {
    const Pipe pipe;
    CHECK_EQUAL(dup2(pipe.writing, 0), 0);
    CHECK_EQUAL(dup2(pipe.writing, 1), 1);
    CHECK_EQUAL(dup2(pipe.writing, 900), 900);
    CHECK(!CloseApart({900, 0, pipe.writing, 1}));
    CHECK(HasEnded(pipe, 0));
    CHECK(IsOpen(2));
  });
}

void TellsOfABadOne() {
  const Pipe pipe;
  const Pipe other;
  close(other.reading);
  const std::optional<Failure> failure = CloseApart({pipe.writing, other.reading, other.writing});
  CHECK(failure.has_value());
  CHECK_EQUAL(failure->number, EBADF);
  CHECK_EQUAL(std::strcmp(failure->syscall, "close"), 0);
  CHECK(!IsOpen(pipe.writing));
  CHECK(!IsOpen(other.writing));
}

void TakesOneTwice() {
  const Pipe pipe;
  CHECK_EQUAL(CloseApart({pipe.writing, pipe.writing})->number, EBADF);
  CHECK(HasEnded(pipe, 0));
}

void ClosesNothing() { CHECK(!CloseApart({})); }

// Killed anywhere in it, and at once again: what its child holds goes soon.
void LetsGoWhenKilled() {
  for (int round = 0; round < 50; round++) {
    const Pipe pipe;
    const Pipe other;
    const Pipe ready;
    const pid_t pid = fork();
    if (pid == 0) {
      close(ready.reading);
      CHECK_EQUAL(write(ready.writing, "r", 1), 1);
      for (;;) {
        const int copy = fcntl(pipe.writing, F_DUPFD_CLOEXEC, 0);
        CHECK(!CloseApart({copy}));
      }
    }
    for (const int fd : {pipe.writing, other.writing, ready.writing}) close(fd);
    char letter = 0;
    CHECK_EQUAL(read(ready.reading, &letter, 1), 1);
    usleep(static_cast<useconds_t>(round * 37));
    CHECK_EQUAL(kill(pid, SIGKILL), 0);
    CHECK_EQUAL(waitpid(pid, nullptr, 0), pid);
    CHECK(HasEnded(pipe, kPatienceMs));
    CHECK(HasEnded(other, kPatienceMs));
    for (const int fd : {pipe.reading, other.reading, ready.reading}) close(fd);
  }
}

void ClosesHereWithoutProcesses() {
  InProcess([] {
    Forbid(SYS_clone, EAGAIN, CLONE_THREAD);
    const Pipe pipe;
    CHECK(!CloseApart({pipe.writing}));
    CHECK(HasEnded(pipe, 0));
  });
}

// Linux before 5.9.
void ClosesHereWithoutCloseRange() {
  InProcess([] {
    Forbid(436, ENOSYS, 0);
    const Pipe pipe;
    CHECK(!CloseApart({pipe.writing}));
    CHECK(HasEnded(pipe, 0));
    CHECK(HasNoChildren());
  });
}

// A process that may not send itself a signal.
void ClosesWithoutKill() {
  InProcess([] {
    Forbid(SYS_kill, EPERM, 0);
    const Pipe pipe;
    CHECK(!CloseApart({pipe.writing}));
    CHECK(HasEnded(pipe, 0));
    CHECK(RunApart(SYS_getpid, {}) != getpid());
    CHECK(HasNoChildren());
  });
}

// --- Both

std::atomic<int> child_signals = 0;

void LeavesNoTrace() {
  struct sigaction action {};
  action.sa_handler = [](int) { child_signals++; };
  CHECK_EQUAL(sigaction(SIGCHLD, &action, nullptr), 0);
  sigset_t before;
  sigemptyset(&before);
  sigaddset(&before, SIGUSR1);
  CHECK_EQUAL(sigprocmask(SIG_SETMASK, &before, nullptr), 0);
  const int first_free = dup(0);
  close(first_free);
  for (int round = 0; round < 200; round++) {
    const Pipe pipe;
    CHECK(!CloseApart({pipe.reading, pipe.writing}));
    CHECK(RunApart(SYS_getpid, {}) > 0);
  }
  CHECK(HasNoChildren());
  CHECK_EQUAL(child_signals, 0);
  const int still_free = dup(0);
  CHECK_EQUAL(still_free, first_free);
  sigset_t after;
  CHECK_EQUAL(sigprocmask(SIG_SETMASK, nullptr, &after), 0);
  for (int signal = 1; signal < NSIG; signal++) CHECK_EQUAL(sigismember(&after, signal), signal == SIGUSR1);
}

// Somebody who ignores SIGCHLD has children that reap themselves.
void WorksWhereChildrenAreIgnored() {
  CHECK(std::signal(SIGCHLD, SIG_IGN) != SIG_ERR);
  const Pipe pipe;
  CHECK(!CloseApart({pipe.writing}));
  CHECK(HasEnded(pipe, 0));
  CHECK(RunApart(SYS_getpid, {}) != getpid());
  CHECK(HasNoChildren());
}

void WorksOnManyThreads() {
  std::vector<std::thread> threads;
  for (int number = 0; number < 8; number++) {
    threads.emplace_back([] {
      for (int round = 0; round < 50; round++) {
        const Pipe pipe;
        CHECK_EQUAL(RunApart(SYS_write, {pipe.writing, Argument("12"), 2}), 2);
        char letters[2];
        CHECK_EQUAL(read(pipe.reading, letters, 2), 2);
        CHECK(!CloseApart({pipe.writing}));
        CHECK(!IsOpen(pipe.reading) || HasEnded(pipe, kPatienceMs));
        close(pipe.reading);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(HasNoChildren());
}

struct Case {
  const char* name;
  void (*run)();
};

const Case kCases[] = {
    {"a call apart gives its result, and shares descriptors", GivesTheResult},
    {"a call apart gives its errno", GivesTheErrno},
    {"a call apart gets six arguments, and shares memory", PassesSixArguments},
    {"a call apart is made by another process, our child, with our rights", IsAnotherProcess},
    {"a call apart is made in another process group", IsInAnotherProcessGroup},
    {"a call apart goes on when we are killed", GoesOnWhenKilled},
    {"a call apart is made here where no process can be made", IsDoneHereWithoutProcesses},
    {"a call apart is made here when children live in another pid namespace", IsDoneHereWhenChildrenLiveElsewhere},
    {"closing apart closes these and no others, for good", ClosesTheseOnly},
    {"closing apart takes the first and the last descriptor", ClosesTheFirstAndTheLast},
    {"closing apart tells of a bad descriptor and closes the others", TellsOfABadOne},
    {"closing apart closes a descriptor once that is named twice", TakesOneTwice},
    {"closing apart nothing does nothing", ClosesNothing},
    {"closing apart lets go soon when we are killed", LetsGoWhenKilled},
    {"closing apart is done here where no process can be made", ClosesHereWithoutProcesses},
    {"closing apart is done here before Linux 5.9", ClosesHereWithoutCloseRange},
    {"closing apart ends where a process may not kill itself", ClosesWithoutKill},
    {"neither leaves a child, a signal, a descriptor or another signal mask", LeavesNoTrace},
    {"both work where SIGCHLD is ignored", WorksWhereChildrenAreIgnored},
    {"both work on many threads at a time", WorksOnManyThreads},
};

}  // namespace

int main(int count, char** arguments) {
  const std::string wanted = count == 2 ? arguments[1] : "--list";
  for (const Case& each : kCases) {
    if (wanted == "--list") {
      std::puts(each.name);
    } else if (wanted == each.name) {
      each.run();
      return 0;
    }
  }
  return wanted == "--list" ? 0 : 2;
}
