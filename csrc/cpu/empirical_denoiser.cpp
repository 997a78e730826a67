// CPU kernels of empirical_denoiser; compiled once for each instruction set (RDC_ISA = baseline, avx2, avx512, avx512bf16).
//
// 48 rows are worked on together, in groups of 6. For each tile of 256 images a group lists those that any of its rows needs, with six
// weights each (zero where a row does not need it: adding 0 * image changes nothing, so a row's result is its own). The means are then
// accumulated in register tiles of 6 rows by 4 vectors of pixels; a tile of images stays in the second-level cache for all groups.
#include "empirical_denoiser.h"

#include <cstdlib>
#include <cstring>

#include "exponential.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define RDC_JOIN2(a, b) a##b
#define RDC_JOIN(a, b) RDC_JOIN2(a, b)

namespace rdc {
namespace {

constexpr int GROUP = 6, GROUPS = 8, ROWS = GROUP * GROUPS, TILE = 256, LISTED = 4;  // TILE: a multiple of every VL
constexpr Status OUT_OF_MEMORY = "out of memory";
constexpr float LOWEST = -3.4e38f;

inline vf all(float x) { return x - vf{}; }
inline vf larger(vf a, vf b) { return a > b ? a : b; }

// A bit for each lane of v that is above x.
inline unsigned above(vf v, float x) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)v, (__m512)all(x), _CMP_GT_OQ);
#elif defined(__AVX2__)
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)v, (__m256)all(x), _CMP_GT_OQ)));
#else
  unsigned bits = 0;
  for (int l = 0; l < VL; ++l) bits |= static_cast<unsigned>(v[l] > x) << l;
  return bits;
#endif
}

// Up to 48 rows and what is computed for them.
struct Block {
  const EmpiricalDenoiserInputs& in;
  float *weights, *values, *scores;  // [GROUPS][TILE][GROUP]; [ROWS][D]; [GROUP][VL]
  int* list;                         // [GROUPS][TILE]
  int listed[GROUPS];
  i64 first = 0;
  int rows = 0;
  float largest[ROWS];
  double total[ROWS];
  char* memory = nullptr;

  explicit Block(const EmpiricalDenoiserInputs& given) : in(given) {
    const size_t floats = size_t{GROUPS} * TILE * GROUP + size_t{ROWS} * in.D + size_t{GROUP} * VL;
    memory = static_cast<char*>(std::malloc(floats * 4 + sizeof(int) * GROUPS * TILE));
    weights = reinterpret_cast<float*>(memory);
    values = weights + size_t{GROUPS} * TILE * GROUP;
    scores = values + size_t{ROWS} * in.D;
    list = reinterpret_cast<int*>(scores + size_t{GROUP} * VL);
  }
  ~Block() { std::free(memory); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  const float* a(int row) const { return in.inner + (first + row) / in.T * in.count; }
  const float* b(int row) const { return in.noise_inner + (first + row) % in.T * in.count; }
  float beta(int row) const { return in.beta[first + row]; }
  int groups() const { return (rows + GROUP - 1) / GROUP; }

  // Scores before they are multiplied by beta: differences of these are exact where it matters, those of scores of 1e10 are not.
  float sum_at(int row, i64 i) const { return a(row)[i] + (b(row)[i] - in.half_square[i]); }
  vf sums_at(int row, i64 i) const { return load(a(row) + i) + (load(b(row) + i) - load(in.half_square + i)); }

  void find_largest() {
    for (int r = 0; r < rows; ++r) {
      vf most = all(LOWEST);
      i64 i = 0;
      for (; i + VL <= in.count; i += VL) most = larger(sums_at(r, i), most);
      float best = LOWEST;
      for (int l = 0; l < VL; ++l) best = most[l] > best ? most[l] : best;
      for (; i < in.count; ++i) { const float s = sum_at(r, i); best = s > best ? s : best; }
      largest[r] = best;
      total[r] = 0;
    }
  }

  // Which images of [begin, end) each group needs, and its rows' weights of them.
  void weigh(i64 begin, i64 end) {
    for (int g = 0; g < groups(); ++g) {
      int found = 0;
      float* w = weights + i64{g} * TILE * GROUP;
      int* mine = list + i64{g} * TILE;
      for (i64 i = begin; i < end; i += VL) {
        const bool whole = i + VL <= end;
        unsigned needed = 0;
        for (int k = 0; k < GROUP; ++k) {
          const int r = g * GROUP + k;
          vf s = all(LOWEST);
          if (r < rows) {
            if (whole) s = (sums_at(r, i) - largest[r]) * beta(r);
            else for (i64 l = 0; i + l < end; ++l) s[l] = (sum_at(r, i + l) - largest[r]) * beta(r);
          }
          needed |= above(s, -in.cut);
          store(scores + k * VL, s);
        }
        if (!needed) continue;
        for (int k = 0; k < GROUP; ++k) {
          const vf s = load(scores + k * VL);
          const vf e = s > -in.cut ? exponential(larger(s, all(-in.cut))) : vf{};
          store(scores + k * VL, e);
        }
        for (int l = 0; l < VL; ++l) {
          if (!(needed >> l & 1u)) continue;
          for (int k = 0; k < GROUP; ++k) w[found * GROUP + k] = scores[k * VL + l];
          mine[found++] = static_cast<int>(i + l);
        }
      }
      listed[g] = found;
      for (int k = 0; k < GROUP && g * GROUP + k < rows; ++k) {
        float sum = 0;
        for (int u = 0; u < found; ++u) sum += w[u * GROUP + k];
        total[g * GROUP + k] += sum;
      }
    }
  }

  // values[rows of g, d .. d + NV * VL) += weights * images
  template <int NV>
  void accumulate(int g, i64 d) {
    const float* w = weights + i64{g} * TILE * GROUP;
    const int* mine = list + i64{g} * TILE;
    float* out = values + i64{g} * GROUP * in.D + d;
    vf sum[GROUP][NV];
#pragma GCC unroll 6
    for (int k = 0; k < GROUP; ++k)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[k][v] = vf{};
    for (int u = 0; u < listed[g]; ++u) {
      const float* image = in.images + i64{mine[u]} * in.D + d;
      vf pixels[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) pixels[v] = load(image + v * VL);
#pragma GCC unroll 6
      for (int k = 0; k < GROUP; ++k)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) sum[k][v] += w[u * GROUP + k] * pixels[v];
    }
#pragma GCC unroll 6
    for (int k = 0; k < GROUP; ++k)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) store(out + k * in.D + v * VL, load(out + k * in.D + v * VL) + sum[k][v]);  // last: shorter chains of roundings
  }

  void accumulate_tile() {
    i64 d = 0;
    for (; d + MAX_VECTORS * VL <= in.D; d += MAX_VECTORS * VL)
      for (int g = 0; g < groups(); ++g) accumulate<MAX_VECTORS>(g, d);
    for (; d + VL <= in.D; d += VL)
      for (int g = 0; g < groups(); ++g) accumulate<1>(g, d);
    for (; d < in.D; ++d)
      for (int g = 0; g < groups(); ++g)
        for (int k = 0; k < GROUP; ++k) {
          float sum = values[(i64{g} * GROUP + k) * in.D + d];
          for (int u = 0; u < listed[g]; ++u)
            sum += weights[(i64{g} * TILE + u) * GROUP + k] * in.images[i64{list[g * TILE + u]} * in.D + d];
          values[(i64{g} * GROUP + k) * in.D + d] = sum;
        }
  }

  void forward(i64 begin, int count, float* mean, float* kept) {
    first = begin;
    rows = count;
    find_largest();
    std::memset(values, 0, sizeof(float) * groups() * GROUP * in.D);
    for (i64 i = 0; i < in.count; i += TILE) {
      weigh(i, i + TILE < in.count ? i + TILE : in.count);
      accumulate_tile();
    }
    for (int r = 0; r < rows; ++r) {
      const float sum = static_cast<float>(total[r]);
      kept[2 * (first + r)] = largest[r];
      kept[2 * (first + r) + 1] = sum;
      for (i64 d = 0; d < in.D; ++d) mean[(first + r) * in.D + d] = values[i64{r} * in.D + d] / sum;
    }
  }

  // dots[u][k] = image u . row k of values, for NU listed images and the rows of g
  template <int NU>
  void dot(int g, const int* which, float (*dots)[GROUP]) {
    const float* up = values + i64{g} * GROUP * in.D;
    vf sum[NU][GROUP] = {};
    i64 d = 0;
    for (; d + VL <= in.D; d += VL) {
      vf pixels[NU];
#pragma GCC unroll 4
      for (int u = 0; u < NU; ++u) pixels[u] = load(in.images + i64{which[u]} * in.D + d);
#pragma GCC unroll 6
      for (int k = 0; k < GROUP; ++k) {
        const vf row = load(up + k * in.D + d);
#pragma GCC unroll 4
        for (int u = 0; u < NU; ++u) sum[u][k] += pixels[u] * row;
      }
    }
    for (int u = 0; u < NU; ++u)
      for (int k = 0; k < GROUP; ++k) {
        float whole = 0;
        for (int l = 0; l < VL; ++l) whole += sum[u][k][l];
        for (i64 e = d; e < in.D; ++e) whole += in.images[i64{which[u]} * in.D + e] * up[k * in.D + e];
        dots[u][k] = whole;
      }
  }

  void backward(i64 begin, int count, const float* upstream, const float* mean, const float* kept, float* grad) {
    first = begin;
    rows = count;
    std::memset(values, 0, sizeof(float) * groups() * GROUP * in.D);
    std::memcpy(values, upstream + first * in.D, sizeof(float) * rows * in.D);
    float along[ROWS], scale[ROWS];
    for (int r = 0; r < rows; ++r) {
      double sum = 0;
      for (i64 d = 0; d < in.D; ++d) sum += static_cast<double>(mean[(first + r) * in.D + d]) * values[i64{r} * in.D + d];
      along[r] = static_cast<float>(sum);
      largest[r] = kept[2 * (first + r)];
      scale[r] = beta(r) / kept[2 * (first + r) + 1];
    }
    for (i64 i = 0; i < in.count; i += TILE) {
      weigh(i, i + TILE < in.count ? i + TILE : in.count);
      for (int g = 0; g < groups(); ++g) {
        const int* mine = list + i64{g} * TILE;
        float dots[LISTED][GROUP];
        for (int u = 0; u < listed[g];) {
          int done = 1;
          if (VL == 16 && u + LISTED <= listed[g]) { dot<LISTED>(g, mine + u, dots); done = LISTED; }
          else dot<1>(g, mine + u, dots);
          for (int v = 0; v < done; ++v)
            for (int k = 0; k < GROUP && g * GROUP + k < rows; ++k) {
              const int r = g * GROUP + k;
              const float w = weights[(i64{g} * TILE + u + v) * GROUP + k];
              if (w != 0) grad[(first + r) / in.T * in.count + mine[u + v]] += scale[r] * w * (dots[v][k] - along[r]);
            }
          u += done;
        }
      }
    }
  }
};

inline int at_most(i64 a, i64 b) { return static_cast<int>(a < b ? a : b); }

// work(block, piece) for every piece, each thread with a block of its own
template <typename Work>
Status in_blocks(const EmpiricalDenoiserInputs& in, i64 pieces, int threads, Work work) {
  int failed = 0;
#pragma omp parallel num_threads(at_most(pieces, threads < 1 ? 1 : threads))
  {
    Block block(in);
    if (!block.memory) {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp for schedule(dynamic)
    for (i64 p = 0; p < pieces; ++p)
      if (block.memory) work(block, p);
  }
  return failed ? OUT_OF_MEMORY : nullptr;
}

Status forward(const EmpiricalDenoiserInputs& in, float* mean, float* kept, int threads) {
  const i64 rows = in.N * in.T;
  if (!rows || !in.count) return nullptr;
  return in_blocks(in, (rows + ROWS - 1) / ROWS, threads, [&](Block& block, i64 p) {
    block.forward(p * ROWS, at_most(ROWS, rows - p * ROWS), mean, kept);
  });
}

// An image's levels stay with one thread: they are summed in their order.
Status backward(const EmpiricalDenoiserInputs& in, const float* upstream, const float* mean, const float* kept, float* grad, int threads) {
  if (!in.N || !in.T || !in.count) return nullptr;
  const i64 images = in.T >= ROWS ? 1 : ROWS / in.T;
  return in_blocks(in, (in.N + images - 1) / images, threads, [&](Block& block, i64 p) {
    const i64 begin = p * images * in.T, end = (p + 1) * images < in.N ? (p + 1) * images * in.T : in.N * in.T;
    for (i64 r = begin; r < end; r += ROWS) block.backward(r, at_most(ROWS, end - r), upstream, mean, kept, grad);
  });
}

}  // namespace

extern const EmpiricalDenoiserCpu RDC_JOIN(empirical_denoiser_, RDC_ISA);
const EmpiricalDenoiserCpu RDC_JOIN(empirical_denoiser_, RDC_ISA) = {forward, backward};

}  // namespace rdc
