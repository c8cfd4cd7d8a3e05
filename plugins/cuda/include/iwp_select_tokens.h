// iwp::SelectTokens on CUDA: which tokens of a vision-language model's sequence go on past its pruning layer.
//
// Method: arXiv:2604.00757, Algorithm 1, over an importance that the caller computes, with the similarity of Eq. 12 or one
// of its ablations, squared and averaged over the key/value heads; or `coverage`, a greedy pivoted Cholesky factorisation
// of that similarity, not squared. No CUDA header is needed to include this file: CUstream_st* is cudaStream_t.
#ifndef IWP_SELECT_TOKENS_H_
#define IWP_SELECT_TOKENS_H_

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define IWP_API __declspec(dllexport)
#else
#define IWP_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

struct CUstream_st;

enum IwpDataType { IWP_FLOAT32 = 0, IWP_FLOAT16 = 1, IWP_BFLOAT16 = 2 };

// What makes two tokens alike: cos(v, v') * exp(-|k - k'|^2 / (2 sqrt(d))) (Eq. 12), the cosine of their values or of
// their keys, or the Gaussian of their keys alone.
enum IwpSimilarity {
  IWP_SIMILARITY_DUAL_WEIGHT = 0,
  IWP_SIMILARITY_VALUE = 1,
  IWP_SIMILARITY_KEY = 2,
  IWP_SIMILARITY_KERNEL = 3
};

// Whether duplication is brought to [0, 1] over each round's matrix of (remaining x new) tokens.
enum IwpDuplicationNorm { IWP_DUPLICATION_NONE = 0, IWP_DUPLICATION_MINMAX = 1 };

// How tokens are chosen. MMR: in rounds, by importance less duplication (Algorithm 1). Coverage: one by one, the token
// of which those chosen so far explain the least; importance, chunk, growth, penalty and duplication_norm play no part.
enum IwpSelect { IWP_SELECT_MMR = 0, IWP_SELECT_COVERAGE = 1 };

enum IwpError {
  IWP_OK = 0,
  IWP_BAD_SHAPE = 1,
  IWP_BAD_OPTION = 2,
  IWP_NULL_POINTER = 3,
  IWP_MISALIGNED = 4,
  IWP_WORKSPACE_TOO_SMALL = 5,
  IWP_CUDA_ERROR = 1000  // plus the cudaError_t
};

// Every field is known on the host when the work is enqueued; the number of visual tokens is not, and need not be.
typedef struct IwpSelectTokensParams {
  int32_t batch;             // B, samples, each selected by itself, up to 65,535
  int32_t kv_heads;          // Hkv, 1 to 4,096
  int32_t tokens;            // S, text and visual together, up to 2^20
  int32_t head_dim;          // d of keys and of values, 1 to 256
  int32_t num_kept;          // length of a sample's output, text and visual together, 0 to S
  int32_t data_type;         // IwpDataType of key and value
  int32_t similarity;        // IwpSimilarity
  int32_t duplication_norm;  // IwpDuplicationNorm
  int32_t select;            // IwpSelect
  int32_t chunk;             // tokens chosen in the first round, 1 or more
  int32_t growth;            // factor from one round's size to the next, 1 or more
  float penalty;             // weight of duplication, 0 or more; 0 ranks by importance alone
} IwpSelectTokensParams;

// Bytes of device memory that suffice for these parameters and for any smaller batch, tokens and num_kept, the same on
// every GPU; 0 if they are invalid. A call may need less: beyond 4,096 tokens the matrix of pairs is not used. There
// coverage holds 4 bytes for each of num_kept x tokens, 322 MB for 4,916 of 16,384.
IWP_API size_t iwp_select_tokens_workspace(const IwpSelectTokensParams* params);

// Enqueues the selection on `stream`; allocates nothing, synchronises nothing, can be captured in a CUDA graph (call it
// once before a capture, with the same parameters and alignment, so that the driver has loaded the very kernels).
//
//   importance [B,S]: brought to [0, 1] over a sample's visual tokens here; ignored at text.
//   key, value [B,Hkv,S,d]: the keys that duplication compares, and the values.
//   is_visual [B,S]: 0 for text, else 1.                 kept_index [B,num_kept]: ascending.
//   workspace: 256-byte aligned, contents irrelevant, not shared with work that may run at the same time.
//
// All are dense device arrays. The output holds every text token and the num_kept - (text tokens) best visual ones. A
// sample with more text tokens than num_kept breaks the contract and gets its first num_kept text tokens. A vector of
// norm up to 1e-18 has cosine 0 with everything, as a zero has. `workspace_bytes` is what the caller has, which may be
// more than the call needs; nothing is enqueued if it is less.
// Returns IWP_OK or another IwpError; the same inputs give the same output bit for bit on one device.
IWP_API int iwp_select_tokens(const IwpSelectTokensParams* params, const float* importance, const void* key,
                              const void* value, const int32_t* is_visual, int64_t* kept_index, void* workspace,
                              size_t workspace_bytes, struct CUstream_st* stream);

// What a return value of iwp_select_tokens means, with the remedy; static storage.
IWP_API const char* iwp_select_tokens_error_string(int error);

#ifdef __cplusplus
}
#endif

#endif  // IWP_SELECT_TOKENS_H_
