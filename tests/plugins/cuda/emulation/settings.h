// What a test chooses for a call: environment variables IWP_EMULATION_..., read at each use.
#pragma once

#include <cstdlib>
#include <string>

namespace emulation {

inline int Setting(const std::string& name, int otherwise) {
  const char* given = std::getenv(("IWP_EMULATION_" + name).c_str());
  return given != nullptr ? std::atoi(given) : otherwise;
}

// A constant of the kernels' host code that tests may replace, by its name.
class Threshold {
 public:
  Threshold(const char* name, int otherwise) : name_(name), otherwise_(otherwise) {}
  operator int() const { return Setting(name_, otherwise_); }

 private:
  const char* name_;
  int otherwise_;
};

}  // namespace emulation
