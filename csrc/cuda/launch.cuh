// Launching and device choice, apart from the kernels so that tests/ops/cuda_emulation can stand in for them.
#pragma once

#ifdef RDC_CUDA_EMULATION
#include "cuda_emulation.h"
#else

#include <cuda_bf16.h>
#include <cuda_runtime.h>

namespace rdc {
namespace {

// Makes `device` current for a scope. This library has its own CUDA runtime, but shares the primary context with torch's.
struct DeviceScope {
  int before = -1;
  explicit DeviceScope(int device) {
    if (cudaGetDevice(&before) == cudaSuccess && before != device) cudaSetDevice(device);
    else before = -1;
  }
  ~DeviceScope() { if (before >= 0) cudaSetDevice(before); }
};

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, void* stream, Arguments... arguments) {
  kernel<<<grid, threads, 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
}

inline const char* launch_error() {
  cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace
}  // namespace rdc

#endif
