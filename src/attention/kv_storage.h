// KvStorage: the bytes behind block ids. It owns keys and values of every layer; who owns an id is the
// scheduler's business.
//
// A block holds block_tokens positions. Behind an id lies, per layer and kv head, one tile pair: the K tile
// and right after it the V tile, in the order of bytes that the kernels read, so that no path re-packs:
//   bf16: K [head_dim / 2][64 keys][2]    V [32 key pairs][v_width][2]
//   f32:  K [head_dim][64 keys]           V [64 keys][v_width]
// v_width is v_head_dim rounded up to 16; the columns beyond v_head_dim are zero. Memory:
// [block][layer][kv_head][pair]: a block is one piece, so what is resident follows the blocks in use (with
// the layer outside, the ends of every layer's blocks would round up to huge pages), and a block moves by one
// copy.
//
// Invariants:
//  1. What was never written is zero.
//  2. A row written by append is the caller's f32 row rounded once to the storage's dtype (nearest even).
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention/problem.h"
#include "core/buffer.h"
#include "core/context.h"
#include "tessera/dtype.h"
#include "tessera/status.h"

namespace tessera::attention {

struct KvFormat {
  DType dtype = DType::bf16;  // f32 or bf16
  int kv_heads = 0;
  int head_dim = 0;
  int v_head_dim = 0;
  int block_tokens = kKeyTile;  // the only value of this backend

  int v_width() const { return (v_head_dim + 15) / 16 * 16; }
  int64_t element_bytes() const { return dtype == DType::f32 ? 4 : 2; }
  int64_t k_tile_bytes() const { return element_bytes() * kKeyTile * head_dim; }
  int64_t v_tile_bytes() const { return element_bytes() * kKeyTile * v_width(); }
  int64_t pair_bytes() const { return k_tile_bytes() + v_tile_bytes(); }
  // Of one block id: K and V of every kv head and layer.
  int64_t bytes_per_block(int layers) const { return pair_bytes() * kv_heads * layers; }
};

// Rows to append: row r is K [kv_heads][head_dim] at k + r * k_row_stride and V [kv_heads][v_head_dim] at
// v + r * v_row_stride (strides in floats), for place offset[r] of block[r].
struct KvRows {
  int64_t rows = 0;
  const float* k = nullptr;
  int64_t k_row_stride = 0;
  const float* v = nullptr;
  int64_t v_row_stride = 0;
  const int32_t* block = nullptr;   // [rows], each < num_blocks
  const int32_t* offset = nullptr;  // [rows], each < block_tokens
};

class KvStorage {
 public:
  // An invalid_argument names the field at fault; a resource_exhausted names the bytes.
  static Result<KvStorage> create(const KvFormat& format, int layers, int num_blocks,
                                  Allocator& allocator = system_allocator());

  // Tiles in memory of the caller's: 64-byte aligned, format.bytes_per_block(layers) * num_blocks bytes that
  // outlive the storage. Invariant 1 is then the caller's. REQUIRES: what create() checks.
  static KvStorage over(const KvFormat& format, int layers, int num_blocks, void* memory);

  const KvFormat& format() const { return format_; }
  int layers() const { return layers_; }
  int num_blocks() const { return num_blocks_; }
  int64_t bytes_per_block() const { return format_.bytes_per_block(layers_); }
  int64_t bytes() const { return bytes_per_block() * num_blocks_; }

  // Writes rows of one layer; rows are divided over the pool. Two rows of one call must not name the same
  // place. Moves the rows once in and once out.
  void append(Context& context, int layer, const KvRows& rows);
  // Copies places [first, first + count) of `source` to the same places of `destination`, in every layer.
  void copy_rows(int source, int destination, int first, int count);
  // Unpacks places [first, first + count) of a block: k [count][head_dim], v [count][v_head_dim]. For tests
  // and tools.
  void read(int layer, int block, int kv_head, int first, int count, float* k, float* v) const;

  // The K tile of a block; its V tile follows after k_tile_bytes(). 64-byte aligned.
  const char* pair(int layer, int block, int kv_head) const {
    return tiles_ + pair_offset(layer, block, kv_head);
  }
  char* mutable_pair(int layer, int block, int kv_head) {
    return tiles_ + pair_offset(layer, block, kv_head);
  }

 private:
  int64_t pair_offset(int layer, int block, int kv_head) const {
    return ((int64_t{block} * layers_ + layer) * format_.kv_heads + kv_head) * format_.pair_bytes();
  }
  KvFormat format_;
  int layers_ = 0;
  int num_blocks_ = 0;
  Buffer data_;  // empty over the caller's memory
  char* tiles_ = nullptr;
};

}  // namespace tessera::attention
