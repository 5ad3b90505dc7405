// Closes file descriptors where it hurts nobody. Closing a uprobe waits for grace periods, about 70 to 110 ms each and one after another under
// a global lock: on the event loop it would stop the program, and on libuv's four threads it would stop its file system calls.
#pragma once

#include <napi.h>

#include "fd.h"

namespace uprobe {

// Closes a valid fd on the closing thread. For a registration that nobody took over. Any thread.
void CloseInBackground(Fd fd);

void InitCloser(Napi::Env env, Napi::Object exports);

}  // namespace uprobe
