#include "log.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdint>
#include <cstdio>

namespace iwp {
namespace {

using nvinfer1::ILogger;

// Of the classes used here only ILogger and ILoggerFinder have other virtual tables in TensorRT 11 than in 10: 11 put
// IVersionedInterface (getAPILanguage, getInterfaceInfo, two destructors) before their one function. A call through
// either header's class would run a wrong function in the other, so the two are told apart when the library runs, and
// called by their place in the table. Not through classes declared here: no derived class is in sight, so the compiler
// takes their functions for never overridden.
constexpr int kFirst = 0;
constexpr int kAfterVersionedInterface = 4;

void* FunctionAt(void* object, int place) { return (*static_cast<void***>(object))[place]; }

void* FindLogger(void* finder, int place) {
  return reinterpret_cast<void* (*)(void*)>(FunctionAt(finder, place))(finder);
}

// Whether the TensorRT in which `function` lies has a logger, by the C function that it exports.
bool LibraryHasLogger(void* function) {
  Dl_info library;
  if (dladdr(function, &library) == 0) return false;
  void* handle = dlopen(library.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  if (handle == nullptr) return false;
  void* get_logger = dlsym(handle, "getLogger");
  const bool has_logger = get_logger != nullptr && reinterpret_cast<void* (*)()>(get_logger)() != nullptr;
  dlclose(handle);
  return has_logger;
}

std::atomic<void*> logger_finder{nullptr};

bool LogToTensorRT(const char* message) {
  void* finder = logger_finder.load();
  if (finder == nullptr) return false;
  // The first function is findLogger in TensorRT 10, and in 11 getAPILanguage, which leaves 0 or 1 in the lower half of
  // a register: no logger lies at such an address, but 0 may also say that there is none.
  void* logger = FindLogger(finder, kFirst);
  if (logger == nullptr && !LibraryHasLogger(FunctionAt(finder, kFirst))) return false;
  const bool is_versioned = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(logger)) <= 1;
  const int place = is_versioned ? kAfterVersionedInterface : kFirst;
  if (is_versioned) logger = FindLogger(finder, place);
  if (logger == nullptr) return false;
  using Log = void (*)(void*, ILogger::Severity, const char*);
  reinterpret_cast<Log>(FunctionAt(logger, place))(logger, ILogger::Severity::kERROR, message);
  return true;
}

}  // namespace

void SetLoggerFinder(nvinfer1::ILoggerFinder* finder) { logger_finder.store(finder); }

void LogError(const std::string& message) noexcept {
  const std::string line = "iwp::SelectTokens: " + message;
  if (!LogToTensorRT(line.c_str())) std::fprintf(stderr, "%s\n", line.c_str());
}

}  // namespace iwp
