// A prefix tree over cached keys and values: whose tokens lie in which blocks (kvcache) and the blocks' bytes
// (tessera/paged.h), for Python.
//
// Invariants:
//  1. Every method runs under the GIL but for the compute inside append() and attend(), during which busy_
//  keeps other
//     Python threads out (RuntimeError). So tables never change under a kernel.
//  2. A Step is used only while its sequences are as it left them (Sequence::version).
//  3. Rows are written only into blocks that one sequence alone references: make_step() copies a shared last
//  block.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings/options.h"
#include "kvcache/kv_cache.h"
#include "tessera/paged.h"

namespace tessera::python {

class Tree {
 public:
  Tree(int num_blocks, int kv_heads, int head_dim, int v_head_dim, int layers, const std::string& dtype,
       bool prefix_caching);

  kvcache::KvCache ids;
  attention::KvCache bytes;
  bool busy = false;
};

// The tokens of one sequence and where their K/V lie. Keeps its tree alive.
struct Sequence {
  Sequence() = default;
  Sequence(const Sequence&) = delete;
  Sequence& operator=(const Sequence&) = delete;

  std::shared_ptr<Tree> tree;
  kvcache::BlockTable table;
  std::vector<int32_t> tokens;
  std::string tenant;
  uint64_t version = 0;  // rises with every change

  kvcache::RootKey key() const { return {tenant, {}, {}, {}}; }
};

// New tokens of some sequences: row r of q, k and v belongs to them in order.
class Step {
 public:
  Step(std::shared_ptr<Tree> tree, const std::vector<std::shared_ptr<Sequence>>& sequences,
       const std::vector<std::vector<int32_t>>& tokens);
  Step(const Step&) = delete;
  Step& operator=(const Step&) = delete;

  int64_t rows() const { return rows_; }
  std::vector<int32_t> positions() const;

  // Writes the rows' K and V of one layer. cos and sin may be None.
  void append(int layer, In k, In v, const std::string& dtype, In cos, In sin,
              const std::string& rotary_dtype, bool interleaved);
  // Attends to everything up to each row's own token. Of options, scale, causal, windows, softcap and ALiBi
  // count.
  void attend(int layer, In q, Out o, Out lse, In cos, In sin, const std::string& rotary_dtype,
              bool interleaved, bool share, const Options& options);
  // Of the last attend().
  std::string explain() const;
  std::vector<uint64_t> reads() const;  // tiles, shared tiles, tiles without sharing

 private:
  void check_current(int layer) const;
  void make_plan(Context& context, attention::AttentionProblem problem, bool share, Status* status);

  std::shared_ptr<Tree> tree_;
  std::vector<std::shared_ptr<Sequence>> sequences_;
  std::vector<uint64_t> versions_;
  std::vector<std::vector<int32_t>> blocks_;
  std::vector<attention::CacheSequence> views_;
  int64_t rows_ = 0;
  // The plan is kept from layer to layer while the problem stays the same.
  attention::AttentionProblem problem_;
  std::vector<float> slopes_;
  bool share_ = true;
  std::optional<attention::CachePlan> plan_;
};

}  // namespace tessera::python
