// CPU kernels of multihead_loss; compiled three times (RDC_ISA = baseline, avx2, avx512).
//
// One image and one block of at most BLOCK outputs at a time:
//   forward   pad h -> [H+2, W+2, c]; residual line by line; squares summed in float32 along a line, in float64 over lines.
//   backward  residuals again, scaled, -> r [H+2, W+2, block]; features: r (*) flipped weight; weight: r^T h for each tap.
// Work is split over images, and for weight gradients over groups of images whose number depends on the shape alone, so that
// results do not depend on the number of threads.
#include "multihead_loss.h"

#include <cstdlib>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "tile.h"

#define RDC_JOIN2(a, b) a##b
#define RDC_JOIN(a, b) RDC_JOIN2(a, b)

namespace rdc {
namespace {

constexpr int BLOCK = 64;           // outputs whose residuals exist at once; a multiple of every VL
constexpr i64 GROUP_BYTES = 64 << 20;  // partial sums of the weight gradient, all groups together

inline i64 round_up(i64 n, i64 m) { return (n + m - 1) / m * m; }
inline i64 smaller(i64 a, i64 b) { return a < b ? a : b; }
inline i64 larger(i64 a, i64 b) { return a > b ? a : b; }

// Shape with everything derived from it.
struct Plan : MultiheadLossShape {
  i64 B, KC, cp, W2, pixels, padded, blocks, TL;
  explicit Plan(const MultiheadLossShape& s) : MultiheadLossShape(s) {
    B = rows();
    KC = outputs();
    cp = round_up(c, VL);  // channels, padded with zeros to full vectors
    W2 = W + 2;
    pixels = H * W;
    padded = (H + 2) * W2;
    blocks = (KC + BLOCK - 1) / BLOCK;
    TL = VL + C - 1;  // a pixel's target, repeated so that VL lanes can start at any of the C channels
  }
};

struct Block {  // outputs [first, first + count); the first `vectors` * VL of them as vectors, the rest as dots
  i64 first;
  int count, width, vectors, dotted;  // width: count padded to full vectors
  Block(const Plan& p, i64 index) {
    first = index * BLOCK;
    count = static_cast<int>(smaller(BLOCK, p.KC - first));
    width = static_cast<int>(round_up(count, VL));
    vectors = count / VL;
    dotted = count % VL;
    if (dotted * 4 > VL * 3) { ++vectors; dotted = 0; }
  }
};

// One allocation for everything; sizes first, then pointers.
struct Memory {
  char* base = nullptr;
  ~Memory() { std::free(base); }
  bool allocate(i64 floats) {
    void* p = nullptr;
    if (posix_memalign(&p, 64, static_cast<size_t>(larger(floats, 16)) * 4)) return false;
    base = static_cast<char*>(p);
    return true;
  }
  float* at(i64 floats) const { return reinterpret_cast<float*>(base) + floats; }
};
struct Layout {
  i64 used = 0;
  i64 take(i64 floats) { i64 at = used; used += round_up(floats, 16); return at; }
};

// --- Packing -----------------------------------------------------------------------------------------------------------------------

// One image [c, H, W], strided -> [H+2, W+2, cp] float32, zeros around and in the channels beyond c.
template <typename T>
void pad_image(const Plan& p, const T* h, const i64* stride, float* out) {
  const i64 sc = stride[1], sy = stride[2], sx = stride[3];
  for (i64 y = 0; y < p.H + 2; ++y) {  // the border
    float* row = out + y * p.W2 * p.cp;
    if (y == 0 || y == p.H + 1) {
      std::memset(row, 0, p.W2 * p.cp * 4);
    } else {
      std::memset(row, 0, p.cp * 4);
      std::memset(row + (p.W2 - 1) * p.cp, 0, p.cp * 4);
    }
  }
  auto at = [&](i64 y, i64 x) { return out + ((y + 1) * p.W2 + x + 1) * p.cp; };
  if (sc == 1) {  // channels last
    for (i64 y = 0; y < p.H; ++y)
      for (i64 x = 0; x < p.W; ++x) {
        const T* from = h + y * sy + x * sx;
        float* to = at(y, x);
        i64 i = 0;
        for (; i + VL <= p.c; i += VL) store(to + i, load_float(from + i));
        for (; i < p.cp; ++i) to[i] = i < p.c ? to_float(from[i]) : 0.f;
      }
    return;
  }
  i64 fast_pixels = sx == 1 && sy == p.W ? p.pixels / VL * VL : 0, fast_channels = p.c / VL * VL;
  for (i64 i = 0; i < fast_channels; i += VL)
    for (i64 q = 0; q < fast_pixels; q += VL) {
      vf v[VL];
      for (int l = 0; l < VL; ++l) v[l] = load_float(h + (i + l) * sc + q);
      transpose(v);
      for (int l = 0; l < VL; ++l) store(at((q + l) / p.W, (q + l) % p.W) + i, v[l]);
    }
  for (i64 q = 0; q < p.pixels; ++q) {
    i64 y = q / p.W, x = q % p.W;
    float* to = at(y, x);
    for (i64 i = q < fast_pixels ? fast_channels : 0; i < p.cp; ++i) to[i] = i < p.c ? to_float(h[i * sc + y * sy + x * sx]) : 0.f;
  }
}

// The inverse, without border: [H*W, cp] float32 -> [c, H, W], strided.
template <typename T>
void unpack_image(const Plan& p, const float* in, T* out, const i64* stride) {
  const i64 sc = stride[1], sy = stride[2], sx = stride[3];
  i64 done_pixels = 0, done_channels = 0;
  if (sizeof(T) == 4 && sx == 1 && sy == p.W) {
    done_pixels = p.pixels / VL * VL;
    done_channels = p.c / VL * VL;
    for (i64 i = 0; i < done_channels; i += VL)
      for (i64 q = 0; q < done_pixels; q += VL) {
        vf v[VL];
        for (int l = 0; l < VL; ++l) v[l] = load(in + (q + l) * p.cp + i);
        transpose(v);
        for (int l = 0; l < VL; ++l) store(reinterpret_cast<float*>(out) + (i + l) * sc + q, v[l]);
      }
  }
  for (i64 q = 0; q < p.pixels; ++q) {
    T* to = out + q / p.W * sy + q % p.W * sx;
    for (i64 i = q < done_pixels ? done_channels : 0; i < p.c; ++i) assign(to[i * sc], in[q * p.cp + i]);
  }
}

// target [C, H, W] -> [H*W, TL], entry l being channel l % C.
template <typename T>
void spread_target(const Plan& p, const T* target, float* out) {
  if (p.C == 1) {
    for (i64 q = 0; q < p.pixels; ++q) store(out + q * VL, vf{} + to_float(target[q]));
    return;
  }
  for (i64 q = 0; q < p.pixels; ++q)
    for (i64 l = 0, j = 0; l < p.TL; ++l, j = j + 1 == p.C ? 0 : j + 1) out[q * p.TL + l] = to_float(target[j * p.pixels + q]);
}

// Weight in the three orders that the tiles read.
struct Weights {
  float* bias;     // [blocks * BLOCK]
  float* by_dot;   // [KC, 9, cp]
  float* by_lane;  // [blocks * BLOCK / VL, 9 * cp, VL]                       (forward)
  float* flipped;  // for each block: [9 (reversed), count, cp]               (gradient of the features), or null
};

template <typename T>
void pack_weight(const Plan& p, const T* weight, const T* bias, const Weights& w, int threads) {
  const i64 lanes = p.blocks * BLOCK / VL;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 g = 0; g < lanes; ++g)
    for (i64 lane = 0; lane < VL; ++lane) {
      const i64 o = g * VL + lane;
      float* packed = w.by_lane + g * 9 * p.cp * VL + lane;
      if (o >= p.KC) {
        w.bias[o] = 0.f;
        for (i64 j = 0; j < 9 * p.cp; ++j) packed[j * VL] = 0.f;
        continue;
      }
      w.bias[o] = to_float(bias[o]);
      float* row = w.by_dot + o * 9 * p.cp;
      for (i64 tap = 0; tap < 9; ++tap)
        for (i64 i = 0; i < p.cp; ++i) row[tap * p.cp + i] = i < p.c ? to_float(weight[(o * p.c + i) * 9 + tap]) : 0.f;
      for (i64 j = 0; j < 9 * p.cp; ++j) packed[j * VL] = row[j];
      if (!w.flipped) continue;
      Block block(p, o / BLOCK);
      for (i64 tap = 0; tap < 9; ++tap)
        std::memcpy(w.flipped + block.first * 9 * p.cp + ((8 - tap) * block.count + (o - block.first)) * p.cp, row + tap * p.cp, p.cp * 4);
    }
}

// --- One line of an image ----------------------------------------------------------------------------------------------------------

// Head convolution without bias: line [W, stride], the block's outputs of image row y.
void predict_line(const Plan& p, const Weights& w, const Block& block, const float* padded, i64 y, float* line, i64 stride) {
  const float* a = padded + y * p.W2 * p.cp;  // the taps of one kernel row are contiguous: [3, cp]
  const int inner = static_cast<int>(3 * p.cp), width = static_cast<int>(p.W);
  if (block.vectors) {
    Walk wa{a, p.cp, p.W2 * p.cp, 0, 1};
    Walk wb{w.by_lane + block.first / VL * 9 * p.cp * VL, 9 * p.cp * VL, 3 * p.cp * VL, 0, VL};
    product(wa, wb, {3, 1, inner}, width, block.vectors, line, stride, false);
  }
  if (block.dotted) {
    const i64 first = block.first + block.vectors * VL;
    dots(a, p.cp, p.W2 * p.cp, w.by_dot + first * 9 * p.cp, 9 * p.cp, 3 * p.cp, 3, inner, width, block.dotted, line + block.vectors * VL, stride);
  }
}

// sums[o] += sum over the line of (line + bias - target)^2; float32 along the line, float64 beyond it.
void add_squares(const Plan& p, const Weights& w, const Block& block, const float* line, i64 stride, const float* targets, double* sums) {
  for (int v = 0; v * VL < block.width; ++v) {
    const vf bias = load(w.bias + block.first + v * VL);
    const float* t = targets + (block.first + v * VL) % p.C;
    vf even = {}, odd = {};
    i64 x = 0;
    for (; x + 2 <= p.W; x += 2) {
      vf d0 = load(line + x * stride + v * VL) + bias - load(t + x * p.TL);
      vf d1 = load(line + (x + 1) * stride + v * VL) + bias - load(t + (x + 1) * p.TL);
      even += d0 * d0;
      odd += d1 * d1;
    }
    if (x < p.W) {
      vf d = load(line + x * stride + v * VL) + bias - load(t + x * p.TL);
      even += d * d;
    }
    even += odd;
    for (int l = 0; l < VL && v * VL + l < block.count; ++l) sums[v * VL + l] += even[l];
  }
}

struct LineGradients {  // what one line adds to; null where not wanted
  float* bias;          // [width]
  float* targets;       // [W, TL] of this line: minus the sum of r over outputs
};

// line <- scale * (line + bias - target), and the sums that need nothing else.
void scale_line(const Plan& p, const Weights& w, const Block& block, float* line, i64 stride, const float* targets, const float* scale,
                LineGradients out) {
  for (int v = 0; v * VL < block.width; ++v) {
    const vf bias = load(w.bias + block.first + v * VL), s = load(scale + v * VL);
    const i64 phase = (block.first + v * VL) % p.C;
    vf sum = {};
    for (i64 x = 0; x < p.W; ++x) {
      float* at = line + x * stride + v * VL;
      const vf r = s * (load(at) + bias - load(targets + x * p.TL + phase));
      store(at, r);
      sum += r;
      if (out.targets) {
        float* t = out.targets + x * p.TL + phase;
        store(t, load(t) - r);
      }
    }
    if (out.bias) store(out.bias + v * VL, load(out.bias + v * VL) + sum);
  }
}

// --- Forward -----------------------------------------------------------------------------------------------------------------------

template <typename T>
Status forward(const MultiheadLossInputs& in, float* loss, int threads) {
  const Plan p(in.shape);
  if (p.B == 0 || p.K == 0) return nullptr;
  const i64 slices = larger(1, smaller(p.blocks, (threads + p.B - 1) / p.B));  // few images: share the outputs out, too
  threads = static_cast<int>(larger(1, smaller(threads, p.B * slices)));

  Layout size;
  const i64 bias = size.take(p.blocks * BLOCK), by_dot = size.take(p.KC * 9 * p.cp), by_lane = size.take(p.blocks * BLOCK * 9 * p.cp);
  const i64 row_sums = size.take(p.B * p.KC * 2);  // float64 [B, KC]
  Layout own;
  const i64 padded = own.take(p.padded * p.cp), targets = own.take(p.pixels * p.TL), line = own.take(p.W * BLOCK);
  const i64 each = own.used, base = size.take(each * threads);
  Memory memory;
  if (!memory.allocate(size.used)) return "out of memory";
  const Weights w{memory.at(bias), memory.at(by_dot), memory.at(by_lane), nullptr};
  pack_weight(p, static_cast<const T*>(in.weight), static_cast<const T*>(in.bias), w, threads);
  double* sums = reinterpret_cast<double*>(memory.at(row_sums));

#pragma omp parallel num_threads(threads)
  {
    int me = 0;
#ifdef _OPENMP
    me = omp_get_thread_num();
#endif
    float* mine = memory.at(base + me * each);
#pragma omp for schedule(dynamic)
    for (i64 item = 0; item < p.B * slices; ++item) {
      const i64 b = item / slices, slice = item % slices;
      pad_image(p, static_cast<const T*>(in.h) + b * in.h_stride[0], in.h_stride, mine + padded);
      spread_target(p, static_cast<const T*>(in.target) + b * p.C * p.pixels, mine + targets);
      for (i64 index = p.blocks * slice / slices; index < p.blocks * (slice + 1) / slices; ++index) {
        const Block block(p, index);
        double* s = sums + b * p.KC + block.first;
        for (int o = 0; o < block.count; ++o) s[o] = 0;
        for (i64 y = 0; y < p.H; ++y) {
          predict_line(p, w, block, mine + padded, y, mine + line, BLOCK);
          add_squares(p, w, block, mine + line, BLOCK, mine + targets + y * p.W * p.TL, s);
        }
      }
    }
  }
  for (i64 n = 0; n < p.N; ++n)
    for (i64 k = 0; k < p.K; ++k) {
      double total = 0;
      for (i64 t = 0; t < p.T; ++t) {
        const double* s = sums + (n * p.T + t) * p.KC + k * p.C;
        double level = 0;
        for (i64 j = 0; j < p.C; ++j) level += s[j];
        total += in.level_weight[t] * level;
      }
      loss[n * p.K + k] = static_cast<float>(total);
    }
  return nullptr;
}

// --- Backward ----------------------------------------------------------------------------------------------------------------------

struct Scratch {  // one thread's
  float *padded, *targets, *grad_targets, *residual, *grad_h, *scale;
  double* squares;
};

// r [H+2, W+2, width]: the scaled residuals of one block, zero around.
void residual_block(const Plan& p, const Weights& w, const Block& block, const Scratch& my, float* grad_bias, bool want_targets,
                    double* squares) {
  std::memset(my.residual, 0, p.padded * block.width * 4);
  for (i64 y = 0; y < p.H; ++y) {
    float* line = my.residual + ((y + 1) * p.W2 + 1) * block.width;
    const i64 at = y * p.W * p.TL;
    predict_line(p, w, block, my.padded, y, line, block.width);
    if (squares) add_squares(p, w, block, line, block.width, my.targets + at, squares);
    scale_line(p, w, block, line, block.width, my.targets + at, my.scale, {grad_bias, want_targets ? my.grad_targets + at : nullptr});
    // lanes beyond `width` of the last pixel are the next line's border: nothing was written there
  }
}

// grad_h [H*W, cp] (+)= r convolved with the flipped weight
void features_gradient(const Plan& p, const Weights& w, const Block& block, const float* residual, float* grad_h, bool accumulate) {
  const i64 row = p.W2 * block.width;
  const Walk b{w.flipped + block.first * 9 * p.cp, VL, 3 * block.count * p.cp, block.count * p.cp, p.cp};
  for (i64 y = 0; y < p.H; ++y) {
    Walk a{residual + y * row, block.width, row, block.width, 1}, bu = b;
    const int parts = block.count > 24 ? 3 : 1;  // long sums are cut at the kernel's rows: chains of at most 3 * BLOCK roundings
    for (int u = 0; u < parts; ++u, a.p += a.outer, bu.p += bu.outer)
      product(a, bu, {3 / parts, 3, block.count}, static_cast<int>(p.W), static_cast<int>(p.cp / VL), grad_h + y * p.W * p.cp, p.cp,
              accumulate || u > 0);
  }
}

// grad_weight [count, 9, cp] += sum over pixels of r * shifted h; a few lines at a time so that they stay in the nearest cache
void weight_gradient(const Plan& p, const Block& block, const float* residual, const float* padded, float* grad_weight) {
  const i64 step = larger(1, (24 << 10) / (p.W2 * p.cp * 4));
  for (i64 y = 0; y < p.H; y += step) {
    const Steps n{static_cast<int>(smaller(step, p.H - y)), 1, static_cast<int>(p.W)};
    const Walk a{residual + ((y + 1) * p.W2 + 1) * block.width, 1, p.W2 * block.width, 0, block.width};
    for (i64 tap = 0; tap < 9; ++tap) {
      const Walk b{padded + ((y + tap / 3) * p.W2 + tap % 3) * p.cp, VL, p.W2 * p.cp, 0, p.cp};
      product(a, b, n, block.count, static_cast<int>(p.cp / VL), grad_weight + tap * p.cp, 9 * p.cp, true);
    }
  }
}

template <typename T>
void backward_image(const Plan& p, const MultiheadLossInputs& in, const MultiheadLossGradients& out, const Weights& w, const Scratch& my,
                    i64 b, float* grad_weight, float* grad_bias) {
  const i64 n = b / p.T, t = b % p.T;
  pad_image(p, static_cast<const T*>(in.h) + b * in.h_stride[0], in.h_stride, my.padded);
  spread_target(p, static_cast<const T*>(in.target) + b * p.C * p.pixels, my.targets);
  if (out.target) std::memset(my.grad_targets, 0, p.pixels * p.TL * 4);
  // A float32 gradient that lies as the kernels want it is written in place.
  T* grad_h = out.h ? static_cast<T*>(out.h) + b * out.h_stride[0] : nullptr;
  const bool in_place = sizeof(T) == 4 && p.cp == p.c && out.h_stride[1] == 1 && out.h_stride[3] == p.c && out.h_stride[2] == p.W * p.c;
  float* grad_pixels = in_place ? reinterpret_cast<float*>(grad_h) : my.grad_h;
  double level = 0;
  for (i64 index = 0; index < p.blocks; ++index) {
    const Block block(p, index);
    const float* upstream = out.grad_loss + n * p.K;
    for (int o = 0; o < block.width; ++o)
      my.scale[o] = o < block.count ? 2.f * in.level_weight[t] * upstream[(block.first + o) / p.C] : 0.f;
    for (int o = 0; o < block.count; ++o) my.squares[o] = 0;
    residual_block(p, w, block, my, grad_bias ? grad_bias + block.first : nullptr, out.target != nullptr,
                   out.level_row ? my.squares : nullptr);
    if (out.level_row)
      for (int o = 0; o < block.count; ++o) level += upstream[(block.first + o) / p.C] * my.squares[o];
    if (out.h) features_gradient(p, w, block, my.residual, grad_pixels, index > 0);
    if (grad_weight) weight_gradient(p, block, my.residual, my.padded, grad_weight + block.first * 9 * p.cp);
  }
  if (out.level_row) out.level_row[b] = static_cast<float>(level);
  if (out.h && !in_place) unpack_image(p, my.grad_h, grad_h, out.h_stride);
  if (out.target) {
    T* to = static_cast<T*>(out.target) + b * p.C * p.pixels;
    for (i64 q = 0; q < p.pixels; ++q)
      for (i64 j = 0; j < p.C; ++j) {
        float sum = 0;
        for (i64 l = j; l < p.TL; l += p.C) sum += my.grad_targets[q * p.TL + l];
        assign(to[j * p.pixels + q], sum);
      }
  }
}

// Groups summed in their order -> weight [KC, c, 3, 3] and bias [KC]
template <typename T>
void collect_groups(const Plan& p, const MultiheadLossGradients& out, const float* weights, i64 weight_size, const float* biases,
                    i64 bias_size, i64 groups, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 o = 0; o < p.KC; ++o) {
    if (out.bias) {
      float sum = 0;
      for (i64 g = 0; g < groups; ++g) sum += biases[g * bias_size + o];
      assign(static_cast<T*>(out.bias)[o], sum);
    }
    if (!out.weight) continue;
    for (i64 i = 0; i < p.c; ++i)
      for (i64 tap = 0; tap < 9; ++tap) {
        float sum = 0;
        for (i64 g = 0; g < groups; ++g) sum += weights[g * weight_size + (o * 9 + tap) * p.cp + i];
        assign(static_cast<T*>(out.weight)[(o * p.c + i) * 9 + tap], sum);
      }
  }
}

template <typename T>
Status backward(const MultiheadLossInputs& in, const MultiheadLossGradients& out, int threads) {
  const Plan p(in.shape);
  if (p.B == 0 || p.K == 0) return nullptr;
  const bool summed = out.weight || out.bias;
  const i64 weight_size = out.weight ? p.KC * 9 * p.cp : 0, bias_size = out.bias ? p.blocks * BLOCK : 0;
  const i64 groups = !summed ? p.B : larger(1, smaller(smaller(16, p.B), GROUP_BYTES / (4 * (weight_size + bias_size))));
  threads = static_cast<int>(larger(1, smaller(threads, groups)));

  Layout size;
  const i64 bias = size.take(p.blocks * BLOCK), by_dot = size.take(p.KC * 9 * p.cp), by_lane = size.take(p.blocks * BLOCK * 9 * p.cp);
  const i64 flipped = size.take(out.h ? p.KC * 9 * p.cp : 0);
  const i64 weight_sums = size.take(weight_size * groups), bias_sums = size.take(bias_size * groups);
  Layout own;
  const i64 padded = own.take(p.padded * p.cp), targets = own.take(p.pixels * p.TL);
  const i64 grad_targets = own.take(out.target ? p.pixels * p.TL : 0), residual = own.take(p.padded * BLOCK);
  const i64 grad_h = own.take(out.h ? p.pixels * p.cp : 0), scale = own.take(BLOCK), squares = own.take(2 * BLOCK);
  const i64 each = own.used, base = size.take(each * threads);
  Memory memory;
  if (!memory.allocate(size.used)) return "out of memory";
  const Weights w{memory.at(bias), memory.at(by_dot), memory.at(by_lane), out.h ? memory.at(flipped) : nullptr};
  pack_weight(p, static_cast<const T*>(in.weight), static_cast<const T*>(in.bias), w, threads);

#pragma omp parallel num_threads(threads)
  {
    int me = 0;
#ifdef _OPENMP
    me = omp_get_thread_num();
#endif
    float* mine = memory.at(base + me * each);
    const Scratch my{mine + padded, mine + targets, mine + grad_targets, mine + residual, mine + grad_h, mine + scale,
                     reinterpret_cast<double*>(mine + squares)};
#pragma omp for schedule(dynamic)
    for (i64 g = 0; g < groups; ++g) {
      float* gw = out.weight ? memory.at(weight_sums) + g * weight_size : nullptr;
      float* gb = out.bias ? memory.at(bias_sums) + g * bias_size : nullptr;
      if (gw) std::memset(gw, 0, weight_size * 4);
      if (gb) std::memset(gb, 0, bias_size * 4);
      for (i64 b = p.B * g / groups; b < p.B * (g + 1) / groups; ++b) backward_image<T>(p, in, out, w, my, b, gw, gb);
    }
  }
  if (summed) collect_groups<T>(p, out, memory.at(weight_sums), weight_size, memory.at(bias_sums), bias_size, groups, threads);
  return nullptr;
}

Status forward_any(const MultiheadLossInputs& in, float* loss, int threads) {
  return in.dtype == DType::float32 ? forward<float>(in, loss, threads) : forward<uint16_t>(in, loss, threads);
}
Status backward_any(const MultiheadLossInputs& in, const MultiheadLossGradients& out, int threads) {
  return in.dtype == DType::float32 ? backward<float>(in, out, threads) : backward<uint16_t>(in, out, threads);
}

}  // namespace

extern const MultiheadLossCpu RDC_JOIN(multihead_loss_, RDC_ISA);
const MultiheadLossCpu RDC_JOIN(multihead_loss_, RDC_ISA) = {forward_any, backward_any};

}  // namespace rdc
