#pragma once

#include <napi.h>

namespace uprobe {

void InitLock(Napi::Env env, Napi::Object exports);

}  // namespace uprobe
