// Who else traces? The kernel lists what goes through BPF: a perf event with a program (BPF_TASK_FD_QUERY, Linux 4.18) by the descriptor of the process that holds it, and links by
// their ids. A link on a perf event tells its site since Linux 6.6 (commit 1b715e1b0ec5), a uprobe_multi link since 6.8 (commit e56fdbfb06e2). What has no BPF
// program, as `perf stat`, is listed nowhere.
//
// Asking takes a reference for a moment. If the owner closes at the same moment, ours is the last one, and letting go of it takes the probe out of its targets. So both are let go
// of where SIGKILL does not cut that short (apart.h), and as soon as may be.

#include "bpf_query.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <utility>
#include <vector>

#include "apart.h"
#include "arguments.h"
#include "errors.h"
#include "fd.h"

namespace uprobe {

namespace {

// enum bpf_cmd, include/uapi/linux/bpf.h
enum Command { kObjGetInfo = 15, kTaskFdQuery = 20, kLinkGetFdById = 30 };
// enum bpf_task_fd_type
enum TaskFdType { kFdUprobe = 4, kFdUretprobe = 5 };
// enum bpf_link_type
enum LinkType { kLinkPerfEvent = 7, kLinkUprobeMulti = 12 };
// enum bpf_perf_event_type
enum PerfEventType { kPerfUprobe = 1, kPerfUretprobe = 2 };
constexpr std::uint32_t kUprobeMultiReturn = 1u << 0;  // BPF_F_UPROBE_MULTI_RETURN
// The kernel takes at most 2^20 sites for a link (MAX_UPROBE_MULTI_CNT, kernel/trace/bpf_trace.c).
constexpr std::uint32_t kMaxSites = 1u << 20;

struct TaskFdQuery {
  std::uint32_t pid, fd, flags, buf_len;
  std::uint64_t buf;
  std::uint32_t prog_id, fd_type;
  std::uint64_t probe_offset, probe_addr;
};
static_assert(sizeof(TaskFdQuery) == 48, "layout of the kernel's");

struct GetId {
  std::uint32_t id, next_id, open_flags;
};

struct ObjGetInfo {
  std::uint32_t bpf_fd, info_len;
  std::uint64_t info;
};

// struct bpf_link_info with the parts for uprobe_multi and for perf events that are uprobes.
struct LinkInfo {
  std::uint32_t type, id, prog_id, padding;
  union {
    struct {
      std::uint64_t path, offsets, ref_ctr_offsets, cookies;
      std::uint32_t path_size, count, flags, pid;
    } multi;
    struct {
      std::uint32_t type, padding;
      std::uint64_t path;
      std::uint32_t path_size, offset;
      std::uint64_t cookie;
    } perf;
  };
};
static_assert(sizeof(LinkInfo) == 64, "layout of the kernel's");

std::uint64_t Pointer(const void* address) { return reinterpret_cast<std::uintptr_t>(address); }

template <typename Attributes>
long Bpf(Command command, Attributes& attributes) {
  return syscall(SYS_bpf, command, &attributes, sizeof attributes);
}

Napi::Value BpfTaskFdQuery(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Arguments arguments(info);
  const int pid = arguments.Int32(arguments.At(0), "pid", 1);
  const int fd = arguments.FdNumber(arguments.At(1), "fd");
  if (arguments.Failed()) return Napi::Value();
  char path[PATH_MAX] = {};
  TaskFdQuery query{};
  query.pid = static_cast<std::uint32_t>(pid);
  query.fd = static_cast<std::uint32_t>(fd);
  query.buf_len = sizeof path;
  query.buf = Pointer(path);
  // The kernel lets go of the descriptor's file when the call returns.
  if (RunApart(SYS_bpf, {kTaskFdQuery, Argument(&query), sizeof query}) < 0) {
    // ENOTSUPP (524) or EINVAL: a descriptor of another kind, or without a program; ENOENT, ESRCH, EBADF: the process or the descriptor is gone.
    if (errno == EPERM || errno == ENOSYS) return ThrowFailure(env, LastFailure("bpf(BPF_TASK_FD_QUERY)"));
    return env.Null();
  }
  path[sizeof path - 1] = '\0';
  const bool is_uprobe = query.fd_type == kFdUprobe || query.fd_type == kFdUretprobe;
  const Napi::Object result = Napi::Object::New(env);
  result.Set("progId", Napi::Number::New(env, query.prog_id));
  result.Set("kind", Napi::String::New(env, !is_uprobe ? "other" : query.fd_type == kFdUprobe ? "uprobe" : "uretprobe"));
  result.Set("path", Napi::String::New(env, is_uprobe ? path : ""));
  result.Set("fileOffset", Napi::BigInt::New(env, static_cast<std::uint64_t>(is_uprobe ? query.probe_offset : 0)));
  return result;
}

Napi::BigUint64Array ToArray(Napi::Env env, const std::vector<std::uint64_t>& values) {
  Napi::BigUint64Array array = Napi::BigUint64Array::New(env, values.size());
  for (std::size_t index = 0; index < values.size(); index++) array[index] = values[index];
  return array;
}

bool AskLink(int link_fd, LinkInfo& link) {
  ObjGetInfo question{};
  question.bpf_fd = static_cast<std::uint32_t>(link_fd);
  question.info_len = sizeof link;
  question.info = Pointer(&link);
  return Bpf(kObjGetInfo, question) == 0;
}

// The sites of a uprobe_multi link. The first question gave sizes, the second fills the arrays; null where the kernel does not tell.
Napi::Value UprobeMultiInfo(Napi::Env env, int link_fd, LinkInfo link) {
  if (link.type != kLinkUprobeMulti || link.multi.count == 0 || link.multi.count > kMaxSites) return env.Null();
  char path[PATH_MAX] = {};
  std::vector<std::uint64_t> offsets(link.multi.count);
  std::vector<std::uint64_t> ref_ctr_offsets(link.multi.count);
  link.multi.path = Pointer(path);
  link.multi.path_size = sizeof path;
  link.multi.offsets = Pointer(offsets.data());
  link.multi.ref_ctr_offsets = Pointer(ref_ctr_offsets.data());
  link.multi.cookies = 0;
  if (!AskLink(link_fd, link)) return env.Null();
  path[sizeof path - 1] = '\0';
  const Napi::Object result = Napi::Object::New(env);
  result.Set("path", Napi::String::New(env, path));
  result.Set("fileOffsets", ToArray(env, offsets));
  result.Set("refCtrOffsets", ToArray(env, ref_ctr_offsets));
  result.Set("pid", Napi::Number::New(env, link.multi.pid));
  result.Set("retprobe", Napi::Boolean::New(env, (link.multi.flags & kUprobeMultiReturn) != 0));
  return result;
}

// The site of a link on a perf event, likewise.
Napi::Value PerfUprobeInfo(Napi::Env env, int link_fd, LinkInfo link) {
  if (link.type != kLinkPerfEvent || (link.perf.type != kPerfUprobe && link.perf.type != kPerfUretprobe)) return env.Null();
  char path[PATH_MAX] = {};
  link.perf.path = Pointer(path);
  link.perf.path_size = sizeof path;
  if (!AskLink(link_fd, link)) return env.Null();
  path[sizeof path - 1] = '\0';
  const Napi::Object result = Napi::Object::New(env);
  result.Set("path", Napi::String::New(env, path));
  result.Set("fileOffset", Napi::BigInt::New(env, static_cast<std::uint64_t>(link.perf.offset)));
  result.Set("retprobe", Napi::Boolean::New(env, link.perf.type == kPerfUretprobe));
  return result;
}

Napi::Value BpfLinkInfo(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Arguments arguments(info);
  const std::uint32_t id = arguments.Uint32(arguments.At(0), "linkId");
  if (arguments.Failed()) return Napi::Value();
  GetId by_id{};
  by_id.id = id;
  Fd fd(static_cast<int>(Bpf(kLinkGetFdById, by_id)));
  if (!fd.valid()) {
    if (errno == EPERM || errno == ENOSYS) return ThrowFailure(env, LastFailure("bpf(BPF_LINK_GET_FD_BY_ID)"));
    return env.Null();
  }
  LinkInfo link{};
  const bool answered = AskLink(fd.get(), link);
  const Failure failure = LastFailure("bpf(BPF_OBJ_GET_INFO_BY_FD)");
  Napi::Object result;
  if (answered) {
    result = Napi::Object::New(env);
    result.Set("type", Napi::Number::New(env, link.type));
    result.Set("progId", Napi::Number::New(env, link.prog_id));
    result.Set("perfUprobe", PerfUprobeInfo(env, fd.get(), link));
    result.Set("uprobeMulti", UprobeMultiInfo(env, fd.get(), link));
  }
  RunApart(SYS_close, {fd.Release()});
  return answered ? result : ThrowFailure(env, failure);
}

}  // namespace

void InitBpfQuery(Napi::Env env, Napi::Object exports) {
  exports.Set("bpfTaskFdQuery", Napi::Function::New<BpfTaskFdQuery>(env, "bpfTaskFdQuery"));
  exports.Set("bpfLinkInfo", Napi::Function::New<BpfLinkInfo>(env, "bpfLinkInfo"));
}

}  // namespace uprobe
