// Three USDT probes in this very addon: `uprobe:demo` with a semaphore and three arguments, to show tracing on; `uprobe:selftest` without
// either, to find out whether probing works here at all; `uprobe:step`, on an instruction that is no no-op, to find out what a hit of such a one costs.
#pragma once

#include <napi.h>

namespace uprobe {

void InitDemo(Napi::Env env, Napi::Object exports);

}  // namespace uprobe
