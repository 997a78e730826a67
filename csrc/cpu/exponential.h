// exp of a vector.
#pragma once

#include "tile.h"

namespace rdc {
namespace {

// exp(x) for -80 <= x <= 0, to 2 units in the last place: 2^k times a polynomial of what is left.
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
  const vi scale = (__builtin_convertvector(k, vi) + 127) << 23;
  vf power;
  std::memcpy(&power, &scale, sizeof power);
  return p * power;
}

// 1 / (1 + exp(-u)); beyond 80 what it is there
inline vf sigmoid(vf u) {
  const vf size = u < 0.0f ? u : -u;
  const vf e = exponential(size < -80.0f ? vf{} - 80.0f : size);
  return (u < 0.0f ? e : vf{} + 1.0f) / (1.0f + e);
}

}  // namespace
}  // namespace rdc
