// Register tiles of the CPU kernels, compiled once for each instruction set (16, 8 or 4 float lanes).
//
// Everything lives in an unnamed namespace and no standard template is used: a function compiled for AVX-512 must never be merged
// by the linker with its baseline twin.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace rdc {
namespace {

using i64 = int64_t;

#if defined(__AVX512F__)
constexpr int VL = 16, MAX_VECTORS = 4, NARROW_ROWS = 10, MAX_ROWS = 6, DOT_PIXELS = 4, DOT_OUTPUTS = 5;
#elif defined(__AVX2__)
constexpr int VL = 8, MAX_VECTORS = 2, NARROW_ROWS = 6, MAX_ROWS = 6, DOT_PIXELS = 2, DOT_OUTPUTS = 4;
#else
constexpr int VL = 4, MAX_VECTORS = 2, NARROW_ROWS = 6, MAX_ROWS = 6, DOT_PIXELS = 2, DOT_OUTPUTS = 4;
#endif

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef uint32_t vu __attribute__((vector_size(VL * 4)));
typedef float vf_unaligned __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef uint16_t vh_unaligned __attribute__((vector_size(VL * 2), aligned(2), may_alias));

inline vf load(const float* p) { return *reinterpret_cast<const vf_unaligned*>(p); }
inline void store(float* p, vf v) { *reinterpret_cast<vf_unaligned*>(p) = v; }

// --- bfloat16 (the upper half of a float32; rounding to nearest even)
inline float to_float(float x) { return x; }
inline float to_float(uint16_t x) {
  uint32_t bits = static_cast<uint32_t>(x) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline void assign(float& out, float x) { out = x; }
inline void assign(uint16_t& out, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) { out = static_cast<uint16_t>((bits >> 16) | 0x40u); return; }  // NaN stays NaN
  out = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline vf load_float(const float* p) { return load(p); }
inline vf load_float(const uint16_t* p) {
  vu bits = __builtin_convertvector(*reinterpret_cast<const vh_unaligned*>(p), vu) << 16;
  vf f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

// VL values rounded to the type of `p`.
inline void store_rounded(float* p, vf v) { store(p, v); }
inline void store_rounded(uint16_t* p, vf v) {
#ifdef __AVX512BF16__
  const auto h = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
  std::memcpy(p, &h, VL * 2);
#else
  for (int l = 0; l < VL; ++l) assign(p[l], v[l]);
#endif
}

// --- What the tiles multiply: units of four bytes. One float32, or two neighbouring bfloat16 whose products are both added.
struct Float32 {
  using Stored = float;
  static constexpr int PER_UNIT = 1;
  static vf broadcast(const float* p) { return *p - vf{}; }
  static vf madd(vf sum, vf a, vf b) { return sum + a * b; }
};
#ifdef __AVX512BF16__
struct Bfloat16Pair {
  using Stored = uint16_t;
  static constexpr int PER_UNIT = 2;
  static vf broadcast(const float* p) {  // bits, never a float: half of them may look like a denormal or a signalling NaN
    uint32_t bits;
    std::memcpy(&bits, p, 4);
    return reinterpret_cast<vf>(bits + vu{});
  }
  static vf madd(vf sum, vf a, vf b) {  // vdpbf16ps: exact products, float32 sums
    return reinterpret_cast<vf>(
        _mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
  }
  static vf join(vf low, vf high) {  // rounded
    auto wide = [](vf v) { return _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(v)))); };
    return reinterpret_cast<vf>(_mm512_or_si512(wide(low), _mm512_slli_epi32(wide(high), 16)));
  }
};
#endif
// n units (a multiple of VL) from two rows of bfloat16: (a[0], b[0]), (a[1], b[1]), ...
inline void interleave(const uint16_t* a, const uint16_t* b, float* units, i64 n) {
  for (i64 i = 0; i < n; i += VL) {
    const vu low = __builtin_convertvector(*reinterpret_cast<const vh_unaligned*>(a + i), vu);
    const vu high = __builtin_convertvector(*reinterpret_cast<const vh_unaligned*>(b + i), vu) << 16;
    const vu both = low | high;
    std::memcpy(units + i, &both, sizeof both);
  }
}

// --- Lane shuffles. F::at(i) is the source of lane i: below VL from a, above from b.
template <typename F, int... I>
inline vf shuffle_lanes(vf a, vf b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, F::at(I)...);
#else
  return __builtin_shuffle(a, b, vi{F::at(I)...});
#endif
}
template <typename F>
inline vf shuffle(vf a, vf b) { return shuffle_lanes<F>(a, b, std::make_integer_sequence<int, VL>{}); }

template <int S> struct TransposeLow { static constexpr int at(int i) { return (i & S) ? VL + i - S : i; } };
template <int S> struct TransposeHigh { static constexpr int at(int i) { return (i & S) ? VL + i : i + S; } };
template <int S, int HALF> struct Segment {  // S: width of a segment before the step
  static constexpr int at(int i) { return (i / (S / 2) % 2) * VL + (i / (S / 2) / 2) * S + i % (S / 2) + HALF * (S / 2); }
};
template <int S> struct Fold { static constexpr int at(int i) { return i ^ S; } };

// In-register transpose of VL vectors.
template <int S = VL / 2>
inline void transpose(vf (&v)[VL]) {
  if constexpr (S >= 1) {
#pragma GCC unroll 16
    for (int i = 0; i < VL; ++i)
      if (!(i & S)) {
        vf a = v[i], b = v[i + S];
        v[i] = shuffle<TransposeLow<S>>(a, b);
        v[i + S] = shuffle<TransposeHigh<S>>(a, b);
      }
    transpose<S / 2>(v);
  }
}

// Sums of the lanes of M vectors (M a power of two, at most VL): sum j ends in lane j * (VL / M).
template <int M, int S = VL>
inline vf lane_sums(vf (&v)[M]) {
  if constexpr (M > 1) {
    vf half[M / 2];
#pragma GCC unroll 8
    for (int i = 0; i < M / 2; ++i)
      half[i] = shuffle<Segment<S, 0>>(v[i], v[i + M / 2]) + shuffle<Segment<S, 1>>(v[i], v[i + M / 2]);
    return lane_sums<M / 2, S / 2>(half);
  } else if constexpr (S > 1) {
    vf folded[1] = {v[0] + shuffle<Fold<S / 2>>(v[0], v[0])};
    return lane_sums<1, S / 2>(folded);
  } else {
    return v[0];
  }
}

constexpr int power_of_two(int n) { int p = 1; while (p < n) p *= 2; return p; }

// --- The tile: out[i, v] (+)= sum over three loops of a[i, .] * b[v, .], a broadcast, b a vector of VL lanes. Strides count units.
// Head convolution, gradient of the features and gradient of the weight are this one tile with different strides.
struct Walk {
  const float* p;
  i64 lane;                 // from one i (a) or v (b) to the next
  i64 outer, middle, inner;  // from one step of each loop to the next
};
struct Steps { int outer, middle, inner; };

template <typename U, int MR, int NV>
void tile(const Walk& a, const Walk& b, Steps n, float* out, i64 out_i, bool accumulate) {
  vf acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[i][v] = vf{};
  const i64 a_lane = a.lane, b_lane = b.lane, a_inner = a.inner, b_inner = b.inner;
  for (int o = 0; o < n.outer; ++o)
    for (int m = 0; m < n.middle; ++m) {
      const float* pa = a.p + o * a.outer + m * a.middle;
      const float* pb = b.p + o * b.outer + m * b.middle;
      for (int k = 0; k < n.inner; ++k, pa += a_inner, pb += b_inner) {
        vf bv[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) bv[v] = load(pb + v * b_lane);
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) {
          const vf x = U::broadcast(pa + i * a_lane);
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) acc[i][v] = U::madd(acc[i][v], x, bv[v]);
        }
      }
    }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      float* to = out + i * out_i + v * VL;
      store(to, accumulate ? load(to) + acc[i][v] : acc[i][v]);  // added last: shorter chains of roundings
    }
}

using TileFunction = void (*)(const Walk&, const Walk&, Steps, float*, i64, bool);

// Rows of a tile: as many accumulators as the registers hold.
constexpr int most_rows(int vectors) { return vectors == MAX_VECTORS ? MAX_ROWS : NARROW_ROWS; }

template <typename U, int NV, int... R>
inline TileFunction tile_among(int rows, std::integer_sequence<int, R...>) {
  static constexpr TileFunction table[] = {tile<U, R + 1, NV>...};
  return table[rows - 1];
}
template <typename U, int NV>
inline TileFunction tile_of(int rows) {
  return tile_among<U, NV>(rows, std::make_integer_sequence<int, most_rows(NV)>{});
}

// Splits count into the fewest parts of at most `most`, as even as can be; returns the size of the part at `done`.
inline int part(int count, int done, int most) {
  int parts = (count - done + most - 1) / most;
  return (count - done + parts - 1) / parts;
}

inline int vectors_at(int left) { return left >= 4 && MAX_VECTORS >= 4 ? 4 : left >= 2 ? 2 : 1; }

// out[rows, vectors * VL] (+)= a * b, cut into tiles.
template <typename U>
inline void product(Walk a, Walk b, Steps n, int rows, int vectors, float* out, i64 out_i, bool accumulate) {
  for (int v = 0, nv; v < vectors; v += nv) {
    nv = vectors_at(vectors - v);
    Walk bv = b;
    bv.p += v * b.lane;
    for (int i = 0, nr; i < rows; i += nr) {
      nr = part(rows, i, most_rows(nv));
      Walk ai = a;
      ai.p += i * a.lane;
      TileFunction f;
      if constexpr (MAX_VECTORS >= 4) f = nv == 4 ? tile_of<U, 4>(nr) : nv == 2 ? tile_of<U, 2>(nr) : tile_of<U, 1>(nr);
      else f = nv == 2 ? tile_of<U, 2>(nr) : tile_of<U, 1>(nr);
      f(ai, bv, n, out + i * out_i + v * VL, out_i, accumulate);
    }
  }
}

// --- The other way round, for outputs too few to fill a vector: lanes run along the reduction and are summed at the end.
// out[p, q] = sum_{o < outer, k < inner} a[p*a_lane + o*a_outer + k] * b[q*b_lane + o*b_outer + k]; inner is a multiple of VL.
template <int M>
inline void write_sums(vf (&acc)[M], float* sums) {  // sums [M]
  constexpr int FULL = M / VL * VL, REST = M - FULL;
#pragma GCC unroll 8
  for (int g = 0; g < FULL; g += VL) {
    vf v[VL];
#pragma GCC unroll 16
    for (int i = 0; i < VL; ++i) v[i] = acc[g + i];
    store(sums + g, lane_sums<VL>(v));
  }
  if constexpr (REST > 0) {
    constexpr int P2 = power_of_two(REST);
    vf v[P2];
#pragma GCC unroll 16
    for (int i = 0; i < P2; ++i) v[i] = i < REST ? acc[FULL + i] : vf{};
    vf s = lane_sums<P2>(v);
#pragma GCC unroll 16
    for (int i = 0; i < REST; ++i) sums[FULL + i] = s[i * (VL / P2)];
  }
}

template <typename U, int P, int Q>
void dot(const float* a, i64 a_lane, i64 a_outer, const float* b, i64 b_lane, i64 b_outer, int outer, int inner, float* out, i64 out_p) {
  vf acc[P * Q] = {};
  for (int o = 0; o < outer; ++o) {
    const float *pa = a + o * a_outer, *pb = b + o * b_outer;
    for (int k = 0; k < inner; k += VL) {
      vf av[P];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) av[p] = load(pa + p * a_lane + k);
#pragma GCC unroll 8
      for (int q = 0; q < Q; ++q) {
        vf bv = load(pb + q * b_lane + k);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) acc[p * Q + q] = U::madd(acc[p * Q + q], av[p], bv);
      }
    }
  }
  float sums[P * Q];
  write_sums<P * Q>(acc, sums);
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) out[p * out_p + q] = sums[p * Q + q];
}

using DotFunction = void (*)(const float*, i64, i64, const float*, i64, i64, int, int, float*, i64);

template <typename U, int P, int... Q>
inline DotFunction dot_of(int q, std::integer_sequence<int, Q...>) {
  static constexpr DotFunction table[] = {dot<U, P, Q + 1>...};
  return table[q - 1];
}
template <typename U>
inline DotFunction dot_of(int p, int q) {
  constexpr auto outputs = std::make_integer_sequence<int, DOT_OUTPUTS>{};
  if constexpr (DOT_PIXELS >= 4) {
    if (p == 4) return dot_of<U, 4>(q, outputs);
    if (p == 3) return dot_of<U, 3>(q, outputs);
  }
  return p == 2 ? dot_of<U, 2>(q, outputs) : dot_of<U, 1>(q, outputs);
}

// out[pixels, outputs]
template <typename U>
inline void dots(const float* a, i64 a_lane, i64 a_outer, const float* b, i64 b_lane, i64 b_outer, int outer, int inner, int pixels,
                 int outputs, float* out, i64 out_p) {
  for (int q = 0, nq; q < outputs; q += nq) {
    nq = part(outputs, q, DOT_OUTPUTS);
    for (int p = 0, np; p < pixels; p += np) {
      np = part(pixels, p, DOT_PIXELS);
      dot_of<U>(np, nq)(a + p * a_lane, a_lane, a_outer, b + q * b_lane, b_lane, b_outer, outer, inner, out + p * out_p + q, out_p);
    }
  }
}

}  // namespace
}  // namespace rdc
