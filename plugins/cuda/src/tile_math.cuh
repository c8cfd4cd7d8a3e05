// A block's tile of dot products, rows x columns of tokens, from stages of shared memory: on tensor cores or on plain
// FMA.
//
// A stage holds kStageBytes of each token's row, rows of the tile first and columns after them, kStagePitch bytes
// apart: 16 bytes of padding let eight lanes read eight rows without a bank conflict. Both forms give a thread kRows x
// kColumns results, and kRowLanes neighbouring lanes hold the same rows.
#pragma once

#include "device.cuh"
#include "problem.h"

namespace iwp {

constexpr int kStageBytes = 64;
constexpr int kStagePitch = kStageBytes + 16;
constexpr int kStageRows = kTileRows + kTileColumns;

template <typename T>
constexpr int kStageDepth = kStageBytes / static_cast<int>(sizeof(T));  // elements of a row in one stage

// Eight warps, four down and two across, of 32 x 32 results each.
template <typename T>
class TensorCoreTile {
 public:
  static constexpr int kRows = 4;
  static constexpr int kColumns = 8;
  static constexpr int kRowLanes = 4;

  __device__ TensorCoreTile()
      : warp_row_(static_cast<int>(threadIdx.x) / kWarp % 4 * 32),
        warp_column_(static_cast<int>(threadIdx.x) / kWarp / 4 * 32),
        lane_(static_cast<int>(threadIdx.x) % kWarp) {}

  // Where in the tile result (r, c) of this thread lies.
  __device__ int Row(int r) const { return warp_row_ + r * 8 + lane_ / 4; }
  __device__ int Column(int c) const { return warp_column_ + c / 2 * 8 + lane_ % 4 * 2 + c % 2; }

  // Adds the products of one stage; `depth` elements of the row are left, and what a stage has beyond them is zero.
  __device__ void Accumulate(const unsigned char* stage, int depth) {
    const unsigned char* a_row = stage + (warp_row_ + lane_ % 16) * kStagePitch + lane_ / 16 * 16;
    const unsigned char* b_row =
        stage + (kTileRows + warp_column_ + lane_ / 16 * 8 + lane_ % 8) * kStagePitch + lane_ / 8 % 2 * 16;
#pragma unroll
    for (int k = 0; k < kStageDepth<T>; k += 16) {
      if (k >= depth) break;
      unsigned a[2][4];
      unsigned b[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        LoadMatrices(a[i], a_row + i * 16 * kStagePitch + k * sizeof(T));
        LoadMatrices(b[i], b_row + i * 16 * kStagePitch + k * sizeof(T));
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          MultiplyAdd<T>(sum[2 * m][2 * n], sum[2 * m][2 * n + 1], sum[2 * m + 1][2 * n], sum[2 * m + 1][2 * n + 1],
                         a[m], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
        }
      }
    }
  }

  float sum[kRows][kColumns] = {};

 private:
  int warp_row_;
  int warp_column_;
  int lane_;
};

// 16 x 16 threads, each with every sixteenth row and column.
template <typename T>
class PlainTile {
 public:
  static constexpr int kRows = 8;
  static constexpr int kColumns = 4;
  static constexpr int kRowLanes = 16;

  __device__ PlainTile() : row_(static_cast<int>(threadIdx.x) / 16), column_(static_cast<int>(threadIdx.x) % 16) {}

  __device__ int Row(int r) const { return row_ + r * 16; }
  __device__ int Column(int c) const { return column_ + c * 16; }

  __device__ void Accumulate(const unsigned char* stage, int depth) {
    constexpr int kStep = 4;
    const int end = min(depth, kStageDepth<T>);
    for (int k = 0; k < end; k += kStep) {
      float b[kColumns][kStep];
#pragma unroll
      for (int c = 0; c < kColumns; ++c) LoadFloats<kStep>(At(stage, kTileRows + Column(c), k), b[c]);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float a[kStep];
        LoadFloats<kStep>(At(stage, Row(r), k), a);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
#pragma unroll
          for (int i = 0; i < kStep; ++i) sum[r][c] += a[i] * b[c][i];
        }
      }
    }
  }

  float sum[kRows][kColumns] = {};

 private:
  __device__ static const T* At(const unsigned char* stage, int row, int k) {
    return reinterpret_cast<const T*>(stage + row * kStagePitch) + k;
  }

  int row_;
  int column_;
};

template <typename T>
using Tile = std::conditional_t<kHasTensorCores<T>, TensorCoreTile<T>, PlainTile<T>>;

}  // namespace iwp
