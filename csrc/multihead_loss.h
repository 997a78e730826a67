// Multi-head diffusion loss: head convolution, squared error and the sum over noise levels in one pass.
//
//   pred[b, o]  = bias[o] + sum_{i, u, v} weight[o, i, u, v] * h[b, i, . + u - 1, . + v - 1]     (zero padding, o = k*C + j)
//   loss[n, k]  = sum_t level_weight[t] * sum_{j, y, x} (pred[n*T + t, k*C + j, y, x] - target[n*T + t, j, y, x])^2
//
// The prediction [N*T, K*C, H, W] never exists: it lives one block of classes and one image at a time (CPU) or in registers (CUDA).
// The CPU kernels can keep its residuals for the backward pass, for the caller who finds them small.
// No torch here: raw pointers, sizes, threads, a device and a stream handle.
#pragma once

#include <cstdint>

#include "cpu_isa.h"

namespace rdc {

enum class DType { float32 = 0, bfloat16 = 1 };

struct MultiheadLossShape {
  int64_t N, T, c, H, W, K, C;
  int64_t rows() const { return N * T; }
  int64_t outputs() const { return K * C; }
};

// Kept residuals (CPU): [N*T, H*W, kept_outputs] in the inputs' dtype, pred - target rounded once; zeros in outputs beyond K*C.
inline int64_t kept_outputs(const MultiheadLossShape& s) { return (s.outputs() + 15) / 16 * 16; }

// All tensors are dense and row-major except h and grad_h, which come with strides in elements: [batch, channel, y, x].
struct MultiheadLossInputs {
  MultiheadLossShape shape;
  DType dtype;                // of h, weight, bias, target and of their gradients
  const void* h;              // [N*T, c, H, W] dtype, strided
  int64_t h_stride[4];
  const void* weight;         // [K*C, c, 3, 3] dtype
  const void* bias;           // [K*C] dtype
  const void* target;         // [N*T, C, H, W] dtype
  const float* level_weight;  // [T] float32
};

// A null pointer means: not wanted, and no work is done for it.
struct MultiheadLossGradients {
  const float* grad_loss;  // [N, K] float32
  void* h;                 // [N*T, c, H, W] dtype, strided
  int64_t h_stride[4];
  void* weight;            // [K*C, c, 3, 3] dtype
  void* bias;              // [K*C] dtype
  void* target;            // [N*T, C, H, W] dtype
  float* level_row;        // CUDA: [N*T] float32, its sum over n is the gradient of level_weight. CPU: null, forward keeps row losses
};

// Returned by every entry point: null on success, else a message with static lifetime.
using Status = const char*;

// One table for each instruction set. kept: residuals that forward writes and backward then reads; null: backward predicts again.
// row_loss [N*T, K] float64: the loss before it is weighted and summed over levels; null: not wanted
struct MultiheadLossCpu {
  Status (*forward)(const MultiheadLossInputs&, float* loss /* [N, K] float32 */, void* kept, double* row_loss, int threads);
  Status (*backward)(const MultiheadLossInputs&, const MultiheadLossGradients&, const void* kept, int threads);
};

Status multihead_loss_cpu_forward(const MultiheadLossInputs&, float* loss, void* kept, double* row_loss, int threads, CpuIsa);
Status multihead_loss_cpu_backward(const MultiheadLossInputs&, const MultiheadLossGradients&, const void* kept, int threads, CpuIsa);

// CUDA: pointers on `device`; kernels go to `stream` and nothing waits for them. scratch: float32, at least
// multihead_loss_cuda_scratch(shape) elements, allocated by the caller (so that torch's caching allocator owns it).
int64_t multihead_loss_cuda_scratch(const MultiheadLossShape&, bool backward);
Status multihead_loss_cuda_forward(const MultiheadLossInputs&, float* loss, float* scratch, int device, void* stream);
Status multihead_loss_cuda_backward(const MultiheadLossInputs&, const MultiheadLossGradients&, float* scratch, int device,
                                    void* stream);

bool cuda_built();
const char* cuda_status();  // how CUDA was built, or why not

}  // namespace rdc
