// Byte-level BPE (GPT-2): bytes are spelt as printable characters, and pairs are merged in the order of a
// list.
//
// A piece is a doubly linked list of symbols and a heap of its mergeable pairs by (rank, position): each
// merge removes one symbol and adds at most two pairs, so a piece of n bytes takes O(n log n). Pairs that a
// later merge made stale stay in the heap and are dropped when they come up.
#include <array>
#include <functional>
#include <mutex>
#include <queue>
#include <unordered_map>

#include "core/format.h"
#include "tokenizer/subword.h"

namespace tessera::tokenizer {
namespace {

// GPT-2's alphabet: printable Latin-1 bytes spell themselves, the other 68 are shifted to U+0100 and up.
struct Alphabet {
  std::array<uint32_t, 256> code_of_byte;
  std::array<int, 0x144> byte_of_code;
};
const Alphabet& alphabet() {
  static const Alphabet made = [] {
    Alphabet a;
    a.byte_of_code.fill(-1);
    uint32_t shifted = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool plain = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
      const uint32_t code = plain ? static_cast<uint32_t>(byte) : shifted++;
      a.code_of_byte[byte] = code;
      a.byte_of_code[code] = byte;
    }
    return a;
  }();
  return made;
}

struct Merge {
  uint32_t rank;
  int32_t id;  // of the result
};
uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}
struct PairHash {
  size_t operator()(uint64_t key) const { return (key ^ key >> 29) * 0x9e3779b97f4a7c15u; }
};
using MergeTable = std::unordered_map<uint64_t, Merge, PairHash>;

// Pieces seen before. Text repeats its words, and a look-up is cheaper than merging. Bounded: a full shard is
// emptied.
class PieceCache {
 public:
  static constexpr size_t kMaxPiece = 64, kShards = 16, kMaxEntries = 2048;  // about 5 MB when full
  bool find(std::string_view piece, std::vector<int32_t>& ids) {
    Shard& shard = shard_of(piece);
    const std::lock_guard lock(shard.mutex);
    const auto at = shard.entries.find(piece);
    if (at == shard.entries.end()) return false;
    ids.insert(ids.end(), at->second.begin(), at->second.end());
    return true;
  }
  void insert(std::string_view piece, std::vector<int32_t> ids) {
    Shard& shard = shard_of(piece);
    const std::lock_guard lock(shard.mutex);
    if (shard.entries.size() >= kMaxEntries) shard.entries.clear();
    shard.entries.emplace(piece, std::move(ids));
  }

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  struct Shard {
    std::mutex mutex;
    std::unordered_map<std::string, std::vector<int32_t>, Hash, std::equal_to<>> entries;
  };
  Shard& shard_of(std::string_view piece) { return shards_[Hash()(piece) >> 40 & (kShards - 1)]; }
  std::array<Shard, kShards> shards_;
};

class ByteBpe final : public SubwordModel {
 public:
  static Result<std::unique_ptr<SubwordModel>> create(const VocabSpec& spec, const Vocab& vocab) {
    auto model = std::make_unique<ByteBpe>();
    for (int byte = 0; byte < 256; ++byte) {
      std::string spelling;
      append_utf8(spelling, alphabet().code_of_byte[byte]);
      model->byte_ids_[byte] = vocab.find(spelling);
    }
    model->merges_.reserve(spec.merges.size());
    for (size_t rank = 0; rank < spec.merges.size(); ++rank) {
      TESSERA_RETURN_IF_ERROR(model->add_merge(spec.merges[rank], rank, vocab));
    }
    const bool has_unk = spec.unk_id >= 0 && !spec.token_types.empty() &&
                         spec.token_types[spec.unk_id] == static_cast<int32_t>(TokenType::unknown);
    if (has_unk) model->unk_id_ = spec.unk_id;
    return std::unique_ptr<SubwordModel>(std::move(model));
  }

  size_t encode_piece(std::string_view piece, std::vector<int32_t>& ids) const override {
    if (piece.size() == 1) return encode_bytes(piece, ids);
    if (piece.size() > PieceCache::kMaxPiece) return encode_bytes(piece, ids);
    if (cache_.find(piece, ids)) return 0;
    const size_t first = ids.size();
    const size_t missing = encode_bytes(piece, ids);
    if (missing == 0) cache_.insert(piece, {ids.begin() + static_cast<ptrdiff_t>(first), ids.end()});
    return missing;
  }

  // A spelling with a character outside the alphabet stands for its own bytes.
  std::string token_bytes(std::string_view spelling) const override {
    std::string bytes;
    for (size_t at = 0; at < spelling.size();) {
      const Utf8Char c = decode_utf8(spelling, at);
      const int byte = c.code < alphabet().byte_of_code.size() ? alphabet().byte_of_code[c.code] : -1;
      if (byte < 0) return std::string(spelling);
      bytes.push_back(static_cast<char>(byte));
      at += c.length;
    }
    return bytes;
  }

 private:
  struct Symbol {
    int32_t id;
    int32_t previous, next;  // positions, -1 at the ends
  };
  struct Candidate {
    uint32_t rank;
    int32_t position;  // of the left symbol
    int32_t id;        // of the result
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };

  Status add_merge(std::string_view merge, size_t rank, const Vocab& vocab) {
    // The separator is the first space after at least one character.
    const size_t space = merge.find(' ', 1);
    if (merge.empty() || space == std::string_view::npos || space + 1 == merge.size()) {
      return bad_file(format("tokenizer.ggml.merges: merge {} is {}, not two tokens with a space between",
                             rank, quoted(merge)));
    }
    const std::string_view left = merge.substr(0, space), right = merge.substr(space + 1);
    const std::string whole = std::string(left).append(right);
    const int32_t left_id = vocab.find(left), right_id = vocab.find(right), id = vocab.find(whole);
    if (left_id < 0 || right_id < 0 || id < 0) {
      const std::string_view unknown = left_id < 0 ? left : right_id < 0 ? right : std::string_view(whole);
      return bad_file(format("tokenizer.ggml.merges: merge {} ({}) names {}, which is no token", rank,
                             quoted(merge), quoted(unknown)));
    }
    if (!merges_.emplace(pair_key(left_id, right_id), Merge{static_cast<uint32_t>(rank), id}).second) {
      return bad_file(format("tokenizer.ggml.merges: merge {} ({}) is there twice", rank, quoted(merge)));
    }
    return {};
  }

  const Merge* find_merge(int32_t left, int32_t right) const {
    const auto at = merges_.find(pair_key(left, right));
    return at == merges_.end() ? nullptr : &at->second;
  }

  size_t encode_bytes(std::string_view piece, std::vector<int32_t>& ids) const {
    // Bytes without a token vanish before merging, so their neighbours meet (as in Hugging Face's model).
    size_t missing = 0;
    std::vector<Symbol> symbols;
    symbols.reserve(piece.size());
    for (const char c : piece) {
      int32_t id = byte_ids_[static_cast<uint8_t>(c)];
      if (id < 0) {
        id = unk_id_;
        missing += id < 0 ? 1 : 0;
      }
      if (id >= 0) {
        const auto at = static_cast<int32_t>(symbols.size());
        symbols.push_back({id, at - 1, at + 1});
      }
    }
    if (symbols.empty()) return missing;
    symbols.back().next = -1;
    merge_symbols(symbols);
    for (int32_t at = 0; at >= 0; at = symbols[at].next) ids.push_back(symbols[at].id);
    return missing;
  }

  void merge_symbols(std::vector<Symbol>& symbols) const {
    std::vector<Candidate> storage;
    storage.reserve(symbols.size());
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      if (const Merge* merge = find_merge(symbols[i].id, symbols[i + 1].id)) {
        storage.push_back({merge->rank, static_cast<int32_t>(i), merge->id});
      }
    }
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> heap(std::greater<>(),
                                                                                std::move(storage));
    const auto offer = [&](int32_t left, int32_t right) {
      if (left < 0 || right < 0) return;
      if (const Merge* merge = find_merge(symbols[left].id, symbols[right].id))
        heap.push({merge->rank, left, merge->id});
    };
    while (!heap.empty()) {
      const Candidate top = heap.top();
      heap.pop();
      Symbol& left = symbols[top.position];
      if (left.id < 0 || left.next < 0) continue;
      Symbol& right = symbols[left.next];
      const Merge* merge = find_merge(left.id, right.id);
      if (merge == nullptr || merge->id != top.id) continue;
      left.id = top.id;
      right.id = -1;
      left.next = right.next;
      if (left.next >= 0) symbols[left.next].previous = top.position;
      offer(left.previous, top.position);
      offer(top.position, left.next);
    }
  }

  std::array<int32_t, 256> byte_ids_;
  int32_t unk_id_ = -1;
  MergeTable merges_;
  mutable PieceCache cache_;
};

}  // namespace

Result<std::unique_ptr<SubwordModel>> make_byte_bpe(const VocabSpec& spec, const Vocab& vocab) {
  return ByteBpe::create(spec, vocab);
}

}  // namespace tessera::tokenizer
