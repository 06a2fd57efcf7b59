// What every file of a device's figures begins with.
#pragma once

#include <boost/json.hpp>

#include "core/cuda/device.h"

namespace tessera::cli {

// bench, the device and its driver, the commit, the date and the command: enough to measure again. The commit
// is TESSERA_COMMIT of the environment or, where that is not set and the sources are a git checkout, its head
// ("" where neither says).
boost::json::object about(const char* bench, const cuda::DeviceProperties& device);

}  // namespace tessera::cli
