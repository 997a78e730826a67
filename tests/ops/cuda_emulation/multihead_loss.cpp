// The CUDA kernels as a plain C library, for ctypes. shape: N T c H W K C; strides: of h [4], of grad_h [4].
#define RDC_CUDA_EMULATION
#define RDC_RESIDUAL_BYTES 20000  // one or two images at a time
#include "../../../csrc/cuda/multihead_loss.cu"

static rdc::MultiheadLossInputs inputs(const int64_t* shape, int half, const int64_t* stride, void* const* p) {
  rdc::MultiheadLossInputs in{};
  in.shape = {shape[0], shape[1], shape[2], shape[3], shape[4], shape[5], shape[6]};
  in.dtype = half ? rdc::DType::bfloat16 : rdc::DType::float32;
  for (int i = 0; i < 4; ++i) in.h_stride[i] = stride[i];
  in.h = p[0];
  in.weight = p[1];
  in.bias = p[2];
  in.target = p[3];
  in.level_weight = static_cast<const float*>(p[4]);
  return in;
}

extern "C" int64_t scratch_floats(const int64_t* s, int backward) {
  return rdc::multihead_loss_cuda_scratch({s[0], s[1], s[2], s[3], s[4], s[5], s[6]}, backward != 0);
}

extern "C" void forward(const int64_t* shape, int half, const int64_t* stride, void* const* in, float* loss, float* scratch) {
  rdc::multihead_loss_cuda_forward(inputs(shape, half, stride, in), loss, scratch, 0, nullptr);
}

extern "C" void backward(const int64_t* shape, int half, const int64_t* stride, void* const* in, const int64_t* grad_stride, void* const* out,
                         float* scratch) {
  rdc::MultiheadLossGradients g{};
  g.grad_loss = static_cast<const float*>(out[0]);
  g.h = out[1];
  for (int i = 0; i < 4; ++i) g.h_stride[i] = grad_stride[i];
  g.weight = out[2];
  g.bias = out[3];
  g.target = out[4];
  g.level_row = static_cast<float*>(out[5]);
  rdc::multihead_loss_cuda_backward(inputs(shape, half, stride, in), g, scratch, 0, nullptr);
}
