// What comes near while the tiles of a unit are read from rows where they lie.
#pragma once

#include <cstdint>
#include <vector>

#include "attention/cpu/tile_kernel.h"

namespace tessera::attention {

// Rows of some kv heads of one tile: K of head h and row r at k + h * k_head_bytes + r * k_row_bytes, k_bytes
// long.
struct RowsOfTile {
  int rows = 0;  // 0: nothing
  int heads = 0;
  const char* k = nullptr;
  int64_t k_bytes = 0, k_row_bytes = 0, k_head_bytes = 0;
  const char* v = nullptr;
  int64_t v_bytes = 0, v_row_bytes = 0, v_head_bytes = 0;
};

// Memory is fastest when it is asked in the order in which it lies. So the far cursor takes whole rows, K and
// then V, 8 KiB ahead or as much as all heads read in their turn; more than that the first-level cache does
// not keep, and a near cursor asks again, a head or two before its turn. Read rates of one Zen 5 core with 41
// GB/s, bf16: 8 heads of 128, far alone 20 GB/s, both 29; 3 heads of 64, far alone 31, both 25.
class RowRuns {
 public:
  // Before a tile is walked: `tile` is `next` of the call before, or nothing of it has come near.
  void move_to(const RowsOfTile& tile, const RowsOfTile& next);
  // The next tile does not follow.
  void reset() { ahead_ = {}; }
  RowsAhead& ahead() { return ahead_; }

 private:
  static void move(RowsCursor& cursor, const std::vector<RowsRun>& runs, int64_t at, int64_t bytes_ahead);
  void list_near(const RowsOfTile& tile, int rows);

  std::vector<RowsRun> far_, near_;
  int64_t near_of_tile_ = 0;
  RowsAhead ahead_;
};

}  // namespace tessera::attention
