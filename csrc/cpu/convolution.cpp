// CPU kernels of the 3 x 3 convolution; compiled once for each instruction set (RDC_ISA = baseline, avx2, avx512, avx512bf16).
//
// A thread takes strips of tiles of outputs, three or four a side, of one or more images: the tiles' inputs are transformed to 36 planes
// [tiles, I], each plane is multiplied with its plane of weights [I, outputs] for up to four vectors of outputs, and these are transformed back to
// pixels, with bias, residual and factor. A strip is as large as the second-level cache allows. What a tile gives does not depend on its
// strip, so results do not depend on batch or threads.
#include "convolution.h"

#include "cpu_isa.h"
#include "kept_memory.h"
#include "products.h"
#include "tiles.h"

#define RDC_JOIN2(a, b) a##b
#define RDC_JOIN(a, b) RDC_JOIN2(a, b)

namespace rdc {
namespace {

constexpr int MOST_TILES = 24;           // of a strip
constexpr int LEAST_TILES = 6;
constexpr int MOST_CHAIN = 64;           // products of a sum that follow each other
constexpr i64 APART = 16;                // floats between planes: they must not share the sets of a cache
constexpr Status OUT_OF_MEMORY = "out of memory";

// Outputs in groups of vectors, as few and as even as can be. f(first output, vectors)
template <typename F>
inline void each_group(i64 outputs, F f) {
  const int vectors = static_cast<int>(round_up(outputs, VL) / VL);
  for (int v = 0, n; v < vectors; v += n) {
    n = part(vectors, v, MOST_VECTORS);
    f(i64{v} * VL, n);
  }
}

// rows of a times a plane of weights for `vectors` vectors of outputs. Sums are cut into chains: the error of one chain grows with its length.
inline void multiply(const float* a, i64 row, const float* b, int n, float* out, int rows, int vectors) {
  const Products add = products_for<false>(rows, vectors);
  for (int k = 0, chain; k < n; k += chain) {
    chain = part(n, k, MOST_CHAIN);
    add(a + k, row, b + i64{k} * vectors * VL, i64{vectors} * VL, chain, out, MOST_VECTORS * VL, k > 0);
  }
}

template <typename T>
struct Convolution : ConvolutionInputs {
  TiledImages<T> images;
  i64 ip, strip, plane, out_plane;

  explicit Convolution(const ConvolutionInputs& in) : ConvolutionInputs(in), images(in.B, in.H, in.W, in.I, in.doubled, in.x) {
    ip = round_up(I, VL);
    const i64 fit = second_level_cache() / 2 / (POINTS * 4 * ip);  // the rest is for products and weights
    strip = fit >= MOST_TILES ? MOST_TILES : fit >= LEAST_TILES ? fit / LEAST_TILES * LEAST_TILES : 4;
    plane = strip * ip + APART;
    out_plane = strip * MOST_VECTORS * VL + APART;
  }
  i64 offset_floats() const { return round_up(2 * POINTS * images.of_image, 16); }  // an offset is two; what follows is aligned
  i64 scratch() const { return POINTS * (plane + out_plane) + ip + offset_floats(); }

  // One vector of products of a tile, from output o on -> pixels
  template <bool FULL, int HIGH_POINTS, int WIDE_POINTS>
  void finish_tile(const Place& at, const float* products, i64 o, T* y) const {
    constexpr int HIGH_OUT = HIGH_POINTS - 2, WIDE_OUT = WIDE_POINTS - 2;
    vf rows[HIGH_OUT][WIDE_POINTS];  // [y][point]
#pragma GCC unroll 6
    for (int q = 0; q < WIDE_POINTS; ++q) {
      vf m[HIGH_POINTS], column[HIGH_OUT];
#pragma GCC unroll 6
      for (int p = 0; p < HIGH_POINTS; ++p) m[p] = load(products + (point<HIGH_POINTS>(p) * SIDE + point<WIDE_POINTS>(q)) * out_plane);
      transform_products(m, column);
#pragma GCC unroll 4
      for (int v = 0; v < HIGH_OUT; ++v) rows[v][q] = column[v];
    }
    const i64 n = FULL ? VL : O - o;
    const vf more = bias ? load_some(bias + o, n) : vf{};
    const int height = static_cast<int>(H - at.y < HIGH_OUT ? H - at.y : HIGH_OUT);
    const int width = static_cast<int>(W - at.x < WIDE_OUT ? W - at.x : WIDE_OUT);
    for (int v = 0; v < height; ++v) {
      vf pixels[WIDE_OUT];
      transform_products(rows[v], pixels);
      const i64 first = ((at.image * H + at.y + v) * W + at.x) * O + o;
      const int half = skip_doubled ? 1 : 0;
      const T* const beside = static_cast<const T*>(skip) + (at.image * (H >> half) + ((at.y + v) >> half)) * (W >> half) * O + o;
      for (int u = 0; u < width; ++u) {
        vf sum = pixels[u] + more;
        if (skip) sum += load_some(beside + ((at.x + u) >> half) * O, n);
        store_some(y + first + u * O, sum * factor, n);
      }
    }
  }

  void run_strip(i64 begin, float* scratch, const i64* offsets, T* y) const {
    float *const inputs = scratch, *const products = inputs + POINTS * plane;
    const T* const zeros = reinterpret_cast<const T*>(products + POINTS * out_plane);
    Strip<MOST_TILES> s;
    images.find(s, begin, strip);
    for (int t = 0; t < s.count(); ++t)
      with_points(s.tiles[t].kind, [&](auto h, auto w) { images.template transform_tile<h(), w()>(s.tiles[t], offsets, zeros, plane, inputs + t * ip); });
    const float* weights = packed;
    each_group(O, [&](i64 o, int vectors) {
      for (int p = 0; p < POINTS; ++p, weights += I * vectors * VL) {
        const int end = s.end(p / SIDE, p % SIDE);
        for (int i = s.begin(p % SIDE), rows; i < end; i += rows) {
          rows = part(end, i, rows_beside(vectors));
          multiply(inputs + p * plane + i * ip, ip, weights, static_cast<int>(I), products + p * out_plane + i * MOST_VECTORS * VL, rows, vectors);
        }
      }
      for (int t = 0; t < s.count(); ++t)
        with_points(s.tiles[t].kind, [&](auto h, auto w) {
          for (int v = 0; v < vectors; ++v) {
            const float* const of_tile = products + (t * MOST_VECTORS + v) * VL;
            if (o + (v + 1) * VL <= O) finish_tile<true, h(), w()>(s.tiles[t], of_tile, o + v * VL, y);
            else finish_tile<false, h(), w()>(s.tiles[t], of_tile, o + v * VL, y);
          }
        });
    });
  }
};

thread_local KeptMemory kept;

template <typename T>
Status run(const ConvolutionInputs& in, T* y, int threads) {
  const Convolution<T> c(in);
  const i64 strips = (c.images.tiles + c.strip - 1) / c.strip;
  bool failed = false;
#pragma omp parallel num_threads(threads) if (threads > 1 && strips > 1)
  {
    float* const scratch = kept.take(c.scratch());
    i64* const offsets = reinterpret_cast<i64*>(scratch);
    float* const own = scratch ? scratch + c.offset_floats() : nullptr;
    if (!scratch) {
#pragma omp atomic write
      failed = true;
    } else {
      c.images.find_inputs(offsets);
      std::memset(scratch + c.scratch() - c.ip, 0, c.ip * 4);
    }
#pragma omp for schedule(static)
    for (i64 s = 0; s < strips; ++s)
      if (scratch) c.run_strip(s * c.strip, own, offsets, y);
  }
  return failed ? OUT_OF_MEMORY : nullptr;
}

Status forward(const ConvolutionInputs& in, void* y, int threads) {
  if (in.B == 0 || in.O == 0) return nullptr;
  return in.dtype == DType::bfloat16 ? run(in, static_cast<uint16_t*>(y), threads) : run(in, static_cast<float*>(y), threads);
}

// --- Weights: for each group of outputs 36 planes [I, vectors * VL]
int64_t packed_size(int64_t outputs, int64_t inputs) { return POINTS * inputs * round_up(outputs, VL); }

// VL outputs from `first` on, those beyond `outputs` zero: the taps that they have for input i
inline void taps_of(const float* weight, i64 outputs, i64 inputs, i64 first, i64 i, bool reversed, double (&taps)[9][VL]) {
  for (int l = 0; l < VL; ++l) {
    const i64 o = first + l;
    const float* from = weight + (reversed ? i * outputs + o : o * inputs + i) * 9;
    for (int t = 0; t < 9; ++t) taps[t][l] = o < outputs ? from[reversed ? 8 - t : t] : 0.0;
  }
}

void pack(const float* weight, int64_t outputs, int64_t inputs, bool reversed, float* packed, int threads) {
  each_group(outputs, [&](i64 first, int vectors) {
    const i64 lanes = i64{vectors} * VL;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (i64 i = 0; i < inputs; ++i)
      for (i64 v = 0; v < lanes; v += VL) {
        double taps[9][VL], rows[3][SIDE][VL];
        taps_of(weight, outputs, inputs, first + v, i, reversed, taps);
        for (int y = 0; y < 3; ++y) transform_taps(taps[3 * y], taps[3 * y + 1], taps[3 * y + 2], rows[y]);
        for (int q = 0; q < SIDE; ++q) {
          double column[SIDE][VL];
          transform_taps(rows[0][q], rows[1][q], rows[2][q], column);
          for (int p = 0; p < SIDE; ++p) {
            float* to = packed + ((p * SIDE + q) * inputs + i) * lanes + v;
            for (int l = 0; l < VL; ++l) to[l] = static_cast<float>(column[p][l]);
          }
        }
      }
    packed += POINTS * inputs * lanes;
  });
}

}  // namespace

extern const ConvolutionCpu RDC_JOIN(convolution_, RDC_ISA);
const ConvolutionCpu RDC_JOIN(convolution_, RDC_ISA) = {packed_size, pack, forward};

}  // namespace rdc
