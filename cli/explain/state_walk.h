// The library's tile kernel, one block of keys at a time, with the state of every row open to see.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/cpu/tile_kernel.h"
#include "core/buffer.h"
#include "tessera/status.h"

namespace tessera::cli {

class StateWalk {
 public:
  // q [rows][head_dim], both sizes multiples of 8 up to 256. Takes the f32 kernel of this machine.
  static Result<StateWalk> create(int rows, int head_dim, int v_head_dim, const std::vector<float>& q,
                                  float scale);

  struct Row {
    float m, l;     // natural units of m; l relative to it. m = -inf while nothing was seen.
    float block_m;  // the block's own state
    float block_l;
    float factor;  // exp(m before - m after): what the row's sum and output were multiplied by
  };
  // Keys [first, first + count) with k [count][head_dim] and v [count][v_head_dim], count <= 64; row r sees
  // those before end[r]. The block starts from the identity and is merged into the row.
  std::vector<Row> take(int64_t first, int count, const float* k, const float* v,
                        const std::vector<int32_t>& end);

  // o [rows][v_head_dim] of what was taken, and LSE.
  std::vector<float> output() const;
  std::vector<float> lse() const;
  const char* kernel_name() const { return kernel_->name; }

 private:
  StateWalk() = default;
  int v_width() const { return (v_head_dim_ + 15) / 16 * 16; }

  const attention::TileKernel* kernel_ = nullptr;
  int rows_ = 0, head_dim_ = 0, v_head_dim_ = 0;
  Buffer q_, scratch_, pair_;
  std::vector<float> segment_m_, segment_l_, segment_o_, m_, l_, o_;
};

}  // namespace tessera::cli
