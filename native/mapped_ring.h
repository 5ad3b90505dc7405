// The MappedRing of lib/native.ts: a ring on its way from the thread that mapped it to the reader that takes it. It is an object of its own, because a reader that is being made would have to
// answer for a ring that it does not have yet. One that no reader takes is unmapped when it is collected.
#pragma once

#include <napi.h>

#include <optional>

#include "bpf_ring.h"

namespace uprobe {

// The object, which has the ring from now on; null if the environment can no longer make one, and then `ring` stays the caller's. JavaScript thread.
napi_value NewMappedRing(napi_env env, BpfRing& ring);

// Takes the ring out; nothing if `value` is no such object, or its ring was taken before. JavaScript thread.
std::optional<BpfRing> TakeMappedRing(napi_env env, napi_value value);

void InitMappedRing(Napi::Env env, Napi::Object exports);

}  // namespace uprobe
