// GGUF v2 and v3, read by offset and believed in nothing: a GgufFile exists only after the whole header was
// checked.
//
// What holds once parse() is ok:
// 1. Every count and length was compared with the bytes that remain before anything was allocated for it;
// what the
//    object holds is at most the header's own bytes plus a constant (kMaxKeys and kMaxTensors small records).
// 2. Keys and tensor names are unique, valid UTF-8 without control characters, at most kMaxKeyBytes and
//    kMaxNameBytes long. Values of type string are bytes as they stand in the file.
// 3. Every tensor has 1 to 4 dimensions of at least 1, a supported dtype whose blocks divide its innermost
//    dimension, and lies inside the file at a multiple of the alignment.
// 4. In order of offset the tensors cover the data section: no overlap, no hole, and nothing but zero bytes
// up to
//    the next multiple of the alignment between them and after the last.
//
// Source: the GGUF specification (ggml, docs/gguf.md). Not supported: version 1, big-endian files.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/fs.h"
#include "tessera/dtype.h"
#include "tessera/status.h"

namespace tessera::model {

// The numbers are those in the file.
enum class GgufType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };
const char* name(GgufType type);

// The strings of one array, packed: one block of bytes and where each string ends.
class StringList {
 public:
  size_t size() const { return ends_.size(); }
  // REQUIRES: i < size(). The view lives as long as the list.
  std::string_view operator[](size_t i) const {
    const size_t first = i == 0 ? 0 : ends_[i - 1];
    return std::string_view(bytes_).substr(first, ends_[i] - first);
  }
  // For the caller that fills it: room for `strings` strings of `bytes` bytes together.
  void reserve(size_t strings, size_t bytes);
  void push_back(std::string_view text);

 private:
  std::string bytes_;
  std::vector<uint32_t> ends_;
};

struct GgufTensor {
  std::string name;
  DType dtype = DType::f32;
  int rank = 0;
  std::array<int64_t, 4> shape{};  // outermost first, as in TensorView: a matrix is [rows, columns]; the file
                                   // has them the other way round
  uint64_t offset = 0;             // from the start of the file
  uint64_t bytes = 0;

  int64_t elements() const;
  std::string shape_text() const;  // "[576, 1536]"
};

// Immutable after parse(); every function is thread-safe.
class GgufFile {
 public:
  static constexpr uint64_t kMaxKeys = 4096;
  static constexpr uint64_t kMaxTensors = 65536;
  static constexpr uint64_t kMaxKeyBytes = 256;
  static constexpr uint64_t kMaxNameBytes = 64;
  static constexpr uint64_t kMaxStringBytes = uint64_t{16} << 20;  // of one value of type string
  static constexpr uint64_t kMaxHeaderBytes = uint64_t{64} << 20;
  static constexpr uint64_t kMaxAlignment = 65536;
  static constexpr int kMaxArrayDepth = 8;

  // Errors: not_found (no such file), bad_file (names the byte, the field and the value), unsupported (a
  // version or tensor type that exists but is not read here), resource_exhausted (memory).
  static Result<std::unique_ptr<GgufFile>> open(const std::string& path, FileSystem& files = system_files());
  // `name` stands in front of every message.
  static Result<std::unique_ptr<GgufFile>> parse(std::unique_ptr<File> file, const std::string& name);

  const std::string& file_name() const { return name_; }
  File& file() const { return *file_; }
  uint32_t version() const { return version_; }
  uint64_t alignment() const { return alignment_; }

  bool has(std::string_view key) const { return find_key(key) != nullptr; }
  // Keys in the order of the file.
  std::vector<std::string_view> keys() const;

  // The value of a key. T is bool, (u)int8..64_t, float, double or std::string, and must be the file's own
  // type: a u16 is not read as u32. An absent key or another type is a bad_file naming key, found and
  // expected.
  template <typename T>
  Result<T> get(std::string_view key) const;
  // The same, but an absent key gives `fallback`; another type is still an error.
  template <typename T>
  Result<T> get_or(std::string_view key, T fallback) const;
  // An array of one of the fixed-size types.
  template <typename T>
  Result<std::vector<T>> get_array(std::string_view key) const;
  // An array of strings. The pointer lives as long as this object.
  Result<const StringList*> get_strings(std::string_view key) const;
  // The elements of an array; an absent key or another type is an error.
  Result<uint64_t> array_size(std::string_view key) const;

  const std::vector<GgufTensor>& tensors() const { return tensors_; }  // in the order of the file
  const GgufTensor* find_tensor(std::string_view name) const;          // null when absent
  // Reads bytes [first, first + out.size()) of a tensor. REQUIRES: inside the tensor.
  Status read(const GgufTensor& tensor, uint64_t first, std::span<std::byte> out) const;

  // A message about this file: "name: text".
  Status error(const std::string& text) const;

 private:
  friend class GgufParser;
  struct Array {
    GgufType element = GgufType::u8;
    uint64_t count = 0;
    std::string raw;     // little-endian elements of a fixed-size type
    StringList strings;  // of type string; arrays of arrays are checked and not kept
  };
  struct Value {
    std::string key;
    uint64_t place = 0;  // the byte where the key begins
    GgufType type = GgufType::u8;
    uint64_t bits = 0;  // scalars, zero-extended
    std::string text;
    std::unique_ptr<Array> array;
  };
  GgufFile() = default;
  const Value* find_key(std::string_view key) const;
  Result<const Value*> expect(std::string_view key, GgufType type) const;
  Result<const Array*> expect_array(std::string_view key, GgufType element) const;

  std::unique_ptr<File> file_;
  std::string name_;
  uint32_t version_ = 0;
  uint64_t alignment_ = 32;
  std::vector<Value> values_;
  std::vector<uint32_t> values_by_key_;
  std::vector<GgufTensor> tensors_;
  std::vector<uint32_t> tensors_by_name_;
};

// `text` in single quotes on one line: control characters and invalid UTF-8 become \xNN, and more than 80
// bytes are cut. For names that come out of a file.
std::string quote_text(std::string_view text);
bool valid_utf8(std::string_view text);

}  // namespace tessera::model
