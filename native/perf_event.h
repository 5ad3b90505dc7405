// perf_event_open(2): uprobes on the kernel's uprobe PMU, and the dummy event that watches a thread for exec and exit.
#pragma once

#include <napi.h>

namespace uprobe {

void InitPerfEvent(Napi::Env env, Napi::Object exports);

}  // namespace uprobe
