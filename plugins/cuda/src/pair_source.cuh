// The mean similarity of two visual tokens, for a block that goes through a few columns of the matrix of pairs: looked
// up in it, or computed from keys and values where there is none.
#pragma once

#include "device.cuh"
#include "problem.h"

namespace iwp {

// The matrix that LaunchSimilarityMatrix filled.
class MatrixSource {
 public:
  static constexpr bool kHasMatrix = true;

  __device__ MatrixSource OfSample(const Problem& problem, const Workspace& workspace, int sample) const {
    MatrixSource source;
    source.matrix_ = workspace.matrix + static_cast<size_t>(sample) * problem.tokens * problem.pitch;
    source.pitch_ = problem.pitch;
    return source;
  }

  // Neighbouring threads that share a pair.
  __device__ int lanes() const { return 1; }

  __device__ float Of(int i, int j) const { return matrix_[static_cast<size_t>(j) * pitch_ + i]; }

 private:
  const float* matrix_ = nullptr;
  int pitch_ = 0;
};

// Keys and values themselves. kElements are read at a time, 16 bytes or one element.
template <typename T, int kElements>
class PairSource {
 public:
  static constexpr bool kHasMatrix = false;

  PairSource(const Inputs& inputs, int head_dim)
      : gaussian_of_(static_cast<const T*>(inputs.gaussian_of)), cosine_of_(static_cast<const T*>(inputs.cosine_of)) {
    while (lanes_ < kWarp && lanes_ * kElements < head_dim) lanes_ *= 2;
  }

  __device__ PairSource OfSample(const Problem& problem, const Workspace& workspace, int sample) const {
    PairSource source = *this;
    const size_t first_row = static_cast<size_t>(sample) * problem.kv_heads * problem.tokens;
    if (gaussian_of_ != nullptr) source.gaussian_of_ += first_row * problem.head_dim;
    if (cosine_of_ != nullptr) source.cosine_of_ += first_row * problem.head_dim;
    source.square_ = workspace.square + first_row;
    source.inverse_norm_ = workspace.inverse_norm + first_row;
    source.visual_index_ = workspace.visual_index + static_cast<size_t>(sample) * problem.tokens;
    source.heads_ = problem.kv_heads;
    source.tokens_ = problem.tokens;
    source.dim_ = problem.head_dim;
    source.squared_ = !problem.coverage;
    return source;
  }

  __device__ int lanes() const { return lanes_; }

  // Called by whole warps; the `lanes()` neighbours of a pair get the same i and j, and all of them the result. Swapping
  // i and j gives the same bits: duplicates must tie.
  __device__ float Of(int i, int j) const {
    constexpr int kHeads = 2;  // at once, so that several rows are on their way
    const int a = visual_index_[i];
    const int b = visual_index_[j];
    const float scale = (squared_ ? -1.4426950408889634f : -0.7213475204444817f) / sqrtf(static_cast<float>(dim_));
    float total = 0.0f;
    for (int head = 0; head < heads_; head += kHeads) {
      float of_gaussian[kHeads] = {};
      float of_cosine[kHeads] = {};
      for (int e = static_cast<int>(threadIdx.x) % lanes_ * kElements; e < dim_; e += lanes_ * kElements) {
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
          if (head + h == heads_) break;
          const size_t row = static_cast<size_t>(head + h) * tokens_;
          if (gaussian_of_ != nullptr) AddProducts(gaussian_of_, row, a, b, e, &of_gaussian[h]);
          if (cosine_of_ != nullptr) AddProducts(cosine_of_, row, a, b, e, &of_cosine[h]);
        }
      }
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        if (head + h == heads_) break;
        const size_t row = static_cast<size_t>(head + h) * tokens_;
        float similarity = 1.0f;
        if (cosine_of_ != nullptr) {
          const float cosine = WarpSum(of_cosine[h], lanes_) * (inverse_norm_[row + a] * inverse_norm_[row + b]);
          similarity = squared_ ? cosine * cosine : cosine;
        }
        if (gaussian_of_ != nullptr) {
          const float product = WarpSum(of_gaussian[h], lanes_);
          similarity *= exp2f(fmaxf(square_[row + a] + square_[row + b] - 2.0f * product, 0.0f) * scale);
        }
        total += similarity;
      }
    }
    return total / static_cast<float>(heads_);
  }

 private:
  __device__ void AddProducts(const T* input, size_t row, int a, int b, int element, float* sum) const {
    float x[kElements];
    float y[kElements];
    LoadFloats<kElements>(input + (row + a) * dim_ + element, x);
    LoadFloats<kElements>(input + (row + b) * dim_ + element, y);
#pragma unroll
    for (int e = 0; e < kElements; ++e) *sum += x[e] * y[e];
  }

  const T* gaussian_of_;
  const T* cosine_of_;
  int lanes_ = 1;
  const float* square_ = nullptr;
  const float* inverse_norm_ = nullptr;
  const int* visual_index_ = nullptr;
  int heads_ = 0;
  int tokens_ = 0;
  int dim_ = 0;
  bool squared_ = true;
};

// Calls `with(source)` with what the problem takes its pairs from.
template <typename With>
cudaError_t WithPairSource(const Problem& problem, const Inputs& inputs, With with) {
  if (problem.tokens <= kMatrixTokens) return with(MatrixSource());
  const auto typed = [&](auto zero) {
    using T = decltype(zero);
    return problem.aligned ? with(PairSource<T, kVector<T>>(inputs, problem.head_dim))
                           : with(PairSource<T, 1>(inputs, problem.head_dim));
  };
  switch (problem.data_type) {
    case IWP_FLOAT16:
      return typed(__half());
    case IWP_BFLOAT16:
      return typed(__nv_bfloat16());
    default:
      return typed(0.0f);
  }
}

// Calls `visit(i, writes)` for the visual tokens [first, end), in whole warps: `lanes` neighbours have the same i, and
// one of them is to write what they find.
template <typename Visit>
__device__ void ForTokens(int first, int end, int lanes, Visit visit) {
  const int thread = static_cast<int>(threadIdx.x);
  const int at_once = static_cast<int>(blockDim.x) / lanes;
  for (int base = first; base < end; base += at_once) {  // the same for the whole block
    const int i = base + thread / lanes;
    visit(min(i, end - 1), thread % lanes == 0 && i < end);
  }
}

}  // namespace iwp
