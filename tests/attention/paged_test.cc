// Paged attention against the double-precision reference.
#include "tests/attention/paged_fixture.h"

namespace tessera::attention {
namespace {

// The naive form in the storage's dtype, f32 arithmetic: what the kernels' error is measured against. bf16
// rounds q, k, v and p where the kernel of this ISA does.
std::vector<float> naive_rows(const AttentionProblem& p, const Sequence& s, int first, int rows) {
  const bool bf16 = p.dtype == DType::bf16;
  const bool pairs = bf16 && *simd::requested_isa() >= simd::Isa::avx512bf16;
  const auto stored = [&](float x) { return bf16 ? bf16_to_f32(f32_to_bf16(x)) : x; };
  const auto rounded = [&](float x) { return pairs ? bf16_to_f32(f32_to_bf16(x)) : x; };
  std::vector<float> o(size_t(rows) * size_t(p.heads) * size_t(p.v_head_dim));
  const int group = p.heads / p.kv_heads;
  for (int row = 0; row < rows; ++row) {
    const int position = first + row;
    const int from = p.mask.window_left < 0 ? 0 : std::max(0, position - int(p.mask.window_left));
    for (int head = 0; head < p.heads; ++head) {
      const float* q = s.q.data() + (size_t(position) * size_t(p.heads) + size_t(head)) * size_t(p.head_dim);
      std::vector<float> scores;
      float top = -INFINITY, sum = 0;
      for (int key = from; key <= position; ++key) {
        const float* k =
            s.k.data() + (size_t(key) * size_t(p.kv_heads) + size_t(head / group)) * size_t(p.head_dim);
        float score = 0;
        for (int d = 0; d < p.head_dim; ++d) score += rounded(q[d]) * stored(k[d]);
        scores.push_back(score * p.scale);
        top = std::max(top, scores.back());
      }
      float* out = o.data() + (size_t(row) * size_t(p.heads) + size_t(head)) * size_t(p.v_head_dim);
      for (int key = from; key <= position; ++key) {
        const float weight = std::exp(scores[size_t(key - from)] - top);
        sum += weight;
        const float* v =
            s.v.data() + (size_t(key) * size_t(p.kv_heads) + size_t(head / group)) * size_t(p.v_head_dim);
        for (int d = 0; d < p.v_head_dim; ++d) out[d] += rounded(weight) * stored(v[d]);
      }
      for (int d = 0; d < p.v_head_dim; ++d) out[d] /= sum;
    }
  }
  return o;
}

template <typename T>
double root_mean_square_error(const std::vector<T>& got, const std::vector<double>& want) {
  double sum = 0;
  for (size_t i = 0; i < want.size(); ++i) sum += (got[i] - want[i]) * (got[i] - want[i]);
  return std::sqrt(sum / double(want.size()));
}

template <typename T>
double largest_error(const std::vector<T>& got, const std::vector<double>& want) {
  double worst = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double error = std::abs(got[i] - want[i]);
    if (!(error <= worst)) worst = error;
  }
  return worst;
}

// Error of the kernel <= 2 x the naive form's, largest and root mean square, over outputs of magnitude
// about 1. Slack: one ulp of f32, for rows of which one key is visible and naive is exact; for the largest
// error where weights are rounded to bf16, half an ulp of the weights (2^-9): the two forms round different
// weights, and the largest of few thousand errors is noise.
void expect_close(const AttentionProblem& p, const Sequence& s, int first, const std::vector<float>& got,
                  int rows) {
  const std::vector<double> want = reference_rows(p, s, first, rows, p.dtype == DType::bf16);
  const std::vector<float> naive = naive_rows(p, s, first, rows);
  const double slack = 2.4e-7;
  const bool rounds = p.dtype == DType::bf16 && *simd::requested_isa() >= simd::Isa::avx512bf16;
  const double largest = 2 * largest_error(naive, want) + slack + (rounds ? 0x1p-9 : 0.0);
  const double mean = 2 * root_mean_square_error(naive, want) + slack;
  EXPECT_TRUE(!(largest_error(got, want) > largest))
      << largest_error(got, want) << " > " << largest << " at position " << first;
  EXPECT_TRUE(root_mean_square_error(got, want) <= mean)
      << root_mean_square_error(got, want) << " > " << mean;
}

class PagedTest : public ::testing::TestWithParam<DType> {
 protected:
  ThreadPool pool{ThreadPoolOptions{.threads = 2}};
  Context context{pool};
};

// Prefill of a whole sequence, then its last row as a decode step, both against the reference.
void check_shape(Context& context, const AttentionProblem& p, int length, uint32_t seed) {
  SCOPED_TRACE("heads " + std::to_string(p.heads) + "/" + std::to_string(p.kv_heads) + " head_dim " +
               std::to_string(p.head_dim) + " window " + std::to_string(p.mask.window_left) + " length " +
               std::to_string(length) + " seed " + std::to_string(seed));
  const Sequence s(p, length, seed);
  Cache cache(p, (length + kKeyTile - 1) / kKeyTile + 2);
  std::vector<int32_t> table;
  cache.append(context, s, 0, length, table);
  const StepRows all[] = {{&s, &table, 0, length}};
  const std::vector<float> prefill = run_step(context, p, cache.storage, all);
  const int tail = std::min(length, 70);
  const size_t width = size_t(p.heads) * size_t(p.v_head_dim);
  expect_close(p, s, length - tail, {prefill.end() - long(size_t(tail) * width), prefill.end()}, tail);
  expect_close(p, s, 0, {prefill.begin(), prefill.begin() + long(width)}, 1);
  const StepRows last[] = {{&s, &table, length - 1, 1}};
  const std::vector<float> decode = run_step(context, p, cache.storage, last);
  EXPECT_EQ(0,
            std::memcmp(decode.data(), prefill.data() + size_t(length - 1) * width, width * sizeof(float)));
}

TEST_P(PagedTest, EveryHeadDimOfEight) {
  for (int head_dim : {8, 16, 24, 40, 64, 72, 80, 96, 104, 128, 192, 200, 256}) {
    check_shape(context, make_problem(GetParam(), 2, 1, head_dim), 130, kSeed + uint32_t(head_dim));
  }
}

TEST_P(PagedTest, EveryGroup) {
  for (int group : {1, 2, 3, 4, 8}) {
    check_shape(context, make_problem(GetParam(), 2 * group, 2, 32), 100, kSeed + uint32_t(group));
  }
  check_shape(context, make_problem(GetParam(), 9, 1, 16), 100, kSeed);
}

TEST_P(PagedTest, EveryLengthRoundATileAndASegment) {
  for (int length : {1, 2, 63, 64, 65, 127, 511, 512, 513, 1100}) {
    check_shape(context, make_problem(GetParam(), 3, 1, 64), length, kSeed + uint32_t(length));
  }
}

TEST_P(PagedTest, SlidingWindows) {
  for (int window : {0, 1, 17, 63, 64, 65, 300, 5000}) {
    check_shape(context, make_problem(GetParam(), 4, 2, 32, window), 700, kSeed + uint32_t(window));
  }
}

TEST_P(PagedTest, ValueWidthMayDiffer) {
  AttentionProblem p = make_problem(GetParam(), 4, 2, 64);
  p.v_head_dim = 40;
  check_shape(context, p, 150, kSeed);
}

INSTANTIATE_TEST_SUITE_P(Dtypes, PagedTest, ::testing::Values(DType::f32, DType::bf16),
                         [](const auto& info) { return std::string(name(info.param)); });

}  // namespace
}  // namespace tessera::attention
