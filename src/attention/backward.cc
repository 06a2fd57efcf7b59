// Backward over the caller's tensors: checks, scratch and the order of the work.
//
// Invariants:
//  1. An item is a unit of keys of one kv head of one sequence: a segment of 512, or a half or quarter of one
//     where segments would be too few for the threads. It alone holds and writes its keys' dk and dv, summing
//     every query head of the group over the blocks of rows, last block first.
//  2. dq of a block of rows is the sum, in rising order, of one partial a segment that the block may see. A
//     partial starts from zero and walks its tiles in rising order; units of one segment hand it on. Each
//     unit waits until every earlier one has done its part (turns_). So neither threads nor their speed nor
//     the length of a unit changes a bit.
//  3. Items are handed out in rising order of their unit. An item waits only for items with a lower unit,
//     which were handed out before: the lowest one in flight never waits, so somebody always goes on.
//
// Blocks are walked last first because under a causal mask or a window the last rows of a unit are those
// that the next unit starts with: whoever walks that one next seldom has to wait.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "attention/backward_registry.h"
#include "attention/cpu/backward_kernel.h"
#include "attention/cpu/kernel_scope.h"
#include "attention/device_kernels.h"
#include "attention/dropout.h"
#include "attention/execution.h"
#include "attention/unseen_keys.h"
#include "core/boundary.h"
#include "core/check.h"
#include "core/context.h"
#include "core/format.h"
#include "tessera/attention.h"

namespace tessera::attention {
namespace {

constexpr int kMostBlockRows = 144;
constexpr int64_t kLeastUnit = 128;
constexpr int64_t kRowsAhead = 4;  // fetched while one is summed

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// A sequence and its blocks of stacked rows (row-major, a row's heads of the group adjacent).
struct Sequence : SequenceView {
  int64_t batch;
  int64_t first_block, blocks;  // of one kv head; first_block counts all sequences'
};

struct Keys {
  int64_t first, end;
  bool none() const { return first >= end; }
};

// The arrays of a block that a kernel reads.
struct BlockArrays {
  BackwardRows rows{};
  int32_t first_key[kMostBlockRows], end_key[kMostBlockRows], position[kMostBlockRows];
  DropoutRow dropout[kMostBlockRows];
  float slope[kMostBlockRows];
  const void* mask_row[kMostBlockRows];
  const void* q[kMostBlockRows];
  const void* dout[kMostBlockRows];
  void* dq[kMostBlockRows];
};

class BackwardRun {
 public:
  BackwardRun(Context& context, const AttentionProblem& problem, const BackwardTensors& tensors,
              const BackwardKernel& kernel);
  void run();

 private:
  struct Item {
    int32_t sequence, unit;
  };

  Keys row_keys(const Sequence& sequence, int64_t row) const;
  Keys block_keys(const Sequence& sequence, int64_t block) const;
  int64_t block_index(const Sequence& sequence, int kv_head, int64_t block) const {
    return sequence.first_block * problem_.kv_heads + kv_head * sequence.blocks + block;
  }
  void prepare_rows(int64_t begin, int64_t end);
  void fill(const Sequence& sequence, int kv_head, int64_t block, BlockArrays& arrays) const;
  void run_item(const Item& item, int kv_head, char* memory, BlockArrays& arrays);
  void pack_keys(const Sequence& sequence, int kv_head, Keys part, Keys seen, char* memory) const;
  void write_keys(const Sequence& sequence, int kv_head, Keys part, Keys seen, char* memory) const;
  // Units of keys that a block sees, counted from position 0.
  struct Units {
    int64_t first, last;
  };
  void wait_for_turn(int64_t index, int64_t position);
  void hand_on_dq(int64_t index, int64_t unit, Units units, BlockArrays& arrays);
  int64_t segment(int64_t unit) const { return unit * unit_ / kSegment; }
  float* of_block(float* sums, int64_t index) const {
    return sums + index * kernel_.block_rows * shape_.k_width;
  }
  const char* mask_element(const Sequence& sequence, int64_t head, int64_t row, int64_t key) const;

  template <typename Pointer>
  Pointer at(const Strided<Pointer>& t, const Sequence& sequence, int64_t first, int64_t row,
             int64_t head) const {
    using Bytes = std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const char*, char*>;
    const int64_t batch = problem_.cu_seqlens_q != nullptr ? 0 : sequence.batch * t.batch_stride;
    return static_cast<Bytes>(t.data) +
           (batch + (first + row) * t.row_stride + head * t.head_stride) * element_;
  }

  Context& context_;
  const AttentionProblem& problem_;
  const BackwardTensors& t_;
  const BackwardKernel& kernel_;
  const int group_;
  const int64_t element_;
  BackwardShape shape_{};
  const TensorAxes axes_;
  DropoutKey dropout_;
  std::vector<Sequence> sequences_;
  int64_t unit_ = kSegment;   // keys of an item
  std::vector<Item> items_;   // rising by unit
  int64_t blocks_ = 0;        // of one kv head, all sequences'
  float* lse_ = nullptr;      // [blocks of all kv heads][block_rows]
  float* delta_ = nullptr;    // the same
  float* dq_ = nullptr;       // [blocks][block_rows][k_width]; null: the output is f32
  float* partial_ = nullptr;  // the same, of the segment under way; null: no segment has several units
  std::unique_ptr<std::atomic<int32_t>[]> turns_;  // [blocks]: units that have done their part
};

BackwardRun::BackwardRun(Context& context, const AttentionProblem& problem, const BackwardTensors& tensors,
                         const BackwardKernel& kernel)
    : context_(context),
      problem_(problem),
      t_(tensors),
      kernel_(kernel),
      group_(problem.heads / problem.kv_heads),
      element_(info(problem.dtype).block_bytes),
      axes_(tensor_axes(problem)),
      dropout_(dropout_key(problem.dropout)) {
  TESSERA_CHECK(kernel.block_rows <= kMostBlockRows);
  shape_.head_dim = problem.head_dim;
  shape_.v_head_dim = problem.v_head_dim;
  shape_.k_width = (problem.head_dim + 15) / 16 * 16;
  shape_.v_width = (problem.v_head_dim + 15) / 16 * 16;
  shape_.dtype = problem.dtype;
  shape_.scale = problem.scale;
  shape_.alibi = problem.alibi_slopes != nullptr;
  shape_.softcap = problem.softcap;
  shape_.mask = problem.mask.tensor.kind;
  shape_.mask_dtype = problem.mask.tensor.dtype;
  shape_.mask_key_stride = problem.mask.tensor.key_stride;
  shape_.dropout = problem.dropout.p > 0 ? &dropout_ : nullptr;
  shape_.dropout_scale = problem.dropout.scale();
  shape_.plain =
      !shape_.alibi && shape_.softcap == 0 && shape_.mask == MaskKind::none && shape_.dropout == nullptr;

  int64_t longest = 0;
  for (int64_t b = 0; b < problem.batch; ++b) {
    Sequence s{sequence_of(problem, b), b, 0, 0};
    s.first_block = blocks_;
    s.blocks = (s.rows * group_ + kernel.block_rows - 1) / kernel.block_rows;
    blocks_ += s.blocks;
    longest = std::max(longest, s.length);
    sequences_.push_back(s);
  }
  const auto items = [&] {
    int64_t count = 0;
    for (const Sequence& s : sequences_) count += (s.length + unit_ - 1) / unit_;
    return count * problem.kv_heads;
  };
  // Each halving packs the rows once more, 3 % of the time at 512 keys.
  const int threads = context.pool.size();
  while (threads > 1 && unit_ > kLeastUnit && items() < 2 * threads) unit_ /= 2;
  // A sequence without keys still has rows whose dq somebody must write.
  for (int64_t unit = 0; unit == 0 || unit * unit_ < longest; ++unit) {
    for (const Sequence& s : sequences_) {
      if (unit == 0 || unit * unit_ < s.length) {
        items_.push_back({static_cast<int32_t>(s.batch), static_cast<int32_t>(unit)});
      }
    }
  }
}

Keys BackwardRun::row_keys(const Sequence& s, int64_t row) const {
  const Mask& mask = problem_.mask;
  const int64_t position = row + s.keys - s.rows;
  int64_t first = s.leftpad, end = s.keys;
  if (mask.window_left >= 0) first = std::max(first, position - mask.window_left);
  if (mask.causal) end = std::min(end, position + 1);
  if (mask.window_right >= 0) end = std::min(end, position + mask.window_right + 1);
  return {first, std::max<int64_t>(end, 0)};
}

// Bounds of what the rows of a block may see. Of rows in order both ends never fall, and those that see
// nothing come first: all rows up to one whose end stays below the padding on the left.
Keys BackwardRun::block_keys(const Sequence& s, int64_t block) const {
  const int64_t first = block * kernel_.block_rows;
  const int64_t last = std::min(first + kernel_.block_rows, s.rows * group_) - 1;
  const int64_t end = row_keys(s, last / group_).end;
  for (int64_t row = first / group_; row <= last / group_; ++row) {
    const Keys keys = row_keys(s, row);
    if (!keys.none()) return {keys.first, end};
  }
  return {0, 0};
}

const char* BackwardRun::mask_element(const Sequence& s, int64_t head, int64_t row, int64_t key) const {
  const MaskTensor& mask = problem_.mask.tensor;
  const int64_t element = mask.kind == MaskKind::boolean ? 1 : info(mask.dtype).block_bytes;
  return static_cast<const char*>(mask.data) + (s.batch * mask.batch_stride + head * mask.head_stride +
                                                row * mask.row_stride + key * mask.key_stride) *
                                                   element;
}

// lse_ and delta_ of blocks [begin, end) over all sequences and kv heads.
void BackwardRun::prepare_rows(int64_t begin, int64_t end) {
  for (const Sequence& s : sequences_) {
    const int64_t first = s.first_block * problem_.kv_heads;
    const int64_t last = first + s.blocks * problem_.kv_heads;
    for (int64_t index = std::max(begin, first); index < std::min(end, last); ++index) {
      const int kv_head = static_cast<int>((index - first) / s.blocks);
      const int64_t block = (index - first) % s.blocks;
      for (int r = 0; r < kernel_.block_rows; ++r) {
        float& lse = lse_[index * kernel_.block_rows + r];
        float& delta = delta_[index * kernel_.block_rows + r];
        lse = kBlindLse;
        delta = 0;
        const int64_t stacked = block * kernel_.block_rows + r, row = stacked / group_;
        if (row >= s.rows || row_keys(s, row).none()) continue;
        const int64_t head = kv_head * group_ + stacked % group_;
        const float given = t_.lse[(s.batch_axis * problem_.heads + head) * axes_.rows + s.first_row + row];
        if (given == -INFINITY) continue;
        if (row + kRowsAhead < s.rows) {
          const auto fetch = [&](const Strided<const void*>& t) {
            const char* next = static_cast<const char*>(at(t, s, s.first_row, row + kRowsAhead, head));
            for (int64_t i = 0; i < problem_.v_head_dim * element_; i += 64) __builtin_prefetch(next + i);
          };
          fetch(t_.o);
          fetch(t_.dout);
        }
        lse = static_cast<float>(given * kLog2e);
        delta = kernel_.row_delta(shape_, at(t_.o, s, s.first_row, row, head),
                                  at(t_.dout, s, s.first_row, row, head));
      }
    }
  }
}

void BackwardRun::fill(const Sequence& s, int kv_head, int64_t block, BlockArrays& arrays) const {
  const int64_t first = block * kernel_.block_rows, index = block_index(s, kv_head, block);
  BackwardRows& rows = arrays.rows;
  rows.rows = static_cast<int>(std::min<int64_t>(kernel_.block_rows, s.rows * group_ - first));
  rows.first_key = arrays.first_key;
  rows.end_key = arrays.end_key;
  rows.lse = lse_ + index * kernel_.block_rows;
  rows.delta = delta_ + index * kernel_.block_rows;
  rows.position = arrays.position;
  rows.slope = arrays.slope;
  rows.mask_row = arrays.mask_row;
  rows.dropout = arrays.dropout;
  for (int r = 0; r < kernel_.block_rows; ++r) {
    if (r >= rows.rows) {
      arrays.first_key[r] = arrays.end_key[r] = arrays.end_key[rows.rows - 1];
      continue;
    }
    const int64_t row = (first + r) / group_, head = kv_head * group_ + (first + r) % group_;
    const Keys keys = row_keys(s, row);
    arrays.first_key[r] = static_cast<int32_t>(keys.first);
    arrays.end_key[r] = static_cast<int32_t>(keys.end);
    const bool blind = rows.lse[r] == kBlindLse;
    arrays.q[r] = blind ? nullptr : at(t_.q, s, s.first_row, row, head);
    arrays.dout[r] = blind ? nullptr : at(t_.dout, s, s.first_row, row, head);
    arrays.dq[r] = at(t_.dq, s, s.first_row, row, head);
    if (shape_.plain) continue;
    arrays.position[r] = static_cast<int32_t>(row + s.keys - s.rows);
    arrays.dropout[r] = {static_cast<uint32_t>(s.batch), static_cast<uint32_t>(head),
                         static_cast<uint32_t>(row)};
    if (shape_.alibi) {
      arrays.slope[r] = problem_.alibi_slopes[s.batch * problem_.alibi_batch_stride + head];
    }
    if (shape_.mask != MaskKind::none) arrays.mask_row[r] = mask_element(s, head, row, 0);
  }
}

void BackwardRun::pack_keys(const Sequence& s, int kv_head, Keys part, Keys seen, char* memory) const {
  for (int tile = 0; tile < unit_ / kKeyTile; ++tile) {
    const int64_t first = part.first + tile * kKeyTile;
    if (first >= seen.end || first + kKeyTile <= seen.first) continue;
    const void* k[kKeyTile];
    const void* v[kKeyTile];
    for (int i = 0; i < kKeyTile; ++i) {
      const int64_t key = first + i;
      k[i] = v[i] = nullptr;
      if (key < seen.first || key >= seen.end) continue;
      const char* k_row = static_cast<const char*>(at(t_.k, s, s.first_key, key, kv_head));
      const char* v_row = static_cast<const char*>(at(t_.v, s, s.first_key, key, kv_head));
      if (shape_.mask != MaskKind::none &&
          !(finite_row(problem_.dtype, k_row, problem_.head_dim) &&
            finite_row(problem_.dtype, v_row, problem_.v_head_dim)) &&
          !any_row_sees(problem_, s, s.batch, kv_head, key)) {
        continue;
      }
      k[i] = k_row;
      v[i] = v_row;
    }
    kernel_.pack_tile(shape_, {tile, first, memory}, k, v);
  }
}

void BackwardRun::write_keys(const Sequence& s, int kv_head, Keys part, Keys seen, char* memory) const {
  for (int tile = 0; tile < unit_ / kKeyTile; ++tile) {
    const int64_t first = part.first + tile * kKeyTile;
    void* dk[kKeyTile];
    void* dv[kKeyTile];
    bool any = false;
    for (int i = 0; i < kKeyTile; ++i) {
      const int64_t key = first + i;
      dk[i] = dv[i] = nullptr;
      if (key >= part.end) continue;
      dk[i] = at(t_.dk, s, s.first_key, key, kv_head);
      dv[i] = at(t_.dv, s, s.first_key, key, kv_head);
      if (key >= seen.first && key < seen.end) {
        any = true;
        continue;
      }
      std::memset(dk[i], 0, static_cast<size_t>(problem_.head_dim * element_));
      std::memset(dv[i], 0, static_cast<size_t>(problem_.v_head_dim * element_));
      dk[i] = dv[i] = nullptr;
    }
    if (any) kernel_.write_tile(shape_, {tile, first, memory}, dk, dv);
  }
}

void BackwardRun::wait_for_turn(int64_t index, int64_t position) {
  const std::atomic<int32_t>& turn = turns_[static_cast<size_t>(index)];
  for (int spins = 0; turn.load(std::memory_order_acquire) != position; ++spins) {
    relax();
    // The one waited for may need this core.
    if (spins > 2000) std::this_thread::yield();
  }
}

// After the walk over a unit, when it is its turn: the block's dq goes to the segment's next unit, or as the
// whole segment's partial to the sum.
void BackwardRun::hand_on_dq(int64_t index, int64_t unit, Units units, BlockArrays& arrays) {
  const bool first = segment(unit) == segment(units.first), last = unit == units.last;
  if (!last && segment(unit + 1) == segment(unit)) {
    kernel_.sum_dq(shape_, arrays.rows, true, of_block(partial_, index));
  } else if (dq_ == nullptr) {
    kernel_.add_dq(shape_, arrays.rows, first, arrays.dq);
  } else {
    float* sum = of_block(dq_, index);
    kernel_.sum_dq(shape_, arrays.rows, first, sum);
    if (last) kernel_.write_dq(shape_, arrays.rows.rows, sum, arrays.dq);
  }
  turns_[static_cast<size_t>(index)].store(static_cast<int32_t>(unit - units.first + 1),
                                           std::memory_order_release);
}

void BackwardRun::run_item(const Item& item, int kv_head, char* memory, BlockArrays& arrays) {
  const Sequence& s = sequences_[static_cast<size_t>(item.sequence)];
  const Keys part{item.unit * unit_, std::min((item.unit + 1) * unit_, s.length)};
  Keys seen{0, 0};
  for (int64_t block = 0; block < s.blocks && seen.none(); ++block) seen = block_keys(s, block);
  if (!seen.none()) seen.end = block_keys(s, s.blocks - 1).end;
  seen = {std::max(part.first, seen.first), std::min(part.end, seen.end)};
  if (!seen.none()) pack_keys(s, kv_head, part, seen, memory);
  for (int64_t block = s.blocks; block-- > 0;) {
    const Keys keys = block_keys(s, block);
    const bool walks = !keys.none() && keys.first < part.end && keys.end > part.first;
    const bool clears = keys.none() && item.unit == 0;
    if (!walks && !clears) continue;
    fill(s, kv_head, block, arrays);
    if (clears) {
      for (int r = 0; r < arrays.rows.rows; ++r) {
        std::memset(arrays.dq[r], 0, static_cast<size_t>(problem_.head_dim * element_));
      }
      continue;
    }
    const int64_t index = block_index(s, kv_head, block);
    const Units units{keys.first / unit_, (keys.end - 1) / unit_};
    const bool goes_on = item.unit > units.first && segment(item.unit - 1) == segment(item.unit);
    if (goes_on) wait_for_turn(index, item.unit - units.first);
    kernel_.pack_rows(shape_, arrays.rows, arrays.q, arrays.dout,
                      goes_on ? of_block(partial_, index) : nullptr);
    for (int tile = 0; tile < unit_ / kKeyTile; ++tile) {
      const int64_t first = part.first + tile * kKeyTile;
      if (first >= keys.end || first + kKeyTile <= keys.first) continue;
      kernel_.walk(shape_, arrays.rows, {tile, first, memory});
    }
    if (!goes_on) wait_for_turn(index, item.unit - units.first);
    hand_on_dq(index, item.unit, units, arrays);
  }
  write_keys(s, kv_head, part, seen, memory);
}

void BackwardRun::run() {
  const int kv_heads = problem_.kv_heads;
  const int64_t blocks = blocks_ * kv_heads, rows = blocks * kernel_.block_rows;
  const int64_t row_bytes = align64(rows * 4);
  const int64_t sum_bytes = rows * shape_.k_width * 4;
  const int64_t dq_bytes = problem_.dtype == DType::f32 ? 0 : sum_bytes;
  const int64_t partial_bytes = unit_ == kSegment ? 0 : sum_bytes;
  char* shared = static_cast<char*>(
      context_.workspace(0).get(kSharedSlot, static_cast<size_t>(2 * row_bytes + dq_bytes + partial_bytes)));
  lse_ = reinterpret_cast<float*>(shared);
  delta_ = reinterpret_cast<float*>(shared + row_bytes);
  if (dq_bytes > 0) dq_ = reinterpret_cast<float*>(shared + 2 * row_bytes);
  if (partial_bytes > 0) partial_ = reinterpret_cast<float*>(shared + 2 * row_bytes + dq_bytes);
  turns_ = std::make_unique<std::atomic<int32_t>[]>(static_cast<size_t>(blocks));

  context_.pool.parallel_for(blocks, 4, [&](int64_t begin, int64_t end, int) {
    const FlushSubnormals flush;
    prepare_rows(begin, end);
  });
  const int64_t units = static_cast<int64_t>(items_.size()) * kv_heads;
  const int64_t segment_bytes = align64(kernel_.segment_bytes(shape_));
  std::atomic<int64_t> next{0};
  const auto work = [&](int worker) {
    const KernelScope<BackwardKernel> scope(kernel_);
    // All that may throw comes before the first item: nobody waits for an item that was given up.
    char* scratch = static_cast<char*>(context_.workspace(worker).get(
        kScratchSlot, static_cast<size_t>(segment_bytes + kernel_.block_bytes(shape_))));
    BlockArrays arrays;
    arrays.rows.memory = scratch + segment_bytes;
    for (int64_t unit = next++; unit < units; unit = next++) {
      run_item(items_[static_cast<size_t>(unit / kv_heads)], static_cast<int>(unit % kv_heads), scratch,
               arrays);
    }
  };
  if (units == 1) return work(0);
  context_.pool.run_any(work);
}

Status check_tensors(const AttentionProblem& p, const BackwardTensors& t) {
  const TensorAxes axes = tensor_axes(p);
  const auto q = [&](const char* field, const auto& tensor, int dim) {
    return check_tensor(field, tensor, axes.batches, axes.rows, p.heads, dim, p.dtype);
  };
  const auto kv = [&](const char* field, const auto& tensor, int dim) {
    return check_tensor(field, tensor, axes.batches, axes.keys, p.kv_heads, dim, p.dtype);
  };
  TESSERA_RETURN_IF_ERROR(q("q", t.q, p.head_dim));
  TESSERA_RETURN_IF_ERROR(kv("k", t.k, p.head_dim));
  TESSERA_RETURN_IF_ERROR(kv("v", t.v, p.v_head_dim));
  TESSERA_RETURN_IF_ERROR(q("o", t.o, p.v_head_dim));
  TESSERA_RETURN_IF_ERROR(q("dout", t.dout, p.v_head_dim));
  TESSERA_RETURN_IF_ERROR(q("dq", t.dq, p.head_dim));
  TESSERA_RETURN_IF_ERROR(kv("dk", t.dk, p.head_dim));
  TESSERA_RETURN_IF_ERROR(kv("dv", t.dv, p.v_head_dim));
  const int64_t rows = axes.batches * axes.rows * p.heads;
  if (t.lse == nullptr && rows > 0) {
    return invalid_argument(format("lse is null but has {} elements; pass what forward gave", rows), "lse");
  }
  return {};
}

}  // namespace

Status backward(Context& context, const AttentionProblem& problem, const BackwardTensors& t) {
  if (context.attention != nullptr) {
    return at_boundary([&] { return context.attention->backward(problem, t); });
  }
  TESSERA_RETURN_IF_ERROR(validate(problem));
  TESSERA_ASSIGN_OR_RETURN(const BackwardKernel* kernel, find_backward(problem));
  TESSERA_RETURN_IF_ERROR(check_tensors(problem, t));
  const TensorAxes axes = tensor_axes(problem);
  if (axes.batches * (axes.rows + axes.keys) == 0) return {};
  return at_boundary([&]() -> Status {
    BackwardRun(context, problem, t, *kernel).run();
    return {};
  });
}

}  // namespace tessera::attention
