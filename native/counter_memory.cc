#include "counter_cell.h"

#include <fcntl.h>

#include <cstdlib>
#include <string>

#include "arguments.h"
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

void CounterCell::Init(Napi::Env env, Napi::Object exports) {
  exports.Set("CounterCell", DefineClass(env, "CounterCell",
                                         {
                                             InstanceMethod<&CounterCell::SetMsb>("setMsb"),
                                             InstanceMethod<&CounterCell::ClearMsb>("clearMsb"),
                                             InstanceMethod<&CounterCell::Read>("read"),
                                             InstanceMethod<&CounterCell::Replace>("replace"),
                                         }));
}

CounterCell::CounterCell(const Napi::CallbackInfo& info) : Napi::ObjectWrap<CounterCell>(info) {
  Arguments arguments(info);
  const Napi::Object options = arguments.Object(0, "options");
  const int mem_fd = arguments.FdNumber(arguments.Field(options, "memFd"), "memFd");
  int maps_fd = arguments.FdNumber(arguments.Field(options, "mapsFd"), "mapsFd");
  const std::uint64_t address = arguments.Uint64(arguments.Field(options, "address"), "address");
  const std::string device = arguments.String(arguments.Field(options, "device"), "device");
  ExpectedMapping expected{};
  if (!arguments.Failed() && !ParseDevice(device, expected)) arguments.Fail("device", "a device as maps prints it");
  expected.inode = arguments.Uint64(arguments.Field(options, "inode"), "inode");
  expected.file_offset = arguments.Uint64(arguments.Field(options, "fileOffset"), "fileOffset");
  const bool own = arguments.Boolean(arguments.Field(options, "own"), "own");
  if (arguments.Failed()) return;
  if (own) {
    // The address becomes a pointer. That the expected mapping is there must be known of our own address space, not of the one that the
    // caller's descriptor happens to belong to.
    own_maps_ = Fd(open("/proc/thread-self/maps", O_RDONLY | O_CLOEXEC));
    if (!own_maps_.valid()) {
      ThrowFailure(info.Env(), LastFailure("open"));
      return;
    }
    maps_fd = own_maps_.get();
  }
  store_.emplace(own ? CounterStore::Space::kOwn : CounterStore::Space::kOther, mem_fd, maps_fd, address, expected);
}

Napi::Value CounterCell::SetMsb(const Napi::CallbackInfo& info) { return ReturnValue(info.Env(), store_->SetMsb()); }

Napi::Value CounterCell::ClearMsb(const Napi::CallbackInfo& info) { return ReturnValue(info.Env(), store_->ClearMsb()); }

Napi::Value CounterCell::Read(const Napi::CallbackInfo& info) { return ReturnValue(info.Env(), store_->Read()); }

Napi::Value CounterCell::Replace(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const auto expected = static_cast<std::uint16_t>(arguments.Integer(arguments.At(0), "expected", 0, kMaxValue));
  const auto value = static_cast<std::uint16_t>(arguments.Integer(arguments.At(1), "value", 0, kMaxValue));
  if (arguments.Failed()) return Napi::Value();
  Result<Nothing> replaced = store_->Replace(expected, value);
  if (const Failure* const failure = replaced.failure()) return ThrowFailure(info.Env(), *failure);
  return info.Env().Undefined();
}

}  // namespace uprobe
