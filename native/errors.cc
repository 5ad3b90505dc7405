#include "errors.h"

namespace uprobe {

namespace {

// ENOTSUPP is internal to the kernel and has no place in <errno.h>, but it does reach user space: uprobes answer with it for
// an instruction that cannot be probed (arch_uprobe_analyze_insn, arch/x86/kernel/uprobes.c).
constexpr int kENOTSUPP = 524;

}  // namespace

// A table of our own: strerrorname_np needs glibc 2.32.
std::string ErrnoName(int number) {
  switch (number) {
#define NAME(symbol) \
  case symbol:       \
    return #symbol
    NAME(EPERM);
    NAME(ENOENT);
    NAME(ESRCH);
    NAME(EINTR);
    NAME(EIO);
    NAME(ENXIO);
    NAME(E2BIG);
    NAME(ENOEXEC);
    NAME(EBADF);
    NAME(ECHILD);
    NAME(EAGAIN);
    NAME(ENOMEM);
    NAME(EACCES);
    NAME(EFAULT);
    NAME(ENOTBLK);
    NAME(EBUSY);
    NAME(EEXIST);
    NAME(EXDEV);
    NAME(ENODEV);
    NAME(ENOTDIR);
    NAME(EISDIR);
    NAME(EINVAL);
    NAME(ENFILE);
    NAME(EMFILE);
    NAME(ENOTTY);
    NAME(ETXTBSY);
    NAME(EFBIG);
    NAME(ENOSPC);
    NAME(ESPIPE);
    NAME(EROFS);
    NAME(EMLINK);
    NAME(EPIPE);
    NAME(EDOM);
    NAME(ERANGE);
    NAME(EDEADLK);
    NAME(ENAMETOOLONG);
    NAME(ENOLCK);
    NAME(ENOSYS);
    NAME(ENOTEMPTY);
    NAME(ELOOP);
    NAME(ENODATA);
    NAME(ETIME);
    NAME(EPROTO);
    NAME(EBADMSG);
    NAME(EOVERFLOW);
    NAME(EILSEQ);
    NAME(EUSERS);
    NAME(EOPNOTSUPP);
    NAME(EADDRINUSE);
    NAME(ENOBUFS);
    NAME(ETIMEDOUT);
    NAME(EALREADY);
    NAME(EINPROGRESS);
    NAME(ESTALE);
    NAME(EDQUOT);
    NAME(ECANCELED);
#undef NAME
    case kENOTSUPP:
      return "ENOTSUPP";
    default:
      return "ERRNO_" + std::to_string(number);
  }
}

napi_value NewError(napi_env env, const Failure& failure) {
  const std::string code = ErrnoName(failure.number);
  const std::string message = std::string(failure.syscall) + " failed with " + code + " (" + std::to_string(failure.number) + ")";

  // Plain Node-API calls instead of the C++ classes: this also runs while an environment ends, where each of them may refuse.
  const auto text = [env](const std::string& value) {
    napi_value result = nullptr;
    return napi_create_string_utf8(env, value.data(), value.size(), &result) == napi_ok ? result : nullptr;
  };
  napi_value code_value = text(code);
  napi_value message_value = text(message);
  napi_value syscall_value = text(failure.syscall);
  napi_value errno_value = nullptr;
  napi_value error = nullptr;
  if (code_value == nullptr || message_value == nullptr || syscall_value == nullptr) return nullptr;
  if (napi_create_int32(env, failure.number, &errno_value) != napi_ok) return nullptr;
  if (napi_create_error(env, code_value, message_value, &error) != napi_ok) return nullptr;
  if (napi_set_named_property(env, error, "errno", errno_value) != napi_ok) return nullptr;
  if (napi_set_named_property(env, error, "syscall", syscall_value) != napi_ok) return nullptr;
  if (!failure.verifier_log.empty()) {
    napi_value log = text(failure.verifier_log);
    if (log == nullptr || napi_set_named_property(env, error, "verifierLog", log) != napi_ok) return nullptr;
  }
  return error;
}

Napi::Value ThrowFailure(Napi::Env env, const Failure& failure) {
  napi_value error = NewError(env, failure);
  // Only a dying environment refuses to make or to throw an error; no JavaScript will look for it.
  if (error != nullptr) napi_throw(env, error);
  return Napi::Value();
}

}  // namespace uprobe
