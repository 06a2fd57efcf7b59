// The edge of the public API: what is thrown behind it comes out as a Status.
#pragma once

#include <new>

#include "core/check.h"
#include "tessera/status.h"

namespace tessera {

// fn()'s Status; a failed CHECK is `internal`, memory out is `resource_exhausted`.
template <typename Fn>
Status at_boundary(Fn&& fn) {
  try {
    return fn();
  } catch (const InternalError& error) {
    return Status(StatusCode::internal, error.what());
  } catch (const std::bad_alloc&) {
    return resource_exhausted("memory ran out");
  }
}

}  // namespace tessera
