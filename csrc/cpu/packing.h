// Tensors of torch -> what the tiles read, and back.
#pragma once

#include "plan.h"

namespace rdc {
namespace {

inline void convert(float& to, float from) { to = from; }
inline void convert(float& to, uint16_t from) { to = to_float(from); }
inline void convert(uint16_t& to, uint16_t from) { to = from; }
inline void copy_channels(const float* from, float* to, i64 n) { std::memcpy(to, from, n * 4); }
inline void copy_channels(const uint16_t* from, uint16_t* to, i64 n) { std::memcpy(to, from, n * 2); }
inline void copy_channels(const uint16_t* from, float* to, i64 n) {
  i64 i = 0;
  for (; i + VL <= n; i += VL) store(to + i, load_float(from + i));
  for (; i < n; ++i) to[i] = to_float(from[i]);
}

// One image [c, H, W], strided -> padded image [rows, W2, cp], zeros around and in the channels beyond c.
template <typename U, typename T>
void pad_image(const Plan<U>& p, const T* h, const i64* stride, float* units) {
  using S = typename U::Stored;
  S* out = reinterpret_cast<S*>(units);
  const i64 sc = stride[1], sy = stride[2], sx = stride[3], rows = p.padded / p.W2;
  for (i64 y = 0; y < rows; ++y) {  // the border
    S* row = out + y * p.W2 * p.cp;
    if (y == 0 || y > p.H) {
      std::memset(row, 0, p.W2 * p.cp * sizeof(S));
    } else {
      std::memset(row, 0, p.cp * sizeof(S));
      std::memset(row + (p.W + 1) * p.cp, 0, (p.W2 - p.W - 1) * p.cp * sizeof(S));
    }
  }
  auto at = [&](i64 y, i64 x) { return out + ((y + 1) * p.W2 + x + 1) * p.cp; };
  if (sc == 1) {  // channels last
    for (i64 y = 0; y < p.H; ++y)
      for (i64 x = 0; x < p.W; ++x) {
        S* to = at(y, x);
        copy_channels(h + y * sy + x * sx, to, p.c);
        for (i64 i = p.c; i < p.cp; ++i) to[i] = 0;
      }
    return;
  }
  i64 fast_pixels = sx == 1 && sy == p.W ? p.pixels / VL * VL : 0, fast_channels = p.c / VL * VL;
  for (i64 i = 0; i < fast_channels; i += VL)
    for (i64 q = 0; q < fast_pixels; q += VL) {
      vf v[VL];
      for (int l = 0; l < VL; ++l) v[l] = load_float(h + (i + l) * sc + q);
      transpose(v);
      for (int l = 0; l < VL; ++l) store_rounded(at((q + l) / p.W, (q + l) % p.W) + i, v[l]);
    }
  for (i64 q = 0; q < p.pixels; ++q) {
    i64 y = q / p.W, x = q % p.W;
    S* to = at(y, x);
    for (i64 i = q < fast_pixels ? fast_channels : 0; i < p.cp; ++i)
      if (i < p.c) convert(to[i], h[i * sc + y * sy + x * sx]);
      else to[i] = 0;
  }
}

// The inverse, without border: [H*W, cp] float32 -> [c, H, W], strided.
template <typename U, typename T>
void unpack_image(const Plan<U>& p, const float* in, T* out, const i64* stride) {
  const i64 sc = stride[1], sy = stride[2], sx = stride[3];
  i64 done_pixels = 0, done_channels = 0;
  if (sc == 1) {
    done_pixels = p.pixels;
    done_channels = p.c / VL * VL;
    for (i64 q = 0; q < p.pixels; ++q)
      for (i64 i = 0; i < done_channels; i += VL) store_rounded(out + q / p.W * sy + q % p.W * sx + i, load(in + q * p.cp + i));
  } else if (sx == 1 && sy == p.W) {
    done_pixels = p.pixels / VL * VL;
    done_channels = p.c / VL * VL;
    for (i64 i = 0; i < done_channels; i += VL)
      for (i64 q = 0; q < done_pixels; q += VL) {
        vf v[VL];
        for (int l = 0; l < VL; ++l) v[l] = load(in + (q + l) * p.cp + i);
        transpose(v);
        for (int l = 0; l < VL; ++l) store_rounded(out + (i + l) * sc + q, v[l]);
      }
  }
  for (i64 q = 0; q < p.pixels; ++q) {
    T* to = out + q / p.W * sy + q % p.W * sx;
    for (i64 i = q < done_pixels ? done_channels : 0; i < p.c; ++i) assign(to[i * sc], in[q * p.cp + i]);
  }
}

// target [C, H, W] -> [H*W, TL], entry l being channel l % C.
template <typename U, typename T>
void spread_target(const Plan<U>& p, const T* target, float* out) {
  if (p.C == 1) {
    for (i64 q = 0; q < p.pixels; ++q) store(out + q * VL, vf{} + to_float(target[q]));
    return;
  }
  for (i64 j = 0; j < p.C; ++j)
    for (i64 q = 0; q < p.pixels; ++q) {
      const float value = to_float(target[j * p.pixels + q]);
      for (i64 l = j; l < p.TL; l += p.C) out[q * p.TL + l] = value;
    }
}

// in [rows, n] -> out [n, VL]: rows beyond `rows` (at most VL) are zeros; n a multiple of VL
inline void transpose_rows(const float* in, i64 stride, int rows, i64 n, float* out) {
  for (i64 j = 0; j < n; j += VL) {
    vf v[VL];
    for (int l = 0; l < VL; ++l) v[l] = l < rows ? load(in + l * stride + j) : vf{};
    transpose(v);
    for (int l = 0; l < VL; ++l) store(out + (j + l) * VL, v[l]);
  }
}

// The weights of one block of outputs, in the orders that the tiles read. fast: for 2 x 2 tiles of pixels (winograd.h).
struct Weights {
  float* bias;     // [BLOCK]
  float* taps;     // [count, 9, cu] units
  float* by_dot;   // fast: [16, count, cp];   else the same as taps
  float* by_lane;  // fast: [16, vectors, cp, VL];   else [vectors, 9 * cu, VL] units      (prediction)
  float* flipped;  // [9 (reversed), count in units, cp] units                           (gradient of the features; not fast)
  template <typename U>
  static Weights take(const Plan<U>& p, Layout& own, float* base) {  // base null: sizes only
    const i64 bias = own.take(BLOCK), taps = own.take(BLOCK * 9 * p.cu), dot = p.fast ? own.take(BLOCK * 16 * p.cp) : taps;
    const i64 lane = own.take(BLOCK * (p.fast ? 16 : 9) * p.cu), flipped = own.take(BLOCK / U::PER_UNIT * 9 * p.cp);
    return {base + bias, base + taps, base + dot, base + lane, base + flipped};
  }
};

template <typename U, typename T>
void pack_taps(const Plan<U>& p, const Block& block, const T* weight, const T* bias, const Weights& w) {
  using S = typename U::Stored;
  for (int o = 0; o < BLOCK; ++o) w.bias[o] = o < block.count ? to_float(bias[block.output(o)]) : 0.f;
  for (int o = 0; o < block.count; ++o) {
    const T* from = weight + block.output(o) * p.c * 9;
    S* to = reinterpret_cast<S*>(w.taps) + static_cast<i64>(o) * 9 * p.cp;
    for (i64 i = 0; i < p.c; ++i)
      for (i64 tap = 0; tap < 9; ++tap) convert(to[tap * p.cp + i], from[i * 9 + tap]);
    for (i64 tap = 0; tap < 9; ++tap)
      for (i64 i = p.c; i < p.cp; ++i) to[tap * p.cp + i] = 0;
  }
}

inline void flip_taps(const Plan<Float32>& p, const Block& block, const Weights& w) {
  for (int o = 0; o < block.count; ++o)
    for (i64 tap = 0; tap < 9; ++tap)
      std::memcpy(w.flipped + ((8 - tap) * block.count + o) * p.cp, w.taps + (o * 9 + tap) * p.cp, p.cp * 4);
}
#ifdef __AVX512BF16__
inline void flip_taps(const Plan<Bfloat16Pair>& p, const Block& block, const Weights& w) {
  const uint16_t* taps = reinterpret_cast<const uint16_t*>(w.taps);
  const int pairs = (block.count + 1) / 2;
  for (int o = 0; o < pairs; ++o)
    for (i64 tap = 0; tap < 9; ++tap) {
      const uint16_t* even = taps + (2 * o * 9 + tap) * p.cp;
      float* to = w.flipped + ((8 - tap) * pairs + o) * p.cp;
      const bool both = 2 * o + 1 < block.count;
      interleave(even, both ? even + 9 * p.cp : even, to, p.cp);  // an odd count's last partner meets a residual of zero
    }
}
#endif

}  // namespace
}  // namespace rdc
