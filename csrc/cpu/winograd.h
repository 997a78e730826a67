// Minimal filtering F(2x2, 3x3): four outputs of a 3x3 convolution from 16 products instead of 36 (float32 only).
//
// 1-D: with A = [1 1 1 0; 0 1 -1 -1], B = [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1], G = [1 0 0; 1/2 1/2 1/2; 1/2 -1/2 1/2; 0 0 1],
// A ((G g) . (B d)) is the correlation of four inputs d with three taps g at two places. 2-D: the same along both axes.
// The taps reversed exchange transformed rows (and columns) 0 and 3 and leave 1 and 2.
//
// Source: S. Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, arXiv 1509.09308.
#pragma once

#include "packing.h"

namespace rdc {
namespace {

constexpr int POINTS = 16;

// in: 4 x 4 pixels, VL channels of each; out [16] planes
inline void transform_input(const float* in, i64 row, i64 pixel, float* out, i64 plane) {
  vf t[4][4];
#pragma GCC unroll 4
  for (int x = 0; x < 4; ++x) {
    const float* at = in + x * pixel;
    const vf d0 = load(at), d1 = load(at + row), d2 = load(at + 2 * row), d3 = load(at + 3 * row);
    t[0][x] = d0 - d2;
    t[1][x] = d1 + d2;
    t[2][x] = d2 - d1;
    t[3][x] = d1 - d3;
  }
#pragma GCC unroll 4
  for (int y = 0; y < 4; ++y) {
    float* to = out + 4 * y * plane;
    store(to, t[y][0] - t[y][2]);
    store(to + plane, t[y][1] + t[y][2]);
    store(to + 2 * plane, t[y][2] - t[y][1]);
    store(to + 3 * plane, t[y][1] - t[y][3]);
  }
}

// in [16] planes; out: 2 x 2 pixels
inline void transform_output(const float* in, i64 plane, vf (&out)[4]) {
  vf t[2][4];
#pragma GCC unroll 4
  for (int x = 0; x < 4; ++x) {
    const float* at = in + x * plane;
    const vf m1 = load(at + 4 * plane), m2 = load(at + 8 * plane);
    t[0][x] = load(at) + (m1 + m2);
    t[1][x] = (m1 - m2) - load(at + 12 * plane);
  }
#pragma GCC unroll 2
  for (int y = 0; y < 2; ++y) {
    out[2 * y] = t[y][0] + (t[y][1] + t[y][2]);
    out[2 * y + 1] = (t[y][1] - t[y][2]) - t[y][3];
  }
}

// taps [9]; out [16] planes
inline void transform_taps(const float* in, i64 tap, float* out, i64 plane) {
  vf t[4][3];
#pragma GCC unroll 3
  for (int x = 0; x < 3; ++x) {
    const vf g0 = load(in + x * tap), g1 = load(in + (3 + x) * tap), g2 = load(in + (6 + x) * tap), s = (g0 + g2) * 0.5f, h = g1 * 0.5f;
    t[0][x] = g0;
    t[1][x] = s + h;
    t[2][x] = s - h;
    t[3][x] = g2;
  }
#pragma GCC unroll 4
  for (int y = 0; y < 4; ++y) {
    const vf s = (t[y][0] + t[y][2]) * 0.5f, h = t[y][1] * 0.5f;
    float* to = out + 4 * y * plane;
    store(to, t[y][0]);
    store(to + plane, s + h);
    store(to + 2 * plane, s - h);
    store(to + 3 * plane, t[y][2]);
  }
}

inline void transform_weights(const Plan<Float32>& p, const Block& block, const Weights& w) {
  const i64 plane = block.count * p.cp;
  for (int o = 0; o < block.count; ++o)
    for (i64 i = 0; i < p.cp; i += VL) transform_taps(w.taps + o * 9 * p.cp + i, p.cp, w.by_dot + o * p.cp + i, plane);
}

// A strip of tiles: [begin, begin + count)
struct Strip {
  i64 begin;
  int count;
};
inline Strip strip_at(i64 tiles, i64 begin) { return {begin, begin < tiles ? part(static_cast<int>(tiles - begin), 0, STRIP) : 0}; }

inline i64 plane_of(i64 lanes) { return STRIP * lanes + 16; }  // 16: planes must not share the sets of a cache

// image: padded, `lanes` values a pixel -> out [16] planes of [tiles, lanes]
template <typename U>
void transform_strip(const Plan<U>& p, Strip s, const float* image, i64 lanes, float* out) {
  const i64 plane = plane_of(lanes);
  for (int t = 0; t < s.count; ++t) {
    const i64 y = (s.begin + t) / p.tile_columns * 2, x = (s.begin + t) % p.tile_columns * 2;
    for (i64 i = 0; i < lanes; i += VL)
      transform_input(image + (y * p.W2 + x) * lanes + i, p.W2 * lanes, lanes, out + t * lanes + i, plane);
  }
}

// Prediction of a block without bias, transformed: in, out [16] planes of [tiles, cp] and of [tiles, width]
inline void predict_strip(const Plan<Float32>& p, const Weights& w, const Block& block, Strip s, const float* in, float* out) {
  const i64 in_plane = plane_of(p.cp), out_plane = plane_of(block.width);
  for (int k = 0; k < POINTS; ++k) {
    const float* a = in + k * in_plane;
    const float* b = w.by_lane + k * block.vectors * p.cp * VL;
    for (i64 i = 0, n; i < p.cp && block.vectors; i += n) {  // chains of at most LONGEST roundings
      n = part(static_cast<int>(p.cp - i), 0, LONGEST);
      product<Float32>({a + i, p.cp, 0, 0, 1}, {b + i * VL, p.cp * VL, 0, 0, VL}, {1, 1, static_cast<int>(n)}, s.count, block.vectors,
                       out + k * out_plane, block.width, i > 0);
    }
    if (block.dotted)
      dots<Float32>(a, p.cp, 0, w.by_dot + (k * block.count + block.vectors * VL) * p.cp, p.cp, 0, 1, static_cast<int>(p.cp), s.count,
                    block.dotted, out + k * out_plane + block.vectors * VL, block.width);
  }
}

// f(y, x, four pixels' values) for every tile of the strip, one vector of outputs
template <typename U, typename F>
inline void each_tile(const Plan<U>& p, Strip s, const float* in, i64 lanes, F f) {
  i64 y = s.begin / p.tile_columns * 2, x = s.begin % p.tile_columns * 2;
  for (int t = 0; t < s.count; ++t) {
    vf v[4];
    transform_output(in + t * lanes, plane_of(lanes), v);
    f(y, x, v);
    x += 2;
    if (x >= p.W) { x = 0; y += 2; }
  }
}

// grad_h [H*W, cp] (+)= r [padded, width] convolved with the flipped weight, 64 channels at a time
inline void features_gradient_fast(const Plan<Float32>& p, const Weights& w, const Block& block, const float* residual, float* in, float* out,
                                   float* grad_h, bool accumulate) {
  constexpr int AT_ONCE = 64;
  static constexpr int reversed[4] = {3, 1, 2, 0};
  const i64 in_plane = plane_of(block.width), out_plane = plane_of(AT_ONCE);
  for (Strip s = strip_at(p.tiles, 0); s.count > 0; s = strip_at(p.tiles, s.begin + s.count)) {
    transform_strip(p, s, residual, block.width, in);
    for (i64 i = 0; i < p.cp; i += AT_ONCE) {
      const int vectors = static_cast<int>(smaller(AT_ONCE, p.cp - i)) / VL;
      for (int k = 0; k < POINTS; ++k) {
        const float* b = w.by_dot + (4 * reversed[k / 4] + reversed[k % 4]) * block.count * p.cp + i;
        product<Float32>({in + k * in_plane, block.width, 0, 0, 1}, {b, VL, 0, 0, p.cp}, {1, 1, block.count}, s.count, vectors,
                         out + k * out_plane, AT_ONCE, false);
      }
      for (int v = 0; v < vectors; ++v)
        each_tile(p, s, out + v * VL, AT_ONCE, [&](i64 y, i64 x, const vf(&value)[4]) {
          for (int q = 0; q < 4; ++q) {
            if (y + q / 2 >= p.H || x + q % 2 >= p.W) continue;
            float* to = grad_h + ((y + q / 2) * p.W + x + q % 2) * p.cp + i + v * VL;
            store(to, accumulate ? load(to) + value[q] : value[q]);
          }
        });
    }
  }
}

}  // namespace
}  // namespace rdc
