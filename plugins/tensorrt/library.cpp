// What TensorRT looks up in a plugin library: the creators, and a place to leave its logger.
#include <exception>
#include <new>
#include <string>
#include <vector>

#include <NvInferRuntime.h>

#include "log.h"
#include "options.h"
#include "select_tokens_plugin.h"

namespace iwp {
namespace {

class SelectTokensCreator final : public nvinfer1::IPluginCreatorV3One {
 public:
  SelectTokensCreator() : fields_(AttributeNames()) {
    collection_.nbFields = static_cast<int32_t>(fields_.size());
    collection_.fields = fields_.data();
  }

  nvinfer1::IPluginV3* createPlugin(const char*, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override {
    try {
      Options options = {};
      const std::string error = fields == nullptr ? "no fields are given" : ReadOptions(*fields, phase, &options);
      if (error.empty()) return new SelectTokensPlugin(options);
      LogError(error);
    } catch (const std::exception& error) {
      LogError(error.what());
    }
    return nullptr;
  }

  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }
  const char* getPluginName() const noexcept override { return kPluginName; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }

 private:
  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace
}  // namespace iwp

#define IWP_EXPORT __attribute__((visibility("default")))

extern "C" IWP_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& num_creators) {
  static iwp::SelectTokensCreator creator;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
  num_creators = 1;
  return creators;
}

extern "C" IWP_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { iwp::SetLoggerFinder(finder); }
