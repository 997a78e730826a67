// CPU kernel of the gradient of a 3 x 3 convolution's weight; compiled once for each instruction set (RDC_ISA = baseline, avx2, avx512, avx512bf16).
//
// The transpose of minimal filtering: with y = A^T ((G g) . (B^T d)) the gradient of g is G^T ((A dy) . (B^T d)). Panels of tiles of all images
// are transformed, inputs by B^T and gradients by A, to 36 planes each; their products [I, O] are summed over tiles, plane by plane, and G^T makes
// taps of the sums, once. Panels follow each other and planes are shared out, so that the result does not depend on threads.
#include "convolution.h"

#include "cpu_isa.h"
#include "products.h"
#include "tiles.h"

#define RDC_JOIN2(a, b) a##b
#define RDC_JOIN(a, b) RDC_JOIN2(a, b)

namespace rdc {
namespace {

constexpr int MOST_TILES = 48;            // of a panel
constexpr int LEAST_TILES = 12;
// The sum of a panel is added as a whole: one chain over all tiles would lose five times as much as PyTorch does.
constexpr i64 APART = 16;                 // floats between planes: they must not share the sets of a cache

template <typename T>
struct WeightGradient : ConvolutionPair {
  TiledImages<T> images;
  i64 ip, op, panel, input_plane, gradient_plane, sum_plane;

  explicit WeightGradient(const ConvolutionPair& in) : ConvolutionPair(in), images(in.B, in.H, in.W, in.I, in.doubled, in.x) {
    ip = round_up(I, VL), op = round_up(O, VL);
    const i64 fit = second_level_cache() * 6 / 5 / (POINTS * 4 * (ip + op));  // both transforms, about
    panel = fit < LEAST_TILES ? LEAST_TILES : fit > MOST_TILES ? MOST_TILES : fit;
    if (panel > images.tiles) panel = images.tiles;
    input_plane = panel * ip + APART, gradient_plane = panel * op + APART, sum_plane = I * op + APART;
  }
  i64 offset_floats() const { return round_up(2 * POINTS * images.of_image, 16); }  // an offset is two; what follows is aligned
  i64 scratch_floats() const { return offset_floats() + ip + POINTS * (input_plane + gradient_plane + sum_plane) + 16; }

  // A tile's gradients -> out [36] planes; zeros beyond the border
  template <int HIGH_POINTS, int WIDE_POINTS>
  void transform_gradients(const Place& at, float* out) const {
    constexpr int HIGH_OUT = HIGH_POINTS - 2, WIDE_OUT = WIDE_POINTS - 2;
    const T* const from = static_cast<const T*>(grad) + ((at.image * H + at.y) * W + at.x) * O;
    for (i64 o = 0; o < O; o += VL) {
      vf columns[WIDE_OUT][HIGH_POINTS];  // [x][point]
#pragma GCC unroll 6
      for (int u = 0; u < WIDE_OUT; ++u) {
        vf g[HIGH_OUT];
#pragma GCC unroll 6
        for (int v = 0; v < HIGH_OUT; ++v) g[v] = at.y + v < H && at.x + u < W ? load_some(from + (v * W + u) * O + o, O - o) : vf{};
        spread_gradients(g, columns[u]);
      }
#pragma GCC unroll 6
      for (int p = 0; p < HIGH_POINTS; ++p) {
        vf g[WIDE_OUT], points[WIDE_POINTS];
#pragma GCC unroll 6
        for (int u = 0; u < WIDE_OUT; ++u) g[u] = columns[u][p];
        spread_gradients(g, points);
#pragma GCC unroll 6
        for (int q = 0; q < WIDE_POINTS; ++q) store(out + (point<HIGH_POINTS>(p) * SIDE + point<WIDE_POINTS>(q)) * gradient_plane + o, points[q]);
      }
    }
  }

  void add_plane(const Strip<MOST_TILES>& s, int p, const float* inputs, const float* gradients, float* sums) const {
    const int begin = s.begin(p % SIDE), n = s.end(p / SIDE, p % SIDE) - begin;
    if (n == 0) return;
    const float *const a = inputs + p * input_plane + begin * ip, *const b = gradients + p * gradient_plane + begin * op;
    float* const out = sums + p * sum_plane;
    const int vectors = static_cast<int>(op / VL);
    for (int v = 0, wide; v < vectors; v += wide) {
      wide = part(vectors, v, MOST_VECTORS);
      for (i64 i = 0, rows; i < I; i += rows) {
        rows = part(static_cast<int>(I), static_cast<int>(i), rows_beside(wide));
        products_for<true>(static_cast<int>(rows), wide)(a + i, ip, b + v * VL, op, n, out + i * op + v * VL, op, true);
      }
    }
  }

  // The taps of input i and of VL outputs from o on
  void finish(const float* sums, i64 i, i64 o, float* weight, const i64* stride) const {
    double rows[SIDE][3][VL], taps[3][3][VL];
    for (int q = 0; q < SIDE; ++q) {
      double column[SIDE][VL];
      for (int p = 0; p < SIDE; ++p)
        for (int l = 0; l < VL; ++l) column[p][l] = sums[(p * SIDE + q) * sum_plane + i * op + o + l];
      transform_sums(column, rows[q]);
    }
    for (int y = 0; y < 3; ++y) {
      double row[SIDE][VL];
      for (int q = 0; q < SIDE; ++q) std::memcpy(row[q], rows[q][y], sizeof row[q]);
      transform_sums(row, taps[y]);
    }
    const int n = static_cast<int>(O - o < VL ? O - o : VL);
    for (int y = 0; y < 3; ++y)
      for (int x = 0; x < 3; ++x)
        for (int l = 0; l < n; ++l)
          weight[(o + l) * stride[0] + i * stride[1] + y * stride[2] + x * stride[3]] = static_cast<float>(factor * taps[y][x][l]);
  }

  void run(float* scratch, float* weight, const i64* stride, int threads) const {
    i64* const offsets = reinterpret_cast<i64*>(scratch);
    float *const none = scratch + offset_floats(), *const inputs = none + ip, *const gradients = inputs + POINTS * input_plane;
    float* const sums = gradients + POINTS * gradient_plane;
    std::memset(none, 0, ip * 4);
    std::memset(sums, 0, POINTS * sum_plane * 4);
    images.find_inputs(offsets);
    const T* const zeros = reinterpret_cast<const T*>(none);
    Strip<MOST_TILES> s;
    for (i64 begin = 0; begin < images.tiles; begin += panel) {
      images.find(s, begin, panel);
#pragma omp parallel num_threads(threads) if (threads > 1)
      {
#pragma omp for schedule(static)
        for (int t = 0; t < s.count(); ++t)
          with_points(s.tiles[t].kind, [&](auto h, auto w) {
            images.template transform_tile<h(), w()>(s.tiles[t], offsets, zeros, input_plane, inputs + t * ip);
            transform_gradients<h(), w()>(s.tiles[t], gradients + t * op);
          });
#pragma omp for schedule(static)
        for (int p = 0; p < POINTS; ++p) add_plane(s, p, inputs, gradients, sums);
      }
    }
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (i64 i = 0; i < I; ++i)
      for (i64 o = 0; o < O; o += VL) finish(sums, i, o, weight, stride);
  }
};

int64_t scratch(const ConvolutionPair& in) { return WeightGradient<float>(in).scratch_floats(); }

void gradient(const ConvolutionPair& in, float* scratch, float* weight, const int64_t* stride, int threads) {
  if (in.dtype == DType::bfloat16) WeightGradient<uint16_t>(in).run(scratch, weight, stride, threads);
  else WeightGradient<float>(in).run(scratch, weight, stride, threads);
}

}  // namespace

extern const ConvolutionWeightCpu RDC_JOIN(convolution_weight_, RDC_ISA);
const ConvolutionWeightCpu RDC_JOIN(convolution_weight_, RDC_ISA) = {scratch, gradient};

}  // namespace rdc
