// CPU kernels of group norm with conditioning and SiLU; compiled once for each instruction set (RDC_ISA = baseline, avx2, avx512, avx512bf16).
//
// A thread takes whole images, which stay in its caches from pass to pass: means, variances, answer. Lanes run along channels, whatever the
// size of a group; channels of a group are put together by scalars.
#include "norm_act.h"

#include <cmath>

#include "exponential.h"
#include "kept_memory.h"
#include "lanes.h"

#define RDC_JOIN2(a, b) a##b
#define RDC_JOIN(a, b) RDC_JOIN2(a, b)

namespace rdc {
namespace {

constexpr Status OUT_OF_MEMORY = "out of memory";
constexpr int AT_ONCE = 4;           // vectors of channels whose sums are in registers
constexpr i64 PART_FLOATS = 2048;    // of an image, that are read at once

template <int N>
using Vectors = std::integral_constant<int, N>;

thread_local KeptMemory kept;

// u = (x + before) * slope + offset of every channel, in rows of `padded`
struct Channels {
  float *before, *slope, *offset, *first, *second, *third;
  static constexpr int ROWS = 6;
  Channels(float* memory, i64 padded)
      : before(memory), slope(memory + padded), offset(memory + 2 * padded), first(memory + 3 * padded), second(memory + 4 * padded),
        third(memory + 5 * padded) {}
};

// The same and more, for the backward pass of the backward pass: per channel, sums over positions of the gradient d in front of the activation,
// of d c, v, v c and v d (c: x + before, v: along), factors of the second pass, and its sums.
struct SecondChannels {
  float *d, *dc, *v, *vc, *vd, *factor, *v_mean, *v_slope, *from_v, *from_d, *e, *ec;
  static constexpr int ROWS = 12;
  SecondChannels(float* memory, i64 padded) {
    float** const rows[ROWS] = {&d, &dc, &v, &vc, &vd, &factor, &v_mean, &v_slope, &from_v, &from_d, &e, &ec};
    for (int i = 0; i < ROWS; ++i) *rows[i] = memory + i * padded;
  }
};

template <typename T>
struct NormAct : NormActInputs {
  i64 group, padded;

  explicit NormAct(const NormActInputs& in) : NormActInputs(in), group(C / groups), padded((C + VL - 1) / VL * VL) {}

  const T* image(const void* all, i64 b) const { return static_cast<const T*>(all) + b * P * C; }
  float before_at(i64 b, i64 c) const { return pre ? pre[b * pre_row + c] : 0.0f; }
  float factor_at(i64 b, i64 c) const { return scale ? 1.0f + scale[b * scale_row + c] : 1.0f; }

  // f(first position, end, first channel, vectors of channels, whether all their lanes are there), the last two constants: a part of the image that
  // the first-level cache holds after the other, each in blocks of channels
  template <typename F>
  void each_part(F f) const {
    using Whole = std::true_type;
    const i64 rows = PART_FLOATS > padded ? PART_FLOATS / padded : 1;
    for (i64 p = 0; p < P; p += rows) {
      const i64 end = P - p < rows ? P : p + rows;
      i64 c = 0;
      for (; c + AT_ONCE * VL <= C; c += AT_ONCE * VL) f(p, end, c, Vectors<AT_ONCE>{}, Whole{});
      for (; c + VL <= C; c += VL) f(p, end, c, Vectors<1>{}, Whole{});
      if (c < C) f(p, end, c, Vectors<1>{}, std::false_type{});
    }
  }
  template <typename Full, typename U>
  static vf load_lanes(const U* from, i64 lanes, Full) {
    if constexpr (Full::value) return load_float(from);
    else return load_first(from, lanes);
  }
  template <typename Full, typename U>
  static void store_lanes(U* to, vf value, i64 lanes, Full) {
    if constexpr (Full::value) store_rounded(to, value);
    else store_some(to, value, lanes);
  }

  // sums[c] = sum over positions of of(x's vector, first channel)
  template <typename Of>
  void sum_positions(const T* from, float* sums, Of of) const {
    std::memset(sums, 0, padded * 4);
    each_part([&](i64 p, i64 end, i64 c, auto vectors, auto full) {
      vf total[vectors()] = {};
      for (; p < end; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < vectors(); ++v) total[v] += of(load_lanes(from + p * C + c + v * VL, C - c, full), c + v * VL);
      for (int v = 0; v < vectors(); ++v) add_to(sums + c + v * VL, total[v]);
    });
  }
  static void add_to(float* sums, vf value) { store(sums, load(sums) + value); }

  // f(group, first channel) with sums over its channels
  double over_group(const float* values, i64 g) const {
    double total = 0;
    for (i64 c = g * group; c < (g + 1) * group; ++c) total += values[c];
    return total;
  }

  void fill(const Channels& k, i64 b, const float* mean, const float* rstd) const {
    for (i64 c = 0; c < padded; ++c) {
      const bool there = c < C;
      const float factor = there ? factor_at(b, c) : 0;
      k.before[c] = there ? before_at(b, c) - mean[c] : 0;
      k.slope[c] = there ? rstd[c] * (weight[c] * factor) : 0;
      k.offset[c] = there ? bias[c] * factor + (shift ? shift[b * scale_row + c] : 0.0f) : 0;
    }
  }

  void forward_image(const Channels& k, i64 b, T* y, float* mean, float* rstd) const {
    const T* const from = image(x, b);
    const double count = static_cast<double>(P) * group;
    sum_positions(from, k.first, [](vf value, i64) { return value; });
    for (i64 c = 0; c < C; ++c) k.second[c] = before_at(b, c);
    for (i64 g = 0; g < groups; ++g) {
      const double centre = (over_group(k.first, g) + P * over_group(k.second, g)) / count;
      for (i64 c = g * group; c < (g + 1) * group; ++c) mean[c] = static_cast<float>(centre);
    }
    for (i64 c = 0; c < padded; ++c) k.before[c] = c < C ? k.second[c] - mean[c] : 0;
    sum_positions(from, k.first, [&](vf value, i64 c) {
      const vf centred = value + load(k.before + c);
      return centred * centred;
    });
    for (i64 g = 0; g < groups; ++g) {
      const double over = 1.0 / std::sqrt(over_group(k.first, g) / count + eps);
      for (i64 c = g * group; c < (g + 1) * group; ++c) rstd[c] = static_cast<float>(over);
    }
    fill(k, b, mean, rstd);
    if (silu) write(k, from, y, [](vf u) { return u * sigmoid(u); });
    else write(k, from, y, [](vf u) { return u; });
  }

  template <typename Activation>
  void write(const Channels& k, const T* from, T* y, Activation activation) const {
    for (i64 p = 0; p < P; ++p, from += C, y += C) {
      auto one = [&](i64 c, auto full) {
        const vf u = (load_lanes(from + c, C - c, full) + load(k.before + c)) * load(k.slope + c) + load(k.offset + c);
        store_lanes(y + c, activation(u), C - c, full);
      };
      i64 c = 0;
      for (; c + VL <= C; c += VL) one(c, std::true_type{});
      if (c < C) one(c, std::false_type{});
    }
  }

  // inner [P, inner_row]: gradients in front of the activation, kept from the first pass to the second; it may be the gradient of x
  void backward_image(const Channels& k, i64 b, const T* upstream, const float* mean, const float* rstd, const NormActGradients& out,
                      float* inner, i64 inner_row) const {
    const T* const from = image(x, b);
    T* const grad = static_cast<T*>(out.x) + b * P * C;
    fill(k, b, mean, rstd);
    std::memset(k.first, 0, padded * 4);
    std::memset(k.second, 0, padded * 4);
    each_part([&](i64 p, i64 end, i64 c, auto vectors, auto full) {
      vf total[vectors()] = {}, centred_total[vectors()] = {};
      for (; p < end; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < vectors(); ++v) {
          const i64 at = c + v * VL;
          const vf centred = load_lanes(from + p * C + at, C - at, full) + load(k.before + at);
          vf d = load_lanes(upstream + p * C + at, C - at, full);
          if (silu) {
            const vf u = centred * load(k.slope + at) + load(k.offset + at), s = sigmoid(u);
            d *= s + u * (s * (1.0f - s));
          }
          store_lanes(inner + p * inner_row + at, d, C - at, full);
          total[v] += d;
          centred_total[v] += d * centred;
        }
      for (int v = 0; v < vectors(); ++v) {
        add_to(k.first + c + v * VL, total[v]);
        add_to(k.second + c + v * VL, centred_total[v]);
      }
    });
    float *const sums = out.sums + b * C, *const normed = out.normed_sums + b * C;
    for (i64 c = 0; c < C; ++c) {
      sums[c] = k.first[c];
      normed[c] = k.second[c] * rstd[c];
    }
    const double count = static_cast<double>(P) * group;
    for (i64 g = 0; g < groups; ++g) {  // gradient of x: slope * d - first - second * (x + before)
      double plain = 0, along = 0;
      for (i64 c = g * group; c < (g + 1) * group; ++c) {
        plain += static_cast<double>(k.slope[c]) * sums[c];
        along += static_cast<double>(k.slope[c]) * normed[c];
      }
      for (i64 c = g * group; c < (g + 1) * group; ++c) {
        k.first[c] = static_cast<float>(plain / count);
        k.second[c] = static_cast<float>(along / count * rstd[c]);
      }
    }
    std::memset(k.third, 0, padded * 4);
    each_part([&](i64 p, i64 end, i64 c, auto vectors, auto full) {
      vf total[vectors()] = {};
      for (; p < end; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < vectors(); ++v) {
          const i64 at = c + v * VL;
          const vf centred = load_lanes(from + p * C + at, C - at, full) + load(k.before + at);
          const vf d = load(k.slope + at) * load_lanes(inner + p * inner_row + at, C - at, full) - load(k.first + at) - load(k.second + at) * centred;
          total[v] += d;
          store_lanes(grad + p * C + at, d, C - at, full);
        }
      for (int v = 0; v < vectors(); ++v) add_to(k.third + c + v * VL, total[v]);
    });
    if (out.grad_sums) std::memcpy(out.grad_sums + b * C, k.third, C * 4);
  }

  // The gradients of sum(along * gradient of x). With c = x + before, n = c rstd, A = weight (1 + scale), d = upstream act'(u), q = A d:
  //   gradient of x = rstd (q - mean(q) - n mean(q n)),  T = rstd (v - mean(v) - n mean(v n))  what arrives at q,
  //   e = A T upstream act''(u)  what arrives at u,      E = A e - rstd (v mean(q n) + q mean(v n))  what arrives at n,
  //   answer = rstd (E - mean(E) - n (mean(E n) + rstd D)),  D = mean(v q) - mean(v) mean(q) - mean(v n) mean(q n)  through rstd.
  // slopes, bends [P, inner_row]: act' and upstream act'', then (over bends) E.
  void second_image(const Channels& k, const SecondChannels& s, i64 b, const T* upstream, const T* along, const float* mean, const float* rstd,
                    const NormActSecondGradients& out, float* slopes, float* bends, i64 inner_row) const {
    const T* const from = image(x, b);
    T *const of_upstream = static_cast<T*>(out.upstream) + b * P * C, *const grad = static_cast<T*>(out.of.x) + b * P * C;
    fill(k, b, mean, rstd);
    for (float* row : {s.d, s.dc, s.v, s.vc, s.vd, s.e, s.ec}) std::memset(row, 0, padded * 4);
    each_part([&](i64 p, i64 end, i64 c, auto vectors, auto full) {
      for (int v = 0; v < vectors(); ++v) {
        const i64 at = c + v * VL, lanes = C - at;
        const vf before = load(k.before + at), slope = load(k.slope + at), offset = load(k.offset + at);
        vf d_total{}, dc_total{}, v_total{}, vc_total{}, vd_total{};
        for (i64 q = p; q < end; ++q) {
          const vf centred = load_lanes(from + q * C + at, lanes, full) + before;
          const vf up = load_lanes(upstream + q * C + at, lanes, full), second = load_lanes(along + q * C + at, lanes, full);
          vf first = 1.0f - vf{}, bend{};
          if (silu) {
            const vf u = centred * slope + offset, y = sigmoid(u), fall = y * (1.0f - y);
            first = y + u * fall;
            bend = up * (fall * (2.0f + u * (1.0f - 2.0f * y)));
          }
          const vf d = up * first;
          store_lanes(slopes + q * inner_row + at, first, lanes, full);
          store_lanes(bends + q * inner_row + at, bend, lanes, full);
          d_total += d, dc_total += d * centred, v_total += second, vc_total += second * centred, vd_total += second * d;
        }
        add_to(s.d + at, d_total), add_to(s.dc + at, dc_total), add_to(s.v + at, v_total), add_to(s.vc + at, vc_total), add_to(s.vd + at, vd_total);
      }
    });
    second_factors(s, b, rstd);
    each_part([&](i64 p, i64 end, i64 c, auto vectors, auto full) {
      for (int v = 0; v < vectors(); ++v) {
        const i64 at = c + v * VL, lanes = C - at;
        const vf before = load(k.before + at), slope = load(k.slope + at), factor = load(s.factor + at), v_mean = load(s.v_mean + at),
                 v_slope = load(s.v_slope + at), from_v = load(s.from_v + at), from_d = load(s.from_d + at);
        vf e_total{}, ec_total{};
        for (i64 q = p; q < end; ++q) {
          const vf centred = load_lanes(from + q * C + at, lanes, full) + before;
          const vf up = load_lanes(upstream + q * C + at, lanes, full), second = load_lanes(along + q * C + at, lanes, full);
          const vf first = load_lanes(slopes + q * inner_row + at, lanes, full), bend = load_lanes(bends + q * inner_row + at, lanes, full);
          const vf arrives = slope * (second - v_mean - v_slope * centred), e = arrives * bend;
          store_lanes(of_upstream + q * C + at, arrives * first, lanes, full);
          store_lanes(bends + q * inner_row + at, factor * e - from_v * second - from_d * (up * first), lanes, full);
          e_total += e, ec_total += e * centred;
        }
        add_to(s.e + at, e_total), add_to(s.ec + at, ec_total);
      }
    });
    last_factors(k, s, b, rstd, out.of);
    std::memset(s.e, 0, padded * 4);
    each_part([&](i64 p, i64 end, i64 c, auto vectors, auto full) {
      for (int v = 0; v < vectors(); ++v) {
        const i64 at = c + v * VL, lanes = C - at;
        const vf before = load(k.before + at), over = load(k.slope + at), first = load(k.first + at), second = load(k.second + at);
        vf total{};
        for (i64 q = p; q < end; ++q) {
          const vf centred = load_lanes(from + q * C + at, lanes, full) + before;
          const vf answer = over * (load_lanes(bends + q * inner_row + at, lanes, full) - first - second * centred);
          total += answer;
          store_lanes(grad + q * C + at, answer, lanes, full);
        }
        add_to(s.e + at, total);
      }
    });
    if (out.of.grad_sums) std::memcpy(out.of.grad_sums + b * C, s.e, C * 4);
  }

  // From the sums of the first pass: A, mean(v), rstd mean(v n), rstd mean(q n), rstd mean(v n) A.
  void second_factors(const SecondChannels& s, i64 b, const float* rstd) const {
    const double count = static_cast<double>(P) * group;
    for (i64 c = C; c < padded; ++c) s.factor[c] = s.v_mean[c] = s.v_slope[c] = s.from_v[c] = s.from_d[c] = 0;
    for (i64 g = 0; g < groups; ++g) {
      const i64 first = g * group, last = first + group;
      const double over = rstd[first];
      double q = 0, qn = 0, v = 0, vn = 0;
      for (i64 c = first; c < last; ++c) {
        s.factor[c] = weight[c] * factor_at(b, c);
        q += static_cast<double>(s.factor[c]) * s.d[c];
        qn += static_cast<double>(s.factor[c]) * s.dc[c] * over;
        v += s.v[c];
        vn += s.vc[c] * over;
      }
      for (i64 c = first; c < last; ++c) {
        s.v_mean[c] = static_cast<float>(v / count);
        s.v_slope[c] = static_cast<float>(vn / count * over);
        s.from_v[c] = static_cast<float>(qn / count * over);
        s.from_d[c] = static_cast<float>(vn / count * over * s.factor[c]);
      }
    }
  }

  // From the sums of both passes: rstd, mean(E), rstd (mean(E n) + rstd D) over the rows of k, and the sums that are asked for.
  void last_factors(const Channels& k, const SecondChannels& s, i64 b, const float* rstd, const NormActGradients& out) const {
    const double count = static_cast<double>(P) * group;
    std::memset(k.first, 0, padded * 4), std::memset(k.second, 0, padded * 4);
    for (i64 g = 0; g < groups; ++g) {
      const i64 first = g * group, last = first + group;
      const double over = rstd[first];
      double arrives = 0, along_n = 0, through = 0, q = 0, qn = 0, v = 0, vn = 0;
      for (i64 c = first; c < last; ++c) {
        const double A = s.factor[c];
        arrives += A * s.e[c] - static_cast<double>(s.from_v[c]) * s.v[c] - static_cast<double>(s.from_d[c]) * s.d[c];
        along_n += over * (A * s.ec[c] - static_cast<double>(s.from_v[c]) * s.vc[c] - static_cast<double>(s.from_d[c]) * s.dc[c]);
        through += A * s.vd[c], q += A * s.d[c], qn += A * s.dc[c] * over, v += s.v[c], vn += s.vc[c] * over;
      }
      through = (through - v * q / count - vn * qn / count) / count;
      for (i64 c = first; c < last; ++c) {
        k.slope[c] = static_cast<float>(over);
        k.first[c] = static_cast<float>(arrives / count);
        k.second[c] = static_cast<float>(over * (along_n / count + over * through));
        out.sums[b * C + c] = s.e[c];
        out.normed_sums[b * C + c] = static_cast<float>(
            over * (s.ec[c] + s.vd[c] - static_cast<double>(s.v_mean[c]) * s.d[c] - static_cast<double>(s.v_slope[c]) * s.dc[c]));
      }
    }
  }
};

// f(first float of a thread's memory, image)
template <typename F>
Status each_image(i64 images, i64 floats, int threads, F f) {
  bool failed = false;
#pragma omp parallel num_threads(threads) if (threads > 1 && images > 1)
  {
    float* const memory = kept.take(floats);
    if (!memory) {
#pragma omp atomic write
      failed = true;
    }
#pragma omp for schedule(static)
    for (i64 b = 0; b < images; ++b)
      if (memory) f(memory, b);
  }
  return failed ? OUT_OF_MEMORY : nullptr;
}

template <typename T>
Status run_forward(const NormActInputs& in, T* y, float* mean, float* rstd, int threads) {
  const NormAct<T> n(in);
  return each_image(n.B, Channels::ROWS * n.padded, threads, [&](float* memory, i64 b) {
    n.forward_image(Channels(memory, n.padded), b, y + b * n.P * n.C, mean + b * n.C, rstd + b * n.C);
  });
}

template <typename T>
Status run_backward(const NormActInputs& in, const T* upstream, const float* mean, const float* rstd, const NormActGradients& out, int threads) {
  const NormAct<T> n(in);
  constexpr bool in_place = std::is_same<T, float>::value;  // a bfloat16 gradient has no room for a float32 one
  return each_image(n.B, (Channels::ROWS + (in_place ? 0 : n.P)) * n.padded, threads, [&](float* memory, i64 b) {
    float* inner = memory + Channels::ROWS * n.padded;
    if constexpr (in_place) inner = static_cast<float*>(out.x) + b * n.P * n.C;
    n.backward_image(Channels(memory, n.padded), b, upstream + b * n.P * n.C, mean + b * n.C, rstd + b * n.C, out, inner, in_place ? n.C : n.padded);
  });
}

template <typename T>
Status run_twice(const NormActInputs& in, const T* upstream, const T* along, const float* mean, const float* rstd, const NormActSecondGradients& out,
                 int threads) {
  const NormAct<T> n(in);
  constexpr bool in_place = std::is_same<T, float>::value;
  constexpr int rows = Channels::ROWS + SecondChannels::ROWS;
  return each_image(n.B, (rows + (in_place ? 0 : 2 * n.P)) * n.padded, threads, [&](float* memory, i64 b) {
    float *slopes = memory + rows * n.padded, *bends = slopes + n.P * n.padded;
    if constexpr (in_place) slopes = static_cast<float*>(out.upstream) + b * n.P * n.C, bends = static_cast<float*>(out.of.x) + b * n.P * n.C;
    n.second_image(Channels(memory, n.padded), SecondChannels(memory + Channels::ROWS * n.padded, n.padded), b, upstream + b * n.P * n.C,
                   along + b * n.P * n.C, mean + b * n.C, rstd + b * n.C, out, slopes, bends, in_place ? n.C : n.padded);
  });
}

Status forward(const NormActInputs& in, void* y, float* mean, float* rstd, int threads) {
  return in.dtype == DType::bfloat16 ? run_forward(in, static_cast<uint16_t*>(y), mean, rstd, threads)
                                     : run_forward(in, static_cast<float*>(y), mean, rstd, threads);
}

Status backward(const NormActInputs& in, const void* upstream, const float* mean, const float* rstd, const NormActGradients& out, int threads) {
  return in.dtype == DType::bfloat16 ? run_backward(in, static_cast<const uint16_t*>(upstream), mean, rstd, out, threads)
                                     : run_backward(in, static_cast<const float*>(upstream), mean, rstd, out, threads);
}

Status backward_twice(const NormActInputs& in, const void* upstream, const void* along, const float* mean, const float* rstd,
                      const NormActSecondGradients& out, int threads) {
  if (in.dtype == DType::bfloat16)
    return run_twice(in, static_cast<const uint16_t*>(upstream), static_cast<const uint16_t*>(along), mean, rstd, out, threads);
  return run_twice(in, static_cast<const float*>(upstream), static_cast<const float*>(along), mean, rstd, out, threads);
}

}  // namespace

extern const NormActCpu RDC_JOIN(norm_act_, RDC_ISA);
const NormActCpu RDC_JOIN(norm_act_, RDC_ISA) = {forward, backward, backward_twice};

}  // namespace rdc
