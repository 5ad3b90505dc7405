// Closes file descriptors where it hurts nobody. Closing a uprobe waits for grace periods, about 70 to 110 ms each and one after another under
// a global lock: on the event loop it would stop the program, and on libuv's four threads it would stop its file system calls.
#pragma once

#include <napi.h>

namespace uprobe {

void InitCloser(Napi::Env env, Napi::Object exports);

}  // namespace uprobe
