// Which of the compiled instruction sets this processor runs.
#pragma once

namespace rdc {

enum class CpuIsa { baseline = 0, avx2 = 1, avx512 = 2, avx512bf16 = 3 };

// The best set that was compiled and that the processor supports.
CpuIsa best_cpu_isa();
const char* name(CpuIsa isa);
// Bytes of a core's second-level cache, 256 KiB to 4 MiB; 1 MiB where the system does not say.
long second_level_cache();

}  // namespace rdc
