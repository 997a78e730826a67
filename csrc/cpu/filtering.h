// Minimal filtering of a 3 x 3 convolution: tiles of 4 x 4 outputs from 36 products instead of 144, F(4x4, 3x3), and of three along an axis where
// that fits the image better (14 = 4 + 3 + 4 + 3: 22 points a line instead of 24).
//
// 1-D, Cook and Toom's construction at the points 0, +-a, +-b and infinity, a = 3/4, b = 3/2: with
//   B^T = [a2b2 0 -(a2+b2) 0 1 0;  0 -+ab2 -b2 +-a 1 0 (twice);  0 -+ba2 -a2 +-b 1 0 (twice);  0 a2b2 0 -(a2+b2) 0 1],
//   A^T = [1 1 1 1 1 0;  0 a -a b -b 0;  0 a2 a2 b2 b2 0;  0 a3 -a3 b3 -b3 1]   (a2 = a^2 and so on)
// and G the values at the points of a polynomial with the taps as coefficients, over the products of the differences of the points,
// A^T ((G g) . (B^T d)) is the correlation of six inputs d with three taps g at four places. 2-D: the same along both axes.
//
// Three places of five inputs: the same without the point -b. What its absence changes in a product of differences (a factor p + b at point p) is
// in the inputs' transform, so that both read the same transformed taps.
//
// The usual points 0, +-1, +-2 err four times as much as a plain float32 sum; these err 1.6 times as much, and they are exact in float32.
//
// Source: S. Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, arXiv 1509.09308; on the choice of points
// Barabasz et al., arXiv 1803.10986.
#pragma once

#include "tile.h"

namespace rdc {
namespace {

constexpr int SIDE = 6, OUT = 4, POINTS = SIDE * SIDE, MINUS_B = 4;  // MINUS_B: the point that a tile of three does without
constexpr float A1 = 0.75f, A2 = A1 * A1, A3 = A2 * A1, B1 = 1.5f, B2 = B1 * B1, B3 = B2 * B1;  // exact

// The place among the six points of a tile's point i of N.
template <int N>
constexpr int point(int i) { return N == SIDE || i < MINUS_B ? i : i + 1; }

// B^T d
inline void transform_inputs(const vf (&d)[SIDE], vf (&out)[SIDE]) {
  const vf even_a = d[4] - B2 * d[2], even_b = d[4] - A2 * d[2], odd_a = d[3] - B2 * d[1], odd_b = d[3] - A2 * d[1];
  out[0] = A2 * B2 * d[0] + (d[4] - (A2 + B2) * d[2]);
  out[1] = even_a + A1 * odd_a;
  out[2] = even_a - A1 * odd_a;
  out[3] = even_b + B1 * odd_b;
  out[4] = even_b - B1 * odd_b;
  out[5] = A2 * B2 * d[1] + (d[5] - (A2 + B2) * d[3]);
}
inline void transform_inputs(const vf (&d)[SIDE - 1], vf (&out)[SIDE - 1]) {
  const vf low = d[1] - B1 * d[0], middle = d[2] - B1 * d[1], high = d[3] - B1 * d[2], last = d[4] - B1 * d[3];
  out[0] = B1 * high - B1 * A2 * low;
  out[1] = (A1 + B1) * high + (A1 + B1) * A1 * middle;
  out[2] = (B1 - A1) * high - (B1 - A1) * A1 * middle;
  out[3] = 2 * B1 * d[3] - 2 * B1 * A2 * d[1];
  out[4] = last - A2 * middle;
}

// A^T m
inline void transform_products(const vf (&m)[SIDE], vf (&out)[OUT]) {
  const vf sum_a = m[1] + m[2], sum_b = m[3] + m[4], difference_a = m[1] - m[2], difference_b = m[3] - m[4];
  out[0] = m[0] + (sum_a + sum_b);
  out[1] = A1 * difference_a + B1 * difference_b;
  out[2] = A2 * sum_a + B2 * sum_b;
  out[3] = A3 * difference_a + (B3 * difference_b + m[5]);
}
inline void transform_products(const vf (&m)[SIDE - 1], vf (&out)[OUT - 1]) {
  const vf sum_a = m[1] + m[2], difference_a = m[1] - m[2];
  out[0] = m[0] + (sum_a + m[3]);
  out[1] = A1 * difference_a + B1 * m[3];
  out[2] = A2 * sum_a + (B2 * m[3] + m[4]);
}

// A g: what A^T is the transpose of
inline void spread_gradients(const vf (&g)[OUT], vf (&out)[SIDE]) {
  const vf even_a = g[0] + A2 * g[2], even_b = g[0] + B2 * g[2], odd_a = A1 * g[1] + A3 * g[3], odd_b = B1 * g[1] + B3 * g[3];
  out[0] = g[0];
  out[1] = even_a + odd_a;
  out[2] = even_a - odd_a;
  out[3] = even_b + odd_b;
  out[4] = even_b - odd_b;
  out[5] = g[3];
}
inline void spread_gradients(const vf (&g)[OUT - 1], vf (&out)[SIDE - 1]) {
  const vf even_a = g[0] + A2 * g[2];
  out[0] = g[0];
  out[1] = even_a + A1 * g[1];
  out[2] = even_a - A1 * g[1];
  out[3] = (g[0] + B2 * g[2]) + B1 * g[1];
  out[4] = g[2];
}

// G[p][k] = AT[p]^k OVER[p] at the finite points
constexpr double AT[SIDE - 1] = {0, A1, -A1, B1, -B1};
constexpr double OF_A = 2.0 * A1 * A1 * (A1 * A1 - B1 * B1), OF_B = 2.0 * B1 * B1 * (B1 * B1 - A1 * A1);
constexpr double OVER[SIDE - 1] = {1.0 / (A1 * A1 * B1 * B1), 1 / OF_A, 1 / OF_A, 1 / OF_B, 1 / OF_B};

// G g of the taps of VL outputs, in double: once for many calls
inline void transform_taps(const double (&g0)[VL], const double (&g1)[VL], const double (&g2)[VL], double (&out)[SIDE][VL]) {
  for (int p = 0; p < SIDE - 1; ++p)
    for (int l = 0; l < VL; ++l) out[p][l] = (g0[l] + AT[p] * (g1[l] + AT[p] * g2[l])) * OVER[p];
  for (int l = 0; l < VL; ++l) out[SIDE - 1][l] = g2[l];
}

// G^T m
inline void transform_sums(const double (&m)[SIDE][VL], double (&taps)[3][VL]) {
  for (int l = 0; l < VL; ++l) taps[0][l] = taps[1][l] = 0, taps[2][l] = m[SIDE - 1][l];
  for (int p = 0; p < SIDE - 1; ++p)
    for (int l = 0; l < VL; ++l) {
      const double value = m[p][l] * OVER[p];
      taps[0][l] += value;
      taps[1][l] += AT[p] * value;
      taps[2][l] += AT[p] * AT[p] * value;
    }
}

}  // namespace
}  // namespace rdc
