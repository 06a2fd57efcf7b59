#include "model/gguf.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "core/check.h"
#include "core/format.h"

namespace tessera::model {
namespace {

template <typename T>
constexpr GgufType type_of() {
  if constexpr (std::is_same_v<T, bool>) return GgufType::boolean;
  if constexpr (std::is_same_v<T, uint8_t>) return GgufType::u8;
  if constexpr (std::is_same_v<T, int8_t>) return GgufType::i8;
  if constexpr (std::is_same_v<T, uint16_t>) return GgufType::u16;
  if constexpr (std::is_same_v<T, int16_t>) return GgufType::i16;
  if constexpr (std::is_same_v<T, uint32_t>) return GgufType::u32;
  if constexpr (std::is_same_v<T, int32_t>) return GgufType::i32;
  if constexpr (std::is_same_v<T, uint64_t>) return GgufType::u64;
  if constexpr (std::is_same_v<T, int64_t>) return GgufType::i64;
  if constexpr (std::is_same_v<T, float>) return GgufType::f32;
  if constexpr (std::is_same_v<T, double>) return GgufType::f64;
  if constexpr (std::is_same_v<T, std::string_view>) return GgufType::string;
}

// "a u32", "an array"
std::string with_article(GgufType type) {
  const std::string text = name(type);
  return (text[0] == 'a' || text[0] == 'i' || text == "f32" || text == "f64" ? "an " : "a ") + text;
}

}  // namespace

const char* name(GgufType type) {
  constexpr const char* kNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                    "bool", "string", "array", "u64", "i64", "f64"};
  return kNames[static_cast<uint32_t>(type)];
}

void StringList::reserve(size_t strings, size_t bytes) {
  ends_.reserve(strings);
  bytes_.reserve(bytes);
}

void StringList::push_back(std::string_view text) {
  bytes_ += text;
  TESSERA_CHECK(bytes_.size() <= UINT32_MAX);
  ends_.push_back(static_cast<uint32_t>(bytes_.size()));
}

int64_t GgufTensor::elements() const {
  int64_t count = 1;
  for (int axis = 0; axis < rank; ++axis) count *= shape[static_cast<size_t>(axis)];
  return count;
}

std::string GgufTensor::shape_text() const {
  std::string text = "[";
  for (int axis = 0; axis < rank; ++axis) {
    text += (axis > 0 ? ", " : "") + std::to_string(shape[static_cast<size_t>(axis)]);
  }
  return text + "]";
}

std::vector<std::string_view> GgufFile::keys() const {
  std::vector<std::string_view> result;
  for (const Value& value : values_) result.push_back(value.key);
  return result;
}

Status GgufFile::error(const std::string& text) const {
  return bad_file(name_ + ": " + text);
}

const GgufFile::Value* GgufFile::find_key(std::string_view key) const {
  const auto found = std::lower_bound(values_by_key_.begin(), values_by_key_.end(), key,
                                      [&](uint32_t i, std::string_view k) { return values_[i].key < k; });
  return found != values_by_key_.end() && values_[*found].key == key ? &values_[*found] : nullptr;
}

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
  const auto found = std::lower_bound(tensors_by_name_.begin(), tensors_by_name_.end(), name,
                                      [&](uint32_t i, std::string_view n) { return tensors_[i].name < n; });
  return found != tensors_by_name_.end() && tensors_[*found].name == name ? &tensors_[*found] : nullptr;
}

Result<const GgufFile::Value*> GgufFile::expect(std::string_view key, GgufType type) const {
  const Value* value = find_key(key);
  if (value == nullptr) return error(format("key '{}' is missing; expected {}", key, with_article(type)));
  if (value->type != type) {
    return error(format("byte {}: key '{}' is {}, expected {}", value->place, key, with_article(value->type),
                        with_article(type)));
  }
  return value;
}

Result<const GgufFile::Array*> GgufFile::expect_array(std::string_view key, GgufType element) const {
  TESSERA_ASSIGN_OR_RETURN(const Value* value, expect(key, GgufType::array));
  if (value->array->element != element) {
    return error(format("byte {}: key '{}' is an array of {}, expected an array of {}", value->place, key,
                        model::name(value->array->element), model::name(element)));
  }
  return value->array.get();
}

template <typename T>
Result<T> GgufFile::get(std::string_view key) const {
  TESSERA_ASSIGN_OR_RETURN(const Value* value, expect(key, type_of<T>()));
  if constexpr (std::is_same_v<T, std::string_view>) {
    return std::string_view(value->text);
  } else {
    T result;
    std::memcpy(&result, &value->bits, sizeof result);
    return result;
  }
}

template <typename T>
Result<T> GgufFile::get_or(std::string_view key, T fallback) const {
  if (!has(key)) return fallback;
  return get<T>(key);
}

template <typename T>
Result<std::vector<T>> GgufFile::get_array(std::string_view key) const {
  TESSERA_ASSIGN_OR_RETURN(const Array* array, expect_array(key, type_of<T>()));
  std::vector<T> result(array->count);
  if (!result.empty()) std::memcpy(result.data(), array->raw.data(), result.size() * sizeof(T));
  return result;
}

Result<const StringList*> GgufFile::get_strings(std::string_view key) const {
  TESSERA_ASSIGN_OR_RETURN(const Array* array, expect_array(key, GgufType::string));
  return &array->strings;
}

Result<uint64_t> GgufFile::array_size(std::string_view key) const {
  TESSERA_ASSIGN_OR_RETURN(const Value* value, expect(key, GgufType::array));
  return value->array->count;
}

Status GgufFile::read(const GgufTensor& tensor, uint64_t first, std::span<std::byte> out) const {
  TESSERA_CHECK(first <= tensor.bytes && out.size() <= tensor.bytes - first);
  return file_->read(tensor.offset + first, out);
}

#define TESSERA_GGUF_SCALAR(T)                                 \
  template Result<T> GgufFile::get<T>(std::string_view) const; \
  template Result<T> GgufFile::get_or<T>(std::string_view, T) const;
#define TESSERA_GGUF_NUMBER(T) \
  TESSERA_GGUF_SCALAR(T)       \
  template Result<std::vector<T>> GgufFile::get_array<T>(std::string_view) const;
TESSERA_GGUF_SCALAR(bool)
TESSERA_GGUF_SCALAR(std::string_view)
TESSERA_GGUF_NUMBER(uint8_t)
TESSERA_GGUF_NUMBER(int8_t)
TESSERA_GGUF_NUMBER(uint16_t)
TESSERA_GGUF_NUMBER(int16_t)
TESSERA_GGUF_NUMBER(uint32_t)
TESSERA_GGUF_NUMBER(int32_t)
TESSERA_GGUF_NUMBER(uint64_t)
TESSERA_GGUF_NUMBER(int64_t)
TESSERA_GGUF_NUMBER(float)
TESSERA_GGUF_NUMBER(double)
#undef TESSERA_GGUF_NUMBER
#undef TESSERA_GGUF_SCALAR

}  // namespace tessera::model
