// Attention over caches of K and V, in two forms: caches of the caller's own, in rows (CacheView), and
// Tessera's, in the tiles that the kernels read (KvCache). Rules 1 to 8 of tessera/attention.h hold; query
// row r of a sequence with `keys` keys and `rows` rows stands at position r + keys - rows.
//
// Over a cache, AttentionProblem gives heads, kv_heads, head_dim, v_head_dim, dtype, scale, causal, windows,
// softcap and ALiBi; seqlen_k is not read: the cache says how many keys there are. Mask tensors, ancestors
// and dropout are refused.
//
//   rows (CacheView)   flash-attn's flash_attn_with_kvcache: contiguous or paged by a block table of any
//   block
//                      size. Each call packs the keys that it reads, 64 at a time, into tiles in scratch.
//   tiles (KvCache)    packed once at append, so that a step reads nothing but the tiles.
//
// Blocks that several sequences begin with are read once for all of them (ChunkAttention, Ye et al. 2024) by
// a plan made once a step: CachePlan over a KvCache on the CPU, CacheTreePlan over a CacheView on a GPU.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "tessera/attention.h"
#include "tessera/context.h"
#include "tessera/dtype.h"
#include "tessera/rope.h"
#include "tessera/status.h"

namespace tessera::attention {

// ---- Rows: the caller's cache --------------------------------------------------------------------------

// Key j of batch b lies in slot j % block_size of block block_table[b * table_stride + j / block_size], or,
// with no table, in slot j of block cache_batch_idx[b] (null: b), which then is the whole row of a contiguous
// cache [batches][capacity][kv_heads][head_dim] (num_blocks = batches, block_size = capacity).
struct CacheView {
  uint32_t struct_size = sizeof(CacheView);
  // [block, slot, kv head, d]: batch_stride lies between blocks, row_stride between slots. problem.dtype.
  Strided<void*> k;  // head_dim
  Strided<void*> v;  // v_head_dim
  int64_t num_blocks = 0;
  int64_t block_size = 0;
  const int32_t* block_table = nullptr;  // [batch][max_blocks]; only ids of blocks that are read or written
  int64_t max_blocks = 0;                // are looked at
  int64_t table_stride = 0;              // 0: max_blocks
  const int32_t* cache_batch_idx = nullptr;  // [batch]; not with block_table
  const int32_t* seqlens = nullptr;          // [batch] keys that were there before the call; null: seqlen
  int64_t seqlen = 0;
};

// New keys of a call, written to the cache behind what is there before anything is attended to.
struct CacheAppend {
  int64_t seqlen = 0;      // of every batch; 0: none
  Strided<const void*> k;  // [batch, seqlen, kv_heads, head_dim]
  Strided<const void*> v;  // [batch, seqlen, kv_heads, v_head_dim]
  // With a Rotary, k is rotated at positions seqlens[b] + t as it is written (rounded once), and q in
  // registers: row r at seqlens[b] + r when the mask is causal or has a window, else at seqlens[b].
  const Rotary* rotary = nullptr;
};

struct CacheTensors {
  Strided<const void*> q;  // [batch, seqlen_q, heads, head_dim], or rows of all sequences with cu_seqlens_q
  Strided<void*> o;        // the same with v_head_dim
  float* lse = nullptr;    // [batch][heads][seqlen_q], [heads][rows] with cu_seqlens_q; null: not wanted
};

// Appends, then attends: everything of flash_attn_with_kvcache, and flash_attn_varlen_func's block_table.
// problem.batch, seqlen_q (or cu_seqlens_q), leftpad_k and alibi_batch_stride count; cu_seqlens_k and
// seqused_k must be null. Every check comes before the first write: sequences longer than their blocks, block
// ids out of range, two sequences that append to one slot, leftpad beyond the keys. Two sequences may read
// the same block. Moves q, o and the new rows once, and each sequence's visible keys once (with more than 64
// stacked query rows: once for every 192). Work is divided over sequences, kv heads and, when
// that is too little for the threads, segments of 512 keys.
Status attend_cache(Context& context, const AttentionProblem& problem, const CacheView& cache,
                    const CacheAppend& append, const CacheTensors& tensors);

// ---- Tiles: Tessera's cache ----------------------------------------------------------------------------

inline constexpr int kCacheBlockTokens = 64;

struct KvCacheOptions {
  uint32_t struct_size = sizeof(KvCacheOptions);
  DType dtype = DType::bf16;  // as stored: f32 or bf16
  int layers = 1;
  int kv_heads = 0;
  int head_dim = 0;    // a multiple of 8, 8 to 256
  int v_head_dim = 0;  // the same; 0: head_dim
  int num_blocks = 0;
};

// Rows of one sequence in a step: rows [first_row, first_row + rows) of q, k, v and o stand at positions
// first_position.., and position p lies in slot p % 64 of blocks[p / 64].
struct CacheSequence {
  int64_t first_row = 0;
  int64_t rows = 0;
  int64_t first_position = 0;       // keys in the cache before these rows
  const int32_t* blocks = nullptr;  // [num_blocks]; ids of blocks wholly outside every window are not used
  int64_t num_blocks = 0;
};

// Owns the bytes behind block ids; who owns an id is the caller's business. Blocks start as zeros. One call
// at a time changes it; any number may read.
class KvCache {
 public:
  // Errors: invalid_argument or unsupported naming the option; resource_exhausted naming the bytes.
  static Result<KvCache> create(const KvCacheOptions& options);
  KvCache(KvCache&&) noexcept;
  KvCache& operator=(KvCache&&) noexcept;
  ~KvCache();

  const KvCacheOptions& options() const;
  int64_t bytes() const;
  int64_t bytes_per_block() const;  // K and V of every kv head and layer

  // Writes the sequences' rows of K [row, kv head, head_dim] and V (batch strides are not read), of dtype
  // f32, f16 or bf16, rounded once to the cache's; with `rotary`, K rotated at its positions first. Two rows
  // of a call must not name one slot: that is refused, before anything is written, like a block id out of
  // range or a sequence that outgrows its blocks.
  Status append(Context& context, int layer, std::span<const CacheSequence> sequences, DType dtype,
                const Strided<const void*>& k, const Strided<const void*>& v, const Rotary* rotary = nullptr);
  // Copies slots [first, first + count) of block `source` to the same slots of `destination`, in every layer.
  Status copy_rows(int source, int destination, int first, int count);
  // Slots [first, first + count) of a block, unpacked: k [count][head_dim], v [count][v_head_dim].
  Status read(int layer, int block, int kv_head, int first, int count, float* k, float* v) const;

 private:
  friend class CachePlan;
  struct Impl;
  explicit KvCache(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

struct CachePlanOptions {
  bool share = true;  // false: every sequence walks its own table, shared blocks or not (the same bits)
};

// Pairs of tiles, 64 keys of K and of V, one for each walk of a kv head over them.
struct CacheReads {
  uint64_t tiles = 0;         // read
  uint64_t shared_tiles = 0;  // of those, read once for several sequences
  uint64_t unshared = 0;      // what would be read if every sequence walked its own table
};

struct CacheQuery {
  DType dtype = DType::f32;        // of q and o: f32, f16 or bf16; the problem's dtype is the cache's
  Strided<const void*> q;          // [row, head, head_dim]; batch strides are not read
  Strided<void*> o;                // [row, head, v_head_dim]
  float* lse = nullptr;            // [heads][rows], rows = the last sequence row + 1; null: not wanted
  const Rotary* rotary = nullptr;  // q is rotated at its rows' positions first; null: it already is
};

// How a step's rows meet a cache's blocks. Made once a step from the tables, used for every layer. Runs of
// blocks at the front of several tables are found by their ids: such a block is read once for all of those
// sequences, their rows stacked; then each sequence's own blocks follow. Which runs are worth it is decided
// by a cost model that explain() prints. The bits never depend on it.
class CachePlan {
 public:
  // `problem` (its slopes too) must outlive the plan; problem.batch and seqlen_q are not read. Errors: as
  // KvCache::append, what validate() refuses, and a dtype or head size that is not the cache's.
  static Result<CachePlan> create(Context& context, const KvCache& cache, const AttentionProblem& problem,
                                  std::span<const CacheSequence> sequences,
                                  const CachePlanOptions& options = {});
  CachePlan(CachePlan&&) noexcept;
  CachePlan& operator=(CachePlan&&) noexcept;
  ~CachePlan();

  // o (and lse) of the plan's rows over one layer of the cache that it was made for. Prefill chunks, decode
  // rows and shared prefixes may be mixed. Moves each tile pair of the plan once, q and o once.
  Status attend(Context& context, const KvCache& cache, int layer, const CacheQuery& query) const;

  CacheReads reads() const;  // of one layer
  std::string explain() const;

 private:
  struct Impl;
  explicit CachePlan(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// CachePlan::create and attend in one, for a single layer.
Status tree_attention(Context& context, const AttentionProblem& problem, const KvCache& cache, int layer,
                      std::span<const CacheSequence> sequences, const CacheQuery& query);

// ---- Rows: the prefix tree of a decode step ------------------------------------------------------------

// When blocks that several sequences begin with are read once for all of them.
enum class TreeSharing : uint8_t {
  when_it_pays,  // by a cost model that explain() prints
  always,        // wherever it can be
  never,         // every sequence walks its own table
};

// What a plan is made from: copies in host memory, whatever the context, of what CacheView's fields of the
// same names hold.
struct CacheTables {
  uint32_t struct_size = sizeof(CacheTables);
  int64_t num_blocks = 0;
  int64_t block_size = 0;
  const int32_t* block_table = nullptr;  // [batch][max_blocks]; only ids of blocks with keys that are seen
  int64_t max_blocks = 0;                // (leftpad aside) are looked at
  int64_t table_stride = 0;              // 0: max_blocks
  const int32_t* seqlens = nullptr;      // [batch] keys that are there before the call
  int64_t appended = 0;                  // new keys of every sequence: the calls' append.seqlen
};

struct CacheTreeOptions {
  uint32_t struct_size = sizeof(CacheTreeOptions);
  // Behaviour: tokens by which every sequence may grow before a new plan is needed (never beyond its table).
  int64_t reserve = 0;
  // Performance: the bits never depend on it.
  TreeSharing sharing = TreeSharing::when_it_pays;
};

// How one query token a sequence meets the blocks of a cache in rows. Made once a step, used for every layer,
// and in captured graphs for as long as covers() the lengths. Runs of blocks at the front of several tables
// are found by their ids: on a GPU their rows are stacked and each such block is read once, where that pays;
// then each sequence's own blocks follow. On the CPU every sequence walks its own table, which reads() and
// explain() say. The bits are attend_cache()'s on the same context.
class CacheTreePlan {
 public:
  // `problem` is copied, what its alibi_slopes and leftpad_k point to must outlive the plan; batch counts and
  // seqlen_q must be 1. The tables are not needed afterwards. On a GPU the plan goes to device memory on the
  // context's stream, which must not be capturing. Errors: invalid_argument naming the field (a null table, a
  // block id outside [0, num_blocks), a length outside its table, reserve); what attend_cache() refuses of a
  // problem; unsupported on a GPU without the kernels.
  static Result<CacheTreePlan> create(Context& context, const AttentionProblem& problem,
                                      const CacheTables& tables, const CacheTreeOptions& options = {});
  CacheTreePlan(CacheTreePlan&&) noexcept;
  CacheTreePlan& operator=(CacheTreePlan&&) noexcept;
  ~CacheTreePlan();

  // attend_cache() of the plan's problem over one layer. cache.block_table holds what tables.block_table did
  // (where the tensors are), and num_blocks, block_size, max_blocks and append.seqlen are the same; seqlens,
  // or seqlen, are the lengths now. Lengths that the plan does not cover: invalid_argument where the host
  // sees them (cache.seqlen, and everything on the CPU); where it does not, NaN in that sequence's o and lse.
  // A plan that outlived a change of the blocks themselves reads the wrong ones: then make another.
  // The context is the one that made the plan, or one of the same device whose stream runs after it; while
  // such work, or a graph with it, may run, the plan must live.
  Status attend(Context& context, const CacheView& cache, const CacheAppend& append,
                const CacheTensors& tensors) const;

  // ok while calls with these lengths, [batch] before the call, are what was planned: each at least what
  // several sequences are planned to share (as long as planned, when a window hides keys), and at most as
  // long as planned with the reserve, rounded up to a multiple of 256. Else invalid_argument naming the
  // sequence, its length and the limits.
  Status covers(std::span<const int32_t> seqlens) const;
  CacheReads reads() const;  // of one layer, at the planned lengths
  std::string explain() const;

 private:
  struct Impl;
  explicit CacheTreePlan(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace tessera::attention
