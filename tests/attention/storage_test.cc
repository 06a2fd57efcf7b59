// KvStorage, the registry and validate().
#include "tests/attention/paged_fixture.h"

namespace tessera::attention {
namespace {

class StorageTest : public ::testing::TestWithParam<DType> {
 protected:
  ThreadPool pool{ThreadPoolOptions{.threads = 2}};
  Context context{pool};
  KvFormat format{GetParam(), 2, 24, 40, kKeyTile};

  float stored(float x) const { return GetParam() == DType::bf16 ? bf16_to_f32(f32_to_bf16(x)) : x; }
};

TEST_P(StorageTest, ReadsBackWhatWasAppendedAndZeroElsewhere) {
  KvStorage storage = KvStorage::create(format, 2, 3).value();
  const std::vector<float> k = random_values(5 * 60, 1),
                           v = random_values(5 * 100, 2);  // padded rows: 48, 80 used
  const int32_t block[] = {2, 0, 2, 1, 2}, offset[] = {0, 63, 1, 7, 62};
  storage.append(context, 1, {5, k.data(), 60, v.data(), 100, block, offset});
  std::vector<float> k_row(24), v_row(40);
  for (int layer = 0; layer < 2; ++layer) {
    for (int at = 0; at < 3; ++at) {
      for (int key = 0; key < 64; ++key) {
        for (int head = 0; head < 2; ++head) {
          storage.read(layer, at, head, key, 1, k_row.data(), v_row.data());
          int row = -1;
          for (int r = 0; r < 5; ++r) {
            if (layer == 1 && block[r] == at && offset[r] == key) row = r;
          }
          for (int d = 0; d < 24; ++d) {
            ASSERT_EQ(k_row[size_t(d)], row < 0 ? 0.0f : stored(k[size_t(row * 60 + head * 24 + d)]));
          }
          for (int d = 0; d < 40; ++d) {
            ASSERT_EQ(v_row[size_t(d)], row < 0 ? 0.0f : stored(v[size_t(row * 100 + head * 40 + d)]));
          }
        }
      }
    }
  }
}

TEST_P(StorageTest, CopiesOnlyTheRowsAskedForInEveryLayer) {
  KvStorage storage = KvStorage::create(format, 2, 2).value();
  const std::vector<float> k = random_values(64 * 48, 3), v = random_values(64 * 80, 4);
  std::vector<int32_t> block(64, 0), offset(64);
  for (int i = 0; i < 64; ++i) offset[size_t(i)] = i;
  for (int layer = 0; layer < 2; ++layer) {
    storage.append(context, layer, {64, k.data(), 48, v.data(), 80, block.data(), offset.data()});
  }
  const auto expect_rows = [&](int first, int count) {
    std::vector<float> k_row(24), v_row(40);
    for (int layer = 0; layer < 2; ++layer) {
      for (int key = 0; key < 64; ++key) {
        storage.read(layer, 1, 1, key, 1, k_row.data(), v_row.data());
        const bool copied = key >= first && key < first + count;
        ASSERT_EQ(k_row[5], copied ? stored(k[size_t(key * 48 + 24 + 5)]) : 0.0f) << key;
        ASSERT_EQ(v_row[39], copied ? stored(v[size_t(key * 80 + 40 + 39)]) : 0.0f) << key;
      }
    }
  };
  storage.copy_rows(0, 1, 3, 0);
  expect_rows(0, 0);
  storage.copy_rows(0, 1, 3, 12);
  expect_rows(3, 12);
  storage.copy_rows(0, 1, 0, 64);
  expect_rows(0, 64);
}

TEST_P(StorageTest, BytesPerBlockAreWhatTheTilesHold) {
  const KvStorage storage = KvStorage::create(format, 3, 2).value();
  const int64_t element = GetParam() == DType::f32 ? 4 : 2;
  EXPECT_EQ(storage.bytes_per_block(), 3 * 2 * 64 * (24 + 48) * element);  // v_head_dim 40 is stored 48 wide
  EXPECT_EQ(storage.bytes(), 2 * storage.bytes_per_block());
}

INSTANTIATE_TEST_SUITE_P(Dtypes, StorageTest, ::testing::Values(DType::f32, DType::bf16),
                         [](const auto& info) { return std::string(name(info.param)); });

TEST(Storage, RefusalsNameTheField) {
  const auto field = [](KvFormat format, int layers, int blocks) {
    return KvStorage::create(format, layers, blocks).status().field();
  };
  EXPECT_EQ(field({DType::f16, 1, 8, 8, 64}, 1, 1), "kv_cache_dtype");
  EXPECT_EQ(field({DType::f32, 1, 12, 8, 64}, 1, 1), "head_dim");
  EXPECT_EQ(field({DType::f32, 1, 8, 264, 64}, 1, 1), "v_head_dim");
  EXPECT_EQ(field({DType::f32, 1, 8, 8, 32}, 1, 1), "block_tokens");
  EXPECT_EQ(field({DType::f32, 0, 8, 8, 64}, 1, 1), "kv_heads");
  const auto huge = KvStorage::create({DType::f32, 1 << 20, 256, 256, 64}, 1 << 20, 1 << 20);
  ASSERT_FALSE(huge.ok());
  EXPECT_EQ(huge.status().code(), StatusCode::resource_exhausted);
}

TEST(Registry, TakesTheKernelOfTheForcedIsa) {
  const std::string isa = simd::name(*simd::requested_isa());
  for (Kind kind : {Kind::prefill, Kind::decode, Kind::tree}) {
    const AttentionProblem bf16 = make_problem(DType::bf16, 4, 2, 64);
    EXPECT_NE(explain(bf16, kind).find("> flash_bf16_" + isa + ": taken"), std::string::npos)
        << explain(bf16, kind);
    EXPECT_EQ(find(bf16, kind).value()->name, "flash_bf16_" + isa);
    // f32 storage has no use for bf16 dots.
    const AttentionProblem f32 = make_problem(DType::f32, 4, 2, 64);
    const std::string plain = isa == "avx512bf16" || isa == "amx" ? "avx512" : isa;
    EXPECT_NE(explain(f32, kind).find("> flash_f32_" + plain + ": taken"), std::string::npos)
        << explain(f32, kind);
  }
}

TEST(Registry, SaysWhyAKernelWasNotTaken) {
  const std::string text = explain(make_problem(DType::f32, 4, 2, 64), Kind::decode);
  EXPECT_NE(text.find("  flash_bf16_scalar: dtype is f32, the kernel reads bf16"), std::string::npos) << text;
  if (*simd::requested_isa() == simd::Isa::scalar && simd::supported(simd::Isa::avx2)) {
    EXPECT_NE(text.find("  flash_f32_avx2: TESSERA_ISA=scalar forbids avx2"), std::string::npos) << text;
  }
}

// A paged cache has the plain kernel alone: what it cannot do is refused by name, over dense tensors it is
// taken.
TEST(Registry, FeaturesOfDenseTensorsAreRefusedOverAPagedCache) {
  const int32_t lengths[] = {0, 4};
  uint8_t mask[64] = {};
  uint64_t bits[8] = {};
  const auto with = [&](auto change) {
    AttentionProblem p = make_problem(DType::f32, 4, 2, 64);
    p.seqlen_q = p.seqlen_k = 4;
    change(p);
    return p;
  };
  for (const auto& [problem, field] :
       {std::pair{with([](AttentionProblem& p) { p.dropout.p = 0.5f; }), "dropout"},
        {with([&](AttentionProblem& p) {
           p.mask.tensor = {MaskKind::boolean, DType::f32, mask};
         }),
         "mask"},
        {with([&](AttentionProblem& p) {
           p.mask.ancestors = {4, bits};
         }),
         "ancestors"},
        {with([&](AttentionProblem& p) { p.cu_seqlens_q = p.cu_seqlens_k = lengths; }), "cu_seqlens_q"},
        {with([&](AttentionProblem& p) { p.leftpad_k = lengths; }), "leftpad_k"}}) {
    for (Kind kind : {Kind::prefill, Kind::decode, Kind::tree}) {
      const auto found = find(problem, kind);
      ASSERT_FALSE(found.ok());
      EXPECT_EQ(found.status().code(), StatusCode::unsupported);
      EXPECT_EQ(found.status().field(), field);
      EXPECT_EQ(explain(problem, kind).find("> "), std::string::npos) << explain(problem, kind);
    }
    EXPECT_TRUE(find(problem, Kind::dense).ok());
    EXPECT_NE(explain(problem, Pass::forward).find("> flash_f32_"), std::string::npos);
  }
}

TEST(Registry, HalvesAreWidenedOverDenseTensors) {
  const std::string text = explain(make_problem(DType::f16, 4, 2, 64), Pass::forward);
  EXPECT_NE(text.find("> flash_f32_"), std::string::npos) << text;
  EXPECT_NE(text.find("dtype f16 is widened to f32, the kernel reads bf16"), std::string::npos) << text;
}

TEST(Problem, ValidateNamesTheField) {
  const auto field = [](auto change) {
    AttentionProblem p = make_problem(DType::f32, 4, 2, 64);
    change(p);
    return validate(p).field();
  };
  EXPECT_TRUE(validate(make_problem(DType::bf16, 4, 2, 64)).ok());
  EXPECT_EQ(field([](AttentionProblem& p) { p.heads = 5; }), "heads");
  EXPECT_EQ(field([](AttentionProblem& p) { p.heads = 0; }), "heads");
  EXPECT_EQ(field([](AttentionProblem& p) { p.kv_heads = 0; }), "kv_heads");
  EXPECT_EQ(field([](AttentionProblem& p) { p.head_dim = 65; }), "head_dim");
  EXPECT_EQ(field([](AttentionProblem& p) { p.v_head_dim = 0; }), "v_head_dim");
  EXPECT_EQ(field([](AttentionProblem& p) { p.dtype = DType::i8; }), "dtype");
  EXPECT_EQ(field([](AttentionProblem& p) { p.scale = NAN; }), "scale");
  EXPECT_EQ(field([](AttentionProblem& p) { p.softcap = -1; }), "softcap");
  EXPECT_EQ(field([](AttentionProblem& p) { p.batch = -1; }), "batch");
  EXPECT_EQ(field([](AttentionProblem& p) { p.seqlen_q = int64_t{1} << 40; }), "seqlen_q");
  EXPECT_EQ(field([](AttentionProblem& p) { p.seqlen_k = -2; }), "seqlen_k");
  EXPECT_EQ(field([](AttentionProblem& p) { p.mask.window_left = -2; }), "window_left");
  EXPECT_EQ(field([](AttentionProblem& p) { p.mask.window_right = -9; }), "window_right");
  EXPECT_EQ(field([](AttentionProblem& p) { p.struct_size = 4; }), "struct_size");
}

}  // namespace
}  // namespace tessera::attention
