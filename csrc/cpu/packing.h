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

// The weights of one block of outputs, in the orders that the tiles read. tiles: for 2 x 2 tiles of pixels (winograd.h).
struct Weights {
  float* bias;       // [block]
  float* taps;       // [count, 9, cu] units; not for tiles
  float* by_dot;     // tiles: [16, count, cu] units, bfloat16: of VL outputs
  float* by_lane;    // tiles: [16, vectors, cu, VL];   else [vectors, 9 * cu, VL] units                 (prediction)
  float* by_output;  // tiles: [16, count in units, cp], float32: by_dot;   else [9 (reversed), count in units, cp]   (gradient of the features)
  template <typename U>
  static Weights take(const Plan<U>& p, Memory& own) {
    const i64 points = p.tiled ? 16 : 0, direct = 9 * BLOCK * p.cu;
    const i64 lanes = larger(direct, points * p.block * p.cu), outputs = U::PER_UNIT == 1 ? 9 * BLOCK * p.cp : lanes;
    float *bias = own.take(p.block), *dot = own.take(points * (U::PER_UNIT == 1 ? BLOCK : VL) * p.cu);
    float *lane = own.take(lanes), *output = own.take(outputs);
    float* taps = outputs >= 2 * direct ? output + direct : own.take(direct);  // no room of its own where tiles leave it some
    return {bias, taps, dot, lane, output};
  }
};

// Channels i .. i + VL - 1 of output o, tap by tap; zeros beyond channel c.
template <typename U, typename T>
inline void load_taps(const Plan<U>& p, const T* weight, i64 o, i64 i, vf (&taps)[9]) {
  const T* from = weight + (o * p.c + i) * 9;
  const i64 channels = larger(0, smaller(VL, p.c - i));
  if constexpr (VL > 9) {  // a vector holds a channel's taps, and some of the next channel's
    T edge[VL * 9 + VL - 9];
    if (channels < VL || (o + 1 == p.KC && i + VL == p.c)) {
      std::memset(edge, 0, sizeof edge);
      std::memcpy(edge, from, channels * 9 * sizeof(T));
      from = edge;
    }
    vf v[VL];
#pragma GCC unroll 16
    for (int l = 0; l < VL; ++l) v[l] = load_float(from + l * 9);
    transpose(v);
#pragma GCC unroll 9
    for (int t = 0; t < 9; ++t) taps[t] = v[t];
  } else {
    float lanes[9][VL] = {};
    for (i64 l = 0; l < channels; ++l)
      for (int t = 0; t < 9; ++t) lanes[t][l] = to_float(from[l * 9 + t]);
#pragma GCC unroll 9
    for (int t = 0; t < 9; ++t) taps[t] = load(lanes[t]);
  }
}

// The block's weights -> taps [count, 9, cu]
template <typename U, typename T>
void pack_taps(const Plan<U>& p, const Block& block, const T* weight, float* taps) {
  for (int o = 0; o < block.count; ++o) {
    auto* to = reinterpret_cast<typename U::Stored*>(taps) + static_cast<i64>(o) * 9 * p.cp;
    for (i64 i = 0; i < p.cp; i += VL) {
      vf tap[9];
      load_taps(p, weight, block.output(o), i, tap);
#pragma GCC unroll 9
      for (int t = 0; t < 9; ++t) store_rounded(to + t * p.cp + i, tap[t]);
    }
  }
}

// rows [count, cp] -> [count in units, cp] units
inline void join_outputs(const Plan<Float32>& p, const float* rows, i64 stride, int count, float* out) {
  for (int o = 0; o < count; ++o) std::memcpy(out + o * p.cp, rows + o * stride, p.cp * 4);
}
#ifdef __AVX512BF16__
inline void join_outputs(const Plan<Bfloat16Pair>& p, const uint16_t* rows, i64 stride, int count, float* out) {
  for (int o = 0; o < count; o += 2) {
    const uint16_t* even = rows + o * stride;
    interleave(even, o + 1 < count ? even + stride : even, out + o / 2 * p.cp, p.cp);  // an odd count's last partner meets a residual of zero
  }
}
#endif

template <typename U>
void flip_taps(const Plan<U>& p, const Block& block, const Weights& w) {
  const i64 units = (block.count + U::PER_UNIT - 1) / U::PER_UNIT;
  const auto* taps = reinterpret_cast<const typename U::Stored*>(w.taps);
  for (i64 tap = 0; tap < 9; ++tap) join_outputs(p, taps + tap * p.cp, 9 * p.cp, block.count, w.by_output + (8 - tap) * units * p.cp);
}

}  // namespace
}  // namespace rdc
