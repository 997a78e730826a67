// 3 x 3 convolution of images in channels_last, stride 1, a border of one zero: what a U-Net spends its time on.
//
//   y[b, v, u, o] = bias[o] + sum_{dv, du, i} x[b, v + dv - 1, u + du - 1, i] * weight[o, i, dv, du]
//
// Minimal filtering: 16 outputs from 36 products instead of 144 (cpu/filtering.h). Weights are transformed once and kept by the
// caller. The gradient of x is the same convolution with the weight reversed and its axes exchanged (`reversed`).
// No torch here: raw pointers, sizes and threads.
#pragma once

#include <cstdint>

#include "multihead_loss.h"  // Status, CpuIsa, DType

namespace rdc {

// All arrays are dense, row-major.
struct ConvolutionInputs {
  int64_t B, H, W, I, O;  // of the output, H and W at least 1
  bool doubled;           // x has half the height and width, and every pixel of it counts for 2 x 2
  DType dtype;            // of x, skip and y
  const void* x;          // [B, H, W, I]; doubled: [B, H/2, W/2, I]
  const float* packed;    // of convolution_pack, on the same instruction set
  const float* bias;      // [O], or null
  const void* skip;       // [B, H, W, O], or null
  bool skip_doubled;      // it is [B, H/2, W/2, O], and every pixel of it counts for 2 x 2
  float factor;           // y = factor * (convolution + bias + skip)
};

// What the gradient of the weight is made of: images as of the convolution, and the gradient of its sum.
struct ConvolutionPair {
  int64_t B, H, W, I, O;
  bool doubled;
  DType dtype;       // of x and grad
  const void* x;     // [B, H, W, I]; doubled: [B, H/2, W/2, I]
  const void* grad;  // [B, H, W, O]
  float factor;
};

struct ConvolutionCpu {
  int64_t (*packed_size)(int64_t outputs, int64_t inputs);  // floats
  // weight [O, I, 3, 3] -> packed; reversed: weight [I, O, 3, 3] is that of the convolution whose gradient is computed
  void (*pack)(const float* weight, int64_t outputs, int64_t inputs, bool reversed, float* packed, int threads);
  Status (*forward)(const ConvolutionInputs&, void* y, int threads);
};

struct ConvolutionWeightCpu {
  int64_t (*scratch)(const ConvolutionPair&);  // floats
  // weight [O, I, 3, 3] with strides: factor * sum over images and pixels of grad times x
  void (*gradient)(const ConvolutionPair&, float* scratch, float* weight, const int64_t* stride, int threads);
};

int64_t convolution_packed_size(int64_t outputs, int64_t inputs, CpuIsa);
void convolution_pack(const float* weight, int64_t outputs, int64_t inputs, bool reversed, float* packed, int threads, CpuIsa);
Status convolution_forward(const ConvolutionInputs&, void* y, int threads, CpuIsa);
int64_t convolution_weight_scratch(const ConvolutionPair&, CpuIsa);
void convolution_weight_gradient(const ConvolutionPair&, float* scratch, float* weight, const int64_t* stride, int threads, CpuIsa);

// A number that tells the contents of two arrays apart, but for one chance in 2^64.
uint64_t fingerprint(const void* data, int64_t bytes);

}  // namespace rdc
