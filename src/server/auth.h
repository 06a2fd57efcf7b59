// API keys and the tenants that they stand for.
//
// Keys themselves are dropped after start: only SHA-256 digests are kept and compared, every digest each time
// and in constant time, so the time tells neither which key nor how much of it was right. A tenant is an HMAC
// of the key under a secret of this process: it partitions the prefix tree and can be printed.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tessera::server {

using Digest = std::array<uint8_t, 32>;
Digest sha256(std::string_view text);
Digest hmac_sha256(std::string_view key, std::string_view text);
std::string hex(const uint8_t* bytes, size_t count);
// `count` bytes of the system's randomness in hex.
std::string random_hex(size_t count);

class KeyRing {
 public:
  explicit KeyRing(const std::vector<std::string>& keys);

  bool open() const { return entries_.empty(); }  // no keys: everybody is tenant ""
  // `authorization`: the header's value, or nullptr. The tenant; nothing when the key is absent or wrong.
  std::optional<std::string> tenant(const std::string* authorization) const;

 private:
  struct Entry {
    Digest digest;
    std::string tenant;
  };
  std::vector<Entry> entries_;
};

}  // namespace tessera::server
