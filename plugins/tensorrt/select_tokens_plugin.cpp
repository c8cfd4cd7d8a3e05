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

enum Input : int32_t { kQuery, kKey, kKeyRotated, kValue, kIsVisual, kNumInputs };
constexpr int32_t kNumMeasured = 4;  // query to value, all of one floating-point type

// Where an axis lies in query [B, H, d] and in key, key_rotated and value [B, Hkv, S, d].
constexpr int kQueryHeads = 1, kQueryDim = 2, kKeyHeads = 1, kKeyTokens = 2, kKeyDim = 3;

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

std::optional<IwpSelectTokensParams> MakeParams(const Shapes& shapes, const Options& options) {
  const Dims& query = shapes.inputs[kQuery];
  const Dims& key = shapes.inputs[kKey];
  const std::optional<IwpDataType> type = KernelType(shapes.type);
  const bool is_dense = query.nbDims == 3 && key.nbDims == 4 && SameDims(key, shapes.inputs[kKeyRotated]) &&
                        SameDims(key, shapes.inputs[kValue]) && query.d[kQueryDim] == key.d[kKeyDim];
  if (!is_dense || !type || shapes.kept_index.nbDims != 2) {
    std::string text = "takes query [B, H, d] and key, key_rotated, value [B, Hkv, S, d] of float32, float16 or "
                       "bfloat16, all with one head size; the graph has";
    for (int i = 0; i < kNumMeasured; ++i) text += " " + Text(shapes.inputs[i]);
    LogError(text + " and an output " + Text(shapes.kept_index));
    return std::nullopt;
  }
  IwpSelectTokensParams params = {};
  params.batch = Narrow(query.d[0]);
  params.heads = Narrow(query.d[kQueryHeads]);
  params.kv_heads = Narrow(key.d[kKeyHeads]);
  params.tokens = Narrow(key.d[kKeyTokens]);
  params.head_dim = Narrow(key.d[kKeyDim]);
  params.num_kept = Narrow(shapes.kept_index.d[1]);
  params.data_type = *type;
  params.heads_weighting = options.heads;
  params.duplication_norm = options.duplication_norm;
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
  shapes.type = inputs[kQuery].desc.type;
  std::optional<IwpSelectTokensParams> params = MakeParams(shapes, options);
  if (params) params->num_kept = std::min(params->num_kept, params->tokens);
  return params;
}

// Bytes that suffice for every number of tokens up to params.tokens. A shorter prompt may need more than a longer one,
// and from which length on is the kernels' affair: so every length is asked for. 0 if the kernels refuse the sizes.
size_t LargestWorkspace(IwpSelectTokensParams params) {
  size_t largest = iwp_select_tokens_workspace(&params);
  if (largest == 0) return 0;
  while (--params.tokens >= 0) {
    params.num_kept = std::min(params.num_kept, params.tokens);
    largest = std::max(largest, iwp_select_tokens_workspace(&params));
  }
  return largest;
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
             "tensorrt_plugin_shape_input_indices = [5]; export the bundle again");
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
  if (position < kNumMeasured) return KernelType(tensor.type) && tensor.type == tensors[kQuery].desc.type;
  return tensor.type == (position == kIsVisual ? DataType::kINT32 : DataType::kINT64);
}

int32_t SelectTokensPlugin::configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t,
                                            const nvinfer1::DynamicPluginTensorDesc* outputs, int32_t) noexcept {
  const std::optional<IwpSelectTokensParams> params = LargestParams(inputs, outputs, options_);
  if (!params) return IWP_BAD_SHAPE;
  if (iwp_select_tokens_workspace(&*params) == 0) {
    LogError(iwp_select_tokens_error_string(IWP_BAD_SHAPE));
    return IWP_BAD_SHAPE;
  }
  return 0;
}

size_t SelectTokensPlugin::getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t,
                                            const nvinfer1::DynamicPluginTensorDesc* outputs,
                                            int32_t) const noexcept {
  const std::optional<IwpSelectTokensParams> params = LargestParams(inputs, outputs, options_);
  return params ? LargestWorkspace(*params) : 0;
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
  shapes.type = input_descs[kQuery].type;
  const std::optional<IwpSelectTokensParams> params = MakeParams(shapes, options_);
  if (!params) return IWP_BAD_SHAPE;
  // Within what getWorkspaceSize said for the profile, which TensorRT has reserved.
  const size_t workspace_bytes = iwp_select_tokens_workspace(&*params);
  const int error = iwp_select_tokens(&*params, inputs[kQuery], inputs[kKey], inputs[kKeyRotated], inputs[kValue],
                                      static_cast<const int32_t*>(inputs[kIsVisual]),
                                      static_cast<int64_t*>(outputs[0]), workspace, workspace_bytes, stream);
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
