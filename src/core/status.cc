#include "tessera/status.h"

namespace tessera {

const char* name(StatusCode code) {
  switch (code) {
    case StatusCode::ok:
      return "ok";
    case StatusCode::invalid_argument:
      return "invalid_argument";
    case StatusCode::not_found:
      return "not_found";
    case StatusCode::unsupported:
      return "unsupported";
    case StatusCode::bad_file:
      return "bad_file";
    case StatusCode::resource_exhausted:
      return "resource_exhausted";
    case StatusCode::cancelled:
      return "cancelled";
    case StatusCode::unavailable:
      return "unavailable";
    case StatusCode::internal:
      return "internal";
  }
  return "unknown";
}

}  // namespace tessera
