// Chooses the CPU table.
#include "norm_act.h"

namespace rdc {

extern const NormActCpu norm_act_baseline;
#ifdef RDC_X86
extern const NormActCpu norm_act_avx2;
extern const NormActCpu norm_act_avx512;
#ifdef RDC_AVX512BF16
extern const NormActCpu norm_act_avx512bf16;
#endif
#endif

static const NormActCpu& table(CpuIsa isa) {
#ifdef RDC_X86
#ifdef RDC_AVX512BF16
  if (isa == CpuIsa::avx512bf16) return norm_act_avx512bf16;
#endif
  if (isa == CpuIsa::avx512) return norm_act_avx512;
  if (isa == CpuIsa::avx2) return norm_act_avx2;
#endif
  (void)isa;
  return norm_act_baseline;
}

Status norm_act_forward(const NormActInputs& in, void* y, float* mean, float* rstd, int threads, CpuIsa isa) {
  return table(isa).forward(in, y, mean, rstd, threads);
}

Status norm_act_backward(const NormActInputs& in, const void* upstream, const float* mean, const float* rstd, const NormActGradients& out,
                         int threads, CpuIsa isa) {
  return table(isa).backward(in, upstream, mean, rstd, out, threads);
}

Status norm_act_backward_twice(const NormActInputs& in, const void* upstream, const void* along, const float* mean, const float* rstd,
                               const NormActSecondGradients& out, int threads, CpuIsa isa) {
  return table(isa).backward_twice(in, upstream, along, mean, rstd, out, threads);
}

}  // namespace rdc
