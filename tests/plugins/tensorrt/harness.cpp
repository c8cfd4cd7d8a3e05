// Calls the plugin's virtual functions as TensorRT does, on host memory, for Python's ctypes.
#include <dlfcn.h>

#include <string>

#include <NvInferRuntime.h>

namespace {

using nvinfer1::DimsExprs;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IDimensionExpr;
using nvinfer1::IPluginV3;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginTensorDesc;

constexpr int kNumInputs = 4;  // without num_kept, which TensorRT counts apart

std::string logged;
int layout = 0;

// The loggers' virtual tables in TensorRT 10 and 11, whichever headers this file is compiled with.
struct Logger10 {
  virtual void log(int, const char* message) { logged += "10: " + std::string(message) + "\n"; }
  virtual ~Logger10() = default;
} logger10;

struct Finder10 {
  virtual void* findLogger() { return layout == 10 ? &logger10 : nullptr; }
  virtual ~Finder10() = default;
} finder10;

struct Versioned {
  virtual int32_t getAPILanguage() const { return 0; }
  virtual nvinfer1::InterfaceInfo getInterfaceInfo() const { return {"", 1, 0}; }
  virtual ~Versioned() = default;
};

struct Logger11 : Versioned {
  virtual void log(int, const char* message) { logged += "11: " + std::string(message) + "\n"; }
} logger11;

struct Finder11 : Versioned {
  virtual void* findLogger() { return &logger11; }
} finder11;

nvinfer1::IPluginV3OneBuild* Build(IPluginV3* plugin) {
  return static_cast<nvinfer1::IPluginV3OneBuild*>(
      plugin->getCapabilityInterface(nvinfer1::PluginCapabilityType::kBUILD));
}

nvinfer1::IPluginV3OneRuntime* Runtime(IPluginV3* plugin) {
  return static_cast<nvinfer1::IPluginV3OneRuntime*>(
      plugin->getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
}

}  // namespace

#pragma GCC visibility push(default)

// TensorRT's libraries export this; null where the process has no logger.
extern "C" nvinfer1::ILogger* getLogger() noexcept {
  return layout == 11 ? reinterpret_cast<nvinfer1::ILogger*>(&logger11) : nullptr;
}

extern "C" {

void* load(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) logged += dlerror();
  return library;
}

// `which`: 10 or 11 for a logger of that TensorRT, 1 for a TensorRT 10 without a logger, 0 for no finder at all.
void set_logger(void* library, int which) {
  layout = which;
  logged.clear();
  void* finder = nullptr;
  if (which == 11) finder = &finder11;
  if (which == 10 || which == 1) finder = &finder10;
  reinterpret_cast<void (*)(void*)>(dlsym(library, "setLoggerFinder"))(finder);
}

const char* messages() { return logged.c_str(); }

nvinfer1::IPluginCreatorV3One* creator(void* library) {
  int32_t count = 0;
  using GetCreators = nvinfer1::IPluginCreatorInterface* const* (*)(int32_t&);
  auto* const* creators = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"))(count);
  return count == 1 ? static_cast<nvinfer1::IPluginCreatorV3One*>(creators[0]) : nullptr;
}

const char* creator_name(nvinfer1::IPluginCreatorV3One* creator) { return creator->getPluginName(); }
const char* creator_version(nvinfer1::IPluginCreatorV3One* creator) { return creator->getPluginVersion(); }
const char* creator_namespace(nvinfer1::IPluginCreatorV3One* creator) { return creator->getPluginNamespace(); }
const PluginFieldCollection* creator_fields(nvinfer1::IPluginCreatorV3One* creator) {
  return creator->getFieldNames();
}

IPluginV3* create(nvinfer1::IPluginCreatorV3One* creator, const PluginFieldCollection* fields, int of_engine) {
  using Phase = nvinfer1::TensorRTPhase;
  return creator->createPlugin("test", fields, of_engine != 0 ? Phase::kRUNTIME : Phase::kBUILD);
}

IPluginV3* clone(IPluginV3* plugin) { return plugin->clone(); }
IPluginV3* attach(IPluginV3* plugin) { return Runtime(plugin)->attachToContext(nullptr); }
void destroy(IPluginV3* plugin) { delete plugin; }

const PluginFieldCollection* serialized_fields(IPluginV3* plugin) { return Runtime(plugin)->getFieldsToSerialize(); }

int output_type(IPluginV3* plugin) {
  nvinfer1::DataType type{};
  return Build(plugin)->getOutputDataTypes(&type, 1, nullptr, 0) == 0 ? static_cast<int>(type) : -1;
}

// Gives the expressions of the inputs' axes by name, "i.axis", and of num_kept as "num_kept"; returns the output's.
const char* output_shape(IPluginV3* plugin, int num_shape_inputs) {
  static std::string names[kNumInputs + 1][nvinfer1::Dims::MAX_DIMS];
  static std::string shape;
  constexpr int kRanks[] = {2, 4, 4, 2, 1};
  const auto expression = [](std::string* name) { return reinterpret_cast<const IDimensionExpr*>(name); };
  DimsExprs inputs[kNumInputs + 1] = {};
  for (int i = 0; i <= kNumInputs; ++i) {
    inputs[i].nbDims = kRanks[i];
    for (int axis = 0; axis < kRanks[i]; ++axis) {
      names[i][axis] = i == kNumInputs ? "num_kept" : std::to_string(i) + "." + std::to_string(axis);
      inputs[i].d[axis] = expression(&names[i][axis]);
    }
  }
  DimsExprs output = {};
  auto* no_builder = reinterpret_cast<nvinfer1::IExprBuilder*>(&shape);  // the plugin needs none
  const DimsExprs* shape_inputs = inputs + kNumInputs;
  if (Build(plugin)->getOutputShapes(inputs, kNumInputs, shape_inputs, num_shape_inputs, &output, 1, *no_builder) != 0) {
    return "";
  }
  shape.clear();
  for (int i = 0; i < output.nbDims; ++i) shape += *reinterpret_cast<const std::string*>(output.d[i]) + " ";
  return shape.c_str();
}

int supports(IPluginV3* plugin, int position, const DynamicPluginTensorDesc* tensors) {
  return Build(plugin)->supportsFormatCombination(position, tensors, kNumInputs, 1);
}

int configure(IPluginV3* plugin, const DynamicPluginTensorDesc* tensors) {
  return Build(plugin)->configurePlugin(tensors, kNumInputs, tensors + kNumInputs, 1);
}

size_t workspace_size(IPluginV3* plugin, const DynamicPluginTensorDesc* tensors) {
  return Build(plugin)->getWorkspaceSize(tensors, kNumInputs, tensors + kNumInputs, 1);
}

int enqueue(IPluginV3* plugin, const PluginTensorDesc* tensors, void* const* arrays, void* workspace) {
  const void* const* inputs = arrays;
  const PluginTensorDesc* outputs = tensors + kNumInputs;
  nvinfer1::IPluginV3OneRuntime* runtime = Runtime(plugin);
  const int error = runtime->onShapeChange(tensors, kNumInputs, outputs, 1);
  return error != 0 ? error : runtime->enqueue(tensors, outputs, inputs, arrays + kNumInputs, workspace, nullptr);
}

}  // extern "C"
