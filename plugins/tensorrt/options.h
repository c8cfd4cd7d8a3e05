// The attributes of an iwp::SelectTokens node as plugin fields, in a graph and in an engine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <NvInferRuntime.h>

#include "iwp_select_tokens.h"

namespace iwp {

struct Options {
  int32_t chunk;
  int32_t growth;
  float penalty;
  int32_t heads;             // IwpHeads
  int32_t duplication_norm;  // IwpDuplicationNorm
};

// Names and types of the fields, without values.
std::vector<nvinfer1::PluginField> FieldNames();

// The fields of `options`; they point into it.
std::vector<nvinfer1::PluginField> FieldsOf(const Options& options);

// Returns an empty string, or why the fields are refused and what to do.
std::string ReadOptions(const nvinfer1::PluginFieldCollection& fields, Options* options);

}  // namespace iwp
