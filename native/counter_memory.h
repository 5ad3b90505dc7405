// The CounterMemory class of lib/native.ts: CounterStores of one address space for JavaScript. A claim may have ten thousand counters, and as many objects with something native behind them would take V8's
// collector milliseconds each time; so a store is made for each call.
#pragma once

#include <napi.h>

#include <optional>

#include "arguments.h"
#include "counter_store.h"
#include "fd.h"

namespace uprobe {

class CounterMemory final : public Napi::ObjectWrap<CounterMemory> {
 public:
  static void Init(Napi::Env env, Napi::Object exports);
  explicit CounterMemory(const Napi::CallbackInfo& info);

 private:
  Napi::Value SetMsb(const Napi::CallbackInfo& info);
  Napi::Value ClearMsb(const Napi::CallbackInfo& info);
  Napi::Value Read(const Napi::CallbackInfo& info);
  Napi::Value Replace(const Napi::CallbackInfo& info);

  // The store of the place that is the first argument; nothing if `arguments` has failed.
  std::optional<CounterStore> StoreOf(Arguments& arguments) const;

  CounterStore::Space space_ = CounterStore::Space::kOther;
  int mem_fd_ = -1;
  int maps_fd_ = -1;
  Fd own_maps_;  // only for counters in the own process
};

}  // namespace uprobe
