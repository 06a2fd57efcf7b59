// Every bad problem and tensor gives a Status that names the argument, its value and what is allowed, and
// nothing outside the buffers is read.
#include <functional>

#include "tests/attention/dense_fixture.h"

namespace tessera::attention {
namespace {

constexpr int64_t kHuge = int64_t{1} << 62;

// What the table's rows point at.
struct Data {
  int32_t lengths[3] = {0, 3, 7}, falling[3] = {0, 5, 4}, late[3] = {1, 3, 7}, long_one[3] = {0, 7, 9};
  int32_t used[2] = {7, 8}, negative[2] = {0, -1}, depth[2 * 4] = {0, 1, 2, 4, 0, 0, 0, 0};
  uint64_t bits[2 * 4] = {};
  float slopes[4] = {1, 1, NAN, 1}, good_slopes[8] = {};
  uint8_t mask[8] = {};
  alignas(4) char floats[64] = {};
};

struct Bad {
  const char* field;
  const char* message;  // a part of it
  std::function<void(AttentionProblem&, Data&)> spoil;
};

AttentionProblem good() {
  AttentionProblem p;
  p.batch = 2;
  p.seqlen_q = 4;
  p.seqlen_k = 7;
  p.heads = 4;
  p.kv_heads = 2;
  p.head_dim = p.v_head_dim = 16;
  p.scale = 0.25f;
  return p;
}

const Bad kTable[] = {
    {"struct_size", "struct_size=4", [](auto& p, auto&) { p.struct_size = 4; }},
    {"batch", "batch=-1 must be from 0 to 2^30", [](auto& p, auto&) { p.batch = -1; }},
    {"batch", "overflows 64 bits",
     [](auto& p, auto&) { p.batch = p.seqlen_q = p.seqlen_k = int64_t{1} << 30; }},
    {"seqlen_q", "seqlen_q=-2", [](auto& p, auto&) { p.seqlen_q = -2; }},
    {"seqlen_k", "seqlen_k=1099511627776", [](auto& p, auto&) { p.seqlen_k = int64_t{1} << 40; }},
    {"heads", "heads=0 must be at least 1", [](auto& p, auto&) { p.heads = 0; }},
    {"heads", "heads=-4", [](auto& p, auto&) { p.heads = -4; }},
    {"kv_heads", "kv_heads=0", [](auto& p, auto&) { p.kv_heads = 0; }},
    {"heads", "heads=5 must be a multiple of kv_heads=2", [](auto& p, auto&) { p.heads = 5; }},
    {"head_dim", "head_dim=12 must be a multiple of 8 from 8 to 256",
     [](auto& p, auto&) { p.head_dim = 12; }},
    {"head_dim", "head_dim=264", [](auto& p, auto&) { p.head_dim = 264; }},
    {"v_head_dim", "v_head_dim=0", [](auto& p, auto&) { p.v_head_dim = 0; }},
    {"dtype", "dtype=i8 is not supported; use f32, f16 or bf16", [](auto& p, auto&) { p.dtype = DType::i8; }},
    {"scale", "scale=nan must be finite", [](auto& p, auto&) { p.scale = NAN; }},
    {"scale", "scale=inf", [](auto& p, auto&) { p.scale = INFINITY; }},
    {"softcap", "softcap=-1", [](auto& p, auto&) { p.softcap = -1; }},
    {"softcap", "softcap=nan", [](auto& p, auto&) { p.softcap = NAN; }},
    {"window_left", "window_left=-2 must be at least -1", [](auto& p, auto&) { p.mask.window_left = -2; }},
    {"window_right", "window_right=-9", [](auto& p, auto&) { p.mask.window_right = -9; }},
    {"alibi_slopes", "batch 0 and head 2 is nan", [](auto& p, auto& d) { p.alibi_slopes = d.slopes; }},
    {"alibi_batch_stride", "alibi_batch_stride=4", [](auto& p, auto&) { p.alibi_batch_stride = 4; }},
    {"alibi_batch_stride", "alibi_batch_stride=-1",
     [](auto& p, auto& d) { p.alibi_slopes = d.good_slopes, p.alibi_batch_stride = -1; }},
    {"alibi_batch_stride", "alibi_batch_stride=3",
     [](auto& p, auto& d) { p.alibi_slopes = d.good_slopes, p.alibi_batch_stride = 3; }},
    {"sinks", "pass null", [](auto& p, auto& d) { p.sinks = d.floats; }},
    {"bias", "pass null", [](auto& p, auto& d) { p.bias = d.floats; }},
    {"cu_seqlens_k", "both be given or both be null", [](auto& p, auto& d) { p.cu_seqlens_q = d.lengths; }},
    {"cu_seqlens_q", "both be given or both be null", [](auto& p, auto& d) { p.cu_seqlens_k = d.lengths; }},
    {"cu_seqlens_k", "cu_seqlens_k[2]=4 must be at least cu_seqlens_k[1]=5",
     [](auto& p, auto& d) { p.cu_seqlens_q = d.lengths, p.cu_seqlens_k = d.falling; }},
    {"total_q", "total_q=8 must be 0 or the last entry of cu_seqlens_q, 7",
     [](auto& p, auto& d) { p.cu_seqlens_q = p.cu_seqlens_k = d.lengths, p.total_q = 8; }},
    {"total_k", "total_k=-1 must be from 0",
     [](auto& p, auto& d) { p.cu_seqlens_q = p.cu_seqlens_k = d.lengths, p.total_k = -1; }},
    {"total_k", "total_k=7 must be 0 without cu_seqlens", [](auto& p, auto&) { p.total_k = 7; }},
    {"cu_seqlens_q", "cu_seqlens_q[0]=1 must be 0",
     [](auto& p, auto& d) { p.cu_seqlens_q = d.late, p.cu_seqlens_k = d.lengths; }},
    {"cu_seqlens_q", "sequence 0 has length 7, which exceeds seqlen_q=4",
     [](auto& p, auto& d) { p.cu_seqlens_q = d.long_one, p.cu_seqlens_k = d.lengths; }},
    {"seqused_k", "seqused_k[1]=8 must be from 0 to the batch's length 7",
     [](auto& p, auto& d) { p.seqused_k = d.used; }},
    {"seqused_k", "seqused_k[0]=7 must be from 0 to the batch's length 3",
     [](auto& p, auto& d) { p.cu_seqlens_q = p.cu_seqlens_k = d.lengths, p.seqused_k = d.used; }},
    {"leftpad_k", "leftpad_k[1]=-1", [](auto& p, auto& d) { p.leftpad_k = d.negative; }},
    {"mask.kind", "mask.kind=7 must be none, boolean or additive",
     [](auto& p, auto& d) {
       p.mask.tensor = {MaskKind(7), DType::f32, d.mask};
     }},
    {"mask.dtype", "mask.dtype=i32",
     [](auto& p, auto& d) {
       p.mask.tensor = {MaskKind::additive, DType::i32, d.floats};
     }},
    {"mask.data", "mask.data is null", [](auto& p, auto&) { p.mask.tensor.kind = MaskKind::boolean; }},
    {"mask.data", "aligned to its 4 byte",
     [](auto& p, auto& d) {
       p.mask.tensor = {MaskKind::additive, DType::f32, d.floats + 1};
     }},
    {"mask.key_stride", "mask.key_stride=-1 must be at least 0",
     [](auto& p, auto& d) { p.mask.tensor = {MaskKind::boolean, DType::f32, d.mask, 0, 0, 0, -1}; }},
    {"mask.batch_stride", "overflows 64 bits",
     [](auto& p, auto& d) { p.mask.tensor = {MaskKind::boolean, DType::f32, d.mask, 0, kHuge, 0, 1}; }},
    {"ancestors.tree_keys", "tree_keys=4097 must be from 0 (off) to 4096",
     [](auto& p, auto&) { p.mask.ancestors.tree_keys = 4097; }},
    {"ancestors.tree_keys", "tree_keys=-1", [](auto& p, auto&) { p.mask.ancestors.tree_keys = -1; }},
    {"ancestors.bits", "ancestors.bits is null", [](auto& p, auto&) { p.mask.ancestors.tree_keys = 4; }},
    {"ancestors.tree_keys", "tree_keys=3 must be at least the 4 query rows",
     [](auto& p, auto& d) {
       p.mask.ancestors = {3, d.bits};
     }},
    {"ancestors.tree_keys", "at most the 7 keys of batch 0",
     [](auto& p, auto& d) {
       p.mask.ancestors = {8, d.bits};
     }},
    {"ancestors.depth", "ancestors.depth[3]=4 must be from 0 to tree_keys - 1 = 3",
     [](auto& p, auto& d) {
       p.mask.ancestors = {4, d.bits, d.depth};
     }},
    {"dropout.p", "dropout.p=1 must be at least 0 and below 1", [](auto& p, auto&) { p.dropout.p = 1; }},
    {"dropout.p", "dropout.p=-0.5", [](auto& p, auto&) { p.dropout.p = -0.5f; }},
    {"dropout.p", "dropout.p=nan", [](auto& p, auto&) { p.dropout.p = NAN; }},
    {"dropout.col0", "dropout.col0=8 must be a multiple of 16",
     [](auto& p, auto&) { p.dropout.p = 0.5f, p.dropout.col0 = 8; }},
    {"dropout.row0", "dropout.row0=-1", [](auto& p, auto&) { p.dropout.p = 0.5f, p.dropout.row0 = -1; }},
    {"dropout.batch0", "counters fit 32 bits",
     [](auto& p, auto&) { p.dropout.p = 0.5f, p.dropout.batch0 = int64_t{1} << 32; }},
};

TEST(BadInput, ValidateNamesTheFieldItsValueAndWhatIsAllowed) {
  Data data;
  ASSERT_TRUE(validate(good()).ok()) << validate(good()).message();
  for (const Bad& bad : kTable) {
    AttentionProblem p = good();
    bad.spoil(p, data);
    const Status status = validate(p);
    EXPECT_FALSE(status.ok()) << bad.message;
    EXPECT_EQ(status.field(), bad.field) << status.message();
    EXPECT_NE(status.message().find(bad.message), std::string::npos)
        << '"' << status.message() << "\" lacks \"" << bad.message << '"';
    EXPECT_EQ(status.message().find('\n'), std::string::npos);
  }
}

TEST(BadInput, ForwardRefusesWhatValidateRefuses) {
  ThreadPool pool{ThreadPoolOptions{.threads = 1}};
  Context context{pool};
  Data data;
  for (const Bad& bad : kTable) {
    AttentionProblem p = good();
    bad.spoil(p, data);
    EXPECT_EQ(forward(context, p, {}).field(), bad.field);
  }
}

class BadTensorTest : public ::testing::Test {
 protected:
  ThreadPool pool{ThreadPoolOptions{.threads = 1}};
  Context context{pool};
  DenseCase c{DType::f32, 2, 4, 7, 2, 16, 5};
  BadTensorTest() { c.fill(); }

  Status run(const std::function<void(ForwardTensors&)>& spoil, const Tuning& tuning = {}) {
    ForwardTensors t = c.tensors();
    spoil(t);
    return forward(context, c.p, t, tuning);
  }
};

TEST_F(BadTensorTest, NullPointers) {
  EXPECT_TRUE(run([](ForwardTensors&) {}).ok());
  EXPECT_TRUE(run([](ForwardTensors& t) { t.lse = nullptr; }).ok());
  EXPECT_EQ(run([](ForwardTensors& t) { t.q.data = nullptr; }).message(),
            "q is null but has 2 x 4 x 2 x 16 elements");
  EXPECT_EQ(run([](ForwardTensors& t) { t.k.data = nullptr; }).field(), "k");
  EXPECT_EQ(run([](ForwardTensors& t) { t.v.data = nullptr; }).field(), "v");
  EXPECT_EQ(run([](ForwardTensors& t) { t.o.data = nullptr; }).field(), "o");
}

TEST_F(BadTensorTest, MisalignedPointers) {
  EXPECT_EQ(run([](ForwardTensors& t) { t.k.data = static_cast<const char*>(t.k.data) + 2; }).message(),
            "k must be aligned to its 4 byte elements");
}

TEST_F(BadTensorTest, Strides) {
  EXPECT_EQ(run([](ForwardTensors& t) { t.q.row_stride = -8; }).message(),
            "q.row_stride=-8 must be at least 0");
  EXPECT_EQ(run([](ForwardTensors& t) { t.o.head_stride = 0; }).message(),
            "o.head_stride=0 must be at least 1: the tensor is written");
  EXPECT_EQ(run([](ForwardTensors& t) { t.v.batch_stride = kHuge; }).field(), "v");
  // A stride of 0 broadcasts what is read.
  EXPECT_TRUE(run([](ForwardTensors& t) { t.k.head_stride = 0; }).ok());
}

TEST_F(BadTensorTest, Schedule) {
  EXPECT_EQ(run([](ForwardTensors&) {}, {Schedule(9)}).field(), "schedule");
}

TEST_F(BadTensorTest, MoreRowsThanPlansCount) {
  c.p.batch = 1 << 15;
  c.p.seqlen_q = 1 << 16;
  EXPECT_EQ(run([](ForwardTensors& t) { t.q.batch_stride = t.o.batch_stride = 0; }).field(), "batch");
}

TEST(Empty, BatchesRowsAndKeysOfNone) {
  ThreadPool pool{ThreadPoolOptions{.threads = 2}};
  Context context{pool};
  for (const auto& [batch, rows, keys] : {std::tuple{0, 4, 7}, {2, 0, 7}, {2, 4, 0}, {2, 0, 0}}) {
    DenseCase c(DType::bf16, batch, rows, keys, 2, 16, 5);
    c.fill();
    EXPECT_TRUE(c.run(context).ok());
    for (const float value : c.o.values()) EXPECT_EQ(value, 0.0f);
    for (const float value : c.lse) EXPECT_EQ(value, -INFINITY);
    // Tensors without elements need no pointers.
    if (batch == 0) {
      EXPECT_TRUE(forward(context, c.p, {}).ok());
    }
  }
}

}  // namespace
}  // namespace tessera::attention
