// The seam for files: read-only, by offset, never mapped (a mapped file that is truncated kills the process).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "tessera/status.h"

namespace tessera {

class File {
 public:
  virtual ~File() = default;
  virtual uint64_t size() const = 0;  // at the time of opening
  // Fills `out` from `offset`; a short file is a bad_file Status naming both offsets. Thread-safe.
  virtual Status read(uint64_t offset, std::span<std::byte> out) = 0;
};

class FileSystem {
 public:
  virtual ~FileSystem() = default;
  // Regular files only: a directory, FIFO or device is refused by name without being read.
  virtual Result<std::unique_ptr<File>> open(const std::string& path) = 0;
};
FileSystem& system_files();

// The whole of a small file. Larger than `limit` bytes is an error.
Result<std::string> read_text_file(const std::string& path, uint64_t limit,
                                   FileSystem& files = system_files());

// Lower-case hex SHA-256 of a file, read in pieces.
Result<std::string> sha256_file(File& file);

}  // namespace tessera
