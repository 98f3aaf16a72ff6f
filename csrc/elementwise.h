// Ops whose results depend on the elements at their own place alone: the formulas of elementwise.simd.cpp, by name.
#pragma once

#include "isa.h"
#include "view.h"

namespace fl {

// The op of that name: vectors of as many elements each and of one floating dtype, the output last.
// throws std::invalid_argument for a name that elementwise.simd.cpp does not have
void elementwise(const char* op, const View* tensors, int count, int threads);

struct Elementwise {
  const char* op;
  int inputs;
  void (*run)(const View* tensors, int64_t begin, int64_t end);  // elements [begin, end)
};

struct ElementwiseKernels {
  const Elementwise* (*named)(const char* op);  // null where there is none
};

FL_DECLARE_KERNELS(ElementwiseKernels, elementwise)

}  // namespace fl
