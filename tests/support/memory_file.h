// Files that are strings in memory, for tests of readers.
#pragma once

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <string>

#include "core/format.h"
#include "core/fs.h"

namespace tessera::testing {

class MemoryFile final : public File {
 public:
  // `size` beyond the bytes: zeros follow, and take no memory.
  explicit MemoryFile(std::string bytes, uint64_t size = 0)
      : bytes_(std::move(bytes)), size_(std::max<uint64_t>(size, bytes_.size())) {}
  uint64_t size() const override { return size_; }
  Status read(uint64_t offset, std::span<std::byte> out) override {
    if (offset > size_ || out.size() > size_ - offset) {
      return bad_file(format("ends at byte {}, needed {} bytes from {}", size_, out.size(), offset));
    }
    const size_t stored = offset < bytes_.size() ? std::min<size_t>(bytes_.size() - offset, out.size()) : 0;
    if (stored > 0) std::memcpy(out.data(), bytes_.data() + offset, stored);
    if (stored < out.size()) std::memset(out.data() + stored, 0, out.size() - stored);
    return {};
  }

 private:
  std::string bytes_;
  uint64_t size_;
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
