// Errors go to TensorRT's log, and to stderr where it has given none.
#pragma once

#include <string>

#include <NvInferRuntime.h>

namespace iwp {

void SetLoggerFinder(nvinfer1::ILoggerFinder* finder);

void LogError(const std::string& message) noexcept;

}  // namespace iwp
