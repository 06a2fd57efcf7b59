// attend_cache over caches of the caller's: against the reference, against the dense forward bit for bit, and
// what it writes, reads and refuses.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "attention/reference/reference.h"
#include "core/context.h"
#include "tessera/paged.h"

namespace tessera::attention {
namespace {

constexpr uint32_t kSeed = 41;

int64_t bytes_of(DType dtype) {
  return dtype == DType::f32 ? 4 : 2;
}
void put(DType dtype, char* at, float value) {
  const uint16_t half = dtype == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value);
  dtype == DType::f32 ? std::memcpy(at, &value, 4) : std::memcpy(at, &half, 2);
}
float get(DType dtype, const char* at) {
  float value;
  uint16_t half;
  if (dtype == DType::f32) return std::memcpy(&value, at, 4), value;
  std::memcpy(&half, at, 2);
  return dtype == DType::f16 ? f16_to_f32(half) : bf16_to_f32(half);
}

// A tensor [a][b][c][d] of a dtype with room between its rows, NaN until it is set.
struct Tensor {
  DType dtype;
  int64_t strides[3];
  std::vector<char> bytes;

  Tensor(DType dtype_in, int64_t a, int64_t b, int64_t c, int64_t d) : dtype(dtype_in) {
    strides[2] = d + 3;
    strides[1] = c * strides[2] + 1;
    strides[0] = b * strides[1] + 5;
    bytes.assign(size_t((a * strides[0] + 8) * bytes_of(dtype)), char(0xff));
  }
  char* at(int64_t a, int64_t b, int64_t c, int64_t d) {
    return bytes.data() + (a * strides[0] + b * strides[1] + c * strides[2] + d) * bytes_of(dtype);
  }
  template <typename Pointer>
  Strided<Pointer> view() {
    return {bytes.data(), strides[0], strides[1], strides[2]};
  }
};

struct Shape {
  DType dtype = DType::f32;
  int heads = 2, kv_heads = 1, head_dim = 16, v_head_dim = 16;
  int64_t seqlen_q = 1;
  int64_t block_size = 0;  // 0: contiguous
  std::vector<int32_t> old_keys;
  int64_t added = 0;
};

// A call of attend_cache over random values, and what it should give.
struct Call {
  Shape s;
  AttentionProblem p;
  CacheView cache;
  CacheAppend append;
  Tensor q, k_new, v_new, o, k_cache, v_cache;
  std::vector<int32_t> table, batch_idx;
  std::vector<float> lse;

  static int64_t capacity(const Shape& s) {
    return *std::max_element(s.old_keys.begin(), s.old_keys.end()) + s.added + 5;
  }
  static int64_t per_sequence(const Shape& s) {
    return s.block_size == 0 ? 1 : (capacity(s) + s.block_size - 1) / s.block_size;
  }
  static int64_t slots(const Shape& s) { return s.block_size == 0 ? capacity(s) : s.block_size; }
  int64_t batch() const { return static_cast<int64_t>(s.old_keys.size()); }

  explicit Call(const Shape& shape, uint32_t seed = kSeed)
      : s(shape),
        q(s.dtype, batch(), s.seqlen_q, s.heads, s.head_dim),
        k_new(s.dtype, batch(), s.added, s.kv_heads, s.head_dim),
        v_new(s.dtype, batch(), s.added, s.kv_heads, s.v_head_dim),
        o(s.dtype, batch(), s.seqlen_q, s.heads, s.v_head_dim),
        k_cache(s.dtype, batch() * per_sequence(s) + 3, slots(s), s.kv_heads, s.head_dim),
        v_cache(s.dtype, batch() * per_sequence(s) + 3, slots(s), s.kv_heads, s.v_head_dim) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    p.batch = batch();
    p.seqlen_q = s.seqlen_q;
    p.heads = s.heads;
    p.kv_heads = s.kv_heads;
    p.head_dim = s.head_dim;
    p.v_head_dim = s.v_head_dim;
    p.dtype = s.dtype;
    p.scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
    const int64_t blocks = batch() * per_sequence(s) + 3;
    std::vector<int32_t> ids(static_cast<size_t>(blocks));
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
    std::shuffle(ids.begin(), ids.end(), random);
    cache.k = k_cache.view<void*>();
    cache.v = v_cache.view<void*>();
    cache.num_blocks = blocks;
    cache.block_size = slots(s);
    cache.seqlens = s.old_keys.data();
    if (s.block_size > 0) {
      // Entries that no key needs are out of range on purpose.
      cache.max_blocks = per_sequence(s);
      cache.table_stride = cache.max_blocks + 2;
      table.assign(size_t(batch() * cache.table_stride), -7);
      for (int64_t b = 0; b < batch(); ++b) {
        const int64_t keys = s.old_keys[size_t(b)] + s.added;
        for (int64_t i = 0; i * s.block_size < keys; ++i) {
          table[size_t(b * cache.table_stride + i)] = ids.back();
          ids.pop_back();
        }
      }
      cache.block_table = table.data();
    } else {
      batch_idx.assign(ids.begin(), ids.begin() + long(batch()));
      cache.cache_batch_idx = batch_idx.data();
    }
    const auto fill = [&](Tensor& t, int64_t b, int64_t row, int64_t heads, int64_t dim) {
      for (int64_t h = 0; h < heads; ++h)
        for (int64_t d = 0; d < dim; ++d) put(s.dtype, t.at(b, row, h, d), normal(random));
    };
    for (int64_t b = 0; b < batch(); ++b) {
      for (int64_t r = 0; r < s.seqlen_q; ++r) fill(q, b, r, s.heads, s.head_dim);
      for (int64_t t = 0; t < s.added; ++t) {
        fill(k_new, b, t, s.kv_heads, s.head_dim);
        fill(v_new, b, t, s.kv_heads, s.v_head_dim);
      }
      for (int64_t j = 0; j < s.old_keys[size_t(b)]; ++j) {
        fill(k_cache, block(b, j), j % slots(s), s.kv_heads, s.head_dim);
        fill(v_cache, block(b, j), j % slots(s), s.kv_heads, s.v_head_dim);
      }
    }
    append.seqlen = s.added;
    append.k = k_new.view<const void*>();
    append.v = v_new.view<const void*>();
    lse.assign(size_t(batch() * s.heads * s.seqlen_q), NAN);
  }

  int64_t block(int64_t b, int64_t key) const {
    return s.block_size == 0 ? batch_idx[size_t(b)]
                             : table[size_t(b * cache.table_stride + key / s.block_size)];
  }
  Status run(Context& context) {
    return attend_cache(context, p, cache, append, {q.view<const void*>(), o.view<void*>(), lse.data()});
  }
  float out(int64_t b, int64_t r, int64_t h, int64_t d) { return get(s.dtype, o.at(b, r, h, d)); }

  // Contiguous f32 of batch b after the call: the cache's keys, and q as it is multiplied.
  std::vector<float> keys_of(int64_t b, Tensor& t, int64_t dim) {
    std::vector<float> all;
    for (int64_t j = 0; j < s.old_keys[size_t(b)] + s.added; ++j)
      for (int64_t h = 0; h < s.kv_heads; ++h)
        for (int64_t d = 0; d < dim; ++d) all.push_back(get(s.dtype, t.at(block(b, j), j % slots(s), h, d)));
    return all;
  }
  std::vector<float> queries_of(Context& context, int64_t b) {
    std::vector<float> all;
    for (int64_t r = 0; r < s.seqlen_q; ++r)
      for (int64_t h = 0; h < s.heads; ++h)
        for (int64_t d = 0; d < s.head_dim; ++d) all.push_back(get(s.dtype, q.at(b, r, h, d)));
    if (append.rotary == nullptr) return all;
    RopeProblem rope;
    rope.seqlen = s.seqlen_q;
    rope.heads = s.heads;
    rope.head_dim = s.head_dim;
    rope.rotary = *append.rotary;
    const bool moves = p.mask.causal || p.mask.window_left >= 0 || p.mask.window_right >= 0;
    std::vector<int32_t> positions;
    for (int64_t r = 0; r < s.seqlen_q; ++r)
      positions.push_back(static_cast<int32_t>(s.old_keys[size_t(b)] + (moves ? r : 0)));
    rope.positions = positions.data();
    const auto view = contiguous<void*>(all.data(), s.seqlen_q, s.heads, s.head_dim);
    EXPECT_TRUE(
        rope_forward(context, rope, {view.data, view.batch_stride, view.row_stride, view.head_stride}, view)
            .ok());
    return all;
  }

  // Every output against the reference. Rounding of q and of the weights to the dtype moves a score, and so o
  // and LSE, by a few units in the last place; f16 is multiplied as f32.
  void expect_right(Context& context) {
    const double unit = s.dtype == DType::bf16 ? 0x1p-9 : s.dtype == DType::f16 ? 0x1p-11 : 0x1p-24;
    const double inner = s.dtype == DType::bf16 ? 12 * unit : 64 * 0x1p-24;
    for (int64_t b = 0; b < batch(); ++b) {
      AttentionProblem one = p;
      one.batch = 1;
      one.seqlen_k = s.old_keys[size_t(b)] + s.added;
      if (p.leftpad_k != nullptr) one.leftpad_k = p.leftpad_k + b;
      if (p.alibi_slopes != nullptr) one.alibi_slopes = p.alibi_slopes + b * p.alibi_batch_stride;
      const std::vector<float> qs = queries_of(context, b), ks = keys_of(b, k_cache, s.head_dim),
                               vs = keys_of(b, v_cache, s.v_head_dim);
      std::vector<double> want(size_t(s.seqlen_q * s.heads * s.v_head_dim)),
          want_lse(size_t(s.seqlen_q * s.heads));
      reference::attention(one, {qs.data(), 0, int64_t{s.heads} * s.head_dim, s.head_dim},
                           {ks.data(), 0, int64_t{s.kv_heads} * s.head_dim, s.head_dim},
                           {vs.data(), 0, int64_t{s.kv_heads} * s.v_head_dim, s.v_head_dim}, want.data(),
                           want_lse.data());
      for (int64_t r = 0; r < s.seqlen_q; ++r) {
        for (int64_t h = 0; h < s.heads; ++h) {
          const double lse_want = want_lse[size_t(h * s.seqlen_q + r)];
          const float lse_got = lse[size_t((b * s.heads + h) * s.seqlen_q + r)];
          if (std::isinf(lse_want)) {
            EXPECT_EQ(lse_got, -INFINITY);
          } else {
            EXPECT_TRUE(std::abs(lse_got - lse_want) <= inner + 4 * 0x1p-24 * std::abs(lse_want))
                << lse_got << " for " << lse_want;
          }
          for (int64_t d = 0; d < s.v_head_dim; ++d) {
            const double value = want[size_t((r * s.heads + h) * s.v_head_dim + d)];
            ASSERT_TRUE(std::abs(out(b, r, h, d) - value) <= unit * std::abs(value) + inner)
                << out(b, r, h, d) << " for " << value << " at batch " << b << " row " << r << " head " << h;
          }
        }
      }
    }
  }
};

class CacheViewTest : public ::testing::Test {
 protected:
  void SetUp() override { std::printf("seed: %u\n", kSeed); }
  void check(Call& call, const char* what) {
    SCOPED_TRACE(what);
    SCOPED_TRACE("dtype " + std::string(name(call.s.dtype)) + ", block " + std::to_string(call.s.block_size) +
                 ", rows " + std::to_string(call.s.seqlen_q));
    const Status status = call.run(context);
    ASSERT_TRUE(status.ok()) << status.message();
    call.expect_right(context);
  }
  ThreadPool pool{{.threads = 2}};
  Context context{pool};
};

TEST_F(CacheViewTest, EveryFeatureInEveryLayoutAndDtype) {
  RopeConfig config;
  config.rotary_dim = 12;
  const auto rope = RopeTable::create(config, 1300);
  ASSERT_TRUE(rope.ok());
  const Rotary rotary_half = rotary(*rope);
  Rotary rotary_pairs = rotary_half;
  rotary_pairs.style = RopeStyle::interleaved;
  const std::vector<float> slopes = {0.5f, 0.25f, 0.125f, 0.0625f, 0.7f,  0.01f,
                                     0.3f, 0.2f,  0.1f,   0.9f,    0.05f, 0.6f};
  const std::vector<int32_t> leftpad = {3, 0, 66};
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const int64_t block_size : {0, 16, 33, 64, 256}) {
      for (const int64_t seqlen_q : {1, 3, 70}) {
        Shape shape;
        shape.dtype = dtype;
        shape.heads = 4;
        shape.kv_heads = 2;
        shape.v_head_dim = 24;
        shape.seqlen_q = seqlen_q;
        shape.block_size = block_size;
        shape.old_keys = {130, 0, 600};
        shape.added = seqlen_q;
        {
          Call call(shape);
          call.append.rotary = &rotary_half;
          check(call, "causal, rotate-half");
        }
        if (block_size == 16 || block_size == 64)
          continue;  // the rest differs by nothing that a size changes
        {
          Call call(shape);
          call.p.mask.causal = false;
          call.append.rotary = &rotary_pairs;
          check(call, "all keys, interleaved");
        }
        {
          Call call(shape);
          call.p.mask = {true, 40, -1, {}, {}};
          call.p.softcap = 3.0f;
          check(call, "window, softcap");
        }
        {
          Call call(shape);
          call.p.mask = {false, 10, 2, {}, {}};
          call.p.alibi_slopes = slopes.data();
          call.p.alibi_batch_stride = 4;
          check(call, "two-sided window, ALiBi per batch");
        }
        {
          shape.old_keys = {130, 1, 600};
          Call call(shape);
          call.p.leftpad_k = leftpad.data();
          // What leftpad hides may be anything.
          for (int64_t j = 0; j < 3; ++j) {
            for (int64_t h = 0; h < 2; ++h) {
              put(dtype, call.k_cache.at(call.block(0, j), j % Call::slots(shape), h, 0), NAN);
              put(dtype, call.v_cache.at(call.block(0, j), j % Call::slots(shape), h, 0), NAN);
            }
          }
          const Status status = call.run(context);
          ASSERT_TRUE(status.ok()) << status.message();
          for (int64_t j = 0; j < 3; ++j) {
            for (int64_t h = 0; h < 2; ++h) {
              put(dtype, call.k_cache.at(call.block(0, j), j % Call::slots(shape), h, 0), 0);
              put(dtype, call.v_cache.at(call.block(0, j), j % Call::slots(shape), h, 0), 0);
            }
          }
          SCOPED_TRACE("leftpad");
          call.expect_right(context);
        }
      }
    }
  }
}

TEST_F(CacheViewTest, ReadsWhatIsThereWithoutAnAppendAndMoreQueriesThanKeys) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Shape shape;
    shape.dtype = dtype;
    shape.seqlen_q = 9;
    shape.old_keys = {4, 0, 70};
    shape.block_size = 64;
    Call call(shape);
    check(call, "rows before the first key see nothing");
  }
}

// Law 1: a cache is the dense tensors in another place.
TEST_F(CacheViewTest, HasTheBitsOfTheDenseForwardForAnyLayoutThreadsAndBatch) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    for (const int64_t seqlen_q : {1, 5, 200}) {
      Shape shape;
      shape.dtype = dtype;
      shape.heads = 6;
      shape.kv_heads = 2;
      shape.head_dim = 40;
      shape.v_head_dim = 24;
      shape.seqlen_q = seqlen_q;
      shape.old_keys = {700, 700, 700};
      Call plain(shape);
      ASSERT_TRUE(plain.run(context).ok());
      AttentionProblem p = plain.p;
      p.seqlen_k = 700;
      Tensor k(dtype, 3, 700, 2, 40), v(dtype, 3, 700, 2, 24), o(dtype, 3, seqlen_q, 6, 24);
      for (int64_t b = 0; b < 3; ++b) {
        for (int64_t j = 0; j < 700; ++j) {
          std::memcpy(k.at(b, j, 0, 0), plain.k_cache.at(plain.block(b, j), j, 0, 0),
                      size_t(k.strides[1] * bytes_of(dtype)));
          std::memcpy(v.at(b, j, 0, 0), plain.v_cache.at(plain.block(b, j), j, 0, 0),
                      size_t(v.strides[1] * bytes_of(dtype)));
        }
      }
      std::vector<float> lse(plain.lse.size());
      ASSERT_TRUE(forward(context, p,
                          {plain.q.view<const void*>(), k.view<const void*>(), v.view<const void*>(),
                           o.view<void*>(), lse.data()})
                      .ok());
      EXPECT_EQ(plain.o.bytes, o.bytes) << "dense, " << seqlen_q;
      EXPECT_EQ(plain.lse, lse);

      for (const int64_t block_size : {33, 128}) {
        shape.block_size = block_size;
        Call paged(shape);
        for (int64_t b = 0; b < 3; ++b) {
          for (int64_t j = 0; j < 700; ++j) {
            std::memcpy(paged.k_cache.at(paged.block(b, j), j % block_size, 0, 0),
                        plain.k_cache.at(plain.block(b, j), j, 0, 0), size_t(k.strides[1] * bytes_of(dtype)));
            std::memcpy(paged.v_cache.at(paged.block(b, j), j % block_size, 0, 0),
                        plain.v_cache.at(plain.block(b, j), j, 0, 0), size_t(v.strides[1] * bytes_of(dtype)));
          }
        }
        paged.q = plain.q;
        for (const int threads : {1, 2, 3}) {
          ThreadPool own_pool({.threads = threads});
          Context own(own_pool);
          ASSERT_TRUE(paged.run(own).ok());
          EXPECT_EQ(paged.o.bytes, o.bytes) << "blocks of " << block_size << ", threads " << threads;
          EXPECT_EQ(paged.lse, lse);
        }
        // The last sequence alone: fewer items, so other divisions.
        Call alone = paged;
        std::fill(alone.o.bytes.begin(), alone.o.bytes.end(), char(0xff));
        alone.cache.k = alone.k_cache.view<void*>();
        alone.cache.v = alone.v_cache.view<void*>();
        alone.p.batch = 1;
        alone.cache.block_table = alone.table.data() + 2 * alone.cache.table_stride;
        CacheTensors tensors = {alone.q.view<const void*>(), alone.o.view<void*>(), alone.lse.data()};
        tensors.q.data = alone.q.at(2, 0, 0, 0);
        tensors.o.data = alone.o.at(2, 0, 0, 0);
        ASSERT_TRUE(attend_cache(context, alone.p, alone.cache, {}, tensors).ok());
        const int64_t first = alone.o.strides[0] * 2 * bytes_of(dtype);
        EXPECT_TRUE(std::equal(alone.o.bytes.begin() + first, alone.o.bytes.end(), o.bytes.begin() + first))
            << "alone";
      }
    }
  }
}

TEST_F(CacheViewTest, VariableQueryLengthsReadABlockTable) {
  Shape shape;
  shape.dtype = DType::bf16;
  shape.seqlen_q = 6;
  shape.old_keys = {90, 20, 300};
  shape.block_size = 32;
  Call call(shape);
  ASSERT_TRUE(call.run(context).ok());
  // Rows 2, 0 and 5 of the three sequences: their last ones.
  const int32_t cu[] = {0, 2, 2, 7};
  Tensor q(shape.dtype, 1, 7, 2, 16), o(shape.dtype, 1, 7, 2, 16);
  std::vector<float> lse(14, NAN);
  int64_t row = 0;
  const auto each = [&](auto&& fn) {
    row = 0;
    for (const auto& [b, count] : {std::pair<int64_t, int64_t>{0, 2}, {2, 5}})
      for (int64_t r = 6 - count; r < 6; ++r, ++row) fn(b, r);
  };
  each([&](int64_t b, int64_t r) {
    for (int64_t h = 0; h < 2; ++h) std::memcpy(q.at(0, row, h, 0), call.q.at(b, r, h, 0), 32);
  });
  AttentionProblem p = call.p;
  p.cu_seqlens_q = cu;
  ASSERT_TRUE(
      attend_cache(context, p, call.cache, {}, {q.view<const void*>(), o.view<void*>(), lse.data()}).ok());
  each([&](int64_t b, int64_t r) {
    for (int64_t h = 0; h < 2; ++h) {
      EXPECT_EQ(std::memcmp(o.at(0, row, h, 0), call.o.at(b, r, h, 0), 32), 0);
      EXPECT_EQ(lse[size_t(h * 7 + row)], call.lse[size_t((b * 2 + h) * 6 + r)]);
    }
  });
}

TEST_F(CacheViewTest, HeadsMayLieOutsideTheRows) {
  Shape shape;
  shape.kv_heads = 2;
  shape.old_keys = {300, 170};
  Call call(shape);
  ASSERT_TRUE(call.run(context).ok());
  // [block, kv head, slot, d]
  const int64_t slots = Call::slots(shape), blocks = call.cache.num_blocks;
  std::vector<float> k(size_t(blocks * 2 * slots * 16), NAN), v = k;
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t j = 0; j < shape.old_keys[size_t(b)]; ++j) {
      for (int64_t h = 0; h < 2; ++h) {
        const size_t at = size_t(((call.block(b, j) * 2 + h) * slots + j) * 16);
        std::memcpy(&k[at], call.k_cache.at(call.block(b, j), j, h, 0), 64);
        std::memcpy(&v[at], call.v_cache.at(call.block(b, j), j, h, 0), 64);
      }
    }
  }
  call.cache.k = {k.data(), 2 * slots * 16, 16, slots * 16};
  call.cache.v = {v.data(), 2 * slots * 16, 16, slots * 16};
  const std::vector<char> want = call.o.bytes;
  std::fill(call.o.bytes.begin(), call.o.bytes.end(), char(0xff));
  ASSERT_TRUE(call.run(context).ok());
  EXPECT_EQ(call.o.bytes, want);
}

TEST_F(CacheViewTest, AppendWritesItsSlotsAndNoOthers) {
  RopeConfig config;
  config.rotary_dim = 16;
  const auto rope = RopeTable::create(config, 200);
  ASSERT_TRUE(rope.ok());
  const Rotary turn = rotary(*rope);
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) {
    Shape shape;
    shape.dtype = dtype;
    shape.old_keys = {62, 5};
    shape.added = 4;
    shape.seqlen_q = 4;
    shape.block_size = 64;
    Call call(shape);
    const Tensor k_before = call.k_cache, v_before = call.v_cache;
    call.append.rotary = &turn;
    ASSERT_TRUE(call.run(context).ok());
    Tensor k_want = k_before, v_want = v_before, rotated = call.k_new;
    RopeProblem p;
    p.batch = 2;
    p.seqlen = 4;
    p.heads = 1;
    p.head_dim = 16;
    p.dtype = dtype;
    p.rotary = turn;
    p.offsets = shape.old_keys.data();
    ASSERT_TRUE(rope_forward(context, p, call.k_new.view<const void*>(), rotated.view<void*>()).ok());
    for (int64_t b = 0; b < 2; ++b) {
      for (int64_t t = 0; t < 4; ++t) {
        const int64_t key = shape.old_keys[size_t(b)] + t, bytes = 16 * bytes_of(dtype);
        std::memcpy(k_want.at(call.block(b, key), key % 64, 0, 0), rotated.at(b, t, 0, 0), size_t(bytes));
        std::memcpy(v_want.at(call.block(b, key), key % 64, 0, 0), call.v_new.at(b, t, 0, 0), size_t(bytes));
      }
    }
    EXPECT_EQ(call.k_cache.bytes, k_want.bytes);
    EXPECT_EQ(call.v_cache.bytes, v_want.bytes);
  }
}

TEST_F(CacheViewTest, RefusesBeforeItWrites) {
  Shape shape;
  shape.old_keys = {62, 5};
  shape.added = 4;
  shape.seqlen_q = 2;
  shape.block_size = 32;
  RopeConfig config;
  config.rotary_dim = 8;
  const auto rope = RopeTable::create(config, 60);
  ASSERT_TRUE(rope.ok());
  const Rotary turn = rotary(*rope);
  const auto field = [&](auto&& change) {
    Call call(shape);
    change(call);
    const Tensor k = call.k_cache, o = call.o;
    const Status status = call.run(context);
    EXPECT_TRUE(status.ok() || (call.k_cache.bytes == k.bytes && call.o.bytes == o.bytes));
    return status.field();
  };
  const int32_t bad_lengths[] = {62, 1000}, negative[] = {62, -1}, pad[] = {0, 10}, falling[] = {0, 3, 2};
  EXPECT_EQ(field([](Call& c) { c.table[0] = -1; }), "block_table");
  EXPECT_EQ(field([](Call& c) { c.table[1] = 1 << 20; }), "block_table");
  EXPECT_EQ(field([](Call& c) { c.table[2] = c.table[size_t(c.cache.table_stride)]; }), "")
      << "the two append to different slots of it";
  EXPECT_EQ(field([](Call& c) {
              c.table[2] = c.table[size_t(c.cache.table_stride)];
              c.s.old_keys[1] = 1;
            }),
            "block_table");
  EXPECT_EQ(field([&](Call& c) { c.cache.seqlens = bad_lengths; }), "cache_seqlens");
  EXPECT_EQ(field([&](Call& c) { c.cache.seqlens = negative; }), "cache_seqlens");
  EXPECT_EQ(field([](Call& c) { c.cache.max_blocks = 2; }), "cache_seqlens");
  EXPECT_EQ(field([&](Call& c) { c.p.leftpad_k = pad; }), "leftpad_k");
  EXPECT_EQ(field([&](Call& c) { c.p.cu_seqlens_q = falling; }), "cu_seqlens_q");
  EXPECT_EQ(field([&](Call& c) { c.p.cu_seqlens_k = falling; }), "cu_seqlens_k");
  EXPECT_EQ(field([&](Call& c) { c.p.seqused_k = pad; }), "seqused_k");
  EXPECT_EQ(field([&](Call& c) { c.p.mask.tensor.kind = MaskKind::boolean; }), "mask");
  EXPECT_EQ(field([&](Call& c) { c.p.dropout.p = 0.5f; }), "dropout");
  EXPECT_EQ(field([&](Call& c) { c.p.dtype = DType::i8; }), "dtype");
  EXPECT_EQ(field([&](Call& c) { c.p.scale = NAN; }), "scale");
  EXPECT_EQ(field([&](Call& c) { c.cache.cache_batch_idx = pad; }), "cache_batch_idx");
  EXPECT_EQ(field([](Call& c) { c.cache.block_size = 0; }), "block_size");
  EXPECT_EQ(field([](Call& c) { c.cache.k.data = nullptr; }), "k_cache");
  EXPECT_EQ(field([](Call& c) { c.append.v.data = nullptr; }), "v");
  EXPECT_EQ(field([](Call& c) { c.append.seqlen = -1; }), "append.seqlen");
  EXPECT_EQ(field([&](Call& c) { c.append.rotary = &turn; }), "rotary.positions");
  EXPECT_EQ(field([&](Call& c) {
              c.append.rotary = &turn;
              c.append.seqlen = 0;
            }),
            "rotary");
  shape.block_size = 0;
  EXPECT_EQ(field([](Call& c) { c.batch_idx[1] = 5000; }), "cache_batch_idx");
  EXPECT_EQ(field([](Call& c) { c.batch_idx[1] = -1; }), "cache_batch_idx");
  EXPECT_EQ(field([](Call& c) { c.batch_idx[1] = c.batch_idx[0]; }), "") << "other slots of one row";
  EXPECT_EQ(field([](Call& c) {
              c.batch_idx[1] = c.batch_idx[0];
              c.s.old_keys[1] = 60;
            }),
            "cache_batch_idx");
  EXPECT_EQ(field([](Call& c) {
              c.cache.cache_batch_idx = nullptr;
              c.cache.num_blocks = 1;
            }),
            "batch");
}

TEST_F(CacheViewTest, EmptyCallsDoNothing) {
  AttentionProblem p;
  p.heads = p.kv_heads = 1;
  p.head_dim = p.v_head_dim = 8;
  p.scale = 1;
  p.batch = 0;
  CacheView cache;
  cache.block_size = 16;
  EXPECT_TRUE(attend_cache(context, p, cache, {}, {}).ok());
}

}  // namespace
}  // namespace tessera::attention
