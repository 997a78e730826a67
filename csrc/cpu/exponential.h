// exp of a vector.
#pragma once

#include "tile.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace rdc {
namespace {

// exp(x) for |x| <= 80, to 2 units in the last place: 2^k times a polynomial of what is left.
inline vf exponential(vf x) {
  const vf k = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // rounded to an integer
  const vf f = (x - k * 0.693359375f) + k * 2.12194440e-4f;
  vf p = 1.9875691500e-4f - vf{};
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
#if defined(__AVX512F__)
  return (vf)_mm512_scalef_ps((__m512)p, (__m512)k);
#else
  const vi scale = (__builtin_convertvector(k, vi) + 127) << 23;
  vf power;
  std::memcpy(&power, &scale, sizeof power);
  return p * power;
#endif
}

// 1 / d for d >= 1
inline vf reciprocal(vf d) {
#if defined(__AVX512F__)
  const vf r = (vf)_mm512_rcp14_ps((__m512)d);
  return r + r * (1.0f - d * r);  // a step of Newton's: 14 bits to 24, a third of the time of a division
#else
  return 1.0f / d;
#endif
}

// 1 / (1 + exp(-u)); beyond 80 what it is there
inline vf sigmoid(vf u) {
  const vf low = u < -80.0f ? vf{} - 80.0f : u;
  return reciprocal(1.0f + exponential(low > 80.0f ? vf{} - 80.0f : -low));
}

}  // namespace
}  // namespace rdc
