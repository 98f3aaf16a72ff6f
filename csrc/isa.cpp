#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace fl {
namespace {

Isa initial() {
  const char* wish = std::getenv("FASTLATENT_ISA");
  if (wish != nullptr && *wish != '\0') {
    const Isa set = isa_named(wish);
    if (!supported(set)) {
      throw std::invalid_argument(std::string("FASTLATENT_ISA: this processor or build has no ") + wish);
    }
    return set;
  }
  for (const Isa set : {Isa::avx512, Isa::avx2}) {
    if (supported(set)) return set;
  }
  return Isa::baseline;
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> set{initial()};
  return set;
}

}  // namespace

bool supported(Isa set) {
#if defined(FL_X86)
  switch (set) {
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vpopcntdq");
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
             __builtin_cpu_supports("popcnt");
    case Isa::baseline:
      return true;
  }
#endif
  return set == Isa::baseline;
}

Isa isa() { return chosen().load(std::memory_order_relaxed); }

void use_isa(Isa set) {
  if (!supported(set)) {
    throw std::invalid_argument(std::string("use_isa: this processor or build has no ") + name(set));
  }
  chosen() = set;
}

const char* name(Isa set) {
  switch (set) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::baseline:
      break;
  }
  return "baseline";
}

Isa isa_named(const char* word) {
  for (const Isa set : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (std::strcmp(word, name(set)) == 0) return set;
  }
  throw std::invalid_argument(std::string("instruction set must be baseline, avx2 or avx512; got ") + word);
}

}  // namespace fl
