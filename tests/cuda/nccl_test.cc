// NCCL is found or named as missing, on a machine that need not have it nor a GPU; and what nccl.h of this
// machine says of its types is what core/cuda/nccl.h says by hand.
#include "core/cuda/nccl.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <string>
#include <type_traits>

#if __has_include(<nccl.h>)
#include <nccl.h>
#endif

namespace tessera::cuda {
namespace {

TEST(Nccl, IsFoundWithItsFunctionsOrSaysWhatToInstall) {
  const Result<const Nccl*> found = nccl();
  if (!found.ok()) {
    std::printf("%s\n", found.status().message().c_str());
    EXPECT_EQ(found.status().code(), StatusCode::unavailable);
    EXPECT_NE(found.status().message().find("libnccl.so.2"), std::string::npos);
    EXPECT_NE(found.status().message().find("install"), std::string::npos);
    return;
  }
  const Nccl& n = **found;
  std::printf("NCCL %d.%d.%d\n", n.version / 10000, n.version / 100 % 100, n.version % 100);
  EXPECT_GE(n.version, 21000);
  EXPECT_LT(n.version, 30000);
  EXPECT_TRUE(n.get_unique_id && n.comm_init_rank && n.comm_destroy && n.all_reduce && n.all_gather &&
              n.reduce_scatter && n.broadcast && n.send && n.receive && n.group_start && n.group_end &&
              n.get_error_string);
  EXPECT_EQ(*nccl(), *found) << "loaded once";
  EXPECT_TRUE(nccl_status(n, 0, "nothing").ok());
  const Status status = nccl_status(n, 4, "all_reduce of 8 f32");
  EXPECT_EQ(status.code(), StatusCode::internal);
  EXPECT_EQ(status.message().find("all_reduce of 8 f32: NCCL error 4 ("), 0u) << status.message();
  EXPECT_EQ(status.message().find('\n'), std::string::npos) << status.message();
}

TEST(Nccl, AMissingLibraryIsNamedWithWhatToInstall) {
  const Result<Nccl> none = load_nccl("libnccl-that-is-not-there.so.2");
  ASSERT_FALSE(none.ok());
  EXPECT_EQ(none.status().code(), StatusCode::unavailable);
  const std::string& message = none.status().message();
  EXPECT_NE(message.find("libnccl-that-is-not-there.so.2 could not be loaded"), std::string::npos) << message;
  EXPECT_NE(message.find("install libnccl2"), std::string::npos) << message;
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

TEST(Nccl, ALibraryWithoutItsFunctionsIsRefused) {
  const Result<Nccl> other = load_nccl("libm.so.6");
  ASSERT_FALSE(other.ok());
  EXPECT_EQ(other.status().code(), StatusCode::unavailable);
  EXPECT_NE(other.status().message().find("libm.so.6 has no ncclGetVersion"), std::string::npos)
      << other.status().message();
}

#if __has_include(<nccl.h>)

// A parameter as the calling convention sees it: any pointer, an integer of a size, bytes by value.
template <size_t kBytes>
struct Bytes {};
template <typename T>
using Plain =
    std::conditional_t<std::is_pointer_v<T>, void*,
                       std::conditional_t<std::is_enum_v<T> || std::is_integral_v<T>,
                                          std::integral_constant<size_t, sizeof(T)>, Bytes<sizeof(T)>>>;
template <typename Function>
struct Signature;
template <typename R, typename... Arguments>
struct Signature<R (*)(Arguments...)> {
  using Type = void (*)(Plain<R>, Plain<Arguments>...);
};
template <typename Ours, typename Theirs>
constexpr bool kSame = std::is_same_v<typename Signature<Ours>::Type, typename Signature<Theirs>::Type>;

static_assert(kSame<decltype(Nccl::get_unique_id), decltype(&ncclGetUniqueId)>);
static_assert(kSame<decltype(Nccl::comm_init_rank), decltype(&ncclCommInitRank)>);
static_assert(kSame<decltype(Nccl::comm_destroy), decltype(&ncclCommDestroy)>);
static_assert(kSame<decltype(Nccl::all_reduce), decltype(&ncclAllReduce)>);
static_assert(kSame<decltype(Nccl::all_gather), decltype(&ncclAllGather)>);
static_assert(kSame<decltype(Nccl::reduce_scatter), decltype(&ncclReduceScatter)>);
static_assert(kSame<decltype(Nccl::broadcast), decltype(&ncclBroadcast)>);
static_assert(kSame<decltype(Nccl::send), decltype(&ncclSend)>);
static_assert(kSame<decltype(Nccl::receive), decltype(&ncclRecv)>);
static_assert(kSame<decltype(Nccl::group_start), decltype(&ncclGroupStart)>);
static_assert(kSame<decltype(Nccl::group_end), decltype(&ncclGroupEnd)>);
static_assert(kSame<decltype(Nccl::get_error_string), decltype(&ncclGetErrorString)>);
static_assert(kSame<int (*)(int*), decltype(&ncclGetVersion)>);
static_assert(!kSame<decltype(Nccl::all_reduce), decltype(&ncclAllGather)>);

static_assert(sizeof(NcclUniqueId) == sizeof(ncclUniqueId) && alignof(NcclUniqueId) == alignof(ncclUniqueId));
static_assert(sizeof(NcclCommunicator) == sizeof(ncclComm_t));
static_assert(ncclSuccess == 0);

template <typename Enum>
constexpr bool same(Enum ours, int theirs) {
  return static_cast<int>(ours) == theirs;
}
static_assert(same(NcclType::i8, ncclInt8) && same(NcclType::u8, ncclUint8) &&
              same(NcclType::i32, ncclInt32) && same(NcclType::u32, ncclUint32) &&
              same(NcclType::i64, ncclInt64) && same(NcclType::u64, ncclUint64) &&
              same(NcclType::f16, ncclFloat16) && same(NcclType::f32, ncclFloat32) &&
              same(NcclType::f64, ncclFloat64) && same(NcclType::bf16, ncclBfloat16));
static_assert(same(NcclReduction::sum, ncclSum) && same(NcclReduction::product, ncclProd) &&
              same(NcclReduction::max, ncclMax) && same(NcclReduction::min, ncclMin) &&
              same(NcclReduction::average, ncclAvg));

TEST(Nccl, TheHeaderOfThisMachineAgrees) {
  std::printf("nccl.h %d.%d.%d\n", NCCL_MAJOR, NCCL_MINOR, NCCL_PATCH);
  EXPECT_GE(NCCL_VERSION_CODE, 21000) << "what was checked at compile time is of this version";
}

#else

TEST(Nccl, TheHeaderOfThisMachineAgrees) {
  GTEST_SKIP() << "nccl.h is not there to compare with";
}

#endif

}  // namespace
}  // namespace tessera::cuda
