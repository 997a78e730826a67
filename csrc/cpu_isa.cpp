#include "cpu_isa.h"

namespace rdc {

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
