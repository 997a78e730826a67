// Chooses the CPU table.
#include "convolution.h"

#include <cstring>

namespace rdc {

extern const ConvolutionCpu convolution_baseline;
#ifdef RDC_X86
extern const ConvolutionCpu convolution_avx2;
extern const ConvolutionCpu convolution_avx512;
#ifdef RDC_AVX512BF16
extern const ConvolutionCpu convolution_avx512bf16;
#endif
#endif

extern const ConvolutionWeightCpu convolution_weight_baseline;
#ifdef RDC_X86
extern const ConvolutionWeightCpu convolution_weight_avx2;
extern const ConvolutionWeightCpu convolution_weight_avx512;
#ifdef RDC_AVX512BF16
extern const ConvolutionWeightCpu convolution_weight_avx512bf16;
#endif
#endif

static const ConvolutionCpu& table(CpuIsa isa) {
#ifdef RDC_X86
#ifdef RDC_AVX512BF16
  if (isa == CpuIsa::avx512bf16) return convolution_avx512bf16;
#endif
  if (isa == CpuIsa::avx512) return convolution_avx512;
  if (isa == CpuIsa::avx2) return convolution_avx2;
#endif
  (void)isa;
  return convolution_baseline;
}

static const ConvolutionWeightCpu& weight_table(CpuIsa isa) {
#ifdef RDC_X86
#ifdef RDC_AVX512BF16
  if (isa == CpuIsa::avx512bf16) return convolution_weight_avx512bf16;
#endif
  if (isa == CpuIsa::avx512) return convolution_weight_avx512;
  if (isa == CpuIsa::avx2) return convolution_weight_avx2;
#endif
  (void)isa;
  return convolution_weight_baseline;
}

int64_t convolution_packed_size(int64_t outputs, int64_t inputs, CpuIsa isa) { return table(isa).packed_size(outputs, inputs); }

void convolution_pack(const float* weight, int64_t outputs, int64_t inputs, bool reversed, float* packed, int threads, CpuIsa isa) {
  table(isa).pack(weight, outputs, inputs, reversed, packed, threads);
}

Status convolution_forward(const ConvolutionInputs& in, void* y, int threads, CpuIsa isa) { return table(isa).forward(in, y, threads); }

int64_t convolution_weight_scratch(const ConvolutionPair& in, CpuIsa isa) { return weight_table(isa).scratch(in); }

void convolution_weight_gradient(const ConvolutionPair& in, float* scratch, float* weight, const int64_t* stride, int threads, CpuIsa isa) {
  weight_table(isa).gradient(in, scratch, weight, stride, threads);
}

// Chains of a multiply and an exclusive or each.
uint64_t fingerprint(const void* data, int64_t bytes) {
  constexpr int64_t AHEAD = 2048;
  constexpr int CHAINS = 8;  // side by side: a multiplication waits for the one before it in its chain
  constexpr uint64_t odd[CHAINS] = {0x9e3779b97f4a7c15, 0xc2b2ae3d27d4eb4f, 0x165667b19e3779f9, 0xd6e8feb86659fd93,
                                    0xa0761d6478bd642f, 0xe7037ed1a0b428db, 0x8ebc6af09c88c6e3, 0x589965cc75374cc3};
  const char* at = static_cast<const char*>(data);
  uint64_t chain[CHAINS] = {1, 2, 3, 4, 5, 6, 7, 8};
  int64_t i = 0;
  for (; i + 8 * CHAINS <= bytes; i += 8 * CHAINS) {
    __builtin_prefetch(at + i + AHEAD);  // beyond the end it does nothing
    for (int c = 0; c < CHAINS; ++c) {
      uint64_t word;
      std::memcpy(&word, at + i + 8 * c, 8);
      chain[c] = (chain[c] ^ word) * odd[c];
      chain[c] ^= chain[c] >> 29;
    }
  }
  for (; i < bytes; ++i) {
    chain[0] = (chain[0] ^ static_cast<unsigned char>(at[i])) * odd[0];
    chain[0] ^= chain[0] >> 29;
  }
  uint64_t all = static_cast<uint64_t>(bytes);
  for (int c = 0; c < CHAINS; ++c) {
    all = (all ^ chain[c]) * odd[c];
    all ^= all >> 32;
  }
  return all;
}

}  // namespace rdc
