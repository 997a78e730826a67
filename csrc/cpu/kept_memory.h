// Memory that a thread keeps from call to call: the pages of a fresh array would cost more than small calls take.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace rdc {
namespace {

struct KeptMemory {
  void* memory = nullptr;
  int64_t floats = 0;
  ~KeptMemory() { std::free(memory); }
  // null: there is not as much
  float* take(int64_t wanted) {
    if (wanted > floats) {
      std::free(memory);
      memory = nullptr;
      floats = posix_memalign(&memory, 64, static_cast<size_t>(wanted) * 4) ? 0 : wanted;
    }
    return static_cast<float*>(floats ? memory : nullptr);
  }
};

}  // namespace
}  // namespace rdc
