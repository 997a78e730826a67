// Minimal filtering F(4x4, 3x3): sixteen outputs of a 3 x 3 convolution from 36 products instead of 144.
//
// 1-D, Cook and Toom's construction at the points 0, +-a, +-b and infinity, a = 3/4, b = 3/2: with
//   B^T = [a2b2 0 -(a2+b2) 0 1 0;  0 -+ab2 -b2 +-a 1 0 (twice);  0 -+ba2 -a2 +-b 1 0 (twice);  0 a2b2 0 -(a2+b2) 0 1],
//   A^T = [1 1 1 1 1 0;  0 a -a b -b 0;  0 a2 a2 b2 b2 0;  0 a3 -a3 b3 -b3 1]   (a2 = a^2 and so on)
// and G the values at the points of a polynomial with the taps as coefficients, over the products of the differences of the points,
// A^T ((G g) . (B^T d)) is the correlation of six inputs d with three taps g at four places. 2-D: the same along both axes.
//
// The usual points 0, +-1, +-2 err four times as much as a plain float32 sum; these err 1.6 times as much, and they are exact in float32.
//
// Source: S. Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, arXiv 1509.09308; on the choice of points
// Barabasz et al., arXiv 1803.10986.
#pragma once

#include "tile.h"

namespace rdc {
namespace {

constexpr int SIDE = 6, OUT = 4, POINTS = SIDE * SIDE;
constexpr float A1 = 0.75f, A2 = A1 * A1, A3 = A2 * A1, B1 = 1.5f, B2 = B1 * B1, B3 = B2 * B1;  // exact

// B^T d
inline void transform_inputs(vf d0, vf d1, vf d2, vf d3, vf d4, vf d5, vf (&out)[SIDE]) {
  const vf even_a = d4 - B2 * d2, even_b = d4 - A2 * d2, odd_a = d3 - B2 * d1, odd_b = d3 - A2 * d1;
  out[0] = A2 * B2 * d0 + (d4 - (A2 + B2) * d2);
  out[1] = even_a + A1 * odd_a;
  out[2] = even_a - A1 * odd_a;
  out[3] = even_b + B1 * odd_b;
  out[4] = even_b - B1 * odd_b;
  out[5] = A2 * B2 * d1 + (d5 - (A2 + B2) * d3);
}

// A^T m
inline void transform_products(vf m0, vf m1, vf m2, vf m3, vf m4, vf m5, vf (&out)[OUT]) {
  const vf sum_a = m1 + m2, sum_b = m3 + m4, difference_a = m1 - m2, difference_b = m3 - m4;
  out[0] = m0 + (sum_a + sum_b);
  out[1] = A1 * difference_a + B1 * difference_b;
  out[2] = A2 * sum_a + B2 * sum_b;
  out[3] = A3 * difference_a + (B3 * difference_b + m5);
}

// G g of the taps of VL outputs, in double: once for many calls
inline void transform_taps(const double (&g0)[VL], const double (&g1)[VL], const double (&g2)[VL], double (&out)[SIDE][VL]) {
  constexpr double a = A1, b = B1, at[SIDE - 1] = {0, a, -a, b, -b};
  constexpr double of_a = 2 * a * a * (a * a - b * b), of_b = 2 * b * b * (b * b - a * a);
  constexpr double over[SIDE - 1] = {1 / (a * a * b * b), 1 / of_a, 1 / of_a, 1 / of_b, 1 / of_b};
  for (int p = 0; p < SIDE - 1; ++p)
    for (int l = 0; l < VL; ++l) out[p][l] = (g0[l] + at[p] * (g1[l] + at[p] * g2[l])) * over[p];
  for (int l = 0; l < VL; ++l) out[SIDE - 1][l] = g2[l];
}

}  // namespace
}  // namespace rdc
