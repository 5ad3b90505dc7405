// The addon: everything that needs a system call, a mapped page or a thread, and nothing else. lib/native.ts describes its surface.
//
// Conventions of this folder
//   * A function checks its arguments, makes one interaction with the kernel, and throws or rejects with errno and the call's name. What to
//     try, when, and what a refusal means is decided in TypeScript.
//   * No file here parses what a target or a container can write.
//   * Every fd is close-on-exec, and owned by an Fd until JavaScript has its number.
//   * Node-API 8 and no C++ exceptions. All state belongs to an environment, of which a process may have many (Workers), except for the one
//     closing thread (closer.cc).

#include <napi.h>

#include "bpf.h"
#include "bpf_query.h"
#include "closer.h"
#include "counter_memory.h"
#include "demo.h"
#include "lock.h"
#include "mapped_ring.h"
#include "perf_event.h"
#include "process.h"
#include "ring_reader.h"

namespace {

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  uprobe::InitPerfEvent(env, exports);
  uprobe::InitBpf(env, exports);
  uprobe::InitBpfQuery(env, exports);
  uprobe::InitMappedRing(env, exports);
  uprobe::RingReader::Init(env, exports);
  uprobe::InitCloser(env, exports);
  uprobe::CounterMemory::Init(env, exports);
  uprobe::InitProcess(env, exports);
  uprobe::InitLock(env, exports);
  uprobe::InitDemo(env, exports);
  return exports;
}

}  // namespace

NODE_API_MODULE(NODE_GYP_MODULE_NAME, Init)
