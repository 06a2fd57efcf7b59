// dtypes, checked sizes, buffers, Philox and files.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "core/buffer.h"
#include "core/checked.h"
#include "core/fs.h"
#include "core/philox.h"
#include "core/tensor.h"
#include "tessera/dtype.h"

namespace tessera {
namespace {

TEST(DType, EveryHalfSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float wide = f16_to_f32(static_cast<uint16_t>(bits));
    if (std::isnan(wide)) {
      EXPECT_TRUE(std::isnan(f16_to_f32(f32_to_f16(wide))));
    } else {
      ASSERT_EQ(f32_to_f16(wide), bits);
    }
  }
}

TEST(DType, RoundsToNearestEven) {
  EXPECT_EQ(f32_to_f16(1.0f + 0x1p-11f), f32_to_f16(1.0f));                // a tie, to even
  EXPECT_EQ(f32_to_f16(1.0f + 3 * 0x1p-11f), f32_to_f16(1.0f + 0x1p-9f));  // a tie, to even
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7c00);                                 // overflows to infinity
  EXPECT_EQ(f32_to_f16(65519.0f), 0x7bff);
  EXPECT_EQ(f32_to_bf16(1.0f + 0x1p-8f), f32_to_bf16(1.0f));
  EXPECT_EQ(bf16_to_f32(f32_to_bf16(-3.5f)), -3.5f);
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::nanf("")))));
}

TEST(DType, UnknownNameListsTheKnownOnes) {
  const auto result = parse_dtype("q9_9");
  ASSERT_FALSE(result.ok());
  EXPECT_NE(result.status().message().find("q4_1"), std::string::npos);
}

TEST(CheckedSize, RemembersOverflow) {
  EXPECT_EQ((CheckedSize(3) * 5 + 2).get(), 17u);
  EXPECT_FALSE((CheckedSize(UINT64_MAX) + 1).ok());
  EXPECT_FALSE((CheckedSize(UINT64_MAX / 2) * 3 + 1).ok());
  EXPECT_FALSE(CheckedSize(UINT64_MAX - 3).align_up(32).ok());
  EXPECT_EQ(CheckedSize(33).align_up(32).get(), 64u);
}

TEST(Buffer, IsAlignedZeroedAndNamesItselfWhenMemoryIsOut) {
  for (size_t bytes : {size_t{1}, size_t{1000}, size_t{3} << 20}) {
    auto buffer = Buffer::create(bytes, "test");
    ASSERT_TRUE(buffer.ok());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->data()) % 64, 0u);
    for (size_t i = 0; i < bytes; i += 997) EXPECT_EQ(buffer->as<char>()[i], 0);
  }
  const auto huge = Buffer::create(SIZE_MAX / 2, "kv cache");
  ASSERT_FALSE(huge.ok());
  EXPECT_EQ(huge.status().code(), StatusCode::resource_exhausted);
  EXPECT_NE(huge.status().message().find("kv cache"), std::string::npos);
}

// Known answers of the Random123 distribution (kat_vectors, philox4x32-10).
TEST(Philox, MatchesThePublishedVectors) {
  const auto zero = philox4x32({0, 0, 0, 0}, {0, 0});
  EXPECT_EQ(zero, (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const auto ones = philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u});
  EXPECT_EQ(ones, (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(Files, RefusesWhatIsNotARegularFileAndReportsShortReads) {
  EXPECT_EQ(system_files().open("/no/such/file").status().code(), StatusCode::not_found);
  EXPECT_EQ(system_files().open("/dev/zero").status().code(), StatusCode::bad_file);
  EXPECT_EQ(system_files().open("/").status().code(), StatusCode::bad_file);
  const std::string path = std::filesystem::temp_directory_path() / "tessera_files_test";
  std::ofstream(path) << "abc";
  auto file = system_files().open(path);
  ASSERT_TRUE(file.ok());
  std::byte bytes[8];
  EXPECT_EQ((*file)->read(0, bytes).code(), StatusCode::bad_file);
  EXPECT_EQ(*sha256_file(**file), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_FALSE(read_text_file(path, 2).ok());
  EXPECT_EQ(*read_text_file(path, 3), "abc");
  std::remove(path.c_str());
}

}  // namespace
}  // namespace tessera
