#include "counter_memory.h"

#include <fcntl.h>

#include <cstdlib>
#include <string>

#include "errors.h"

namespace uprobe {

namespace {

constexpr std::int64_t kMaxValue = 0xffff;

// "08:01", as maps prints the device of a mapping.
bool ParseDevice(const std::string& text, ExpectedMapping& expected) {
  const std::size_t colon = text.find(':');
  if (colon == std::string::npos || text.find_first_not_of("0123456789abcdef:") != std::string::npos) return false;
  const std::string major = text.substr(0, colon);
  const std::string minor = text.substr(colon + 1);
  if (major.empty() || major.size() > 8 || minor.empty() || minor.size() > 8 || minor.find(':') != std::string::npos) return false;
  expected.device_major = static_cast<std::uint32_t>(std::strtoul(major.c_str(), nullptr, 16));
  expected.device_minor = static_cast<std::uint32_t>(std::strtoul(minor.c_str(), nullptr, 16));
  return true;
}

Napi::Value ReturnValue(Napi::Env env, Result<std::uint16_t> result) {
  if (const Failure* const failure = result.failure()) return ThrowFailure(env, *failure);
  return Napi::Number::New(env, result.value());
}

}  // namespace

void CounterMemory::Init(Napi::Env env, Napi::Object exports) {
  exports.Set("CounterMemory", DefineClass(env, "CounterMemory",
                                           {
                                               InstanceMethod<&CounterMemory::SetMsb>("setMsb"),
                                               InstanceMethod<&CounterMemory::ClearMsb>("clearMsb"),
                                               InstanceMethod<&CounterMemory::Read>("read"),
                                               InstanceMethod<&CounterMemory::Replace>("replace"),
                                           }));
}

CounterMemory::CounterMemory(const Napi::CallbackInfo& info) : Napi::ObjectWrap<CounterMemory>(info) {
  Arguments arguments(info);
  const Napi::Object options = arguments.Object(0, "options");
  mem_fd_ = arguments.FdNumber(arguments.Field(options, "memFd"), "memFd");
  maps_fd_ = arguments.FdNumber(arguments.Field(options, "mapsFd"), "mapsFd");
  const bool own = arguments.Boolean(arguments.Field(options, "own"), "own");
  if (arguments.Failed() || !own) return;
  // An address becomes a pointer. That the expected mapping is there must be known of our own address space, not of the one that the
  // caller's descriptor happens to belong to.
  own_maps_ = Fd(open("/proc/thread-self/maps", O_RDONLY | O_CLOEXEC));
  if (!own_maps_.valid()) {
    ThrowFailure(info.Env(), LastFailure("open"));
    return;
  }
  space_ = CounterStore::Space::kOwn;
  maps_fd_ = own_maps_.get();
}

std::optional<CounterStore> CounterMemory::StoreOf(Arguments& arguments) const {
  const Napi::Object place = arguments.Object(0, "place");
  const std::uint64_t address = arguments.Uint64(arguments.Field(place, "address"), "address");
  const std::string device = arguments.String(arguments.Field(place, "device"), "device");
  ExpectedMapping expected{};
  if (!arguments.Failed() && !ParseDevice(device, expected)) arguments.Fail("device", "a device as maps prints it");
  expected.inode = arguments.Uint64(arguments.Field(place, "inode"), "inode");
  expected.file_offset = arguments.Uint64(arguments.Field(place, "fileOffset"), "fileOffset");
  if (arguments.Failed()) return std::nullopt;
  return std::make_optional<CounterStore>(space_, mem_fd_, maps_fd_, address, expected);
}

Napi::Value CounterMemory::SetMsb(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  std::optional<CounterStore> store = StoreOf(arguments);
  return store ? ReturnValue(info.Env(), store->SetMsb()) : Napi::Value();
}

Napi::Value CounterMemory::ClearMsb(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  std::optional<CounterStore> store = StoreOf(arguments);
  return store ? ReturnValue(info.Env(), store->ClearMsb()) : Napi::Value();
}

Napi::Value CounterMemory::Read(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  std::optional<CounterStore> store = StoreOf(arguments);
  return store ? ReturnValue(info.Env(), store->Read()) : Napi::Value();
}

Napi::Value CounterMemory::Replace(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  std::optional<CounterStore> store = StoreOf(arguments);
  const auto expected = static_cast<std::uint16_t>(arguments.Integer(arguments.At(1), "expected", 0, kMaxValue));
  const auto value = static_cast<std::uint16_t>(arguments.Integer(arguments.At(2), "value", 0, kMaxValue));
  if (!store || arguments.Failed()) return Napi::Value();
  Result<Nothing> replaced = store->Replace(expected, value);
  if (const Failure* const failure = replaced.failure()) return ThrowFailure(info.Env(), *failure);
  return info.Env().Undefined();
}

}  // namespace uprobe
