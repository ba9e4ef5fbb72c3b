// The TPU system: its topology, and the kernels that configure it.
#include <string>
#include <vector>

#include "tensorflow/core/framework/op_kernel.h"
#include "xla/stream_executor/tpu/tpu_api.h"
#include "xla/stream_executor/tpu/tpu_executor_api.h"

#include "fake_tpu.h"

namespace tensorflow::fake_tpu {

tpu::TopologyProto Topology() {
  int chips = NumCores() >= 4 ? 4 : 1;
  int width = chips == 4 ? 2 : 1;
  int cores_per_chip = NumCores() / chips;
  tpu::TopologyProto topology;
  for (int size : {width, width * NumHosts(), 1, cores_per_chip}) {
    topology.add_mesh_shape(size);
  }
  topology.set_num_tasks(NumHosts());
  topology.set_num_tpu_devices_per_task(NumCores());
  for (int host = 0; host < NumHosts(); ++host) {
    for (int x = 0; x < width; ++x) {
      for (int y = host * width; y < (host + 1) * width; ++y) {
        for (int core = 0; core < cores_per_chip; ++core) {
          for (int place : {x, y, 0, core}) topology.add_device_coordinates(place);
        }
      }
    }
  }
  return topology;
}

namespace {

struct Core {
  int x, y, z, index, id;
};

// libtpu's opaque type is one of these cores here.
Core* Cast(SE_TpuTopology_Core* core) { return reinterpret_cast<Core*>(core); }
SE_TpuTopology_Core* Cast(Core* core) {
  return reinterpret_cast<SE_TpuTopology_Core*>(core);
}

std::vector<Core>& Cores() {
  static auto* cores = [] {
    auto* result = new std::vector<Core>;
    tpu::TopologyProto topology = Topology();
    for (int id = 0; id < NumHosts() * NumCores(); ++id) {
      auto place = [&](int axis) { return topology.device_coordinates(4 * id + axis); };
      result->push_back({place(0), place(1), place(2), place(3), id});
    }
    return result;
  }();
  return *cores;
}

int MeshSize(int axis) { return Topology().mesh_shape(axis); }

SE_TpuTopology_Core* FindCore(int x, int y, int z, int index) {
  for (Core& core : Cores()) {
    if (core.x == x && core.y == y && core.z == z && core.index == index) {
      return Cast(&core);
    }
  }
  return nullptr;
}

void AnswerAboutTopology(TfTpu_ExecutorApiFn* api) {
  using Type = TpuCoreTypeEnum;
  using Of = const SE_TpuTopology*;
  api->TpuTopology_VersionFn = [](Of) { return kTpuV3; };
  api->TpuTopology_HostCountFn = [](Of) { return NumHosts(); };
  api->TpuTopology_IdForHostFn = [](Of, int, int, int) { return 0; };
  api->TpuTopology_LogicalDevicesPerHostFn = [](Of, Type) { return NumCores(); };
  api->TpuTopology_LogicalDevicesPerChipFn = [](Of, Type) { return MeshSize(3); };
  api->TpuTopology_ChipsPerHostFn = [](Of) { return NumCores() / MeshSize(3); };
  api->TpuTopology_ChipBounds_XFn = [](Of) { return MeshSize(0); };
  api->TpuTopology_ChipBounds_YFn = [](Of) { return MeshSize(1); };
  api->TpuTopology_ChipBounds_ZFn = [](Of) { return MeshSize(2); };
  api->TpuTopology_HasChipFn = [](Of, int x, int y, int z) {
    return FindCore(x, y, z, 0) != nullptr;
  };
  api->TpuTopology_NumCoresFn = [](Of, Type) { return NumCores(); };
  api->TpuTopology_CoreForIdFn = [](Of, Type, int id) { return Cast(&Cores()[id]); };
  api->TpuTopology_CoreFn = [](Of, Type, int x, int y, int z, int index) {
    return FindCore(x, y, z, index);
  };
  api->TpuTopology_CoresFn = [](Of, Type, SE_TpuTopology_Core** cores) {
    for (Core& core : Cores()) *cores++ = Cast(&core);
  };
}

void AnswerAboutCores(TfTpu_ExecutorApiFn* api) {
  api->TpuCoreLocation_IdFn = [](SE_TpuTopology_Core* core) { return Cast(core)->id; };
  api->TpuCoreLocation_IndexFn = [](SE_TpuTopology_Core* core) {
    return Cast(core)->index;
  };
  api->TpuCoreLocation_ChipCoordinatesFn = [](SE_TpuTopology_Core* core, int* x, int* y,
                                              int* z) {
    *x = Cast(core)->x, *y = Cast(core)->y, *z = Cast(core)->z;
  };
  api->TpuCoreLocation_HostCoordinatesFn = [](SE_TpuTopology_Core*, int* x, int* y,
                                              int* z) { *x = *y = *z = 0; };
}

// Answers in place of libtpu, whose functions TensorFlow looks up in these tables.
bool Answer() {
  auto* api = const_cast<TfTpu_OpsApiFn*>(stream_executor::tpu::OpsApiFn());
  api->TpuUtil_GetTopologyPtrFn = [] {
    static int topology;  // TensorFlow passes its address on, and does not read it
    return reinterpret_cast<const SE_TpuTopology*>(&topology);
  };
  api->TpuTopology_AvailableCoreCountFn = [](const XLA_TpuMeshState*, TpuCoreTypeEnum) {
    return NumCores();
  };
  api->TpuTopology_AvailableCoresPerChipFn = [](TpuCoreTypeEnum) {
    return MeshSize(3);
  };
  auto* executor =
      const_cast<TfTpu_ExecutorApiFn*>(stream_executor::tpu::ExecutorApiFn());
  AnswerAboutTopology(executor);
  AnswerAboutCores(executor);
  return true;
}
bool answers = Answer();

// Returns the topology, or what else a step of the configuration returns.
class Configure : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    if (num_outputs() == 0) return;
    if (output_type(0) == DT_STRING) {
      Tensor topology(DT_STRING, TensorShape({}));
      topology.scalar<tstring>()() = Topology().SerializeAsString();
      context->set_output(0, topology);
    } else if (type_string() == "_InitializeHostForDistributedTPU") {
      Tensor ids(DT_INT32, TensorShape({NumCores()}));
      int first = context->device()->parsed_name().task * NumCores();
      for (int id = 0; id < NumCores(); ++id) ids.vec<int32_t>()(id) = first + id;
      context->set_output(0, ids);
    } else {  // _DisconnectHostFromDistributedTPUSystem
      Tensor chips(DT_INT32, TensorShape({}));
      chips.scalar<int32_t>()() = NumCores() / MeshSize(3);
      context->set_output(0, chips);
    }
  }
};

#define KERNEL(name) Name(name).Device("TPU_SYSTEM").Priority(1)
REGISTER_KERNEL_BUILDER(KERNEL("ConfigureDistributedTPU").HostMemory("topology"),
                        Configure);
REGISTER_KERNEL_BUILDER(
    KERNEL("_ConfigureDistributedTPU").HostMemory("inputs").HostMemory("output"),
    Configure);
REGISTER_KERNEL_BUILDER(
    KERNEL("_WaitForDistributedTPU").HostMemory("inputs").HostMemory("topology"),
    Configure);
REGISTER_KERNEL_BUILDER(KERNEL("_SetGlobalTPUArray").HostMemory("topology"), Configure);
REGISTER_KERNEL_BUILDER(KERNEL("_InitializeHostForDistributedTPU")
                            .HostMemory("input")
                            .HostMemory("tpu_ids"),
                        Configure);
REGISTER_KERNEL_BUILDER(
    KERNEL("_DisconnectHostFromDistributedTPUSystem").HostMemory("number_of_tpu_chips"),
    Configure);
REGISTER_KERNEL_BUILDER(KERNEL("ShutdownDistributedTPU"), Configure);
REGISTER_KERNEL_BUILDER(KERNEL("_ShutdownDistributedTPU"), Configure);
#undef KERNEL

}  // namespace
}  // namespace tensorflow::fake_tpu
