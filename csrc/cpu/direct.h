// Products in place: the reduction runs over kernel row, then [3 taps x channels], contiguous in the padded channels-last image.
#pragma once

#include "packing.h"

namespace rdc {
namespace {

// Head convolution without bias: line [W, width], the block's outputs of image row y.
template <typename U>
void predict_line(const Plan<U>& p, const Weights& w, const Block& block, const float* padded, i64 y, float* line) {
  const float* a = padded + y * p.W2 * p.cu;
  const int inner = static_cast<int>(3 * p.cu), width = static_cast<int>(p.W);
  const int longest = 3 * LONGEST, pieces = U::PER_UNIT == 1 && 3 * inner > longest ? 3 : 1;
  for (int u = 0; u < pieces && block.vectors; ++u)
    for (int i = 0, n; i < inner; i += n) {
      n = pieces == 1 ? inner : part(inner, i, longest);
      product<U>({a + u * p.W2 * p.cu + i, p.cu, p.W2 * p.cu, 0, 1}, {w.by_lane + (u * inner + i) * VL, 9 * p.cu * VL, inner * VL, 0, VL},
                 {3 / pieces, 1, n}, width, block.vectors, line, block.width, u + i > 0);
    }
  if (block.dotted)
    dots<U>(a, p.cu, p.W2 * p.cu, w.taps + static_cast<i64>(block.vectors) * VL * 9 * p.cu, 9 * p.cu, 3 * p.cu, 3, inner, width,
            block.dotted, line + block.vectors * VL, block.width);
}

// grad_h [H*W, cp] (+)= r convolved with the flipped weight
template <typename U>
void features_gradient(const Plan<U>& p, const Weights& w, const Block& block, const float* residual, float* grad_h, bool accumulate) {
  const i64 pixel = block.width / U::PER_UNIT, row = p.W2 * pixel, count = (block.count + U::PER_UNIT - 1) / U::PER_UNIT;
  const Walk b{w.by_output, VL, 3 * count * p.cp, count * p.cp, p.cp};
  for (i64 y = 0; y < p.H; ++y) {
    Walk a{residual + y * row, pixel, row, pixel, 1}, bu = b;
    const int parts = count > 24 ? 3 : 1;  // long sums are cut at the kernel's rows: chains of at most 3 * BLOCK roundings
    for (int u = 0; u < parts; ++u, a.p += a.outer, bu.p += bu.outer)
      product<U>(a, bu, {3 / parts, 3, static_cast<int>(count)}, static_cast<int>(p.W), static_cast<int>(p.cp / VL), grad_h + y * p.W * p.cp,
                 p.cp, accumulate || u > 0);
  }
}

// Image lines at a time in the gradient of the weight: about what the nearest cache holds (32 to 64 KiB were equally fast, 24 slower).
template <typename U>
i64 lines_at_once(const Plan<U>& p) { return larger(1, (64 << 10) / (p.W2 * p.cp * 4)); }

// grad_weight [count, 9, cp] += sum over pixels of r * shifted h
inline void weight_gradient(const Plan<Float32>& p, const Block& block, const float* residual, const float* padded, float*, float*,
                            float* grad_weight) {
  const i64 step = lines_at_once(p);
  for (i64 y = 0; y < p.H; y += step) {
    const Steps n{static_cast<int>(smaller(step, p.H - y)), 1, static_cast<int>(p.W)};
    const Walk a{residual + ((y + 1) * p.W2 + 1) * block.width, 1, p.W2 * block.width, 0, block.width};
    for (i64 tap = 0; tap < 9; ++tap) {
      const Walk b{padded + ((y + tap / 3) * p.W2 + tap % 3) * p.cp, VL, p.W2 * p.cp, 0, p.cp};
      product<Float32>(a, b, n, block.count, static_cast<int>(p.cp / VL), grad_weight + tap * p.cp, 9 * p.cp, true);
    }
  }
}

#ifdef __AVX512BF16__
// The same with pairs of neighbouring pixels as units. h_pairs [padded, cp]: every pixel with the one to its right; r_pairs [H, pairs, width].
inline void pair_pixels(const Plan<Bfloat16Pair>& p, const float* padded, float* h_pairs) {
  const uint16_t* h = reinterpret_cast<const uint16_t*>(padded);
  for (i64 q = 0; q + 1 < p.padded; ++q) interleave(h + q * p.cp, h + (q + 1) * p.cp, h_pairs + q * p.cp, p.cp);
}

inline void weight_gradient(const Plan<Bfloat16Pair>& p, const Block& block, const float* residual, const float*, float* h_pairs,
                            float* r_pairs, float* grad_weight) {
  const i64 step = lines_at_once(p), pairs = (p.W + 1) / 2, width = block.width;
  const uint16_t* r = reinterpret_cast<const uint16_t*>(residual);
  for (i64 y = 0; y < p.H; ++y)
    for (i64 x = 0; x < pairs; ++x) {  // beyond an odd W lies the border, which is zero
      const uint16_t* at = r + ((y + 1) * p.W2 + 2 * x + 1) * width;
      interleave(at, at + width, r_pairs + (y * pairs + x) * width, width);
    }
  for (i64 y = 0; y < p.H; y += step) {
    const Steps n{static_cast<int>(smaller(step, p.H - y)), 1, static_cast<int>(pairs)};
    const Walk a{r_pairs + y * pairs * width, 1, pairs * width, 0, width};
    for (i64 tap = 0; tap < 9; ++tap) {
      const Walk b{h_pairs + ((y + tap / 3) * p.W2 + tap % 3) * p.cp, VL, p.W2 * p.cp, 0, 2 * p.cp};
      product<Bfloat16Pair>(a, b, n, block.count, static_cast<int>(p.cp / VL), grad_weight + tap * p.cp, 9 * p.cp, true);
    }
  }
}
#endif

}  // namespace
}  // namespace rdc
