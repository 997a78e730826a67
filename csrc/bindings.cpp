// The Python module rdc._C. Tensors come in as DLPack capsules, so that device, type, shape and layout are checked here (array.h), and no
// header of torch is needed.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>

#include "array.h"
#include "empirical_denoiser.h"
#include "multihead_loss.h"

namespace py = pybind11;
namespace dlpack = rdc::dlpack;
using rdc::Arrays;
using rdc::CpuIsa;

namespace {

CpuIsa parse_isa(const std::string& wanted) {
  for (CpuIsa isa : {CpuIsa::baseline, CpuIsa::avx2, CpuIsa::avx512, CpuIsa::avx512bf16})
    if (wanted == rdc::name(isa)) {
      if (isa > rdc::best_cpu_isa())
        throw std::invalid_argument("this processor (or this build) has no " + wanted + "; the best here is " + rdc::name(rdc::best_cpu_isa()));
      return isa;
    }
  throw std::invalid_argument("the instruction set must be baseline, avx2, avx512 or avx512bf16, but it is '" + wanted + "'");
}

constexpr const char* op = "multihead_loss";
constexpr const char* empirical = "empirical_denoiser";

void check(rdc::Status status, const char* name = op) {
  if (status) throw std::runtime_error(std::string(name) + ": " + status);
}

// The five inputs, and what their shapes and types say.
struct Inputs : Arrays {
  rdc::MultiheadLossInputs in{};
  dlpack::Type type{};

  Inputs(dlpack::DeviceType device, py::handle h, py::handle weight, py::handle bias, py::handle target, py::handle level_weight)
      : Arrays(op, device) {
    const dlpack::Tensor& features = any("h", h, 4);
    const int64_t rows = features.shape[0], c = features.shape[1], H = features.shape[2], W = features.shape[3];
    const int64_t T = any("level_weight", level_weight, 1).shape[0], C = any("target", target, 4).shape[1];
    const int64_t outputs = any("bias", bias, 1).shape[0];
    if (T < 1 || rows % T) fail("level_weight", "expected a divisor of the " + std::to_string(rows) + " rows, got " + std::to_string(T) + " levels");
    if (C < 1 || outputs % C) fail("bias", "expected a multiple of " + std::to_string(C) + " channels, got " + std::to_string(outputs));
    type = features.type.code == dlpack::bfloat ? bfloat16 : float32;
    in.shape = {rows / T, T, c, H, W, outputs / C, C};
    in.dtype = type.code == dlpack::bfloat ? rdc::DType::bfloat16 : rdc::DType::float32;
    in.h = strided("h", h, type, {rows, c, H, W}, in.h_stride);
    in.weight = dense("weight", weight, type, {outputs, c, 3, 3});
    in.bias = dense("bias", bias, type, {outputs});
    in.target = dense("target", target, type, {rows, C, H, W});
    in.level_weight = static_cast<const float*>(dense("level_weight", level_weight, float32, {T}));
  }

  float* loss(py::handle capsule) { return static_cast<float*>(dense("loss", capsule, float32, {in.shape.N, in.shape.K})); }

  void* kept(py::handle capsule) {
    return capsule.is_none() ? nullptr : dense("kept", capsule, type, {in.shape.rows(), in.shape.H * in.shape.W, rdc::kept_outputs(in.shape)});
  }

  double* row_loss(py::handle capsule) {
    return capsule.is_none() ? nullptr : static_cast<double*>(dense("row_loss", capsule, float64, {in.shape.rows(), in.shape.K}));
  }

  float* scratch(py::handle capsule, bool backward) {
    return static_cast<float*>(dense("scratch", capsule, float32, {rdc::multihead_loss_cuda_scratch(in.shape, backward)}));
  }

  // of (h, weight, bias, target, level_row); None: not wanted
  rdc::MultiheadLossGradients gradients(py::handle grad_loss, const py::tuple& of) {
    if (of.size() != 5) fail("gradients", "expected five, or None for those not wanted");
    const auto& s = in.shape;
    rdc::MultiheadLossGradients out{};
    out.grad_loss = static_cast<const float*>(dense("grad_loss", grad_loss, float32, {s.N, s.K}));
    if (!of[0].is_none()) out.h = strided("gradient of h", of[0], type, {s.rows(), s.c, s.H, s.W}, out.h_stride);
    if (!of[1].is_none()) out.weight = dense("gradient of weight", of[1], type, {s.outputs(), s.c, 3, 3});
    if (!of[2].is_none()) out.bias = dense("gradient of bias", of[2], type, {s.outputs()});
    if (!of[3].is_none()) out.target = dense("gradient of target", of[3], type, {s.rows(), s.C, s.H, s.W});
    if (!of[4].is_none()) out.level_row = static_cast<float*>(dense("level_row", of[4], float32, {s.rows()}));
    return out;
  }
};

// The five inputs of the empirical denoiser.
struct EmpiricalInputs : Arrays {
  rdc::EmpiricalDenoiserInputs in{};

  EmpiricalInputs(py::handle inner, py::handle noise_inner, py::handle images, py::handle half_square, py::handle beta, float cut)
      : Arrays(empirical, dlpack::cpu) {
    in.N = any("inner", inner, 2).shape[0];
    in.T = any("noise_inner", noise_inner, 2).shape[0];
    in.count = any("images", images, 2).shape[0];
    in.D = any("images", images, 2).shape[1];
    in.inner = floats("inner", inner, {in.N, in.count});
    in.noise_inner = floats("noise_inner", noise_inner, {in.T, in.count});
    in.images = floats("images", images, {in.count, in.D});
    in.half_square = floats("half_square", half_square, {in.count});
    in.beta = floats("beta", beta, {in.N * in.T});
    in.cut = cut;
    if (in.count > INT32_MAX) fail("images", "expected at most 2147483647");
    if (!(cut > 0 && cut <= 80)) fail("cut", "expected a number in (0, 80]");
  }

  float* floats(const char* name, py::handle capsule, const std::vector<int64_t>& shape) {
    return static_cast<float*>(dense(name, capsule, float32, shape));
  }
};

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of rdc: tensors in as DLPack capsules, nothing of torch inside.";
  m.def("cpu_isa", [] { return rdc::name(rdc::best_cpu_isa()); }, "The best compiled instruction set this processor runs.");
  m.def("cuda_built", &rdc::cuda_built);
  m.def("cuda_status", &rdc::cuda_status);

  // Tensors as DLPack capsules: h, weight, bias, target, level_weight, then what is written. None: not wanted, or not kept.
  m.def("multihead_loss_cpu_forward", [](py::object h, py::object weight, py::object bias, py::object target, py::object level_weight,
                                         py::object loss, py::object kept, py::object row_loss, int threads, const std::string& isa) {
    Inputs given(dlpack::cpu, h, weight, bias, target, level_weight);
    float* total = given.loss(loss);
    void* residuals = given.kept(kept);
    double* rows = given.row_loss(row_loss);
    CpuIsa which = parse_isa(isa);
    rdc::Status status;
    {
      py::gil_scoped_release release;
      status = rdc::multihead_loss_cpu_forward(given.in, total, residuals, rows, threads, which);
    }
    check(status);
  });
  m.def("multihead_loss_cpu_backward", [](py::object h, py::object weight, py::object bias, py::object target, py::object level_weight,
                                          py::object grad_loss, py::tuple gradients, py::object kept, int threads, const std::string& isa) {
    Inputs given(dlpack::cpu, h, weight, bias, target, level_weight);
    auto out = given.gradients(grad_loss, gradients);
    const void* residuals = given.kept(kept);
    CpuIsa which = parse_isa(isa);
    rdc::Status status;
    {
      py::gil_scoped_release release;
      status = rdc::multihead_loss_cpu_backward(given.in, out, residuals, threads, which);
    }
    check(status);
  });
  // shape: (N, T, c, H, W, K, C); how many float32 of scratch memory the kernels want
  m.def("multihead_loss_cuda_scratch", [](std::array<int64_t, 7> s, bool backward) {
    return rdc::multihead_loss_cuda_scratch({s[0], s[1], s[2], s[3], s[4], s[5], s[6]}, backward);
  });
  m.def("multihead_loss_cuda_forward", [](py::object h, py::object weight, py::object bias, py::object target, py::object level_weight,
                                          py::object loss, py::object scratch, uintptr_t stream) {
    Inputs given(dlpack::cuda, h, weight, bias, target, level_weight);
    float* total = given.loss(loss);
    float* work = given.scratch(scratch, false);
    check(rdc::multihead_loss_cuda_forward(given.in, total, work, given.number(), reinterpret_cast<void*>(stream)));
  });
  m.def("multihead_loss_cuda_backward", [](py::object h, py::object weight, py::object bias, py::object target, py::object level_weight,
                                           py::object grad_loss, py::tuple gradients, py::object scratch, uintptr_t stream) {
    Inputs given(dlpack::cuda, h, weight, bias, target, level_weight);
    auto out = given.gradients(grad_loss, gradients);
    float* work = given.scratch(scratch, true);
    check(rdc::multihead_loss_cuda_backward(given.in, out, work, given.number(), reinterpret_cast<void*>(stream)));
  });

  // Tensors as DLPack capsules: inner, noise_inner, images, half_square, beta, then mean and kept, which are written.
  m.def("empirical_denoiser_cpu_forward", [](py::object inner, py::object noise_inner, py::object images, py::object half_square,
                                             py::object beta, py::object mean, py::object kept, float cut, int threads, const std::string& isa) {
    EmpiricalInputs given(inner, noise_inner, images, half_square, beta, cut);
    const int64_t rows = given.in.N * given.in.T;
    float* out = given.floats("mean", mean, {rows, given.in.D});
    float* sums = given.floats("kept", kept, {rows, 2});
    CpuIsa which = parse_isa(isa);
    rdc::Status status;
    {
      py::gil_scoped_release release;
      status = rdc::empirical_denoiser_cpu_forward(given.in, out, sums, threads, which);
    }
    check(status, empirical);
  });
  // The same inputs, then upstream, mean and kept, then the gradient of inner, which is added to.
  m.def("empirical_denoiser_cpu_backward", [](py::object inner, py::object noise_inner, py::object images, py::object half_square,
                                              py::object beta, py::object upstream, py::object mean, py::object kept, py::object gradient,
                                              float cut, int threads, const std::string& isa) {
    EmpiricalInputs given(inner, noise_inner, images, half_square, beta, cut);
    const int64_t rows = given.in.N * given.in.T;
    const float* up = given.floats("upstream", upstream, {rows, given.in.D});
    const float* means = given.floats("mean", mean, {rows, given.in.D});
    const float* sums = given.floats("kept", kept, {rows, 2});
    float* out = given.floats("gradient", gradient, {given.in.N, given.in.count});
    CpuIsa which = parse_isa(isa);
    rdc::Status status;
    {
      py::gil_scoped_release release;
      status = rdc::empirical_denoiser_cpu_backward(given.in, up, means, sums, out, threads, which);
    }
    check(status, empirical);
  });
}
