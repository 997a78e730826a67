// One block of outputs of one image: its residuals, handed to the caller vector by vector wherever they come from.
#pragma once

#include "direct.h"
#include "winograd.h"

namespace rdc {
namespace {

// A thread's memory for one image and one block.
struct Buffers {
  float *targets, *line, *strip_in, *strip_out;
  template <typename U>
  static Buffers take(const Plan<U>& p, Memory& own) {
    return {own.take(p.pixels * p.TL), own.take(p.W * BLOCK), own.take(POINTS * plane_of(larger(p.cp, p.block)) / U::PER_UNIT, p.tiled),
            own.take(POINTS * larger(plane_of(LANES), plane_of(p.block) / U::PER_UNIT), p.tiled)};  // and transformed residuals
  }
};

// Weights of a block in 2 x 2 tiles, VL outputs at a time. reference: see transform_weights.
template <typename U, typename T>
void pack_points(const Plan<U>& p, const Block& block, const T* weight, const Weights& w, bool predict, const float* reference) {
  constexpr bool IN_PLACE = U::PER_UNIT == 1;
  const i64 units = (block.count + U::PER_UNIT - 1) / U::PER_UNIT;
  for (int begin = 0; begin < block.count; begin += VL) {
    const int end = static_cast<int>(smaller(begin + VL, block.count)), count = end - begin, v = begin / VL;
    float* points = w.by_dot + (IN_PLACE ? begin * p.cu : 0);
    const i64 plane = (IN_PLACE ? block.count : count) * p.cu;
    transform_weights(p, block, begin, end, weight, reference, points, plane * U::PER_UNIT);
    for (int k = 0; k < POINTS; ++k) {
      if (predict && v < block.vectors)
        transpose_rows(points + k * plane, p.cu, count, p.cu, w.by_lane + (k * block.vectors + v) * p.cu * VL);
      if (!IN_PLACE)
        join_outputs(p, reinterpret_cast<const typename U::Stored*>(points + k * plane), p.cp, count,
                     w.by_output + (k * units + begin / U::PER_UNIT) * p.cp);
    }
  }
}

// reference [C, 9, cp] and its bias [C]: a head that is taken from all others; or null
template <typename U, typename T>
void pack_weights(const Plan<U>& p, const Block& block, const T* weight, const T* bias, const Weights& w, bool predict, bool features,
                  const float* reference, const float* reference_bias) {
  for (int o = 0; o < p.block; ++o) w.bias[o] = o < block.count ? to_float(bias[block.output(o)]) : 0.f;
  for (int o = 0; o < block.count && reference; ++o) w.bias[o] -= reference_bias[block.output(o) % p.C];
  if (block.fast) {
    pack_points(p, block, weight, w, predict, reference);
    return;
  }
  pack_taps(p, block, weight, w.taps);
  for (int v = 0; v < block.vectors && predict; ++v)
    transpose_rows(w.taps + v * VL * 9 * p.cu, 9 * p.cu, static_cast<int>(smaller(VL, block.count - v * VL)), 9 * p.cu,
                   w.by_lane + v * VL * 9 * p.cu);
  if (features) flip_taps(p, block, w);
}

// visit(v, each) for every vector v of the block and a few pixels at a time; each(f) calls f(y, x, chain, residual) for them. Sums may be
// split into four chains. Lanes beyond the block's count are undefined.
template <typename U, typename Visit>
void predict_residuals(const Plan<U>& p, const Weights& w, const Block& block, const float* padded, const Buffers& my, Visit visit) {
  const i64 phase = block.first % p.C;
  auto offset = [&](int v) { return (phase + v * VL) % p.C; };
  if (block.fast) {
    for (Strip s = strip_at(p.tiles, 0); s.count > 0; s = strip_at(p.tiles, s.begin + s.count)) {
      transform_strip(p, s, padded, p.cp, my.strip_in);
      for (int first = 0, n; first * VL < block.width; first += n) {
        n = predict_strip(p, w, block, first, s, my.strip_in, my.strip_out);
        for (int v = first; v < first + n; ++v) {
          const vf bias = load(w.bias + v * VL);
          const float *t = my.targets + offset(v), *out = my.strip_out + (v - first) * VL;
          visit(v, [&](auto f) {
            each_tile(p, s, [&](i64 tile, i64 y, i64 x) {
              vf value[4];
              transform_output(out + tile * LANES, plane_of(LANES), value);
              const float* at = t + (y * p.W + x) * p.TL;
              f(y, x, 0, value[0] + bias - load(at));
              if (x + 1 < p.W) f(y, x + 1, 1, value[1] + bias - load(at + p.TL));
              if (y + 1 >= p.H) return;
              at += p.W * p.TL;
              f(y + 1, x, 2, value[2] + bias - load(at));
              if (x + 1 < p.W) f(y + 1, x + 1, 3, value[3] + bias - load(at + p.TL));
            });
          });
        }
      }
    }
    return;
  }
  for (i64 y = 0; y < p.H; ++y) {
    predict_line(p, w, block, padded, y, my.line);
    for (int v = 0; v * VL < block.width; ++v) {
      const vf bias = load(w.bias + v * VL);
      const float *t = my.targets + y * p.W * p.TL + offset(v), *line = my.line + v * VL;
      visit(v, [&](auto f) {
        i64 x = 0;
        for (; x + 2 <= p.W; x += 2) {
          f(y, x, 0, load(line + x * block.width) + bias - load(t + x * p.TL));
          f(y, x + 1, 1, load(line + (x + 1) * block.width) + bias - load(t + (x + 1) * p.TL));
        }
        if (x < p.W) f(y, x, 0, load(line + x * block.width) + bias - load(t + x * p.TL));
      });
    }
  }
}

// The same from kept residuals [H*W, kept] of this image.
template <typename U, typename T, typename Visit>
void read_residuals(const Plan<U>& p, const Block& block, const T* kept, Visit visit) {
  const bool dense = block.output(block.count - 1) - block.output(0) == block.count - 1  // the list ascends
                     && block.output(0) + block.width <= p.kept;
  auto read = [&](const T* from, int v) {
    if (dense) return load_float(from + block.output(0) + v * VL);
    float lanes[VL] = {};
    for (int l = 0; l < VL && v * VL + l < block.count; ++l) lanes[l] = to_float(from[block.output(v * VL + l)]);
    return load(lanes);
  };
  if (block.fast) {  // the order in which they were predicted, so that sums have the same bits
    for (Strip s = strip_at(p.tiles, 0); s.count > 0; s = strip_at(p.tiles, s.begin + s.count))
      for (int v = 0; v * VL < block.width; ++v)
        visit(v, [&](auto f) {
          for (i64 t = s.begin; t < s.begin + s.count; ++t) {
            const i64 y = t / p.tile_columns * 2, x = t % p.tile_columns * 2;
            const T* at = kept + (y * p.W + x) * p.kept;
            f(y, x, 0, read(at, v));
            if (x + 1 < p.W) f(y, x + 1, 1, read(at + p.kept, v));
            if (y + 1 >= p.H) continue;
            at += p.W * p.kept;
            f(y + 1, x, 2, read(at, v));
            if (x + 1 < p.W) f(y + 1, x + 1, 3, read(at + p.kept, v));
          }
        });
    return;
  }
  for (i64 y = 0; y < p.H; ++y)
    for (int v = 0; v * VL < block.width; ++v)
      visit(v, [&](auto f) {
        const T* line = kept + y * p.W * p.kept;
        i64 x = 0;
        for (; x + 2 <= p.W; x += 2) {
          f(y, x, 0, read(line + x * p.kept, v));
          f(y, x + 1, 1, read(line + (x + 1) * p.kept, v));
        }
        if (x < p.W) f(y, x, 0, read(line + x * p.kept, v));
      });
}

// All bits of the lanes that are outputs.
inline vu output_lanes(const Block& block, int v) {
  vu mask = {};
  for (int l = 0; l < VL; ++l) mask[l] = v * VL + l < block.count ? ~0u : 0u;
  return mask;
}

}  // namespace
}  // namespace rdc
