#include "kvcache/prefix_tree.h"

#include <algorithm>

#include "core/check.h"
#include "core/format.h"

namespace tessera::kvcache {

struct PrefixTree::Node {
  Node* parent = nullptr;        // null: a root
  const RootKey* key = nullptr;  // of a root
  std::vector<int32_t> tokens;
  std::vector<int32_t> blocks;
  uint64_t last_use = 0;
  uint64_t birth = 0;
  Children children;

  explicit Node(int block_tokens) : children(ByFirstBlock{block_tokens}) {}
  bool is_leaf() const { return parent != nullptr && children.empty(); }
};

namespace {

using Tokens = std::span<const int32_t>;

Tokens first_block(const std::vector<int32_t>& tokens, int block_tokens) {
  return Tokens(tokens).first(std::min(tokens.size(), static_cast<size_t>(block_tokens)));
}

bool before(Tokens a, Tokens b) {
  return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end());
}

size_t common_prefix(Tokens a, Tokens b) {
  const size_t limit = std::min(a.size(), b.size());
  return static_cast<size_t>(
      std::mismatch(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(limit), b.begin()).first - a.begin());
}

}  // namespace

bool PrefixTree::ByFirstBlock::operator()(const std::unique_ptr<Node>& a,
                                          const std::unique_ptr<Node>& b) const {
  return before(first_block(a->tokens, block_tokens), first_block(b->tokens, block_tokens));
}
bool PrefixTree::ByFirstBlock::operator()(const std::unique_ptr<Node>& a, Tokens b) const {
  return before(first_block(a->tokens, block_tokens), b);
}
bool PrefixTree::ByFirstBlock::operator()(Tokens a, const std::unique_ptr<Node>& b) const {
  return before(a, first_block(b->tokens, block_tokens));
}

PrefixTree::PrefixTree(BlockPool* pool, int block_tokens) : pool_(pool), block_tokens_(block_tokens) {
  TESSERA_CHECK_MSG(block_tokens >= 1, "a block holds at least one token");
  tail_owner_.resize(static_cast<size_t>(pool->total()), nullptr);
}

PrefixTree::~PrefixTree() = default;

std::span<const int32_t> PrefixTree::block_of(const Node& node, size_t index) const {
  const size_t begin = index * static_cast<size_t>(block_tokens_);
  return Tokens(node.tokens)
      .subspan(begin, std::min(static_cast<size_t>(block_tokens_), node.tokens.size() - begin));
}

// The child whose first block is whole and equal to the first block_tokens of `tokens`.
PrefixTree::Node* PrefixTree::exact_child(const Node& node, Tokens tokens) const {
  if (tokens.size() < static_cast<size_t>(block_tokens_)) return nullptr;
  const auto found = node.children.find(tokens.first(static_cast<size_t>(block_tokens_)));
  return found == node.children.end() ? nullptr : found->get();
}

// The child whose first block has the longest common prefix with `tokens`. In lexicographic order common
// prefixes only get shorter as one walks away from where `tokens` would stand, so two neighbours are enough.
PrefixTree::Node* PrefixTree::nearest_child(const Node& node, Tokens tokens, size_t* common) const {
  const Tokens first = tokens.first(std::min(tokens.size(), static_cast<size_t>(block_tokens_)));
  Node* best = nullptr;
  *common = 0;
  const auto above = node.children.lower_bound(first);
  for (auto side : {above, above == node.children.begin() ? node.children.end() : std::prev(above)}) {
    if (side == node.children.end()) continue;
    const size_t length = common_prefix(block_of(**side, 0), first);
    if (length > *common) {
      *common = length;
      best = side->get();
    }
  }
  return best;
}

void PrefixTree::touch(Node* node) {
  for (; node->parent != nullptr && node->last_use != now_; node = node->parent) {
    if (node->is_leaf()) {
      auto handle = leaves_.extract({node->last_use, node->birth});
      handle.key().last_use = now_;
      leaves_.insert(std::move(handle));
    }
    node->last_use = now_;
  }
}

PrefixMatch PrefixTree::match(const RootKey& key, Tokens tokens) {
  PrefixMatch result;
  const auto root = roots_.find(key);
  if (root == roots_.end()) return result;
  ++now_;
  const size_t step = static_cast<size_t>(block_tokens_);
  Node* node = root->second.get();
  Node* deepest = node;
  Node* tail_node = nullptr;
  size_t tail_block = 0;
  for (;;) {
    Node* child = exact_child(*node, tokens);
    if (child == nullptr) {
      size_t common = 0;
      tail_node = nearest_child(*node, tokens, &common);
      result.tail_rows = static_cast<int32_t>(common);
      break;
    }
    deepest = child;
    size_t index = 0;
    while (index < child->blocks.size() && tokens.size() >= step &&
           std::ranges::equal(block_of(*child, index), tokens.first(step))) {
      result.blocks.push_back(pool_->share(child->blocks[index++]));
      tokens = tokens.subspan(step);
    }
    if (index < child->blocks.size()) {
      result.tail_rows = static_cast<int32_t>(common_prefix(block_of(*child, index), tokens));
      tail_node = result.tail_rows > 0 ? child : nullptr;
      tail_block = index;
      break;
    }
    node = child;
  }
  if (tail_node != nullptr) {
    result.tail = pool_->share(tail_node->blocks[tail_block]);
    deepest = tail_node;
  }
  touch(deepest);
  return result;
}

// Puts the tree's block in the place of a table's own one of the same tokens. The own one may be a tail in
// the tree (a sequence that continued it found its whole block published by another one meanwhile): it
// leaves.
void PrefixTree::adopt(BlockRef& own, int32_t tree_block) {
  if (own.id() == tree_block) return;
  const int32_t old = own.id();
  own = pool_->share(tree_block);
  if (!pool_->in_tree(old)) return;
  Node* owner = tail_owner_[static_cast<size_t>(old)];
  TESSERA_CHECK_MSG(owner != nullptr, "a whole block of the tree has a twin in the tree");
  if (pool_->references(old) == 0) pop_block(owner);
}

// The part of `tokens`, which lie in the table's blocks from `first` on, up to the first block that another
// table references as well. A sharer may have other blocks before it (this table's may have been switched),
// and then it would hold a block of the tree without those before it.
std::span<const int32_t> PrefixTree::exclusive_part(Tokens tokens, const std::vector<BlockRef>& table,
                                                    size_t first) const {
  const size_t step = static_cast<size_t>(block_tokens_);
  size_t length = 0;
  while (length < tokens.size() && pool_->references(table[first].id()) == 1) {
    length += step;
    ++first;
  }
  return tokens.first(std::min(length, tokens.size()));
}

// Appends tokens and the table's blocks from `first` on to an edge that is a leaf or about to become one.
void PrefixTree::append(Node* leaf, Tokens tokens, std::vector<BlockRef>& table, size_t first) {
  const size_t step = static_cast<size_t>(block_tokens_);
  const size_t count = (tokens.size() + step - 1) / step;
  leaf->tokens.insert(leaf->tokens.end(), tokens.begin(), tokens.end());
  for (size_t i = 0; i < count; ++i) {
    const int32_t id = table[first + i].id();
    pool_->enter_tree(id);
    leaf->blocks.push_back(id);
  }
  if (tokens.size() % step != 0) tail_owner_[static_cast<size_t>(leaf->blocks.back())] = leaf;
}

void PrefixTree::add_child(Node* parent, Tokens tokens, std::vector<BlockRef>& table, size_t first) {
  if (parent->is_leaf()) {
    append(parent, tokens, table, first);
    touch(parent);
    return;
  }
  auto child = std::make_unique<Node>(block_tokens_);
  child->parent = parent;
  child->birth = ++births_;
  append(child.get(), tokens, table, first);
  Node* raw = child.get();
  TESSERA_CHECK(parent->children.insert(std::move(child)).second);
  ++nodes_;
  leaves_.emplace(LruKey{raw->last_use, raw->birth}, raw);
  touch(raw);
}

// `leaf` ends in a tail whose block is table[first]; `tokens` begin with the tail's tokens and continue them.
void PrefixTree::grow_tail(Node* leaf, Tokens tokens, std::vector<BlockRef>& table, size_t first) {
  const size_t have = block_of(*leaf, leaf->blocks.size() - 1).size();
  const size_t step = static_cast<size_t>(block_tokens_);
  const size_t fill = std::min(tokens.size(), step) - have;
  const int32_t id = leaf->blocks.back();
  const auto add = [&] {
    const Tokens more = tokens.subspan(have, fill);
    leaf->tokens.insert(leaf->tokens.end(), more.begin(), more.end());
  };
  if (leaf->blocks.size() == 1) {  // the key among its siblings changes
    auto handle =
        leaf->parent->children.extract(leaf->parent->children.find(first_block(leaf->tokens, block_tokens_)));
    add();
    TESSERA_CHECK(leaf->parent->children.insert(std::move(handle)).inserted);
  } else {
    add();
  }
  if (have + fill == step) {
    tail_owner_[static_cast<size_t>(id)] = nullptr;
    const Tokens rest = exclusive_part(tokens.subspan(step), table, first + 1);
    if (!rest.empty()) append(leaf, rest, table, first + 1);
  }
  touch(leaf);
}

// Cuts an edge behind its first `blocks` blocks: `node` keeps those, a new child gets the rest.
void PrefixTree::split(Node* node, size_t blocks) {
  const auto cut = static_cast<std::ptrdiff_t>(blocks);
  const auto cut_tokens = cut * block_tokens_;
  auto lower = std::make_unique<Node>(block_tokens_);
  lower->parent = node;
  lower->birth = ++births_;
  lower->last_use = node->last_use;
  lower->tokens.assign(node->tokens.begin() + cut_tokens, node->tokens.end());
  lower->blocks.assign(node->blocks.begin() + cut, node->blocks.end());
  const bool was_leaf = node->is_leaf();
  lower->children = std::move(node->children);
  node->children = Children(ByFirstBlock{block_tokens_});
  for (const auto& child : lower->children) child->parent = lower.get();
  if (was_leaf) {
    leaves_.erase({node->last_use, node->birth});
    leaves_.emplace(LruKey{lower->last_use, lower->birth}, lower.get());
  }
  Node*& owner = tail_owner_[static_cast<size_t>(lower->blocks.back())];
  if (owner == node) owner = lower.get();
  node->tokens.resize(static_cast<size_t>(cut_tokens));
  node->blocks.resize(blocks);
  node->children.insert(std::move(lower));
  ++nodes_;
}

// Inserts `tokens` below `node`, none of whose children has their first block whole.
void PrefixTree::insert_rest(Node* node, Tokens tokens, std::vector<BlockRef>& table, size_t first) {
  const int32_t own = table[first].id();
  if (pool_->in_tree(own)) {
    Node* leaf = tail_owner_[static_cast<size_t>(own)];
    TESSERA_CHECK_MSG(leaf != nullptr && leaf->parent == node && leaf->blocks.size() == 1,
                      "a block is in the tree under other tokens");
    // A sibling may hold all of these tokens already; then the shorter tail stays as it is.
    const Tokens head = tokens.first(std::min(tokens.size(), static_cast<size_t>(block_tokens_)));
    const auto sibling = node->children.lower_bound(head);
    const bool covered =
        sibling != node->children.end() && common_prefix(block_of(**sibling, 0), head) == tokens.size();
    if (covered) return touch(sibling->get());
    return grow_tail(leaf, tokens, table, first);
  }
  size_t common = 0;
  Node* near = nearest_child(*node, tokens, &common);
  if (near != nullptr && common == tokens.size()) return touch(near);  // covered
  tokens = exclusive_part(tokens, table, first);
  if (tokens.empty()) return touch(node);
  const bool superseded =  // a tail that these tokens continue and nobody writes
      near != nullptr && near->tokens.size() == common && pool_->references(near->blocks[0]) == 0;
  add_child(node, tokens, table, first);
  if (superseded) pop_block(near);
}

// `tokens` leave the edge of `child` at block `index` > 0, which differs from their first block or is a tail.
// Returns false when a new child of the (split) node has to take them.
bool PrefixTree::insert_inside(Node* child, size_t index, Tokens tokens, std::vector<BlockRef>& table,
                               size_t first) {
  const Tokens there = block_of(*child, index);
  const size_t common = common_prefix(there, tokens);
  if (common == tokens.size()) {  // covered
    touch(child);
    return true;
  }
  const bool continues_tail = common == there.size() && there.size() < static_cast<size_t>(block_tokens_);
  if (continues_tail && child->blocks[index] == table[first].id()) {
    grow_tail(child, tokens, table, first);
    return true;
  }
  tokens = exclusive_part(tokens, table, first);
  if (tokens.size() <= common) {
    touch(child);
    return true;
  }
  if (continues_tail && pool_->references(child->blocks[index]) == 0) {
    pop_block(child);
    append(child, tokens, table, first);
    touch(child);
    return true;
  }
  split(child, index);
  return false;
}

void PrefixTree::insert(const RootKey& key, Tokens tokens, std::vector<BlockRef>& table) {
  TESSERA_CHECK(tokens.size() <= table.size() * static_cast<size_t>(block_tokens_));
  if (tokens.empty()) return;
  ++now_;
  auto [root, is_new] = roots_.try_emplace(key);
  if (is_new) {
    root->second = std::make_unique<Node>(block_tokens_);
    root->second->key = &root->first;
  }
  insert_below(root->second.get(), tokens, table);
  if (root->second->children.empty()) roots_.erase(root);
}

void PrefixTree::insert_below(Node* node, Tokens tokens, std::vector<BlockRef>& table) {
  const size_t step = static_cast<size_t>(block_tokens_);
  size_t first = 0;
  while (!tokens.empty()) {
    Node* child = exact_child(*node, tokens);
    if (child == nullptr) return insert_rest(node, tokens, table, first);
    size_t index = 0;
    while (index < child->blocks.size() && tokens.size() >= step &&
           std::ranges::equal(block_of(*child, index), tokens.first(step))) {
      adopt(table[first++], child->blocks[index++]);
      tokens = tokens.subspan(step);
    }
    if (!tokens.empty() && index < child->blocks.size() &&
        insert_inside(child, index, tokens, table, first)) {
      return;
    }
    node = child;
  }
  touch(node);
}

// Takes the last block off a leaf's edge, and with the last one the leaf; then its root if that is bare.
void PrefixTree::pop_block(Node* leaf) {
  const int32_t id = leaf->blocks.back();
  if (leaf->blocks.size() > 1) {
    leaf->blocks.pop_back();
    leaf->tokens.resize(leaf->blocks.size() * static_cast<size_t>(block_tokens_));
  } else {
    Node* parent = leaf->parent;
    leaves_.erase({leaf->last_use, leaf->birth});
    parent->children.erase(parent->children.find(first_block(leaf->tokens, block_tokens_)));
    --nodes_;
    if (parent->is_leaf()) leaves_.emplace(LruKey{parent->last_use, parent->birth}, parent);
    if (parent->parent == nullptr && parent->children.empty()) roots_.erase(RootKey(*parent->key));
  }
  tail_owner_[static_cast<size_t>(id)] = nullptr;
  pool_->leave_tree(id);
}

int32_t PrefixTree::evict(int32_t blocks) {
  int32_t freed = 0;
  auto next = leaves_.begin();
  while (freed < blocks && next != leaves_.end() && pool_->cached() > 0) {
    Node* leaf = next->second;
    const LruKey key = next->first;
    size_t left = leaf->blocks.size();
    while (left > 0 && freed < blocks && pool_->references(leaf->blocks.back()) == 0) {
      pop_block(leaf);
      --left;
      ++freed;
    }
    // With its last block the leaf is gone, and its parent may be one now: used no earlier, but maybe born
    // before.
    next = left > 0 ? leaves_.upper_bound(key) : leaves_.lower_bound({key.last_use, 0});
  }
  return freed;
}

int32_t PrefixTree::forget(const RootKey& key, Tokens tokens) {
  const auto root = roots_.find(key);
  if (root == roots_.end()) return 0;
  const size_t step = static_cast<size_t>(block_tokens_);
  Node* node = root->second.get();
  while (!tokens.empty()) {
    Node* child = exact_child(*node, tokens);
    if (child == nullptr) {  // a tail, if the tokens begin with all of it
      size_t common = 0;
      child = nearest_child(*node, tokens, &common);
      if (child == nullptr || child->tokens.size() > common) break;
    }
    const size_t common = common_prefix(child->tokens, tokens);
    const bool whole = common == child->tokens.size();
    node = child;
    if (!whole) return 0;  // others continue this edge, or it parts from it
    tokens = tokens.subspan(common);
    if (common % step != 0) break;
  }
  int32_t dropped = 0;
  while (node->is_leaf() && pool_->references(node->blocks.back()) == 0) {
    Node* parent = node->parent;
    const bool last = node->blocks.size() == 1;
    const bool bare_root = last && parent->parent == nullptr && parent->children.size() == 1;
    pop_block(node);
    ++dropped;
    if (bare_root) break;
    if (last) node = parent;
  }
  return dropped;
}

void PrefixTree::list(const Node& node, const RootKey& key, std::vector<int32_t>& path,
                      const std::function<void(const Listing&)>& visit) const {
  path.insert(path.end(), node.tokens.begin(), node.tokens.end());
  if (node.parent != nullptr) visit({&key, path, node.blocks, node.last_use, node.is_leaf()});
  for (const auto& child : node.children) list(*child, key, path, visit);
  path.resize(path.size() - node.tokens.size());
}

void PrefixTree::for_each(const std::function<void(const Listing&)>& visit) const {
  std::vector<int32_t> path;
  for (const auto& [key, root] : roots_) list(*root, key, path, visit);
}

Status PrefixTree::check_node(const Node& node, std::vector<bool>& seen) const {
  const auto broken = [](const std::string& what) { return Status(StatusCode::internal, what); };
  const size_t step = static_cast<size_t>(block_tokens_);
  const bool root = node.parent == nullptr;
  if (root != node.blocks.empty()) return broken("invariant 7: a node without blocks, or a root with some");
  if (node.blocks.size() != (node.tokens.size() + step - 1) / step) {
    return broken(format("a node of {} tokens has {} blocks", node.tokens.size(), node.blocks.size()));
  }
  const bool tail = node.tokens.size() % step != 0;
  if (tail && !node.children.empty()) return broken("a node that ends in a tail has children");
  int32_t references = INT32_MAX;
  if (!root && node.parent->parent != nullptr) references = pool_->references(node.parent->blocks.back());
  for (size_t i = 0; i < node.blocks.size(); ++i) {
    const auto id = static_cast<size_t>(node.blocks[i]);
    if (seen[id]) return broken(format("invariant 4: block {} is twice in the tree", id));
    seen[id] = true;
    if (!pool_->in_tree(node.blocks[i])) return broken(format("block {} does not know the tree", id));
    if (pool_->references(node.blocks[i]) > references) {
      return broken(format("invariant 5: block {} has more references than the one before it", id));
    }
    references = pool_->references(node.blocks[i]);
    const bool is_tail = tail && i + 1 == node.blocks.size();
    if (tail_owner_[id] != (is_tail ? &node : nullptr))
      return broken(format("block {}: wrong tail owner", id));
  }
  const auto entry = leaves_.find({node.last_use, node.birth});
  if (node.is_leaf() != (entry != leaves_.end() && entry->second == &node)) {
    return broken("the list of leaves is wrong");
  }
  for (const auto& child : node.children) {
    if (child->parent != &node) return broken("a child has another parent");
    if (!root && child->last_use > node.last_use) return broken("a child was used after its parent");
    TESSERA_RETURN_IF_ERROR(check_node(*child, seen));
  }
  if (!std::is_sorted(node.children.begin(), node.children.end(), ByFirstBlock{block_tokens_})) {
    return broken("children are out of order");
  }
  return {};
}

Status PrefixTree::check_invariants() const {
  std::vector<bool> seen(static_cast<size_t>(pool_->total()), false);
  for (const auto& [key, root] : roots_) {
    if (root->children.empty()) return Status(StatusCode::internal, "a root without children");
    TESSERA_RETURN_IF_ERROR(check_node(*root, seen));
  }
  for (int32_t id = 0; id < pool_->total(); ++id) {
    if (pool_->in_tree(id) != seen[static_cast<size_t>(id)]) {
      return Status(StatusCode::internal, format("block {} is marked as cached, but not in the tree", id));
    }
  }
  return {};
}

}  // namespace tessera::kvcache
