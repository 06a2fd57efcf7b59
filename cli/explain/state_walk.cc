#include "explain/state_walk.h"

#include <algorithm>
#include <cmath>

#include "attention/pack_tile.h"
#include "attention/registry.h"

namespace tessera::cli {
namespace {

constexpr double kLog2e = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

float natural(float m) {
  return m <= attention::kNoMaximum ? -INFINITY : static_cast<float>(m * kLn2);
}

}  // namespace

Result<StateWalk> StateWalk::create(int rows, int head_dim, int v_head_dim, const std::vector<float>& q,
                                    float scale) {
  attention::AttentionProblem problem;
  problem.heads = problem.kv_heads = 1;
  problem.head_dim = head_dim;
  problem.v_head_dim = v_head_dim;
  StateWalk walk;
  TESSERA_ASSIGN_OR_RETURN(walk.kernel_, attention::find(problem, attention::Kind::prefill));
  const attention::KvFormat format{DType::f32, 1, head_dim, v_head_dim, attention::kKeyTile};
  walk.rows_ = rows;
  walk.head_dim_ = head_dim;
  walk.v_head_dim_ = v_head_dim;
  const int64_t query_bytes = walk.kernel_->query_bytes(head_dim);
  TESSERA_ASSIGN_OR_RETURN(walk.q_, Buffer::create(static_cast<size_t>(rows * query_bytes), "rows"));
  TESSERA_ASSIGN_OR_RETURN(walk.pair_, Buffer::create(static_cast<size_t>(format.pair_bytes()), "tile"));
  TESSERA_ASSIGN_OR_RETURN(
      walk.scratch_,
      Buffer::create(static_cast<size_t>(walk.kernel_->scratch_bytes(head_dim, format.v_width())),
                     "scratch"));
  for (int r = 0; r < rows; ++r) {
    walk.kernel_->pack_query(q.data() + int64_t{r} * head_dim, head_dim, static_cast<float>(scale * kLog2e),
                             walk.q_.as<char>() + r * query_bytes);
  }
  const size_t count = static_cast<size_t>(rows), width = count * static_cast<size_t>(format.v_width());
  walk.segment_m_.assign(count, attention::kNoMaximum);
  walk.segment_l_.assign(count * attention::kSumLanes, 0.0f);
  walk.segment_o_.assign(width, 0.0f);
  walk.m_ = walk.segment_m_;
  walk.l_.assign(count, 0.0f);
  walk.o_ = walk.segment_o_;
  return walk;
}

std::vector<StateWalk::Row> StateWalk::take(int64_t first, int count, const float* k, const float* v,
                                            const std::vector<int32_t>& end) {
  const attention::KvFormat format{DType::f32, 1, head_dim_, v_head_dim_, attention::kKeyTile};
  attention::pack_tile(format,
                       {DType::f32, reinterpret_cast<const char*>(k), int64_t{head_dim_} * 4,
                        reinterpret_cast<const char*>(v), int64_t{v_head_dim_} * 4, 0, count},
                       pair_.as<char>());
  std::vector<int32_t> first_key(static_cast<size_t>(rows_), static_cast<int32_t>(first)), end_key, position;
  for (int r = 0; r < rows_; ++r) {
    end_key.push_back(std::min(end[static_cast<size_t>(r)], static_cast<int32_t>(first) + count));
    position.push_back(r);
  }
  attention::ItemRows rows{};
  rows.head_dim = head_dim_;
  rows.v_width = v_width();
  rows.q = q_.data();
  rows.first_key = first_key.data();
  rows.end_key = end_key.data();
  rows.position = position.data();
  rows.segment = {segment_m_.data(), segment_l_.data(), segment_o_.data()};
  rows.scratch = scratch_.data();
  kernel_->walk(rows, 0, rows_, {pair_.as<char>(), nullptr, first, count});
  std::vector<Row> seen(static_cast<size_t>(rows_));
  for (size_t r = 0; r < seen.size(); ++r) {
    seen[r].block_m = natural(segment_m_[r]);
    for (int lane = 0; lane < attention::kSumLanes; ++lane)
      seen[r].block_l += segment_l_[r * attention::kSumLanes + static_cast<size_t>(lane)];
    seen[r].factor = m_[r];
  }
  kernel_->fold({m_.data(), l_.data(), o_.data()}, rows.segment, rows_, v_width());
  for (size_t r = 0; r < seen.size(); ++r) {
    seen[r].m = natural(m_[r]);
    seen[r].l = l_[r];
    seen[r].factor = static_cast<float>(std::exp2(double{seen[r].factor} - double{m_[r]}));
  }
  return seen;
}

std::vector<float> StateWalk::output() const {
  std::vector<float> o(static_cast<size_t>(rows_) * static_cast<size_t>(v_head_dim_));
  for (int r = 0; r < rows_; ++r) {
    std::vector<float> m = {m_[static_cast<size_t>(r)]}, l = {l_[static_cast<size_t>(r)]};
    std::vector<float> row(o_.begin() + int64_t{r} * v_width(), o_.begin() + int64_t{r + 1} * v_width());
    kernel_->finish({m.data(), l.data(), row.data()}, v_head_dim_, o.data() + int64_t{r} * v_head_dim_);
  }
  return o;
}

std::vector<float> StateWalk::lse() const {
  std::vector<float> out;
  for (size_t r = 0; r < m_.size(); ++r) {
    out.push_back(l_[r] == 0 ? -INFINITY : static_cast<float>(m_[r] * kLn2 + std::log(double{l_[r]})));
  }
  return out;
}

}  // namespace tessera::cli
