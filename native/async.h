// Runs one system call on libuv's threads and settles a promise with what it left. For calls that wait on kernel locks or grace
// periods, as attaching a probe takes a global lock behind which others may be waiting for seconds; and for what takes the kernel long.
#pragma once

#include <napi.h>

#include <functional>
#include <string>

#include "bpf_ring.h"
#include "fd.h"
#include "result.h"

namespace uprobe {

// A promise for the fd that `work` opens. If the environment ends first, the fd is closed.
Napi::Value RunForFd(Napi::Env env, const char* name, std::function<Result<Fd>()> work);

// The same for an fd that is a registration: if the environment ends first, the closing thread closes it (closer.h).
Napi::Value RunForRegistration(Napi::Env env, const char* name, std::function<Result<Fd>()> work);

// A promise for the text that `work` finds, in UTF-8.
Napi::Value RunForText(Napi::Env env, const char* name, std::function<Result<std::string>()> work);

// A promise for the ring that `work` maps, as a mapped ring (mapped_ring.h). If the environment ends first, it is unmapped.
Napi::Value RunForRing(Napi::Env env, const char* name, std::function<Result<BpfRing>()> work);

// A promise for the end of `work`.
Napi::Value RunForNothing(Napi::Env env, const char* name, std::function<Result<Nothing>()> work);

}  // namespace uprobe
