// One closing thread serves the whole process. It is started when there is something to close, ends when there is not, and belongs to no
// environment: an environment that ends with closings outstanding leaves them to the thread, which then has nobody to tell. The thread
// may thus outlive the last environment that loaded this addon, and so the addon is linked with `-z nodelete`.
//
// What is closed may be a registration, and letting go of the last reference to one must not meet a fatal signal: CloseApart (apart.h) sees to that, one
// process a job. Whenever we are killed, the registrations of the job that is under way are closed by that process, and those of later ones by the end of our own.
//
// An exit of ours waits for the job that is under way all the same: whoever waits for us to end then finds the probes gone. Later jobs are left to the kernel, which
// does them before it reports our end. And where no process could be made, the job is closed on this very thread, which the exit would kill.

#include "closer.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "apart.h"
#include "arguments.h"
#include "doorbell.h"
#include "errors.h"
#include "thread.h"

namespace uprobe {

namespace {

// What the closing thread tells one environment. Shared by the two: whichever goes last frees it.
class Outbox {
 public:
  struct Done {
    std::uint32_t ticket;
    std::optional<Failure> failure;
  };

  Doorbell doorbell;

  // Closing thread.
  void Deliver(Done done) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      done_.push_back(std::move(done));
    }
    doorbell.Ring();
  }

  // JavaScript thread.
  std::vector<Done> Collect() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return std::exchange(done_, {});
  }

 private:
  std::mutex mutex_;
  std::vector<Done> done_;
};

struct Job {
  std::vector<int> fds;
  std::uint32_t ticket;
  std::shared_ptr<Outbox> outbox;  // none if nobody waits for it
};

class Closer {
 public:
  // Never destroyed, since the thread may run while the process exits.
  static Closer& Instance() {
    static Closer* const instance = [] {
      std::atexit([] { Instance().FinishForExit(); });
      return std::make_unique<Closer>().release();
    }();
    return *instance;
  }

  // Queues the job; a failure if there is no thread and none can be started, and then nothing was closed.
  std::optional<Failure> Submit(Job job) {
    const std::lock_guard<std::mutex> lock(mutex_);
    jobs_.push_back(std::move(job));
    if (running_) return std::nullopt;
    Result<Thread> started = Thread::Start("uprobe-closer", [this] { Run(); });
    if (const Failure* failure = started.failure()) {
      jobs_.pop_back();
      return *failure;
    }
    started.value().Detach();
    running_ = true;
    return std::nullopt;
  }

 private:
  void Run() {
    for (;;) {
      std::vector<Job> jobs;
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        jobs = std::exchange(jobs_, {});
        if (jobs.empty()) {
          running_ = false;
          return;
        }
      }
      for (const Job& job : jobs) {
        std::optional<Failure> failure;
        {
          const std::lock_guard<std::mutex> lock(closing_);
          if (exiting_) return;
          failure = CloseApart(job.fds);
        }
        if (job.outbox) job.outbox->Deliver({job.ticket, std::move(failure)});
      }
    }
  }

  // Called by exit(3): waits for the job that is under way, and keeps the lock, so that none begins.
  void FinishForExit() {
    exiting_ = true;
    closing_.lock();
  }

  std::mutex mutex_;
  std::vector<Job> jobs_;
  bool running_ = false;
  std::mutex closing_;  // held during each job
  std::atomic<bool> exiting_ = false;
};

// Without a thread, now: that somebody waits is better than that the probe stays.
void CloseSoon(std::vector<int> fds) {
  if (Closer::Instance().Submit({fds, 0, nullptr})) CloseApart(fds);
}

// One environment's promises, and the descriptors that it has.
class Closings {
 public:
  explicit Closings(napi_env env) : env_(env) {
    hooked_ = napi_add_env_cleanup_hook(env_, OnEnvironmentEnd, this) == napi_ok;
  }
  ~Closings() { Stop(); }
  Closings(const Closings&) = delete;
  Closings& operator=(const Closings&) = delete;

  Napi::Value Close(std::vector<int> fds) {
    const Napi::Env env(env_);
    // As if the thread could not be started: nothing was closed.
    if (!outbox_ && !Open()) return ThrowFailure(env, Failure{"eventfd", errno != 0 ? errno : ENOMEM});
    napi_deferred deferred = nullptr;
    napi_value promise = nullptr;
    if (napi_create_promise(env_, &deferred, &promise) != napi_ok) return Napi::Value();
    const std::uint32_t ticket = next_ticket_++;
    const std::vector<int> closing = fds;
    if (const std::optional<Failure> failure = Closer::Instance().Submit({std::move(fds), ticket, outbox_})) {
      napi_reject_deferred(env_, deferred, NewError(env_, *failure));
      return Napi::Value(env, promise);
    }
    for (const int fd : closing) handed_over_.erase(fd);
    promises_.emplace(ticket, deferred);
    outbox_->doorbell.KeepAlive(true);
    return Napi::Value(env, promise);
  }

  bool Add(int fd, Kind kind) {
    if (ended_) return false;
    handed_over_[fd] = kind;
    return true;
  }

  void Remove(int fd) { handed_over_.erase(fd); }

 private:
  bool Open() {
    std::shared_ptr<Outbox> outbox(std::make_unique<Outbox>());
    if (!outbox->doorbell.Open(env_, "uprobe:closeFds", [this](napi_env env) { Settle(env); })) return false;
    outbox_ = std::move(outbox);
    return true;
  }

  static void OnEnvironmentEnd(void* self) {
    auto* const closings = static_cast<Closings*>(self);
    closings->hooked_ = false;
    closings->Stop();
    closings->CloseLeft();
  }

  // The main thread's environment ends with the process, whose descriptors the kernel closes.
  void CloseLeft() {
    ended_ = true;
    if (syscall(SYS_gettid) == getpid()) return;
    std::vector<int> registrations;
    for (const auto& [fd, kind] : std::exchange(handed_over_, {})) {
      if (kind == Kind::kRegistration) {
        registrations.push_back(fd);
      } else {
        close(fd);
      }
    }
    if (!registrations.empty()) CloseSoon(std::move(registrations));
  }

  void Stop() {
    if (outbox_) outbox_->doorbell.Close();
    if (std::exchange(hooked_, false)) napi_remove_env_cleanup_hook(env_, OnEnvironmentEnd, this);
  }

  void Settle(napi_env env) {
    for (const Outbox::Done& done : outbox_->Collect()) {
      const auto found = promises_.find(done.ticket);
      const napi_deferred deferred = found->second;
      promises_.erase(found);
      if (done.failure) {
        napi_reject_deferred(env, deferred, NewError(env, *done.failure));
      } else {
        napi_value undefined = nullptr;
        napi_get_undefined(env, &undefined);
        napi_resolve_deferred(env, deferred, undefined);
      }
    }
    outbox_->doorbell.KeepAlive(!promises_.empty());
  }

  const napi_env env_;
  std::shared_ptr<Outbox> outbox_;
  std::map<std::uint32_t, napi_deferred> promises_;
  std::uint32_t next_ticket_ = 0;
  std::map<int, Kind> handed_over_;
  bool hooked_ = false;
  bool ended_ = false;
};

Napi::Value CloseFds(const Napi::CallbackInfo& info) {
  Arguments arguments(info);
  std::vector<int> fds = arguments.FdNumbers(arguments.At(0), "fds");
  if (arguments.Failed()) return Napi::Value();
  return info.Env().GetInstanceData<Closings>()->Close(std::move(fds));
}

}  // namespace

void CloseInBackground(Fd fd) { CloseSoon({fd.Release()}); }

bool HandOver(napi_env env, Fd& fd, Kind kind) {
  auto* const closings = Napi::Env(env).GetInstanceData<Closings>();
  if (closings == nullptr || !closings->Add(fd.get(), kind)) return false;
  fd.Release();
  return true;
}

Napi::Value HandOver(Napi::Env env, Fd fd) {
  const int number = fd.get();
  HandOver(env, fd, Kind::kOrdinary);
  return Napi::Number::New(env, number);
}

void TakeBack(napi_env env, int fd) {
  if (auto* const closings = Napi::Env(env).GetInstanceData<Closings>()) closings->Remove(fd);
}

void InitCloser(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(std::make_unique<Closings>(env).release());  // deleted with the environment
  exports.Set("closeFds", Napi::Function::New<CloseFds>(env, "closeFds"));
}

}  // namespace uprobe
