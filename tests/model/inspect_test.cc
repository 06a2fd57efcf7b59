// What inspect counts, and that its JSON is JSON.
#include "model/inspect.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "tests/support/memory_file.h"
#include "tests/support/tiny_llama.h"

namespace tessera::model {
namespace {

using testing::GgufWriter;
using testing::TinyLlama;

Result<Inspection> inspect_bytes(const GgufWriter& writer, bool check_weights) {
  testing::MemoryFileSystem files;
  files.files["dir/\"tiny\".gguf"] = writer.build();
  return inspect("dir/\"tiny\".gguf", check_weights, files);
}

TEST(Inspect, SumsTensorsByTypeAndKvBytes) {
  const GgufWriter writer = TinyLlama{.dtype = DType::q8_0}.writer();
  auto result = inspect_bytes(writer, true);
  ASSERT_TRUE(result.ok()) << result.status().message();
  const int64_t matrices = 259 * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64);
  const int64_t norms = 5 * 64;
  EXPECT_EQ(result->parameters, matrices + norms);
  ASSERT_EQ(result->types.size(), 2u);
  EXPECT_EQ(result->types[0].dtype, DType::q8_0);
  EXPECT_EQ(result->types[0].tensors, 15);
  EXPECT_EQ(result->types[0].bytes, matrices / 32 * 34);
  EXPECT_EQ(result->types[1].elements, norms);
  EXPECT_EQ(result->file_bytes, writer.build().size());
  EXPECT_EQ(result->sha256.size(), 64u);
  EXPECT_TRUE(result->non_finite.empty());
  const std::string text = inspection_text(*result);
  EXPECT_NE(text.find("512 bytes as f32, 256 as bf16"), std::string::npos) << text;
  EXPECT_NE(text.find("all finite"), std::string::npos) << text;
}

TEST(Inspect, JsonHoldsTheSameAndEscapesNames) {
  auto result = inspect_bytes(TinyLlama{.window = 7, .tied_head = false}.writer(), false);
  ASSERT_TRUE(result.ok()) << result.status().message();
  const std::string json = inspection_json(*result);
  EXPECT_EQ(json.back(), '\n');
  const boost::json::object object = boost::json::parse(json).as_object();
  EXPECT_EQ(object.at("file").as_string(), "dir/\"tiny\".gguf");
  EXPECT_EQ(object.at("architecture").as_string(), "llama");
  EXPECT_EQ(object.at("sliding_window").as_int64(), 7);
  EXPECT_FALSE(object.at("tied_head").as_bool());
  EXPECT_EQ(object.at("kv_bytes_per_token").at("f32").as_int64(), 512);
  EXPECT_EQ(object.at("tensor_types").at(0).at("type").as_string(), "f32");
  EXPECT_EQ(object.at("sha256").as_string(), result->sha256.c_str());
  EXPECT_TRUE(object.at("chat_template").as_bool());
  EXPECT_FALSE(object.contains("non_finite"));
}

TEST(Inspect, CountsValuesThatAreNotFiniteInEveryType) {
  struct Case {
    DType dtype;
    size_t byte;          // where the exponent is filled with ones
    std::string pattern;  // its bytes
    int64_t values;
  };
  for (const Case& c :
       {Case{DType::f32, 8, {"\0\0\x80\x7f", 4}, 1}, Case{DType::f16, 6, {"\x01\xfc", 2}, 1},
        Case{DType::bf16, 10, {"\xc0\x7f", 2}, 1}, Case{DType::q4_0, 18, {"\0\x7c", 2}, 32},
        Case{DType::q4_1, 22, {"\0\xfe", 2}, 32}, Case{DType::q8_0, 34, {"\xff\x7f", 2}, 32}}) {
    GgufWriter writer = TinyLlama{.dtype = c.dtype}.writer();
    writer.find_tensor("blk.1.ffn_up.weight")->data.replace(c.byte, c.pattern.size(), c.pattern);
    auto result = inspect_bytes(writer, true);
    ASSERT_TRUE(result.ok()) << result.status().message();
    ASSERT_EQ(result->non_finite.size(), 1u) << name(c.dtype);
    EXPECT_EQ(result->non_finite[0].name, "blk.1.ffn_up.weight");
    EXPECT_EQ(result->non_finite[0].values, c.values) << name(c.dtype);
  }
}

}  // namespace
}  // namespace tessera::model
