// Writes GGUF files, good ones and, through the public fields, bad ones. Shapes are outermost first, as in
// TensorView; the file gets them the other way round.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/dtype.h"

namespace tessera::testing {

// Type numbers as the file has them.
enum GgufKind : uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64 };

template <typename T>
std::string le(T value) {
  std::string bytes(sizeof value, '\0');
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}
inline std::string gguf_string(std::string_view text) {
  return le<uint64_t>(text.size()) + std::string(text);
}
inline uint32_t gguf_tensor_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return 0;
    case DType::f16:
      return 1;
    case DType::q4_0:
      return 2;
    case DType::q4_1:
      return 3;
    case DType::q8_0:
      return 8;
    case DType::i8:
      return 24;
    case DType::i32:
      return 26;
    case DType::bf16:
      return 30;
  }
  return ~0u;
}

class GgufWriter {
 public:
  struct Key {
    std::string name;
    uint32_t type;
    std::string payload;  // as in the file
  };
  struct Tensor {
    std::string name;
    std::vector<uint64_t> shape;
    uint32_t type;
    std::string data;
    int64_t offset = -1;  // in the data section; -1: where its data come to lie
  };

  std::string magic = "GGUF";
  uint32_t version = 3;
  int64_t tensor_count = -1, key_count = -1;  // -1: the true ones
  uint64_t alignment = 32;                    // of the layout; write the key general.alignment too
  std::string after_header;                   // bytes between the header's end and the padding
  std::string trailing;                       // bytes after the last padding
  std::vector<Key> keys;
  std::vector<Tensor> tensors;

  GgufWriter& raw(std::string name, uint32_t type, std::string payload) {
    keys.push_back({std::move(name), type, std::move(payload)});
    return *this;
  }
  GgufWriter& u32(std::string name, uint32_t v) { return raw(std::move(name), kU32, le(v)); }
  GgufWriter& f32(std::string name, float v) { return raw(std::move(name), kF32, le(v)); }
  GgufWriter& boolean(std::string name, bool v) { return raw(std::move(name), kBool, le<uint8_t>(v)); }
  GgufWriter& str(std::string name, std::string_view v) {
    return raw(std::move(name), kString, gguf_string(v));
  }
  GgufWriter& strs(std::string name, const std::vector<std::string>& values) {
    std::string payload = le<uint32_t>(kString) + le<uint64_t>(values.size());
    for (const std::string& value : values) payload += gguf_string(value);
    return raw(std::move(name), kArray, payload);
  }
  template <typename T>
  GgufWriter& array(std::string name, uint32_t element, const std::vector<T>& values) {
    std::string payload = le(element) + le<uint64_t>(values.size());
    for (const T& value : values) payload += le(value);
    return raw(std::move(name), kArray, payload);
  }
  GgufWriter& i32s(std::string name, const std::vector<int32_t>& v) {
    return array(std::move(name), kI32, v);
  }
  GgufWriter& f32s(std::string name, const std::vector<float>& v) { return array(std::move(name), kF32, v); }

  // `data` empty: zeros of the right size.
  GgufWriter& tensor(std::string name, DType dtype, std::vector<uint64_t> shape, std::string data = {}) {
    if (data.empty()) {
      uint64_t elements = 1;
      for (uint64_t extent : shape) elements *= extent;
      data.resize(elements / static_cast<uint64_t>(info(dtype).block_elements) *
                  static_cast<uint64_t>(info(dtype).block_bytes));
    }
    tensors.push_back({std::move(name), std::move(shape), gguf_tensor_type(dtype), std::move(data)});
    return *this;
  }

  Key* find_key(std::string_view name) {
    for (Key& key : keys) {
      if (key.name == name) return &key;
    }
    return nullptr;
  }
  GgufWriter& replace(std::string_view name, uint32_t type, std::string payload) {
    Key* key = find_key(name);
    if (key == nullptr) return raw(std::string(name), type, std::move(payload));
    key->type = type;
    key->payload = std::move(payload);
    return *this;
  }
  GgufWriter& erase(std::string_view name) {
    std::erase_if(keys, [&](const Key& key) { return key.name == name; });
    return *this;
  }
  Tensor* find_tensor(std::string_view name) {
    for (Tensor& tensor : tensors) {
      if (tensor.name == name) return &tensor;
    }
    return nullptr;
  }
  GgufWriter& erase_tensor(std::string_view name) {
    std::erase_if(tensors, [&](const Tensor& tensor) { return tensor.name == name; });
    return *this;
  }

  std::string build() const {
    std::string out = magic + le(version);
    out += le<uint64_t>(tensor_count < 0 ? tensors.size() : static_cast<uint64_t>(tensor_count));
    out += le<uint64_t>(key_count < 0 ? keys.size() : static_cast<uint64_t>(key_count));
    for (const Key& key : keys) out += gguf_string(key.name) + le(key.type) + key.payload;
    std::string data;
    for (const Tensor& tensor : tensors) {
      out += gguf_string(tensor.name) + le(static_cast<uint32_t>(tensor.shape.size()));
      for (size_t axis = tensor.shape.size(); axis-- > 0;) out += le(tensor.shape[axis]);
      out += le(tensor.type) + le(tensor.offset < 0 ? data.size() : static_cast<uint64_t>(tensor.offset));
      data += tensor.data;
      pad(&data);
    }
    out += after_header;
    pad(&out);
    return out + data + trailing;
  }

 private:
  void pad(std::string* bytes) const {
    bytes->resize((bytes->size() + alignment - 1) / alignment * alignment, '\0');
  }
};

}  // namespace tessera::testing
