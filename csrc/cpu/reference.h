// bfloat16, backward pass: predictions by way of a reference head, the mean of the heads that carry gradient, so that 2 x 2 tiles multiply
// only what the heads differ by.
//
//   residual_k = e_j + (w_k - m_j) (*) h,  e_j = m_j (*) h - target_j;      grad_h = sum_k r_k (*) (w_k - m_j) + sum_j (sum_k r_k) (*) m_j
//
// m is rounded to bfloat16 once, and e computed of exact products. Transformed operands are rounded; an output's error is about 2.4 roundings
// of the product that it belongs to, too many for a residual that is small beside its prediction, but not for what is added to e: where heads
// agree, the products are small. sum_k r_k, whose terms cancel under a softmax, is not rounded at all. (One head that is more than K times as
// large as the others would drag the mean along, and cost the others' weight gradients accuracy.)
#pragma once

#include "residuals.h"

namespace rdc {
namespace {

// A thread's memory for it.
struct Reference {
  i64 count;        // outputs that it is the mean of, if these are all; else 0
  float* bias;      // [C]
  float* taps;      // [C, 9, cp]
  float* units;     // the same in units [C, 9, cu]
  float* reversed;  // [9 (reversed), C, cp]
  float* mean;      // [C, c * 9]
  float* border;    // [padded, C]
  float* targets;   // [images, C, H*W]: -e
  template <typename U>
  static Reference take(const Plan<U>& p, Memory& own, i64 images) {
    auto floats = [&](i64 n) { return own.take(n, p.differences); };
    Reference r{};
    r.bias = floats(p.C);
    r.taps = floats(p.C * 9 * p.cp);
    r.units = floats(p.C * 9 * p.cu);
    r.reversed = floats(p.C * 9 * p.cp);
    r.mean = floats(p.C * 9 * p.c);
    r.border = floats(p.padded * p.C);
    r.targets = floats(images * p.C * p.pixels);
    return r;
  }
};

// Mean head of `count` outputs, ascending, whole classes. list: their numbers; null: all
template <typename U, typename T>
void mean_head(const Plan<U>& p, const T* weight, const T* bias, const int* list, i64 count, Reference& r) {
  using S = typename U::Stored;
  const i64 size = 9 * p.c, classes = count / p.C;
  if (!list && r.count == count) return;
  r.count = list ? 0 : count;
  std::memset(r.mean, 0, p.C * size * 4);
  std::memset(r.bias, 0, p.C * 4);
  for (i64 n = 0; n < count; ++n) {
    const i64 o = list ? list[n] : n;
    const T* from = weight + o * size;
    float* to = r.mean + o % p.C * size;
    i64 i = 0;
    for (; i + VL <= size; i += VL) store(to + i, load(to + i) + load_float(from + i));
    for (; i < size; ++i) to[i] += to_float(from[i]);
    r.bias[o % p.C] += to_float(bias[o]);
  }
  const float factor = 1.f / static_cast<float>(classes);
  std::memset(r.taps, 0, p.C * 9 * p.cp * 4);
  for (i64 j = 0; j < p.C; ++j) {
    r.bias[j] *= factor;
    for (i64 i = 0; i < p.c; ++i)
      for (i64 tap = 0; tap < 9; ++tap) r.taps[(j * 9 + tap) * p.cp + i] = r.mean[j * size + i * 9 + tap] * factor;
    S* units = reinterpret_cast<S*>(r.units) + j * 9 * p.cp;
    for (i64 i = 0; i < 9 * p.cp; i += VL) {
      float* at = r.taps + j * 9 * p.cp + i;
      store_rounded(units + i, load(at));
      store(at, load_float(units + i));
    }
    for (i64 tap = 0; tap < 9; ++tap) std::memcpy(r.reversed + ((8 - tap) * p.C + j) * p.cp, r.taps + (j * 9 + tap) * p.cp, p.cp * 4);
  }
}

// targets [C, H*W] of one image <- target less what the reference head predicts. line: [W, BLOCK]
template <typename U, typename T>
void less_reference(const Plan<U>& p, const Reference& r, const T* target, const float* padded, float* line, float* targets) {
  for (i64 y = 0; y < p.H; ++y)
    for (i64 j = 0, n; j < p.C; j += n) {
      n = smaller(p.C - j, BLOCK);
      dots<U>(padded + y * p.W2 * p.cu, p.cu, p.W2 * p.cu, r.units + j * 9 * p.cu, 9 * p.cu, 3 * p.cu, 3, static_cast<int>(3 * p.cu),
              static_cast<int>(p.W), static_cast<int>(n), line, n);
      for (i64 i = j; i < j + n; ++i)
        for (i64 x = 0; x < p.W; ++x) {
          const i64 at = i * p.pixels + y * p.W + x;
          targets[at] = to_float(target[at]) - (line[x * n + i - j] + r.bias[i]);
        }
    }
}

// grad_h [H*W, cp] += the reference head's part. sum(q, j): the residuals' sum over classes
template <typename U, typename Sum>
void add_reference(const Plan<U>& p, const Reference& r, Sum sum, float* grad_h) {
  std::memset(r.border, 0, p.padded * p.C * 4);
  for (i64 y = 0; y < p.H; ++y)
    for (i64 x = 0; x < p.W; ++x)
      for (i64 j = 0; j < p.C; ++j) r.border[((y + 1) * p.W2 + x + 1) * p.C + j] = sum(y * p.W + x, j);
  const i64 row = p.W2 * p.C;
  for (i64 y = 0; y < p.H; ++y)
    product<Float32>({r.border + y * row, p.C, row, p.C, 1}, {r.reversed, VL, 3 * p.C * p.cp, p.C * p.cp, p.cp}, {3, 3, static_cast<int>(p.C)},
                     static_cast<int>(p.W), static_cast<int>(p.cp / VL), grad_h + y * p.W * p.cp, p.cp, true);
}

}  // namespace
}  // namespace rdc
