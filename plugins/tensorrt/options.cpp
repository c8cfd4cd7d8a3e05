#include "options.h"

#include <cmath>
#include <cstring>
#include <iterator>
#include <optional>

namespace iwp {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

struct FieldSpec {
  const char* name;
  PluginFieldType type;
};

enum Field { kChunk, kGrowth, kPenalty, kHeads, kMagnitude, kSimilarity, kDuplicationNorm, kNumFields };

// Names, types and order of the Python plugin's fields: an engine built with either loads with the other.
constexpr FieldSpec kFields[] = {
    {"chunk", PluginFieldType::kINT32},
    {"growth", PluginFieldType::kINT32},
    {"penalty", PluginFieldType::kFLOAT32},
    {"heads", PluginFieldType::kCHAR},
    {"magnitude", PluginFieldType::kCHAR},
    {"similarity", PluginFieldType::kCHAR},
    {"duplication_norm", PluginFieldType::kCHAR},
};
static_assert(std::size(kFields) == kNumFields);

// Values by the number of their enumeration in iwp_select_tokens.h.
constexpr const char* kHeadsNames[] = {"softmax", "raw"};
constexpr const char* kDuplicationNormNames[] = {"none", "minmax"};

// The only variants that the kernels compute.
constexpr const char* kMagnitudeName = "kernel_value";
constexpr const char* kSimilarityName = "dual_weight";

// A number, whichever type carries it: a graph built by hand may use 64 bits.
std::optional<double> NumberOf(const PluginField& field) {
  if (field.data == nullptr || field.length < 1) return std::nullopt;
  switch (field.type) {
    case PluginFieldType::kINT32:
      return *static_cast<const int32_t*>(field.data);
    case PluginFieldType::kINT64:
      return static_cast<double>(*static_cast<const int64_t*>(field.data));
    case PluginFieldType::kFLOAT32:
      return *static_cast<const float*>(field.data);
    case PluginFieldType::kFLOAT64:
      return *static_cast<const double*>(field.data);
    default:
      return std::nullopt;
  }
}

// A text, with or without an end mark: the ONNX parser adds one, an engine's field has none.
std::optional<std::string> TextOf(const PluginField& field) {
  if (field.data == nullptr || field.type != PluginFieldType::kCHAR || field.length < 0) return std::nullopt;
  const char* text = static_cast<const char*>(field.data);
  return std::string(text, strnlen(text, field.length));
}

std::string ReadWhole(const PluginField& field, int32_t* value) {
  const std::optional<double> number = NumberOf(field);
  if (!number || *number != std::floor(*number) || *number < 1 || *number > INT32_MAX) {
    return std::string(field.name) + " must be a whole number, 1 or more";
  }
  *value = static_cast<int32_t>(*number);
  return "";
}

std::string ReadPenalty(const PluginField& field, float* value) {
  const std::optional<double> number = NumberOf(field);
  if (!number || !(*number >= 0) || !std::isfinite(static_cast<float>(*number))) {
    return "penalty must be a finite number, 0 or more";
  }
  *value = static_cast<float>(*number);
  return "";
}

template <size_t N>
std::string ReadName(const PluginField& field, const char* const (&names)[N], int32_t* value) {
  const std::string text = TextOf(field).value_or("");
  std::string known;
  for (size_t i = 0; i < N; ++i) {
    if (text == names[i]) {
      *value = static_cast<int32_t>(i);
      return "";
    }
    known += (i == 0 ? "" : ", ") + std::string(names[i]);
  }
  return std::string(field.name) + " must be one of " + known + ", the node has '" + text + "'";
}

std::string ReadOnly(const PluginField& field, const char* implemented) {
  const std::string text = TextOf(field).value_or("");
  if (text == implemented) return "";
  const std::string name = field.name;
  return name + " '" + text + "' has no CUDA kernel, only '" + implemented + "' has; export with " + name + "=" +
         implemented + ", or run the bundle in ONNX Runtime";
}

std::string ReadField(int index, const PluginField& field, Options* options) {
  switch (index) {
    case kChunk:
      return ReadWhole(field, &options->chunk);
    case kGrowth:
      return ReadWhole(field, &options->growth);
    case kPenalty:
      return ReadPenalty(field, &options->penalty);
    case kHeads:
      return ReadName(field, kHeadsNames, &options->heads);
    case kMagnitude:
      return ReadOnly(field, kMagnitudeName);
    case kSimilarity:
      return ReadOnly(field, kSimilarityName);
    default:
      return ReadName(field, kDuplicationNormNames, &options->duplication_norm);
  }
}

PluginField TextField(int index, const char* text) {
  return {kFields[index].name, text, kFields[index].type, static_cast<int32_t>(std::strlen(text))};
}

}  // namespace

std::vector<PluginField> FieldNames() {
  std::vector<PluginField> fields;
  for (const FieldSpec& spec : kFields) fields.emplace_back(spec.name, nullptr, spec.type, 0);
  return fields;
}

std::vector<PluginField> FieldsOf(const Options& options) {
  return {
      {kFields[kChunk].name, &options.chunk, kFields[kChunk].type, 1},
      {kFields[kGrowth].name, &options.growth, kFields[kGrowth].type, 1},
      {kFields[kPenalty].name, &options.penalty, kFields[kPenalty].type, 1},
      TextField(kHeads, kHeadsNames[options.heads]),
      TextField(kMagnitude, kMagnitudeName),
      TextField(kSimilarity, kSimilarityName),
      TextField(kDuplicationNorm, kDuplicationNormNames[options.duplication_norm]),
  };
}

std::string ReadOptions(const nvinfer1::PluginFieldCollection& fields, Options* options) {
  std::string missing;
  for (int index = 0; index < kNumFields; ++index) {
    const PluginField* found = nullptr;
    for (int32_t i = 0; i < fields.nbFields; ++i) {
      if (std::strcmp(fields.fields[i].name, kFields[index].name) == 0) found = &fields.fields[i];
    }
    if (found == nullptr) {
      missing += (missing.empty() ? "" : ", ") + std::string(kFields[index].name);
      continue;
    }
    const std::string error = ReadField(index, *found, options);
    if (!error.empty()) return error;
  }
  return missing.empty() ? "" : "the node lacks the attributes " + missing + "; export the bundle again";
}

}  // namespace iwp
