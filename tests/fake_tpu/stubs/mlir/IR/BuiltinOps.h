// PjRt's headers name these two classes of MLIR; TensorFlow's wheel does not have them.
#pragma once

namespace mlir {

class MLIRContext;

class ModuleOp {
  void* state_ = nullptr;
};

template <class Op>
class OwningOpRef {
  Op op_;
};

}  // namespace mlir
