// Enough of CUDA to run csrc/cuda/*.cu on one CPU thread: a block's threads are fibers that take turns at __syncthreads().
// Checks indexing, bounds and sums; says nothing about races between barriers, memory spaces, or speed.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(threads)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
static dim3 threadIdx, blockIdx, gridDim;

struct __nv_bfloat16 { uint16_t bits; };
inline float __bfloat162float(__nv_bfloat16 x) {
  uint32_t b = static_cast<uint32_t>(x.bits) << 16;
  float f;
  std::memcpy(&f, &b, 4);
  return f;
}
inline __nv_bfloat16 __float2bfloat16(float f) {
  uint32_t b;
  std::memcpy(&b, &f, 4);
  return {static_cast<uint16_t>((b + 0x7fff + ((b >> 16) & 1)) >> 16)};
}

namespace emulation {
struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  bool done = false;
};
static ucontext_t scheduler;
static Fiber* current;
static std::function<void()> body;

inline void enter() {
  body();
  current->done = true;
}

inline void run_block(unsigned threads) {
  static std::vector<Fiber> fibers;
  fibers.resize(threads);
  for (Fiber& f : fibers) {
    f.done = false;
    f.stack.resize(64 << 10);
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.data();
    f.context.uc_stack.ss_size = f.stack.size();
    f.context.uc_link = &scheduler;
    makecontext(&f.context, enter, 0);
  }
  for (unsigned left = threads; left;) {
    left = 0;
    for (unsigned i = 0; i < threads; ++i) {
      if (fibers[i].done) continue;
      current = &fibers[i];
      threadIdx = dim3(i);
      swapcontext(&scheduler, &fibers[i].context);
      left += !fibers[i].done;
    }
  }
}
}  // namespace emulation

inline void __syncthreads() {
  unsigned me = threadIdx.x;
  swapcontext(&emulation::current->context, &emulation::scheduler);
  threadIdx = dim3(me);
}

namespace rdc {
namespace {
struct DeviceScope { explicit DeviceScope(int) {} };

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, void*, Arguments... arguments) {
  gridDim = grid;
  emulation::body = [=] { kernel(arguments...); };
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        emulation::run_block(static_cast<unsigned>(threads));
      }
}

inline const char* launch_error() { return nullptr; }
}  // namespace
}  // namespace rdc
