// CPU kernels of multihead_loss; compiled once for each instruction set (RDC_ISA = baseline, avx2, avx512, avx512bf16).
//
// A thread takes a chunk of images, and for every block of outputs packs the weights and goes through the images:
//   forward   residuals -> squares, summed in float32 along a line or strip, in float64 beyond; these and residuals kept if asked for.
//   backward  residuals (kept, or predicted again), scaled -> r [padded, block]; features: r (*) flipped weight; weight: r^T h per tap.
//             Many classes in bfloat16: differences from a reference head (reference.h).
// Classes whose upstream gradient is zero are left out of the backward pass.
// What a row of images gives does not depend on its chunk. Weight gradients are summed over groups of images whose number depends
// on the shape alone. So results do not depend on the number of threads.
#include "multihead_loss.h"

#include "reference.h"

#define RDC_JOIN2(a, b) a##b
#define RDC_JOIN(a, b) RDC_JOIN2(a, b)

namespace rdc {
namespace {

constexpr Status OUT_OF_MEMORY = "out of memory";

// Images that one thread packs weights for: as many as fit, and few enough to occupy every thread.
template <typename U>
i64 images_at_once(const Plan<U>& p, bool backward, bool features, i64 threads) {
  const i64 fit = CHUNK_BYTES[backward] / (4 * (p.padded * p.cu + (features ? p.pixels * p.cp : 0)));
  return larger(1, smaller(smaller(fit, 32), (p.B + threads - 1) / threads));
}

// --- Forward -----------------------------------------------------------------------------------------------------------------------

// sums[k] += squares of the block's outputs; kept: this image's, or null
template <typename U, typename T>
void forward_block(const Plan<U>& p, const Weights& w, const Block& block, const float* padded, const Buffers& my, T* kept, double* sums) {
  predict_residuals(p, w, block, padded, my, [&](int v, auto each) {
    vf sum[4] = {};
    const vu mask = output_lanes(block, v);
    T* const to = kept ? kept + block.first + v * VL : nullptr;
    each([&](i64 y, i64 x, int chain, vf d) {
      sum[chain] += d * d;
      if (to) store_rounded(to + (y * p.W + x) * p.kept, reinterpret_cast<vf>(reinterpret_cast<vu>(d) & mask));
    });
    const vf all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    for (int l = 0; l < VL && v * VL + l < block.count; ++l) sums[block.output(v * VL + l) / p.C] += all[l];
  });
  const i64 end = block.first + block.width;
  if (kept && block.first + block.count == p.KC && end < p.kept)
    for (i64 q = 0; q < p.pixels; ++q) std::memset(kept + q * p.kept + end, 0, (p.kept - end) * sizeof(T));
}

template <typename U, typename T>
Status forward(const MultiheadLossInputs& in, float* loss, T* kept, double* row_loss, int threads) {
  const Plan<U> p(in.shape, false);
  if (p.B == 0 || p.K == 0) return nullptr;
  const i64 at_once = images_at_once(p, false, false, threads), chunks = (p.B + at_once - 1) / at_once, blocks = (p.KC + BLOCK - 1) / BLOCK;
  const i64 parts = (blocks + p.C - 1) / p.C;  // C blocks hold whole classes
  const i64 slices = larger(1, smaller(parts, threads / chunks));  // few images: share classes out, too
  threads = static_cast<int>(larger(1, smaller(threads, chunks * slices)));

  Memory memory;
  double* sums = row_loss ? row_loss : memory.doubles(p.B * p.K);
  if (memory.failed) return OUT_OF_MEMORY;
  int failed = 0;
  std::memset(sums, 0, p.B * p.K * sizeof(double));

#pragma omp parallel num_threads(threads)
  {
    Memory own;
    float* const images = own.take(at_once * p.padded * p.cu);
    const Buffers my = Buffers::take(p, own);
    const Weights w = Weights::take(p, own);
    if (own.failed) {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp for schedule(dynamic)
    for (i64 item = 0; item < chunks * slices; ++item) {
      if (own.failed) continue;
      const i64 begin = item / slices * at_once, end = smaller(begin + at_once, p.B), slice = item % slices;
      for (i64 b = begin; b < end; ++b)
        pad_image(p, static_cast<const T*>(in.h) + b * in.h_stride[0], in.h_stride, images + (b - begin) * p.padded * p.cu);
      for (i64 index = parts * slice / slices * p.C; index < smaller(blocks, parts * (slice + 1) / slices * p.C); ++index) {
        const Block block(p, nullptr, index * BLOCK, p.KC);
        pack_weights(p, block, static_cast<const T*>(in.weight), static_cast<const T*>(in.bias), w, true, false, nullptr, nullptr);
        for (i64 b = begin; b < end; ++b) {
          spread_target(p, static_cast<const T*>(in.target) + b * p.C * p.pixels, my.targets);
          forward_block(p, w, block, images + (b - begin) * p.padded * p.cu, my, kept ? kept + b * p.pixels * p.kept : nullptr,
                        sums + b * p.K);
        }
      }
    }
  }
  if (failed) return OUT_OF_MEMORY;
  for (i64 n = 0; n < p.N; ++n)
    for (i64 k = 0; k < p.K; ++k) {
      double total = 0;
      for (i64 t = 0; t < p.T; ++t) total += in.level_weight[t] * sums[(n * p.T + t) * p.K + k];
      loss[n * p.K + k] = static_cast<float>(total);
    }
  return nullptr;
}

// --- Backward ----------------------------------------------------------------------------------------------------------------------

// A float32 gradient of h that lies as the kernels want it.
template <typename T, typename U>
bool lies_in_place(const Plan<U>& p, const MultiheadLossGradients& out) {
  return sizeof(T) == 4 && p.cp == p.c && out.h_stride[1] == 1 && out.h_stride[3] == p.c && out.h_stride[2] == p.W * p.c;
}

// What the backward pass is asked for, and the memory of one thread.
template <typename U, typename T>
struct Backward {
  const Plan<U>& p;
  const MultiheadLossInputs& in;
  const MultiheadLossGradients& out;
  const T* kept;
  i64 at_once;
  bool predicts, reads_h, in_place;

  // One thread's.
  Buffers my{};
  Weights w{};
  Reference reference{};
  bool differences{};  // this chunk
  float *images{}, *grad_pixels{}, *grad_targets{}, *residual{}, *scale{}, *bias_sums{}, *h_pairs{}, *r_pairs{}, *block_weight{};
  int* outputs{};

  Backward(const Plan<U>& plan, const MultiheadLossInputs& i, const MultiheadLossGradients& o, const T* k, i64 images_at_once)
      : p(plan), in(i), out(o), kept(k), at_once(images_at_once) {
    predicts = !kept;
    reads_h = predicts || out.weight;
    in_place = lies_in_place<T>(p, out);
  }

  void take(Memory& own) {
    auto floats = [&](bool wanted, i64 n) { return own.take(n, wanted); };
    my = Buffers::take(p, own);
    w = Weights::take(p, own);
    reference = Reference::take(p, own, at_once);
    images = floats(reads_h, at_once * p.padded * p.cu);
    grad_pixels = floats(out.h && !in_place, at_once * p.pixels * p.cp);
    grad_targets = floats(out.target || (out.h && p.differences), at_once * p.pixels * p.TL);
    residual = floats(true, p.padded * p.block / U::PER_UNIT);
    scale = floats(true, p.block);
    bias_sums = floats(true, p.block);
    const bool pairs = out.weight && U::PER_UNIT > 1;
    h_pairs = floats(pairs, p.padded * p.cp);
    r_pairs = floats(pairs, p.H * ((p.W + 1) / 2) * BLOCK);
    block_weight = floats(out.weight, larger(BLOCK * 9, p.tiled ? p.block * POINTS : 0) * p.cp);
    outputs = reinterpret_cast<int*>(floats(true, p.KC));
  }

  bool active(i64 n, i64 k) const { return out.grad_loss[n * p.K + k] != 0; }

  // Rows begin .. end - 1 in chunks whose images have the same active classes.
  void rows(i64 begin, i64 end, float* weight_sums, float* bias_total) {
    while (begin < end) {
      const i64 n = begin / p.T;
      i64 stop = begin + 1;
      for (; stop < smaller(end, begin + at_once); ++stop) {
        const i64 m = stop / p.T;
        bool same = true;
        if (stop % p.T == 0)
          for (i64 k = 0; k < p.K && same; ++k) same = active(n, k) == active(m, k);
        if (!same) break;
      }
      chunk(begin, stop, weight_sums, bias_total);
      begin = stop;
    }
  }

  void chunk(i64 begin, i64 end, float* weight_sums, float* bias_total) {
    i64 count = 0;
    for (i64 o = 0; o < p.KC; ++o)
      if (active(begin / p.T, o / p.C)) outputs[count++] = static_cast<int>(o);
    const int* list = count == p.KC ? nullptr : outputs;
    const T *weight = static_cast<const T*>(in.weight), *bias = static_cast<const T*>(in.bias);
    differences = p.differences && count >= DIFFERENCES_FROM * p.C;
    if (differences) mean_head(p, weight, bias, list, count, reference);
    for (i64 b = begin; b < end; ++b) {
      float* padded = images + (b - begin) * p.padded * p.cu;
      if (reads_h && count) pad_image(p, static_cast<const T*>(in.h) + b * in.h_stride[0], in.h_stride, padded);
      if (differences && predicts)
        less_reference(p, reference, static_cast<const T*>(in.target) + b * p.C * p.pixels, padded, my.line, targets_of(b - begin));
      if (out.h && !count) std::memset(pixels_of(b, b - begin), 0, p.pixels * p.cp * 4);
    }
    if (sums_residuals()) std::memset(grad_targets, 0, (end - begin) * p.pixels * p.TL * 4);
    for (i64 first = 0; first < count; first += differences ? WIDE_BLOCK : BLOCK) {
      const Block block(p, list, first, count, differences);
      if (predicts || out.h)
        pack_weights(p, block, weight, bias, w, predicts, out.h != nullptr, differences ? reference.taps : nullptr, reference.bias);
      std::memset(residual, 0, p.padded * block.width / U::PER_UNIT * 4);
      std::memset(bias_sums, 0, p.block * 4);
      if (out.weight) std::memset(block_weight, 0, block.count * (block.fast ? POINTS : 9) * p.cp * 4);
      for (i64 b = begin; b < end; ++b) image_block(block, b, b - begin);
      collect_block(block, weight_sums, bias_total);
    }
    for (i64 b = begin; b < end; ++b) finish(b, b - begin);
  }

  float* pixels_of(i64 b, i64 i) {
    return in_place ? reinterpret_cast<float*>(static_cast<T*>(out.h) + b * out.h_stride[0]) : grad_pixels + i * p.pixels * p.cp;
  }

  float* targets_of(i64 i) { return reference.targets + i * p.C * p.pixels; }
  bool sums_residuals() const { return out.target || (out.h && differences); }

  // Everything that one block adds for image b, the chunk's i-th.
  void image_block(const Block& block, i64 b, i64 i) {
    const i64 n = b / p.T, t = b % p.T;
    const float* upstream = out.grad_loss + n * p.K;
    const float* padded = images + i * p.padded * p.cu;
    for (int o = 0; o < block.width; ++o)
      scale[o] = o < block.count ? 2.f * in.level_weight[t] * upstream[block.output(o) / p.C] : 0.f;
    if (predicts) {
      if (differences) spread_target(p, targets_of(i), my.targets);
      else spread_target(p, static_cast<const T*>(in.target) + b * p.C * p.pixels, my.targets);
      predict_residuals(p, w, block, padded, my, [&](int v, auto each) { scale_residuals(block, i, v, each); });
    } else {
      read_residuals(p, block, kept + b * p.pixels * p.kept, [&](int v, auto each) { scale_residuals(block, i, v, each); });
    }
    if (out.h) {
      float* to = pixels_of(b, i);
      if (block.fast) features_gradient_fast(p, w, block, residual, my.strip_in, my.strip_out, to, block.first > 0);
      else features_gradient(p, w, block, residual, to, block.first > 0);
    }
    if (!out.weight) return;
    if (block.fast) {
      weight_gradient_fast(p, block, residual, padded, my.strip_in, my.strip_out, block_weight);
      return;
    }
#ifdef __AVX512BF16__
    if constexpr (U::PER_UNIT == 2) pair_pixels(p, padded, h_pairs);
#endif
    weight_gradient(p, block, residual, padded, h_pairs, r_pairs, block_weight);
  }

  // r <- scale * residual, one vector of outputs, and the sums that need nothing else.
  template <typename Each>
  void scale_residuals(const Block& block, i64 i, int v, Each each) {
    using S = typename U::Stored;
    const vf factor = load(scale + v * VL);
    const i64 width = block.width, W2 = p.W2, W = p.W, TL = p.TL;
    const vu mask = output_lanes(block, v);
    S* const to = reinterpret_cast<S*>(residual) + (W2 + 1) * width + v * VL;
    float* const targets = sums_residuals() ? grad_targets + i * p.pixels * TL + (block.first + v * VL) % p.C : nullptr;
    vf sum[4] = {};
    each([&](i64 y, i64 x, int chain, vf d) {
      d = reinterpret_cast<vf>(reinterpret_cast<vu>(d) & mask);
      const vf r = factor * d;
      store_rounded(to + (y * W2 + x) * width, r);
      sum[chain] += r;
      if (targets) {
        float* at = targets + (y * W + x) * TL;
        store(at, load(at) - r);
      }
    });
    store(bias_sums + v * VL, load(bias_sums + v * VL) + ((sum[0] + sum[1]) + (sum[2] + sum[3])));
  }

  // The chunk's sums for one block -> the group's
  void collect_block(const Block& block, float* weight_sums, float* bias_total) {
    for (int o = 0; o < block.count; ++o) {
      if (bias_total) bias_total[block.output(o)] += bias_sums[o];
      if (!weight_sums) continue;
      float* to = weight_sums + block.output(o) * 9 * p.cp;
      if (block.fast) {
        for (i64 j = 0; j < p.cp; j += VL) gather_taps(block_weight + o * p.cp + j, block.count * p.cp, to + j, p.cp);
        continue;
      }
      const float* from = block_weight + static_cast<i64>(o) * 9 * p.cp;
      for (i64 j = 0; j < 9 * p.cp; j += VL) store(to + j, load(to + j) + load(from + j));
    }
  }

  void finish(i64 b, i64 i) {
    if (out.h && differences)
      add_reference(
          p, reference,
          [&](i64 q, i64 j) {
            float sum = 0;
            for (i64 l = j; l < p.TL; l += p.C) sum -= grad_targets[(i * p.pixels + q) * p.TL + l];
            return sum;
          },
          pixels_of(b, i));
    if (out.h && !in_place)
      unpack_image(p, grad_pixels + i * p.pixels * p.cp, static_cast<T*>(out.h) + b * out.h_stride[0], out.h_stride);
    if (!out.target) return;
    T* to = static_cast<T*>(out.target) + b * p.C * p.pixels;
    for (i64 q = 0; q < p.pixels; ++q)
      for (i64 j = 0; j < p.C; ++j) {
        float sum = 0;
        for (i64 l = j; l < p.TL; l += p.C) sum += grad_targets[(i * p.pixels + q) * p.TL + l];
        assign(to[j * p.pixels + q], sum);
      }
  }
};

// Groups summed in their order -> weight [KC, c, 3, 3] and bias [KC]. The first group's memory takes the sum.
template <typename U, typename T>
void collect_groups(const Plan<U>& p, const MultiheadLossGradients& out, float* weights, i64 weight_size, const float* biases, i64 bias_size,
                    i64 groups, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 o = 0; o < p.KC; ++o) {
    if (out.bias) {
      float sum = 0;
      for (i64 g = 0; g < groups; ++g) sum += biases[g * bias_size + o];
      assign(static_cast<T*>(out.bias)[o], sum);
    }
    if (!out.weight) continue;
    float* total = weights + o * 9 * p.cp;
    for (i64 j = 0; j < 9 * p.cp; j += VL) {
      vf sum = load(total + j);
      for (i64 g = 1; g < groups; ++g) sum += load(total + g * weight_size + j);
      store(total + j, sum);
    }
    T* to = static_cast<T*>(out.weight) + o * p.c * 9;
    for (i64 i = 0; i < p.c; ++i)
      for (i64 tap = 0; tap < 9; ++tap) assign(to[i * 9 + tap], total[tap * p.cp + i]);
  }
}

template <typename U, typename T>
Status backward(const MultiheadLossInputs& in, const MultiheadLossGradients& out, const T* kept, int threads) {
  const Plan<U> p(in.shape, true);
  if (p.B == 0 || p.K == 0) return nullptr;
  const bool summed = out.weight || out.bias;
  const i64 weight_size = out.weight ? p.KC * 9 * p.cp : 0, bias_size = out.bias ? p.KC : 0;
  // Sums over images: neither groups nor chunks may depend on the threads.
  const i64 at_once = images_at_once(p, true, out.h && !lies_in_place<T>(p, out), summed ? 1 : threads);
  i64 groups = (p.B + at_once - 1) / at_once;
  if (summed) groups = smaller(smaller(MOST_GROUPS, p.B), larger(FEWEST_GROUPS, GROUP_BYTES / (4 * (weight_size + bias_size))));
  threads = static_cast<int>(larger(1, smaller(threads, groups)));

  Memory memory;
  float *const weight_sums = memory.take(weight_size * groups), *const bias_sums = memory.take(bias_size * groups);
  if (memory.failed) return OUT_OF_MEMORY;
  int failed = 0;

#pragma omp parallel num_threads(threads)
  {
    Backward<U, T> mine(p, in, out, kept, at_once);
    Memory own;
    mine.take(own);
    if (own.failed) {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp for schedule(dynamic)
    for (i64 g = 0; g < groups; ++g) {
      if (own.failed) continue;
      float* gw = out.weight ? weight_sums + g * weight_size : nullptr;
      float* gb = out.bias ? bias_sums + g * bias_size : nullptr;
      if (gw) std::memset(gw, 0, weight_size * 4);
      if (gb) std::memset(gb, 0, bias_size * 4);
      if (summed) mine.rows(p.B * g / groups, p.B * (g + 1) / groups, gw, gb);
      else mine.rows(g * at_once, smaller(p.B, (g + 1) * at_once), gw, gb);
    }
  }
  if (failed) return OUT_OF_MEMORY;
  if (summed) collect_groups<U, T>(p, out, weight_sums, weight_size, bias_sums, bias_size, groups, threads);
  return nullptr;
}

// bfloat16 products need enough channels to fill vectors of pairs, and long sums for their roundings to average out.
[[maybe_unused]] inline bool pairs_pay(const MultiheadLossShape& s) { return s.c >= 32; }

Status forward_any(const MultiheadLossInputs& in, float* loss, void* kept, double* row_loss, int threads) {
  if (in.dtype == DType::float32) return forward<Float32>(in, loss, static_cast<float*>(kept), row_loss, threads);
#ifdef __AVX512BF16__
  if (pairs_pay(in.shape)) return forward<Bfloat16Pair>(in, loss, static_cast<uint16_t*>(kept), row_loss, threads);
#endif
  return forward<Float32>(in, loss, static_cast<uint16_t*>(kept), row_loss, threads);
}
Status backward_any(const MultiheadLossInputs& in, const MultiheadLossGradients& out, const void* kept, int threads) {
  if (in.dtype == DType::float32) return backward<Float32>(in, out, static_cast<const float*>(kept), threads);
#ifdef __AVX512BF16__
  if (pairs_pay(in.shape)) return backward<Bfloat16Pair>(in, out, static_cast<const uint16_t*>(kept), threads);
#endif
  return backward<Float32>(in, out, static_cast<const uint16_t*>(kept), threads);
}

}  // namespace

extern const MultiheadLossCpu RDC_JOIN(multihead_loss_, RDC_ISA);
const MultiheadLossCpu RDC_JOIN(multihead_loss_, RDC_ISA) = {forward_any, backward_any};

}  // namespace rdc
