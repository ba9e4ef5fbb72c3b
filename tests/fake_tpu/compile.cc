// The kernels that compile a TPU program: of a graph, and of the MLIR bridge's module.
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tensorflow/compiler/tf2xla/xla_compiler.h"
#include "tensorflow/compiler/tf2xla/xla_op_registry.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/protobuf/tpu/compile_metadata.pb.h"

#include "fake_tpu.h"
#include "program.h"

// The wheel has no headers of LLVM. These have the names and the layout of LLVM's.
namespace llvm {
struct StringRef {
  const char* data;
  size_t size;
};
template <class T>
struct ArrayRef {
  const T* data;
  size_t size;
};
template <class T>
struct MutableArrayRef : ArrayRef<T> {};
}  // namespace llvm

namespace mlir {
class Pass;
}

namespace tensorflow {

absl::StatusOr<std::string> CompileSerializedMlirToXlaHlo(
    llvm::StringRef module, llvm::ArrayRef<TensorShape> shapes,
    llvm::StringRef device_type, bool use_tuple_args, bool enable_op_fallback,
    XlaShapeLayoutHelpers::ShapeDeterminationFns, XlaCompilationResult*,
    llvm::MutableArrayRef<std::unique_ptr<mlir::Pass>> passes, llvm::StringRef name,
    bool lower_to_xla_hlo);

namespace fake_tpu {
namespace {

using Shapes = std::vector<TensorShape>;

std::string LoweringDevice() { return std::getenv("FAKE_TPU_JIT"); }

class Compile : public OpKernel {
 public:
  explicit Compile(OpKernelConstruction* construction) : OpKernel(construction) {
    std::string metadata;
    OP_REQUIRES_OK(construction, construction->GetAttr("metadata", &metadata));
    OP_REQUIRES(construction, metadata_.ParsePartialFromString(metadata),
                absl::InvalidArgumentError("metadata cannot be parsed"));
    OP_REQUIRES_OK(construction,
                   construction->GetAttr("num_computations", &num_computations_));
  }

  void Compute(OpKernelContext* context) override {
    std::lock_guard<std::mutex> lock(mutex_);
    Shapes shapes;
    OP_REQUIRES_OK(context, GetShapes(context, &shapes));
    std::string& key = keys_[absl::StrJoin(shapes, ";", [](auto* text, auto& shape) {
      text->append(shape.DebugString());
    })];
    if (key.empty()) OP_REQUIRES_OK(context, Build(context, shapes, &key));
    context->set_output(0, Tensor(DT_STRING, TensorShape({})));  // no error
    for (int i = 1; i < num_outputs(); ++i) {
      Tensor output;
      if (i <= num_computations_) {
        output = Tensor(DT_STRING, TensorShape({3}));
        output.vec<tstring>()(0) = key;
      } else {  // whether the program may modify variables
        output = Tensor(true);
      }
      context->set_output(i, output);
    }
  }

 protected:
  // Lowers the computation to HLO for the device type `LoweringDevice()`.
  virtual absl::Status Lower(OpKernelContext* context, const Shapes& shapes,
                             XlaCompilationResult* lowered) = 0;

  tpu::TPUCompileMetadataProto metadata_;

 private:
  // Returns the shapes of the arguments; those that the graph does not know are inputs.
  absl::Status GetShapes(OpKernelContext* context, Shapes* shapes) {
    OpInputList dynamic_shapes;
    TF_RETURN_IF_ERROR(context->input_list("dynamic_shapes", &dynamic_shapes));
    num_dynamic_inputs_ = dynamic_shapes.size();
    int next = 0;
    for (const auto& argument : metadata_.args()) {
      TensorShape shape;
      if (!PartialTensorShape(argument.shape()).AsTensorShape(&shape)) {
        if (next == num_dynamic_inputs_) {
          return absl::InternalError("too few dynamic shapes");
        }
        auto sizes = dynamic_shapes[next++].flat<int64_t>();
        for (int i = 0; i < sizes.size(); ++i) shape.AddDim(sizes(i));
      }
      shapes->push_back(shape);
    }
    return absl::OkStatus();
  }

  absl::Status Build(OpKernelContext* context, const Shapes& shapes, std::string* key) {
    static std::atomic<int> num_programs{0};
    int id = num_programs++;
    XlaOpRegistry::RegisterCompilationKernels();
    XlaCompilationResult lowered;
    absl::Status status = Lower(context, shapes, &lowered);
    const auto& transfers = lowered.host_compute_metadata;
    Log("compile",
        absl::StrCat("\"program\": ", id, ", \"replicas\": ", metadata_.num_replicas(),
                     ", \"dynamic_inputs\": ", num_dynamic_inputs_,
                     ", \"host_transfers\": ",
                     transfers.device_to_host_size() + transfers.host_to_device_size(),
                     ", \"op\": \"", type_string(), "\", \"lowered\": ", status.ok()));
    TF_RETURN_IF_ERROR(status);
    std::ofstream(Path(absl::StrCat(id, ".hlo")), std::ios::binary)
        << lowered.computation->proto().SerializeAsString();
    TF_ASSIGN_OR_RETURN(
        auto program,
        Program::Create(id, metadata_.num_replicas(), std::move(lowered)));
    *key = program->key();
    return absl::OkStatus();
  }

  int num_computations_;
  int num_dynamic_inputs_;
  std::mutex mutex_;
  std::map<std::string, std::string> keys_;  // by the shapes
};

// What `DistributedTPURewritePass` leaves, which tensorflow-tpu takes by default.
class CompileGraph : public Compile {
 public:
  explicit CompileGraph(OpKernelConstruction* construction) : Compile(construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("function", &function_));
  }

 protected:
  absl::Status Lower(OpKernelContext* context, const Shapes& shapes,
                     XlaCompilationResult* lowered) override {
    auto* library = context->function_library();
    XlaCompiler::Options options;
    options.device_type = DeviceType(LoweringDevice());
    options.flib_def = library->GetFunctionLibraryDefinition();
    options.graph_def_version = library->graph_def_version();
    std::vector<XlaCompiler::Argument> arguments;
    for (int i = 0; i < metadata_.args_size(); ++i) {
      XlaCompiler::Argument& argument = arguments.emplace_back();
      argument.type = metadata_.args(i).dtype();
      argument.shape = shapes[i];
      argument.kind = XlaCompiler::Argument::kParameter;
      if (metadata_.args(i).kind() == tpu::TPUCompileMetadataProto::Arg::VARIABLE) {
        argument.kind = XlaCompiler::Argument::kResource;
        argument.resource_kind = XlaResource::kVariable;
        argument.initialized = true;
      }
    }
    XlaCompiler::CompileOptions how;
    how.use_tuple_arg = false;
    how.return_updated_values_for_all_resources = false;
    how.alias_resource_update = true;
    return XlaCompiler(options).CompileFunction(how, function_, arguments, lowered);
  }

 private:
  NameAttrList function_;
};
REGISTER_KERNEL_BUILDER(Name("TPUCompile").Device(DEVICE_CPU).Priority(1),
                        CompileGraph);

class CompileModule : public Compile {
 public:
  explicit CompileModule(OpKernelConstruction* construction) : Compile(construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("mlir_module", &module_));
  }

 protected:
  absl::Status Lower(OpKernelContext*, const Shapes& shapes,
                     XlaCompilationResult* lowered) override {
    std::string device = LoweringDevice();
    return CompileSerializedMlirToXlaHlo(
               {module_.data(), module_.size()}, {shapes.data(), shapes.size()},
               {device.data(), device.size()}, /*use_tuple_args=*/false,
               /*enable_op_fallback=*/false, {}, lowered, {}, {"", 0},
               /*lower_to_xla_hlo=*/true)
        .status();
  }

 private:
  std::string module_;
};
REGISTER_KERNEL_BUILDER(Name("_TPUCompileMlir").Device(DEVICE_CPU).Priority(1),
                        CompileModule);

class DoNothing : public OpKernel {
 public:
  using OpKernel::OpKernel;
  void Compute(OpKernelContext*) override {}
};
REGISTER_KERNEL_BUILDER(
    Name("TPUCompileSucceededAssert").Device(DEVICE_CPU).Priority(1), DoNothing);

}  // namespace
}  // namespace fake_tpu
}  // namespace tensorflow
