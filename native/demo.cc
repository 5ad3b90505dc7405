#include "demo.h"

#include "arguments.h"
#include "errors.h"
#include "thread.h"
#include "usdt.h"

UPROBE_USDT_SEMAPHORE(uprobe_demo_semaphore);

namespace uprobe {

namespace {

// Not inlined, so that there is one no-op and one note of each, where a reader of the disassembly looks for it.
[[gnu::noinline]] void ProbeDemo(int index, std::int64_t big, const char* text) {
  UPROBE_USDT_PROBE3("uprobe", "demo", "uprobe_demo_semaphore", "-4@%0 -8@%1 8@%2", index, big, text);
}

[[gnu::noinline]] void ProbeStep() { UPROBE_USDT_STEP("uprobe", "step"); }

[[gnu::noinline]] void ProbeSelfTest() { UPROBE_USDT_PROBE0("uprobe", "selftest"); }

Napi::Value FireDemo(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const int index = arguments.Int32(arguments.At(0), "index");
  const std::int64_t big = arguments.Int64(arguments.At(1), "big");
  const std::string text = arguments.String(arguments.At(2), "text");
  if (arguments.Failed()) return Napi::Value();
  const bool traced = uprobe_demo_semaphore != 0;
  if (traced) ProbeDemo(index, big, text.c_str());
  return Napi::Boolean::New(info.Env(), traced);
}

Napi::Value DemoSemaphore(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), uprobe_demo_semaphore); }

Napi::Value FireStep(const Napi::CallbackInfo& info) {
  ProbeStep();
  return info.Env().Undefined();
}

Napi::Value FireSelfTest(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const std::uint32_t count = arguments.Uint32(arguments.At(0), "count");
  if (arguments.Failed()) return Napi::Value();
  // A thread of its own: what sees only the thread that it attached to does not pass.
  Result<Thread> thread = Thread::Start("uprobe-selftest", [count] {
    for (std::uint32_t hit = 0; hit < count; hit++) ProbeSelfTest();
  });
  if (const Failure* failure = thread.failure()) return ThrowFailure(info.Env(), *failure);
  thread.value().Join();
  return info.Env().Undefined();
}

}  // namespace

void InitDemo(Napi::Env env, Napi::Object exports) {
  exports.Set("fireDemo", Napi::Function::New<FireDemo>(env, "fireDemo"));
  exports.Set("demoSemaphore", Napi::Function::New<DemoSemaphore>(env, "demoSemaphore"));
  exports.Set("fireStep", Napi::Function::New<FireStep>(env, "fireStep"));
  exports.Set("fireSelfTest", Napi::Function::New<FireSelfTest>(env, "fireSelfTest"));
}

}  // namespace uprobe
