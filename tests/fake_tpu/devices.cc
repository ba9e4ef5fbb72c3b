// Devices TPU_SYSTEM:0 and TPU:0 to TPU:N-1, whose memory is the host's.
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tensorflow/core/common_runtime/copy_tensor.h"
#include "tensorflow/core/common_runtime/local_device.h"
#include "tensorflow/core/framework/allocator.h"
#include "tensorflow/core/framework/device_factory.h"
#include "tensorflow/core/public/session_options.h"

#include "fake_tpu.h"

namespace tensorflow::fake_tpu {

int NumCores() { return std::atoi(std::getenv("FAKE_TPU_CORES")); }

int NumHosts() {
  const char* number = std::getenv("FAKE_TPU_HOSTS");
  return number ? std::atoi(number) : 1;
}

std::string Path(const std::string& name) {
  return absl::StrCat(std::getenv("FAKE_TPU_FOLDER"), "/", name);
}

void Log(const std::string& event, const std::string& fields) {
  static std::mutex mutex;
  std::lock_guard<std::mutex> lock(mutex);
  std::ofstream(Path("log.jsonl"), std::ios::app)
      << "{\"event\": \"" << event << "\", " << fields << "}\n";
}

namespace {

// Copies the values: a device's memory must not change with the host's tensor.
absl::Status Copy(const Tensor& from, Tensor* to) {
  if (!DataTypeCanUseMemcpy(from.dtype())) {
    *to = from;
    return absl::OkStatus();
  }
  if (!to->IsInitialized() || to->TotalBytes() != from.TotalBytes()) {
    *to = Tensor(from.dtype(), from.shape());
  }
  std::memcpy(to->data(), from.data(), from.TotalBytes());
  return absl::OkStatus();
}

class Context : public DeviceContext {
 public:
  void CopyCPUTensorToDevice(const Tensor* from, Device*, Tensor* to,
                             StatusCallback done, bool) const override {
    done(Copy(*from, to));
  }

  void CopyTensorInSameDevice(const Tensor* from, Device*, Tensor* to,
                              StatusCallback done) const override {
    done(Copy(*from, to));
  }

  void CopyDeviceTensorToCPU(const Tensor* from, absl::string_view edge, Device*,
                             Tensor* to, StatusCallback done) override {
    size_t bytes = from->TotalBytes();
    // A control edge between two devices sends a tensor without any.
    if (bytes) {
      Log("read", absl::StrCat("\"bytes\": ", bytes, ", \"dtype\": \"",
                               DataTypeString(from->dtype()), "\", \"edge\": \"",
                               edge, "\""));
    }
    done(Copy(*from, to));
  }
};

class FakeDevice : public LocalDevice {
 public:
  FakeDevice(const SessionOptions& options, const std::string& name,
             const std::string& type)
      : LocalDevice(options, Device::BuildDeviceAttributes(
                                 name, DeviceType(type), Bytes(int64_t{16} << 30),
                                 DeviceLocality(), "fake TPU")),
        context_(new Context) {
    info_.default_context = context_;
    set_tensorflow_accelerator_device_info(&info_);
  }
  ~FakeDevice() override { context_->Unref(); }

  Allocator* GetAllocator(AllocatorAttributes) override { return cpu_allocator(); }

  absl::Status MakeTensorFromProto(const TensorProto& proto, AllocatorAttributes,
                                   Tensor* tensor) override {
    if (!tensor->FromProto(cpu_allocator(), proto)) {
      return absl::InvalidArgumentError("a tensor cannot be parsed");
    }
    return absl::OkStatus();
  }

  absl::Status TryGetDeviceContext(DeviceContext** context) override {
    context_->Ref();
    *context = context_;
    return absl::OkStatus();
  }

  absl::Status Sync() override { return absl::OkStatus(); }

 private:
  Context* context_;
  AcceleratorDeviceInfo info_;
};

class Factory : public DeviceFactory {
 public:
  Factory(std::string type, int count) : type_(std::move(type)), count_(count) {}

  absl::Status ListPhysicalDevices(std::vector<std::string>* devices) override {
    for (int i = 0; i < count_; ++i) {
      devices->push_back(absl::StrCat("/physical_device:", type_, ":", i));
    }
    return absl::OkStatus();
  }

  absl::Status CreateDevices(const SessionOptions& options, const std::string& prefix,
                             std::vector<std::unique_ptr<Device>>* devices) override {
    for (int i = 0; i < count_; ++i) {
      devices->push_back(std::make_unique<FakeDevice>(
          options, absl::StrCat(prefix, "/device:", type_, ":", i), type_));
    }
    return absl::OkStatus();
  }

 private:
  std::string type_;
  int count_;
};

// Takes the place of the wheel's own devices, and keeps their priority: above it,
// eager operations would no longer run on the CPU.
bool Register(const std::string& type, int count) {
  int priority = DeviceFactory::DevicePriority(type);
  DeviceFactory::Register(type, std::make_unique<Factory>(type, count), priority + 1,
                          /*is_pluggable_device=*/false);
  return true;
}
bool registered = Register("TPU_SYSTEM", 1) && Register("TPU", NumCores());

CopyTensor::Registration between_cores(
    DeviceType("TPU"), DeviceType("TPU"),
    [](DeviceContext*, DeviceContext*, Device*, Device*, AllocatorAttributes,
       AllocatorAttributes, const Tensor* from, Tensor* to, int,
       StatusCallback done) { done(Copy(*from, to)); });

}  // namespace
}  // namespace tensorflow::fake_tpu
