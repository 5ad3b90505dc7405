// Locks that die with their holder, the directory they are in, and whether two processes are one address space.
//
// flock(2) and open file description locks (fcntl(2), F_OFD_SETLK) belong to an open file: two tracers of one process that opened the file each for themselves exclude each other, and
// when the last descriptor of it is closed, by whatever end, the lock is gone. POSIX record locks belong to a process, and go when *any* descriptor of the file
// is closed.

#include "lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "arguments.h"
#include "closer.h"
#include "errors.h"

namespace uprobe {

namespace {

constexpr long kOpenat2 = 437;  // Linux 5.6
// struct open_how and RESOLVE_NO_SYMLINKS, include/uapi/linux/openat2.h
struct OpenHow {
  std::uint64_t flags, mode, resolve;
};
constexpr std::uint64_t kResolveNoSymlinks = 0x04;
constexpr int kKcmpVm = 1;  // enum kcmp_type, include/uapi/linux/kcmp.h

enum class Mode { kExclusive, kShared, kNone };

Mode ModeOf(Arguments& arguments, const Napi::Value& value) {
  const std::string mode = arguments.String(value, "mode");
  if (mode == "exclusive") return Mode::kExclusive;
  if (mode == "shared") return Mode::kShared;
  if (mode != "none" && !arguments.Failed()) arguments.Fail("mode", "'exclusive', 'shared' or 'none'");
  return Mode::kNone;
}

Napi::Value LockFile(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const int fd = arguments.FdNumber(arguments.At(0), "fd");
  const Mode mode = ModeOf(arguments, arguments.At(1));
  if (arguments.Failed()) return Napi::Value();
  const int operation = mode == Mode::kExclusive ? LOCK_EX : mode == Mode::kShared ? LOCK_SH : LOCK_UN;
  if (flock(fd, operation | LOCK_NB) == 0) return Napi::Boolean::New(info.Env(), true);
  if (errno == EWOULDBLOCK) return Napi::Boolean::New(info.Env(), false);
  return ThrowFailure(info.Env(), LastFailure("flock"));
}

Napi::Value LockByte(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const int fd = arguments.FdNumber(arguments.At(0), "fd");
  const std::int64_t offset = arguments.Int64(arguments.At(1), "offset");
  const Mode mode = ModeOf(arguments, arguments.At(2));
  if (arguments.Failed()) return Napi::Value();
  struct flock lock {};
  lock.l_type = mode == Mode::kExclusive ? F_WRLCK : mode == Mode::kShared ? F_RDLCK : F_UNLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = offset;
  lock.l_len = 1;
  if (fcntl(fd, F_OFD_SETLK, &lock) == 0) return Napi::Boolean::New(info.Env(), true);
  if (errno == EAGAIN || errno == EACCES) return Napi::Boolean::New(info.Env(), false);
  return ThrowFailure(info.Env(), LastFailure("fcntl(F_OFD_SETLK)"));
}

Napi::Value OpenDirectory(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const std::string path = arguments.String(arguments.At(0), "path");
  if (arguments.Failed()) return Napi::Value();
  OpenHow how{};
  how.flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC;
  how.resolve = kResolveNoSymlinks;
  Fd fd(static_cast<int>(syscall(kOpenat2, AT_FDCWD, path.c_str(), &how, sizeof how)));
  if (!fd.valid()) return ThrowFailure(info.Env(), LastFailure("openat2"));
  return HandOver(info.Env(), std::move(fd));
}

Napi::Value SameAddressSpace(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const int one = arguments.Int32(arguments.At(0), "pid", 1);
  const int other = arguments.Int32(arguments.At(1), "otherPid", 1);
  if (arguments.Failed()) return Napi::Value();
  const long order = syscall(SYS_kcmp, one, other, kKcmpVm, 0, 0);
  if (order < 0) return ThrowFailure(info.Env(), LastFailure("kcmp"));
  return Napi::Boolean::New(info.Env(), order == 0);
}

}  // namespace

void InitLock(Napi::Env env, Napi::Object exports) {
  exports.Set("lockFile", Napi::Function::New<LockFile>(env, "lockFile"));
  exports.Set("lockByte", Napi::Function::New<LockByte>(env, "lockByte"));
  exports.Set("openDirectory", Napi::Function::New<OpenDirectory>(env, "openDirectory"));
  exports.Set("sameAddressSpace", Napi::Function::New<SameAddressSpace>(env, "sameAddressSpace"));
}

}  // namespace uprobe
