// An image cut into tiles, and the tiles' inputs transformed to the points of minimal filtering (filtering.h).
#pragma once

#include <type_traits>

#include "filtering.h"
#include "lanes.h"

namespace rdc {
namespace {

inline i64 round_up(i64 n, i64 m) { return (n + m - 1) / m * m; }

// A side of an image, cut into tiles of four and three with as few points as can be; the two kinds take turns.
struct Side {
  i64 fours, threes;
  explicit Side(i64 n) : fours(0), threes((n + 2) / 3) {
    for (i64 f = 1; f <= (n + OUT - 1) / OUT; ++f) {
      const i64 rest = n - f * OUT, t = rest > 0 ? (rest + 2) / 3 : 0;
      if (SIDE * f + (SIDE - 1) * t <= SIDE * fours + (SIDE - 1) * threes) fours = f, threes = t;
    }
  }
  i64 tiles() const { return fours + threes; }
  i64 pairs() const { return fours < threes ? fours : threes; }
  bool four(i64 i) const { return i < 2 * pairs() ? i % 2 == 0 : fours > threes; }
  i64 start(i64 i) const {
    const i64 in_pairs = i < 2 * pairs() ? i : 2 * pairs();
    return in_pairs / 2 * 7 + in_pairs % 2 * OUT + (i - in_pairs) * (fours > threes ? OUT : OUT - 1);
  }
};

// Kinds of tiles in the order in which a strip has them: which are four high and which four wide are both in one piece then.
enum Kind { HIGH, WHOLE, WIDE, SMALL, KINDS };  // 4 x 3, 4 x 4, 3 x 4, 3 x 3 outputs

// Where a tile lies.
struct Place {
  i64 image, y, x;  // its upper left output
  i64 within;       // its number in the image
  Kind kind;
};

// At most MOST tiles, in order of their kinds; those of a kind begin at `first`.
template <int MOST>
struct Strip {
  Place tiles[MOST];
  int first[KINDS + 1] = {};
  int count() const { return first[KINDS]; }
  // The tiles that have the point (p, q): [begin, end)
  int begin(int q) const { return q == MINUS_B ? first[WHOLE] : 0; }
  int end(int p, int q) const { return p == MINUS_B ? first[WIDE] : q == MINUS_B ? first[SMALL] : first[KINDS]; }
};

// f(high points, wide points) as constants
template <typename F>
inline void with_points(Kind kind, F f) {
  using Few = std::integral_constant<int, SIDE - 1>;
  using All = std::integral_constant<int, SIDE>;
  if (kind == WHOLE) f(All{}, All{});
  else if (kind == HIGH) f(All{}, Few{});
  else if (kind == WIDE) f(Few{}, All{});
  else f(Few{}, Few{});
}

// Images [B, H, W, I] that are convolved, or [B, H/2, W/2, I] whose every pixel counts for 2 x 2.
template <typename T>
struct TiledImages {
  i64 B, H, W, I;
  bool doubled;
  const T* x;
  Side high, wide;
  i64 of_image, tiles;  // tiles of an image, and of all

  TiledImages(i64 b, i64 h, i64 w, i64 i, bool twice, const void* from)
      : B(b), H(h), W(w), I(i), doubled(twice), x(static_cast<const T*>(from)), high(h), wide(w), of_image(high.tiles() * wide.tiles()),
        tiles(b * of_image) {}

  Place place(i64 tile) const {
    const i64 within = tile % of_image, row = within / wide.tiles(), column = within % wide.tiles();
    const Kind kind = high.four(row) ? (wide.four(column) ? WHOLE : HIGH) : (wide.four(column) ? WIDE : SMALL);
    return {tile / of_image, high.start(row), wide.start(column), within, kind};
  }

  // The tiles from `begin` on, at most `most` of them
  template <int MOST>
  void find(Strip<MOST>& s, i64 begin, i64 most) const {
    const int count = static_cast<int>(tiles - begin < most ? tiles - begin : most);
    Place places[MOST];
    int next[KINDS];
    for (int& first : s.first) first = 0;
    for (int t = 0; t < count; ++t) {
      places[t] = place(begin + t);
      for (int k = places[t].kind + 1; k <= KINDS; ++k) ++s.first[k];
    }
    for (int k = 0; k < KINDS; ++k) next[k] = s.first[k];
    for (int t = 0; t < count; ++t) s.tiles[next[places[t].kind]++] = places[t];
  }

  // Where the 6 x 6 inputs of an image's tiles begin, in elements; -1 beyond the border.
  void find_inputs(i64* offsets) const {
    const int half = doubled ? 1 : 0;
    for (i64 row = 0; row < high.tiles(); ++row)
      for (i64 column = 0; column < wide.tiles(); ++column)
        for (i64 v = high.start(row) - 1, down = 0; down < SIDE; ++v, ++down)
          for (i64 u = wide.start(column) - 1, right = 0; right < SIDE; ++u, ++right)
            *offsets++ = v >= 0 && v < H && u >= 0 && u < W ? ((v >> half) * (W >> half) + (u >> half)) * I : -1;
  }

  // A tile's inputs -> out, in planes `plane` floats apart; those beyond the border are read from `zeros`.
  template <int HIGH_POINTS, int WIDE_POINTS>
  void transform_tile(const Place& at, const i64* offsets, const T* zeros, i64 plane, float* out) const {
    const i64 scale = doubled ? 4 : 1;
    const T* const image = x + at.image * (H * W / scale) * I;
    const i64* const offset = offsets + at.within * POINTS;
    const T* from[HIGH_POINTS][WIDE_POINTS];
    for (int dy = 0; dy < HIGH_POINTS; ++dy)
      for (int dx = 0; dx < WIDE_POINTS; ++dx) from[dy][dx] = offset[dy * SIDE + dx] < 0 ? zeros : image + offset[dy * SIDE + dx];
    const i64 full = I / VL * VL;
    for (i64 i = 0; i < full; i += VL) transform_channels<true>(from, i, VL, plane, out);
    if (full < I) transform_channels<false>(from, full, I - full, plane, out);
  }

  template <bool FULL, int HIGH_POINTS, int WIDE_POINTS>
  void transform_channels(const T* const (&from)[HIGH_POINTS][WIDE_POINTS], i64 i, i64 n, i64 plane, float* out) const {
    vf columns[WIDE_POINTS][HIGH_POINTS];  // [x][point]
#pragma GCC unroll 6
    for (int dx = 0; dx < WIDE_POINTS; ++dx) {
      vf d[HIGH_POINTS];
#pragma GCC unroll 6
      for (int dy = 0; dy < HIGH_POINTS; ++dy) {
        if constexpr (FULL) d[dy] = load_float(from[dy][dx] + i);
        else d[dy] = load_first(from[dy][dx] + i, n);
      }
      transform_inputs(d, columns[dx]);
    }
#pragma GCC unroll 6
    for (int p = 0; p < HIGH_POINTS; ++p) {
      vf d[WIDE_POINTS], points[WIDE_POINTS];
#pragma GCC unroll 6
      for (int dx = 0; dx < WIDE_POINTS; ++dx) d[dx] = columns[dx][p];
      transform_inputs(d, points);
#pragma GCC unroll 6
      for (int q = 0; q < WIDE_POINTS; ++q) store(out + (point<HIGH_POINTS>(p) * SIDE + point<WIDE_POINTS>(q)) * plane + i, points[q]);
    }
  }
};

}  // namespace
}  // namespace rdc
