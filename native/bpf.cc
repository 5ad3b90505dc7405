// Each command takes a struct of its own out of union bpf_attr. They are spelled out here as far as we use them, because the headers of
// the machine that builds may be older than the kernel that runs (uprobe_multi came in 6.6). The kernel takes any size and reads
// what is missing as zero.

#include "bpf.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>

#include "apart.h"
#include "arguments.h"
#include "async.h"
#include "closer.h"
#include "errors.h"
#include "thread.h"

namespace uprobe {

namespace {

// enum bpf_cmd, include/uapi/linux/bpf.h
enum Command {
  kMapCreate = 0,
  kMapLookup = 1,
  kMapUpdate = 2,
  kMapDelete = 3,
  kMapNextKey = 4,
  kProgLoad = 5,
  kObjGetInfo = 15,
  kRawTracepointOpen = 17,
  kLinkCreate = 28
};

constexpr std::uint32_t kTraceUprobeMulti = 48;        // BPF_TRACE_UPROBE_MULTI
constexpr std::uint32_t kKprobe = 2;                   // BPF_PROG_TYPE_KPROBE
constexpr std::uint64_t kNoExist = 1;                  // BPF_NOEXIST
constexpr std::uint32_t kSleepable = 1u << 4;          // BPF_F_SLEEPABLE
constexpr std::uint32_t kUprobeMultiReturn = 1u << 0;  // BPF_F_UPROBE_MULTI_RETURN
constexpr std::size_t kNameBytes = 16;                 // BPF_OBJ_NAME_LEN, its NUL included
constexpr std::size_t kInsnBytes = 8;

struct MapCreate {
  std::uint32_t map_type, key_size, value_size, max_entries, map_flags, inner_map_fd, numa_node;
  char map_name[kNameBytes];
};
static_assert(sizeof(MapCreate) == 44, "layout of the kernel's");

struct MapElement {
  std::uint32_t map_fd;
  std::uint64_t key, value, flags;
};
static_assert(sizeof(MapElement) == 32, "layout of the kernel's");

struct RawTracepointOpen {
  std::uint64_t name;
  std::uint32_t prog_fd;
};
static_assert(sizeof(RawTracepointOpen) == 16, "layout of the kernel's");

struct ProgLoad {
  std::uint32_t prog_type, insn_cnt;
  std::uint64_t insns, license;
  std::uint32_t log_level, log_size;
  std::uint64_t log_buf;
  std::uint32_t kern_version, prog_flags;
  char prog_name[kNameBytes];
  std::uint32_t prog_ifindex, expected_attach_type;
};
static_assert(sizeof(ProgLoad) == 72, "layout of the kernel's");

struct ObjGetInfo {
  std::uint32_t bpf_fd, info_len;
  std::uint64_t info;
};

struct LinkCreateUprobeMulti {
  std::uint32_t prog_fd, target_fd, attach_type, flags;
  std::uint64_t path, offsets, ref_ctr_offsets, cookies;
  std::uint32_t cnt, multi_flags, pid, reserved;
};
static_assert(sizeof(LinkCreateUprobeMulti) == 64, "layout of the kernel's");

// The head of struct bpf_prog_info, and where recursion_misses is in it (Linux 5.12).
struct ProgInfo {
  std::uint32_t type, id;
  std::uint8_t skipped[184];
  std::uint64_t run_time_ns, run_cnt, recursion_misses;
};
static_assert(sizeof(ProgInfo) == 216, "layout of the kernel's");

std::uint64_t Pointer(const void* address) { return reinterpret_cast<std::uintptr_t>(address); }

template <typename Attributes>
long Bpf(Command command, Attributes& attributes) {
  return syscall(SYS_bpf, command, &attributes, sizeof attributes);
}

// Copies a name that has been checked to fit.
void SetName(char (&field)[kNameBytes], const std::string& name) { std::memcpy(field, name.data(), std::min(name.size(), kNameBytes - 1)); }

std::string ObjectName(Arguments& arguments, const Napi::Object& options) {
  std::string name = arguments.String(arguments.Field(options, "name"), "name");
  if (name.size() >= kNameBytes) arguments.Fail("name", "at most 15 bytes long");
  return name;
}

// What both ways of creating a map are given.
MapCreate MapAttributes(Arguments& arguments) {
  const Napi::Object options = arguments.Object(0, "options");
  MapCreate attributes{};
  attributes.map_type = arguments.Uint32(arguments.Field(options, "type"), "type");
  attributes.key_size = arguments.Uint32(arguments.Field(options, "keyBytes"), "keyBytes");
  attributes.value_size = arguments.Uint32(arguments.Field(options, "valueBytes"), "valueBytes");
  attributes.max_entries = arguments.Uint32(arguments.Field(options, "maxEntries"), "maxEntries");
  const Napi::Value inner = arguments.Field(options, "innerMapFd");
  if (!inner.IsUndefined()) attributes.inner_map_fd = static_cast<std::uint32_t>(arguments.FdNumber(inner, "innerMapFd"));
  SetName(attributes.map_name, ObjectName(arguments, options));
  return attributes;
}

Result<Fd> CreateMap(MapCreate attributes) {
  // Every fd of bpf(2) is close-on-exec.
  Fd fd(static_cast<int>(Bpf(kMapCreate, attributes)));
  if (!fd.valid()) return LastFailure("bpf(BPF_MAP_CREATE)");
  return fd;
}

Napi::Value BpfMapCreate(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const MapCreate attributes = MapAttributes(arguments);
  if (arguments.Failed()) return Napi::Value();
  Result<Fd> created = CreateMap(attributes);
  if (const Failure* failure = created.failure()) return ThrowFailure(info.Env(), *failure);
  return HandOver(info.Env(), std::move(created.value()));
}

// The kernel allocates all of a map at once, and fills it with zeros.
Napi::Value BpfMapCreateLarge(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const MapCreate attributes = MapAttributes(arguments);
  if (arguments.Failed()) return Napi::Value();
  return RunForFd(info.Env(), "BPF_MAP_CREATE", [=] { return CreateMap(attributes); });
}

Napi::Value BpfMapRead(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const int map_fd = arguments.FdNumber(arguments.At(0), "mapFd");
  const std::uint32_t first_key = arguments.Uint32(arguments.At(1), "firstKey");
  const std::uint32_t count = arguments.Uint32(arguments.At(2), "count");
  const std::uint32_t value_bytes = arguments.Uint32(arguments.At(3), "valueBytes");
  if (!arguments.Failed() && value_bytes == 0) arguments.Fail("valueBytes", "positive");
  if (arguments.Failed()) return Napi::Value();
  const std::size_t bytes = static_cast<std::size_t>(count) * value_bytes;
  const Napi::ArrayBuffer values = Napi::ArrayBuffer::New(info.Env(), bytes);
  if (values.IsEmpty()) return Napi::Value();
  auto* const data = static_cast<std::uint8_t*>(const_cast<Napi::ArrayBuffer&>(values).Data());
  for (std::uint32_t index = 0; index < count; index++) {
    const std::uint32_t key = first_key + index;
    MapElement attributes{};
    attributes.map_fd = static_cast<std::uint32_t>(map_fd);
    attributes.key = Pointer(&key);
    attributes.value = Pointer(data + static_cast<std::size_t>(index) * value_bytes);
    if (Bpf(kMapLookup, attributes) < 0) return ThrowFailure(info.Env(), LastFailure("bpf(BPF_MAP_LOOKUP_ELEM)"));
  }
  return values;
}

Napi::Value BpfMapUpdate(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  MapElement attributes{};
  attributes.map_fd = static_cast<std::uint32_t>(arguments.FdNumber(arguments.At(0), "mapFd"));
  const std::uint32_t key = arguments.Uint32(arguments.At(1), "key");
  const std::vector<std::uint8_t> value = arguments.Bytes(arguments.At(2), "value");
  if (arguments.Failed()) return Napi::Value();
  attributes.key = Pointer(&key);
  attributes.value = Pointer(value.data());
  if (Bpf(kMapUpdate, attributes) < 0) return ThrowFailure(info.Env(), LastFailure("bpf(BPF_MAP_UPDATE_ELEM)"));
  return info.Env().Undefined();
}

// Entries of a hash map that nobody adds to: each is removed once it is read. The next key is asked for before the one it follows goes, since the kernel begins anew
// after a key that it does not find.
Napi::Value BpfMapTake(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const auto map_fd = static_cast<std::uint32_t>(arguments.FdNumber(arguments.At(0), "mapFd"));
  const std::uint32_t key_bytes = arguments.Uint32(arguments.At(1), "keyBytes");
  const std::uint32_t value_bytes = arguments.Uint32(arguments.At(2), "valueBytes");
  const std::uint32_t count = arguments.Uint32(arguments.At(3), "count");
  if (!arguments.Failed() && key_bytes == 0) arguments.Fail("keyBytes", "positive");
  if (arguments.Failed()) return Napi::Value();
  std::vector<std::uint8_t> taken;
  std::vector<std::uint8_t> key(key_bytes);
  std::vector<std::uint8_t> next(key_bytes);
  MapElement attributes{};
  attributes.map_fd = map_fd;
  attributes.value = Pointer(key.data());
  bool more = count > 0;
  if (more && Bpf(kMapNextKey, attributes) < 0) {
    if (errno != ENOENT) return ThrowFailure(info.Env(), LastFailure("bpf(BPF_MAP_GET_NEXT_KEY)"));
    more = false;
  }
  for (std::uint32_t index = 0; more && index < count; index++) {
    const std::size_t at = taken.size();
    taken.insert(taken.end(), key.begin(), key.end());
    taken.resize(at + key_bytes + value_bytes);
    attributes.key = Pointer(key.data());
    attributes.value = Pointer(taken.data() + at + key_bytes);
    if (Bpf(kMapLookup, attributes) < 0) return ThrowFailure(info.Env(), LastFailure("bpf(BPF_MAP_LOOKUP_ELEM)"));
    attributes.value = Pointer(next.data());
    more = Bpf(kMapNextKey, attributes) == 0;
    if (!more && errno != ENOENT) return ThrowFailure(info.Env(), LastFailure("bpf(BPF_MAP_GET_NEXT_KEY)"));
    // A field that a command has no use for must be 0.
    attributes.value = 0;
    if (Bpf(kMapDelete, attributes) < 0) return ThrowFailure(info.Env(), LastFailure("bpf(BPF_MAP_DELETE_ELEM)"));
    key.swap(next);
  }
  const Napi::ArrayBuffer result = Napi::ArrayBuffer::New(info.Env(), taken.size());
  if (!result.IsEmpty() && !taken.empty()) std::memcpy(const_cast<Napi::ArrayBuffer&>(result).Data(), taken.data(), taken.size());
  return result;
}

// Entries of zeros in one hash map for the keys of another, to which programs may be adding: what they add meanwhile may be missed.
Napi::Value BpfMapReserve(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const auto from_fd = static_cast<std::uint32_t>(arguments.FdNumber(arguments.At(0), "fromFd"));
  const auto to_fd = static_cast<std::uint32_t>(arguments.FdNumber(arguments.At(1), "toFd"));
  const std::uint32_t key_bytes = arguments.Uint32(arguments.At(2), "keyBytes");
  const std::uint32_t value_bytes = arguments.Uint32(arguments.At(3), "valueBytes");
  std::vector<std::uint8_t> key = arguments.Bytes(arguments.At(4), "after");
  const std::uint32_t count = arguments.Uint32(arguments.At(5), "count");
  if (!arguments.Failed() && key_bytes == 0) arguments.Fail("keyBytes", "positive");
  if (!arguments.Failed() && !key.empty() && key.size() != key_bytes) arguments.Fail("after", "a key or empty");
  if (arguments.Failed()) return Napi::Value();
  const std::vector<std::uint8_t> zeros(value_bytes);
  std::vector<std::uint8_t> next(key_bytes);
  for (std::uint32_t index = 0; index < count; index++) {
    MapElement walk{};
    walk.map_fd = from_fd;
    walk.key = key.empty() ? 0 : Pointer(key.data());
    walk.value = Pointer(next.data());
    if (Bpf(kMapNextKey, walk) < 0) {
      if (errno != ENOENT) return ThrowFailure(info.Env(), LastFailure("bpf(BPF_MAP_GET_NEXT_KEY)"));
      key.clear();
      break;
    }
    MapElement insert{};
    insert.map_fd = to_fd;
    insert.key = Pointer(next.data());
    insert.value = Pointer(zeros.data());
    insert.flags = kNoExist;
    // Full, or there already: then there is nothing to do.
    if (Bpf(kMapUpdate, insert) < 0 && errno != E2BIG && errno != EEXIST) return ThrowFailure(info.Env(), LastFailure("bpf(BPF_MAP_UPDATE_ELEM)"));
    key = next;
  }
  return Napi::Buffer<std::uint8_t>::Copy(info.Env(), key.data(), key.size());
}

Napi::Value BpfMapReplaceInner(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const int outer = arguments.FdNumber(arguments.At(0), "mapFd");
  const std::uint32_t key = arguments.Uint32(arguments.At(1), "key");
  const int inner = arguments.FdNumber(arguments.At(2), "innerMapFd");
  if (arguments.Failed()) return Napi::Value();
  return RunForNothing(info.Env(), "BPF_MAP_UPDATE_ELEM", [=]() -> Result<Nothing> {
    const std::uint32_t value = static_cast<std::uint32_t>(inner);
    MapElement attributes{};
    attributes.map_fd = static_cast<std::uint32_t>(outer);
    attributes.key = Pointer(&key);
    attributes.value = Pointer(&value);
    if (Bpf(kMapUpdate, attributes) < 0) return LastFailure("bpf(BPF_MAP_UPDATE_ELEM)");
    return Nothing();
  });
}

Napi::Value BpfRawTracepointOpen(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const std::string name = arguments.String(arguments.At(0), "name");
  RawTracepointOpen attributes{};
  attributes.name = Pointer(name.c_str());
  attributes.prog_fd = static_cast<std::uint32_t>(arguments.FdNumber(arguments.At(1), "progFd"));
  if (arguments.Failed()) return Napi::Value();
  Fd fd(static_cast<int>(Bpf(kRawTracepointOpen, attributes)));
  if (!fd.valid()) return ThrowFailure(info.Env(), LastFailure("bpf(BPF_RAW_TRACEPOINT_OPEN)"));
  return HandOver(info.Env(), std::move(fd));
}

// The verifier gives up with EAGAIN when a signal is pending on its thread (do_check, kernel/bpf/verifier.c).
long LoadProgram(ProgLoad& attributes) {
  long fd = -1;
  for (int attempt = 0; attempt < 5; attempt++) {
    fd = Bpf(kProgLoad, attributes);
    if (fd >= 0 || errno != EAGAIN) break;
  }
  return fd;
}

// Loads again with a log, to learn why the first try failed. The log costs time and memory that a good program need not pay.
Result<Fd> ExplainRefusal(ProgLoad attributes, Failure refusal) {
  constexpr std::size_t kLogBytes = 1 << 20;
  constexpr std::size_t kKeptBytes = 8 << 10;  // the reason is at the end
  const auto log = std::make_unique<char[]>(kLogBytes);
  attributes.log_level = 1;
  attributes.log_size = kLogBytes;
  attributes.log_buf = Pointer(log.get());
  Fd fd(static_cast<int>(LoadProgram(attributes)));
  if (fd.valid()) return fd;
  const std::size_t length = strnlen(log.get(), kLogBytes);
  const std::size_t start = length > kKeptBytes ? length - kKeptBytes : 0;
  refusal.verifier_log.assign(log.get() + start, length - start);
  return refusal;
}

Napi::Value BpfProgLoad(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const Napi::Object options = arguments.Object(0, "options");
  const std::uint32_t type = arguments.Uint32(arguments.Field(options, "type"), "type");
  const std::uint32_t attach_type = arguments.Uint32(arguments.Field(options, "expectedAttachType"), "expectedAttachType");
  const std::vector<std::uint8_t> insns = arguments.Bytes(arguments.Field(options, "insns"), "insns");
  const std::string license = arguments.String(arguments.Field(options, "license"), "license");
  const std::string name = ObjectName(arguments, options);
  const Napi::Value sleepable = arguments.Field(options, "sleepable");
  const bool may_sleep = !sleepable.IsUndefined() && arguments.Boolean(sleepable, "sleepable");
  if (!arguments.Failed() && (insns.empty() || insns.size() % kInsnBytes != 0)) arguments.Fail("insns", "whole instructions of 8 bytes");
  if (arguments.Failed()) return Napi::Value();

  return RunForFd(info.Env(), "BPF_PROG_LOAD", [=]() -> Result<Fd> {
    ProgLoad attributes{};
    attributes.prog_type = type;
    attributes.insn_cnt = static_cast<std::uint32_t>(insns.size() / kInsnBytes);
    attributes.insns = Pointer(insns.data());
    attributes.license = Pointer(license.c_str());
    attributes.expected_attach_type = attach_type;
    attributes.prog_flags = may_sleep ? kSleepable : 0;
    SetName(attributes.prog_name, name);
    Fd fd(static_cast<int>(LoadProgram(attributes)));
    if (fd.valid()) return fd;
    Failure refusal = LastFailure("bpf(BPF_PROG_LOAD)");
    // Without the right to load there was no verification that could be logged.
    return refusal.number == EPERM ? Result<Fd>(refusal) : ExplainRefusal(attributes, refusal);
  });
}

// Whether a descriptor is left for a link. Asked right before, since where the last step fails for want of one, kernels from 6.6 until 6.11 go on using what they have freed: bpf_uprobe_multi_link_attach does not unregister what it has
// registered (CVE-2024-47675). Another thread may still take it in between.
bool HasRoomForFd(const int fd) { return Fd(fcntl(fd, F_DUPFD_CLOEXEC, 0)).valid(); }

Napi::Value BpfLinkCreateUprobeMulti(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const Napi::Object options = arguments.Object(0, "options");
  const int program_fd = arguments.FdNumber(arguments.Field(options, "progFd"), "progFd");
  const std::string path = arguments.String(arguments.Field(options, "path"), "path");
  const std::vector<std::uint64_t> offsets = arguments.Uint64Array(arguments.Field(options, "fileOffsets"), "fileOffsets");
  const Napi::Value counters = arguments.Field(options, "refCtrOffsets");
  const std::vector<std::uint64_t> ref_ctr_offsets =
      counters.IsNull() ? std::vector<std::uint64_t>() : arguments.Uint64Array(counters, "refCtrOffsets");
  const std::vector<std::uint64_t> cookies = arguments.Uint64Array(arguments.Field(options, "cookies"), "cookies");
  const bool retprobe = arguments.Boolean(arguments.Field(options, "retprobe"), "retprobe");
  const int pid = arguments.Int32(arguments.Field(options, "pid"), "pid", 0);
  // The kernel reads `cnt` elements of each array: their lengths must agree.
  if (!arguments.Failed() && offsets.empty()) arguments.Fail("fileOffsets", "not empty");
  if (!arguments.Failed() && cookies.size() != offsets.size()) arguments.Fail("cookies", "as long as fileOffsets");
  if (!arguments.Failed() && !counters.IsNull() && ref_ctr_offsets.size() != offsets.size()) {
    arguments.Fail("refCtrOffsets", "null, or as long as fileOffsets");
  }
  if (arguments.Failed()) return Napi::Value();

  return RunForRegistration(info.Env(), "BPF_LINK_CREATE", [=]() -> Result<Fd> {
    LinkCreateUprobeMulti attributes{};
    attributes.prog_fd = static_cast<std::uint32_t>(program_fd);
    attributes.attach_type = kTraceUprobeMulti;
    attributes.path = Pointer(path.c_str());
    attributes.offsets = Pointer(offsets.data());
    attributes.ref_ctr_offsets = ref_ctr_offsets.empty() ? 0 : Pointer(ref_ctr_offsets.data());
    attributes.cookies = Pointer(cookies.data());
    attributes.cnt = static_cast<std::uint32_t>(offsets.size());
    attributes.multi_flags = retprobe ? kUprobeMultiReturn : 0;
    attributes.pid = static_cast<std::uint32_t>(pid);
    if (!HasRoomForFd(program_fd)) return LastFailure("bpf(BPF_LINK_CREATE)");
    const long fd = RunApart(SYS_bpf, {kLinkCreate, Argument(&attributes), sizeof attributes});
    if (fd < 0) return LastFailure("bpf(BPF_LINK_CREATE)");
    return Fd(static_cast<int>(fd));
  });
}

// An empty file that nobody maps.
Fd FileOfNobody() {
  constexpr unsigned kCloseOnExec = 1, kNoExecSeal = 8;  // MFD_CLOEXEC, MFD_NOEXEC_SEAL
  constexpr const char* kName = "uprobe_ahead";
  // Systems may demand the seal (vm.memfd_noexec), and kernels before 6.3 do not know it.
  Fd file(static_cast<int>(syscall(SYS_memfd_create, kName, kCloseOnExec | kNoExecSeal)));
  if (!file.valid()) file = Fd(static_cast<int>(syscall(SYS_memfd_create, kName, kCloseOnExec)));
  return file;
}

// A program for a uprobe_multi link that does nothing.
Fd EmptyProgram() {
  constexpr std::uint64_t kInsns[] = {0xb7, 0x95};  // r0 = 0, exit
  ProgLoad attributes{};
  attributes.prog_type = kKprobe;
  attributes.expected_attach_type = kTraceUprobeMulti;
  attributes.insns = Pointer(kInsns);
  attributes.insn_cnt = 2;
  attributes.license = Pointer("Dual MIT/GPL");
  SetName(attributes.prog_name, "uprobe_ahead");
  return Fd(static_cast<int>(LoadProgram(attributes)));
}

Result<Fd> RegisterNowhere() {
  const Fd file = FileOfNobody();
  if (!file.valid()) return LastFailure("memfd_create");
  const Fd program = EmptyProgram();
  if (!program.valid()) return LastFailure("bpf(BPF_PROG_LOAD)");
  const std::string path = "/proc/self/fd/" + std::to_string(file.get());
  const std::uint64_t offset = 0;
  LinkCreateUprobeMulti attributes{};
  attributes.prog_fd = static_cast<std::uint32_t>(program.get());
  attributes.attach_type = kTraceUprobeMulti;
  attributes.path = Pointer(path.c_str());
  attributes.offsets = Pointer(&offset);
  attributes.cnt = 1;
  if (!HasRoomForFd(program.get())) return LastFailure("bpf(BPF_LINK_CREATE)");
  Fd link(static_cast<int>(Bpf(kLinkCreate, attributes)));
  if (!link.valid()) return LastFailure("bpf(BPF_LINK_CREATE)");
  return link;
}

// One is enough for the whole process. Set from the beginning until the link is gone.
std::atomic<bool> anticipating = false;

Result<Nothing> Anticipate() {
  if (anticipating.exchange(true)) return Nothing();
  Result<Fd> registered = RegisterNowhere();
  if (const Failure* failure = registered.failure()) {
    anticipating = false;
    return *failure;
  }
  // The descriptor is gone at once, and what the kernel waits for then (uprobe_unregister_sync) is not worth one of libuv's threads. No other process is needed for it (apart.h): nobody maps the file, so there is no page to be fetched.
  const std::shared_ptr<Fd> link(std::make_unique<Fd>(std::move(registered.value())));
  const auto close = [link] {
    *link = Fd();
    anticipating = false;
  };
  Result<Thread> closing = Thread::Start("uprobe-ahead", close);
  if (closing.failure() == nullptr) {
    closing.value().Detach();
  } else {
    close();
  }
  return Nothing();
}

Napi::Value BpfAnticipateUprobes(const Napi::CallbackInfo& info) { return RunForNothing(info.Env(), "BPF_LINK_CREATE", Anticipate); }

Napi::Value BpfProgInfo(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  const int program_fd = arguments.FdNumber(arguments.At(0), "progFd");
  if (arguments.Failed()) return Napi::Value();
  ProgInfo program{};
  ObjGetInfo attributes{};
  attributes.bpf_fd = static_cast<std::uint32_t>(program_fd);
  attributes.info_len = sizeof program;
  attributes.info = Pointer(&program);
  if (Bpf(kObjGetInfo, attributes) < 0) return ThrowFailure(info.Env(), LastFailure("bpf(BPF_OBJ_GET_INFO_BY_FD)"));
  const Napi::Object result = Napi::Object::New(info.Env());
  result.Set("id", Napi::Number::New(info.Env(), program.id));
  result.Set("recursionMisses", Napi::BigInt::New(info.Env(), program.recursion_misses));
  return result;
}

Napi::Value RaiseMemlockLimit(const Napi::CallbackInfo& info) {
  const rlimit unlimited{RLIM_INFINITY, RLIM_INFINITY};
  if (setrlimit(RLIMIT_MEMLOCK, &unlimited) != 0) return ThrowFailure(info.Env(), LastFailure("setrlimit(RLIMIT_MEMLOCK)"));
  return info.Env().Undefined();
}

}  // namespace

void InitBpf(Napi::Env env, Napi::Object exports) {
  exports.Set("bpfMapCreate", Napi::Function::New<BpfMapCreate>(env, "bpfMapCreate"));
  exports.Set("bpfMapCreateLarge", Napi::Function::New<BpfMapCreateLarge>(env, "bpfMapCreateLarge"));
  exports.Set("bpfMapRead", Napi::Function::New<BpfMapRead>(env, "bpfMapRead"));
  exports.Set("bpfMapUpdate", Napi::Function::New<BpfMapUpdate>(env, "bpfMapUpdate"));
  exports.Set("bpfMapTake", Napi::Function::New<BpfMapTake>(env, "bpfMapTake"));
  exports.Set("bpfMapReserve", Napi::Function::New<BpfMapReserve>(env, "bpfMapReserve"));
  exports.Set("bpfMapReplaceInner", Napi::Function::New<BpfMapReplaceInner>(env, "bpfMapReplaceInner"));
  exports.Set("bpfRawTracepointOpen", Napi::Function::New<BpfRawTracepointOpen>(env, "bpfRawTracepointOpen"));
  exports.Set("bpfProgLoad", Napi::Function::New<BpfProgLoad>(env, "bpfProgLoad"));
  exports.Set("bpfLinkCreateUprobeMulti", Napi::Function::New<BpfLinkCreateUprobeMulti>(env, "bpfLinkCreateUprobeMulti"));
  exports.Set("bpfAnticipateUprobes", Napi::Function::New<BpfAnticipateUprobes>(env, "bpfAnticipateUprobes"));
  exports.Set("bpfProgInfo", Napi::Function::New<BpfProgInfo>(env, "bpfProgInfo"));
  exports.Set("raiseMemlockLimit", Napi::Function::New<RaiseMemlockLimit>(env, "raiseMemlockLimit"));
}

}  // namespace uprobe
