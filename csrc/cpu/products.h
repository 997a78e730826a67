// Products of matrices in registers: what the convolution and the gradient of its weight spend their time on.
#pragma once

#include "tile.h"

namespace rdc {
namespace {

#if defined(__AVX512F__)
constexpr int MOST_VECTORS = 4;
constexpr int rows_beside(int vectors) { return vectors == 4 ? 6 : vectors == 3 ? 8 : 12; }
#else
constexpr int MOST_VECTORS = 2;
constexpr int rows_beside(int vectors) { return vectors == 2 ? 6 : 10; }
#endif

// out[i, v] (+)= sum_k a[i, k] b[k, v]: MR rows of a, NV vectors of b. TRANSPOSED: a is [k, i].
template <bool TRANSPOSED, int MR, int NV>
void products(const float* a, i64 a_row, const float* b, i64 b_row, i64 n, float* out, i64 out_row, bool add) {
  vf sum[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sum[i][v] = vf{};
  for (i64 k = 0; k < n; ++k, a += TRANSPOSED ? a_row : 1, b += b_row) {
    vf bv[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) bv[v] = load(b + v * VL);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const vf x = a[TRANSPOSED ? i : i * a_row] - vf{};
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[i][v] += x * bv[v];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      float* const to = out + i * out_row + v * VL;
      store(to, add ? load(to) + sum[i][v] : sum[i][v]);
    }
}

using Products = void (*)(const float*, i64, const float*, i64, i64, float*, i64, bool);
template <bool TRANSPOSED, int NV, int... R>
inline Products products_among(int rows, std::integer_sequence<int, R...>) {
  static constexpr Products of[] = {products<TRANSPOSED, R + 1, NV>...};
  return of[rows - 1];
}
template <bool TRANSPOSED, int NV>
inline Products products_of(int rows) {
  return products_among<TRANSPOSED, NV>(rows, std::make_integer_sequence<int, rows_beside(NV)>{});
}
// For at most `rows_beside(vectors)` rows.
template <bool TRANSPOSED>
inline Products products_for(int rows, int vectors) {
  if constexpr (MOST_VECTORS >= 4) {
    if (vectors == 4) return products_of<TRANSPOSED, 4>(rows);
    if (vectors == 3) return products_of<TRANSPOSED, 3>(rows);
  }
  return vectors == 2 ? products_of<TRANSPOSED, 2>(rows) : products_of<TRANSPOSED, 1>(rows);
}

}  // namespace
}  // namespace rdc
