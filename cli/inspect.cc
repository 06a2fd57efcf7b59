#include "inspect.h"

#include <cstdio>
#include <memory>
#include <string>

#include "model/inspect.h"

namespace tessera::cli {
namespace {

constexpr int kBadFile = 2;

// A path may hold anything; the message stays one line.
std::string one_line(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20) c = '?';
  }
  return text;
}

struct InspectOptions {
  std::string file;
  bool json = false;
  bool check = false;
};

int run(const InspectOptions& options) {
  const Result<model::Inspection> result = model::inspect(options.file, options.check);
  if (!result.ok()) {
    std::fprintf(stderr, "tessera: %s\n", one_line(result.status().message()).c_str());
    return kBadFile;
  }
  const std::string text = options.json ? inspection_json(*result) : inspection_text(*result);
  std::fwrite(text.data(), 1, text.size(), stdout);
  if (result->non_finite.empty()) return 0;
  std::fprintf(stderr, "tessera: %zu tensors have weights that are NaN or infinite, the first is '%s'\n",
               result->non_finite.size(), result->non_finite[0].name.c_str());
  return kBadFile;
}

}  // namespace

void add_inspect(CLI::App& app, int* code) {
  auto options = std::make_shared<InspectOptions>();
  CLI::App* sub =
      app.add_subcommand("inspect", "what a model file holds: architecture, sizes, tensors, SHA-256");
  sub->add_option("FILE", options->file, "GGUF file")->required();
  sub->add_flag("--json", options->json, "one JSON object instead of text");
  sub->add_flag("--check", options->check, "also read all weights and count those that are NaN or infinite");
  sub->callback([options, code] { *code = run(*options); });
}

}  // namespace tessera::cli
