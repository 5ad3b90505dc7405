#include "async.h"

#include <cerrno>
#include <memory>
#include <optional>

#include "closer.h"
#include "errors.h"
#include "mapped_ring.h"

namespace uprobe {

namespace {

napi_value ToJavaScript(napi_env env, const Fd& fd) {
  napi_value number = nullptr;
  return napi_create_int32(env, fd.get(), &number) == napi_ok ? number : nullptr;
}

// A registration that has no owner yet.
class Registration {
 public:
  explicit Registration(Fd fd) : fd_(std::move(fd)) {}
  Registration(Registration&&) = default;
  ~Registration() {
    if (fd_.valid()) CloseInBackground(std::move(fd_));
  }

  Fd& fd() { return fd_; }

 private:
  Fd fd_;
};

napi_value ToJavaScript(napi_env env, Registration& registration) { return ToJavaScript(env, registration.fd()); }

napi_value ToJavaScript(napi_env env, const std::string& text) {
  napi_value value = nullptr;
  return napi_create_string_utf8(env, text.data(), text.size(), &value) == napi_ok ? value : nullptr;
}

napi_value ToJavaScript(napi_env env, BpfRing& ring) { return NewMappedRing(env, ring); }

napi_value ToJavaScript(napi_env env, const Nothing&) {
  napi_value undefined = nullptr;
  return napi_get_undefined(env, &undefined) == napi_ok ? undefined : nullptr;
}

// JavaScript owns the value from here on, unless its environment has ended.
void HandToJavaScript(napi_env env, Fd& fd) { HandOver(env, fd, Kind::kOrdinary); }
void HandToJavaScript(napi_env env, Registration& registration) { HandOver(env, registration.fd(), Kind::kRegistration); }
void HandToJavaScript(napi_env, std::string&) {}
void HandToJavaScript(napi_env, BpfRing&) {}  // it has it already
void HandToJavaScript(napi_env, Nothing&) {}

template <typename Value>
struct Task {
  std::function<Result<Value>()> work;
  std::optional<Result<Value>> result;
  napi_async_work async_work = nullptr;
  napi_deferred deferred = nullptr;

  static void Execute(napi_env, void* data) {
    auto* const task = static_cast<Task*>(data);
    task->result.emplace(task->work());
  }

  static void Complete(napi_env env, napi_status, void* data) {
    const std::unique_ptr<Task> task(static_cast<Task*>(data));
    napi_delete_async_work(env, task->async_work);
    // Cancelled before it ran, which only the end of the environment does.
    if (!task->result) return;
    // Each step fails while the environment ends. Then nobody waits for the promise, and the value is destroyed with the task.
    if (const Failure* failure = task->result->failure()) {
      napi_value error = NewError(env, *failure);
      if (error != nullptr) napi_reject_deferred(env, task->deferred, error);
      return;
    }
    Value& value = task->result->value();
    napi_value converted = ToJavaScript(env, value);
    if (converted == nullptr) {
      // Or there is no memory for it.
      napi_value error = NewError(env, Failure{"napi", ENOMEM});
      if (error != nullptr) napi_reject_deferred(env, task->deferred, error);
      return;
    }
    if (napi_resolve_deferred(env, task->deferred, converted) == napi_ok) HandToJavaScript(env, value);
  }

  static Napi::Value Start(Napi::Env env, const char* name, std::function<Result<Value>()> work) {
    auto task = std::make_unique<Task>();
    task->work = std::move(work);
    napi_value promise = nullptr;
    napi_value resource_name = nullptr;
    if (napi_create_string_utf8(env, name, NAPI_AUTO_LENGTH, &resource_name) != napi_ok ||
        napi_create_async_work(env, nullptr, resource_name, Execute, Complete, task.get(), &task->async_work) != napi_ok ||
        napi_create_promise(env, &task->deferred, &promise) != napi_ok || napi_queue_async_work(env, task->async_work) != napi_ok) {
      if (task->async_work != nullptr) napi_delete_async_work(env, task->async_work);
      Napi::Error::New(env, std::string(name) + " could not be queued").ThrowAsJavaScriptException();
      return Napi::Value();
    }
    task.release();  // Complete takes it
    return Napi::Value(env, promise);
  }
};

}  // namespace

Napi::Value RunForFd(Napi::Env env, const char* name, std::function<Result<Fd>()> work) {
  return Task<Fd>::Start(env, name, std::move(work));
}

Napi::Value RunForRegistration(Napi::Env env, const char* name, std::function<Result<Fd>()> work) {
  return Task<Registration>::Start(env, name, [work = std::move(work)]() -> Result<Registration> {
    Result<Fd> opened = work();
    if (const Failure* failure = opened.failure()) return *failure;
    return Registration(std::move(opened.value()));
  });
}

Napi::Value RunForText(Napi::Env env, const char* name, std::function<Result<std::string>()> work) {
  return Task<std::string>::Start(env, name, std::move(work));
}

Napi::Value RunForRing(Napi::Env env, const char* name, std::function<Result<BpfRing>()> work) {
  return Task<BpfRing>::Start(env, name, std::move(work));
}

Napi::Value RunForNothing(Napi::Env env, const char* name, std::function<Result<Nothing>()> work) {
  return Task<Nothing>::Start(env, name, std::move(work));
}

}  // namespace uprobe
