#include "core/fs.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "core/format.h"

namespace tessera {
namespace {

class PosixFile final : public File {
 public:
  PosixFile(int fd, uint64_t size, std::string path) : fd_(fd), size_(size), path_(std::move(path)) {}
  ~PosixFile() override { close(fd_); }
  uint64_t size() const override { return size_; }
  Status read(uint64_t offset, std::span<std::byte> out) override {
    size_t done = 0;
    while (done < out.size()) {
      const ssize_t got = pread(fd_, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0)
        return bad_file(format("{}: reading at byte {}: {}", path_, offset + done, strerror(errno)));
      if (got == 0) {
        return bad_file(
            format("{}: ends at byte {}, needed up to byte {}", path_, offset + done, offset + out.size()));
      }
      done += static_cast<size_t>(got);
    }
    return {};
  }

 private:
  int fd_;
  uint64_t size_;
  std::string path_;
};

class PosixFileSystem final : public FileSystem {
 public:
  Result<std::unique_ptr<File>> open(const std::string& path) override {
    // O_NONBLOCK: opening a FIFO without a writer must not hang.
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return not_found(format("{}: {}", path, strerror(errno)));
    struct stat info {};
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
      close(fd);
      return bad_file(format("{}: is not a regular file", path));
    }
    return std::unique_ptr<File>(new PosixFile(fd, static_cast<uint64_t>(info.st_size), path));
  }
};

}  // namespace

FileSystem& system_files() {
  static PosixFileSystem files;
  return files;
}

Result<std::string> read_text_file(const std::string& path, uint64_t limit, FileSystem& files) {
  TESSERA_ASSIGN_OR_RETURN(auto file, files.open(path));
  if (file->size() > limit) {
    return bad_file(format("{}: {} bytes, the limit is {}", path, file->size(), limit));
  }
  std::string text(file->size(), '\0');
  TESSERA_RETURN_IF_ERROR(file->read(0, std::as_writable_bytes(std::span(text))));
  return text;
}

Result<std::string> sha256_file(File& file) {
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), &EVP_MD_CTX_free);
  std::vector<std::byte> piece(size_t{1} << 20);
  if (!context || EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) != 1) {
    return Status(StatusCode::internal, "SHA-256 is not available in libcrypto");
  }
  for (uint64_t offset = 0; offset < file.size();) {
    const size_t count = std::min<uint64_t>(piece.size(), file.size() - offset);
    TESSERA_RETURN_IF_ERROR(file.read(offset, std::span(piece).first(count)));
    EVP_DigestUpdate(context.get(), piece.data(), count);
    offset += count;
  }
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_DigestFinal_ex(context.get(), digest, &size);
  std::string hex;
  for (unsigned int i = 0; i < size; ++i) hex += format("{:02x}", digest[i]);
  return hex;
}

}  // namespace tessera
