// The Python module rdc._C. Addresses come in as integers (tensor.data_ptr()); rdc/ops checks shapes, types and devices first.
#include <pybind11/pybind11.h>

#include <array>
#include <stdexcept>
#include <string>

#include "multihead_loss.h"

namespace py = pybind11;
using rdc::CpuIsa;

namespace {

using Stride = std::array<int64_t, 4>;

CpuIsa parse_isa(const std::string& wanted) {
  for (CpuIsa isa : {CpuIsa::baseline, CpuIsa::avx2, CpuIsa::avx512, CpuIsa::avx512bf16})
    if (wanted == rdc::name(isa)) {
      if (isa > rdc::best_cpu_isa())
        throw std::invalid_argument("this processor (or this build) has no " + wanted + "; the best here is " + rdc::name(rdc::best_cpu_isa()));
      return isa;
    }
  throw std::invalid_argument("the instruction set must be baseline, avx2, avx512 or avx512bf16, but it is '" + wanted + "'");
}

void check(rdc::Status status) {
  if (status) throw std::runtime_error(std::string("multihead_loss: ") + status);
}

template <typename P>
P at(uintptr_t address) {
  return reinterpret_cast<P>(address);
}

Stride strides(const py::tuple& t) {
  return {t[0].cast<int64_t>(), t[1].cast<int64_t>(), t[2].cast<int64_t>(), t[3].cast<int64_t>()};
}

rdc::MultiheadLossInputs inputs(const py::tuple& shape, bool bf16, const py::tuple& h_stride, const py::tuple& pointers) {
  rdc::MultiheadLossInputs in{};
  auto s = [&](int i) { return shape[i].cast<int64_t>(); };
  auto p = [&](int i) { return pointers[i].cast<uintptr_t>(); };
  in.shape = {s(0), s(1), s(2), s(3), s(4), s(5), s(6)};
  in.dtype = bf16 ? rdc::DType::bfloat16 : rdc::DType::float32;
  Stride st = strides(h_stride);
  for (int i = 0; i < 4; ++i) in.h_stride[i] = st[i];
  in.h = at<const void*>(p(0));
  in.weight = at<const void*>(p(1));
  in.bias = at<const void*>(p(2));
  in.target = at<const void*>(p(3));
  in.level_weight = at<const float*>(p(4));
  return in;
}

rdc::MultiheadLossGradients gradients(const py::tuple& h_stride, const py::tuple& pointers) {
  rdc::MultiheadLossGradients out{};
  auto p = [&](int i) { return pointers[i].cast<uintptr_t>(); };
  Stride st = strides(h_stride);
  for (int i = 0; i < 4; ++i) out.h_stride[i] = st[i];
  out.grad_loss = at<const float*>(p(0));
  out.h = at<void*>(p(1));
  out.weight = at<void*>(p(2));
  out.bias = at<void*>(p(3));
  out.target = at<void*>(p(4));
  out.level_row = at<float*>(p(5));
  return out;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of rdc: raw addresses in, nothing of torch inside.";
  m.def("cpu_isa", [] { return rdc::name(rdc::best_cpu_isa()); }, "The best compiled instruction set this processor runs.");
  m.def("cuda_built", &rdc::cuda_built);
  m.def("cuda_status", &rdc::cuda_status);

  // shape: (N, T, c, H, W, K, C); pointers: (h, weight, bias, target, level_weight); out: (grad_loss, h, weight, bias, target, level_row)
  // kept, row_loss: addresses of what the forward pass keeps (multihead_loss.h), or 0
  m.def("multihead_loss_cpu_forward", [](py::tuple shape, bool bf16, py::tuple h_stride, py::tuple pointers, uintptr_t loss, uintptr_t kept,
                                         uintptr_t row_loss, int threads, const std::string& isa) {
    auto in = inputs(shape, bf16, h_stride, pointers);
    CpuIsa which = parse_isa(isa);
    rdc::Status status;
    {
      py::gil_scoped_release release;
      status = rdc::multihead_loss_cpu_forward(in, at<float*>(loss), at<void*>(kept), at<double*>(row_loss), threads, which);
    }
    check(status);
  });
  m.def("multihead_loss_cpu_backward", [](py::tuple shape, bool bf16, py::tuple h_stride, py::tuple pointers, py::tuple grad_h_stride,
                                          py::tuple out_pointers, uintptr_t kept, int threads, const std::string& isa) {
    auto in = inputs(shape, bf16, h_stride, pointers);
    auto out = gradients(grad_h_stride, out_pointers);
    CpuIsa which = parse_isa(isa);
    rdc::Status status;
    {
      py::gil_scoped_release release;
      status = rdc::multihead_loss_cpu_backward(in, out, at<const void*>(kept), threads, which);
    }
    check(status);
  });
  m.def("multihead_loss_cuda_scratch", [](py::tuple shape, bool backward) {
    auto s = [&](int i) { return shape[i].cast<int64_t>(); };
    return rdc::multihead_loss_cuda_scratch({s(0), s(1), s(2), s(3), s(4), s(5), s(6)}, backward);
  });
  m.def("multihead_loss_cuda_forward", [](py::tuple shape, bool bf16, py::tuple h_stride, py::tuple pointers, uintptr_t loss,
                                          uintptr_t scratch, int device, uintptr_t stream) {
    auto in = inputs(shape, bf16, h_stride, pointers);
    check(rdc::multihead_loss_cuda_forward(in, at<float*>(loss), at<float*>(scratch), device, at<void*>(stream)));
  });
  m.def("multihead_loss_cuda_backward", [](py::tuple shape, bool bf16, py::tuple h_stride, py::tuple pointers, py::tuple grad_h_stride,
                                           py::tuple out_pointers, uintptr_t scratch, int device, uintptr_t stream) {
    auto in = inputs(shape, bf16, h_stride, pointers);
    auto out = gradients(grad_h_stride, out_pointers);
    check(rdc::multihead_loss_cuda_backward(in, out, at<float*>(scratch), device, at<void*>(stream)));
  });
}
