// Lets any thread call a function on the JavaScript thread, without an argument and without a queue: ringing twice before anybody came is
// ringing once. What there is to fetch lies elsewhere, under a lock, and was put there before the bell rang; so no ring is lost.
//
// It is a napi_threadsafe_function with a queue of one. Before Node 22 such a function was freed with its environment even if threads
// still held it, so Ring and Close share a lock, and the owner calls Close from a cleanup hook that it registers after Open: hooks run
// last in, first out, so ours comes before the one that frees the function.
#pragma once

#include <napi.h>

#include <functional>
#include <mutex>

namespace uprobe {

class Doorbell {
 public:
  // Runs on the JavaScript thread with a handle scope open, never after Close.
  using Listener = std::function<void(napi_env)>;

  Doorbell() = default;
  Doorbell(const Doorbell&) = delete;
  Doorbell& operator=(const Doorbell&) = delete;
  ~Doorbell() { Close(); }

  // JavaScript thread. It does not keep the event loop alive. False if the environment refused.
  bool Open(napi_env env, const char* name, Listener listener);
  // JavaScript thread. Whether it keeps the event loop alive.
  void KeepAlive(bool alive);
  // JavaScript thread. Idempotent.
  void Close();
  // Any thread. Nothing happens after Close.
  void Ring();

 private:
  napi_env env_ = nullptr;
  std::mutex mutex_;
  napi_threadsafe_function function_ = nullptr;
};

}  // namespace uprobe
