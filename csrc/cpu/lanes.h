// Channels that do not fill a vector.
#pragma once

#include "tile.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace rdc {
namespace {

// The first n lanes; zeros beyond.
inline vf load_first(const float* p, i64 n) {
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#else
  float lanes[VL] = {};
  std::memcpy(lanes, p, n * sizeof(float));
  return load(lanes);
#endif
}
inline vf load_first(const uint16_t* p, i64 n) {
  uint16_t lanes[VL] = {};
  std::memcpy(lanes, p, n * sizeof(uint16_t));
  return load_float(lanes);
}

// n: lanes that there are, from p on; more than VL are as good as VL
template <typename T>
inline vf load_some(const T* p, i64 n) { return n >= VL ? load_float(p) : load_first(p, n); }
template <typename T>
inline void store_some(T* p, vf v, i64 n) {
  if (n >= VL) { store_rounded(p, v); return; }
  T lanes[VL];
  store_rounded(lanes, v);
  std::memcpy(p, lanes, n * sizeof(T));
}

}  // namespace
}  // namespace rdc
