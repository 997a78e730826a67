#include "cpu_isa.h"

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

namespace rdc {

long second_level_cache() {
  static const long bytes = [] {
    long found = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
    found = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    constexpr long least = 256L << 10, most = 4096L << 10;
    return found <= 0 ? 1024L << 10 : found < least ? least : found > most ? most : found;
  }();
  return bytes;
}

CpuIsa best_cpu_isa() {
#ifdef RDC_X86
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return CpuIsa::baseline;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
#ifdef RDC_AVX512BF16
    if (__builtin_cpu_supports("avx512bf16")) return CpuIsa::avx512bf16;
#endif
    return CpuIsa::avx512;
  }
  return CpuIsa::avx2;
#else
  return CpuIsa::baseline;
#endif
}

const char* name(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::avx512bf16: return "avx512bf16";
    case CpuIsa::avx512: return "avx512";
    case CpuIsa::avx2: return "avx2";
    default: return "baseline";
  }
}

}  // namespace rdc
