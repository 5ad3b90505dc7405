// Closes file descriptors where it hurts nobody. Closing a uprobe waits for grace periods, about 70 to 110 ms each and one after another under
// a global lock: on the event loop it would stop the program, and on libuv's four threads it would stop its file system calls.
#pragma once

#include <napi.h>

#include "fd.h"

namespace uprobe {

// Closes a valid fd on the closing thread. For a registration that nobody took over. Any thread.
void CloseInBackground(Fd fd);

// What JavaScript has by its number belongs to JavaScript, which may end without closing it: a Worker can be terminated at any moment. So an
// environment knows what was handed over and not given back, and closes it when it ends: registrations on the closing thread.
enum class Kind { kOrdinary, kRegistration };

// Hands a valid fd over; returns false, with the fd still the caller's, if the environment has ended. JavaScript thread.
bool HandOver(napi_env env, Fd& fd, Kind kind);

// The same as the result of a function.
Napi::Value HandOver(Napi::Env env, Fd fd);

// JavaScript has given it back: it is closed, or somebody else's. Numbers that were never handed over are ignored. JavaScript thread.
void TakeBack(napi_env env, int fd);

void InitCloser(Napi::Env env, Napi::Object exports);

}  // namespace uprobe
