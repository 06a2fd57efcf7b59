// The figures that `tessera explain` prints, on random inputs, against a calculation in double made here.
#include "explain/explain.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "core/context.h"
#include "core/philox.h"
#include "tessera/alibi.h"

namespace tessera::cli {
namespace {

constexpr uint32_t kSeed = 71;

double number(const boost::json::value& value) {
  if (!value.is_string()) return value.to_number<double>();
  return value.as_string() == "inf" ? INFINITY : value.as_string() == "-inf" ? -INFINITY : NAN;
}

TEST(ExplainSoftmax, StepsAndWeightsAreRight) {
  std::printf("seed: %u\n", kSeed);
  std::mt19937 random(kSeed);
  std::uniform_real_distribution<double> uniform(-40, 90);
  for (int round = 0; round < 50; ++round) {
    std::vector<double> x;
    for (int i = 0; i <= round; ++i) x.push_back(static_cast<float>(uniform(random)));
    const auto made = explain_softmax(x);
    ASSERT_TRUE(made.ok()) << made.status().message();
    const boost::json::object& online = made->json.at("online").as_object();
    double m = -INFINITY, l = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const boost::json::object& step = online.at("steps").at(i).as_object();
      const double before = m;
      m = std::max(m, x[i]);
      l = l * std::exp(before - m) + std::exp(x[i] - m);
      // A score of up to 90 in f32, in units of log2, moves an exponent by 90 * 2^-23 or so.
      EXPECT_EQ(number(step.at("m_before")),
                i == 0 ? -INFINITY : number(online.at("steps").at(i - 1).at("m")));
      EXPECT_TRUE(std::abs(number(step.at("m")) - m) <= 2e-5);
      EXPECT_TRUE(std::abs(number(step.at("l")) - l) <= 1e-4 * l) << number(step.at("l")) << " for " << l;
      EXPECT_TRUE(std::abs(number(step.at("factor")) - std::exp(before - m)) <= 1e-4);
    }
    for (size_t i = 0; i < x.size(); ++i) {
      const double want = std::exp(x[i] - m) / l;
      EXPECT_TRUE(std::abs(number(online.at("weights").at(i)) - want) <= 5e-5);
      EXPECT_TRUE(std::abs(number(made->json.at("safe").at("weights").at(i)) - want) <= 1e-12);
    }
    EXPECT_TRUE(number(made->json.at("largest_difference")) <= 5e-5);
  }
}

TEST(ExplainSoftmax, SaysWhereTheNaiveFormOverflows) {
  const auto made = explain_softmax({24, 12, 18});
  ASSERT_TRUE(made.ok());
  const boost::json::object& naive = made->json.at("naive").as_object();
  EXPECT_TRUE(std::abs(number(naive.at("f16").at("overflows_from")) - 11.09) <= 0.005);
  EXPECT_TRUE(std::abs(number(naive.at("bf16").at("overflows_from")) - 88.72) <= 0.005);
  EXPECT_TRUE(std::abs(number(naive.at("f32").at("overflows_from")) - 88.72) <= 0.005);
  EXPECT_TRUE(naive.at("f16").at("overflowed").as_bool());
  EXPECT_FALSE(naive.at("bf16").at("overflowed").as_bool());
  EXPECT_FALSE(naive.at("f32").at("overflowed").as_bool());
  EXPECT_TRUE(std::isnan(number(naive.at("f16").at("weights").at(0))));
  EXPECT_NE(made->text.find("11.09"), std::string::npos);
  // The limits themselves: just below is finite, at it is not.
  for (const char* dtype : {"f16", "f32"}) {
    const double limit = number(naive.at(dtype).at("overflows_from"));
    const auto below = explain_softmax({limit - 0.01}), at = explain_softmax({limit + 0.01});
    EXPECT_FALSE(below->json.at("naive").at(dtype).at("overflowed").as_bool()) << dtype;
    EXPECT_TRUE(at->json.at("naive").at(dtype).at("overflowed").as_bool()) << dtype;
  }
}

TEST(ExplainSoftmax, RefusesWhatHasNoSoftmax) {
  EXPECT_EQ(explain_softmax({}).status().field(), "scores");
  EXPECT_EQ(explain_softmax({NAN}).status().field(), "scores");
  EXPECT_EQ(explain_softmax({INFINITY}).status().field(), "scores");
  EXPECT_EQ(explain_softmax(std::vector<double>(257, 1.0)).status().field(), "scores");
}

// q, k and v of a word as the text says they are made.
std::vector<double> vector_of(const std::string& word, uint32_t stream) {
  uint64_t h = 0xcbf29ce484222325u;
  for (const char c : word) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  std::vector<double> out;
  for (uint32_t d = 0; d < 8; ++d) {
    const auto words = philox4x32({d / 4, stream, 0, 0}, {uint32_t(h), uint32_t(h >> 32)});
    out.push_back(4.0 * (words[d % 4] >> 8) / 16777216.0 - 2.0);
  }
  return out;
}

TEST(ExplainAttention, TilesStatesAndOutputAreRight) {
  const std::vector<std::string> words = {"I", "want", "to", "learn", "deep", "learning", "today", "."};
  std::string sentence;
  for (const std::string& word : words) sentence += word + " ";
  const int n = static_cast<int>(words.size());
  for (const int block : {1, 3, 4, 64}) {
    for (const bool causal : {false, true}) {
      const auto made = explain_attention({sentence, block, -1, causal});
      ASSERT_TRUE(made.ok()) << made.status().message();
      std::vector<double> m(size_t(n), -INFINITY), l(size_t(n), 0.0);
      size_t tile = 0;
      for (int first = 0; first < n; first += block, ++tile) {
        const boost::json::object& shown = made->json.at("tiles").at(tile).as_object();
        EXPECT_EQ(shown.at("first").to_number<int>(), first);
        for (int r = 0; r < n; ++r) {
          const boost::json::object& row = shown.at("rows").at(size_t(r)).as_object();
          const auto q = vector_of(words[size_t(r)], 0);
          double top = -INFINITY, sum = 0;
          std::vector<double> scores;
          for (int j = first; j < std::min({first + block, n, causal ? r + 1 : n}); ++j) {
            const auto k = vector_of(words[size_t(j)], 1);
            double score = 0;
            for (size_t d = 0; d < 8; ++d) score += q[d] * k[d];
            scores.push_back(score / std::sqrt(8.0));
            top = std::max(top, scores.back());
          }
          for (const double score : scores) sum += std::exp(score - top);
          const double after = std::max(m[size_t(r)], top);
          if (!scores.empty()) {
            const double factor = std::exp(m[size_t(r)] - after);
            l[size_t(r)] = l[size_t(r)] * factor + sum * std::exp(top - after);
            EXPECT_TRUE(std::abs(number(row.at("factor")) - factor) <= 1e-5);
            EXPECT_TRUE(std::abs(number(row.at("block_m")) - top) <= 1e-5);
            EXPECT_TRUE(std::abs(number(row.at("block_l")) - sum) <= 1e-5 * sum);
          } else {
            EXPECT_EQ(number(row.at("block_m")), -INFINITY);
            EXPECT_EQ(number(row.at("factor")), 1.0);
          }
          m[size_t(r)] = after;
          EXPECT_TRUE(std::abs(number(row.at("m")) - after) <= 1e-5);
          EXPECT_TRUE(std::abs(number(row.at("l")) - l[size_t(r)]) <= 1e-5 * l[size_t(r)]);
        }
      }
      for (int r = 0; r < n; ++r) {
        const auto q = vector_of(words[size_t(r)], 0);
        std::vector<double> want(8, 0.0);
        for (int j = 0; j < (causal ? r + 1 : n); ++j) {
          const auto k = vector_of(words[size_t(j)], 1), v = vector_of(words[size_t(j)], 2);
          double score = 0;
          for (size_t d = 0; d < 8; ++d) score += q[d] * k[d];
          const double p = std::exp(score / std::sqrt(8.0) - m[size_t(r)]) / l[size_t(r)];
          for (size_t d = 0; d < 8; ++d) want[d] += p * v[d];
        }
        for (size_t d = 0; d < 8; ++d)
          EXPECT_TRUE(std::abs(number(made->json.at("o").at(size_t(r) * 8 + d)) - want[d]) <= 1e-5);
      }
      EXPECT_TRUE(number(made->json.at("largest_difference")) <= 1e-5);
      EXPECT_NE(made->text.find("largest difference from the full 8 x 8 matrix"), std::string::npos);
    }
  }
}

TEST(ExplainAttention, ShowsOneRowAndRefusesNonsense) {
  const auto one = explain_attention({"a b c d e", 2, 3, false});
  ASSERT_TRUE(one.ok());
  EXPECT_EQ(one->json.at("tiles").at(0).at("rows").as_array().size(), 1u);
  EXPECT_EQ(explain_attention({"", 4, -1, false}).status().field(), "text");
  EXPECT_EQ(explain_attention({"a b", 0, -1, false}).status().field(), "block");
  EXPECT_EQ(explain_attention({"a b", 65, -1, false}).status().field(), "block");
  EXPECT_EQ(explain_attention({"a b", 4, 2, false}).status().field(), "row");
}

TEST(ExplainHeads, CountsBytesAndDrawsWhoReadsWhat) {
  const auto made = explain_heads({8, 2, 64, 4, 1000, DType::bf16});
  ASSERT_TRUE(made.ok()) << made.status().message();
  for (const auto& [i, kv_heads] : {std::pair<size_t, int>{0, 8}, {1, 2}, {2, 1}}) {
    const boost::json::object& kind = made->json.at("kinds").at(i).as_object();
    EXPECT_EQ(kind.at("kv_heads").to_number<int>(), kv_heads);
    EXPECT_EQ(kind.at("bytes_per_token").to_number<int64_t>(), 2 * kv_heads * 64 * 2 * 4);
    EXPECT_EQ(kind.at("bytes").to_number<int64_t>(), 2 * kv_heads * 64 * 2 * 4 * 1000);
  }
  EXPECT_NE(made->text.find("\\---+---+---/   \\---+---+---/"), std::string::npos) << made->text;
  EXPECT_EQ(explain_heads({8, 3, 64, 1, 10, DType::f32}).status().field(), "heads");
  EXPECT_EQ(explain_heads({8, 2, 60, 1, 10, DType::f32}).status().field(), "head_dim");
}

TEST(ExplainAlibi, ShowsWhatTheKernelAdds) {
  const auto made = explain_alibi({12, 9, 6});
  ASSERT_TRUE(made.ok());
  // 8 of 2^-(h + 1), then 2^-0.5, 2^-1.5...
  for (size_t h = 0; h < 12; ++h) {
    const double want = h < 8 ? std::exp2(-double(h + 1)) : std::exp2(-0.5 - double(h - 8));
    EXPECT_TRUE(std::abs(number(made->json.at("slopes").at(h)) - want) <= 1e-7 * want);
  }
  // Zero queries and one-hot values: o is the softmax of the biases alone.
  ThreadPool pool({.threads = 1});
  Context context(pool);
  attention::AttentionProblem p;
  p.seqlen_q = p.seqlen_k = 6;
  p.heads = p.kv_heads = 12;
  p.head_dim = p.v_head_dim = 8;
  p.scale = 1.0f;
  const auto slopes = attention::alibi_slopes(12);
  p.alibi_slopes = slopes->data();
  std::vector<float> zero(6 * 12 * 8, 0.0f), v = zero, o = zero;
  for (size_t j = 0; j < 6; ++j)
    for (size_t h = 0; h < 12; ++h) v[(j * 12 + h) * 8 + j] = 1.0f;
  using attention::contiguous;
  ASSERT_TRUE(
      attention::forward(
          context, p,
          {contiguous<const void*>(zero.data(), 6, 12, 8), contiguous<const void*>(zero.data(), 6, 12, 8),
           contiguous<const void*>(v.data(), 6, 12, 8), contiguous<void*>(o.data(), 6, 12, 8), nullptr})
          .ok());
  for (size_t i = 0; i < 6; ++i) {
    for (size_t j = 0; j <= i; ++j) {
      const double added = std::log(o[(i * 12 + 9) * 8 + j] / o[(i * 12 + 9) * 8 + i]);
      EXPECT_TRUE(std::abs(number(made->json.at("bias").at(i).at(j)) - added) <= 1e-5);
    }
  }
  EXPECT_EQ(explain_alibi({0, 0, 4}).status().field(), "heads");
  EXPECT_EQ(explain_alibi({4, 4, 4}).status().field(), "head");
  EXPECT_EQ(explain_alibi({4, 0, 65}).status().field(), "positions");
}

TEST(Alibi, SlopesOfOtherCountsComeFromTheNextPower) {
  for (const int heads : {1, 2, 3, 7, 8, 12, 40, 100}) {
    const auto slopes = attention::alibi_slopes(heads);
    ASSERT_TRUE(slopes.ok());
    ASSERT_EQ(slopes->size(), size_t(heads));
    int power = 1;
    while (power * 2 <= heads) power *= 2;
    for (int h = 0; h < heads; ++h) {
      const double want = h < power ? std::pow(2.0, -8.0 / power * (h + 1))
                                    : std::pow(2.0, -8.0 / (2 * power) * (2 * (h - power) + 1));
      EXPECT_TRUE(std::abs((*slopes)[size_t(h)] - want) <= 1e-6 * want) << heads << " " << h;
    }
  }
  EXPECT_EQ(attention::alibi_slopes(65537).status().field(), "heads");
}

TEST(ExplainRope, FrequenciesRotationAndDistanceAreRight) {
  std::printf("seed: %u\n", kSeed);
  std::mt19937 random(kSeed);
  for (int round = 0; round < 8; ++round) {
    RopeDrawing options;
    options.config.rotary_dim = 4 + 2 * static_cast<int>(random() % 20);
    options.config.base = 1000.0 + random() % 100000;
    options.config.factor = 2 + random() % 6;
    options.config.original_max_positions = 2048;
    options.config.seqlen = 5000;
    options.config.style = round % 2 == 0 ? attention::RopeStyle::half : attention::RopeStyle::interleaved;
    options.position = random() % 100;
    const auto made = explain_rope(options);
    ASSERT_TRUE(made.ok()) << made.status().message();
    const int dim = options.config.rotary_dim;
    const double grow = options.config.factor * 5000 / 2048 - (options.config.factor - 1);
    const double power = double(dim) / (dim - 2);
    for (size_t i = 0; i < size_t(dim / 2); ++i) {
      const auto with_base = [&](double base) { return std::pow(base, -2.0 * double(i) / dim); };
      const boost::json::object& scalings = made->json.at("scalings").as_object();
      const auto near = [&](const char* kind, double want) {
        EXPECT_TRUE(std::abs(number(scalings.at(kind).at("frequency").at(i)) - want) <= 1e-5 * want) << kind;
      };
      const double base = options.config.base, factor = options.config.factor;
      near("none", with_base(base));
      near("linear", with_base(base) / factor);
      near("ntk", with_base(base * std::pow(factor, power)));
      near("dynamic", with_base(base * std::pow(grow, power)));
      const double angle = double(options.position) * with_base(base);
      const boost::json::object& pair = made->json.at("rotation").at(i).as_object();
      const double a = number(pair.at("from").at(0)), b = number(pair.at("from").at(1));
      EXPECT_TRUE(std::abs(number(pair.at("angle")) - angle) <= 1e-5 * (1 + angle));
      EXPECT_TRUE(std::abs(number(pair.at("to").at(0)) - (a * std::cos(angle) - b * std::sin(angle))) <=
                  1e-4);
      EXPECT_TRUE(std::abs(number(pair.at("to").at(1)) - (a * std::sin(angle) + b * std::cos(angle))) <=
                  1e-4);
    }
    const boost::json::array& relative = made->json.at("relative").as_array();
    for (const auto& one : relative)
      EXPECT_TRUE(std::abs(number(one.at("score")) - number(relative[0].at("score"))) <= 1e-5);
  }
  RopeDrawing bad;
  bad.config.rotary_dim = 300;
  EXPECT_EQ(explain_rope(bad).status().field(), "rotary_dim");
  bad.config.rotary_dim = 16;
  bad.position = -1;
  EXPECT_EQ(explain_rope(bad).status().field(), "position");
}

TEST(ExplainKernel, NamesOneKernelEachWay) {
  attention::AttentionProblem p;
  p.seqlen_q = p.seqlen_k = 128;
  p.heads = p.kv_heads = 2;
  p.head_dim = p.v_head_dim = 64;
  p.scale = 0.125f;
  const Explanation made = explain_kernel(p);
  for (const char* pass : {"forward", "backward"}) {
    int taken = 0, others = 0;
    for (const auto& one : made.json.at(pass).at("candidates").as_array()) {
      taken += one.at("taken").as_bool();
      others += !one.at("why").as_string().empty() && !one.at("taken").as_bool();
    }
    EXPECT_EQ(taken, 1) << pass << "\n" << made.text;
    EXPECT_GE(others, 1) << pass;
  }
}

}  // namespace
}  // namespace tessera::cli
