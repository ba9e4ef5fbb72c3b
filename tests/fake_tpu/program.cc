#include "program.h"

#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "xla/pjrt/plugin/xla_cpu/xla_cpu_pjrt_client.h"
#include "xla/service/computation_placer.h"

#include "fake_tpu.h"

namespace tensorflow::fake_tpu {
namespace {

std::mutex programs_mutex;

std::map<std::string, std::shared_ptr<Program>>& Programs() {
  static auto* programs = new std::map<std::string, std::shared_ptr<Program>>;
  return *programs;
}

}  // namespace

xla::PjRtClient* Client() {
  static xla::PjRtClient* client = [] {
    xla::CpuClientOptions options;
    options.asynchronous = false;
    options.cpu_device_count = NumHosts() * NumCores();
    return xla::GetXlaPjrtCpuClient(options).value().release();
  }();
  return client;
}

absl::StatusOr<std::shared_ptr<Program>> Program::Create(int id, int num_replicas,
                                                         XlaCompilationResult lowered) {
  auto program = std::make_shared<Program>();
  program->id_ = id;
  program->num_replicas_ = num_replicas;
  xla::DeviceAssignment assignment(num_replicas, 1);
  for (int i = 0; i < num_replicas; ++i) {
    assignment(i, 0) = Client()->addressable_devices()[i]->id();
  }
  xla::CompileOptions options;
  options.executable_build_options.set_num_replicas(num_replicas);
  options.executable_build_options.set_device_assignment(assignment);
  TF_ASSIGN_OR_RETURN(program->executable_,
                      Client()->CompileAndLoad(*lowered.computation, options));
  program->lowered_ = std::move(lowered);
  std::lock_guard<std::mutex> lock(programs_mutex);
  Programs()[program->key()] = program;
  return program;
}

std::shared_ptr<Program> Program::Find(const std::string& key) {
  std::lock_guard<std::mutex> lock(programs_mutex);
  auto place = Programs().find(key);
  return place == Programs().end() ? nullptr : place->second;
}

absl::StatusOr<Buffers> Program::Execute(int replica, Buffers arguments) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (!meeting_) {
    meeting_ = std::make_shared<Meeting>();
    meeting_->arguments.resize(num_replicas_);
  }
  // The first replica may come to the next execution before the last has left this.
  std::shared_ptr<Meeting> meeting = meeting_;
  meeting->arguments[replica] = std::move(arguments);
  if (++meeting->num_arrived == num_replicas_) {
    meeting_ = nullptr;
    Run(meeting.get());
    changed_.notify_all();
  } else {
    changed_.wait(lock, [&] { return meeting->is_done; });
  }
  TF_RETURN_IF_ERROR(meeting->status);
  return std::move(meeting->results[replica]);
}

void Program::Run(Meeting* meeting) {
  std::vector<std::vector<xla::PjRtBuffer*>> arguments;
  for (const Buffers& buffers : meeting->arguments) {
    auto& pointers = arguments.emplace_back();
    for (const auto& buffer : buffers) pointers.push_back(buffer.get());
  }
  xla::ExecuteOptions options;
  options.untuple_result = true;
  auto results = executable_->Execute(arguments, options);
  meeting->status = results.status();
  if (results.ok()) meeting->results = *std::move(results);
  meeting->is_done = true;
  Log("execute", absl::StrCat("\"program\": ", id_));
}

}  // namespace tensorflow::fake_tpu
