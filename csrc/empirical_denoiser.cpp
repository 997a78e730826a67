// Chooses the CPU table.
#include "empirical_denoiser.h"

namespace rdc {

extern const EmpiricalDenoiserCpu empirical_denoiser_baseline;
#ifdef RDC_X86
extern const EmpiricalDenoiserCpu empirical_denoiser_avx2;
extern const EmpiricalDenoiserCpu empirical_denoiser_avx512;
#ifdef RDC_AVX512BF16
extern const EmpiricalDenoiserCpu empirical_denoiser_avx512bf16;
#endif
#endif

static const EmpiricalDenoiserCpu& table(CpuIsa isa) {
#ifdef RDC_X86
#ifdef RDC_AVX512BF16
  if (isa == CpuIsa::avx512bf16) return empirical_denoiser_avx512bf16;
#endif
  if (isa == CpuIsa::avx512) return empirical_denoiser_avx512;
  if (isa == CpuIsa::avx2) return empirical_denoiser_avx2;
#endif
  (void)isa;
  return empirical_denoiser_baseline;
}

Status empirical_denoiser_cpu_forward(const EmpiricalDenoiserInputs& in, float* mean, float* kept, int threads, CpuIsa isa) {
  return table(isa).forward(in, mean, kept, threads);
}

Status empirical_denoiser_cpu_backward(const EmpiricalDenoiserInputs& in, const float* upstream, const float* mean, const float* kept,
                                       float* grad_inner, int threads, CpuIsa isa) {
  return table(isa).backward(in, upstream, mean, kept, grad_inner, threads);
}

}  // namespace rdc
