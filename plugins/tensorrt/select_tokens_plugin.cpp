#include "select_tokens_plugin.h"

#include <algorithm>
#include <limits>
#include <new>
#include <optional>
#include <string>

#include "iwp_select_tokens.h"
#include "log.h"

namespace iwp {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;

enum Input : int32_t { kImportance, kKey, kValue, kIsVisual, kNumInputs };

// Where an axis lies in key and value [B, Hkv, S, d].
constexpr int kHeadsAxis = 1, kTokensAxis = 2, kDimAxis = 3;

std::optional<IwpDataType> KernelType(DataType type) {
  switch (type) {
    case DataType::kFLOAT:
      return IWP_FLOAT32;
    case DataType::kHALF:
      return IWP_FLOAT16;
    case DataType::kBF16:
      return IWP_BFLOAT16;
    default:
      return std::nullopt;
  }
}

// A size beyond 32 bits becomes -1, which the kernels refuse.
int32_t Narrow(int64_t size) { return size > std::numeric_limits<int32_t>::max() ? -1 : static_cast<int32_t>(size); }

bool SameDims(const Dims& a, const Dims& b) { return a.nbDims == b.nbDims && std::equal(a.d, a.d + a.nbDims, b.d); }

// Whether `dims` is [B, S] of `key`.
bool IsOneForEachToken(const Dims& dims, const Dims& key) {
  return dims.nbDims == 2 && dims.d[0] == key.d[0] && dims.d[1] == key.d[kTokensAxis];
}

std::string Text(const Dims& dims) {
  std::string text = "[";
  for (int i = 0; i < dims.nbDims; ++i) text += (i == 0 ? "" : ", ") + std::to_string(dims.d[i]);
  return text + "]";
}

struct Shapes {
  Dims inputs[kNumInputs];
  Dims kept_index;
  DataType type;
};

// `of_call`: the sizes are a call's own, not the largest of a profile, which TensorRT finds for each tensor by itself.
std::optional<IwpSelectTokensParams> MakeParams(const Shapes& shapes, const Options& options, bool of_call) {
  const Dims& key = shapes.inputs[kKey];
  const std::optional<IwpDataType> type = KernelType(shapes.type);
  bool fits = key.nbDims == 4 && SameDims(key, shapes.inputs[kValue]) && type && shapes.kept_index.nbDims == 2;
  if (of_call) {
    fits = fits && IsOneForEachToken(shapes.inputs[kImportance], key) &&
           IsOneForEachToken(shapes.inputs[kIsVisual], key);
  }
  if (!fits) {
    std::string text = "takes importance [B, S], key and value [B, Hkv, S, d] of float32, float16 or bfloat16 with one "
                       "head size for both, and is_visual [B, S]; the graph has";
    for (const Dims& dims : shapes.inputs) text += " " + Text(dims);
    LogError(text + " and an output " + Text(shapes.kept_index));
    return std::nullopt;
  }
  IwpSelectTokensParams params = {};
  params.batch = Narrow(key.d[0]);
  params.kv_heads = Narrow(key.d[kHeadsAxis]);
  params.tokens = Narrow(key.d[kTokensAxis]);
  params.head_dim = Narrow(key.d[kDimAxis]);
  params.num_kept = Narrow(shapes.kept_index.d[1]);
  params.data_type = *type;
  params.similarity = options.similarity;
  params.duplication_norm = options.duplication_norm;
  params.select = options.select;
  params.chunk = options.chunk;
  params.growth = options.growth;
  params.penalty = options.penalty;
  return params;
}

// The largest sizes of an optimisation profile. Those of num_kept and of the tokens are set apart, so that the former
// may be the greater one.
std::optional<IwpSelectTokensParams> LargestParams(const nvinfer1::DynamicPluginTensorDesc* inputs,
                                                   const nvinfer1::DynamicPluginTensorDesc* outputs,
                                                   const Options& options) {
  Shapes shapes = {};
  for (int i = 0; i < kNumInputs; ++i) shapes.inputs[i] = inputs[i].max;
  shapes.kept_index = outputs[0].max;
  shapes.type = inputs[kKey].desc.type;
  std::optional<IwpSelectTokensParams> params = MakeParams(shapes, options, false);
  if (params) params->num_kept = std::min(params->num_kept, params->tokens);
  return params;
}

}  // namespace

nvinfer1::IPluginCapability* SelectTokensPlugin::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* SelectTokensPlugin::clone() noexcept { return new (std::nothrow) SelectTokensPlugin(options_); }

int32_t SelectTokensPlugin::getOutputDataTypes(DataType* output_types, int32_t, const DataType*,
                                               int32_t) const noexcept {
  output_types[0] = DataType::kINT64;
  return 0;
}

int32_t SelectTokensPlugin::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t num_inputs,
                                            const nvinfer1::DimsExprs* shape_inputs, int32_t num_shape_inputs,
                                            nvinfer1::DimsExprs* outputs, int32_t,
                                            nvinfer1::IExprBuilder&) noexcept {
  if (num_inputs < kNumInputs || num_shape_inputs != 1 || shape_inputs[0].nbDims != 1) {
    LogError("num_kept [1] must be a shape input: the node needs the attribute "
             "tensorrt_plugin_shape_input_indices = [4]; export the bundle again");
    return -1;
  }
  outputs[0].nbDims = 2;
  outputs[0].d[0] = inputs[kIsVisual].d[0];
  outputs[0].d[1] = shape_inputs[0].d[0];
  return 0;
}

bool SelectTokensPlugin::supportsFormatCombination(int32_t position,
                                                   const nvinfer1::DynamicPluginTensorDesc* tensors, int32_t,
                                                   int32_t) noexcept {
  const nvinfer1::PluginTensorDesc& tensor = tensors[position].desc;
  if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
  switch (position) {
    case kImportance:
      return tensor.type == DataType::kFLOAT;
    case kKey:
    case kValue:
      return KernelType(tensor.type) && tensor.type == tensors[kKey].desc.type;
    default:
      return tensor.type == (position == kIsVisual ? DataType::kINT32 : DataType::kINT64);
  }
}

int32_t SelectTokensPlugin::configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t,
                                            const nvinfer1::DynamicPluginTensorDesc* outputs, int32_t) noexcept {
  const std::optional<IwpSelectTokensParams> params = LargestParams(inputs, outputs, options_);
  if (!params) return IWP_BAD_SHAPE;
  const size_t bytes = iwp_select_tokens_workspace(&*params);
  if (bytes == 0) {
    LogError(iwp_select_tokens_error_string(IWP_BAD_SHAPE));
    return IWP_BAD_SHAPE;
  }
  // TensorRT-RTX configures a copy for each profile; one that serves several is granted what the largest asks for.
  options_.workspace = std::max(options_.workspace, static_cast<int64_t>(bytes));
  return 0;
}

size_t SelectTokensPlugin::getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t,
                                            const nvinfer1::DynamicPluginTensorDesc* outputs,
                                            int32_t) const noexcept {
  const std::optional<IwpSelectTokensParams> params = LargestParams(inputs, outputs, options_);
  return params ? iwp_select_tokens_workspace(&*params) : 0;
}

// Nothing depends on the shapes between calls: enqueue reads them, and refuses wrong ones.
int32_t SelectTokensPlugin::onShapeChange(const nvinfer1::PluginTensorDesc*, int32_t,
                                          const nvinfer1::PluginTensorDesc*, int32_t) noexcept {
  return 0;
}

int32_t SelectTokensPlugin::enqueue(const nvinfer1::PluginTensorDesc* input_descs,
                                    const nvinfer1::PluginTensorDesc* output_descs, const void* const* inputs,
                                    void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
  Shapes shapes = {};
  for (int i = 0; i < kNumInputs; ++i) shapes.inputs[i] = input_descs[i].dims;
  shapes.kept_index = output_descs[0].dims;
  shapes.type = input_descs[kKey].type;
  const std::optional<IwpSelectTokensParams> params = MakeParams(shapes, options_, true);
  if (!params) return IWP_BAD_SHAPE;
  const int error = iwp_select_tokens(&*params, static_cast<const float*>(inputs[kImportance]), inputs[kKey],
                                      inputs[kValue], static_cast<const int32_t*>(inputs[kIsVisual]),
                                      static_cast<int64_t*>(outputs[0]), workspace,
                                      static_cast<size_t>(options_.workspace), stream);
  if (error != IWP_OK) {
    LogError(std::string(iwp_select_tokens_error_string(error)) + " (key " + Text(shapes.inputs[kKey]) +
             ", kept_index " + Text(shapes.kept_index) + ")");
  }
  return error;
}

nvinfer1::IPluginV3* SelectTokensPlugin::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  return clone();
}

const nvinfer1::PluginFieldCollection* SelectTokensPlugin::getFieldsToSerialize() noexcept {
  fields_ = FieldsOf(options_);
  collection_.nbFields = static_cast<int32_t>(fields_.size());
  collection_.fields = fields_.data();
  return &collection_;
}

}  // namespace iwp
