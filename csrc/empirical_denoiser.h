// The optimal denoiser of an empirical distribution: softmax-weighted means of its images.
//
//   score[r, i] = beta[r] * (inner[n, i] + noise_inner[t, i] - half_square[i])       r = n*T + t
//   mean[r, :]  = sum_i exp(score[r, i] - max_i) images[i, :] / sum_i exp(score[r, i] - max_i)
//
// Images further than `cut` below the largest score of their row are left out. At low noise all but a few of them are, so that the kernel
// does what a matrix product cannot: skip. Rows that need many images go through register tiles like a matrix product.
// No torch here: raw pointers, sizes and threads.
#pragma once

#include <cstdint>

#include "multihead_loss.h"  // Status, CpuIsa

namespace rdc {

// All tensors are dense, row-major, float32.
struct EmpiricalDenoiserInputs {
  int64_t N, T, count, D;
  const float* inner;        // [N, count]
  const float* noise_inner;  // [T, count]
  const float* images;       // [count, D]
  const float* half_square;  // [count]
  const float* beta;         // [N*T]
  float cut;
};

// kept [N*T, 2]: largest score before it is multiplied by beta, sum of weights; what backward needs beside the inputs and the mean [N*T, D].
struct EmpiricalDenoiserCpu {
  Status (*forward)(const EmpiricalDenoiserInputs&, float* mean, float* kept, int threads);
  // grad_inner [N, count], zeros on entry: sum over t of beta w_i (images_i - mean) . upstream
  Status (*backward)(const EmpiricalDenoiserInputs&, const float* upstream, const float* mean, const float* kept, float* grad_inner, int threads);
};

Status empirical_denoiser_cpu_forward(const EmpiricalDenoiserInputs&, float* mean, float* kept, int threads, CpuIsa);
Status empirical_denoiser_cpu_backward(const EmpiricalDenoiserInputs&, const float* upstream, const float* mean, const float* kept,
                                       float* grad_inner, int threads, CpuIsa);

}  // namespace rdc
