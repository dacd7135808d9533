// Which instruction sets this processor and operating system have.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace kogpt {

namespace {

#if defined(__x86_64__)

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}

// Leaf 7: EDX bit 22 AMX-BF16, 24 AMX-TILE, 25 AMX-INT8 (Intel SDM volume 2A, CPUID).
bool cpuid_has_amx() {
  unsigned eax = 7, ebx = 0, ecx = 0, edx = 0;
  asm volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
  constexpr unsigned kBits = 1u << 22 | 1u << 24 | 1u << 25;
  return (edx & kBits) == kBits;
}

// The kernel gives a process the 8 KB of tile state only when asked (Documentation/arch/x86/xstate.rst).
bool has_amx() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return has_avx512() && cpuid_has_amx() && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

#elif defined(__aarch64__)

// FEAT_DotProd: int8 products summed in int32.
bool has_dotprod() {
#if defined(__linux__)
  constexpr unsigned long kAsimdDp = 1ul << 20;  // Documentation/arch/arm64/elf_hwcaps.rst
  return (getauxval(AT_HWCAP) & kAsimdDp) != 0;
#elif defined(__APPLE__)
  int value = 0;
  std::size_t bytes = sizeof value;
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &value, &bytes, nullptr, 0) == 0 && value != 0;
#else
  return false;
#endif
}

#endif

// From best to plainest, the rest nullptr.
struct Present {
  const Kernels* sets[5] = {};
  int count = 0;
  void add(const Kernels& set) { sets[count++] = &set; }
};

Present present() {
  Present all;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (has_amx()) all.add(kAmx);
  if (has_avx512()) all.add(kAvx512);
  if (has_avx2()) all.add(kAvx2);
#elif defined(__aarch64__)
  if (has_dotprod()) all.add(kDotprod);
  all.add(kNeon);
#endif
  all.add(kPlain);
  return all;
}

}  // namespace

const Kernels* choose_kernels() {
  static const Present all = present();
  const char* wanted = std::getenv("KOGPT_ISA");
  if (wanted == nullptr || *wanted == '\0') return all.sets[0];
  for (const Kernels* set : all.sets) {
    if (set != nullptr && std::strcmp(set->name, wanted) == 0) return set;
  }
  return nullptr;
}

}  // namespace kogpt
