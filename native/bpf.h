// bpf(2), without libbpf: maps, programs, and the link that arms many uprobes at once.
#pragma once

#include <napi.h>

namespace uprobe {

void InitBpf(Napi::Env env, Napi::Object exports);

}  // namespace uprobe
