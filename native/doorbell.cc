#include "doorbell.h"

#include <memory>
#include <utility>

namespace uprobe {

namespace {

void Call(napi_env env, napi_value, void* context, void*) {
  // A queue that is emptied when the function closes is called without an environment.
  if (env == nullptr) return;
  (*static_cast<Doorbell::Listener*>(context))(env);
}

void Finalize(napi_env, void* listener, void*) { std::unique_ptr<Doorbell::Listener>(static_cast<Doorbell::Listener*>(listener)); }

}  // namespace

bool Doorbell::Open(napi_env env, const char* name, Listener listener) {
  auto owned = std::make_unique<Listener>(std::move(listener));
  napi_value resource_name = nullptr;
  if (napi_create_string_utf8(env, name, NAPI_AUTO_LENGTH, &resource_name) != napi_ok) return false;
  napi_threadsafe_function function = nullptr;
  if (napi_create_threadsafe_function(env, nullptr, nullptr, resource_name, 1, 1, owned.get(), Finalize, owned.get(), Call, &function) !=
      napi_ok) {
    return false;
  }
  owned.release();  // Finalize takes it
  napi_unref_threadsafe_function(env, function);
  env_ = env;
  const std::lock_guard<std::mutex> lock(mutex_);
  function_ = function;
  return true;
}

void Doorbell::KeepAlive(bool alive) {
  if (function_ == nullptr) return;
  if (alive) {
    napi_ref_threadsafe_function(env_, function_);
  } else {
    napi_unref_threadsafe_function(env_, function_);
  }
}

void Doorbell::Close() {
  const std::lock_guard<std::mutex> lock(mutex_);
  napi_threadsafe_function function = std::exchange(function_, nullptr);
  // Abort: what is in the queue is only a ring.
  if (function != nullptr) napi_release_threadsafe_function(function, napi_tsfn_abort);
}

void Doorbell::Ring() {
  const std::lock_guard<std::mutex> lock(mutex_);
  // napi_queue_full means that a ring is on its way already, and it will be answered after what we have to offer was put down.
  if (function_ != nullptr) napi_call_threadsafe_function(function_, nullptr, napi_tsfn_nonblocking);
}

}  // namespace uprobe
