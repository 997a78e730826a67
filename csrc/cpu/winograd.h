// Minimal filtering F(2x2, 3x3): four outputs of a 3x3 convolution from 16 products instead of 36.
//
// 1-D: with A = [1 1 1 0; 0 1 -1 -1], B = [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1], G = [1 0 0; 1/2 1/2 1/2; 1/2 -1/2 1/2; 0 0 1],
// A ((G g) . (B d)) is the correlation of four inputs d with three taps g at two places. 2-D: the same along both axes.
// The taps reversed exchange transformed rows (and columns) 0 and 3 and leave 1 and 2. The gradient of the taps is
// G^T ((A^T r) . (B d)), r the gradient of the two outputs.
//
// Source: S. Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, arXiv 1509.09308.
#pragma once

#include "packing.h"

namespace rdc {
namespace {

constexpr int POINTS = 16;
constexpr int LANES = 64;  // outputs, or channels, of a strip's result

// B d of one column of four pixels, VL channels of each
template <typename S>
inline void transform_column(const S* in, i64 row, vf (&out)[4]) {
  const vf d0 = load_float(in), d1 = load_float(in + row), d2 = load_float(in + 2 * row), d3 = load_float(in + 3 * row);
  out[0] = d0 - d2;
  out[1] = d1 + d2;
  out[2] = d2 - d1;
  out[3] = d1 - d3;
}

inline void transform_rows(const vf (&columns)[4][4], vf (&out)[POINTS]) {
#pragma GCC unroll 4
  for (int y = 0; y < 4; ++y) {
    out[4 * y] = columns[0][y] - columns[2][y];
    out[4 * y + 1] = columns[1][y] + columns[2][y];
    out[4 * y + 2] = columns[2][y] - columns[1][y];
    out[4 * y + 3] = columns[1][y] - columns[3][y];
  }
}

// in: 4 x 4 pixels, VL channels of each
template <typename S>
inline void transform_input(const S* in, i64 row, i64 pixel, vf (&out)[POINTS]) {
  vf columns[4][4];
#pragma GCC unroll 4
  for (int x = 0; x < 4; ++x) transform_column(in + x * pixel, row, columns[x]);
  transform_rows(columns, out);
}

// in: 2 x 2 pixels of a gradient
template <typename S>
inline void transform_gradient(const S* in, i64 row, i64 pixel, vf (&out)[POINTS]) {
  vf t[4][2];
#pragma GCC unroll 2
  for (int x = 0; x < 2; ++x) {
    const vf r0 = load_float(in + x * pixel), r1 = load_float(in + x * pixel + row);
    t[0][x] = r0;
    t[1][x] = r0 + r1;
    t[2][x] = r0 - r1;
    t[3][x] = -r1;
  }
#pragma GCC unroll 4
  for (int y = 0; y < 4; ++y) {
    out[4 * y] = t[y][0];
    out[4 * y + 1] = t[y][0] + t[y][1];
    out[4 * y + 2] = t[y][0] - t[y][1];
    out[4 * y + 3] = -t[y][1];
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

// G g G^T
inline void transform_taps(const vf (&taps)[9], vf (&out)[POINTS]) {
  vf t[4][3];
#pragma GCC unroll 3
  for (int x = 0; x < 3; ++x) {
    const vf g0 = taps[x], g1 = taps[3 + x], g2 = taps[6 + x], s = (g0 + g2) * 0.5f, h = g1 * 0.5f;
    t[0][x] = g0;
    t[1][x] = s + h;
    t[2][x] = s - h;
    t[3][x] = g2;
  }
#pragma GCC unroll 4
  for (int y = 0; y < 4; ++y) {
    const vf s = (t[y][0] + t[y][2]) * 0.5f, h = t[y][1] * 0.5f;
    out[4 * y] = t[y][0];
    out[4 * y + 1] = s + h;
    out[4 * y + 2] = s - h;
    out[4 * y + 3] = t[y][2];
  }
}

// G^T m G, added to taps; in [16] planes
inline void gather_taps(const float* in, i64 plane, float* taps, i64 tap) {
  vf t[3][4];
#pragma GCC unroll 4
  for (int x = 0; x < 4; ++x) {
    const float* at = in + x * plane;
    const vf m1 = load(at + 4 * plane), m2 = load(at + 8 * plane), s = (m1 + m2) * 0.5f;
    t[0][x] = load(at) + s;
    t[1][x] = (m1 - m2) * 0.5f;
    t[2][x] = s + load(at + 12 * plane);
  }
#pragma GCC unroll 3
  for (int y = 0; y < 3; ++y) {
    float* to = taps + 3 * y * tap;
    const vf s = (t[y][1] + t[y][2]) * 0.5f;
    store(to, load(to) + (t[y][0] + s));
    store(to + tap, load(to + tap) + (t[y][1] - t[y][2]) * 0.5f);
    store(to + 2 * tap, load(to + 2 * tap) + (s + t[y][3]));
  }
}

// Outputs [begin, end) of a block -> points [16] planes of [end - begin, cp], of type Stored. reference [C, 9, cp]: taken from the taps of its
// channel of the image, if there is one
template <typename U, typename T>
void transform_weights(const Plan<U>& p, const Block& block, int begin, int end, const T* weight, const float* reference, float* points,
                       i64 plane) {
  using S = typename U::Stored;
  for (int o = begin; o < end; ++o) {
    const float* other = reference ? reference + block.output(o) % p.C * 9 * p.cp : nullptr;
    S* to = reinterpret_cast<S*>(points) + (o - begin) * p.cp;
    for (i64 i = 0; i < p.cp; i += VL) {
      vf tap[9], point[POINTS];
      load_taps(p, weight, block.output(o), i, tap);
#pragma GCC unroll 9
      for (int t = 0; t < 9 && other; ++t) tap[t] -= load(other + t * p.cp + i);
      transform_taps(tap, point);
#pragma GCC unroll 16
      for (int k = 0; k < POINTS; ++k) store_rounded(to + k * plane + i, point[k]);
    }
  }
}

// A strip of tiles: [begin, begin + count)
struct Strip {
  i64 begin;
  int count;
};
inline Strip strip_at(i64 tiles, i64 begin) { return {begin, begin < tiles ? part(static_cast<int>(tiles - begin), 0, STRIP) : 0}; }

inline i64 plane_of(i64 lanes) { return STRIP * lanes + 16; }  // 16: planes must not share the sets of a cache

// image: padded, `lanes` values a pixel -> out [16] planes of [tiles, lanes], all of them of type Stored
template <typename U>
void transform_strip(const Plan<U>& p, Strip s, const float* image, i64 lanes, float* out) {
  using S = typename U::Stored;
  const i64 plane = plane_of(lanes);
  for (i64 i = 0; i < lanes; i += VL) {
    i64 x = s.begin % p.tile_columns;
    const S* from = reinterpret_cast<const S*>(image) + (s.begin / p.tile_columns * p.W2 + x) * 2 * lanes + i;
    S* to = reinterpret_cast<S*>(out) + i;
    vf columns[4][4];
    for (int t = 0, known = 0; t < s.count; ++t, to += lanes) {  // neighbours share two columns
      if (known) {
#pragma GCC unroll 4
        for (int y = 0; y < 4; ++y) {
          columns[0][y] = columns[2][y];
          columns[1][y] = columns[3][y];
        }
      } else {
        transform_column(from, p.W2 * lanes, columns[0]);
        transform_column(from + lanes, p.W2 * lanes, columns[1]);
      }
      transform_column(from + 2 * lanes, p.W2 * lanes, columns[2]);
      transform_column(from + 3 * lanes, p.W2 * lanes, columns[3]);
      vf points[POINTS];
      transform_rows(columns, points);
#pragma GCC unroll 16
      for (int k = 0; k < POINTS; ++k) store_rounded(to + k * plane, points[k]);
      from += 2 * lanes;
      known = ++x < p.tile_columns;
      if (!known) {
        x = 0;
        from += (2 * p.W2 - 2 * p.tile_columns) * lanes;
      }
    }
  }
}

// Prediction of a block's outputs from vector `first` on, at most LANES, without bias, transformed: in [16] planes of [tiles, cu] units,
// out [16] planes of [tiles, LANES]. Returns the number of vectors.
template <typename U>
int predict_strip(const Plan<U>& p, const Weights& w, const Block& block, int first, Strip s, const float* in, float* out) {
  const i64 in_plane = plane_of(p.cp) / U::PER_UNIT, out_plane = plane_of(LANES);
  const int vectors = static_cast<int>(smaller(LANES / VL, block.width / VL - first));
  const int full = static_cast<int>(smaller(vectors, block.vectors - first));  // the rest as dots
  const i64 dots_in = U::PER_UNIT == 1 ? block.count : block.dotted, dots_at = U::PER_UNIT == 1 ? block.vectors * VL : 0;
  for (int k = 0; k < POINTS; ++k) {
    const float* a = in + k * in_plane;
    const float* b = w.by_lane + (k * block.vectors + first) * p.cu * VL;
    for (i64 i = 0, n; i < p.cu && full > 0; i += n) {  // chains of at most LONGEST roundings
      n = part(static_cast<int>(p.cu - i), 0, LONGEST);
      product<U>({a + i, p.cu, 0, 0, 1}, {b + i * VL, p.cu * VL, 0, 0, VL}, {1, 1, static_cast<int>(n)}, s.count, full, out + k * out_plane, LANES,
                 i > 0);
    }
    if (full < vectors)
      dots<U>(a, p.cu, 0, w.by_dot + (k * dots_in + dots_at) * p.cu, p.cu, 0, 1, static_cast<int>(p.cu), s.count, block.dotted,
              out + k * out_plane + full * VL, LANES);
  }
  return vectors;
}

// f(t, y, x) for every tile of the strip, the t-th of it
template <typename U, typename F>
inline void each_tile(const Plan<U>& p, Strip s, F f) {
  i64 y = s.begin / p.tile_columns * 2, x = s.begin % p.tile_columns * 2;
  for (int t = 0; t < s.count; ++t) {
    f(t, y, x);
    x += 2;
    if (x >= p.W) { x = 0; y += 2; }
  }
}

// grad_h [H*W, cp] (+)= r [padded, width] convolved with the flipped weight, LANES channels at a time
template <typename U>
void features_gradient_fast(const Plan<U>& p, const Weights& w, const Block& block, const float* residual, float* in, float* out,
                            float* grad_h, bool accumulate) {
  static constexpr int reversed[4] = {3, 1, 2, 0};
  const i64 pixel = block.width / U::PER_UNIT, in_plane = plane_of(block.width) / U::PER_UNIT, out_plane = plane_of(LANES);
  const int count = (block.count + U::PER_UNIT - 1) / U::PER_UNIT;
  const float* points = U::PER_UNIT == 1 ? w.by_dot : w.by_output;
  for (Strip s = strip_at(p.tiles, 0); s.count > 0; s = strip_at(p.tiles, s.begin + s.count)) {
    transform_strip(p, s, residual, block.width, in);
    for (i64 i = 0; i < p.cp; i += LANES) {
      const int vectors = static_cast<int>(smaller(LANES, p.cp - i)) / VL;
      for (int k = 0; k < POINTS; ++k) {
        const float* b = points + (4 * reversed[k / 4] + reversed[k % 4]) * count * p.cp + i;
        product<U>({in + k * in_plane, pixel, 0, 0, 1}, {b, VL, 0, 0, p.cp}, {1, 1, count}, s.count, vectors, out + k * out_plane, LANES, false);
      }
      each_tile(p, s, [&](i64 t, i64 y, i64 x) {
        float* const at = grad_h + (y * p.W + x) * p.cp + i;
        const bool right = x + 1 < p.W, below = y + 1 < p.H;
        for (int v = 0; v < vectors; ++v) {
          vf value[4];
          transform_output(out + t * LANES + v * VL, out_plane, value);
          auto put = [&](float* to, vf sum) { store(to, accumulate ? load(to) + sum : sum); };
          put(at + v * VL, value[0]);
          if (right) put(at + p.cp + v * VL, value[1]);
          if (below) put(at + p.W * p.cp + v * VL, value[2]);
          if (right && below) put(at + (p.W + 1) * p.cp + v * VL, value[3]);
        }
      });
    }
  }
}

// Points of tiles, one vector of channels of each, into planes of [tiles in units, lanes] units.
inline void store_points(const vf (&points)[POINTS], const vf (&)[POINTS], float* to, i64 plane, Float32) {
#pragma GCC unroll 16
  for (int k = 0; k < POINTS; ++k) store(to + k * plane, points[k]);
}
#ifdef __AVX512BF16__
inline void store_points(const vf (&points)[POINTS], const vf (&next)[POINTS], float* to, i64 plane, Bfloat16Pair) {
#pragma GCC unroll 16
  for (int k = 0; k < POINTS; ++k) store(to + k * plane, Bfloat16Pair::join(points[k], next[k]));
}
#endif

// of(tile at (y, x), i, points): a strip's tiles, PER_UNIT at a time, a missing one being zeros -> out [16] planes of [tiles in units, lanes]
template <typename U, typename Of>
void tiles_in_units(const Plan<U>& p, Strip s, i64 lanes, float* out, Of of) {
  const i64 plane = plane_of(lanes) / U::PER_UNIT;
  for (int t = 0; t < s.count; t += U::PER_UNIT)
    for (i64 i = 0; i < lanes; i += VL) {
      vf points[POINTS], next[POINTS] = {};
      auto at = [&](i64 tile, vf(&to)[POINTS]) { of(tile / p.tile_columns * 2, tile % p.tile_columns * 2, i, to); };
      at(s.begin + t, points);
      if (U::PER_UNIT > 1 && t + 1 < s.count) at(s.begin + t + 1, next);
      store_points(points, next, out + t / U::PER_UNIT * lanes + i, plane, U{});
    }
}

// points [16, count, cp] += what 2 x 2 tiles of r and of h add to the transformed gradient of the weight
template <typename U>
void weight_gradient_fast(const Plan<U>& p, const Block& block, const float* residual, const float* padded, float* in, float* r, float* points) {
  using S = typename U::Stored;
  const S *h = reinterpret_cast<const S*>(padded), *of_r = reinterpret_cast<const S*>(residual);
  const i64 width = block.width, h_plane = plane_of(p.cp) / U::PER_UNIT, r_plane = plane_of(width) / U::PER_UNIT;
  for (Strip s = strip_at(p.tiles, 0); s.count > 0; s = strip_at(p.tiles, s.begin + s.count)) {
    tiles_in_units(p, s, p.cp, in, [&](i64 y, i64 x, i64 i, vf(&to)[POINTS]) {
      transform_input(h + (y * p.W2 + x) * p.cp + i, p.W2 * p.cp, p.cp, to);
    });
    tiles_in_units(p, s, width, r, [&](i64 y, i64 x, i64 i, vf(&to)[POINTS]) {
      transform_gradient(of_r + ((y + 1) * p.W2 + x + 1) * width + i, p.W2 * width, width, to);
    });
    const int steps = (s.count + U::PER_UNIT - 1) / U::PER_UNIT;
    for (int k = 0; k < POINTS; ++k)
      product<U>({r + k * r_plane, 1, 0, 0, width}, {in + k * h_plane, VL, 0, 0, p.cp}, {1, 1, steps}, block.count, static_cast<int>(p.cp / VL),
                 points + k * block.count * p.cp, p.cp, true);
  }
}

}  // namespace
}  // namespace rdc
