// The arrows between layers, checked on the text of every include. docs/architecture.md has the table in
// words.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;
using Layers = std::set<std::string>;

const std::map<std::string, Layers> kAllowed = {
    {"core", {}},
    {"simd", {"core"}},
    {"attention", {"simd", "core"}},
    {"kvcache", {"core"}},
    {"ops", {"simd", "attention", "core"}},
    {"dist", {"core"}},
    {"tokenizer", {"core"}},
    {"model", {"ops", "attention", "dist", "core"}},
    {"engine", {"model", "kvcache", "tokenizer", "dist", "core"}},
    {"server", {"engine", "core"}},
    {"train", {"model", "ops", "attention", "dist", "core"}},
    {"plan", {"model", "core"}},
};

struct Include {
  std::string path;
  bool quoted;
};

// The includes of a text. An include that is commented out does not count.
std::vector<Include> includes_of(const std::string& text) {
  std::vector<Include> found;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string directive, name;
    words >> directive;
    if (directive == "#") {
      words >> name;
      directive += name;
    }
    if (!directive.starts_with("#include")) continue;
    const size_t open = line.find_first_of("<\"");
    const size_t close = open == std::string::npos ? open : line.find_first_of(">\"", open + 1);
    if (close == std::string::npos) continue;
    found.push_back({line.substr(open + 1, close - open - 1), line[open] == '"'});
  }
  return found;
}

bool is_cuda_header(const std::string& path) {
  return path.starts_with("cuda") || path.starts_with("cub/") || path.starts_with("cublas") ||
         path.starts_with("nccl") || path.starts_with("cudnn");
}

// What is wrong with `file` (its path from the repository's root), one line each.
std::vector<std::string> violations(const std::string& file, const std::string& text) {
  std::vector<std::string> wrong;
  const bool cuda_file = file.find("/cuda/") != std::string::npos || file.ends_with(".cu");
  const bool public_header = file.starts_with("include/tessera/");
  const bool reference = file.find("attention/reference/") != std::string::npos;
  std::string layer;
  if (file.starts_with("src/")) layer = file.substr(4, file.find('/', 4) - 4);
  for (const Include& include : includes_of(text)) {
    const std::string top = include.path.substr(0, include.path.find('/'));
    const std::string line = file + " includes " + include.path + ": ";
    if (!cuda_file && is_cuda_header(include.path)) {
      wrong.push_back(line + "CUDA headers belong in cuda/ folders and .cu files");
    }
    if (public_header) {
      const bool standard = !include.quoted && include.path.find('/') == std::string::npos &&
                            include.path.find('.') == std::string::npos;
      if (!standard && top != "tessera")
        wrong.push_back(line + "public headers include only the standard library");
      continue;
    }
    if (layer.empty() || !include.quoted || top == "tessera") continue;
    if (reference && include.path != "attention/problem.h" && top + "/reference" != "attention/reference" &&
        !include.path.starts_with("attention/reference/")) {
      wrong.push_back(line + "the reference shares no code with what it checks");
    }
    if (top == layer) continue;
    const auto allowed = kAllowed.find(layer);
    if (allowed == kAllowed.end()) {
      wrong.push_back(line + "the layer " + layer + " is not in the table");
    } else if (kAllowed.count(top) != 0 && allowed->second.count(top) == 0) {
      wrong.push_back(line + layer + " may not know " + top);
    } else if (kAllowed.count(top) == 0) {
      wrong.push_back(line + "not a layer; includes are spelled from src/");
    }
  }
  return wrong;
}

std::string read(const fs::path& path) {
  std::ifstream stream(path);
  return {std::istreambuf_iterator<char>(stream), {}};
}

TEST(Includes, FollowTheArrows) {
  const fs::path root = TESSERA_SOURCE_DIR;
  int files = 0;
  for (const char* top : {"src", "include"}) {
    for (const auto& entry : fs::recursive_directory_iterator(root / top)) {
      const std::string extension = entry.path().extension();
      if (extension != ".h" && extension != ".cc" && extension != ".cu" && extension != ".cuh") continue;
      ++files;
      const std::string file = fs::relative(entry.path(), root).generic_string();
      for (const std::string& line : violations(file, read(entry.path()))) ADD_FAILURE() << line;
    }
  }
  EXPECT_GT(files, 20) << "the sources were not found under " << root;
}

TEST(Includes, TheCheckSeesEachKindOfWrongArrow) {
  EXPECT_EQ(violations("src/kvcache/a.cc", "#include \"engine/engine.h\"\n").size(), 1u);
  EXPECT_EQ(violations("src/core/a.h", "#include \"simd/isa.h\"\n").size(), 1u);
  EXPECT_EQ(violations("src/train/a.cc", "#include \"kvcache/block_pool.h\"\n").size(), 1u);
  EXPECT_EQ(violations("src/ops/a.cc", "#include <cuda_runtime.h>\n").size(), 1u);
  EXPECT_EQ(violations("src/ops/a.cu", "#include <cuda_runtime.h>\n").size(), 0u);
  EXPECT_EQ(violations("src/attention/reference/a.cc", "#include \"simd/vec.h\"\n").size(), 1u);
  EXPECT_EQ(violations("include/tessera/a.h", "#include <boost/json.hpp>\n").size(), 1u);
  EXPECT_EQ(violations("include/tessera/a.h", "#include \"core/buffer.h\"\n").size(), 1u);
  EXPECT_EQ(violations("src/server/a.cc", "#include \"tokenizer/tokenizer.h\"\n").size(), 1u);
  EXPECT_EQ(violations("src/server/a.cc", "#include \"engine/service.h\"\n#include <vector>\n").size(), 0u);
}

// What only one compiler knows. g++ builds the release, clang the fuzz targets.
TEST(Sources, UseNoBuiltinThatClangLacks) {
  const fs::path root = TESSERA_SOURCE_DIR;
  for (const auto& entry : fs::recursive_directory_iterator(root / "src")) {
    if (!entry.is_regular_file()) continue;
    EXPECT_EQ(read(entry.path()).find("__builtin_shuffle("), std::string::npos)
        << entry.path() << ": use __builtin_shufflevector";
  }
}

}  // namespace
