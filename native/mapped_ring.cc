#include "mapped_ring.h"

#include <fcntl.h>
#include <unistd.h>

#include <memory>
#include <utility>

#include "arguments.h"
#include "async.h"

namespace uprobe {

namespace {

constexpr std::int64_t kMaxRingBytes = std::int64_t{1} << 31;

// By which these objects are told from those of others that also stand for something native.
constexpr napi_type_tag kTag = {0x9d4be1f0c8a2473e, 0xb6517f0d2ce94a88};

void Finalize(napi_env, void* ring, void*) { std::unique_ptr<BpfRing>(static_cast<BpfRing*>(ring)); }

Napi::Value MapRing(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const int map_fd = arguments.FdNumber(arguments.At(0), "mapFd");
  const std::int64_t ring_bytes = arguments.Integer(arguments.At(1), "ringBytes", sysconf(_SC_PAGESIZE), kMaxRingBytes);
  if (!arguments.Failed() && (ring_bytes & (ring_bytes - 1)) != 0) arguments.Fail("ringBytes", "a power of two");
  if (arguments.Failed()) return Napi::Value();
  // Now: by the time the thread comes to it, the number may be another's. Shared, since a std::function wants what it holds to be copied.
  // Not make_shared: what that asks of the library came with GLIBCXX_3.4.26.
  const std::shared_ptr<Fd> map(new Fd(fcntl(map_fd, F_DUPFD_CLOEXEC, 0)));
  const Failure refusal = LastFailure("fcntl(F_DUPFD_CLOEXEC)");
  return RunForRing(info.Env(), "mmap", [=]() -> Result<BpfRing> {
    if (!map->valid()) return refusal;
    return BpfRing::Map(std::move(*map), static_cast<std::size_t>(ring_bytes));
  });
}

}  // namespace

napi_value NewMappedRing(napi_env env, BpfRing& ring) {
  auto owned = std::make_unique<BpfRing>(std::move(ring));
  napi_value object = nullptr;
  if (napi_create_object(env, &object) == napi_ok && napi_type_tag_object(env, object, &kTag) == napi_ok &&
      napi_wrap(env, object, owned.get(), Finalize, nullptr, nullptr) == napi_ok) {
    owned.release();  // Finalize takes it, or TakeMappedRing
    return object;
  }
  ring = std::move(*owned);
  return nullptr;
}

std::optional<BpfRing> TakeMappedRing(napi_env env, napi_value value) {
  bool ours = false;
  void* ring = nullptr;
  napi_valuetype type = napi_undefined;
  if (napi_typeof(env, value, &type) != napi_ok || type != napi_object || napi_check_object_type_tag(env, value, &kTag, &ours) != napi_ok || !ours ||
      napi_remove_wrap(env, value, &ring) != napi_ok) {
    return std::nullopt;
  }
  const std::unique_ptr<BpfRing> owned(static_cast<BpfRing*>(ring));
  return std::move(*owned);
}

void InitMappedRing(Napi::Env env, Napi::Object exports) { exports.Set("mapRing", Napi::Function::New<MapRing>(env, "mapRing")); }

}  // namespace uprobe
