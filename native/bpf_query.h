// Asking the kernel which BPF programs are behind what other processes hold open.
#pragma once

#include <napi.h>

namespace uprobe {

void InitBpfQuery(Napi::Env env, Napi::Object exports);

}  // namespace uprobe
