#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <iterator>
#include <memory>

#include "bench/cuda/device_bench.h"
#include "core/format.h"
#include "cuda/about.h"

namespace tessera::cli {
namespace {

std::string commit() {
  if (const char* text = std::getenv("TESSERA_COMMIT")) return text;
  const std::unique_ptr<FILE, int (*)(FILE*)> git(
      popen("git -C '" TESSERA_SOURCE_DIR "' describe --always --dirty --abbrev=12 --exclude='*' 2>/dev/null",
            "r"),
      pclose);
  char line[64] = "";
  if (git == nullptr || std::fgets(line, sizeof line, git.get()) == nullptr) return "";
  const std::string head = line;
  return head.substr(0, head.find('\n'));
}

std::string date() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

std::string command() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  while (!text.empty() && text.back() == '\0') text.pop_back();
  for (char& c : text) {
    if (c == '\0') c = ' ';
  }
  return text;
}

}  // namespace

boost::json::object about(const char* bench, const cuda::DeviceProperties& device) {
  return {{"bench", bench},
          {"device", device.name},
          {"multiprocessors", device.multiprocessors},
          {"driver", bench::driver_version()},
          {"cuda", format("{}.{}", device.driver / 1000, device.driver % 1000 / 10)},
          {"commit", commit()},
          {"date", date()},
          {"command", command()}};
}

}  // namespace tessera::cli
