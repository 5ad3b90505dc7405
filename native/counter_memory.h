// The CounterCell class of lib/native.ts: a CounterStore for JavaScript.
#pragma once

#include <napi.h>

#include <optional>

#include "counter_store.h"
#include "fd.h"

namespace uprobe {

class CounterCell final : public Napi::ObjectWrap<CounterCell> {
 public:
  static void Init(Napi::Env env, Napi::Object exports);
  explicit CounterCell(const Napi::CallbackInfo& info);

 private:
  Napi::Value SetMsb(const Napi::CallbackInfo& info);
  Napi::Value ClearMsb(const Napi::CallbackInfo& info);
  Napi::Value Read(const Napi::CallbackInfo& info);
  Napi::Value Replace(const Napi::CallbackInfo& info);

  Fd own_maps_;  // only for a counter in the own process
  std::optional<CounterStore> store_;  // empty only if the constructor threw
};

}  // namespace uprobe
