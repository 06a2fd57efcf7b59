#include "core/arena.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>

namespace tessera {
namespace {

// Counts what is taken and given back, and refuses from the n-th request on.
class CountingAllocator final : public Allocator {
 public:
  void* allocate(size_t bytes) override {
    if (left == 0) return nullptr;
    --left;
    live += bytes;
    return system_allocator().allocate(bytes);
  }
  void deallocate(void* data, size_t bytes) override {
    live -= bytes;
    system_allocator().deallocate(data, bytes);
  }
  int left = 100;
  size_t live = 0;
};

TEST(Arena, BlocksAreZeroedAlignedAndApart) {
  ArenaAllocator arena(4096);
  std::set<char*> ends;
  for (size_t bytes : {1, 63, 64, 65, 1000, 1024, 1025, 5000, 700, 700, 700, 700, 700}) {
    char* data = static_cast<char*>(arena.allocate(bytes));
    ASSERT_NE(data, nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 64, 0u);
    // A block that overlapped an earlier one would show its bytes.
    for (size_t i = 0; i < bytes; ++i) ASSERT_EQ(data[i], 0);
    std::memset(data, 0x5a, bytes);
    EXPECT_TRUE(ends.insert(data).second);
  }
}

TEST(Arena, MemoryComesBackWithTheArena) {
  CountingAllocator parent;
  {
    ArenaAllocator arena(4096, parent);
    Result<Buffer> small = Buffer::create(100, "block", arena);
    Result<Buffer> large = Buffer::create(3000, "block", arena);
    ASSERT_TRUE(small.ok() && large.ok());
    EXPECT_EQ(arena.bytes(), parent.live);
    EXPECT_EQ(parent.live, 4096u + 3008u);
  }
  EXPECT_EQ(parent.live, 0u);
}

TEST(Arena, MemoryOutIsNull) {
  CountingAllocator parent;
  parent.left = 1;
  ArenaAllocator arena(4096, parent);
  EXPECT_NE(arena.allocate(1000), nullptr);
  EXPECT_EQ(arena.allocate(2000), nullptr);
  EXPECT_EQ(arena.allocate(SIZE_MAX), nullptr);
  EXPECT_NE(arena.allocate(1000), nullptr);  // the chunk at hand still serves
}

}  // namespace
}  // namespace tessera
