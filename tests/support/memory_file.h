// Files that are strings in memory, for tests of readers.
#pragma once

#include <cstring>
#include <map>
#include <memory>
#include <string>

#include "core/format.h"
#include "core/fs.h"

namespace tessera::testing {

class MemoryFile final : public File {
 public:
  explicit MemoryFile(std::string bytes) : bytes_(std::move(bytes)) {}
  uint64_t size() const override { return bytes_.size(); }
  Status read(uint64_t offset, std::span<std::byte> out) override {
    if (offset > bytes_.size() || out.size() > bytes_.size() - offset) {
      return bad_file(format("ends at byte {}, needed {} bytes from {}", bytes_.size(), out.size(), offset));
    }
    std::memcpy(out.data(), bytes_.data() + offset, out.size());
    return {};
  }

 private:
  std::string bytes_;
};

class MemoryFileSystem final : public FileSystem {
 public:
  std::map<std::string, std::string> files;
  Result<std::unique_ptr<File>> open(const std::string& path) override {
    const auto found = files.find(path);
    if (found == files.end()) return not_found(path + ": no such file");
    return std::unique_ptr<File>(new MemoryFile(found->second));
  }
};

}  // namespace tessera::testing
