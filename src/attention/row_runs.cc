#include "attention/row_runs.h"

#include <algorithm>

#include "attention/kv_storage.h"

namespace tessera::attention {
namespace {

constexpr int64_t kAheadBytes = 8192;

// The rows of all heads: one run, of one piece where they leave no room between them.
RowsRun whole_rows(const char* at, int64_t bytes, int64_t row_bytes, int64_t head_bytes, int heads,
                   int rows) {
  const int64_t whole = (heads - 1) * head_bytes + bytes;
  if (whole == row_bytes) return {at, whole * rows, 0, 1};
  return {at, whole, row_bytes, rows};
}

}  // namespace

// To the runs of a tile whose cursor stood at run `at` of them, or has to start.
void RowRuns::move(RowsCursor& cursor, const std::vector<RowsRun>& runs, int64_t at, int64_t bytes_ahead) {
  if (at >= 0 && at + 1 < static_cast<int64_t>(runs.size())) {
    cursor.run = runs.data() + at;
    return;
  }
  begin_run(cursor, runs.data());
  for (int64_t bytes = 0; bytes < bytes_ahead; bytes += 256) fetch<4>(cursor);
}

// The first `rows` rows of K, and V unless they are fewer than all, in the order of reading.
void RowRuns::list_near(const RowsOfTile& tile, int rows) {
  const auto list = [&](const char* at, int64_t bytes, int64_t row_bytes, int64_t head_bytes) {
    for (int row = 0; row < rows; row += kRowsTogether) {
      for (int head = 0; head < tile.heads; ++head)
        near_.push_back({at + row * row_bytes + head * head_bytes, bytes, row_bytes, kRowsTogether});
    }
  };
  list(tile.k, tile.k_bytes, tile.k_row_bytes, tile.k_head_bytes);
  if (rows == kKeyTile) list(tile.v, tile.v_bytes, tile.v_row_bytes, tile.v_head_bytes);
}

void RowRuns::move_to(const RowsOfTile& tile, const RowsOfTile& next) {
  // A cursor that found nothing more stands in the last run, and starts anew.
  const auto passed = [](const RowsCursor& cursor, const std::vector<RowsRun>& runs, int64_t of_tile) {
    if (cursor.run == nullptr || cursor.run == &runs.back()) return int64_t{-1};
    return cursor.run - runs.data() - of_tile;
  };
  const int64_t far_at = passed(ahead_.far, far_, 2), near_at = passed(ahead_.near, near_, near_of_tile_);
  far_.clear();
  for (const RowsOfTile* t : {&tile, &next}) {
    if (t->rows == 0) continue;
    far_.push_back(whole_rows(t->k, t->k_bytes, t->k_row_bytes, t->k_head_bytes, t->heads, t->rows));
    far_.push_back(whole_rows(t->v, t->v_bytes, t->v_row_bytes, t->v_head_bytes, t->heads, t->rows));
  }
  far_.push_back(no_run(tile.k));
  const int64_t together = kRowsTogether * tile.heads * std::max(tile.k_bytes, tile.v_bytes);
  move(ahead_.far, far_, far_at, std::max(kAheadBytes, together));
  if (together <= kAheadBytes || tile.heads == 1) return;
  near_.clear();
  list_near(tile, kKeyTile);
  near_of_tile_ = static_cast<int64_t>(near_.size());
  if (next.rows >= kRowsTogether) list_near(next, kRowsTogether);
  near_.push_back(no_run(tile.k));
  move(ahead_.near, near_, near_at, kAheadBytes);
}

}  // namespace tessera::attention
