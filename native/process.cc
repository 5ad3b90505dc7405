#include "process.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstring>

#include "arguments.h"
#include "async.h"
#include "closer.h"
#include "errors.h"
#include "fd.h"

namespace uprobe {

namespace {

// The same number on every architecture, and younger than the headers of some build machines.
constexpr long kPidfdOpen = 434;  // Linux 5.3
constexpr long kOpenat2 = 437;    // Linux 5.6
#ifdef __x86_64__
constexpr long kUprobe = 336;
#endif

// struct open_how, include/uapi/linux/openat2.h
struct OpenHow {
  std::uint64_t flags, mode, resolve;
};
constexpr std::uint64_t kResolveNoMagiclinks = 0x02;
constexpr std::uint64_t kResolveInRoot = 0x10;

// O_NONBLOCK: a path that somebody else chose may lead to a FIFO, whose opening would wait for a writer. O_NOCTTY: or to a terminal.
constexpr int kReadFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;

Napi::Value ReturnFd(Napi::Env env, long fd, const char* syscall) {
  if (fd < 0) return ThrowFailure(env, LastFailure(syscall));
  return HandOver(env, Fd(static_cast<int>(fd)));
}

Napi::Value PidfdOpen(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const int pid = arguments.Int32(arguments.At(0), "pid", 1);
  if (arguments.Failed()) return Napi::Value();
  return ReturnFd(info.Env(), syscall(kPidfdOpen, pid, 0), "pidfd_open");
}

Napi::Value OpenFile(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const std::string path = arguments.String(arguments.At(0), "path");
  if (arguments.Failed()) return Napi::Value();
  return ReturnFd(info.Env(), open(path.c_str(), kReadFlags), "open");
}

// A path inside a container's root, resolved as that container would: a symbolic link to "/" or "../.." ends at `root`, never in ours.
// Magic links (/proc/PID/exe) are refused, since they lead anywhere.
Napi::Value OpenInRoot(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const std::string root = arguments.String(arguments.At(0), "root");
  const std::string path = arguments.String(arguments.At(1), "path");
  if (arguments.Failed()) return Napi::Value();
  const Fd directory(open(root.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!directory.valid()) return ThrowFailure(info.Env(), LastFailure("open"));
  OpenHow how{};
  how.flags = kReadFlags;
  how.resolve = kResolveInRoot | kResolveNoMagiclinks;
  // EAGAIN: a rename happened somewhere on the system, so the kernel cannot be sure that ".." stayed below the root (openat2(2)).
  long fd = -1;
  for (int attempt = 0; attempt < 16; attempt++) {
    fd = syscall(kOpenat2, directory.get(), path.c_str(), &how, sizeof how);
    if (fd >= 0 || errno != EAGAIN) break;
  }
  return ReturnFd(info.Env(), fd, "openat2");
}

Napi::Value CloseFd(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const int fd = arguments.FdNumber(arguments.At(0), "fd");
  if (arguments.Failed()) return Napi::Value();
  TakeBack(info.Env(), fd);
  if (close(fd) != 0) return ThrowFailure(info.Env(), LastFailure("close"));
  return info.Env().Undefined();
}

// RWF_NOWAIT, Linux 4.14: what is not in the page cache is not waited for (EAGAIN). File systems that cannot tell refuse it (EOPNOTSUPP). What may be waited for all the same is whoever has asked to be
// asked for permission (fanotify), and the note of when the file was last read, where one is kept.
constexpr int kNoWait = 0x8;

// What is wrong with the file, the next read says that may wait.
Napi::Value ReadCached(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const int fd = arguments.FdNumber(arguments.At(0), "fd");
  Napi::Uint8Array room = arguments.Room(arguments.At(1), "bytes");
  const std::int64_t position = arguments.Int64(arguments.At(2), "position");
  // -1 would be the descriptor's own.
  if (position < 0) arguments.Fail("position", "not negative");
  if (arguments.Failed()) return Napi::Value();
  const iovec piece{room.Data(), room.ElementLength()};
  const ssize_t bytes = preadv2(fd, &piece, 1, position, kNoWait);
  return Napi::Number::New(info.Env(), static_cast<double>(std::max<ssize_t>(bytes, 0)));
}

// Longer texts are refused: what a target maps, and under which names, is the target's to choose.
constexpr std::size_t kMaxTextBytes = 64 << 20;

// Files of /proc/PID give a page at a time (seq_file), so Node's own readFile takes a turn of libuv's threads for each 4 KiB, and three more. And a thread it must be: the kernel waits there for
// the lock of an address space, which the target has for as long as a large process takes to fork.
Napi::Value ReadText(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const std::string path = arguments.String(arguments.At(0), "path");
  if (arguments.Failed()) return Napi::Value();
  return RunForText(info.Env(), "read", [path]() -> Result<std::string> {
    const Fd file(open(path.c_str(), kReadFlags));
    if (!file.valid()) return LastFailure("open");
    std::string text;
    char piece[1 << 14];
    for (;;) {
      const ssize_t bytes = read(file.get(), piece, sizeof piece);
      if (bytes < 0 && errno != EINTR) return LastFailure("read");
      if (bytes == 0) return text;
      if (bytes > 0) text.append(piece, static_cast<std::size_t>(bytes));
      if (text.size() > kMaxTextBytes) return Failure{"read", EFBIG};
    }
  });
}

// Outside of a uprobe's trampoline the call does nothing but refuse (SYSCALL_DEFINE0(uprobe), arch/x86/kernel/uprobes.c), and the way it
// does so tells the generation of the code.
Napi::Value UprobeSyscallErrno(const Napi::CallbackInfo& info) {
#ifdef __x86_64__
  const int number = syscall(kUprobe) == -1 ? errno : 0;
#else
  const int number = 0;
#endif
  return Napi::Number::New(info.Env(), number);
}

// Counts the CPUs in a list such as "0-3,8,10-11"; 0 if it is not one.
unsigned CountCpus(const char* list) {
  unsigned count = 0;
  while (std::isdigit(static_cast<unsigned char>(*list)) != 0) {
    char* end = nullptr;
    const unsigned long first = std::strtoul(list, &end, 10);
    const unsigned long last = *end == '-' ? std::strtoul(end + 1, &end, 10) : first;
    count += static_cast<unsigned>(last - first + 1);
    list = *end == ',' ? end + 1 : end;
  }
  return count;
}

// From sysfs, as the kernel counts them for the values of per-CPU maps (num_possible_cpus): sysconf(_SC_NPROCESSORS_CONF) may count fewer.
Napi::Value PossibleCpus(const Napi::CallbackInfo& info) {
  const Fd file(open("/sys/devices/system/cpu/possible", O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return ThrowFailure(info.Env(), LastFailure("open"));
  char text[4096];
  const ssize_t bytes = read(file.get(), text, sizeof text - 1);
  if (bytes < 0) return ThrowFailure(info.Env(), LastFailure("read"));
  text[bytes] = '\0';
  const unsigned count = CountCpus(text);
  if (count == 0) return ThrowFailure(info.Env(), Failure{"read", EBADMSG});
  return Napi::Number::New(info.Env(), count);
}

}  // namespace

void InitProcess(Napi::Env env, Napi::Object exports) {
  exports.Set("pidfdOpen", Napi::Function::New<PidfdOpen>(env, "pidfdOpen"));
  exports.Set("openFile", Napi::Function::New<OpenFile>(env, "openFile"));
  exports.Set("openInRoot", Napi::Function::New<OpenInRoot>(env, "openInRoot"));
  exports.Set("readCached", Napi::Function::New<ReadCached>(env, "readCached"));
  exports.Set("readText", Napi::Function::New<ReadText>(env, "readText"));
  exports.Set("closeFd", Napi::Function::New<CloseFd>(env, "closeFd"));
  exports.Set("uprobeSyscallErrno", Napi::Function::New<UprobeSyscallErrno>(env, "uprobeSyscallErrno"));
  exports.Set("possibleCpus", Napi::Function::New<PossibleCpus>(env, "possibleCpus"));
}

}  // namespace uprobe
