// A host with TPU cores that are not there, for the unmodified wheel tensorflow-tpu.
//
// `tf.load_library` of this plugin registers the devices, answers what TensorFlow asks
// libtpu about the topology, and compiles and executes by XLA's backend for CPUs.
// Everything from Keras to HLO is TensorFlow's own. Environment variables:
//
//   FAKE_TPU_CORES   cores of a host: 1, 2, 4 or 8
//   FAKE_TPU_HOSTS   hosts of the TPU, all of which one process serves; 1 without it
//   FAKE_TPU_FOLDER  folder of log.jsonl and of the compiled programs, ID.hlo
//   FAKE_TPU_JIT     whose kernels lower the graphs: XLA_CPU_JIT or XLA_TPU_JIT
#pragma once

#include <string>

#include "tensorflow/core/protobuf/tpu/topology.pb.h"

namespace tensorflow::fake_tpu {

// Returns the number of cores of a host.
int NumCores();

// Returns the number of hosts.
int NumHosts();

// Returns the arrangement of the cores: a host has up to four chips with one or two
// cores each, and the next host's follow in direction y.
tpu::TopologyProto Topology();

// Returns a path in FAKE_TPU_FOLDER.
std::string Path(const std::string& name);

// Appends {"event": event, fields} to log.jsonl.
//   fields: JSON, such as `"bytes": 4`.
void Log(const std::string& event, const std::string& fields);

}  // namespace tensorflow::fake_tpu
