// The Python module. Tensors cross as DLPack capsules and arrive as Views; neither torch's headers nor its libraries
// are needed, so one build serves every torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "bits.h"
#include "copula.h"
#include "elementwise.h"
#include "gram.h"
#include "jacobian.h"
#include "logistic.h"
#include "logistic_means.h"
#include "polyline.h"
#include "simd_probe.h"
#include "spline.h"

namespace py = pybind11;

namespace {

// The structs of DLPack 0.8 (github.com/dmlc/dlpack), which the capsules of torch.utils.dlpack hold.
struct DLDevice {
  int32_t type, id;
};
struct DLDataType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

bool dtype_of(DLDataType type, fl::DType& out) {
  constexpr uint8_t kInt = 0, kUint = 1, kFloat = 2, kBfloat = 4;
  struct Row {
    uint8_t code, bits;
    fl::DType dtype;
  };
  constexpr Row known[] = {{kFloat, 16, fl::DType::f16}, {kBfloat, 16, fl::DType::bf16}, {kFloat, 32, fl::DType::f32},
                           {kFloat, 64, fl::DType::f64}, {kInt, 64, fl::DType::i64},     {kInt, 32, fl::DType::i32},
                           {kUint, 8, fl::DType::u8}};
  for (const Row& row : known) {
    if (row.code == type.code && row.bits == type.bits && type.lanes == 1) {
      out = row.dtype;
      return true;
    }
  }
  return false;
}

bool view_of(const DLTensor& t, fl::View& view) {
  constexpr int32_t kCpu = 1, kCuda = 2;
  if (t.ndim > 4 || (t.device.type != kCpu && t.device.type != kCuda)) return false;
  view = {};
  if (!dtype_of(t.dtype, view.dtype)) return false;
  view.data = static_cast<char*>(t.data) + t.byte_offset;
  view.cuda = t.device.type == kCuda;
  view.device = t.device.id;
  view.ndim = t.ndim;
  std::memcpy(view.size, t.shape, size_t(t.ndim) * sizeof(int64_t));
  std::memcpy(view.stride, t.strides, size_t(t.ndim) * sizeof(int64_t));
  return true;
}

}  // namespace

namespace pybind11::detail {

template <>
struct type_caster<fl::View> {
  PYBIND11_TYPE_CASTER(fl::View, const_name("Tensor"));

  bool load(handle source, bool) {
    static PyObject* to_dlpack = object(module_::import("torch.utils.dlpack").attr("to_dlpack")).release().ptr();
    const object capsule = reinterpret_steal<object>(PyObject_CallOneArg(to_dlpack, source.ptr()));
    const void* managed = capsule ? PyCapsule_GetPointer(capsule.ptr(), "dltensor") : nullptr;
    if (managed == nullptr) PyErr_Clear();
    // The capsule goes with this scope; the caller still holds the tensor.
    return managed != nullptr && view_of(*static_cast<const DLTensor*>(managed), value);
  }
};

// The Grid of fastlatent/ops/logistic/grid.py.
template <>
struct type_caster<fl::LogisticGrid> {
  PYBIND11_TYPE_CASTER(fl::LogisticGrid, const_name("Grid"));

  bool load(handle source, bool) {
    value = {source.attr("n").cast<int64_t>(), source.attr("gamma").cast<double>(), source.attr("shift").cast<double>(),
             source.attr("floor").cast<double>(), source.attr("coupled").cast<bool>()};
    return true;
  }
};

}  // namespace pybind11::detail

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "Kernels of fastlatent. Internal: arguments are checked by fastlatent.ops.";
  const py::call_guard<py::gil_scoped_release> released;

  m.attr("source_hash") = FL_SOURCE_HASH;
  m.attr("compiler") = FL_COMPILER;
#if defined(FL_CUDA)
  m.attr("cuda") = FL_CUDA;
#else
  m.attr("cuda") = py::none();
#endif

  m.def("isa", [] { return fl::name(fl::isa()); });
  m.def("isas", [] {
    py::list names;
    for (const fl::Isa set : {fl::Isa::baseline, fl::Isa::avx2, fl::Isa::avx512}) {
      if (fl::supported(set)) names.append(fl::name(set));
    }
    return names;
  });
  m.def("use_isa", [](const char* name) { fl::use_isa(fl::isa_named(name)); });
  m.def("simd_probe", &fl::simd_probe);

  m.def(
      "elementwise",
      [](const char* op, const std::vector<fl::View>& tensors, int threads) {
        fl::elementwise(op, tensors.data(), int(tensors.size()), threads);
      },
      released);

  m.def("binarize", &fl::binarize, released);
  m.def("binarize_backward", &fl::binarize_backward, released);
  m.def("pack_bits", &fl::pack_bits, released);
  m.def("unpack_bits", &fl::unpack_bits, released);
  m.def("binary_moments", &fl::binary_moments, released);
  m.def("binary_moments_scratch", &fl::binary_moments_scratch);

  m.def("logistic_log_prob", &fl::logistic_log_prob, released);
  m.def("logistic_backward", &fl::logistic_backward, released);
  m.def("logistic_mixture_log_prob", &fl::logistic_mixture_log_prob, released);
  m.def("logistic_mixture_backward", &fl::logistic_mixture_backward, released);
  m.def("logistic_mixture_sample", &fl::logistic_mixture_sample, released);
  m.def("logistic_mean", &fl::logistic_mean, released);
  m.def("logistic_mean_backward", &fl::logistic_mean_backward, released);
  m.def("logistic_mode", &fl::logistic_mode, released);
  m.def("logistic_mixture_mean", &fl::logistic_mixture_mean, released);
  m.def("logistic_mixture_mean_backward", &fl::logistic_mixture_mean_backward, released);
  m.def("logistic_mixture_mode", &fl::logistic_mixture_mode, released);

  m.def("bspline", &fl::bspline, released);
  m.def("bspline_backward", &fl::bspline_backward, released);
  m.def("polyline", &fl::polyline, released);
  m.def("polyline_backward", &fl::polyline_backward, released);

  m.def("activation_jvp", &fl::activation_jvp, released);
  m.def("activation_jvp_backward", &fl::activation_jvp_backward, released);
  m.def("activation_jvp_scratch", &fl::activation_jvp_scratch);
  m.def("jacobian_gram", &fl::jacobian_gram, released);

  m.def("copula_align", &fl::copula_align, released);
#if defined(FL_CUDA)
  m.def(
      "copula_align_cuda",
      [](const fl::View& projections, const fl::View& codes, bool packed, uintptr_t stream) {
        fl::copula_align_cuda(projections, codes, packed, {reinterpret_cast<cudaStream_t>(stream)});
      },
      released);
#endif
}
