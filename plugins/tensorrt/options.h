// The plugin's fields: the attributes of an iwp::SelectTokens node, and what an engine stores beside them.
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
  int32_t similarity;        // IwpSimilarity
  int32_t duplication_norm;  // IwpDuplicationNorm
  int32_t select;            // IwpSelect
  int64_t workspace;         // bytes that TensorRT was asked for when the engine was built; 0 before that
};

// Names and types of the node's attributes, without values.
std::vector<nvinfer1::PluginField> AttributeNames();

// The fields that an engine stores of `options`; they point into it.
std::vector<nvinfer1::PluginField> FieldsOf(const Options& options);

// Reads a node's attributes or, when an engine is loaded (kRUNTIME), also what only an engine stores. Returns an empty
// string, or why the fields are refused and what to do.
std::string ReadOptions(const nvinfer1::PluginFieldCollection& fields, nvinfer1::TensorRTPhase phase,
                        Options* options);

}  // namespace iwp
