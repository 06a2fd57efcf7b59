// merge_states: attention over parts of the keys joins to attention over all of them.
#include "tessera/merge.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>

#include "core/context.h"

namespace tessera::attention {
namespace {

constexpr uint32_t kSeed = 29;

// Scores and values of rows over keys in double, and the states of any range of the keys.
struct Rows {
  int64_t rows, keys, dim;
  std::vector<double> scores, values;

  Rows(int64_t rows_in, int64_t keys_in, int64_t dim_in, double spread)
      : rows(rows_in),
        keys(keys_in),
        dim(dim_in),
        scores(size_t(rows * keys)),
        values(size_t(rows * keys * dim)) {
    std::printf("seed: %u\n", kSeed);
    std::mt19937 random(kSeed);
    std::normal_distribution<double> normal;
    for (double& score : scores) score = spread * normal(random);
    for (double& value : values) value = normal(random);
  }

  // Over keys [first, end): o [rows][dim] and lse [rows].
  void state(int64_t first, int64_t end, std::vector<double>& o, std::vector<double>& lse) const {
    o.assign(size_t(rows * dim), 0.0);
    lse.assign(size_t(rows), -INFINITY);
    for (int64_t r = 0; r < rows; ++r) {
      double most = -INFINITY, sum = 0;
      for (int64_t j = first; j < end; ++j) most = std::max(most, scores[size_t(r * keys + j)]);
      if (first == end) continue;
      for (int64_t j = first; j < end; ++j) {
        const double p = std::exp(scores[size_t(r * keys + j)] - most);
        sum += p;
        for (int64_t d = 0; d < dim; ++d)
          o[size_t(r * dim + d)] += p * values[size_t((r * keys + j) * dim + d)];
      }
      for (int64_t d = 0; d < dim; ++d) o[size_t(r * dim + d)] /= sum;
      lse[size_t(r)] = most + std::log(sum);
    }
  }
};

struct Part {
  std::vector<float> o, lse;
  AttentionPart view(int64_t dim) const {
    return {contiguous<const void*>(o.data(), static_cast<int64_t>(lse.size()), 1, dim),
            {lse.data(), 0, 1, 0}};
  }
};

Part part_of(const Rows& rows, int64_t first, int64_t end) {
  std::vector<double> o, lse;
  rows.state(first, end, o, lse);
  return {{o.begin(), o.end()}, {lse.begin(), lse.end()}};
}

class Merge : public ::testing::Test {
 protected:
  static MergeProblem problem_of(const Rows& rows) {
    MergeProblem p;
    p.seqlen = rows.rows;
    p.heads = 1;
    p.head_dim = static_cast<int>(rows.dim);
    return p;
  }
  Part merge(const MergeProblem& p, const std::vector<Part>& parts) {
    std::vector<AttentionPart> views;
    for (const Part& part : parts) views.push_back(part.view(p.head_dim));
    Part out{std::vector<float>(size_t(p.seqlen * p.head_dim), NAN),
             std::vector<float>(size_t(p.seqlen), NAN)};
    const Status status =
        merge_states(context, p, views, contiguous<void*>(out.o.data(), p.seqlen, 1, p.head_dim),
                     {out.lse.data(), 0, 1, 0});
    EXPECT_TRUE(status.ok()) << status.message();
    return out;
  }
  ThreadPool pool{{.threads = 2}};
  Context context{pool};
};

TEST_F(Merge, AnyCutOfTheKeysGivesTheWhole) {
  const Rows rows(33, 20, 24, 8.0);
  std::vector<double> o, lse;
  rows.state(0, rows.keys, o, lse);
  for (const std::vector<int64_t>& cuts : std::vector<std::vector<int64_t>>{
           {0, 20}, {0, 1, 20}, {0, 7, 20}, {0, 7, 7, 12, 20}, {0, 3, 6, 9, 12, 15, 20}}) {
    std::vector<Part> parts;
    for (size_t i = 0; i + 1 < cuts.size(); ++i) parts.push_back(part_of(rows, cuts[i], cuts[i + 1]));
    const Part got = merge(problem_of(rows), parts);
    for (size_t i = 0; i < o.size(); ++i) {
      // A part's o and lse are rounded to f32: lse of size up to 32 moves a weight by 32 * 2^-24.
      EXPECT_TRUE(std::abs(got.o[i] - o[i]) <= 64 * 0x1p-24) << cuts.size() << " cuts, element " << i;
    }
    for (size_t r = 0; r < lse.size(); ++r) {
      EXPECT_TRUE(std::abs(got.lse[r] - lse[r]) <= 2 * 0x1p-24 * (1 + std::abs(lse[r])));
    }
  }
}

TEST_F(Merge, IsAssociativeAndCommutativeWithinRounding) {
  const Rows rows(17, 30, 16, 3.0);
  const MergeProblem p = problem_of(rows);
  const Part a = part_of(rows, 0, 4), b = part_of(rows, 4, 19), c = part_of(rows, 19, 30);
  const Part left = merge(p, {merge(p, {a, b}), c}), right = merge(p, {a, merge(p, {b, c})}),
             once = merge(p, {a, b, c}), turned = merge(p, {c, a, b});
  for (size_t i = 0; i < once.o.size(); ++i) {
    EXPECT_TRUE(std::abs(left.o[i] - right.o[i]) <= 16 * 0x1p-24);
    EXPECT_TRUE(std::abs(left.o[i] - once.o[i]) <= 16 * 0x1p-24);
    EXPECT_TRUE(std::abs(turned.o[i] - once.o[i]) <= 16 * 0x1p-24);
  }
}

TEST_F(Merge, AnEmptyPartChangesNoBitAndIsNotRead) {
  const Rows rows(9, 6, 8, 2.0);
  const MergeProblem p = problem_of(rows);
  const Part whole = part_of(rows, 0, 6);
  for (const float mark : {-INFINITY, INFINITY}) {
    const Part empty{std::vector<float>(whole.o.size(), NAN), std::vector<float>(whole.lse.size(), mark)};
    for (const Part& got : {merge(p, {whole, empty}), merge(p, {empty, whole}), merge(p, {whole})}) {
      EXPECT_EQ(got.o, whole.o);
      EXPECT_EQ(got.lse, whole.lse);
    }
    const Part none = merge(p, {empty, empty});
    EXPECT_EQ(none.o, std::vector<float>(whole.o.size(), 0.0f));
    EXPECT_EQ(none.lse, std::vector<float>(whole.lse.size(), -INFINITY));
  }
  EXPECT_EQ(merge(p, {}).lse, std::vector<float>(whole.lse.size(), -INFINITY));
}

TEST_F(Merge, ANaNComesThrough) {
  const Rows rows(3, 6, 8, 2.0);
  const Part a = part_of(rows, 0, 3);
  Part b = part_of(rows, 3, 6);
  b.lse[1] = NAN;
  for (const Part& got : {merge(problem_of(rows), {a, b}), merge(problem_of(rows), {b, a})}) {
    EXPECT_TRUE(std::isnan(got.lse[1]) && std::isnan(got.o[8]) && std::isnan(got.o[15]));
    EXPECT_FALSE(std::isnan(got.lse[0]) || std::isnan(got.o[7]) || std::isnan(got.o[16]));
  }
}

TEST_F(Merge, HugeLsesNeitherOverflowNorLoseTheSmallerPart) {
  const Part a{{1.0f}, {3e38f}}, b{{3.0f}, {3e38f}}, small{{5.0f}, {-3e38f}};
  MergeProblem p;
  p.seqlen = p.heads = p.head_dim = 1;
  EXPECT_EQ(merge(p, {a, b}).o[0], 2.0f);
  EXPECT_EQ(merge(p, {a, small}).o[0], 1.0f);
  EXPECT_EQ(merge(p, {small, small}).o[0], 5.0f);
}

TEST_F(Merge, TakesEveryDtypeWithStridesAndInPlace) {
  const Rows rows(6, 12, 20, 2.0);  // as 2 batches of 3 rows
  const Part a = part_of(rows, 0, 5), b = part_of(rows, 5, 12);
  const Part want = merge(problem_of(rows), {a, b});
  for (const DType dtype : {DType::f16, DType::bf16}) {
    const auto round = [&](float x) { return dtype == DType::f16 ? f32_to_f16(x) : f32_to_bf16(x); };
    const auto wide = [&](uint16_t x) { return dtype == DType::f16 ? f16_to_f32(x) : bf16_to_f32(x); };
    const size_t row_stride = 23, batch_stride = 3 * row_stride + 4;
    std::vector<uint16_t> o_a(2 * batch_stride, 0x7fff), o_b = o_a;
    for (size_t r = 0; r < 6; ++r) {
      for (size_t d = 0; d < 20; ++d) {
        o_a[r / 3 * batch_stride + r % 3 * row_stride + d] = round(a.o[r * 20 + d]);
        o_b[r / 3 * batch_stride + r % 3 * row_stride + d] = round(b.o[r * 20 + d]);
      }
    }
    MergeProblem p = problem_of(rows);
    p.batch = 2;
    p.seqlen = 3;
    p.dtype = p.out_dtype = dtype;
    const AttentionPart part_a{{o_a.data(), int64_t(batch_stride), int64_t(row_stride), 0},
                               contiguous_lse<const float*>(a.lse.data(), 3, 1)};
    const AttentionPart part_b{{o_b.data(), int64_t(batch_stride), int64_t(row_stride), 0},
                               contiguous_lse<const float*>(b.lse.data(), 3, 1)};
    ASSERT_TRUE(merge_states(context, p, part_a, part_b,
                             {o_a.data(), int64_t(batch_stride), int64_t(row_stride), 0}, {})
                    .ok());
    for (size_t r = 0; r < 6; ++r) {
      for (size_t d = 0; d < 20; ++d) {
        // Three roundings: of a, of b and of the result.
        const double size =
            std::abs(a.o[r * 20 + d]) + std::abs(b.o[r * 20 + d]) + std::abs(want.o[r * 20 + d]);
        const double limit = size * (dtype == DType::f16 ? 0x1p-11 : 0x1p-8);
        EXPECT_TRUE(std::abs(wide(o_a[r / 3 * batch_stride + r % 3 * row_stride + d]) - want.o[r * 20 + d]) <=
                    limit);
      }
      EXPECT_EQ(o_a[r / 3 * batch_stride + r % 3 * row_stride + 20], 0x7fff) << "between the rows";
    }
  }
}

TEST_F(Merge, NamesTheBadField) {
  const Rows rows(2, 4, 8, 1.0);
  const Part a = part_of(rows, 0, 4);
  float out[16];
  const auto field = [&](auto&& change) {
    MergeProblem p = problem_of(rows);
    change(p);
    return merge_states(context, p, a.view(8), a.view(8), contiguous<void*>(out, 2, 1, 8), {}).field();
  };
  EXPECT_EQ(field([](MergeProblem&) {}), "");
  EXPECT_EQ(field([](MergeProblem& p) { p.batch = -1; }), "batch");
  EXPECT_EQ(field([](MergeProblem& p) { p.seqlen = -1; }), "seqlen");
  EXPECT_EQ(field([](MergeProblem& p) { p.heads = 0; }), "heads");
  EXPECT_EQ(field([](MergeProblem& p) { p.head_dim = 0; }), "head_dim");
  EXPECT_EQ(field([](MergeProblem& p) { p.dtype = DType::i8; }), "dtype");
  EXPECT_EQ(field([](MergeProblem& p) { p.out_dtype = DType::q4_0; }), "out_dtype");
  EXPECT_EQ(field([](MergeProblem& p) { p.struct_size = 1; }), "struct_size");
  const MergeProblem p = problem_of(rows);
  EXPECT_EQ(merge_states(context, p, a.view(8), {}, contiguous<void*>(out, 2, 1, 8), {}).field(), "o");
  EXPECT_EQ(merge_states(context, p, a.view(8), a.view(8), {}, {}).field(), "o");
  EXPECT_EQ(
      merge_states(context, p, {a.view(8).o, {}}, a.view(8), contiguous<void*>(out, 2, 1, 8), {}).field(),
      "lse");
}

}  // namespace
}  // namespace tessera::attention
