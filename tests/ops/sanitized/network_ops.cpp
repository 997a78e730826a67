// Random shapes through the network's CPU kernels of one instruction set (RDC_ISA), every array a block of its own size: for AddressSanitizer and
// UndefinedBehaviorSanitizer, which see what is read or written beyond. Convolutions and weight gradients are compared with loops in double,
// for second-level caches of several sizes; what a convolution gives must not depend on that size.
//
//   network_ops SHAPES SEED
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "convolution.h"
#include "cpu_isa.h"
#include "norm_act.h"

#define RDC_JOIN2(a, b) a##b
#define RDC_JOIN(a, b) RDC_JOIN2(a, b)

static long cache = 1L << 20;

namespace rdc {
long second_level_cache() { return cache; }
extern const ConvolutionCpu RDC_JOIN(convolution_, RDC_ISA);
extern const ConvolutionWeightCpu RDC_JOIN(convolution_weight_, RDC_ISA);
extern const NormActCpu RDC_JOIN(norm_act_, RDC_ISA);
}  // namespace rdc

using namespace rdc;

namespace {

std::mt19937_64 source;
int64_t among(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(source); }

uint16_t rounded(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
float widened(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float f;
  __builtin_memcpy(&f, &bits, 4);
  return f;
}

// Values as a kernel takes them, and as numbers
struct Values {
  std::vector<float> numbers;
  std::vector<uint16_t> halves;
  bool half;
  Values(int64_t n, bool bfloat16, bool zero = false) : numbers(n), halves(bfloat16 ? n : 0), half(bfloat16) {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < n; ++i) {
      numbers[i] = zero ? 0.0f : normal(source);
      if (half) halves[i] = rounded(numbers[i]), numbers[i] = widened(halves[i]);
    }
  }
  void* data() { return half ? static_cast<void*>(halves.data()) : numbers.data(); }
  float at(int64_t i) const { return half ? widened(halves[i]) : numbers[i]; }
};

void check(const char* what, double found, double expected, double size, bool half) {
  const double bound = (half ? 1e-2 : 2e-5) * (size + 1.0);
  if (!(std::fabs(found - expected) <= bound)) {
    std::printf("%s: %.9g instead of %.9g\n", what, found, expected);
    std::exit(1);
  }
}

void another_cache() { cache = (256L << 10) << among(0, 4); }

void convolution(bool half) {
  const bool doubled = among(0, 3) == 0;
  const int64_t B = among(1, 4), step = doubled ? 2 : 1, H = step * among(1, 17 / step), W = step * among(1, 17 / step), I = among(1, 70), O = among(1, 70);
  const int kind = static_cast<int>(among(0, 2)), threads = static_cast<int>(among(1, 3));
  const bool small_skip = kind == 2 && H % 2 == 0 && W % 2 == 0, reversed = among(0, 1);
  Values x(B * (H / step) * (W / step) * I, half), grad(B * H * W * O, half), y(B * H * W * O, half, true), weight(O * I * 9, false), bias(O, false);
  Values skip(small_skip ? B * (H / 2) * (W / 2) * O : B * H * W * O, half);
  const float factor = 0.7f;
  const auto& kernel = RDC_JOIN(convolution_, RDC_ISA);
  std::vector<float> packed(kernel.packed_size(O, I));
  kernel.pack(weight.numbers.data(), O, I, reversed, packed.data(), threads);
  ConvolutionInputs in{};
  in.B = B, in.H = H, in.W = W, in.I = I, in.O = O, in.doubled = doubled, in.factor = factor;
  in.dtype = half ? DType::bfloat16 : DType::float32;
  in.x = x.data(), in.packed = packed.data(), in.bias = among(0, 1) ? bias.numbers.data() : nullptr;
  in.skip = kind ? skip.data() : nullptr, in.skip_doubled = small_skip;
  another_cache();
  if (kernel.forward(in, y.data(), threads)) std::exit(2);
  Values again(B * H * W * O, half, true);
  another_cache();
  if (kernel.forward(in, again.data(), threads)) std::exit(2);
  if (std::memcmp(y.data(), again.data(), B * H * W * O * (half ? 2 : 4))) {
    std::printf("convolution: other bits with another cache\n");
    std::exit(1);
  }

  auto pixel = [&](int64_t b, int64_t v, int64_t u, int64_t i) -> double {
    return v < 0 || u < 0 || v >= H || u >= W ? 0.0 : x.at(((b * (H / step) + v / step) * (W / step) + u / step) * I + i);
  };
  auto tap = [&](int64_t o, int64_t i, int64_t t) -> double {
    return reversed ? weight.numbers[(i * O + o) * 9 + 8 - t] : weight.numbers[(o * I + i) * 9 + t];
  };
  for (int trial = 0; trial < 40; ++trial) {
    const int64_t b = among(0, B - 1), v = among(0, H - 1), u = among(0, W - 1), o = among(0, O - 1);
    double sum = in.bias ? bias.numbers[o] : 0.0, size = std::fabs(sum);
    if (in.skip) sum += small_skip ? skip.at(((b * (H / 2) + v / 2) * (W / 2) + u / 2) * O + o) : skip.at(((b * H + v) * W + u) * O + o);
    for (int64_t i = 0; i < I; ++i)
      for (int t = 0; t < 9; ++t) {
        const double product = pixel(b, v + t / 3 - 1, u + t % 3 - 1, i) * tap(o, i, t);
        sum += product, size += std::fabs(product);
      }
    check("convolution", y.at(((b * H + v) * W + u) * O + o), factor * sum, size, half);
  }

  ConvolutionPair pair{};
  pair.B = B, pair.H = H, pair.W = W, pair.I = I, pair.O = O, pair.doubled = doubled, pair.dtype = in.dtype;
  pair.x = x.data(), pair.grad = grad.data(), pair.factor = factor;
  const auto& of_weight = RDC_JOIN(convolution_weight_, RDC_ISA);
  std::vector<float> scratch(of_weight.scratch(pair)), found(O * I * 9);
  const int64_t last[4] = {I * 9, 1, 3 * I, I}, first[4] = {I * 9, 9, 3, 1}, *stride = among(0, 1) ? last : first;
  of_weight.gradient(pair, scratch.data(), found.data(), stride, threads);
  for (int trial = 0; trial < 20; ++trial) {
    const int64_t o = among(0, O - 1), i = among(0, I - 1), t = among(0, 8);
    double sum = 0, size = 0;
    for (int64_t b = 0; b < B; ++b)
      for (int64_t v = 0; v < H; ++v)
        for (int64_t u = 0; u < W; ++u) {
          const double product = grad.at(((b * H + v) * W + u) * O + o) * pixel(b, v + t / 3 - 1, u + t % 3 - 1, i);
          sum += product, size += std::fabs(product);
        }
    check("gradient of the weight", found[o * stride[0] + i * stride[1] + t / 3 * stride[2] + t % 3 * stride[3]], factor * sum, size, false);
  }
}

void norm(bool half) {
  const int64_t groups = among(1, 9), C = groups * among(1, 12), B = among(1, 4), P = among(1, 120);
  const int threads = static_cast<int>(among(1, 3));
  const bool one_row = among(0, 1), conditioned = among(0, 1);
  Values x(B * P * C, half), upstream(B * P * C, half), y(B * P * C, half, true), grad(B * P * C, half, true);
  Values weight(C, false), bias(C, false), pre(one_row ? C : B * C, false), scale(B * C, false), shift(B * C, false);
  std::vector<float> mean(B * C), rstd(B * C), sums(B * C), normed(B * C), grads(B * C);
  NormActInputs in{};
  in.B = B, in.P = P, in.C = C, in.groups = groups, in.eps = 1e-5f, in.silu = among(0, 1);
  in.dtype = half ? DType::bfloat16 : DType::float32;
  in.x = x.data(), in.weight = weight.numbers.data(), in.bias = bias.numbers.data();
  if (among(0, 1)) in.pre = pre.numbers.data(), in.pre_row = one_row ? 0 : C;
  if (conditioned) in.scale = scale.numbers.data(), in.shift = shift.numbers.data(), in.scale_row = C;
  const auto& kernel = RDC_JOIN(norm_act_, RDC_ISA);
  if (kernel.forward(in, y.data(), mean.data(), rstd.data(), threads)) std::exit(2);
  NormActGradients out{grad.data(), sums.data(), normed.data(), among(0, 1) ? grads.data() : nullptr};
  if (kernel.backward(in, upstream.data(), mean.data(), rstd.data(), out, threads)) std::exit(2);
  Values along(B * P * C, half), of_upstream(B * P * C, half, true), second(B * P * C, half, true);
  std::vector<float> second_sums(B * C), second_normed(B * C), second_grads(B * C);
  NormActSecondGradients twice{of_upstream.data(), {second.data(), second_sums.data(), second_normed.data(), among(0, 1) ? second_grads.data() : nullptr}};
  if (kernel.backward_twice(in, upstream.data(), along.data(), mean.data(), rstd.data(), twice, threads)) std::exit(2);
  for (int64_t i = 0; i < B * P * C; ++i)
    for (const Values* values : {&y, &grad, &of_upstream, &second})
      if (!std::isfinite(values->at(i))) std::exit(3);
  double there = 0, back = 0, size = 0;  // the gradient of x is linear in the upstream gradient: <along, gradient> = <upstream, its gradient>
  for (int64_t i = 0; i < B * P * C; ++i) {
    const double one = static_cast<double>(along.at(i)) * grad.at(i), other = static_cast<double>(upstream.at(i)) * of_upstream.at(i);
    there += one, back += other, size += std::fabs(one) + std::fabs(other);
  }
  check("gradient of the gradient", there, back, size, half);
}

}  // namespace

int main(int, char** words) {
  const int shapes = std::atoi(words[1]);
  source.seed(std::strtoull(words[2], nullptr, 10));
  for (int i = 0; i < shapes; ++i) {
    convolution(i % 3 == 2);
    norm(i % 3 == 2);
  }
  std::printf("%d shapes\n", shapes);
}
