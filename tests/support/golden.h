// Reads goldens: tensors made by an outside oracle (PyTorch, Hugging Face), committed in tests/goldens and
// described in its README. Made and re-checked by tools/make_*_goldens.py.
//
//   for (const GoldenCase& c : Golden::load("ops_rms_norm").cases()) {
//     std::span<const float> x = c.f32("x");        // row-major, c.shape("x")
//     double eps = c.number("eps");
//   }
//
// A golden that is missing, cut short or altered throws std::runtime_error, which gtest reports as a failure.
#pragma once

#include <algorithm>
#include <bit>
#include <boost/json.hpp>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "core/fs.h"

static_assert(std::endian::native == std::endian::little, "goldens are little-endian");

namespace tessera::test {

// The largest golden that is read; a guard against a wrong file, not a limit of the format.
inline constexpr uint64_t kMaxGoldenBytes = 64 << 20;

class GoldenCase {
 public:
  // The views point into the Golden that made this case; it must outlive them.
  const std::string& name() const { return name_; }

  double number(std::string_view param) const { return params().at(param).to_number<double>(); }
  int64_t integer(std::string_view param) const { return params().at(param).to_number<int64_t>(); }
  bool boolean(std::string_view param) const { return params().at(param).as_bool(); }
  std::string text(std::string_view param) const { return std::string(params().at(param).as_string()); }
  bool has_param(std::string_view param) const { return params().contains(param); }

  bool has(std::string_view tensor) const { return tensors_.contains(std::string(tensor)); }
  const std::vector<int64_t>& shape(std::string_view tensor) const { return find(tensor).shape; }
  std::span<const float> f32(std::string_view tensor) const { return view<float>(tensor, "f32"); }
  std::span<const int32_t> i32(std::string_view tensor) const { return view<int32_t>(tensor, "i32"); }
  std::span<const uint8_t> u8(std::string_view tensor) const { return view<uint8_t>(tensor, "u8"); }

 private:
  friend class Golden;
  struct Tensor {
    std::string dtype;
    std::vector<int64_t> shape;
    const std::byte* data;
    uint64_t count;
  };

  const boost::json::object& params() const { return params_; }
  const Tensor& find(std::string_view tensor) const {
    const auto found = tensors_.find(std::string(tensor));
    if (found == tensors_.end()) throw std::runtime_error(name_ + " has no tensor " + std::string(tensor));
    return found->second;
  }
  template <typename T>
  std::span<const T> view(std::string_view tensor, std::string_view dtype) const {
    const Tensor& t = find(tensor);
    if (t.dtype != dtype)
      throw std::runtime_error(name_ + "." + std::string(tensor) + " is " + t.dtype + ", asked for " +
                               std::string(dtype));
    return {reinterpret_cast<const T*>(t.data), t.count};
  }

  std::string name_;
  boost::json::object params_;
  std::map<std::string, Tensor> tensors_;
};

class Golden {
 public:
  // Reads tests/goldens/NAME.json and its data, and checks the data's size and SHA-256.
  static Golden load(const std::string& name) {
    Golden golden;
    const std::string folder = std::string(TESSERA_SOURCE_DIR) + "/tests/goldens/";
    const std::string text = value(read_text_file(folder + name + ".json", kMaxGoldenBytes));
    const boost::json::value parsed = boost::json::parse(text);
    const boost::json::object& head = parsed.as_object();
    if (head.at("format").as_string() != "tessera-golden 1")
      throw std::runtime_error(name + ".json: not in format tessera-golden 1");
    golden.source_ = head.at("source").as_object();

    const std::string path = folder + std::string(head.at("data").as_string());
    const std::unique_ptr<File> file = value(system_files().open(path));
    const uint64_t bytes = head.at("data_bytes").to_number<uint64_t>();
    if (file->size() != bytes || bytes > kMaxGoldenBytes)
      throw std::runtime_error(path + ": " + std::to_string(file->size()) + " bytes, the index says " +
                               std::to_string(bytes));
    if (value(sha256_file(*file)) != head.at("data_sha256").as_string())
      throw std::runtime_error(path + ": SHA-256 differs from the index's");
    golden.data_.resize(bytes);
    const Status status = file->read(0, golden.data_);
    if (!status.ok()) throw std::runtime_error(status.message());

    for (const boost::json::value& entry : head.at("cases").as_array()) {
      golden.cases_.push_back(golden.read_case(entry.as_object(), bytes));
    }
    return golden;
  }

  const std::vector<GoldenCase>& cases() const { return cases_; }
  const GoldenCase& at(std::string_view name) const {
    for (const GoldenCase& c : cases_) {
      if (c.name() == name) return c;
    }
    throw std::runtime_error("no golden case " + std::string(name));
  }
  // What the goldens were made from: the model's file name and SHA-256, for example.
  const boost::json::object& source() const { return source_; }

 private:
  template <typename T>
  static T value(Result<T> result) {
    if (!result.ok()) throw std::runtime_error(result.status().message());
    return std::move(*result);
  }

  GoldenCase read_case(const boost::json::object& entry, uint64_t bytes) const {
    GoldenCase c;
    c.name_ = entry.at("name").as_string();
    c.params_ = entry.at("params").as_object();
    for (const auto& [key, tensor] : entry.at("tensors").as_object()) {
      GoldenCase::Tensor t;
      t.dtype = tensor.at("dtype").as_string();
      t.count = 1;
      for (const boost::json::value& extent : tensor.at("shape").as_array()) {
        t.shape.push_back(extent.to_number<int64_t>());
        t.count *= static_cast<uint64_t>(t.shape.back());
      }
      const uint64_t offset = tensor.at("offset").to_number<uint64_t>();
      const uint64_t size = t.count * (t.dtype == "u8" ? 1 : 4);
      if (offset > bytes || size > bytes - offset || offset % alignof(float) != 0)
        throw std::runtime_error(c.name_ + "." + std::string(key) + " lies outside its data");
      t.data = data_.data() + offset;
      c.tensors_.emplace(key, std::move(t));
    }
    return c;
  }

  std::vector<std::byte> data_;  // aligned as new aligns; its heap block stays when a Golden is moved
  std::vector<GoldenCase> cases_;
  boost::json::object source_;
};

// The largest |got - expected|; a NaN or a difference in an infinite entry gives NaN, which fails `<= tol`.
inline double max_difference(std::span<const float> got, std::span<const float> expected) {
  if (got.size() != expected.size()) return std::nan("");
  double worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (got[i] == expected[i]) continue;  // equal infinities too
    const double difference = std::abs(static_cast<double>(got[i]) - static_cast<double>(expected[i]));
    if (!(difference <= worst)) worst = std::isfinite(difference) ? difference : std::nan("");
    if (std::isnan(worst)) return worst;
  }
  return worst;
}

// The largest finite |value|: what a relative tolerance is relative to.
inline double max_magnitude(std::span<const float> values) {
  double largest = 0;
  for (float v : values) {
    if (std::isfinite(v)) largest = std::max(largest, std::abs(static_cast<double>(v)));
  }
  return largest;
}

}  // namespace tessera::test
