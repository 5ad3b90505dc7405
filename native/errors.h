// Errors as Node's own look: an Error with `syscall`, `errno` and `code`, but with a positive errno.
#pragma once

#include <napi.h>

#include "result.h"

namespace uprobe {

// The errno's name, as in "EINVAL"; for a number without one, "ERRNO_n".
std::string ErrnoName(int number);

// A new Error for `failure`, or null if the environment can no longer make one.
napi_value NewError(napi_env env, const Failure& failure);

// Throws it, and returns an empty value for `return ThrowFailure(…)`.
Napi::Value ThrowFailure(Napi::Env env, const Failure& failure);

}  // namespace uprobe
