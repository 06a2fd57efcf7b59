// Tensors that end at a page that may not be touched, and others that begin behind one: nothing outside is
// read or written.
#include "tests/attention/dense_fixture.h"
#include "tests/attention/guarded.h"

namespace tessera::attention {
namespace {

constexpr uint32_t kSeed = 555;

// Bytes from the first element to the last one's end.
template <typename Pointer>
size_t span(const Strided<Pointer>& t, int64_t batches, int64_t rows, int64_t heads, int64_t dim,
            DType dtype) {
  const int64_t elements =
      (batches - 1) * t.batch_stride + (rows - 1) * t.row_stride + (heads - 1) * t.head_stride + dim;
  return static_cast<size_t>(elements * info(dtype).block_bytes);
}

class GuardPagesTest : public ::testing::TestWithParam<DType> {
 protected:
  ThreadPool pool{ThreadPoolOptions{.threads = 2}};
  Context context{pool};

  void check(DenseCase& c) {
    c.fill();
    ASSERT_TRUE(c.run(context).ok());
    const std::vector<float> want = c.o.values(), want_lse = c.lse;
    for (const bool at_end : {false, true}) {
      AttentionProblem p = c.p;
      ForwardTensors t = c.tensors();
      const int64_t batches = c.batches(), rows = c.all_rows(), keys = c.all_keys();
      const Guarded q(t.q.data, span(t.q, batches, rows, p.heads, p.head_dim, p.dtype), at_end);
      const Guarded k(t.k.data, span(t.k, batches, keys, p.kv_heads, p.head_dim, p.dtype), at_end);
      const Guarded v(t.v.data, span(t.v, batches, keys, p.kv_heads, p.v_head_dim, p.dtype), at_end);
      const Guarded o(t.o.data, span(t.o, batches, rows, p.heads, p.v_head_dim, p.dtype), at_end);
      const Guarded lse(c.lse.data(), c.lse.size() * sizeof(float), at_end);
      // The mask's storage has room behind its last key: cut it there.
      const MaskTensor& m = p.mask.tensor;
      const int64_t element = m.kind == MaskKind::boolean ? 1 : m.dtype == DType::f32 ? 4 : 2;
      const int64_t last = (p.batch - 1) * m.batch_stride + (p.heads - 1) * m.head_stride +
                           (p.seqlen_q - 1) * m.row_stride + (p.seqlen_k - 1) * m.key_stride;
      const Guarded mask(m.data, m.data == nullptr ? 0 : static_cast<size_t>((last + 1) * element), at_end);
      const Guarded bits(c.bits.data(), c.bits.size() * 8, at_end),
          depth(c.depth.data(), c.depth.size() * 4, at_end);
      const Guarded cu_q(c.cu_q.data(), c.cu_q.size() * 4, at_end),
          cu_k(c.cu_k.data(), c.cu_k.size() * 4, at_end);
      t.q.data = q.data();
      t.k.data = k.data();
      t.v.data = v.data();
      t.o.data = o.data();
      t.lse = reinterpret_cast<float*>(lse.data());
      if (m.data != nullptr) p.mask.tensor.data = mask.data();
      if (!c.bits.empty()) {
        p.mask.ancestors.bits = reinterpret_cast<const uint64_t*>(bits.data());
        p.mask.ancestors.depth = reinterpret_cast<const int32_t*>(depth.data());
      }
      if (!c.cu_q.empty()) {
        p.cu_seqlens_q = reinterpret_cast<const int32_t*>(cu_q.data());
        p.cu_seqlens_k = reinterpret_cast<const int32_t*>(cu_k.data());
      }
      ASSERT_TRUE(forward(context, p, t).ok());
      EXPECT_EQ(std::memcmp(lse.data(), want_lse.data(), lse.bytes()), 0);
      std::memcpy(c.o.view().data, o.data(), o.bytes());
      EXPECT_EQ(c.o.values(), want);
    }
  }
};

TEST_P(GuardPagesTest, PlainTensorsOfEveryTail) {
  for (const auto& [rows, keys, dim] :
       {std::tuple{1, 1, 8}, {7, 65, 24}, {5, 63, 40}, {2, 64, 72}, {66, 129, 8}, {3, 130, 256}}) {
    DenseCase c(GetParam(), 2, rows, keys, 2, dim, kSeed);
    check(c);
  }
}

TEST_P(GuardPagesTest, EveryFeature) {
  for (const Feature feature : kEveryFeature) {
    SCOPED_TRACE(name(feature));
    DenseCase c(GetParam(), 3, 9, 91, 2, 24, kSeed);
    c.add(feature);
    check(c);
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, GuardPagesTest, ::testing::Values(DType::f32, DType::f16, DType::bf16),
                         [](const auto& info) { return std::string(name(info.param)); });

}  // namespace
}  // namespace tessera::attention
