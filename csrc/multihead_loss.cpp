// Chooses the CPU table, and stands in for CUDA where it was not built.
#include "multihead_loss.h"

namespace rdc {

extern const MultiheadLossCpu multihead_loss_baseline;
#ifdef RDC_X86
extern const MultiheadLossCpu multihead_loss_avx2;
extern const MultiheadLossCpu multihead_loss_avx512;
#ifdef RDC_AVX512BF16
extern const MultiheadLossCpu multihead_loss_avx512bf16;
#endif
#endif

static const MultiheadLossCpu& table(CpuIsa isa) {
#ifdef RDC_X86
#ifdef RDC_AVX512BF16
  if (isa == CpuIsa::avx512bf16) return multihead_loss_avx512bf16;
#endif
  if (isa == CpuIsa::avx512) return multihead_loss_avx512;
  if (isa == CpuIsa::avx2) return multihead_loss_avx2;
#endif
  (void)isa;
  return multihead_loss_baseline;
}

Status multihead_loss_cpu_forward(const MultiheadLossInputs& in, float* loss, void* kept, double* row_loss, int threads, CpuIsa isa) {
  return table(isa).forward(in, loss, kept, row_loss, threads);
}

Status multihead_loss_cpu_backward(const MultiheadLossInputs& in, const MultiheadLossGradients& out, const void* kept, int threads,
                                   CpuIsa isa) {
  return table(isa).backward(in, out, kept, threads);
}

const char* cuda_status() { return RDC_CUDA_STATUS; }

#ifdef RDC_CUDA
bool cuda_built() { return true; }
#else
bool cuda_built() { return false; }

int64_t multihead_loss_cuda_scratch(const MultiheadLossShape&, bool) { return 0; }
Status multihead_loss_cuda_forward(const MultiheadLossInputs&, float*, float*, int, void*) { return "CUDA was not built"; }
Status multihead_loss_cuda_backward(const MultiheadLossInputs&, const MultiheadLossGradients&, float*, int, void*) {
  return "CUDA was not built";
}
#endif

}  // namespace rdc
