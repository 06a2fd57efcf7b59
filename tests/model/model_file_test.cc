// Good Llama files as ModelFile: the configuration, the table of tensors and the vocabulary.
#include "model/model_file.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/memory_file.h"
#include "tests/support/tiny_llama.h"

namespace tessera::model {
namespace {

using testing::GgufWriter;
using testing::TinyLlama;

Result<ModelFile> open(const GgufWriter& writer) {
  testing::MemoryFileSystem files;
  files.files["tiny.gguf"] = writer.build();
  return open_model("tiny.gguf", files);
}

TEST(ModelFile, ReadsTheConfigurationOfALlama) {
  auto model = open(TinyLlama{.window = 128}.writer());
  ASSERT_TRUE(model.ok()) << model.status().message();
  const ModelConfig& config = model->config;
  EXPECT_EQ(config.architecture, "llama");
  EXPECT_EQ(config.name, "tiny");
  EXPECT_EQ(config.vocab_size, 259);
  EXPECT_EQ(config.context_length, 512);
  EXPECT_TRUE(config.tied_head);
  ASSERT_EQ(config.stacks.size(), 1u);
  const StackConfig& stack = config.stacks[0];
  EXPECT_EQ(stack.layers, 2);
  EXPECT_EQ(stack.width, 64);
  EXPECT_EQ(stack.heads, 4);
  EXPECT_EQ(stack.kv_heads, 2);
  EXPECT_EQ(stack.head_dim, 16);
  EXPECT_EQ(stack.ffn_width, 96);
  EXPECT_EQ(stack.attention_scale, 0.25f);
  EXPECT_EQ(stack.norm_eps, 1e-5f);
  EXPECT_EQ(stack.rope.kind, RopeKind::interleaved);
  EXPECT_EQ(stack.rope.dims, 16);
  EXPECT_EQ(stack.rope.base, 10000.0f);
  EXPECT_EQ(stack.rope.scale, 1.0f);
  EXPECT_TRUE(stack.rope.factors.empty());
  EXPECT_EQ(stack.windows, (std::vector<int>{128, 128}));
  EXPECT_EQ(config.kv_elements_per_token(), 2 * 2 * 2 * 16);
}

TEST(ModelFile, OptionalKeysHaveTheFamilysDefaults) {
  GgufWriter writer = TinyLlama{.kv_heads = 4}.writer();
  for (const char* key :
       {"llama.attention.head_count_kv", "llama.attention.key_length", "llama.vocab_size",
        "llama.attention.value_length", "llama.rope.dimension_count", "llama.rope.freq_base",
        "tokenizer.ggml.token_type", "tokenizer.ggml.bos_token_id", "tokenizer.chat_template",
        "tokenizer.ggml.add_bos_token", "tokenizer.ggml.merges", "general.name"}) {
    writer.erase(key);
  }
  auto model = open(writer);
  ASSERT_TRUE(model.ok()) << model.status().message();
  const StackConfig& stack = model->config.stacks[0];
  EXPECT_EQ(stack.kv_heads, 4);
  EXPECT_EQ(stack.head_dim, 16);
  EXPECT_EQ(stack.rope.dims, 16);
  EXPECT_EQ(stack.rope.base, 10000.0f);
  EXPECT_EQ(stack.windows, (std::vector<int>{0, 0}));
  EXPECT_EQ(model->config.vocab_size, 259);
  EXPECT_EQ(model->vocab.bos, -1);
  EXPECT_FALSE(model->vocab.add_bos.has_value());
  EXPECT_EQ(model->vocab.merges, nullptr);
  EXPECT_EQ(model->vocab.types, std::vector<int32_t>(259, 1));
  EXPECT_EQ(model->chat_template, "");
}

TEST(ModelFile, LinearRopeScalingAndFrequencyFactors) {
  GgufWriter writer = TinyLlama{}.writer();
  writer.str("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 4.0f);
  std::string factors;
  for (int i = 0; i < 8; ++i) factors += testing::le(1.0f + static_cast<float>(i));
  writer.tensor("rope_freqs.weight", DType::f32, {8}, factors);
  auto model = open(writer);
  ASSERT_TRUE(model.ok()) << model.status().message();
  EXPECT_EQ(model->config.stacks[0].rope.scale, 4.0f);
  EXPECT_EQ(model->config.stacks[0].rope.factors, (std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8}));
}

TEST(ModelFile, NamesTheTensorsOfEveryLayer) {
  for (bool tied : {true, false}) {
    auto model = open(TinyLlama{.tied_head = tied, .dtype = DType::q4_1}.writer());
    ASSERT_TRUE(model.ok()) << model.status().message();
    const TensorNames& names = model->tensors;
    EXPECT_EQ(names.embedding, "token_embd.weight");
    EXPECT_EQ(names.head, tied ? "token_embd.weight" : "output.weight");
    EXPECT_EQ(model->config.tied_head, tied);
    EXPECT_EQ(names.output_norm, "output_norm.weight");
    ASSERT_EQ(names.layers.size(), 2u);
    EXPECT_EQ(names.layers[1].q, "blk.1.attn_q.weight");
    EXPECT_EQ(names.layers[1].down, "blk.1.ffn_down.weight");
    const GgufTensor* gate = model->gguf->find_tensor(names.layers[0].gate);
    ASSERT_NE(gate, nullptr);
    EXPECT_EQ(gate->shape_text(), "[96, 64]");
    EXPECT_EQ(gate->dtype, DType::q4_1);
  }
}

TEST(ModelFile, ReadsVocabularyAndTemplate) {
  auto model = open(TinyLlama{}.writer().f32s("tokenizer.ggml.scores", std::vector<float>(259, -1.0f)));
  ASSERT_TRUE(model.ok()) << model.status().message();
  const VocabData& vocab = model->vocab;
  EXPECT_EQ(vocab.kind, "gpt2");
  EXPECT_EQ(vocab.pre, "smollm");
  ASSERT_EQ(vocab.tokens->size(), 259u);
  EXPECT_EQ((*vocab.tokens)[1], "<|im_start|>");
  EXPECT_EQ((*vocab.tokens)[3 + ' '], "\xc4\xa0");
  EXPECT_EQ(vocab.types[2], 3);
  EXPECT_EQ(vocab.types[3], 1);
  EXPECT_EQ(vocab.scores.size(), 259u);
  EXPECT_EQ(vocab.merges->size(), 0u);
  EXPECT_EQ(vocab.bos, 1);
  EXPECT_EQ(vocab.eos, 2);
  EXPECT_EQ(vocab.padding, -1);
  EXPECT_EQ(vocab.add_bos, false);
  EXPECT_EQ(model->chat_template, TinyLlama::kChatTemplate);
}

}  // namespace
}  // namespace tessera::model
