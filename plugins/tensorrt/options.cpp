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

enum Field { kChunk, kGrowth, kPenalty, kSimilarity, kDuplicationNorm, kSelect, kWorkspace, kNumFields };
constexpr int kNumAttributes = kWorkspace;  // the node has those before it

// Names, types and order of the Python plugin's fields: an engine built with either loads with the other.
constexpr FieldSpec kFields[] = {
    {"chunk", PluginFieldType::kINT32},
    {"growth", PluginFieldType::kINT32},
    {"penalty", PluginFieldType::kFLOAT32},
    {"similarity", PluginFieldType::kCHAR},
    {"duplication_norm", PluginFieldType::kCHAR},
    {"select", PluginFieldType::kCHAR},
    {"workspace", PluginFieldType::kINT64},
};
static_assert(std::size(kFields) == kNumFields);

// Values by the number of their enumeration in iwp_select_tokens.h.
constexpr const char* kSimilarityNames[] = {"dual_weight", "value", "key", "kernel"};
constexpr const char* kDuplicationNormNames[] = {"none", "minmax"};
constexpr const char* kSelectNames[] = {"mmr", "coverage"};

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

template <typename Integer>
std::string ReadWhole(const PluginField& field, double largest, Integer* value) {
  const std::optional<double> number = NumberOf(field);
  if (!number || *number != std::floor(*number) || *number < 1 || *number > largest) {
    return std::string(field.name) + " must be a whole number, 1 or more";
  }
  *value = static_cast<Integer>(*number);
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

std::string ReadField(int index, const PluginField& field, Options* options) {
  constexpr double kMaxBytes = 1ull << 53;  // a double holds any whole number up to here
  switch (index) {
    case kChunk:
      return ReadWhole(field, INT32_MAX, &options->chunk);
    case kGrowth:
      return ReadWhole(field, INT32_MAX, &options->growth);
    case kPenalty:
      return ReadPenalty(field, &options->penalty);
    case kSimilarity:
      return ReadName(field, kSimilarityNames, &options->similarity);
    case kDuplicationNorm:
      return ReadName(field, kDuplicationNormNames, &options->duplication_norm);
    case kSelect:
      return ReadName(field, kSelectNames, &options->select);
    default:
      return ReadWhole(field, kMaxBytes, &options->workspace);
  }
}

PluginField TextField(int index, const char* text) {
  return {kFields[index].name, text, kFields[index].type, static_cast<int32_t>(std::strlen(text))};
}

}  // namespace

std::vector<PluginField> AttributeNames() {
  std::vector<PluginField> fields;
  for (int i = 0; i < kNumAttributes; ++i) fields.emplace_back(kFields[i].name, nullptr, kFields[i].type, 0);
  return fields;
}

std::vector<PluginField> FieldsOf(const Options& options) {
  return {
      {kFields[kChunk].name, &options.chunk, kFields[kChunk].type, 1},
      {kFields[kGrowth].name, &options.growth, kFields[kGrowth].type, 1},
      {kFields[kPenalty].name, &options.penalty, kFields[kPenalty].type, 1},
      TextField(kSimilarity, kSimilarityNames[options.similarity]),
      TextField(kDuplicationNorm, kDuplicationNormNames[options.duplication_norm]),
      TextField(kSelect, kSelectNames[options.select]),
      {kFields[kWorkspace].name, &options.workspace, kFields[kWorkspace].type, 1},
  };
}

std::string ReadOptions(const nvinfer1::PluginFieldCollection& fields, nvinfer1::TensorRTPhase phase,
                        Options* options) {
  const bool of_engine = phase == nvinfer1::TensorRTPhase::kRUNTIME;
  std::string missing;
  for (int index = 0; index < (of_engine ? kNumFields : kNumAttributes); ++index) {
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
  if (missing.empty()) return "";
  return of_engine ? "the engine lacks the fields " + missing + "; build it again"
                   : "the node lacks the attributes " + missing + "; export the bundle again";
}

}  // namespace iwp
