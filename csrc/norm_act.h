// Group normalisation with what stands around it in a U-Net, in one pass of memory over images in channels_last.
//
//   y = act(normalised(x + pre) * slope + offset),  slope = weight * (1 + scale),  offset = bias * (1 + scale) + shift
//
// Sums are float32 along an image's positions and float64 beyond, in a fixed order. No torch here: raw pointers, sizes and threads.
#pragma once

#include <cstdint>

#include "multihead_loss.h"  // Status, CpuIsa, DType

namespace rdc {

// Dense, row-major; conditions have rows of C floats, `*_row` floats apart (0: one for all images).
struct NormActInputs {
  int64_t B, P, C, groups;  // P: positions of an image
  DType dtype;              // of x, y and their gradients
  const void* x;            // [B, P, C]
  const float* weight;      // [C]
  const float* bias;        // [C]
  const float* pre;         // [B, C] or [C], or null
  int64_t pre_row;
  const float* scale;       // [B, C], or null
  const float* shift;       // [B, C], with scale
  int64_t scale_row;
  float eps;
  bool silu;
};

// What the backward pass writes. Sums over positions, for every image and channel: of the gradient in front of the activation, of this times the
// normalised x, and of the gradient of x.
struct NormActGradients {
  void* x;                               // [B, P, C]
  float *sums, *normed_sums, *grad_sums;  // [B, C]; grad_sums may be null
};

// What the backward pass of the backward pass writes, `along` being the gradient of the gradient of x: the gradient of the upstream gradient, of x,
// and sums for every image and channel: of the gradient in front of the activation, of what arrives at the slope, and of the gradient of x.
struct NormActSecondGradients {
  void* upstream;  // [B, P, C]
  NormActGradients of;
};

struct NormActCpu {
  // mean, rstd [B, C]: of x + pre, the same for all of a group
  Status (*forward)(const NormActInputs&, void* y, float* mean, float* rstd, int threads);
  Status (*backward)(const NormActInputs&, const void* upstream, const float* mean, const float* rstd, const NormActGradients&, int threads);
  Status (*backward_twice)(const NormActInputs&, const void* upstream, const void* along, const float* mean, const float* rstd,
                           const NormActSecondGradients&, int threads);
};

Status norm_act_forward(const NormActInputs&, void* y, float* mean, float* rstd, int threads, CpuIsa);
Status norm_act_backward(const NormActInputs&, const void* upstream, const float* mean, const float* rstd, const NormActGradients&, int threads,
                         CpuIsa);
Status norm_act_backward_twice(const NormActInputs&, const void* upstream, const void* along, const float* mean, const float* rstd,
                               const NormActSecondGradients&, int threads, CpuIsa);

}  // namespace rdc
