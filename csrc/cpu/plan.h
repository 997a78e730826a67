// Sizes that everything else is derived from, and memory.
#pragma once

#include <cstdlib>

#include "../multihead_loss.h"
#include "tile.h"

namespace rdc {
namespace {

constexpr int BLOCK = 64;               // outputs that are worked on at once; a multiple of every VL ...
constexpr int WIDE_BLOCK = 160;         // ... or, for bfloat16 in 2 x 2 tiles, this
constexpr int STRIP = 30;               // 2 x 2 tiles of pixels that are transformed at once; a multiple of MAX_ROWS
constexpr i64 DIFFERENCES_FROM = 16;    // classes with gradient; with fewer, predicting by the reference head costs what 2 x 2 tiles save
constexpr i64 CHUNK_BYTES[2] = {1 << 20, 7 << 18};  // padded images (backward: and float32 gradients of h) that one thread holds; one at least
constexpr i64 GROUP_BYTES = 8 << 20;    // partial sums of the weight gradient, all groups together ...
constexpr i64 FEWEST_GROUPS = 4;        // ... but not fewer groups than this: they are what threads share
constexpr i64 MOST_GROUPS = 16;
constexpr int LONGEST = 80;  // products in one chain of float32 sums of a prediction, or three times this without 2 x 2 tiles

inline i64 round_up(i64 n, i64 m) { return (n + m - 1) / m * m; }
inline i64 smaller(i64 a, i64 b) { return a < b ? a : b; }
inline i64 larger(i64 a, i64 b) { return a > b ? a : b; }

// Shape with everything derived from it. U: what the tiles multiply.
template <typename U>
struct Plan : MultiheadLossShape {
  i64 B, KC;
  i64 cp, cu;             // channels, padded with zeros to full vectors; the same in units
  i64 tile_columns, tiles;  // 2 x 2 pixels each; those at the right and lower edge may be cut
  i64 W2, padded, pixels;   // padded image: a border of one pixel, and up to full tiles
  i64 TL;                 // a pixel's target, repeated so that VL lanes can start at any of the C channels
  i64 kept;               // outputs of a pixel in the kept residuals
  bool fast;              // 2 x 2 tiles of pixels pay
  bool differences;       // backward pass in bfloat16: 2 x 2 tiles, of what heads differ by (reference.h)
  bool tiled;             // either
  int block;              // most outputs of a block
  Plan(const MultiheadLossShape& s, bool backward) : MultiheadLossShape(s) {
    B = rows();
    KC = outputs();
    cp = round_up(c, VL * U::PER_UNIT);
    cu = cp / U::PER_UNIT;
    const i64 tile_rows = (H + 1) / 2;
    tile_columns = (W + 1) / 2;
    tiles = tile_rows * tile_columns;
    W2 = 2 * tile_columns + 2;
    padded = (2 * tile_rows + 2) * W2;
    pixels = H * W;
    TL = VL + C - 1;
    kept = kept_outputs(s);
    const bool large = c >= 24 && H >= 4 && W >= 4;
    fast = U::PER_UNIT == 1 && large;
    differences = U::PER_UNIT == 2 && large && backward && K >= DIFFERENCES_FROM;
    tiled = fast || differences;
    block = differences ? WIDE_BLOCK : BLOCK;
  }
};

// Outputs [0, count) of a list, the first `vectors` * VL of them as vectors, the rest as dots.
struct Block {
  const int* index;  // their numbers; null: first, first + 1, ...
  i64 first;
  int count, width, vectors, dotted;  // width: count padded to full vectors
  bool fast;  // 2 x 2 tiles
  template <typename U>
  Block(const Plan<U>& p, const int* list, i64 begin, i64 total, bool differences = false) {
    first = begin;
    index = list ? list + begin : nullptr;
    count = static_cast<int>(smaller(differences ? WIDE_BLOCK : BLOCK, total - begin));
    width = static_cast<int>(round_up(count, VL));
    vectors = count / VL;
    dotted = count % VL;
    fast = p.fast ? count >= 8 : differences;
    if (dotted * 4 > VL * (differences ? 1 : 3)) { ++vectors; dotted = 0; }  // sums too short to add up lanes for
  }
  i64 output(int o) const { return index ? index[o] : first + o; }
};

// Arrays that live as long as this. One at a time, so that a heap finds room where the forward pass had its own.
struct Memory {
  static constexpr int MOST = 32;
  void* pieces[MOST];
  int count = 0;
  bool failed = false;  // something did not fit; pointers are null then

  Memory() = default;
  Memory(const Memory&) = delete;
  ~Memory() {
    while (count > 0) std::free(pieces[--count]);
  }
  float* take(i64 floats, bool wanted = true) {
    void* p = nullptr;
    if (wanted && floats > 0) {
      if (count == MOST || posix_memalign(&p, 64, static_cast<size_t>(floats) * 4)) { failed = true; return nullptr; }
      pieces[count++] = p;
    }
    return static_cast<float*>(p);
  }
  double* doubles(i64 n, bool wanted = true) { return reinterpret_cast<double*>(take(2 * n, wanted)); }
};

}  // namespace
}  // namespace rdc
