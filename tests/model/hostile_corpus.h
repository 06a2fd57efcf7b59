// Hand-made hostile model files: each breaks one rule, and knows a part of the message that it must get.
#pragma once

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "tests/support/tiny_llama.h"

namespace tessera::testing {

struct HostileFile {
  std::string name;
  std::string bytes;
  std::string message;  // a part of the error
  uint64_t size = 0;    // of the file, zeros after `bytes`; 0: bytes.size()
};

// Small enough for the loops over every bit: one layer, four tokens, 4-bit weights.
inline GgufWriter small_llama() {
  return TinyLlama{.layers = 1,
                   .width = 32,
                   .heads = 2,
                   .kv_heads = 1,
                   .head_dim = 16,
                   .ffn_width = 32,
                   .byte_vocabulary = false,
                   .dtype = DType::q4_0}
      .writer();
}

class HostileCorpus {
 public:
  static std::vector<HostileFile> make() {
    HostileCorpus corpus;
    corpus.add_preambles();
    corpus.add_keys();
    corpus.add_arrays();
    corpus.add_tensors();
    corpus.add_layouts();
    corpus.add_configurations();
    corpus.add_shapes();
    corpus.add_vocabularies();
    return std::move(corpus.files_);
  }

 private:
  void bytes(std::string name, std::string data, std::string message, uint64_t size = 0) {
    files_.push_back({std::move(name), std::move(data), std::move(message), size});
  }
  // The small model after one change.
  void edit(std::string name, const std::function<void(GgufWriter&)>& change, std::string message) {
    GgufWriter writer = small_llama();
    change(writer);
    bytes(std::move(name), writer.build(), std::move(message));
  }
  void edit_u32(const std::string& key, uint32_t value, std::string message) {
    edit(
        key + " = " + std::to_string(value), [&](GgufWriter& w) { w.replace(key, kU32, le(value)); },
        std::move(message));
  }
  void edit_f32(const std::string& key, float value, std::string message) {
    edit(
        key + " = " + std::to_string(value), [&](GgufWriter& w) { w.replace(key, kF32, le(value)); },
        std::move(message));
  }
  void edit_tensor(std::string name, const std::function<void(GgufWriter::Tensor&)>& change,
                   std::string message) {
    edit(
        std::move(name), [&](GgufWriter& w) { change(*w.find_tensor("blk.0.attn_k.weight")); },
        std::move(message));
  }
  // Where the last tensor comes to lie 64 bytes late.
  static int64_t hole_offset(const GgufWriter& writer) {
    uint64_t end = 0;
    for (size_t i = 0; i + 1 < writer.tensors.size(); ++i)
      end += (writer.tensors[i].data.size() + 31) / 32 * 32;
    return static_cast<int64_t>(end + 64);
  }
  // A header with these counts and then `rest`.
  static std::string header(uint64_t tensors, uint64_t keys, const std::string& rest = {}) {
    return "GGUF" + le<uint32_t>(3) + le(tensors) + le(keys) + rest;
  }
  static std::string one_key(const std::string& name, uint32_t type, const std::string& payload) {
    return header(0, 1, gguf_string(name) + le(type) + payload);
  }

  void add_preambles() {
    const std::string pad(64, '\0');
    bytes("empty file", "", "the file is empty");
    bytes("two bytes", "GG", "the magic needs 4 bytes, 2 remain");
    bytes("another magic", "GGML" + pad, "the magic is 'GGML'");
    bytes("a magic of control characters", "\n\x01\x7f\xff" + pad, "the magic is '\\x0a\\x01\\x7f\\xff'");
    bytes("only the magic", "GGUF", "the version needs 4 bytes, 0 remain");
    const auto version = [&](uint32_t number) { return "GGUF" + le(number) + pad; };
    bytes("version 0", version(0), "the version is 0; versions 2 and 3 are read");
    bytes("version 1", version(1), "the version is 1;");
    bytes("version 4", version(4), "the version is 4;");
    bytes("big-endian", version(0x03000000), "the file is big-endian (version 3)");
    bytes("version -1", version(~0u), "the version is 4294967295");
    bytes("cut in the tensor count", header(0, 0).substr(0, 12),
          "the number of tensors needs 8 bytes, 4 remain");
    bytes("cut in the key count", header(0, 0).substr(0, 20), "the number of keys needs 8 bytes, 4 remain");
    bytes("2^64-1 tensors", header(~0ull, 0, pad),
          "18446744073709551615 tensors need at least 33 bytes each");
    bytes("2^64-1 keys", header(0, ~0ull, pad), "18446744073709551615 keys need at least 14 bytes each");
    // 14 * this is 2^64 + 4: a product of 64 bits would come out small.
    bytes("keys whose product wraps", header(0, 1317624576693539402ull, pad),
          "1317624576693539402 keys need at least");
    bytes("more keys than bytes", header(0, 100, pad), "100 keys need at least 14 bytes each, 64 remain");
    bytes("keys and tensors that fit only alone", header(1, 3, pad),
          "1 tensors and 3 keys need more than the 64 bytes");
    bytes("65537 tensors", header(65537, 0), "65537 tensors, the limit is 65536", 4 << 20);
    bytes("4097 keys", header(0, 4097), "4097 keys, the limit is 4096", 4 << 20);
    bytes("2^40 zero bytes", header(0, 1), "the name of key 0 is empty", uint64_t{1} << 40);
  }

  void add_keys() {
    const std::string pad(64, '\0');
    bytes("key name of 2^64-1 bytes", header(0, 1, le(~0ull) + pad),
          "the name of key 0 has 18446744073709551615 bytes");
    bytes("key name of 300 bytes", one_key(std::string(300, 'k'), kU8, pad),
          "the name of key 0 has 300 bytes, the limit is 256");
    bytes("empty key name", one_key("", kU8, pad), "the name of key 0 is empty");
    bytes("key name in Latin-1", one_key("caf\xe9", kU8, pad),
          "the name of key 0 is not valid UTF-8: 'caf\\xe9'");
    bytes("key name with an overlong slash", one_key("a\xc0\xaf", kU8, pad),
          "not valid UTF-8: 'a\\xc0\\xaf'");
    bytes("key name with a surrogate", one_key("a\xed\xa0\x80", kU8, pad),
          "not valid UTF-8: 'a\\xed\\xa0\\x80'");
    bytes("key name with a newline", one_key("a\nb", kU8, pad),
          "the name of key 0 has a control character: 'a\\x0ab'");
    bytes("type 13", one_key("k", 13, pad), "key 'k': its type is 13, the types are 0 to 12");
    bytes("type -1", one_key("k", ~0u, pad), "key 'k': its type is 4294967295");
    bytes("cut in the type", header(0, 1, gguf_string("kkkk") + "\x01\x02"),
          "key 'kkkk': its type needs 4 bytes, 2 remain");
    bytes("cut in the value", one_key("k", kU64, "1234"), "key 'k' needs 8 bytes, 4 remain");
    bytes("string longer than the file", one_key("k", kString, le<uint64_t>(65) + pad),
          "key 'k' has 65 bytes, 64 remain");
    bytes("string of 2^64-1 bytes", one_key("k", kString, le(~0ull) + pad),
          "key 'k' has 18446744073709551615 bytes");
    bytes("string of 17 MiB", one_key("k", kString, le<uint64_t>(17 << 20)),
          "key 'k' has 17825792 bytes, the limit is 16777216", 1 << 30);
    bytes("a bool of 2", one_key("k", kBool, "\x02" + pad), "key 'k' is a bool of value 2");
    edit(
        "the same key twice", [](GgufWriter& w) { w.str("general.name", "again"); },
        "key 'general.name' occurs twice, first at byte ");
    const char* key = "general.alignment";
    edit_u32(key, 0, "general.alignment is 0, expected a power of two from 8 to 65536");
    edit_u32(key, 4, "general.alignment is 4,");
    edit_u32(key, 48, "general.alignment is 48,");
    edit_u32(key, 0x80000000u, "general.alignment is 2147483648,");
    edit_u32(key, 131072, "general.alignment is 131072,");
    edit(
        "alignment as u64", [&](GgufWriter& w) { w.raw(key, kU64, le<uint64_t>(32)); },
        "key 'general.alignment' is a u64, expected a u32");
  }

  void add_arrays() {
    const std::string pad(64, '\0');
    const auto array = [&](uint32_t element, uint64_t count, const std::string& rest) {
      return one_key("k", kArray, le(element) + le(count) + rest);
    };
    bytes("array of 2^64-1 u64", array(kU64, ~0ull, pad),
          "key 'k' has 18446744073709551615 elements of at least 8 bytes");
    bytes("array of 2^61 u64, a product of 0", array(kU64, 1ull << 61, pad),
          "key 'k' has 2305843009213693952 elements");
    bytes("array of one too many", array(kU16, 33, pad),
          "key 'k' has 33 elements of at least 2 bytes, 64 bytes remain");
    bytes("array of type 13", array(13, 1, pad), "key 'k': its elements' type is 13");
    bytes("array of 2^60 strings", array(kString, 1ull << 60, pad),
          "elements of at least 8 bytes, 64 bytes remain");
    bytes("array of 2^60 arrays", array(kArray, 1ull << 60, pad),
          "elements of at least 12 bytes, 64 bytes remain");
    bytes("string in an array, too long", array(kString, 2, le<uint64_t>(0) + le<uint64_t>(65) + pad),
          "key 'k'[1] has 65 bytes, 64 remain");
    bytes("string in an array of 2^64-1 bytes", array(kString, 1, le(~0ull) + pad),
          "key 'k'[0] has 18446744073709551615 bytes");
    bytes("a bool of 7 in an array", array(kBool, 3, std::string("\0\1\7", 3) + pad),
          "key 'k'[2] is a bool of value 7");
    std::string nested;
    for (int depth = 0; depth < 40; ++depth) nested += le<uint32_t>(kArray) + le<uint64_t>(1);
    bytes("arrays 40 deep", one_key("k", kArray, nested + pad), "key 'k' nests arrays deeper than 8");
    bytes("cut in an array's count", one_key("k", kArray, le<uint32_t>(kU8) + "123"),
          "key 'k': its count needs 8 bytes, 3 remain");
    bytes("array of 2^32 u8 in a huge file", array(kU8, 1ull << 32, ""),
          "key 'k' has 4294967296 elements, more than the 67108864 bytes", 1ull << 40);
    bytes("string in an array beyond the header's limit", array(kString, 1, le<uint64_t>(1 << 30)),
          "key 'k' ends at byte", 1ull << 40);
  }

  void add_tensors() {
    const auto set_shape = [](std::vector<uint64_t> shape) {
      return [shape](GgufWriter::Tensor& t) { t.shape = shape; };
    };
    edit_tensor(
        "tensor without a name", [](auto& t) { t.name = ""; }, "the name of tensor 3 is empty");
    edit_tensor(
        "tensor name of 65 bytes", [](auto& t) { t.name = std::string(65, 't'); },
        "the name of tensor 3 has 65 bytes, the limit is 64");
    edit_tensor(
        "tensor name of bad UTF-8", [](auto& t) { t.name = "t\x80"; },
        "the name of tensor 3 is not valid UTF-8: 't\\x80'");
    edit_tensor(
        "tensor name with an escape", [](auto& t) { t.name = "t\x1b[2J"; },
        "the name of tensor 3 has a control character: 't\\x1b[2J'");
    edit_tensor("no dimensions", set_shape({}),
                "tensor 'blk.0.attn_k.weight' has 0 dimensions, expected 1 to 4");
    edit_tensor("five dimensions", set_shape({1, 1, 1, 16, 32}), "has 5 dimensions");
    edit_tensor("1000 dimensions", set_shape(std::vector<uint64_t>(1000, 1)), "has 1000 dimensions");
    edit_tensor("no rows", set_shape({0, 32}), "tensor 'blk.0.attn_k.weight': dimension 1 is 0");
    edit_tensor("no columns", set_shape({16, 0}), "tensor 'blk.0.attn_k.weight': dimension 0 is 0");
    edit_tensor("2^63 rows", set_shape({1ull << 63, 32}),
                ": dimension 1 is 9223372036854775808, the limit is");
    edit_tensor("2^32 x 2^32 elements", set_shape({1ull << 32, 1ull << 32}),
                "has more elements than 64 bits count");
    edit_tensor("2^64 + 32 elements", set_shape({3, 5, 17, 72340172838076674ull}),
                "has more elements than 64 bits count");
    edit(
        "2^63 - 1 elements of 4 bytes",
        [](GgufWriter& w) { w.find_tensor("output_norm.weight")->shape = {INT64_MAX}; },
        "tensor 'output_norm.weight' of shape [9223372036854775807] has more bytes than 64 bits count");
    edit_tensor(
        "type Q4_K", [](auto& t) { t.type = 12; },
        "has type Q4_K (12); supported are F32, F16, BF16, Q4_0, Q4_1, Q8_0");
    edit_tensor(
        "type I32", [](auto& t) { t.type = 26; }, "has type I32 (26);");
    edit_tensor(
        "a withdrawn type", [](auto& t) { t.type = 4; },
        "tensor 'blk.0.attn_k.weight' has type 4, which does not exist");
    edit_tensor(
        "type 1000", [](auto& t) { t.type = 1000; }, "has type 1000, which does not exist");
    edit_tensor(
        "type -1", [](auto& t) { t.type = ~0u; }, "has type 4294967295, which does not exist");
    edit_tensor("rows of 33", set_shape({16, 33}),
                "is q4_0 with rows of 33 elements, not a multiple of the block of 32");
    edit_tensor(
        "offset 1", [](auto& t) { t.offset = 1; },
        "tensor 'blk.0.attn_k.weight': its offset 1 is not a multiple of the alignment 32");
    edit(
        "the same tensor twice", [](GgufWriter& w) { w.tensor("blk.0.attn_k.weight", DType::f32, {8}); },
        "tensor 'blk.0.attn_k.weight' occurs twice");
  }

  void add_layouts() {
    edit_tensor(
        "offset beyond the file", [](auto& t) { t.offset = 1 << 30; },
        "+ 1073741824 has 288 bytes and ends beyond the file's");
    edit_tensor(
        "offset 2^63 - 32", [](auto& t) { t.offset = INT64_MAX - 31; },
        "+ 9223372036854775776 has 288 bytes");
    edit_tensor(
        "offset of another tensor", [](auto& t) { t.offset = 0; }, "overlaps tensor '");
    edit_tensor(
        "one block too early", [](auto& t) { t.offset = 32; }, "overlaps tensor '");
    edit(
        "a hole before the last tensor",
        [](GgufWriter& w) {
          w.tensors.back().offset = hole_offset(w);
          w.trailing = std::string(64, '\0');
        },
        "before tensor 'output_norm.weight' belong to nothing");
    edit(
        "bytes after the last tensor", [](GgufWriter& w) { w.trailing = std::string(1, '\0'); },
        "the last tensor ends at byte");
    edit(
        "another file after the last tensor", [](GgufWriter& w) { w.trailing = std::string(5000, 'Z'); },
        "the last tensor ends at byte");
    edit(
        "padding with a message", [](GgufWriter& w) { w.after_header = "!"; },
        "padding has value 33, expected 0");
    edit(
        "no data section",
        [](GgufWriter& w) {
          for (auto& t : w.tensors) t.data.clear();
        },
        "ends beyond the file's");
    GgufWriter cut = small_llama();
    std::string all = cut.build();
    all.pop_back();
    bytes("one byte missing", all, "and ends beyond the file's");
    bytes("bytes after the last key", GgufWriter().u32("k", 1).build() + std::string(40, '\0'),
          "the last key ends at byte");
  }

  void add_configurations() {
    const auto erase = [&](const std::string& key, std::string message) {
      edit(
          "without " + key, [&](GgufWriter& w) { w.erase(key); }, std::move(message));
    };
    const auto as_string = [&](const std::string& key, const std::string& value, std::string message) {
      edit(
          key + " = '" + value + "'", [&](GgufWriter& w) { w.replace(key, kString, gguf_string(value)); },
          std::move(message));
    };
    erase("general.architecture", "key 'general.architecture' is missing; expected a string");
    edit_u32("general.architecture", 1, "key 'general.architecture' is a u32, expected a string");
    as_string("general.architecture", "gpt9", "general.architecture is 'gpt9'; known: llama");
    as_string("general.architecture", "llama\n", "general.architecture is 'llama\\x0a'; known: llama");
    edit_u32("general.name", 1, "key 'general.name' is a u32, expected a string");
    erase("llama.block_count", "key 'llama.block_count' is missing; expected a u32");
    edit_u32("llama.block_count", 0, "llama.block_count is 0, expected 1 to");
    edit_u32("llama.block_count", 2,
             "llama.block_count is 2, but 11 tensors are too few for 9 in each layer");
    edit_u32("llama.block_count", ~0u, "llama.block_count is 4294967295, expected");
    edit(
        "block_count as u64", [](GgufWriter& w) { w.replace("llama.block_count", kU64, le<uint64_t>(1)); },
        "key 'llama.block_count' is a u64, expected a u32");
    erase("llama.context_length", "key 'llama.context_length' is missing");
    edit_u32("llama.context_length", 0, "llama.context_length is 0, expected 1 to");
    edit_u32("llama.context_length", ~0u, "llama.context_length is 4294967295, expected");
    erase("llama.embedding_length", "key 'llama.embedding_length' is missing");
    edit_u32("llama.embedding_length", 0, "llama.embedding_length is 0, expected 1 to");
    edit_u32("llama.feed_forward_length", 0, "llama.feed_forward_length is 0, expected 1 to");
    edit(
        "feed_forward_length for each layer",
        [](GgufWriter& w) { w.erase("llama.feed_forward_length").i32s("llama.feed_forward_length", {32}); },
        "key 'llama.feed_forward_length' is an array, expected a u32");
    edit_u32("llama.attention.head_count", 0, "llama.attention.head_count is 0, expected 1 to");
    edit_u32("llama.attention.head_count_kv", 0, "llama.attention.head_count_kv is 0, expected 1 to");
    edit_u32("llama.attention.head_count_kv", 3,
             "llama.attention.head_count is 2, not a multiple of llama.attention.head_count_kv, 3");
    edit(
        "heads that do not divide the width",
        [](GgufWriter& w) {
          w.erase("llama.attention.key_length").replace("llama.attention.head_count", kU32, le<uint32_t>(3));
        },
        "llama.embedding_length is 32, not a multiple of llama.attention.head_count, 3");
    edit_u32("llama.attention.key_length", 0, "llama.attention.key_length is 0, expected 1 to");
    edit_u32("llama.attention.value_length", 8,
             "llama.attention.value_length is 8, expected the length of keys, 16");
    edit_u32("llama.rope.dimension_count", 15,
             "llama.rope.dimension_count is 15, expected an even number up to the head's 16");
    edit_u32("llama.rope.dimension_count", 18, "llama.rope.dimension_count is 18,");
    edit_f32("llama.rope.freq_base", NAN, "llama.rope.freq_base is nan, expected a finite number above 0");
    edit_f32("llama.rope.freq_base", INFINITY, "llama.rope.freq_base is inf,");
    edit_f32("llama.rope.freq_base", 0, "llama.rope.freq_base is 0,");
    edit_f32("llama.rope.freq_base", -1, "llama.rope.freq_base is -1,");
    const std::string eps = "llama.attention.layer_norm_rms_epsilon";
    erase(eps, "key '" + eps + "' is missing; expected an f32");
    edit_f32(eps, NAN, eps + " is nan, expected more than 0 and less than 1");
    edit_f32(eps, 0, eps + " is 0,");
    edit_f32(eps, -1e-5f, eps + " is -1e-05,");
    edit_f32(eps, 1e30f, eps + " is 1e+30,");
    as_string("llama.rope.scaling.type", "yarn", "llama.rope.scaling.type is 'yarn'; known: none, linear");
    edit(
        "rope scaling by NaN",
        [](GgufWriter& w) {
          w.str("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", NAN);
        },
        "llama.rope.scaling.factor is nan, expected a finite number above 0");
    edit(
        "rope scaling without its type", [](GgufWriter& w) { w.f32("llama.rope.scaling.factor", 2.0f); },
        "key 'llama.rope.scaling.factor' is not known");
    edit_u32("llama.attention.sliding_window", 0, "llama.attention.sliding_window is 0, expected 1 to");
    edit_u32("llama.expert_count", 8, "llama.expert_count is 8; mixtures of experts are not supported");
    edit_u32("llama.logit_softcap", 1, "key 'llama.logit_softcap' is not known for this architecture");
    edit(
        "one part of several", [](GgufWriter& w) { w.raw("split.count", kU16, le<uint16_t>(3)); },
        "split.count is 3; join the parts into one file");
    edit_u32("split.count", 1, "key 'split.count' is a u32, expected a u16");
  }

  void add_shapes() {
    const auto replace = [&](std::string name, const std::string& tensor, DType dtype,
                             std::vector<uint64_t> shape, std::string message) {
      edit(
          std::move(name), [&](GgufWriter& w) { w.erase_tensor(tensor).tensor(tensor, dtype, shape); },
          std::move(message));
    };
    edit(
        "no embedding",
        [](GgufWriter& w) { w.erase_tensor("token_embd.weight").tensor("x", DType::f32, {8}); },
        "tensor 'token_embd.weight' is missing");
    replace("embedding of one dimension", "token_embd.weight", DType::f32, {128},
            "tensor 'token_embd.weight' has shape [128], expected");
    replace("embedding of another width", "token_embd.weight", DType::f32, {4, 64},
            "tensor 'token_embd.weight' has shape [4, 64], expected [4, 32]");
    replace("embedding of another vocabulary", "token_embd.weight", DType::f32, {5, 32},
            "llama.vocab_size is 4, but tensor 'token_embd.weight' has 5 rows");
    edit(
        "no output norm",
        [](GgufWriter& w) { w.erase_tensor("output_norm.weight").tensor("x", DType::f32, {8}); },
        "tensor 'output_norm.weight' of shape [32] is missing");
    edit(
        "no key weight",
        [](GgufWriter& w) { w.erase_tensor("blk.0.attn_k.weight").tensor("x", DType::f32, {8}); },
        "tensor 'blk.0.attn_k.weight' of shape [16, 32] is missing");
    replace("transposed key weight", "blk.0.attn_k.weight", DType::f32, {32, 16},
            "tensor 'blk.0.attn_k.weight' has shape [32, 16], expected [16, 32]");
    replace("key weight of three dimensions", "blk.0.attn_k.weight", DType::f32, {1, 16, 32},
            "tensor 'blk.0.attn_k.weight' has shape [1, 16, 32]");
    replace("query weight of too few heads", "blk.0.attn_q.weight", DType::f32, {16, 32},
            "tensor 'blk.0.attn_q.weight' has shape [16, 32], expected [32, 32]");
    replace("wide feed-forward", "blk.0.ffn_down.weight", DType::f32, {32, 64},
            "tensor 'blk.0.ffn_down.weight' has shape [32, 64], expected [32, 32]");
    replace("norm of another type", "blk.0.attn_norm.weight", DType::f16, {32},
            "tensor 'blk.0.attn_norm.weight' is f16, expected f32");
    replace("norm of another width", "blk.0.ffn_norm.weight", DType::f32, {64},
            "tensor 'blk.0.ffn_norm.weight' has shape [64], expected [32]");
    replace("head of another vocabulary", "output.weight", DType::f32, {3, 32},
            "tensor 'output.weight' has shape [3, 32], expected [4, 32]");
    replace("frequency factors of zero", "rope_freqs.weight", DType::f32, {8},
            "tensor 'rope_freqs.weight' has the value 0, expected finite numbers above 0");
    replace("too many frequency factors", "rope_freqs.weight", DType::f32, {16},
            "tensor 'rope_freqs.weight' has shape [16], expected [8]");
    replace("a bias", "blk.0.attn_q.bias", DType::f32, {32},
            "tensor 'blk.0.attn_q.bias' has no place in architecture llama with 1 layers");
    replace("a second layer's norm", "blk.1.attn_norm.weight", DType::f32, {32},
            "tensor 'blk.1.attn_norm.weight' has no place");
  }

  void add_vocabularies() {
    const auto replace = [&](std::string name, const std::string& key, uint32_t type,
                             const std::string& payload, std::string message) {
      edit(
          std::move(name), [&](GgufWriter& w) { w.replace(key, type, payload); }, std::move(message));
    };
    const auto ints = [](uint32_t element, std::vector<int32_t> values) {
      std::string payload = le(element) + le<uint64_t>(values.size());
      for (int32_t value : values) payload += le(value);
      return payload;
    };
    edit(
        "no tokenizer", [](GgufWriter& w) { w.erase("tokenizer.ggml.model"); },
        "key 'tokenizer.ggml.model' is missing; expected a string");
    edit(
        "no tokens", [](GgufWriter& w) { w.erase("tokenizer.ggml.tokens"); },
        "key 'tokenizer.ggml.tokens' is missing; expected an array");
    replace("tokens as numbers", "tokenizer.ggml.tokens", kArray, ints(kI32, {1, 2, 3, 4}),
            "key 'tokenizer.ggml.tokens' is an array of i32, expected an array of string");
    replace("tokens as one string", "tokenizer.ggml.tokens", kString, gguf_string("abcd"),
            "key 'tokenizer.ggml.tokens' is a string, expected an array");
    edit(
        "a token too few",
        [](GgufWriter& w) {
          w.erase("tokenizer.ggml.tokens").strs("tokenizer.ggml.tokens", {"a", "b", "c"});
        },
        "tokenizer.ggml.tokens has 3 entries, but the embedding has 4 rows");
    replace("a token type too many", "tokenizer.ggml.token_type", kArray, ints(kI32, {1, 1, 1, 1, 1}),
            "tokenizer.ggml.token_type has 5 entries, but the embedding has 4 rows");
    replace("token types of a narrower type", "tokenizer.ggml.token_type", kArray,
            le<uint32_t>(kU8) + le<uint64_t>(4) + "\1\1\1\1",
            "key 'tokenizer.ggml.token_type' is an array of u8, expected an array of i32");
    replace("token type 7", "tokenizer.ggml.token_type", kArray, ints(kI32, {1, 1, 7, 1}),
            "tokenizer.ggml.token_type[2] is 7, expected 1 to 6");
    replace("a score too few", "tokenizer.ggml.scores", kArray, ints(kF32, {0, 0, 0}),
            "tokenizer.ggml.scores has 3 entries");
    replace("a score of NaN", "tokenizer.ggml.scores", kArray, ints(kF32, {0, 0, 0, 0x7fc00000}),
            "tokenizer.ggml.scores[3] is nan, expected a finite number");
    replace("merges as numbers", "tokenizer.ggml.merges", kArray, ints(kI32, {1}),
            "key 'tokenizer.ggml.merges' is an array of i32, expected an array of string");
    edit_u32("tokenizer.ggml.bos_token_id", 4,
             "tokenizer.ggml.bos_token_id is 4, expected a token from 0 to 3");
    edit_u32("tokenizer.ggml.eos_token_id", ~0u,
             "tokenizer.ggml.eos_token_id is 4294967295, expected a token");
    replace("a negative token", "tokenizer.ggml.eos_token_id", kI32, le<int32_t>(-1),
            "key 'tokenizer.ggml.eos_token_id' is an i32, expected a u32");
    replace("add_bos as a number", "tokenizer.ggml.add_bos_token", kU8, "\1",
            "key 'tokenizer.ggml.add_bos_token' is a u8, expected a bool");
    replace("a template of 2 MiB", "tokenizer.chat_template", kString, gguf_string(std::string(2 << 20, '{')),
            "tokenizer.chat_template has 2097152 bytes, the limit is 1048576");
    replace("a list of templates", "tokenizer.chat_template", kArray, ints(kI32, {}),
            "key 'tokenizer.chat_template' is an array, expected a string");
  }

  std::vector<HostileFile> files_;
};

}  // namespace tessera::testing
