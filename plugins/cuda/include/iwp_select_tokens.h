// iwp::SelectTokens on CUDA: which tokens of a vision-language model's sequence go on past its pruning layer.
//
// Method: arXiv:2604.00757 (Eq. 10, Eq. 12, Algorithm 1) with magnitude kappa(q, k) * ||v|| and the squared similarity
// of dual weights; the paper's ablated metrics are not here, so a caller with such settings must refuse them. No CUDA
// header is needed to include this file: CUstream_st* is cudaStream_t.
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

// How query heads weigh in the mean of magnitudes: each divided by its sum over the visual tokens, or Eq. 10 literally.
enum IwpHeads { IWP_HEADS_SOFTMAX = 0, IWP_HEADS_RAW = 1 };

// Whether duplication is brought to [0, 1] over each round's matrix of (remaining x new) tokens.
enum IwpDuplicationNorm { IWP_DUPLICATION_NONE = 0, IWP_DUPLICATION_MINMAX = 1 };

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
  int32_t batch;             // B, samples, each selected by itself
  int32_t heads;             // H, query heads, a multiple of kv_heads
  int32_t kv_heads;          // Hkv
  int32_t tokens;            // S, text and visual together, up to 2^20
  int32_t head_dim;          // d, 1 to 256
  int32_t num_kept;          // length of a sample's output, text and visual together, 0 to S
  int32_t data_type;         // IwpDataType of query, key, key_rotated and value
  int32_t heads_weighting;   // IwpHeads
  int32_t duplication_norm;  // IwpDuplicationNorm
  int32_t chunk;             // tokens chosen in the first round, 1 or more
  int32_t growth;            // factor from one round's size to the next, 1 or more
  float penalty;             // weight of duplication, 0 or more; 0 ranks by magnitude alone
} IwpSelectTokensParams;

// Bytes of device memory that iwp_select_tokens needs for these parameters, the same on every GPU; 0 if they are
// invalid. Not monotonic: beyond 4,096 tokens less is needed, so a range of sizes needs the largest value within it.
IWP_API size_t iwp_select_tokens_workspace(const IwpSelectTokensParams* params);

// Enqueues the selection on `stream`; allocates nothing, synchronises nothing, can be captured in a CUDA graph (call it
// once before a capture, with the same parameters and alignment, so that the driver has loaded the very kernels).
//
//   query [B,H,d]: q_T, the mean query, before RoPE.     key, key_rotated, value [B,Hkv,S,d]: before and after RoPE.
//   is_visual [B,S]: 0 for text, else 1.                 kept_index [B,num_kept]: ascending.
//   workspace: 256-byte aligned, contents irrelevant, not shared with work that may run at the same time.
//
// All are dense device arrays. The output holds every text token and the num_kept - (text tokens) best visual ones. A
// sample with more text tokens than num_kept breaks the contract and gets its first num_kept text tokens. Values of norm
// up to 1e-18 resemble nothing, as zeros do.
// Returns IWP_OK or another IwpError; the same inputs give the same output bit for bit on one device.
IWP_API int iwp_select_tokens(const IwpSelectTokensParams* params, const void* query, const void* key,
                              const void* key_rotated, const void* value, const int32_t* is_visual,
                              int64_t* kept_index, void* workspace, size_t workspace_bytes, struct CUstream_st* stream);

// What a return value of iwp_select_tokens means, with the remedy; static storage.
IWP_API const char* iwp_select_tokens_error_string(int error);

#ifdef __cplusplus
}
#endif

#endif  // IWP_SELECT_TOKENS_H_
