// The order in which things end matters here:
//
//   close(), or the cleanup hook of the environment, or the finalizer of a forgotten object, whichever comes first, joins the thread, and
//   then closes the doorbell. After the join nobody rings; after the closing nobody listens. The hook is registered after the doorbell was
//   opened, so that it runs before Node frees the function behind it. process.exit() of the main thread runs no hooks: the thread then runs
//   on until the process is gone, and touches nothing but this object and the function, which nobody frees.
//
// close() leaves unmapping the ring to another thread. The other two do it themselves: the environment is going, or somebody has forgotten to close.

#include "ring_reader.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "arguments.h"
#include "async.h"
#include "closer.h"
#include "errors.h"
#include "mapped_ring.h"

namespace uprobe {

namespace {

constexpr int kMaxFlushIntervalMs = 60'000;
constexpr std::int64_t kMaxPendingBytes = std::int64_t{1} << 31;
constexpr std::int64_t kMaxSidebandPages = 1 << 14;

napi_value ClosedError(Napi::Env env) {
  const Napi::Error error = Napi::Error::New(env, "the ring reader is closed");
  return error.Value();
}

const char* EventName(WatchEvent::Kind kind) {
  switch (kind) {
    case WatchEvent::Kind::kReadable:
      return "readable";
    case WatchEvent::Kind::kHangup:
      return "hangup";
    case WatchEvent::Kind::kExec:
      return "exec";
    case WatchEvent::Kind::kMap:
      return "map";
    case WatchEvent::Kind::kFork:
      return "fork";
    case WatchEvent::Kind::kLost:
      return "lost";
    case WatchEvent::Kind::kOffline:
      return "offline";
  }
  return "";
}

// Whether to lend the memory itself to JavaScript. V8 takes longer to keep track of such memory than to copy a little of it, and a block that is not nearly full would be kept as a whole.
bool IsWorthLending(const Chunk& chunk) {
  return chunk.size() >= ChunkPool::kSmallestBytes && chunk.size() >= chunk.capacity() / 8 * 7;
}

// Lends the memory of a chunk, which goes back to the pool when JavaScript has collected it. Null if that fails. `chunk` keeps its records where the runtime does not permit it (V8 in its sandbox);
// after any other failure they may be JavaScript's already, and are gone.
napi_value Lend(napi_env env, Chunk& chunk) {
  auto lent = std::make_unique<Chunk>(std::move(chunk));
  napi_value memory = nullptr;
  const auto give_back = [](napi_env, void*, void* chunk) { std::unique_ptr<Chunk>(static_cast<Chunk*>(chunk)); };
  const napi_status status = napi_create_external_arraybuffer(env, lent->data(), lent->size(), give_back, lent.get(), &memory);
  if (status == napi_no_external_buffers_allowed) {
    chunk = std::move(*lent);
    return nullptr;
  }
  lent.release();  // give_back takes it
  return status == napi_ok ? memory : nullptr;
}

// Up to here filling memory with zeros takes less than what a Buffer is besides its memory.
constexpr std::size_t kFewBytes = 1024;

// Copies into the memory of a Buffer, which is not filled with zeros first, or of an ArrayBuffer, which is made sooner.
napi_value Copy(napi_env env, const Chunk& chunk) {
  void* data = nullptr;
  napi_value buffer = nullptr;
  napi_value memory = nullptr;
  if (chunk.size() <= kFewBytes) {
    if (napi_create_arraybuffer(env, chunk.size(), &data, &memory) != napi_ok) return nullptr;
    std::memcpy(data, chunk.data(), chunk.size());
    return memory;
  }
  if (napi_create_buffer(env, chunk.size(), &data, &buffer) != napi_ok ||
      napi_get_typedarray_info(env, buffer, nullptr, nullptr, nullptr, &memory, nullptr) != napi_ok) {
    return nullptr;
  }
  std::memcpy(data, chunk.data(), chunk.size());
  return memory;
}

}  // namespace

void RingReader::Init(Napi::Env env, Napi::Object exports) {
  exports.Set("RingReader", DefineClass(env, "RingReader",
                                        {
                                            InstanceAccessor<&RingReader::Tid>("tid"),
                                            InstanceMethod<&RingReader::Take>("take"),
                                            InstanceAccessor<&RingReader::TakenDistance>("takenDistance"),
                                            InstanceAccessor<&RingReader::Waits>("waits"),
                                            InstanceMethod<&RingReader::TakeEvents>("takeEvents"),
                                            InstanceMethod<&RingReader::RequestDrain>("drain"),
                                            InstanceMethod<&RingReader::Watch>("watch"),
                                            InstanceMethod<&RingReader::Unwatch>("unwatch"),
                                            InstanceMethod<&RingReader::SetSidebandFilter>("setSidebandFilter"),
                                            InstanceMethod<&RingReader::SetRef>("ref"),
                                            InstanceMethod<&RingReader::SetUnref>("unref"),
                                            InstanceMethod<&RingReader::CloseByUser>("close"),
                                        }));
}

RingReader::RingReader(const Napi::CallbackInfo& info) : Napi::ObjectWrap<RingReader>(info), env_(info.Env()) {
  Arguments arguments(info);
  const Napi::Object options = arguments.Object(0, "options");
  ReaderThread::Options thread_options{};
  thread_options.flush_interval_ms =
      static_cast<int>(arguments.Integer(arguments.Field(options, "flushIntervalMs"), "flushIntervalMs", 0, kMaxFlushIntervalMs));
  thread_options.pending_limit_bytes =
      static_cast<std::size_t>(arguments.Integer(arguments.Field(options, "pendingLimitBytes"), "pendingLimitBytes", 1, kMaxPendingBytes));
  const Napi::Function on_doorbell = arguments.Function(arguments.Field(options, "onDoorbell"), "onDoorbell");
  // Last, since it is taken: where something before it is refused, there is no field.
  std::optional<BpfRing> ring = TakeMappedRing(env_, arguments.Field(options, "ring"));
  if (!ring) arguments.Fail("ring", "a mapped ring that no reader has");
  if (arguments.Failed()) return;
  on_doorbell_ = Napi::Persistent(on_doorbell);

  if (!doorbell_.Open(env_, "uprobe:RingReader", [this](napi_env env) { OnRing(env); })) {
    Napi::Error::New(env_, "the doorbell could not be made").ThrowAsJavaScriptException();
    return;
  }
  thread_options.ring_bell = [this] { doorbell_.Ring(); };
  Result<std::unique_ptr<ReaderThread>> started = ReaderThread::Start(std::move(*ring), std::move(thread_options));
  if (const Failure* failure = started.failure()) {
    doorbell_.Close();
    ThrowFailure(env_, *failure);
    return;
  }
  thread_ = std::move(started.value());
  tid_ = thread_->tid();
  hooked_ = napi_add_env_cleanup_hook(env_, OnEnvironmentEnd, this) == napi_ok;
}

RingReader::~RingReader() { Stop(); }

void RingReader::OnEnvironmentEnd(void* self) {
  auto* const reader = static_cast<RingReader*>(self);
  reader->hooked_ = false;  // it removes itself
  reader->Stop();
}

std::unique_ptr<ReaderThread> RingReader::Stop() {
  if (thread_) thread_->Stop();
  doorbell_.Close();
  if (std::exchange(hooked_, false)) napi_remove_env_cleanup_hook(env_, OnEnvironmentEnd, this);
  return std::move(thread_);
}

Napi::Value RingReader::CloseByUser(const Napi::CallbackInfo& info) {
  // Shared, since a std::function wants what it holds to be copied.
  std::shared_ptr<ReaderThread> stopped = Stop();
  for (const Drain& drain : std::exchange(drains_, {})) {
    napi_reject_deferred(env_, drain.deferred, ClosedError(env_));
    Unref();
  }
  // The caller's closure, and all that it holds.
  on_doorbell_.Reset();
  return RunForNothing(info.Env(), "munmap", [stopped = std::move(stopped)]() mutable -> Result<Nothing> {
    stopped.reset();
    return Nothing();
  });
}

Napi::Value RingReader::Tid(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), tid_); }

Napi::Value RingReader::Take(const Napi::CallbackInfo& info) {
  if (!thread_) return info.Env().Undefined();
  std::optional<Chunk> chunk = thread_->Take();
  taken_distance_ = chunk ? chunk->kind().distance() : 0;
  if (!chunk) return info.Env().Undefined();
  napi_value memory = IsWorthLending(*chunk) ? Lend(env_, *chunk) : nullptr;
  if (memory == nullptr && !chunk->empty()) memory = Copy(env_, *chunk);
  if (memory == nullptr) napi_throw_error(env_, nullptr, "there is no memory for a batch; its hits are lost");
  return Napi::Value(env_, memory);
}

Napi::Value RingReader::TakenDistance(const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), static_cast<double>(taken_distance_)); }

Napi::Value RingReader::Waits(const Napi::CallbackInfo& info) { return Napi::Boolean::New(info.Env(), thread_ && thread_->HasChunks()); }

Napi::Value RingReader::TakeEvents(const Napi::CallbackInfo& info) {
  const std::vector<WatchEvent> events = thread_ ? thread_->TakeEvents() : std::vector<WatchEvent>();
  const Napi::Array array = Napi::Array::New(info.Env(), events.size());
  std::uint32_t index = 0;
  for (const WatchEvent& event : events) {
    const Napi::Object object = Napi::Object::New(info.Env());
    object.Set("watch", Napi::Number::New(info.Env(), event.watch));
    object.Set("event", Napi::String::New(info.Env(), EventName(event.kind)));
    if (event.kind == WatchEvent::Kind::kMap || event.kind == WatchEvent::Kind::kFork) object.Set("pid", Napi::Number::New(info.Env(), event.pid));
    array.Set(index++, object);
  }
  return array;
}

Napi::Value RingReader::RequestDrain(const Napi::CallbackInfo& info) {
  napi_deferred deferred = nullptr;
  napi_value promise = nullptr;
  if (napi_create_promise(env_, &deferred, &promise) != napi_ok) return Napi::Value();
  if (thread_) {
    drains_.push_back({thread_->RequestDrain(), deferred});
    // Whoever waits for the promise needs this object, and the event loop.
    Ref();
    UpdateKeepAlive();
  } else {
    napi_reject_deferred(env_, deferred, ClosedError(env_));
  }
  return Napi::Value(info.Env(), promise);
}

Napi::Value RingReader::Watch(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const int number = arguments.FdNumber(arguments.At(0), "fd");
  const std::string kind = arguments.String(arguments.At(1), "kind");
  const bool sideband = kind == "sideband";
  if (!arguments.Failed() && kind != "pidfd" && kind != "task" && !sideband) arguments.Fail("kind", "'pidfd', 'task' or 'sideband'");
  const auto pages = static_cast<std::size_t>(sideband ? arguments.Integer(arguments.At(2), "pages", 1, kMaxSidebandPages) : 0);
  if (!arguments.Failed() && (pages & (pages - 1)) != 0) arguments.Fail("pages", "a power of two");
  if (arguments.Failed()) return Napi::Value();
  if (!thread_) {
    napi_throw(env_, ClosedError(env_));
    return Napi::Value();
  }
  Fd fd(number);
  Result<std::uint32_t> watched = thread_->Watch(fd, sideband ? WatchKind::kSideband : kind == "task" ? WatchKind::kTask : WatchKind::kPidfd, pages);
  if (const Failure* failure = watched.failure()) {
    fd.Release();  // still the caller's
    return ThrowFailure(env_, *failure);
  }
  TakeBack(env_, number);
  return Napi::Number::New(env_, watched.value());
}

Napi::Value RingReader::Unwatch(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const std::uint32_t number = arguments.Uint32(arguments.At(0), "watch");
  if (!arguments.Failed() && thread_) thread_->Unwatch(number);
  return info.Env().Undefined();
}

Napi::Value RingReader::SetSidebandFilter(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const Napi::Object filter = arguments.Object(0, "filter");
  const std::vector<std::uint64_t> inodes = arguments.Uint64Array(arguments.Field(filter, "inodes"), "inodes");
  const std::vector<std::string> names = arguments.Strings(arguments.Field(filter, "names"), "names");
  const std::vector<int> pids = arguments.Int32Array(arguments.Field(filter, "pids"), "pids");
  if (arguments.Failed() || !thread_) return info.Env().Undefined();
  thread_->SetSidebandFilter({{inodes.begin(), inodes.end()}, {names.begin(), names.end()}, {pids.begin(), pids.end()}});
  return info.Env().Undefined();
}

Napi::Value RingReader::SetRef(const Napi::CallbackInfo& info) {
  referenced_ = true;
  UpdateKeepAlive();
  return info.Env().Undefined();
}

Napi::Value RingReader::SetUnref(const Napi::CallbackInfo& info) {
  referenced_ = false;
  UpdateKeepAlive();
  return info.Env().Undefined();
}

void RingReader::UpdateKeepAlive() { doorbell_.KeepAlive(referenced_ || !drains_.empty()); }

void RingReader::OnRing(napi_env env) {
  if (!thread_) return;
  // Asked before the callback: what is offered while it runs has not been rung for.
  const std::uint64_t offered = thread_->offered();
  // The callback may close us and let go of the object.
  Ref();
  napi_value undefined = nullptr;
  napi_get_undefined(env, &undefined);
  // Said, so that a doorbell for hits, as most are, takes one call less.
  napi_value events = nullptr;
  napi_get_boolean(env, thread_->HasEvents(), &events);
  const napi_status status = napi_call_function(env, undefined, on_doorbell_.Value(), 1, &events, nullptr);
  if (status == napi_pending_exception) {
    // The callback promised not to throw. Node swallows what a thread-safe function throws, so it is made an uncaught exception by hand.
    napi_value exception = nullptr;
    if (napi_get_and_clear_last_exception(env, &exception) == napi_ok) napi_fatal_exception(env, exception);
  }
  SettleDrains(offered);
  Unref();
}

void RingReader::SettleDrains(std::uint64_t offered) {
  const auto unsettled = std::stable_partition(drains_.begin(), drains_.end(), [offered](const Drain& drain) { return drain.position > offered; });
  if (unsettled == drains_.end()) return;
  const std::vector<Drain> settled(unsettled, drains_.end());
  drains_.erase(unsettled, drains_.end());
  UpdateKeepAlive();
  napi_value undefined = nullptr;
  napi_get_undefined(env_, &undefined);
  for (const Drain& drain : settled) {
    napi_resolve_deferred(env_, drain.deferred, undefined);
    Unref();
  }
}

}  // namespace uprobe
