// Memory between two pages that may not be touched: a read or write outside it ends the test.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>

namespace tessera::attention {

// Bytes that end right before a forbidden page (at_end), or begin right behind one.
class Guarded {
 public:
  Guarded(size_t bytes, bool at_end) : bytes_(bytes) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t middle = (bytes + page - 1) / page * page;
    size_ = middle + 2 * page;
    map_ =
        static_cast<char*>(mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    EXPECT_NE(map_, MAP_FAILED);
    EXPECT_EQ(mprotect(map_, page, PROT_NONE), 0);
    EXPECT_EQ(mprotect(map_ + page + middle, page, PROT_NONE), 0);
    data_ = map_ + page + (at_end ? middle - bytes : 0);
  }
  // A copy of the bytes.
  Guarded(const void* from, size_t bytes, bool at_end) : Guarded(bytes, at_end) {
    if (bytes > 0) std::memcpy(data_, from, bytes);
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { munmap(map_, size_); }
  char* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_, size_ = 0;
  char *map_ = nullptr, *data_ = nullptr;
};

}  // namespace tessera::attention
