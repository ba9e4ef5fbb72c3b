// A compiled program, which all replicas execute together.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "tensorflow/compiler/tf2xla/xla_compiler.h"
#include "xla/pjrt/pjrt_client.h"

namespace tensorflow::fake_tpu {

using Buffers = std::vector<std::unique_ptr<xla::PjRtBuffer>>;

// Returns XLA's CPU client, which has a device for each core of all hosts.
xla::PjRtClient* Client();

class Program {
 public:
  // Compiles what TensorFlow has lowered.
  static absl::StatusOr<std::shared_ptr<Program>> Create(int id, int num_replicas,
                                                         XlaCompilationResult lowered);

  // Returns the program with a key; null without one.
  static std::shared_ptr<Program> Find(const std::string& key);

  std::string key() const { return std::to_string(id_); }
  const XlaCompilationResult& lowered() const { return lowered_; }

  // Executes the program when all replicas have called this; returns a replica's
  // results.
  absl::StatusOr<Buffers> Execute(int replica, Buffers arguments);

 private:
  // What the replicas bring to an execution, and take from it.
  struct Meeting {
    std::vector<Buffers> arguments, results;
    absl::Status status;
    int num_arrived = 0;
    bool is_done = false;
  };

  void Run(Meeting* meeting);

  int id_;
  int num_replicas_;
  XlaCompilationResult lowered_;
  std::unique_ptr<xla::PjRtLoadedExecutable> executable_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<Meeting> meeting_;
};

}  // namespace tensorflow::fake_tpu
