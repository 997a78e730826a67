// The Python module rdc._C. Tensors come in as DLPack capsules, so that device, type, shape and layout are checked here (array.h), and no
// header of torch is needed.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>

#include "array.h"
#include "convolution.h"
#include "empirical_denoiser.h"
#include "multihead_loss.h"
#include "norm_act.h"

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
constexpr const char* convolution = "convolution";
constexpr const char* norm_act = "norm_act";

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

// The inputs of the convolution. Images are [B, channels, H, W] in channels_last.
struct ConvolutionArrays : Arrays {
  rdc::ConvolutionInputs in{};
  dlpack::Type type{};

  ConvolutionArrays(py::handle x, py::handle packed, py::handle bias, py::handle skip, py::handle y, bool doubled, float factor, CpuIsa isa)
      : Arrays(convolution, dlpack::cpu) {
    const dlpack::Tensor &from = any("x", x, 4), &to = any("y", y, 4);
    type = from.type.code == dlpack::bfloat ? bfloat16 : float32;
    const int64_t B = to.shape[0], O = to.shape[1], H = to.shape[2], W = to.shape[3], I = from.shape[1];
    if (H < 1 || W < 1 || I < 1) fail("x", "expected at least one pixel and one channel");
    if (doubled && (H % 2 || W % 2)) fail("y", "expected an even height and width");
    in.B = B, in.H = H, in.W = W, in.I = I, in.O = O;
    in.doubled = doubled;
    in.dtype = type.code == dlpack::bfloat ? rdc::DType::bfloat16 : rdc::DType::float32;
    in.x = channels_last("x", x, type, {B, I, doubled ? H / 2 : H, doubled ? W / 2 : W});
    in.packed = static_cast<const float*>(dense("packed", packed, float32, {rdc::convolution_packed_size(O, I, isa)}));
    if (!bias.is_none()) in.bias = static_cast<const float*>(dense("bias", bias, float32, {O}));
    if (!skip.is_none()) {
      in.skip_doubled = H % 2 == 0 && W % 2 == 0 && any("skip", skip, 4).shape[2] == H / 2;
      in.skip = channels_last("skip", skip, type, {B, O, in.skip_doubled ? H / 2 : H, in.skip_doubled ? W / 2 : W});
    }
    in.factor = factor;
  }
};

// What the gradient of a weight is made of, images as of the convolution.
struct ConvolutionPairArrays : Arrays {
  rdc::ConvolutionPair in{};

  ConvolutionPairArrays(py::handle x, py::handle grad, bool doubled, float factor) : Arrays(convolution, dlpack::cpu) {
    const dlpack::Tensor &from = any("x", x, 4), &to = any("grad", grad, 4);
    const dlpack::Type type = from.type.code == dlpack::bfloat ? bfloat16 : float32;
    const int64_t B = to.shape[0], O = to.shape[1], H = to.shape[2], W = to.shape[3], I = from.shape[1];
    if (B < 1 || H < 1 || W < 1 || I < 1 || O < 1) fail("grad", "expected at least one image, pixel and channel");
    if (doubled && (H % 2 || W % 2)) fail("grad", "expected an even height and width");
    in.B = B, in.H = H, in.W = W, in.I = I, in.O = O;
    in.doubled = doubled;
    in.dtype = type.code == dlpack::bfloat ? rdc::DType::bfloat16 : rdc::DType::float32;
    in.x = channels_last("x", x, type, {B, I, doubled ? H / 2 : H, doubled ? W / 2 : W});
    in.grad = channels_last("grad", grad, type, {B, O, H, W});
    in.factor = factor;
  }
};

// The inputs of the group norm. Images are [B, channels, H, W] in channels_last.
struct NormActArrays : Arrays {
  rdc::NormActInputs in{};
  dlpack::Type type{};
  int64_t height, width;

  NormActArrays(py::handle x, py::handle weight, py::handle bias, py::handle pre, py::handle scale, py::handle shift, int64_t groups, float eps,
                bool silu)
      : Arrays(norm_act, dlpack::cpu) {
    const dlpack::Tensor& from = any("x", x, 4);
    type = from.type.code == dlpack::bfloat ? bfloat16 : float32;
    height = from.shape[2], width = from.shape[3];
    in.B = from.shape[0], in.C = from.shape[1], in.P = height * width, in.groups = groups;
    if (in.P < 1 || in.C < 1) fail("x", "expected at least one position and one channel");
    if (groups < 1 || in.C % groups) fail("groups", "expected a divisor of " + std::to_string(in.C) + " channels, got " + std::to_string(groups));
    in.dtype = type.code == dlpack::bfloat ? rdc::DType::bfloat16 : rdc::DType::float32;
    in.x = images("x", x);
    in.weight = static_cast<const float*>(dense("weight", weight, float32, {in.C}));
    in.bias = static_cast<const float*>(dense("bias", bias, float32, {in.C}));
    if (!pre.is_none()) {
      in.pre_row = any("pre", pre, 2).shape[0] == 1 ? 0 : in.C;
      in.pre = condition("pre", pre, in.pre_row ? in.B : 1);
    }
    if (scale.is_none() != shift.is_none()) fail("shift", "expected with scale, or neither");
    if (!scale.is_none()) {
      int64_t shift_row = 0;
      in.scale = static_cast<const float*>(rows("scale", scale, float32, in.B, in.C, &in.scale_row));
      in.shift = static_cast<const float*>(rows("shift", shift, float32, in.B, in.C, &shift_row));
      if (shift_row != in.scale_row) fail("shift", "expected the strides of scale");
    }
    in.eps = eps;
    in.silu = silu;
  }

  void* images(const char* name, py::handle capsule) { return channels_last(name, capsule, type, {in.B, in.C, height, width}); }
  float* condition(const char* name, py::handle capsule, int64_t rows) { return static_cast<float*>(dense(name, capsule, float32, {rows, in.C})); }
};

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of rdc: tensors in as DLPack capsules, nothing of torch inside.";
  m.def("cpu_isa", [] { return rdc::name(rdc::best_cpu_isa()); }, "The best compiled instruction set this processor runs.");
  m.attr("images_in_channels_last") = true;  // what tells this extension from earlier ones
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

  m.def("fingerprint", [](py::object weight) {
    Arrays given(convolution, dlpack::cpu);
    const dlpack::Tensor& t = given.any("weight", weight, 4);
    const void* data = given.dense("weight", weight, Arrays::float32, {t.shape, t.shape + t.ndim});
    return rdc::fingerprint(data, t.shape[0] * t.shape[1] * t.shape[2] * t.shape[3] * 4);
  }, "A number that tells the values of a dense float32 weight apart.");
  m.def("convolution_packed_size", [](int64_t outputs, int64_t inputs, const std::string& isa) {
    if (outputs < 0 || inputs < 1) throw std::invalid_argument("convolution: expected outputs >= 0 and inputs >= 1");
    return rdc::convolution_packed_size(outputs, inputs, parse_isa(isa));
  });
  // weight [O, I, 3, 3] (reversed: [I, O, 3, 3]) -> packed
  m.def("convolution_pack", [](py::object weight, py::object packed, bool reversed, int threads, const std::string& isa) {
    Arrays given(convolution, dlpack::cpu);
    const dlpack::Tensor& t = given.any("weight", weight, 4);
    const int64_t outputs = t.shape[reversed ? 1 : 0], inputs = t.shape[reversed ? 0 : 1];
    const CpuIsa which = parse_isa(isa);
    const float* from = static_cast<const float*>(given.dense("weight", weight, Arrays::float32, {t.shape[0], t.shape[1], 3, 3}));
    float* to = static_cast<float*>(given.dense("packed", packed, Arrays::float32, {rdc::convolution_packed_size(outputs, inputs, which)}));
    py::gil_scoped_release release;
    rdc::convolution_pack(from, outputs, inputs, reversed, to, threads, which);
  });
  // x [B, I, H, W], packed, bias and skip (or None; or of half the size), y [B, O, H, W], which is written
  m.def("convolution_cpu_forward", [](py::object x, py::object packed, py::object bias, py::object skip, py::object y, bool doubled, float factor,
                                      int threads, const std::string& isa) {
    const CpuIsa which = parse_isa(isa);
    ConvolutionArrays given(x, packed, bias, skip, y, doubled, factor, which);
    void* out = given.channels_last("y", y, given.type, {given.in.B, given.in.O, given.in.H, given.in.W});
    rdc::Status status;
    {
      py::gil_scoped_release release;
      status = rdc::convolution_forward(given.in, out, threads, which);
    }
    check(status, convolution);
  });
  // x [B, I, H, W], grad [B, O, H, W]; floats that the gradient of the weight works with
  m.def("convolution_weight_scratch", [](py::object x, py::object grad, bool doubled, const std::string& isa) {
    return rdc::convolution_weight_scratch(ConvolutionPairArrays(x, grad, doubled, 1.0f).in, parse_isa(isa));
  });
  // and weight [O, I, 3, 3] in any strides, which is written
  m.def("convolution_cpu_weight_gradient", [](py::object x, py::object grad, py::object scratch, py::object weight, bool doubled, float factor, int threads,
                                              const std::string& isa) {
    ConvolutionPairArrays given(x, grad, doubled, factor);
    const CpuIsa which = parse_isa(isa);
    float* room = static_cast<float*>(given.dense("scratch", scratch, Arrays::float32, {rdc::convolution_weight_scratch(given.in, which)}));
    int64_t stride[4];
    float* out = static_cast<float*>(given.strided("weight", weight, Arrays::float32, {given.in.O, given.in.I, 3, 3}, stride));
    py::gil_scoped_release release;
    rdc::convolution_weight_gradient(given.in, room, out, stride, threads, which);
  });
  // x [B, C, H, W], weight, bias [C], pre [B or 1, C], scale, shift [B, C] (or None), then y like x, mean and rstd [B, C], which are written
  m.def("norm_act_cpu_forward", [](py::object x, py::object weight, py::object bias, py::object pre, py::object scale, py::object shift,
                                   int64_t groups, float eps, bool silu, py::object y, py::object mean, py::object rstd, int threads,
                                   const std::string& isa) {
    NormActArrays given(x, weight, bias, pre, scale, shift, groups, eps, silu);
    void* out = given.images("y", y);
    float *means = given.condition("mean", mean, given.in.B), *over = given.condition("rstd", rstd, given.in.B);
    const CpuIsa which = parse_isa(isa);
    rdc::Status status;
    {
      py::gil_scoped_release release;
      status = rdc::norm_act_forward(given.in, out, means, over, threads, which);
    }
    check(status, norm_act);
  });
  // The same inputs, upstream [B, P, C], mean, rstd, then what is written: the gradient of x and sums [B, C] (norm_act.h); the last may be None
  m.def("norm_act_cpu_backward", [](py::object x, py::object weight, py::object bias, py::object pre, py::object scale, py::object shift,
                                    int64_t groups, float eps, bool silu, py::object upstream, py::object mean, py::object rstd,
                                    py::object gradient, py::object sums, py::object normed_sums, py::object grad_sums, int threads,
                                    const std::string& isa) {
    NormActArrays given(x, weight, bias, pre, scale, shift, groups, eps, silu);
    const int64_t B = given.in.B;
    const void* up = given.images("upstream", upstream);
    const float *means = given.condition("mean", mean, B), *over = given.condition("rstd", rstd, B);
    const rdc::NormActGradients out{given.images("gradient", gradient), given.condition("sums", sums, B), given.condition("normed_sums", normed_sums, B),
                                    grad_sums.is_none() ? nullptr : given.condition("grad_sums", grad_sums, B)};
    const CpuIsa which = parse_isa(isa);
    rdc::Status status;
    {
      py::gil_scoped_release release;
      status = rdc::norm_act_backward(given.in, up, means, over, out, threads, which);
    }
    check(status, norm_act);
  });
  // As the backward pass, and after upstream: along, the gradient of its gradient of x; what is written begins with the gradient of upstream
  m.def("norm_act_cpu_backward_twice", [](py::object x, py::object weight, py::object bias, py::object pre, py::object scale, py::object shift,
                                          int64_t groups, float eps, bool silu, py::object upstream, py::object along, py::object mean,
                                          py::object rstd, py::object of_upstream, py::object gradient, py::object sums, py::object normed_sums,
                                          py::object grad_sums, int threads, const std::string& isa) {
    NormActArrays given(x, weight, bias, pre, scale, shift, groups, eps, silu);
    const int64_t B = given.in.B;
    const void *up = given.images("upstream", upstream), *second = given.images("along", along);
    const float *means = given.condition("mean", mean, B), *over = given.condition("rstd", rstd, B);
    const rdc::NormActSecondGradients out{given.images("of_upstream", of_upstream),
                                          {given.images("gradient", gradient), given.condition("sums", sums, B),
                                           given.condition("normed_sums", normed_sums, B),
                                           grad_sums.is_none() ? nullptr : given.condition("grad_sums", grad_sums, B)}};
    const CpuIsa which = parse_isa(isa);
    rdc::Status status;
    {
      py::gil_scoped_release release;
      status = rdc::norm_act_backward_twice(given.in, up, second, means, over, out, threads, which);
    }
    check(status, norm_act);
  });
}
