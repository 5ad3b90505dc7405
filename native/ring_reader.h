// The RingReader class of lib/native.ts: a ReaderThread with a doorbell into one JavaScript environment.
#pragma once

#include <napi.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "doorbell.h"
#include "reader_thread.h"

namespace uprobe {

class RingReader final : public Napi::ObjectWrap<RingReader> {
 public:
  static void Init(Napi::Env env, Napi::Object exports);
  explicit RingReader(const Napi::CallbackInfo& info);
  ~RingReader() override;

 private:
  struct Drain {
    std::uint64_t position;  // of the ring
    napi_deferred deferred;
  };

  Napi::Value Tid(const Napi::CallbackInfo& info);
  Napi::Value Take(const Napi::CallbackInfo& info);
  Napi::Value TakenDistance(const Napi::CallbackInfo& info);
  Napi::Value Waits(const Napi::CallbackInfo& info);
  Napi::Value TakeEvents(const Napi::CallbackInfo& info);
  Napi::Value RequestDrain(const Napi::CallbackInfo& info);
  Napi::Value Watch(const Napi::CallbackInfo& info);
  Napi::Value Unwatch(const Napi::CallbackInfo& info);
  Napi::Value SetSidebandFilter(const Napi::CallbackInfo& info);
  Napi::Value SetRef(const Napi::CallbackInfo& info);
  Napi::Value SetUnref(const Napi::CallbackInfo& info);
  Napi::Value CloseByUser(const Napi::CallbackInfo& info);

  static void OnEnvironmentEnd(void* self);
  // Joins the thread and closes the doorbell. Idempotent; does not enter JavaScript. Returns what is left of the thread: whoever destroys it unmaps the ring.
  std::unique_ptr<ReaderThread> Stop();
  void OnRing(napi_env env);
  void SettleDrains(std::uint64_t offered);
  void UpdateKeepAlive();

  const Napi::Env env_;
  Napi::FunctionReference on_doorbell_;
  Doorbell doorbell_;
  std::unique_ptr<ReaderThread> thread_;  // null once closed
  int tid_ = 0;
  std::size_t taken_distance_ = 0;  // of the chunk that was taken last
  bool hooked_ = false;
  bool referenced_ = false;  // what ref() and unref() said last
  std::vector<Drain> drains_;
};

}  // namespace uprobe
