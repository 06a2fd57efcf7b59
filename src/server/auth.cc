#include "server/auth.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include "core/check.h"

namespace tessera::server {

Digest sha256(std::string_view text) {
  Digest digest{};
  unsigned size = 0;
  TESSERA_CHECK(EVP_Digest(text.data(), text.size(), digest.data(), &size, EVP_sha256(), nullptr) == 1);
  return digest;
}

Digest hmac_sha256(std::string_view key, std::string_view text) {
  Digest digest{};
  unsigned size = 0;
  const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
  const void* made =
      HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()), bytes, text.size(), digest.data(), &size);
  TESSERA_CHECK(made != nullptr);
  return digest;
}

std::string hex(const uint8_t* bytes, size_t count) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  for (size_t i = 0; i < count; ++i) {
    out += kDigits[bytes[i] >> 4];
    out += kDigits[bytes[i] & 15];
  }
  return out;
}

std::string random_hex(size_t count) {
  std::vector<uint8_t> bytes(count);
  TESSERA_CHECK(RAND_bytes(bytes.data(), static_cast<int>(count)) == 1);
  return hex(bytes.data(), count);
}

KeyRing::KeyRing(const std::vector<std::string>& keys) {
  const std::string secret = random_hex(32);
  for (const std::string& key : keys) {
    const Digest tenant = hmac_sha256(secret, key);
    entries_.push_back({sha256(key), hex(tenant.data(), 16)});
  }
}

std::optional<std::string> KeyRing::tenant(const std::string* authorization) const {
  if (open()) return std::string();
  std::string_view given = authorization != nullptr ? std::string_view(*authorization) : std::string_view();
  static constexpr std::string_view kScheme = "bearer ";
  bool bearer = given.size() > kScheme.size();
  for (size_t i = 0; bearer && i < kScheme.size(); ++i) bearer = (given[i] | 0x20) == kScheme[i];
  if (!bearer) return std::nullopt;
  const Digest digest = sha256(given.substr(kScheme.size()));
  const Entry* match = nullptr;
  for (const Entry& entry : entries_) {
    if (CRYPTO_memcmp(entry.digest.data(), digest.data(), digest.size()) == 0) match = &entry;
  }
  if (match == nullptr) return std::nullopt;
  return match->tenant;
}

}  // namespace tessera::server
