// Processes, files and facts about the machine: one system call each.
#pragma once

#include <napi.h>

namespace uprobe {

void InitProcess(Napi::Env env, Napi::Object exports);

}  // namespace uprobe
