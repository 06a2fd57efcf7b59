#include "bindings/tree.h"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <set>
#include <utility>

#include "bindings/rope.h"
#include "core/format.h"

namespace tessera::python {
namespace {

constexpr int kTokens = attention::kCacheBlockTokens;

[[noreturn]] void raise_busy() {
  PyErr_SetString(PyExc_RuntimeError, "the tree is computing in another thread");
  throw nb::python_error();
}
void check_free(const Tree& tree) {
  if (tree.busy) raise_busy();
}

class Busy {
 public:
  explicit Busy(Tree& tree) : tree_(tree) {
    check_free(tree);
    tree_.busy = true;
  }
  ~Busy() { tree_.busy = false; }
  Busy(const Busy&) = delete;
  Busy& operator=(const Busy&) = delete;

 private:
  Tree& tree_;
};

attention::KvCache make_bytes(int num_blocks, int kv_heads, int head_dim, int v_head_dim, int layers,
                              const std::string& dtype) {
  auto made = attention::KvCache::create({.dtype = dtype_of(dtype, "cache"),
                                          .layers = layers,
                                          .kv_heads = kv_heads,
                                          .head_dim = head_dim,
                                          .v_head_dim = v_head_dim,
                                          .num_blocks = num_blocks});
  raise_if_error(made.status());
  return std::move(*made);
}

// A block for a sequence of this tree, or empty when all are referenced.
kvcache::BlockRef copy_of(Tree& tree, int32_t source, int rows) {
  kvcache::BlockRef block = tree.ids.allocate();
  if (block) raise_if_error(tree.bytes.copy_rows(source, block.id(), 0, rows));
  return block;
}

[[noreturn]] void raise_full(const Tree& tree, int64_t needed) {
  PyErr_SetString(PyExc_MemoryError,
                  format("{} more blocks are needed and {} of {} can be had; release sequences "
                         "or make the tree with more blocks",
                         needed, tree.ids.available(), tree.ids.pool().total())
                      .c_str());
  throw nb::python_error();
}

std::shared_ptr<Sequence> make_sequence(std::shared_ptr<Tree> tree, const std::vector<int32_t>& tokens,
                                        const std::string& tenant) {
  check_free(*tree);
  auto sequence = std::make_shared<Sequence>();
  sequence->tree = tree;
  sequence->tenant = tenant;
  kvcache::PrefixMatch match = tree->ids.match(sequence->key(), tokens);
  const kvcache::BlockRef tail = std::move(match.tail);
  int64_t found = static_cast<int64_t>(match.blocks.size()) * kTokens;
  sequence->table.adopt(std::move(match));
  if (tail) {
    if (kvcache::BlockRef block = copy_of(*tree, tail.id(), match.tail_rows)) {
      sequence->table.append(std::move(block));
      found += match.tail_rows;
    }
  }
  sequence->tokens.assign(tokens.begin(), tokens.begin() + found);
  return sequence;
}

std::shared_ptr<Sequence> fork(const Sequence& from) {
  check_free(*from.tree);
  auto sequence = std::make_shared<Sequence>();
  sequence->tree = from.tree;
  sequence->tenant = from.tenant;
  sequence->tokens = from.tokens;
  sequence->table = from.table.fork(static_cast<int64_t>(from.tokens.size()), kTokens);
  return sequence;
}

void publish(Sequence& sequence) {
  check_free(*sequence.tree);
  sequence.tree->ids.insert(sequence.key(), sequence.tokens, sequence.table);
  ++sequence.version;
}

void truncate(Sequence& sequence, int64_t length) {
  check_free(*sequence.tree);
  if (length < 0 || length > static_cast<int64_t>(sequence.tokens.size())) {
    raise_value_error(format("length={} must be from 0 to {}", length, sequence.tokens.size()));
  }
  sequence.tokens.resize(static_cast<size_t>(length));
  sequence.table.truncate(length, kTokens);
  ++sequence.version;
}

}  // namespace

Tree::Tree(int num_blocks, int kv_heads, int head_dim, int v_head_dim, int layers, const std::string& dtype,
           bool prefix_caching)
    : ids({.num_blocks = std::max(num_blocks, 1), .block_tokens = kTokens, .prefix_caching = prefix_caching}),
      bytes(make_bytes(num_blocks, kv_heads, head_dim, v_head_dim, layers, dtype)) {}

Step::Step(std::shared_ptr<Tree> tree, const std::vector<std::shared_ptr<Sequence>>& sequences,
           const std::vector<std::vector<int32_t>>& tokens)
    : tree_(std::move(tree)), sequences_(sequences) {
  check_free(*tree_);
  if (sequences.size() != tokens.size()) {
    raise_value_error(format("{} sequences and {} lists of tokens", sequences.size(), tokens.size()));
  }
  std::set<const Sequence*> seen;
  for (const auto& sequence : sequences) {
    if (sequence->tree != tree_) raise_value_error("a sequence belongs to another tree");
    if (!seen.insert(sequence.get()).second) raise_value_error("a sequence is in the step twice");
  }
  // All blocks are taken before any table changes, so that a full tree leaves everything as it was.
  struct Change {
    kvcache::BlockRef copy;
    std::vector<kvcache::BlockRef> fresh;
  };
  std::vector<Change> changes(sequences.size());
  for (size_t i = 0; i < sequences.size(); ++i) {
    const Sequence& s = *sequences[i];
    const int64_t length = static_cast<int64_t>(s.tokens.size()),
                  added = static_cast<int64_t>(tokens[i].size());
    if (added == 0) continue;
    if (const int rows = static_cast<int>(length % kTokens); rows != 0) {
      const int32_t last = static_cast<int32_t>(length / kTokens);
      if (tree_->ids.is_shared(s.table, last, 0)) {
        changes[i].copy = copy_of(*tree_, s.table.id(last), rows);
        if (!changes[i].copy) raise_full(*tree_, 1);
      }
    }
    const int64_t needed = tree_->ids.blocks_for(length + added) - s.table.size();
    for (int64_t n = 0; n < needed; ++n) {
      kvcache::BlockRef block = tree_->ids.allocate();
      if (!block) raise_full(*tree_, needed - n);
      changes[i].fresh.push_back(std::move(block));
    }
  }
  for (size_t i = 0; i < sequences.size(); ++i) {
    Sequence& s = *sequences[i];
    const int64_t length = static_cast<int64_t>(s.tokens.size());
    if (changes[i].copy) s.table.replace(static_cast<int32_t>(length / kTokens), std::move(changes[i].copy));
    for (kvcache::BlockRef& block : changes[i].fresh) s.table.append(std::move(block));
    s.tokens.insert(s.tokens.end(), tokens[i].begin(), tokens[i].end());
    versions_.push_back(++s.version);
    std::vector<int32_t>& ids = blocks_.emplace_back();
    for (int32_t b = 0; b < s.table.size(); ++b) ids.push_back(s.table.id(b));
    views_.push_back({.first_row = rows_,
                      .rows = static_cast<int64_t>(tokens[i].size()),
                      .first_position = length,
                      .num_blocks = static_cast<int64_t>(ids.size())});
    rows_ += views_.back().rows;
  }
  for (size_t i = 0; i < views_.size(); ++i) views_[i].blocks = blocks_[i].data();
}

std::vector<int32_t> Step::positions() const {
  std::vector<int32_t> positions;
  for (const attention::CacheSequence& view : views_) {
    for (int64_t row = 0; row < view.rows; ++row) {
      positions.push_back(static_cast<int32_t>(view.first_position + row));
    }
  }
  return positions;
}

void Step::check_current(int layer) const {
  const int layers = tree_->bytes.options().layers;
  if (layer < 0 || layer >= layers)
    raise_value_error(format("layer={} must be from 0 to {}", layer, layers - 1));
  for (size_t i = 0; i < sequences_.size(); ++i) {
    if (sequences_[i]->version != versions_[i]) {
      raise_value_error(format("sequences[{}] has changed since the step was made; make a new one", i));
    }
  }
}

void Step::append(int layer, In k, In v, const std::string& dtype_name, In cos, In sin,
                  const std::string& rotary_dtype, bool interleaved) {
  const Busy busy(*tree_);
  check_current(layer);
  const attention::KvCacheOptions& cache = tree_->bytes.options();
  const DType dtype = dtype_of(dtype_name, "k");
  sizes_of(k, dtype, 3, "k");
  sizes_of(v, dtype, 3, "v");
  expect_shape(k, {rows_, cache.kv_heads, cache.head_dim}, "k");
  expect_shape(v, {rows_, cache.kv_heads, cache.v_head_dim == 0 ? cache.head_dim : cache.v_head_dim}, "v");
  attention::Rotary rotary;
  const bool turns = static_cast<bool>(Array(cos));
  if (turns) rotary = rotary_of(cos, sin, rotary_dtype, interleaved);
  const auto from_k = strided<const void*>(k), from_v = strided<const void*>(v);
  run([&](Context& context) {
    return tree_->bytes.append(context, layer, views_, dtype, from_k, from_v, turns ? &rotary : nullptr);
  });
}

void Step::make_plan(Context& context, attention::AttentionProblem problem, bool share, Status* status) {
  std::vector<float> slopes;
  if (problem.alibi_slopes != nullptr) {
    slopes.assign(problem.alibi_slopes, problem.alibi_slopes + problem.heads);
  }
  const attention::AttentionProblem& p = problem_;
  if (plan_ && p.heads == problem.heads && p.scale == problem.scale && p.mask.causal == problem.mask.causal &&
      p.mask.window_left == problem.mask.window_left && p.mask.window_right == problem.mask.window_right &&
      p.softcap == problem.softcap && slopes_ == slopes && share_ == share) {
    return;
  }
  plan_.reset();
  slopes_ = std::move(slopes);
  problem.alibi_slopes = slopes_.empty() ? nullptr : slopes_.data();
  problem_ = problem;
  share_ = share;
  auto made = attention::CachePlan::create(context, tree_->bytes, problem_, views_, {.share = share});
  if (made.ok()) {
    plan_.emplace(std::move(*made));
  } else {
    *status = made.status();
  }
}

void Step::attend(int layer, In q, Out o, Out lse, In cos, In sin, const std::string& rotary_dtype,
                  bool interleaved, bool share, const Options& options) {
  const Busy busy(*tree_);
  check_current(layer);
  const attention::KvCacheOptions& cache = tree_->bytes.options();
  attention::CacheQuery query;
  expect_places(options);
  query.dtype = dtype_of(options.dtype, "q");
  const Sizes sizes = sizes_of(q, query.dtype, 3, "q");
  expect_shape(q, {rows_, -1, cache.head_dim}, "q");
  attention::AttentionProblem problem;
  problem.dtype = cache.dtype;
  problem.heads = narrow(sizes.heads, "heads");
  problem.kv_heads = cache.kv_heads;
  problem.head_dim = cache.head_dim;
  problem.v_head_dim = cache.v_head_dim == 0 ? cache.head_dim : cache.v_head_dim;
  set_features(problem, options);
  sizes_of(o, query.dtype, 3, "out");
  expect_shape(o, {rows_, sizes.heads, problem.v_head_dim}, "out");
  query.q = strided<const void*>(q);
  query.o = strided<void*>(o);
  query.lse = float_tensor(lse, {sizes.heads, rows_}, "lse");
  attention::Rotary rotary;
  if (Array(cos)) {
    rotary = rotary_of(cos, sin, rotary_dtype, interleaved);
    query.rotary = &rotary;
  }
  run([&](Context& context) {
    Status status;
    make_plan(context, problem, share, &status);
    return status.ok() ? plan_->attend(context, tree_->bytes, layer, query) : status;
  });
}

std::string Step::explain() const {
  return plan_ ? plan_->explain() : std::string();
}

std::vector<uint64_t> Step::reads() const {
  const attention::CacheReads reads = plan_ ? plan_->reads() : attention::CacheReads{};
  return {reads.tiles, reads.shared_tiles, reads.unshared};
}

void bind_tree(nb::module_& module) {
  nb::class_<Tree>(module, "Tree")
      .def(nb::init<int, int, int, int, int, const std::string&, bool>(), nb::arg("num_blocks"),
           nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("v_head_dim"), nb::arg("layers"),
           nb::arg("dtype"), nb::arg("prefix_caching"))
      .def("blocks",
           [](const Tree& tree) {
             const kvcache::BlockPool& pool = tree.ids.pool();
             return std::vector<int32_t>{pool.free(), pool.cached(), pool.referenced()};
           })
      .def("bytes", [](const Tree& tree) { return tree.bytes.bytes(); })
      .def("check_invariants", [](const Tree& tree) { raise_if_error(tree.ids.check_invariants()); });
  nb::class_<Sequence>(module, "Sequence")
      .def("tokens", [](const Sequence& s) { return s.tokens; })
      .def("length", [](const Sequence& s) { return s.tokens.size(); })
      .def("fork", &fork)
      .def("publish", &publish)
      .def("truncate", &truncate, nb::arg("length"));
  module.def("make_sequence", &make_sequence, nb::arg("tree"), nb::arg("tokens"), nb::arg("tenant"));
  const auto array = [](const char* name) { return nb::arg(name).noconvert(); };
  nb::class_<Step>(module, "Step")
      .def(nb::init<std::shared_ptr<Tree>, const std::vector<std::shared_ptr<Sequence>>&,
                    const std::vector<std::vector<int32_t>>&>(),
           nb::arg("tree"), nb::arg("sequences"), nb::arg("tokens"))
      .def("rows", &Step::rows)
      .def("positions", &Step::positions)
      .def("append", &Step::append, nb::arg("layer"), array("k"), array("v"), nb::arg("dtype"),
           array("cos").none(), array("sin").none(), nb::arg("rotary_dtype"), nb::arg("interleaved"))
      .def("attend", &Step::attend, nb::arg("layer"), array("q"), array("out"), array("lse").none(),
           array("cos").none(), array("sin").none(), nb::arg("rotary_dtype"), nb::arg("interleaved"),
           nb::arg("share"), nb::arg("options"))
      .def("explain", &Step::explain)
      .def("reads", &Step::reads);
}

}  // namespace tessera::python
