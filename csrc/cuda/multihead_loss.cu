// CUDA kernels of multihead_loss: implicit GEMM through shared memory, float32 FMA, no atomics (every sum has one order).
//
// Ran on an H200 (sm_90a, CUDA 13.0): right, and slow. 5 to 13 TFLOP/s; PyTorch's convolution in TF32 and torch.compile take 1/2 to 1/22
// of its time (docs/kernels.md), so that "auto" takes torch on a GPU. What it is good for: no prediction in memory, the same bits again,
// strict float32. A fast one needs tensor cores (wgmma). The emulation in tests/ops/cuda_emulation checks the logic without a GPU.
//
// One tile routine, multiply(): a block of 128 threads makes 64 x 32 outputs, each thread 4 x 4, over steps of 16 products.
//   predict          pixels x outputs, over (tap, channel)         -> squared errors (forward) or residuals r (backward)
//   features_grad    pixels x channels, over (tap, output)         -> gradient of h
//   weight_grad      outputs x channels for each tap, over (image, pixel), in slices of images that are summed afterwards
// The backward pass holds r for one block of 64 outputs and a bounded number of images at a time, never the whole prediction.
#include "../multihead_loss.h"

#include "launch.cuh"

namespace rdc {
namespace {

using i64 = int64_t;
using bf16 = __nv_bfloat16;

constexpr int THREADS = 128, TM = 64, TN = 32, TK = 16;  // a tile, and a step of its reduction
constexpr int BLOCK = 64;                                // outputs whose residuals exist at once
#ifndef RDC_RESIDUAL_BYTES
#define RDC_RESIDUAL_BYTES (256 << 20)  // bound on r; the emulation sets it so low that images come in several parts
#endif
constexpr int MOST_SLICES = 64;                          // of images, in the weight gradient

// float32 or bfloat16 memory, decided at run time (the same branch for every thread): half the code to compile and to ship.
struct Source {
  const void* p;
  bool half;
  __device__ float operator[](i64 i) const {
    return half ? __bfloat162float(static_cast<const bf16*>(p)[i]) : static_cast<const float*>(p)[i];
  }
  __host__ __device__ Source from(i64 i) const { return {static_cast<const char*>(p) + i * (half ? 2 : 4), half}; }
};
struct Sink {
  void* p;
  bool half;
  __device__ void set(i64 i, float x) const {
    if (half) static_cast<bf16*>(p)[i] = __float2bfloat16(x);
    else static_cast<float*>(p)[i] = x;
  }
  __host__ __device__ Sink from(i64 i) const { return {static_cast<char*>(p) + i * (half ? 2 : 4), half}; }
};

// What the kernels need to know; passed by value.
struct Sizes {
  int T, c, H, W, K, C, KC, pixels;
  i64 hb, hc, hy, hx;  // strides of h
};

struct Shared {
  float a[TK][TM + 4], b[TK][TN + 4];
  int y[TM], x[TM];  // the tile's pixels; y far outside where there is none
};

// acc[i][j] += sum_{step, k} a(step, k, 4*ty + i) * b(step, k, 4*tx + j). fast_k: neighbouring threads read neighbouring k.
template <typename A, typename B>
__device__ void multiply(Shared& s, int steps, A a, bool a_fast_k, B b, bool b_fast_k, float (&acc)[4][4]) {
  const int me = threadIdx.x, tx = me % 8, ty = me / 8;
  for (int step = 0; step < steps; ++step) {
    for (int e = me; e < TK * TM; e += THREADS) {
      const int k = a_fast_k ? e % TK : e / TM, m = a_fast_k ? e / TK : e % TM;
      s.a[k][m] = a(step, k, m);
    }
    for (int e = me; e < TK * TN; e += THREADS) {
      const int k = b_fast_k ? e % TK : e / TN, n = b_fast_k ? e / TK : e % TN;
      s.b[k][n] = b(step, k, n);
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < TK; ++k) {
      float av[4], bv[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) av[i] = s.a[k][4 * ty + i];
#pragma unroll
      for (int j = 0; j < 4; ++j) bv[j] = s.b[k][4 * tx + j];
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) acc[i][j] = fmaf(av[i], bv[j], acc[i][j]);
    }
    __syncthreads();
  }
}

__device__ inline void locate_pixels(Shared& s, const Sizes& z, int first) {
  __syncthreads();
  for (int m = threadIdx.x; m < TM; m += THREADS) {
    const int q = first + m;
    s.y[m] = q < z.pixels ? q / z.W : -4;  // -4 + tap is still outside
    s.x[m] = q % z.W;
  }
  __syncthreads();
}

__device__ inline bool inside(const Sizes& z, int y, int x) { return y >= 0 && y < z.H && x >= 0 && x < z.W; }

// acc = prediction without bias for the located pixels and outputs first .. first + TN - 1 (below `end`)
__device__ void predict(Shared& s, const Sizes& z, Source h, Source weight, int first, int end, float (&acc)[4][4]) {
  const int chunks = (z.c + TK - 1) / TK;
  auto features = [&](int step, int k, int m) {
    const int tap = step / chunks, i = step % chunks * TK + k, y = s.y[m] + tap / 3 - 1, x = s.x[m] + tap % 3 - 1;
    return i < z.c && inside(z, y, x) ? h[i * z.hc + y * z.hy + x * z.hx] : 0.f;
  };
  auto head = [&](int step, int k, int n) {
    const int tap = step / chunks, i = step % chunks * TK + k, o = first + n;
    return i < z.c && o < end ? weight[(static_cast<i64>(o) * z.c + i) * 9 + tap] : 0.f;
  };
  multiply(s, 9 * chunks, features, z.hc == 1, head, true, acc);
}

// sums [rows, KC]: squared error of each image and output. grid (rows, outputs / TN)
__global__ void __launch_bounds__(THREADS) squares_kernel(Sizes z, Source h, Source weight, Source bias, Source target, float* sums) {
  __shared__ Shared s;
  __shared__ double part[16][TN];  // sums of squares only grow: in float32 their rounding would add up
  const i64 b = blockIdx.x;
  const int first = blockIdx.y * TN, tx = threadIdx.x % 8, ty = threadIdx.x / 8;
  double total[4] = {};
  for (int p0 = 0; p0 < z.pixels; p0 += TM) {
    locate_pixels(s, z, p0);
    float acc[4][4] = {};
    predict(s, z, h.from(b * z.hb), weight, first, z.KC, acc);
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j) {
        const int q = p0 + 4 * ty + i, o = first + 4 * tx + j;
        if (q >= z.pixels || o >= z.KC) continue;
        const float d = acc[i][j] + bias[o] - target[(b * z.C + o % z.C) * z.pixels + q];
        total[j] += static_cast<double>(d) * d;
      }
  }
  for (int j = 0; j < 4; ++j) part[ty][4 * tx + j] = total[j];
  __syncthreads();
  if (threadIdx.x < TN && first + static_cast<int>(threadIdx.x) < z.KC) {
    double sum = 0;
    for (int i = 0; i < 16; ++i) sum += part[i][threadIdx.x];
    sums[b * z.KC + first + threadIdx.x] = static_cast<float>(sum);
  }
}

// loss [N, K] from sums [N*T, KC]
__global__ void __launch_bounds__(THREADS) loss_kernel(Sizes z, i64 count, const float* sums, const float* level_weight, float* loss) {
  const i64 at = static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x;
  if (at >= count) return;
  const i64 n = at / z.K;
  const int k = at % z.K;
  double total = 0;
  for (int t = 0; t < z.T; ++t) {
    double level = 0;
    for (int j = 0; j < z.C; ++j) level += sums[(n * z.T + t) * z.KC + k * z.C + j];
    total += level_weight[t] * level;
  }
  loss[at] = static_cast<float>(total);
}

// level_row [rows] = sum_k grad_loss[n, k] * squares
__global__ void __launch_bounds__(THREADS) level_kernel(Sizes z, i64 rows, const float* sums, const float* grad_loss, float* level_row) {
  const i64 b = static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x;
  if (b >= rows) return;
  double total = 0;
  for (int o = 0; o < z.KC; ++o) total += static_cast<double>(grad_loss[b / z.T * z.K + o / z.C]) * sums[b * z.KC + o];
  level_row[b] = static_cast<float>(total);
}

// r [rows, BLOCK, pixels] of outputs block .. block + BLOCK - 1 and images row0 ..: zeros beyond KC. grid (rows, BLOCK / TN)
__global__ void __launch_bounds__(THREADS) residual_kernel(Sizes z, Source h, Source weight, Source bias, Source target,
                                                           const float* level_weight, const float* grad_loss, i64 row0, int block, float* r) {
  __shared__ Shared s;
  const i64 b = row0 + blockIdx.x;
  const int first = block + blockIdx.y * TN, tx = threadIdx.x % 8, ty = threadIdx.x / 8;
  const float twice = 2.f * level_weight[b % z.T];
  for (int p0 = 0; p0 < z.pixels; p0 += TM) {
    locate_pixels(s, z, p0);
    float acc[4][4] = {};
    predict(s, z, h.from(b * z.hb), weight, first, z.KC, acc);
    for (int j = 0; j < 4; ++j)
      for (int i = 0; i < 4; ++i) {
        const int q = p0 + 4 * ty + i, o = first + 4 * tx + j;
        if (q >= z.pixels) continue;
        float d = 0;
        if (o < z.KC)
          d = twice * grad_loss[b / z.T * z.K + o / z.C] *
              (acc[i][j] + bias[o] - target[(b * z.C + o % z.C) * z.pixels + q]);
        r[(static_cast<i64>(blockIdx.x) * BLOCK + o - block) * z.pixels + q] = d;
      }
  }
}

// grad_h [rows, pixels, c] float32 (+)= r convolved with the flipped weight. grid (rows, channels / TN)
__global__ void __launch_bounds__(THREADS) features_grad_kernel(Sizes z, const float* r, Source weight, int block, bool add, float* grad_h) {
  __shared__ Shared s;
  const i64 b = blockIdx.x;
  const int first = blockIdx.y * TN, tx = threadIdx.x % 8, ty = threadIdx.x / 8, chunks = BLOCK / TK;
  const float* mine = r + b * BLOCK * z.pixels;
  for (int p0 = 0; p0 < z.pixels; p0 += TM) {
    locate_pixels(s, z, p0);
    float acc[4][4] = {};
    auto residuals = [&](int step, int k, int m) {
      const int tap = step / chunks, o = step % chunks * TK + k, y = s.y[m] + 1 - tap / 3, x = s.x[m] + 1 - tap % 3;
      return inside(z, y, x) ? mine[o * z.pixels + y * z.W + x] : 0.f;
    };
    auto head = [&](int step, int k, int n) {
      const int tap = step / chunks, o = block + step % chunks * TK + k, i = first + n;
      return o < z.KC && i < z.c ? weight[(static_cast<i64>(o) * z.c + i) * 9 + tap] : 0.f;
    };
    multiply(s, 9 * chunks, residuals, false, head, false, acc);
    for (int i = 0; i < 4; ++i)
      for (int j = 0; j < 4; ++j) {
        const int q = p0 + 4 * ty + i, ch = first + 4 * tx + j;
        if (q >= z.pixels || ch >= z.c) continue;
        float* to = grad_h + (b * z.pixels + q) * z.c + ch;
        *to = add ? *to + acc[i][j] : acc[i][j];
      }
  }
}

// parts [slices, BLOCK, 9, c]: sum over a slice's images and all pixels of r * shifted h. grid (slices, channels / TN, 9 taps)
__global__ void __launch_bounds__(THREADS) weight_grad_kernel(Sizes z, const float* r, Source h, i64 rows, float* parts) {
  __shared__ Shared s;
  const i64 slice = blockIdx.x, slices = gridDim.x, begin = rows * slice / slices, end = rows * (slice + 1) / slices;
  const int first = blockIdx.y * TN, tap = blockIdx.z, tx = threadIdx.x % 8, ty = threadIdx.x / 8;
  const int chunks = (z.pixels + TK - 1) / TK;
  float acc[4][4] = {};
  auto residuals = [&](int step, int k, int m) {
    const int q = step % chunks * TK + k;
    return q < z.pixels ? r[((begin + step / chunks) * BLOCK + m) * z.pixels + q] : 0.f;
  };
  auto features = [&](int step, int k, int n) {
    const int q = step % chunks * TK + k, i = first + n, y = q / z.W + tap / 3 - 1, x = q % z.W + tap % 3 - 1;
    const bool real = q < z.pixels && i < z.c && inside(z, y, x);
    return real ? h[(begin + step / chunks) * z.hb + i * z.hc + y * z.hy + x * z.hx] : 0.f;
  };
  multiply(s, static_cast<int>(end - begin) * chunks, residuals, true, features, z.hc != 1, acc);
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) {
      const int m = 4 * ty + i, ch = first + 4 * tx + j;
      if (ch < z.c) parts[((slice * BLOCK + m) * 9 + tap) * z.c + ch] = acc[i][j];
    }
}

// total [i] (+)= sum over parts, in their order
__global__ void __launch_bounds__(THREADS) add_parts_kernel(i64 count, int parts, i64 stride, const float* from, bool add, float* total) {
  const i64 at = static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x;
  if (at >= count) return;
  float sum = add ? total[at] : 0.f;
  for (int p = 0; p < parts; ++p) sum += from[p * stride + at];
  total[at] = sum;
}

// total [o] (+)= sum over images and pixels of r. One block of threads for each output.
__global__ void __launch_bounds__(THREADS) bias_grad_kernel(Sizes z, const float* r, i64 rows, bool add, float* total) {
  __shared__ double part[THREADS];
  const int o = blockIdx.x, me = threadIdx.x;
  double sum = 0;
  for (i64 b = 0; b < rows; ++b)
    for (int q = me; q < z.pixels; q += THREADS) sum += r[(b * BLOCK + o) * z.pixels + q];
  part[me] = sum;
  __syncthreads();
  if (me == 0) {
    double all = add ? total[o] : 0.f;
    for (int i = 0; i < THREADS; ++i) all += part[i];
    total[o] = static_cast<float>(all);
  }
}

// grad_target [rows, C, pixels] float32 (+)= -sum of r over the block's outputs of that channel
__global__ void __launch_bounds__(THREADS) target_grad_kernel(Sizes z, i64 count, const float* r, int block, bool add, float* total) {
  const i64 at = static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x;
  if (at >= count) return;
  const i64 b = at / (static_cast<i64>(z.C) * z.pixels);
  const int j = at / z.pixels % z.C, q = at % z.pixels;
  float sum = add ? total[at] : 0.f;
  for (int o = 0; o < BLOCK && block + o < z.KC; ++o)
    if ((block + o) % z.C == j) sum -= r[(b * BLOCK + o) * z.pixels + q];
  total[at] = sum;
}

// out (strided [rows, c, H, W]) <- in [rows, pixels, c] float32
__global__ void __launch_bounds__(THREADS) write_features_kernel(Sizes z, i64 count, const float* in, Sink out, i64 sb, i64 sc, i64 sy, i64 sx) {
  const i64 at = static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x;
  if (at >= count) return;
  const i64 i = at % z.c, q = at / z.c % z.pixels, b = at / z.c / z.pixels;
  out.set(b * sb + i * sc + q / z.W * sy + q % z.W * sx, in[at]);
}

// out [KC, c, 9] <- in [KC, 9, c] float32
__global__ void __launch_bounds__(THREADS) write_weight_kernel(Sizes z, i64 count, const float* in, Sink out) {
  const i64 at = static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x;
  if (at >= count) return;
  const i64 i = at % z.c, tap = at / z.c % 9, o = at / z.c / 9;
  out.set((o * z.c + i) * 9 + tap, in[at]);
}

__global__ void __launch_bounds__(THREADS) write_kernel(i64 count, const float* in, Sink out) {
  const i64 at = static_cast<i64>(blockIdx.x) * THREADS + threadIdx.x;
  if (at < count) out.set(at, in[at]);
}

// --- Host --------------------------------------------------------------------------------------------------------------------------

inline unsigned blocks_for(i64 count) { return static_cast<unsigned>((count + THREADS - 1) / THREADS); }
inline unsigned tiles(i64 n) { return static_cast<unsigned>((n + TN - 1) / TN); }

Source source(const MultiheadLossInputs& in, const void* p) { return {p, in.dtype == DType::bfloat16}; }
Sink sink(const MultiheadLossInputs& in, void* p) { return {p, in.dtype == DType::bfloat16}; }

Sizes sizes(const MultiheadLossInputs& in) {
  const auto& s = in.shape;
  return {static_cast<int>(s.T), static_cast<int>(s.c), static_cast<int>(s.H), static_cast<int>(s.W), static_cast<int>(s.K),
          static_cast<int>(s.C), static_cast<int>(s.outputs()), static_cast<int>(s.H * s.W),
          in.h_stride[0], in.h_stride[1], in.h_stride[2], in.h_stride[3]};
}

// The caller's scratch, cut up. Depends on the shape alone, as does the order of every sum.
struct Scratch {
  i64 rows, slices, sums, r, grad_h, parts, weight, bias, target, floats = 0;
  i64 take(i64 n) { i64 at = floats; floats += (n + 31) / 32 * 32; return at; }
  Scratch(const MultiheadLossShape& s, bool backward) {
    const i64 B = s.rows(), pixels = s.H * s.W, most = RDC_RESIDUAL_BYTES / (4 * BLOCK * pixels);
    rows = most < 1 ? 1 : most < B ? most : B;
    slices = rows < MOST_SLICES ? rows : MOST_SLICES;
    sums = take(B * s.outputs());
    if (!backward) return;
    r = take(rows * BLOCK * pixels);
    grad_h = take(rows * pixels * s.c);
    parts = take(slices * BLOCK * 9 * s.c);
    weight = take(s.outputs() * 9 * s.c);
    bias = take(s.outputs());
    target = take(rows * s.C * pixels);
  }
};

void forward(const MultiheadLossInputs& in, float* loss, float* scratch, void* stream) {
  const Sizes z = sizes(in);
  const i64 B = in.shape.rows(), count = in.shape.N * z.K;
  launch(squares_kernel, dim3(static_cast<unsigned>(B), tiles(z.KC)), THREADS, stream, z, source(in, in.h),
         source(in, in.weight), source(in, in.bias), source(in, in.target), scratch);
  launch(loss_kernel, dim3(blocks_for(count)), THREADS, stream, z, count, static_cast<const float*>(scratch), in.level_weight, loss);
}

// Everything that one block of outputs adds, for images row0 .. row0 + rows - 1.
void backward_block(const MultiheadLossInputs& in, const MultiheadLossGradients& out, const Scratch& at, float* scratch, i64 row0, i64 rows,
                    int block, void* stream) {
  const Sizes z = sizes(in);
  const Source h = source(in, in.h), weight = source(in, in.weight);
  const int count = z.KC - block < BLOCK ? z.KC - block : BLOCK;
  const bool later_rows = row0 > 0, later_block = block > 0;
  const unsigned images = static_cast<unsigned>(rows);
  float* r = scratch + at.r;
  const float* cr = r;
  launch(residual_kernel, dim3(images, BLOCK / TN), THREADS, stream, z, h, weight, source(in, in.bias),
         source(in, in.target), in.level_weight, out.grad_loss, row0, block, r);
  if (out.h) launch(features_grad_kernel, dim3(images, tiles(z.c)), THREADS, stream, z, cr, weight, block, later_block, scratch + at.grad_h);
  if (out.weight) {
    const unsigned slices = static_cast<unsigned>(rows < at.slices ? rows : at.slices);
    const i64 part = static_cast<i64>(BLOCK) * 9 * z.c, used = static_cast<i64>(count) * 9 * z.c;
    launch(weight_grad_kernel, dim3(slices, tiles(z.c), 9), THREADS, stream, z, cr, h.from(row0 * z.hb), rows, scratch + at.parts);
    launch(add_parts_kernel, dim3(blocks_for(used)), THREADS, stream, used, static_cast<int>(slices), part,
           static_cast<const float*>(scratch + at.parts), later_rows, scratch + at.weight + static_cast<i64>(block) * 9 * z.c);
  }
  if (out.bias) launch(bias_grad_kernel, dim3(count), THREADS, stream, z, cr, rows, later_rows, scratch + at.bias + block);
  if (out.target) {
    const i64 n = rows * z.C * z.pixels;
    launch(target_grad_kernel, dim3(blocks_for(n)), THREADS, stream, z, n, cr, block, later_block, scratch + at.target);
  }
}

void backward(const MultiheadLossInputs& in, const MultiheadLossGradients& out, float* scratch, void* stream) {
  const Sizes z = sizes(in);
  const Scratch at(in.shape, true);
  const i64 B = in.shape.rows(), image_targets = static_cast<i64>(z.C) * z.pixels, image_features = static_cast<i64>(z.c) * z.pixels;
  if (out.level_row) {
    launch(squares_kernel, dim3(static_cast<unsigned>(B), tiles(z.KC)), THREADS, stream, z, source(in, in.h),
           source(in, in.weight), source(in, in.bias), source(in, in.target), scratch + at.sums);
    launch(level_kernel, dim3(blocks_for(B)), THREADS, stream, z, B, static_cast<const float*>(scratch + at.sums), out.grad_loss, out.level_row);
  }
  if (!(out.h || out.weight || out.bias || out.target)) return;
  for (i64 row0 = 0; row0 < B; row0 += at.rows) {
    const i64 rows = B - row0 < at.rows ? B - row0 : at.rows;
    for (int block = 0; block < z.KC; block += BLOCK) backward_block(in, out, at, scratch, row0, rows, block, stream);
    if (out.h)
      launch(write_features_kernel, dim3(blocks_for(rows * image_features)), THREADS, stream, z, rows * image_features,
             static_cast<const float*>(scratch + at.grad_h), sink(in, out.h).from(row0 * out.h_stride[0]), out.h_stride[0],
             out.h_stride[1], out.h_stride[2], out.h_stride[3]);
    if (out.target)
      launch(write_kernel, dim3(blocks_for(rows * image_targets)), THREADS, stream, rows * image_targets,
             static_cast<const float*>(scratch + at.target), sink(in, out.target).from(row0 * image_targets));
  }
  const i64 weights = static_cast<i64>(z.KC) * 9 * z.c;
  if (out.weight)
    launch(write_weight_kernel, dim3(blocks_for(weights)), THREADS, stream, z, weights, static_cast<const float*>(scratch + at.weight),
           sink(in, out.weight));
  if (out.bias)
    launch(write_kernel, dim3(blocks_for(z.KC)), THREADS, stream, static_cast<i64>(z.KC), static_cast<const float*>(scratch + at.bias),
           sink(in, out.bias));
}

Status refuse(const MultiheadLossShape& s) {
  const i64 most = 1LL << 31;
  if (s.rows() >= most || s.outputs() * s.H * s.W >= most || s.outputs() > 65535 * TN || s.c > 65535 * TN)
    return "the CUDA kernels take fewer than 2^31 images and fewer than 2^31 predicted values an image";
  return nullptr;
}

}  // namespace

i64 multihead_loss_cuda_scratch(const MultiheadLossShape& shape, bool backward) { return Scratch(shape, backward).floats; }

Status multihead_loss_cuda_forward(const MultiheadLossInputs& in, float* loss, float* scratch, int device, void* stream) {
  if (Status status = refuse(in.shape)) return status;
  DeviceScope scope(device);
  forward(in, loss, scratch, stream);
  return launch_error();
}

Status multihead_loss_cuda_backward(const MultiheadLossInputs& in, const MultiheadLossGradients& out, float* scratch, int device,
                                    void* stream) {
  if (Status status = refuse(in.shape)) return status;
  DeviceScope scope(device);
  backward(in, out, scratch, stream);
  return launch_error();
}

}  // namespace rdc
