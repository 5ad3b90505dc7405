#include "arguments.h"

namespace uprobe {

void Arguments::Fail(const char* name, const char* expected) {
  if (failed_) return;
  failed_ = true;
  Napi::TypeError::New(env_, std::string(name) + " must be " + expected).ThrowAsJavaScriptException();
}

Napi::Object Arguments::Object(std::size_t index, const char* name) {
  const Napi::Value value = At(index);
  if (!value.IsObject()) {
    Fail(name, "an object");
    return Napi::Object::New(env_);
  }
  return value.As<Napi::Object>();
}

Napi::Value Arguments::Field(const Napi::Object& object, const char* name) {
  if (failed_) return env_.Undefined();
  const Napi::Value value = object.Get(name);
  if (value.IsEmpty()) {  // a getter threw
    failed_ = true;
    return env_.Undefined();
  }
  return value;
}

std::int64_t Arguments::Integer(const Napi::Value& value, const char* name, std::int64_t minimum, std::int64_t maximum) {
  if (failed_) return minimum;
  if (value.IsNumber()) {
    const double number = value.As<Napi::Number>().DoubleValue();
    // The comparison comes first: converting a double that does not fit is undefined, and NaN fails it too.
    if (number >= static_cast<double>(minimum) && number <= static_cast<double>(maximum)) {
      const auto integer = static_cast<std::int64_t>(number);
      if (static_cast<double>(integer) == number) return integer;
    }
  }
  Fail(name, ("an integer from " + std::to_string(minimum) + " to " + std::to_string(maximum)).c_str());
  return minimum;
}

bool Arguments::Boolean(const Napi::Value& value, const char* name) {
  if (!value.IsBoolean()) {
    Fail(name, "a boolean");
    return false;
  }
  return value.As<Napi::Boolean>().Value();
}

std::uint64_t Arguments::Uint64(const Napi::Value& value, const char* name) {
  bool lossless = false;
  const std::uint64_t number = value.IsBigInt() ? value.As<Napi::BigInt>().Uint64Value(&lossless) : 0;
  if (!lossless) Fail(name, "a bigint of 64 bits without a sign");
  return number;
}

std::int64_t Arguments::Int64(const Napi::Value& value, const char* name) {
  bool lossless = false;
  const std::int64_t number = value.IsBigInt() ? value.As<Napi::BigInt>().Int64Value(&lossless) : 0;
  if (!lossless) Fail(name, "a bigint of 64 bits with a sign");
  return number;
}

std::string Arguments::String(const Napi::Value& value, const char* name) {
  if (value.IsString()) {
    std::string text = value.As<Napi::String>().Utf8Value();
    if (text.find('\0') == std::string::npos) return text;
  }
  Fail(name, "a string without NUL");
  return {};
}

Napi::Function Arguments::Function(const Napi::Value& value, const char* name) {
  if (value.IsFunction()) return value.As<Napi::Function>();
  Fail(name, "a function");
  return Napi::Function();
}

std::vector<std::uint8_t> Arguments::Bytes(const Napi::Value& value, const char* name) {
  const Napi::Uint8Array array = Room(value, name);
  if (failed_) return {};
  return std::vector<std::uint8_t>(array.Data(), array.Data() + array.ElementLength());
}

Napi::Uint8Array Arguments::Room(const Napi::Value& value, const char* name) {
  if (value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == napi_uint8_array) return value.As<Napi::Uint8Array>();
  Fail(name, "a Uint8Array");
  return {};
}

std::vector<std::uint64_t> Arguments::Uint64Array(const Napi::Value& value, const char* name) {
  if (value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == napi_biguint64_array) {
    const auto array = value.As<Napi::BigUint64Array>();
    return std::vector<std::uint64_t>(array.Data(), array.Data() + array.ElementLength());
  }
  Fail(name, "a BigUint64Array");
  return {};
}

std::vector<int> Arguments::Int32Array(const Napi::Value& value, const char* name) {
  if (value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == napi_int32_array) {
    const auto array = value.As<Napi::Int32Array>();
    return std::vector<int>(array.Data(), array.Data() + array.ElementLength());
  }
  Fail(name, "an Int32Array");
  return {};
}

std::vector<int> Arguments::FdNumbers(const Napi::Value& value, const char* name) {
  if (!value.IsArray()) {
    Fail(name, "an array of file descriptors");
    return {};
  }
  const auto array = value.As<Napi::Array>();
  std::vector<int> fds;
  fds.reserve(array.Length());
  for (std::uint32_t index = 0; index < array.Length() && !failed_; index++) {
    const Napi::Value element = array.Get(index);
    if (element.IsEmpty()) {
      failed_ = true;
      break;
    }
    fds.push_back(FdNumber(element, name));
  }
  return fds;
}

std::vector<std::string> Arguments::Strings(const Napi::Value& value, const char* name) {
  if (!value.IsArray()) {
    Fail(name, "an array of strings");
    return {};
  }
  const auto array = value.As<Napi::Array>();
  std::vector<std::string> strings;
  strings.reserve(array.Length());
  for (std::uint32_t index = 0; index < array.Length() && !failed_; index++) {
    const Napi::Value element = array.Get(index);
    if (element.IsEmpty()) {
      failed_ = true;
      break;
    }
    strings.push_back(String(element, name));
  }
  return strings;
}

}  // namespace uprobe
