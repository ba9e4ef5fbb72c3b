// The kernels that execute a TPU program, one call for each replica.
#include <cstring>
#include <map>
#include <thread>
#include <vector>

#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"
#include "xla/literal.h"

#include "fake_tpu.h"
#include "program.h"

namespace tensorflow::fake_tpu {
namespace {

using Variables = std::vector<core::RefCountPtr<Var>>;

absl::Status Fetch(xla::PjRtBuffer* buffer, Tensor* value) {
  TF_ASSIGN_OR_RETURN(auto literal, buffer->ToLiteralSync());
  if (literal->size_bytes() != value->TotalBytes()) {
    return absl::InternalError("a result has another size than its tensor");
  }
  std::memcpy(value->data(), literal->untyped_data(), value->TotalBytes());
  return absl::OkStatus();
}

void Assign(Var* variable, const Tensor& value) {
  mutex_lock lock(*variable->mu());
  *variable->tensor() = value;
}

class Execute : public AsyncOpKernel {
 public:
  explicit Execute(OpKernelConstruction* construction) : AsyncOpKernel(construction) {
    // Where variable number i, argument `reads[i]`, is output `updates[i]`; -1: nowhere.
    std::vector<int> reads, updates;
    if (construction->HasAttr("device_var_reads_indices")) {
      OP_REQUIRES_OK(construction,
                     construction->GetAttr("device_var_reads_indices", &reads));
      OP_REQUIRES_OK(construction,
                     construction->GetAttr("device_var_updates_indices", &updates));
    }
    for (size_t i = 0; i < reads.size(); ++i) updated_[updates[i]] = reads[i];
  }

  void ComputeAsync(OpKernelContext* context, DoneCallback done) override {
    // In a thread of its own, since a call waits for those of the other replicas.
    std::thread([this, context, done] {
      context->SetStatus(Run(context));
      done();
    }).detach();
  }

 private:
  absl::Status Run(OpKernelContext* context) {
    const Tensor& key = context->input(context->num_inputs() - 1);
    auto program = Program::Find(key.vec<tstring>()(0));
    if (!program) return absl::NotFoundError("the program is not of this host");
    const auto& device = context->device()->parsed_name();
    int replica = device.task * NumCores() + device.id;
    Variables variables;
    std::vector<Tensor> values;
    TF_RETURN_IF_ERROR(ReadInputs(context, &variables, &values));
    Buffers arguments;
    TF_RETURN_IF_ERROR(Transfer(program->lowered(), replica, values, &arguments));
    TF_ASSIGN_OR_RETURN(Buffers results,
                        program->Execute(replica, std::move(arguments)));
    return WriteOutputs(context, program->lowered(), results, variables);
  }

  absl::Status ReadInputs(OpKernelContext* context, Variables* variables,
                          std::vector<Tensor>* values) {
    int num_arguments = context->num_inputs() - 1;
    variables->resize(num_arguments);
    for (int i = 0; i < num_arguments; ++i) {
      if (context->input_dtype(i) != DT_RESOURCE) {
        values->push_back(context->input(i));
        continue;
      }
      auto& variable = (*variables)[i];
      TF_RETURN_IF_ERROR(
          LookupResource(context, HandleFromInput(context, i), &variable));
      tf_shared_lock lock(*variable->mu());
      values->push_back(*variable->tensor());
    }
    return absl::OkStatus();
  }

  absl::Status Transfer(const XlaCompilationResult& lowered, int replica,
                        const std::vector<Tensor>& values, Buffers* arguments) {
    auto* device = Client()->addressable_devices()[replica];
    TF_ASSIGN_OR_RETURN(auto* memory, device->default_memory_space());
    for (size_t i = 0; i < lowered.input_mapping.size(); ++i) {
      const Tensor& value = values[lowered.input_mapping[i]];
      const xla::Shape& shape = lowered.xla_input_shapes[i];
      if (xla::ShapeUtil::ByteSizeOf(shape) != value.TotalBytes()) {
        return absl::InvalidArgumentError("an argument has another shape than compiled");
      }
      TF_ASSIGN_OR_RETURN(
          auto buffer,
          Client()->BufferFromHostBuffer(
              value.data(), shape.element_type(), shape.dimensions(),
              /*byte_strides=*/std::nullopt,
              xla::PjRtClient::HostBufferSemantics::kImmutableOnlyDuringCall,
              /*on_done_with_host_buffer=*/nullptr, memory, /*device_layout=*/nullptr));
      arguments->push_back(std::move(buffer));
    }
    return absl::OkStatus();
  }

  absl::Status WriteOutputs(OpKernelContext* context,
                            const XlaCompilationResult& lowered, const Buffers& results,
                            const Variables& variables) {
    int next_result = 0, next_output = 0;
    for (size_t i = 0; i < lowered.outputs.size(); ++i) {
      const XlaOutputDescription& output = lowered.outputs[i];
      Tensor value = output.constant_value;
      if (!output.is_constant) {
        value = Tensor(output.type, output.shape);
        TF_RETURN_IF_ERROR(Fetch(results[next_result++].get(), &value));
      }
      auto updated = updated_.find(i);
      if (updated == updated_.end()) {
        context->set_output(next_output++, value);
      } else {
        Assign(variables[updated->second].get(), value);
      }
    }
    // Variables that the computation itself updates come last.
    for (const XlaResourceUpdate& update : lowered.resource_updates) {
      Tensor value(update.type, update.shape);
      TF_RETURN_IF_ERROR(Fetch(results[next_result++].get(), &value));
      Assign(variables[update.input_index].get(), value);
    }
    return absl::OkStatus();
  }

  std::map<int, int> updated_;  // output -> argument
};
#define KERNEL(name) Name(name).Device("TPU").Priority(1)
REGISTER_KERNEL_BUILDER(KERNEL("TPUExecute").HostMemory("key"), Execute);
REGISTER_KERNEL_BUILDER(KERNEL("TPUExecuteAndUpdateVariables").HostMemory("key"),
                        Execute);

// On a TPU this changes the layout of variables for the program that uses them next.
class Reshard : public OpKernel {
 public:
  using OpKernel::OpKernel;
  void Compute(OpKernelContext*) override {}
};
REGISTER_KERNEL_BUILDER(KERNEL("TPUReshardVariables")
                            .HostMemory("vars")
                            .HostMemory("format_state_var")
                            .HostMemory("new_format_key"),
                        Reshard);
#undef KERNEL

}  // namespace
}  // namespace tensorflow::fake_tpu
