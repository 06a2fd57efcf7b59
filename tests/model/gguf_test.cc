// The GGUF reader on good files: what it gives back. Bad files are in hostile_gguf_test.cc.
#include "model/gguf.h"

#include <gtest/gtest.h>

#include "tests/support/gguf_writer.h"
#include "tests/support/memory_file.h"

namespace tessera::model {
namespace {

using testing::GgufWriter;
using testing::MemoryFile;

Result<std::unique_ptr<GgufFile>> parse(const GgufWriter& writer) {
  return GgufFile::parse(std::make_unique<MemoryFile>(writer.build()), "test.gguf");
}

TEST(Gguf, GivesBackEveryTypeOfKey) {
  GgufWriter writer;
  writer.raw("a.u8", testing::kU8, testing::le<uint8_t>(200))
      .raw("a.i8", testing::kI8, testing::le<int8_t>(-7))
      .raw("a.u16", testing::kU16, testing::le<uint16_t>(65535))
      .raw("a.i16", testing::kI16, testing::le<int16_t>(-300))
      .u32("a.u32", 4000000000u)
      .raw("a.i32", testing::kI32, testing::le<int32_t>(-5))
      .f32("a.f32", 1.5f)
      .boolean("a.bool", true)
      .str("a.string", "héllo")
      .raw("a.u64", testing::kU64, testing::le<uint64_t>(1ull << 60))
      .raw("a.i64", testing::kI64, testing::le<int64_t>(-(1ll << 60)))
      .raw("a.f64", testing::kF64, testing::le<double>(0.1))
      .strs("a.strings", {"", "one", "two"})
      .i32s("a.ints", {3, -1});
  auto file = parse(writer);
  ASSERT_TRUE(file.ok()) << file.status().message();
  const GgufFile& gguf = **file;
  EXPECT_EQ(*gguf.get<uint8_t>("a.u8"), 200);
  EXPECT_EQ(*gguf.get<int8_t>("a.i8"), -7);
  EXPECT_EQ(*gguf.get<uint16_t>("a.u16"), 65535);
  EXPECT_EQ(*gguf.get<int16_t>("a.i16"), -300);
  EXPECT_EQ(*gguf.get<uint32_t>("a.u32"), 4000000000u);
  EXPECT_EQ(*gguf.get<int32_t>("a.i32"), -5);
  EXPECT_EQ(*gguf.get<float>("a.f32"), 1.5f);
  EXPECT_EQ(*gguf.get<bool>("a.bool"), true);
  EXPECT_EQ(*gguf.get<std::string_view>("a.string"), "héllo");
  EXPECT_EQ(*gguf.get<uint64_t>("a.u64"), 1ull << 60);
  EXPECT_EQ(*gguf.get<int64_t>("a.i64"), -(1ll << 60));
  EXPECT_EQ(*gguf.get<double>("a.f64"), 0.1);
  const StringList& strings = **gguf.get_strings("a.strings");
  ASSERT_EQ(strings.size(), 3u);
  EXPECT_EQ(strings[0], "");
  EXPECT_EQ(strings[2], "two");
  EXPECT_EQ(*gguf.get_array<int32_t>("a.ints"), (std::vector<int32_t>{3, -1}));
  EXPECT_EQ(gguf.keys().size(), 14u);
  EXPECT_EQ(gguf.keys()[0], "a.u8");
}

TEST(Gguf, AWrongTypeNamesKeyFoundAndExpected) {
  auto file = parse(GgufWriter().raw("a.small", testing::kU16, testing::le<uint16_t>(1)).i32s("a.ints", {1}));
  ASSERT_TRUE(file.ok());
  EXPECT_EQ((*file)->get<uint32_t>("a.small").status().message(),
            "test.gguf: byte 24: key 'a.small' is a u16, expected a u32");
  EXPECT_EQ((*file)->get_or<uint32_t>("a.small", 7).status().code(), StatusCode::bad_file);
  EXPECT_EQ((*file)->get_array<uint32_t>("a.ints").status().message(),
            "test.gguf: byte 45: key 'a.ints' is an array of i32, expected an array of u32");
  EXPECT_EQ((*file)->get<bool>("a.none").status().message(),
            "test.gguf: key 'a.none' is missing; expected a bool");
  EXPECT_EQ(*(*file)->get_or<bool>("a.none", true), true);
}

TEST(Gguf, TensorsHaveTheirShapeOutermostFirstAndTheirBytes) {
  for (uint32_t version : {2u, 3u}) {
    GgufWriter writer;
    writer.version = version;
    std::string data(3 * 64 * 2, '\0');
    for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i);
    writer.tensor("first", DType::q8_0, {5, 32}).tensor("second", DType::f16, {3, 64}, data);
    auto file = parse(writer);
    ASSERT_TRUE(file.ok()) << file.status().message();
    const GgufTensor* tensor = (*file)->find_tensor("second");
    ASSERT_NE(tensor, nullptr);
    EXPECT_EQ((*file)->find_tensor("third"), nullptr);
    EXPECT_EQ(tensor->shape_text(), "[3, 64]");
    EXPECT_EQ(tensor->dtype, DType::f16);
    EXPECT_EQ(tensor->elements(), 192);
    EXPECT_EQ((*file)->tensors()[0].bytes, 5u * 34);
    std::string part(10, '\0');
    ASSERT_TRUE((*file)->read(*tensor, 100, std::as_writable_bytes(std::span(part))).ok());
    EXPECT_EQ(part, data.substr(100, 10));
  }
}

TEST(Gguf, TensorsMayLieInAnyOrderAndAtAnyAlignment) {
  GgufWriter writer;
  writer.alignment = 4096;
  writer.u32("general.alignment", 4096);
  writer.tensor("a", DType::f32, {8}, std::string(32, 'a'))
      .tensor("b", DType::f32, {8}, std::string(32, 'b'));
  writer.tensors[0].offset = 4096;
  writer.tensors[1].offset = 0;
  auto file = parse(writer);
  ASSERT_TRUE(file.ok()) << file.status().message();
  std::string bytes(32, '\0');
  ASSERT_TRUE((*file)->read(*(*file)->find_tensor("b"), 0, std::as_writable_bytes(std::span(bytes))).ok());
  EXPECT_EQ(bytes, std::string(32, 'a'));
}

TEST(Gguf, QuotedTextIsOneLineOfPrintableCharacters) {
  EXPECT_EQ(quote_text("a\nb\xff\x7f é"), "'a\\x0ab\\xff\\x7f é'");
  EXPECT_LE(quote_text(std::string(1000, '\x01')).size(), 100u);
  EXPECT_TRUE(valid_utf8("grün €😀"));
  for (const char* bad :
       {"\x80", "\xc0\xaf", "\xe0\x80\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xf5", "\xe2\x82"}) {
    EXPECT_FALSE(valid_utf8(bad));
  }
}

}  // namespace
}  // namespace tessera::model
