// Reads the arguments of a call from JavaScript. lib/native.ts promises their types to the compiler; this checks them again, because
// what is wrong here becomes a wrong pointer. The first wrong one throws a TypeError; after that every read answers a neutral value,
// so that a function reads all it needs and asks Failed() once.
#pragma once

#include <napi.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace uprobe {

class Arguments {
 public:
  explicit Arguments(const Napi::CallbackInfo& info) : info_(info), env_(info.Env()) {}

  // Whether a TypeError (or the exception of a getter) is pending: return at once.
  bool Failed() const { return failed_; }

  Napi::Value At(std::size_t index) { return info_[index]; }
  Napi::Object Object(std::size_t index, const char* name);
  Napi::Value Field(const Napi::Object& object, const char* name);

  std::int64_t Integer(const Napi::Value& value, const char* name, std::int64_t minimum, std::int64_t maximum);
  int Int32(const Napi::Value& value, const char* name, int minimum = std::numeric_limits<int>::min()) {
    return static_cast<int>(Integer(value, name, minimum, std::numeric_limits<int>::max()));
  }
  std::uint32_t Uint32(const Napi::Value& value, const char* name) {
    return static_cast<std::uint32_t>(Integer(value, name, 0, std::numeric_limits<std::uint32_t>::max()));
  }
  int FdNumber(const Napi::Value& value, const char* name) { return Int32(value, name, 0); }
  bool Boolean(const Napi::Value& value, const char* name);
  std::uint64_t Uint64(const Napi::Value& value, const char* name);
  std::int64_t Int64(const Napi::Value& value, const char* name);
  // A string without a NUL, which would cut it short in the kernel.
  std::string String(const Napi::Value& value, const char* name);
  Napi::Function Function(const Napi::Value& value, const char* name);
  // Copies: what a worker thread reads must not move under it.
  std::vector<std::uint8_t> Bytes(const Napi::Value& value, const char* name);
  // Not a copy: for a call that has ended when it returns. Empty if it is wrong.
  Napi::Uint8Array Room(const Napi::Value& value, const char* name);
  std::vector<std::uint64_t> Uint64Array(const Napi::Value& value, const char* name);
  std::vector<int> Int32Array(const Napi::Value& value, const char* name);
  std::vector<int> FdNumbers(const Napi::Value& value, const char* name);
  std::vector<std::string> Strings(const Napi::Value& value, const char* name);

  // Throws a TypeError that says what `name` must be.
  void Fail(const char* name, const char* expected);

 private:
  const Napi::CallbackInfo& info_;
  Napi::Env env_;
  bool failed_ = false;
};

}  // namespace uprobe
