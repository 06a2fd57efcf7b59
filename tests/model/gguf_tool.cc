// The C++ side of tools/gguf_differential.py.
//   gguf_tool make DIR    writes good_*.gguf and every hand-made hostile file that is not sparse
//   gguf_tool judge       for each path on standard input one line: "accept", or "reject CODE: message"
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>

#include "model/model_file.h"
#include "tests/model/hostile_corpus.h"

namespace {

using namespace tessera;
using testing::TinyLlama;

void write(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

testing::GgufWriter many_types() {
  testing::GgufWriter writer = testing::small_llama();
  writer.raw("x.u8", testing::kU8, "\x7f")
      .raw("x.i16", testing::kI16, "ab")
      .raw("x.f64", testing::kF64, "abcdefgh");
  writer.raw("x.flags", testing::kArray,
             testing::le<uint32_t>(testing::kBool) + testing::le<uint64_t>(2) + std::string("\0\1", 2));
  const std::string inner = testing::le<uint32_t>(testing::kU16) + testing::le<uint64_t>(1) + "ab";
  writer.raw("x.nested", testing::kArray,
             testing::le<uint32_t>(testing::kArray) + testing::le<uint64_t>(2) + inner + inner);
  writer.f32s("tokenizer.ggml.scores", {0, -1, -2, -3});
  writer.str("llama.rope.scaling.type", "linear").f32("llama.rope.scaling.factor", 2.0f);
  writer.tensor("rope_freqs.weight", DType::f32, {8}, std::string(32, '?'));
  return writer;
}

void make(const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  write(folder / "good_small.gguf", testing::small_llama().build());
  write(folder / "good_many_types.gguf", many_types().build());
  testing::GgufWriter aligned = many_types();
  aligned.version = 2;
  aligned.alignment = 256;
  aligned.u32("general.alignment", 256);
  write(folder / "good_aligned_v2.gguf", aligned.build());
  TinyLlama half{.layers = 2, .width = 32, .heads = 2, .kv_heads = 2, .head_dim = 16, .ffn_width = 32};
  half.window = 8;
  half.tied_head = false;
  half.byte_vocabulary = false;
  half.dtype = DType::bf16;
  write(folder / "good_untied_bf16.gguf", half.writer().build());
  size_t number = 0;
  for (const testing::HostileFile& file : testing::HostileCorpus::make()) {
    char name[32];
    std::snprintf(name, sizeof name, "hostile_%03zu.gguf", number++);
    if (file.size == 0) write(folder / name, file.bytes);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string command = argc > 1 ? argv[1] : "";
  if (command == "make" && argc == 3) {
    make(argv[2]);
    return 0;
  }
  if (command != "judge") {
    std::fprintf(stderr, "usage: gguf_tool make DIR | gguf_tool judge < PATHS\n");
    return 2;
  }
  for (std::string path; std::getline(std::cin, path);) {
    const auto model = model::open_model(path);
    if (model.ok()) {
      std::cout << "accept" << std::endl;
    } else {
      std::cout << "reject " << name(model.status().code()) << ": " << model.status().message() << std::endl;
    }
  }
  return 0;
}
