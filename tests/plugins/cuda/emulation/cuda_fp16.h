// Half precision as the compiler has it.
#pragma once

#include <cstdint>
#include <cstring>

struct __half {
  __half() = default;
  explicit __half(float x) : value(static_cast<_Float16>(x)) {}
  _Float16 value;
};
static_assert(sizeof(__half) == 2, "the kernels read 16-bit elements");

inline float __half2float(__half x) { return static_cast<float>(x.value); }
