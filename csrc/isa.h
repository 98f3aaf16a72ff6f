// Which instruction set serves this process. A kernel file is compiled once for each set, into the namespace of its
// name; nothing with a body is shared between them, or the linker could keep the AVX-512 copy for an old processor.
#pragma once

namespace fl {

// avx2: x86-64-v3. avx512: x86-64-v4 with VPOPCNTDQ (Ice Lake, Zen 4 and later).
enum class Isa { baseline, avx2, avx512 };

Isa isa();            // the set in use: the best one, or the one that FASTLATENT_ISA names
bool supported(Isa);  // built in, and known to this processor and its operating system
void use_isa(Isa);    // throws std::invalid_argument where it is not supported
const char* name(Isa);
Isa isa_named(const char*);  // throws std::invalid_argument for an unknown name

}  // namespace fl

// FL_KERNELS(bits) is the table of the set in use: &fl::avx512::bits and so on.
#if defined(FL_X86)
#define FL_DECLARE_KERNELS(Table, table) \
  namespace baseline {                   \
  extern const Table table;              \
  }                                      \
  namespace avx2 {                       \
  extern const Table table;              \
  }                                      \
  namespace avx512 {                     \
  extern const Table table;              \
  }
#define FL_KERNELS(table)                           \
  (fl::isa() == fl::Isa::avx512 ? fl::avx512::table \
   : fl::isa() == fl::Isa::avx2 ? fl::avx2::table   \
                                : fl::baseline::table)
#else
#define FL_DECLARE_KERNELS(Table, table) \
  namespace baseline {                   \
  extern const Table table;              \
  }
#define FL_KERNELS(table) (fl::baseline::table)
#endif
